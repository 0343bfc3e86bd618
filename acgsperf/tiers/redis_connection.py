"""One connection to a Redis server."""

import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from hiredis import pack_command
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from acgsperf.tiers.redis_replies import MovedSlotError
from acgsperf.tiers.redis_server import RedisServer
from acgsperf.tiers.redis_tls import explained

if TYPE_CHECKING:
    from acgsperf.tiers.redis_parser import CheckedParser

__all__ = ["Command", "Connection", "Greeting", "OwnConnection", "packed"]

Command = tuple[Any, ...] | bytes
_T = TypeVar("_T")
_pack: Final = pack_command


def packed(command: Command) -> bytes:
    return command if isinstance(command, bytes) else _pack(command)


class Greeting(NamedTuple):
    """The commands that are sent first over each new connection.

    Attributes:
        commands: the commands.
        read: gets the times at which they were sent and answered, by `time.monotonic`, and the replies, in order; error
            replies are exceptions among them. It returns what tells this run of the server from others; empty if it is
            unknown.
    """

    commands: Sequence[Command]
    read: Callable[[float, float, list[Any]], bytes]


class Connection:
    """A connection, its parser and its times, which are those of `time.monotonic`.

    Args:
        server: makes the connection, and finds the server.
        expires_at: when it is replaced.
        greeting: the commands that are sent first.

    Attributes:
        era: connections of one era lead to the same server; see `RedisConnections`.
        run: tells this run of the server from others; empty if it is unknown.
    """

    __slots__ = (
        "__weakref__",
        "_server",
        "era",
        "expires_at",
        "greeting",
        "idle_since",
        "is_open",
        "parser",
        "redis",
        "run",
    )

    def __init__(self, server: RedisServer, expires_at: float, greeting: Greeting | None, era: int = 0) -> None:
        self._server = server
        self.redis: Final = server.new()
        self.era: int = era
        self.run: bytes = b""
        self.greeting: Greeting | None = greeting
        self.parser: CheckedParser = self.redis._parser  # type: ignore[assignment]
        self.is_open: bool = False
        self.expires_at: float = expires_at
        self.idle_since: float = 0.0

    async def open(self) -> None:
        """Connect and log in."""
        await self._server.locate(self.redis)
        try:
            await self.redis.connect()  # type: ignore[no-untyped-call]
        except ResponseError as error:
            # The server refuses the connection, not one command: no command can be sent.
            text = self._public(error)
            cause = error if text == str(error) else None
            raise RedisConnectionError(f"the server refused the connection: {text}") from cause
        except RedisConnectionError as error:
            self._server.forget()
            if (problem := explained(error)) != str(error):
                raise RedisConnectionError(problem) from error
            if (text := self._public(error)) == str(error):
                raise
            raise RedisConnectionError(f"the server refused the connection: {text}") from None
        if self.greeting is not None:
            commands, read = self.greeting
            sent = monotonic()
            await self.redis.send_packed_command(b"".join(map(packed, commands)), check_health=False)
            replies = await self.parser.read_replies(len(commands))
            self.run = read(sent, monotonic(), replies)
        self.is_open = True

    def _public(self, error: RedisError) -> str:
        """Return the text of an error without what the server repeats of a login: the password may be there."""
        # A server that does not know AUTH repeats its arguments.
        text, _, _ = str(error).partition(", with args")
        password = getattr(self.redis, "password", None) or getattr(self.redis.credential_provider, "password", None)
        return "an error that repeats the password" if password and password in text else text

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

    def abort(self) -> None:
        """End the call that uses it with a `ConnectionError`; the connection is closed then."""
        self.is_open = False
        writer = self.redis._writer
        if writer is not None:
            writer.transport.abort()


class OwnConnection:
    """A connection that only its owner uses. Its calls have no deadline, and are not repeated.

    After an error of a call it cannot be used again.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._connection = Connection(server, math.inf, None)

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
        await connection.redis.send_packed_command(b"".join(map(packed, commands)), check_health=False)
        try:
            return read(await connection.parser.read_replies(len(commands)))
        except MovedSlotError:
            self._server.forget()
            raise

    def close(self) -> None:
        """Close it at once."""
        self._connection.close()
