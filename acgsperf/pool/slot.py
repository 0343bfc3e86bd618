"""One connection of a pool: its age, its lease, and whether it is alive, as far as is known without a query."""

import asyncio
import gc
import logging
import select
import sys
from collections import deque
from itertools import islice
from types import new_class
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from acgsperf.errors import MessageTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    Lease = PoolConnectionProxy[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record]
    CallStack = list[tuple[CodeType, int]]

_log = logging.getLogger("acgsperf.pool")
MAX_MESSAGE_BYTES: Final = 256 << 20
_FRAMES: Final = 8
_ADDITIONAL_RESET: Final = "\nRESET SESSION AUTHORIZATION;\nDISCARD TEMP;\nDISCARD SEQUENCES;"
_POLL: Final = getattr(select, "poll", None)
# ReadyForQuery outside of a transaction: the end of every reply to a session that may be lent.
_READY: Final = b"Z\0\0\0\5I"
_END: Final = len(_READY)


class _PooledConnection:
    """A connection whose reset also undoes what RESET ALL does not: the role, temporary tables, sequence values.

    It also lets its pool tell whether the client or the server closed it.
    """

    __slots__ = ()

    def get_reset_query(self) -> str:
        """Return the query that resets a session, prepared statements excepted."""
        query: str = super().get_reset_query()  # type: ignore[misc]
        # A server that is not PostgreSQL may not know these. A server that knows CLOSE ALL and RESET ALL also knows
        # these.
        return query + _ADDITIONAL_RESET if "CLOSE ALL" in query and "RESET ALL" in query else query

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Close the connection gracefully."""
        transport = getattr(self, "_transport", None)
        protocol = transport.get_protocol() if transport is not None else None
        if isinstance(protocol, _Listener):
            protocol.closing = True
        await super().close(timeout=timeout)  # type: ignore[misc]


def pooled_class(base: "type[Connection]") -> "type[Connection]":
    """Return the class for a pool's connections: a subclass of asyncpg's class or of a user's subclass."""
    if not (isinstance(base, type) and issubclass(base, asyncpg.Connection)):
        raise TypeError(f"connection_class must be a subclass of asyncpg.Connection, got {base!r}")
    body = {"__slots__": (), "__module__": base.__module__, "__doc__": base.__doc__}
    return cast(
        "type[Connection]", new_class(base.__name__, (_PooledConnection, base), exec_body=lambda ns: ns.update(body))
    )


