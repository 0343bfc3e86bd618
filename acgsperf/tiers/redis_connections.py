"""Connections to one Redis server, shared by everything in a tier that talks to it."""

import asyncio
import inspect
import itertools
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from acgsperf._native.arguments import checked_at_least, checked_callable, checked_seconds
from acgsperf.addresses import checked_redis_url
from acgsperf.names import resolve
from acgsperf.tiers.redis_parser import CheckedParser
from acgsperf.tiers.redis_replies import UnexpectedReplyError

__all__ = ["Command", "Credentials", "Greeting", "OwnConnection", "RedisConnections"]

MAX_CONNECTIONS: Final = 10
MAX_LIFETIME_S: Final = 3600.0
# How many idle connections are kept open, and how long the others may be idle.
KEPT_IDLE: Final = 2
MAX_IDLE_S: Final = 4.0

Command = tuple[Any, ...] | bytes
Credentials = Callable[[], "tuple[str, str] | str | Awaitable[tuple[str, str] | str]"]
_T = TypeVar("_T")
_pack: Final = pack_command


class Greeting(NamedTuple):
    """The commands that are sent first over each new connection.

    Attributes:
        commands: the commands.
        read: gets the times at which they were sent and answered, by `time.monotonic`, and the replies, in order; error
            replies are exceptions among them.
    """

    commands: Sequence[Command]
    read: Callable[[float, float, list[Any]], None]


class _Connection:
    """A connection, its parser and its times, which are those of `time.monotonic`."""

    __slots__ = ("expires_at", "greeting", "idle_since", "is_open", "parser", "redis")

    def __init__(self, redis: AbstractConnection, expires_at: float, greeting: Greeting | None) -> None:
        self.redis = redis
        self.greeting = greeting
        self.parser: CheckedParser = redis._parser  # type: ignore[assignment]
        self.is_open = False
        self.expires_at = expires_at
        self.idle_since = 0.0

    async def open(self) -> None:
        """Connect and log in."""
        await resolve(getattr(self.redis, "host", None))
        try:
            await self.redis.connect()  # type: ignore[no-untyped-call]
        except ResponseError as error:
            # The server refuses the connection, not one command: no command can be sent.
            raise RedisConnectionError(f"the server refused the connection: {error}") from error
        if self.greeting is not None:
            commands, read = self.greeting
            sent = monotonic()
            await self.redis.send_packed_command(b"".join(map(_packed, commands)), check_health=False)
            replies = await self.parser.read_replies(len(commands))
            read(sent, monotonic(), replies)
        self.is_open = True

    def is_usable(self, now: float) -> bool:
        """Return whether an idle connection may carry commands."""
        return now < self.expires_at and self.parser.is_clean

    def close(self) -> None:
        """Close it at once. A server that hangs must not keep it open, so nothing is flushed."""
        self.is_open = False
        writer = self.redis._writer
        if writer is not None:
            writer.transport.abort()
        self.parser.on_disconnect()  # type: ignore[no-untyped-call]
        self.redis._close()  # type: ignore[no-untyped-call]


class OwnConnection:
    """A connection that only its owner uses. Its calls have no deadline, and are not repeated.

    After an error of a call it cannot be used again.
    """

    def __init__(self, redis: AbstractConnection) -> None:
        self._connection = _Connection(redis, math.inf, None)

    async def ask(self, commands: Sequence[Command], read: Callable[[list[Any]], _T]) -> _T:
        """Send commands together and return what `read` makes of their replies. The first call connects.

        Args:
            commands: the commands.
            read: gets the replies, in order; error replies are exceptions among them.

        Raises:
            redis.RedisError, OSError: what `read` raises, or if the server cannot be reached.
        """
        connection = self._connection
        if not connection.is_open:
            await connection.open()
        packed = b"".join(map(_packed, commands))
        await connection.redis.send_packed_command(packed, check_health=False)
        return read(await connection.parser.read_replies(len(commands)))

    def close(self) -> None:
        """Close it at once."""
        self._connection.close()


