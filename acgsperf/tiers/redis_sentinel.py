"""The primary of a service that Redis Sentinel watches.

Sentinels are asked for each new connection. All are asked at the same time, so that one that does not answer costs
nothing. If they disagree, the address with the highest configuration epoch counts: that of the latest failover.
"""

import asyncio
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from acgsperf.addresses import checked_redis_url
from acgsperf.names import resolve
from acgsperf.tiers.redis_server import Credentials, RedisServer

__all__ = ["SENTINEL_SCHEMES", "SentinelServer", "redis_server"]

SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
_PORT: Final = 26379
# A sentinel that has not answered by then is not waited for.
_TIMEOUT_S: Final = 1.0
# How long the other sentinels are waited for after the first answer, if no majority agrees.
_OTHERS_S: Final = 0.05


def redis_server(url: str, credentials: Credentials | None = None) -> RedisServer:
    """Return what finds the server of a URL.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it.
    """
    checked_redis_url("the Redis URL", url)
    if url.startswith(SENTINEL_SCHEMES):
        return SentinelServer(url, credentials)
    return RedisServer(url, credentials)


class _Answer(NamedTuple):
    """What one sentinel says; `address` is None if it knows no primary that works."""

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
    """

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        parts = urlsplit(url)
        user_info, at, hosts = parts.netloc.rpartition("@")
        self.service: Final = unquote(parts.path.strip("/"))
        self.address = ""
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        user, password = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
        database = options.pop("db", "0")
        scheme = parts.scheme.removesuffix("+sentinel")
        query = f"?{urlencode(options)}" if options else ""
        super().__init__(f"{scheme}://{user_info}{at}sentinel:1/{database}{query}", credentials)
        self._sentinels = [_host_and_port(host) for host in hosts.split(",")]
        self._hosts: Final = ", ".join(f"{host}:{port}" for host, port in self._sentinels)
        self.where = f"service {self.service!r} of the sentinels {self._hosts}"
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

    @property
    def now_at(self) -> str:
        return f"{self.address}, primary of the {self.where}" if self.address else self.where

    async def locate(self, connection: AbstractConnection) -> None:
        host, port = await self.find()
        self.address = f"{host}:{port}"
        connection.host, connection.port = host, port  # type: ignore[attr-defined]
        await resolve(host)

    async def find(self) -> tuple[str, int]:
        """Ask the sentinels for the address of the primary.

        Raises:
            redis.ConnectionError: if none of them knows one that works.
        """
        asked = {asyncio.ensure_future(self._ask(host, port)) for host, port in self._sentinels}
        answers: list[_Answer] = []
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
        known = [answer for answer in answers if answer.address]
        if known:
            address = max(known, key=lambda answer: answer.epoch).address
            assert address is not None
            return address
        problems = "; ".join(dict.fromkeys(answer.problem for answer in answers))
        raise RedisConnectionError(f"no sentinel names a primary of the service {self.service!r}: {problems}")

    async def _ask(self, host: str, port: int) -> _Answer:
        sentinel = Sentinel([(host, port)], sentinel_kwargs=self._options)  # type: ignore[no-untyped-call]
        try:
            await resolve(host)
            (client,) = sentinel.sentinels
            masters: Any = await client.sentinel_masters()
            state = masters.get(self.service)
            if state is None:
                return _Answer(0, None, f"{host}:{port} does not know it")
            if not sentinel.check_master_state(state, self.service):
                return _Answer(0, None, f"{host}:{port} says that {state['ip']}:{state['port']} is down")
            return _Answer(int(state.get("config-epoch", 0)), (state["ip"], state["port"]), "")
        except (RedisError, OSError, TimeoutError) as error:
            return _Answer(0, None, f"{host}:{port} does not answer ({type(error).__name__}: {error})")
        finally:
            await sentinel.aclose()


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, ""
    return unquote(host.strip("[]")), int(port) if port else _PORT
