"""The primary of a service that Redis Sentinel watches.

Sentinels are asked for each new connection. All are asked at the same time, so that one that does not answer costs
nothing. If they disagree, the address with the highest configuration epoch counts: that of the latest failover.

A primary that was frozen during a failover does not know that it has been replaced. So everything in this process that
uses a service gets the new primary when the first one finds it, and closes its connections to the former one.
"""

import asyncio
import threading
from time import monotonic
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
from weakref import WeakValueDictionary

from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from acgsperf.addresses import checked_redis_url
from acgsperf.names import resolve
from acgsperf.tiers.redis_server import Credentials, RedisServer
from acgsperf.tiers.redis_slots import CLUSTER_SCHEMES, ClusterServer
from acgsperf.tiers.redis_tls import explained, hint_of

__all__ = ["SENTINEL_SCHEMES", "Answer", "SentinelServer", "redis_server"]

SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
_PORT: Final = 26379
# How long to wait for the answer of a sentinel.
_TIMEOUT_S: Final = 1.0
# How long an answer is used by other calls. A call may end before the sentinels have answered, because its deadline
# also covers connecting and the commands. Then the next call finds the answer.
_FRESH_S: Final = 0.5
# How long the other sentinels are waited for after the first answer, if no majority agrees.
_OTHERS_S: Final = 0.05

# What uses the same service shares what it knows of it, also in several threads.
_lock: Final = threading.Lock()
_servers: "Final[WeakValueDictionary[tuple[str, int], SentinelServer]]" = WeakValueDictionary()


def redis_server(url: str, credentials: Credentials | None = None) -> RedisServer:
    """Return what finds the server of a URL.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it.
    """
    checked_redis_url("the Redis URL", url)
    if url.startswith(SENTINEL_SCHEMES):
        # Two callables that are equal are not always hashable.
        known = url, id(credentials) if credentials is not None else 0
        with _lock:
            server = _servers.get(known)
            if server is None:
                # It keeps the callable, so that no other one gets its id.
                server = _servers[known] = SentinelServer(url, credentials)
        return server
    if url.startswith(CLUSTER_SCHEMES):
        return ClusterServer(url, credentials)
    return RedisServer(url, credentials)


class Answer(NamedTuple):
    """What one sentinel says; `address` is None if it knows no primary that works, and `problem` says why."""

    epoch: int
    address: tuple[str, int] | None
    problem: str