class RedisConnections:
    """Sends commands over a bounded number of connections.

    A connection carries the commands of one caller at a time. It is used again only if every reply was read and
    belonged to its command. If all connections are in use, callers wait in order.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        max_connections: maximum number of open connections; None for the URL's `max_connections`, or 10.
        max_lifetime: seconds after which a connection is replaced; most are replaced up to 10 % earlier.
        credentials: called for each new connection; returns, or awaits, a password, or a user name and a password.

    Attributes:
        where: address of the server, for messages; without a password.
        greeting: the commands that are sent first over each new connection.

    Raises:
        ValueError: if the URL or a number is not valid. The message does not repeat the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int | None = None,
        max_lifetime: float = MAX_LIFETIME_S,
        credentials: Credentials | None = None,
    ) -> None:
        checked_redis_url("the Redis URL", url)
        self._url, self._credentials = url, credentials
        self.greeting: Greeting | None = None
        self._max_lifetime = checked_seconds("max_lifetime", max_lifetime)
        checked_callable("credentials", credentials)
        try:
            options: dict[str, Any] = dict(parse_url(url))
            in_url = options.pop("max_connections", None)
            if credentials is not None and ("username" in options or "password" in options):
                raise _ContradictionError
            self._factory = _factory(url, options, credentials)
            # Checks the options of the URL; it does not connect.
            self.new()
        except _ContradictionError:
            raise ValueError("the Redis URL must not contain a user name or password if credentials is given") from None
        except Exception as error:
            raise ValueError(f"the Redis URL has an option that is not valid: {type(error).__name__}") from None
        if max_connections is None:
            max_connections = MAX_CONNECTIONS if in_url is None else in_url
        self._max_connections = checked_at_least("max_connections", max_connections, 1)
        at = self._factory.connection_kwargs
        self.where: Final = _server_name(at)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Connections in use or idle.
        self._size = 0
        self._idle: list[_Connection] = []
        # Each waiter gets an idle connection, or None if it may open one.
        self._waiters: deque[asyncio.Future[_Connection | None]] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self._fences = itertools.count()

    def open(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Close idle connections now, and those in use when their commands have ended."""
        self._loop = None
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self.close_idle()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(RedisConnectionError("the tier was closed"))

    def close_idle(self) -> None:
        """Close all idle connections, because the server is known to have lost some."""
        idle, self._idle = self._idle, []
        self._size -= len(idle)
        for connection in idle:
            connection.close()

    def clone(self, max_connections: int) -> "RedisConnections":
        """Return other connections to the same server, without a greeting. They are not open."""
        return RedisConnections(
            self._url,
            max_connections=max_connections,
            max_lifetime=self._max_lifetime,
            credentials=self._credentials,
        )

    @property
    def identity(self) -> object:
        """Equal for connections that were created with the same URL and credentials."""
        return self._url, self._credentials

    def own_connection(self) -> OwnConnection:
        """Return a connection that is not counted as one of these, without a greeting."""
        return OwnConnection(self.new())

    def new(self) -> AbstractConnection:
        """Return a connection that is not connected."""
        connection: AbstractConnection = self._factory.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def ask(
        self,
        commands: Sequence[Command],
        read: Callable[[list[Any]], _T],
        before_sending: Callable[[], None] | None = None,
    ) -> _T:
        """Send commands together and return what `read` makes of their replies. It has no deadline of its own.

        An ECHO follows the commands: its reply proves that no reply to earlier commands is read as one of these.

        If a reused connection was closed by the server, or gives unexpected replies, the commands are sent once more
        over a new connection. The server may therefore carry them out twice.

        Args:
            commands: the commands; bytes for one that is packed already.
            read: gets the replies, in order; error replies are exceptions among them. It may raise the error of a
                command, or `UnexpectedReplyError`.
            before_sending: called before the server may see any of the commands.

        Raises:
            redis.RedisError, OSError: what `read` raises, or if the server cannot be reached.
        """
        count = len(commands)
        # A comprehension is a call.
        packed = _packed(commands[0]) if count == 1 else b"".join([_packed(command) for command in commands])
        fence = b"%d" % next(self._fences)
        packed = b"%b*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (packed, len(fence), fence)
        connection = self._pop_idle()
        if connection is None:
            if self._size < self._max_connections:
                self._size += 1
            else:
                connection = await self._wait()
        try:
            if connection is not None:
                try:
                    return await self._exchange(connection, packed, count, fence, read, before_sending)
                except (RedisConnectionError, InvalidResponse, UnexpectedReplyError):
                    # The other idle connections are probably in the same state.
                    self.close_idle()
            connection = _Connection(self.new(), self._expiry(), self.greeting)
            return await self._exchange(connection, packed, count, fence, read, before_sending)
        except UnexpectedReplyError as error:
            if error.usable is None:
                raise
            return error.usable  # type: ignore[no-any-return]
        finally:
            self._release(connection)

    def _expiry(self) -> float:
        return monotonic() + self._max_lifetime * random.uniform(0.9, 1.0)

    def _pop_idle(self) -> _Connection | None:
        if self._loop is None:
            raise RedisConnectionError("the tier was closed")
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable(monotonic()):
                return connection
            self._size -= 1
            connection.close()
        return None

    async def _wait(self) -> _Connection | None:
        assert self._loop is not None
        waiter: asyncio.Future[_Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Cancelled after it got its turn: the next waiter gets it.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())
            raise

    def _release(self, connection: _Connection | None) -> None:
        """Give a connection, or the permission to open one, to the next waiter."""
        usable = connection if connection is not None and connection.is_open else None
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(usable)
                return
        if usable is None or self._loop is None:
            self._size -= 1
            if usable is not None:
                usable.close()
            return
        usable.idle_since = monotonic()
        self._idle.append(usable)
        if self._reaper is None and len(self._idle) > KEPT_IDLE:
            self._reaper = self._loop.call_later(MAX_IDLE_S, self._close_unused)

    def _close_unused(self) -> None:
        """Close connections that have been idle for long. The oldest come first, because the newest is used first."""
        self._reaper = None
        if self._loop is None:
            return
        idle, since = self._idle, monotonic() - MAX_IDLE_S
        while len(idle) > KEPT_IDLE and idle[0].idle_since <= since:
            self._size -= 1
            idle.pop(0).close()
        if len(idle) > KEPT_IDLE:
            self._reaper = self._loop.call_later(idle[0].idle_since - since, self._close_unused)

    async def _exchange(
        self,
        connection: _Connection,
        packed: bytes,
        count: int,
        fence: bytes,
        read: Callable[[list[Any]], _T],
        before_sending: Callable[[], None] | None,
    ) -> _T:
        try:
            if not connection.is_open:
                await connection.open()
            if before_sending is not None:
                before_sending()
            await connection.redis.send_packed_command(packed, check_health=False)
            replies = await connection.parser.read_replies(count + 1)
            if (reply := replies.pop()) != fence:
                _check_refused(reply)
            return read(replies)
        except ResponseError:
            # The server has refused a command; all replies have been read. If it has refused the greeting, the
            # connection is not open, and nothing closes it later.
            if not connection.is_open:
                connection.close()
            raise
        except BaseException:
            connection.close()
            raise


