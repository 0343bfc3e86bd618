"""Checks what a PostgreSQL server sends before asyncpg reads it.

`Connector` gives asyncpg a `WiredLoop` instead of the event loop. The connections that this loop opens have a `Wire`
from their first byte on.
"""

import asyncio
import gc
import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

from asyncpg.protocol import Protocol

from acgsperf.dispatch import Dialogue
from acgsperf.errors import MessageTooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["Wire", "WiredLoop", "unread_chunks", "wire_of"]

_log = logging.getLogger("acgsperf.pool")
# ReadyForQuery outside of a transaction: the end of every reply to a session that may be lent.
_READY: Final = b"Z\0\0\0\5I"
_END: Final = len(_READY)
_UNEXPECTED: Final = "{}: unexpected data from the server ({})"


class Wire(asyncio.Protocol):
    """Follows both directions of a connection, and aborts it if the server sends a message that is not due.

    asyncpg trusts the server. If a message comes twice, or if its length is negative because a bit has changed, its
    parser raises errors of any type, takes the reply to one query for that to the next one, or ends the process. So
    `Dialogue` checks which messages are due before asyncpg gets them. The connection is also aborted if asyncpg fails
    nevertheless, or has buffered more than a maximum number of bytes of one message that has no end yet. The error of
    the borrower then has the reason as its cause.

    A server that ends a session sends an error, and closes the socket a moment later. Between the two, asyncpg has read
    the error and still calls the connection open. So the last bytes are remembered.

    Args:
        owner: what uses the connection, for log lines.
        max_bytes: the largest message, which may be exceeded by an eighth; None for no limit.

    Attributes:
        closing: whether the owner or a borrower closes the connection.
        hung_up: whether the server or the network closed the connection.
        sent: is told what asyncpg sends.
        signed_in: whether the connection is open. Until then, whoever opens it logs why that failed.
        transport: what asyncpg writes to.
    """

    __slots__ = (
        "_bytes_left",
        "_connection_lost",
        "_data_received",
        "_eof_received",
        "_error",
        "_last",
        "_max_bytes",
        "_owner",
        "_protocol",
        "_refusal",
        "_unread",
        "closing",
        "hung_up",
        "pause_writing",
        "resume_writing",
        "sent",
        "signed_in",
        "transport",
    )

    def __init__(self, owner: str, max_bytes: int | None) -> None:
        dialogue = Dialogue()
        self._refusal = dialogue.received
        self.sent: Final = dialogue.sent
        self._owner = owner
        self._max_bytes = max_bytes or 0
        self._error: Exception | None = None
        # The end of what the server has sent.
        self._last = _READY
        self.transport: _Transport
        self.closing: bool = False
        self.signed_in: bool = False
        self.hung_up: bool = False

    def attach(self, protocol: asyncio.Protocol) -> None:
        """Pass on what the server sends to a protocol of asyncpg."""
        self._protocol = protocol
        self._unread = unread_chunks(protocol)
        # The bytes to receive before the buffer of asyncpg is measured again.
        self._bytes_left = self._max_bytes if self._max_bytes and self._unread is not None else float("inf")
        self._data_received = protocol.data_received
        self._connection_lost = protocol.connection_lost
        self._eof_received = protocol.eof_received
        self.pause_writing: Callable[[], None] = protocol.pause_writing
        self.resume_writing: Callable[[], None] = protocol.resume_writing

    def is_ready(self) -> bool:
        """Return whether the last thing that the server sent is a ReadyForQuery outside of a transaction."""
        return self._last == _READY

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = _Transport(cast("asyncio.Transport", transport), self)
        self._protocol.connection_made(self.transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        # A reply may come in pieces that are shorter than its end.
        self._last = data[-_END:] if len(data) >= _END else (self._last + data)[-_END:]
        refusal = self._refusal(data)
        if refusal is not None:
            self._abort(ConnectionError(_UNEXPECTED.format(self._owner, refusal)))
            return
        try:
            self._data_received(data)
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                self._measure()
        except Exception as error:  # The parser of asyncpg raises errors of any type.
            self._abort(ConnectionError(_UNEXPECTED.format(self._owner, repr(error))))

    def _abort(self, error: Exception) -> None:
        """Close the connection because of what the server has sent."""
        # Some transports still pass on what they have received before.
        self._refusal = lambda _: ""
        # An idle connection must not be lent before the event loop has reported its end.
        self._last = b""
        if self._error is None:
            self._error = error
            self.hung_up = not self.closing
            _log.log(logging.WARNING if self.signed_in else logging.DEBUG, "%s; closing the connection", error)
        self.transport.abort()

    def _measure(self) -> None:
        """Abort the connection if asyncpg has buffered too much of one message."""
        assert self._unread is not None
        # Without the first chunk, in which earlier messages may end.
        kept = sum(map(len, islice(self._unread, 1, None)))
        if kept <= self._max_bytes:
            # At least an eighth, because the sum above takes time for each chunk.
            self._bytes_left = max(self._max_bytes - kept, self._max_bytes >> 3)
            return
        self._abort(
            MessageTooLarge(
                f"{self._owner}: a message of the server must have at most {self._max_bytes} bytes (max_message_bytes),"
                f" got {kept} and no end"
            )
        )

    def eof_received(self) -> bool | None:
        self.hung_up = not self.closing
        return self._eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self.hung_up = self.hung_up or (error is not None and not self.closing)
        self._connection_lost(error or self._error)
        if self._unread is not None:
            # Nobody reads it any more, but an exception may keep it in memory until the next garbage collection.
            self._unread.clear()


class _Transport:
    """A transport of the event loop, with a `Wire` that sees what is written to it."""

    __slots__ = ("_sent", "_transport", "_write", "wire")

    def __init__(self, transport: asyncio.Transport, wire: Wire) -> None:
        self._transport = transport
        self.wire: Final = wire
        self._sent = wire.sent
        self._write = transport.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._sent(data)
        self._write(data)

    def writelines(self, lines: "Iterable[bytes]") -> None:
        lines = list(lines)
        for data in lines:
            self._sent(data)
        self._transport.writelines(lines)

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Let a protocol of asyncpg have what the server sends, once TLS was negotiated."""
        self.wire.transport = self
        self.wire.attach(protocol)
        self._transport.set_protocol(self.wire)


class WiredLoop:
    """An event loop that opens connections with a `Wire`; otherwise as the loop itself.

    Args:
        loop: the loop.
        owner: what uses the connections, for log lines.
        max_bytes: the largest message; None for no limit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: str, max_bytes: int | None) -> None:
        self.loop: Final = loop
        self._owner = owner
        self._max_bytes = max_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    async def create_connection(self, factory: "Callable[[], Any]", *args: Any, **options: Any) -> tuple[Any, Any]:
        """Open a connection through TCP."""
        return await self._wired(self.loop.create_connection, factory, *args, **options)

    async def create_unix_connection(self, factory: "Callable[[], Any]", *args: Any, **options: Any) -> tuple[Any, Any]:
        """Open a connection through a Unix domain socket."""
        return await self._wired(self.loop.create_unix_connection, factory, *args, **options)

    async def _wired(
        self,
        connect: "Callable[..., Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]]",
        factory: "Callable[[], Any]",
        *args: Any,
        **options: Any,
    ) -> tuple[Any, Any]:
        wire, protocol = self._wire(), factory()
        # To ask for TLS or for a cancellation, asyncpg uses other protocols, whose messages have no headers.
        if not isinstance(protocol, Protocol):
            transport, _ = await connect(lambda: protocol, *args, **options)
            return _Transport(transport, wire), protocol
        wire.attach(protocol)
        await connect(lambda: wire, *args, **options)
        return wire.transport, protocol

    async def start_tls(self, transport: _Transport, *args: Any, **options: Any) -> _Transport | None:
        """Encrypt a connection."""
        encrypted = await self.loop.start_tls(transport._transport, *args, **options)
        return None if encrypted is None else _Transport(encrypted, self._wire())

    def _wire(self) -> Wire:
        return Wire(self._owner, self._max_bytes)


def wire_of(connection: object) -> Wire | None:
    """Return the `Wire` of a connection that was opened with a `WiredLoop`; None if it is closed."""
    return getattr(getattr(connection, "_transport", None), "wire", None)


def unread_chunks(protocol: object) -> "deque[bytes] | None":
    """Return the chunks that a protocol of asyncpg has received and not read to their end; None if not found.

    If there are several, a message that is not complete begins in the first one. asyncpg has no name for them, but the
    garbage collector can list what an object refers to.
    """
    buffers = [found for found in gc.get_referents(protocol) if type(found).__name__ == "ReadBuffer"]
    return next((found for found in gc.get_referents(*buffers) if isinstance(found, deque)), None)
