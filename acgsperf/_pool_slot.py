"""One connection of a pool: its age, its borrower, and how to see that it is alive without asking the server."""

import select
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    Lease = PoolConnectionProxy[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record]
    Place = list[tuple[CodeType, int]]

_FRAMES: Final = 8
_RESET_THE_REST: Final = "\nRESET SESSION AUTHORIZATION;\nDISCARD TEMP;\nDISCARD SEQUENCES;"
_POLL: Final = getattr(select, "poll", None)


class PooledConnection(asyncpg.Connection):
    """A connection whose reset also undoes what RESET ALL leaves: the role, temporary tables, sequence values."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        """The query that makes a session look new, prepared statements excepted."""
        query = super().get_reset_query()
        # Not every server that speaks the protocol is a PostgreSQL: one that knows these knows the rest.
        return query + _RESET_THE_REST if "CLOSE ALL" in query and "RESET ALL" in query else query


class Slot:
    """A connection that a pool owns, and its lease while somebody has it."""

    __slots__ = (
        "_poll",
        "connection",
        "expires_at",
        "generation",
        "idle_since",
        "lease",
        "owner",
        "place",
        "reported",
        "retires_at",
        "taken_at",
    )

    def __init__(self, owner: object, connection: "Connection", generation: int, now: float) -> None:
        self.owner = owner
        self.connection = connection
        self.generation = generation
        self.idle_since = self.taken_at = now
        self.retires_at = self.expires_at = float("inf")
        self.lease: Lease | None = None
        self.place: Place | None = None
        self.reported = False
        self._poll = self._poll_of(connection)

    @staticmethod
    def _poll_of(connection: "Connection") -> "Callable[[int], list[Any]] | None":
        transport = getattr(connection, "_transport", None)
        socket = transport and transport.get_extra_info("socket")
        if socket is None or _POLL is None:
            return None
        poll = _POLL()
        poll.register(socket.fileno(), select.POLLIN)
        return cast("Callable[[int], list[Any]]", poll.poll)

    def has_unread(self) -> bool:
        """Whether the server said something to an idle connection: mostly that it is gone.

        The event loop sees it too, but only once it gets a turn. Costs a third of a microsecond, and is
        False where it cannot be told.
        """
        return self._poll is not None and bool(self._poll(0))

    def is_cancelling(self) -> bool:
        """Whether asyncpg has asked the server to give up a query, and has not heard of it yet."""
        return bool(self.connection._protocol._is_cancelling())  # type: ignore[attr-defined]

    def lend(self, now: float, place: "Place | None") -> "Lease":
        """Make a lease; after its release asyncpg refuses to use it."""
        self.taken_at = now
        self.place = place
        self.reported = False
        # The holder is what asyncpg's own pool looks at; for us it leads from a lease back to the slot.
        self.lease = PoolConnectionProxy(cast("Any", self), self.connection)
        return self.lease

    def end_lease(self) -> None:
        """Invalidate the lease, and the statements, cursors and transactions that were made through it."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self.place = None
            lease._detach()  # type: ignore[attr-defined]
            self.connection._on_release()  # type: ignore[attr-defined]


def slot_of(lease: "Lease") -> Slot | None:
    """The slot that a lease was made from; None for a connection from elsewhere."""
    holder = getattr(lease, "_holder", None) if isinstance(lease, PoolConnectionProxy) else None
    return holder if isinstance(holder, Slot) else None


def place_of_caller(depth: int) -> "Place":
    """Where the code `depth` calls up is, innermost first: code and line only, for frames would keep locals alive."""
    frame = sys._getframe(depth + 1)
    place = [(frame.f_code, frame.f_lineno)]
    while len(place) < _FRAMES and frame.f_back is not None:
        frame = frame.f_back
        place.append((frame.f_code, frame.f_lineno))
    return place


def describe_place(place: "Place | None") -> str:
    """A place as text, one frame a line."""
    return "\n".join(f"  {code.co_filename}:{line} in {code.co_qualname}" for code, line in place or ())