class _Listener(asyncio.Protocol):
    """Stands between a transport and asyncpg's protocol, and remembers what the server sent last.

    A server that ends a session sends an error, and closes the socket a moment later. Between the two, asyncpg has read
    the error and still calls the connection open.

    If asyncpg fails on what the server sent, for example on a second reply to one query, the connection is aborted. The
    same happens if asyncpg has buffered more than a maximum number of bytes of one message that has no end yet.

    Attributes:
        closing: whether the owner or a borrower closes the connection.
        last: the last bytes that the server sent.
        hung_up: whether the server or the network closed the connection.
    """

    __slots__ = (
        "_bytes_left",
        "_connection_lost",
        "_data_received",
        "_eof_received",
        "_error",
        "_max_bytes",
        "_owner",
        "_transport",
        "_unread",
        "closing",
        "hung_up",
        "last",
        "pause_writing",
        "resume_writing",
    )

    def __init__(
        self, protocol: asyncio.Protocol, transport: asyncio.Transport, owner: str, max_bytes: int | None
    ) -> None:
        self._transport = transport
        self._owner = owner
        self._unread = unread_chunks(protocol)
        self._max_bytes = max_bytes or 0
        # The bytes to receive before the buffer of asyncpg is measured again.
        self._bytes_left: float = max_bytes if max_bytes and self._unread is not None else float("inf")
        self._error: MessageTooLarge | None = None
        self.last: bytes = _READY
        self.closing: bool = False
        self.hung_up: bool = False
        self._data_received = protocol.data_received
        self._connection_lost = protocol.connection_lost
        self._eof_received = protocol.eof_received
        self.pause_writing: Callable[[], None] = protocol.pause_writing
        self.resume_writing: Callable[[], None] = protocol.resume_writing

    def data_received(self, data: bytes) -> None:
        # A reply may come in pieces that are shorter than its end.
        self.last = data[-_END:] if len(data) >= _END else (self.last + data)[-_END:]
        try:
            self._data_received(data)
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                self._measure()
        except Exception as error:  # The parser of asyncpg raises errors of any type.
            # An idle connection must not be lent before the event loop has reported its end.
            self.last = b""
            if not self.hung_up:
                self.hung_up = not self.closing
                _log.warning("%s: unexpected data from the server (%r); closing the connection", self._owner, error)
            self._transport.abort()

    def _measure(self) -> None:
        """Abort the connection if asyncpg has buffered too much of one message."""
        assert self._unread is not None
        # Without the first chunk, in which earlier messages may end.
        kept = sum(map(len, islice(self._unread, 1, None)))
        if kept <= self._max_bytes:
            # At least an eighth, because the sum above takes time for each chunk.
            self._bytes_left = max(self._max_bytes - kept, self._max_bytes >> 3)
            return
        self._bytes_left = float("inf")
        self.last = b""
        self.hung_up = True
        self._error = MessageTooLarge(
            f"{self._owner}: a message of the server must have at most {self._max_bytes} bytes (max_message_bytes), got"
            f" {kept} and no end"
        )
        _log.warning("%s; closing the connection", self._error)
        self._transport.abort()

    def eof_received(self) -> bool | None:
        self.hung_up = not self.closing
        return self._eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self.hung_up = self.hung_up or (error is not None and not self.closing)
        self._connection_lost(error or self._error)
        if self._unread is not None:
            # Nobody reads it any more, but an exception may keep it in memory until the next garbage collection.
            self._unread.clear()


def unread_chunks(protocol: object) -> "deque[bytes] | None":
    """Return the chunks that a protocol of asyncpg has received and not read to their end; None if not found.

    If there are several, a message that is not complete begins in the first one. asyncpg has no name for them, but the
    garbage collector can list what an object refers to.
    """
    buffers = [found for found in gc.get_referents(protocol) if type(found).__name__ == "ReadBuffer"]
    return next((found for found in gc.get_referents(*buffers) if isinstance(found, deque)), None)


def guard(connection: "Connection", owner: str, max_bytes: int | None = MAX_MESSAGE_BYTES) -> _Listener | None:
    """Abort a connection as soon as asyncpg fails on what the server sends. Returns None for a closed connection.

    Args:
        connection: a new connection.
        owner: names what uses the connection, for log lines.
        max_bytes: the largest message, which may be exceeded by an eighth; None for no limit.
    """
    transport = getattr(connection, "_transport", None)
    if transport is None:
        return None
    listener = _Listener(cast("asyncio.Protocol", transport.get_protocol()), transport, owner, max_bytes)
    transport.set_protocol(listener)
    return listener