class SentinelServer(RedisServer):
    """The primary of a service, as its sentinels name it.

    Args:
        url: `redis+sentinel://[user:password@]host:port,host:port/service` or `rediss+sentinel://`, where the
            connections to the sentinels are encrypted too. The options `sentinel_username` and `sentinel_password` are
            for the sentinels; the others are for the server, such as `db`.
        credentials: as for `RedisServer`, for the server.

    Attributes:
        service: the name of the service.
        address: where the primary was found last; empty before.
        epoch: the configuration epoch of that; it grows with each failover.
    """

    # Any attempt may find another server.
    recovery_s: float = 0.25

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        parts = urlsplit(url)
        user_info, at, hosts = parts.netloc.rpartition("@")
        self.service: Final = unquote(parts.path.strip("/"))
        self.address: str = ""
        self.epoch: int = 0
        self._found: tuple[str, int] = "", 0
        self.forget()
        # The question in flight of each event loop. It ends by itself, at most after the timeouts above.
        self._in_flight: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        user, password = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
        database = options.pop("db", "0")
        scheme = parts.scheme.removesuffix("+sentinel")
        query = f"?{urlencode(options)}" if options else ""
        self._parts = scheme, user_info + at, database, query
        self._hint = hint_of(url)
        # Sentinels name the host and the port.
        super().__init__(self.url_of("sentinel", 1), credentials)
        self._sentinels = [_host_and_port(host) for host in hosts.split(",")]
        self._hosts: Final = ", ".join(f"{host}:{port}" for host, port in self._sentinels)
        self.where: str = f"service {self.service!r} of the sentinels {self._hosts}"
        self._options: dict[str, Any] = {
            "username": user,
            "password": password,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
        }
        if issubclass(self._factory.connection_class, SSLConnection):
            own = self._factory.connection_kwargs
            self._options |= {"ssl": True} | {key: value for key, value in own.items() if key.startswith("ssl_")}

    def url_of(self, host: str, port: int) -> str:
        """Return the URL of a server of the service, with its password."""
        scheme, user_info, database, query = self._parts
        return f"{scheme}://{user_info}{host}:{port}/{database}{query}"

    @property
    def now_at(self) -> str:
        return f"{self.address}, primary of the {self.where}" if self.address else self.where

    async def locate(self, connection: AbstractConnection) -> None:
        if monotonic() - self._found_at > _FRESH_S:
            loop = asyncio.get_running_loop()
            task = self._in_flight.get(loop)
            if task is None:
                task = self._in_flight[loop] = loop.create_task(self._find(), name="acgsperf sentinels")
                task.add_done_callback(self._end)
            await asyncio.shield(task)
        host, port = self._found
        connection.host, connection.port = host, port  # type: ignore[attr-defined]
        await resolve(host)

    def forget(self) -> None:
        self._found_at = -_FRESH_S

    def _end(self, task: asyncio.Task[None]) -> None:
        self._in_flight.pop(task.get_loop(), None)
        # If the deadlines of all calls passed before the sentinels answered, nobody else looks at the error.
        _ = task.cancelled() or task.exception()

    async def _find(self) -> None:
        """Ask the sentinels, and note the answer, also if nobody waits for it any more."""
        host, port = await self.find()
        self._found, self._found_at = (host, port), monotonic()
        if (address := f"{host}:{port}") != self.address:
            former, self.address = self.address, address
            if former:
                self.note_moved()

    async def find(self) -> tuple[str, int]:
        """Ask the sentinels for the address of the primary.

        Raises:
            redis.ConnectionError: if none of them knows one that works.
        """
        asked = {asyncio.ensure_future(self._ask(host, port)) for host, port in self._sentinels}
        answers: list[Answer] = []
        try:
            pending, until = asked, None
            while pending:
                done, pending = await asyncio.wait(pending, timeout=until, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                answers += [task.result() for task in done]
                found = [answer.address for answer in answers if answer.address]
                if found:
                    until = _OTHERS_S
                    if 2 * max(map(found.count, found)) > len(self._sentinels):
                        break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
        latest = max((answer for answer in answers if answer.address), key=lambda answer: answer.epoch, default=None)
        if latest is not None and latest.address is not None:
            agreed = 2 * sum(answer.address == latest.address for answer in answers) > len(self._sentinels)
            # Epochs begin again if all sentinels are set up anew.
            if latest.epoch >= self.epoch or agreed:
                self.epoch = latest.epoch
                return latest.address
        problems = "; ".join(dict.fromkeys(answer.problem or "one names a former primary" for answer in answers))
        raise RedisConnectionError(f"no sentinel names a primary of the service {self.service!r}: {problems}")

    async def ask_all(self) -> list[Answer]:
        """Return what each sentinel says. It does not raise."""
        return await asyncio.gather(*(self._ask(host, port) for host, port in self._sentinels))

    async def _ask(self, host: str, port: int) -> Answer:
        sentinel = Sentinel([(host, port)], sentinel_kwargs=self._options)  # type: ignore[no-untyped-call]
        (client,) = sentinel.sentinels
        pool = client.connection_pool
        try:
            await resolve(host)
            connection = pool.make_connection()  # type: ignore[no-untyped-call]
            self.tls.give(connection)
            pool._available_connections.append(connection)
            masters: Any = await client.sentinel_masters()
            state = masters.get(self.service)
            if state is None:
                return Answer(0, None, f"{host}:{port} does not know it")
            if not sentinel.check_master_state(state, self.service):
                return Answer(0, None, f"{host}:{port} says that {state['ip']}:{state['port']} is down")
            return Answer(int(state.get("config-epoch", 0)), (state["ip"], state["port"]), "")
        except (RedisError, OSError, TimeoutError) as error:
            hint = self._hint if isinstance(error, RedisTimeoutError | TimeoutError) else ""
            return Answer(0, None, f"{host}:{port} does not answer ({type(error).__name__}: {explained(error)}{hint})")
        finally:
            # `aclose` leaves them open if it is cancelled.
            for connection in (*pool._available_connections, *pool._in_use_connections):
                connection._close()  # type: ignore[no-untyped-call]


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, ""
    return unquote(host.strip("[]")), int(port) if port else _PORT