def _packed(command: Command) -> bytes:
    return command if isinstance(command, bytes) else _pack(command)


def _check_refused(reply: Any) -> None:
    """Raise an error unless this is the refusal of ECHO by an ACL."""
    if not isinstance(reply, ResponseError) or "echo" not in str(reply).lower():
        raise UnexpectedReplyError("the last reply must belong to ECHO")


class _ContradictionError(Exception):
    """The URL and the options contradict each other."""


class _Provider(CredentialProvider):
    """Passes a callable to redis-py."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        try:
            found = self._credentials()
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:
            # Without its text, which may contain a secret.
            raise RedisConnectionError(f"credentials raised {type(error).__name__}") from error
        if isinstance(found, str):
            return (found,)
        if isinstance(found, tuple) and list(map(type, found)) == [str, str]:
            return found
        raise RedisConnectionError(
            f"credentials must return a password or (user name, password), got {type(found).__name__}"
        )


def _factory(url: str, options: dict[str, Any], credentials: Credentials | None) -> ConnectionPool:
    """Return a factory of connections. Its pool is not used: the pool's checks cost as much as a command."""
    if url.startswith("rediss:"):
        options.setdefault("ssl_check_hostname", True)
    if credentials is not None:
        options["credential_provider"] = _Provider(credentials)
    options |= {
        "protocol": 2,
        "parser_class": CheckedParser,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "decode_responses": False,
        "health_check_interval": 0,
        # The tier's deadline covers connecting, sending and reading together.
        "socket_timeout": None,
        "socket_connect_timeout": None,
    }
    return ConnectionPool(**options)


def _server_name(options: Mapping[str, Any]) -> str:
    """Return how messages name the server; it contains no secret."""
    if "path" in options:
        return f"unix:{options['path']}"
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