class Slot:
    """A connection that a pool owns, and its lease while it is lent.

    Attributes:
        owner: the `Supply` that the connection belongs to.
        generation: the generation of connections that it belongs to; `drain` begins a new one.
        opened_at: when it was opened.
        proven: whether it has served a borrower, or has been open for some time.
        idle_since: when it became idle.
        lent_at: when it was lent last.
        retires_at: when the pool begins to open a successor.
        expires_at: when it must not be lent any more.
        ageing: whether housekeeping found it past `retires_at`.
        lease: what the borrower has; None if it is not lent.
        borrower: the call stack that acquired it, if leaks are looked for.
        task: the task that acquired it.
        leak_reported: whether this lease was reported as a leak.
    """

    __slots__ = (
        "_listener",
        "_poll",
        "ageing",
        "borrower",
        "connection",
        "expires_at",
        "generation",
        "idle_since",
        "leak_reported",
        "lease",
        "lent_at",
        "opened_at",
        "owner",
        "proven",
        "retires_at",
        "task",
    )

    def __init__(
        self,
        owner: object,
        pool_name: str,
        connection: "Connection",
        generation: int,
        now: float,
        max_message_bytes: int | None = MAX_MESSAGE_BYTES,
    ) -> None:
        self.owner: Final = owner
        self.connection: Final = connection
        self.generation: int = generation
        self.opened_at: float = now
        self.idle_since: float = now
        self.lent_at: float = now
        self.proven: bool = False
        self.retires_at: float = float("inf")
        self.expires_at: float = float("inf")
        self.ageing: bool = False
        self.lease: Lease | None = None
        self.borrower: CallStack | None = None
        self.task: asyncio.Task[Any] | None = None
        self.leak_reported: bool = False
        self._listener = guard(connection, f"pool {pool_name!r}", max_message_bytes)
        self._poll: Callable[[int], list[Any]] | None = None
        transport = getattr(connection, "_transport", None)
        socket = transport.get_extra_info("socket") if transport is not None else None
        if socket is not None and _POLL is not None:
            poll = _POLL()
            poll.register(socket.fileno(), select.POLLIN)
            self._poll = poll.poll

    def hung_up(self) -> bool:
        """Return whether the server or the network closed the connection, and not the pool or a borrower."""
        return self._listener is not None and self._listener.hung_up

    def is_quiet(self) -> bool:
        """Return whether an idle connection received nothing since the end of the last reply.

        What it received is usually the error that ends a session; it may be a notice or a notification. True where
        the platform cannot tell. Costs half a microsecond: the event loop has passed on what came before its last turn,
        and the socket holds what has come since.
        """
        if self._listener is not None and self._listener.last != _READY:
            return False
        return self._poll is None or not self._poll(0)

    @property
    def _pool(self) -> Any:
        # If the schema no longer matches asyncpg's caches, asyncpg tells the pool, which it looks for here.
        return self.owner

    def is_cancelling(self) -> bool:
        """Return whether asyncpg has asked the server to cancel a query and has no reply yet."""
        return bool(self.connection._protocol._is_cancelling())  # type: ignore[attr-defined]

    def is_unfinished(self) -> bool:
        """Return whether the server has not ended the last statement.

        asyncpg asks it to do so when a statement is executed, not when it is prepared. Until then, the session has a
        transaction with locks, of which `is_in_transaction` does not know.
        """
        return self._listener is not None and self._listener.last != _READY

    def lend(self, now: float, borrower: "CallStack | None", task: "asyncio.Task[Any] | None") -> "Lease":
        """Make a lease. After its release asyncpg refuses to use it."""
        self.lent_at = now
        self.borrower = borrower
        self.task = task
        self.leak_reported = False
        # asyncpg's own pool calls the first argument the holder. Here it leads from a lease back to the slot.
        self.lease = PoolConnectionProxy(self, self.connection)  # type: ignore[arg-type]
        return self.lease

    def end_lease(self) -> None:
        """Invalidate the lease, and the statements, cursors and transactions that were made through it."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self.borrower = self.task = None
            lease._detach()  # type: ignore[attr-defined]
            self.connection._on_release()  # type: ignore[attr-defined]


def slot_of(lease: "Lease") -> Slot | None:
    """Return the slot that a lease was made from; None for a connection from elsewhere."""
    holder = getattr(lease, "_holder", None) if isinstance(lease, PoolConnectionProxy) else None
    return holder if isinstance(holder, Slot) else None


def call_stack(depth: int) -> "CallStack":
    """Return code and line of the frames from `depth` calls up, innermost first.

    Frames themselves would keep the borrower's local variables alive.
    """
    frame = sys._getframe(depth + 1)
    stack = [(frame.f_code, frame.f_lineno)]
    while len(stack) < _FRAMES and frame.f_back is not None:
        frame = frame.f_back
        stack.append((frame.f_code, frame.f_lineno))
    return stack


def describe_stack(stack: "CallStack | None") -> str:
    """Return a call stack as text, one frame a line."""
    return "\n".join(f"  {code.co_filename}:{line} in {code.co_qualname}" for code, line in stack or ())
