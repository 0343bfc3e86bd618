"""One connection of a pool: its age, its lease, and whether it is alive, as far as is known without a query."""

import select
import sys
from typing import TYPE_CHECKING, Any, Final

from asyncpg.pool import PoolConnectionProxy

from acgsperf.pool.wire import wire_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import CodeType

    import asyncpg

    Lease = PoolConnectionProxy[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record]
    CallStack = list[tuple[CodeType, int]]

_FRAMES: Final = 8
_POLL: Final = getattr(select, "poll", None)


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
        "_poll",
        "_wire",
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
        connection: "Connection",
        generation: int,
        now: float,
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
        self._wire = wire_of(connection)
        self._poll: Callable[[int], list[Any]] | None = None
        transport = getattr(connection, "_transport", None)
        socket = transport.get_extra_info("socket") if transport is not None else None
        if socket is not None and _POLL is not None:
            poll = _POLL()
            poll.register(socket.fileno(), select.POLLIN)
            self._poll = poll.poll

    def hung_up(self) -> bool:
        """Return whether the server or the network closed the connection, and not the pool or a borrower."""
        return self._wire is not None and self._wire.hung_up

    def is_quiet(self) -> bool:
        """Return whether an idle connection received nothing since the end of the last reply.

        What it received is usually the error that ends a session; it may be a notice or a notification. True where
        the platform cannot tell. Costs half a microsecond: the event loop has passed on what came before its last turn,
        and the socket holds what has come since.
        """
        if self._wire is not None and not self._wire.is_ready():
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
        return self._wire is not None and not self._wire.is_ready()

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
