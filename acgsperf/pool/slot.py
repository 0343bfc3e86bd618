"""One connection of a pool: its age, its borrower, and how to see that it is alive without asking the server."""

import asyncio
import select
import sys
from types import new_class
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
# ReadyForQuery, outside of a transaction: the end of every answer to a session that may be lent.
_READY: Final = b"Z\0\0\0\5I"


class _ThoroughReset:
    """A connection whose reset also undoes what RESET ALL leaves: the role, temporary tables, sequence values."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        """The query that makes a session look new, prepared statements excepted."""
        query: str = super().get_reset_query()  # type: ignore[misc]
        # Not every server that speaks the protocol is a PostgreSQL: one that knows these knows the rest.
        return query + _RESET_THE_REST if "CLOSE ALL" in query and "RESET ALL" in query else query


def pooled_class(base: "type[Connection]") -> "type[Connection]":
    """The class of a pool's connections, made from one of asyncpg's or a user's."""
    if not (isinstance(base, type) and issubclass(base, asyncpg.Connection)):
        raise TypeError(f"connection_class must be a subclass of asyncpg.Connection, not {base!r}")
    body = {"__slots__": (), "__module__": base.__module__, "__doc__": base.__doc__}
    return cast(
        "type[Connection]", new_class(base.__name__, (_ThoroughReset, base), exec_body=lambda ns: ns.update(body))
    )


class _Listener(asyncio.Protocol):
    """Stands between a transport and asyncpg's protocol, and remembers how the last that the server said ended.

    A server that ends a session says why, and hangs up a moment later. In between asyncpg has read the first, and calls
    the connection open.
    """

    __slots__ = ("_data_received", "connection_lost", "eof_received", "last", "pause_writing", "resume_writing")

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.last = _READY
        self._data_received = protocol.data_received
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        self.last = data[-len(_READY) :]
        self._data_received(data)


class Slot:
    """A connection that a pool owns, and its lease while somebody has it."""

    __slots__ = (
        "_listener",
        "_poll",
        "ageing",
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
        # Whether it is known to be past `retires_at`.
        self.ageing = False
        self.lease: Lease | None = None
        self.place: Place | None = None
        self.reported = False
        self._listener: _Listener | None = None
        self._poll: Callable[[int], list[Any]] | None = None
        transport = getattr(connection, "_transport", None)
        if transport is not None:
            self._listen(transport)

    def _listen(self, transport: asyncio.Transport) -> None:
        self._listener = _Listener(cast("asyncio.Protocol", transport.get_protocol()))
        transport.set_protocol(self._listener)
        socket = transport.get_extra_info("socket")
        if socket is not None and _POLL is not None:
            poll = _POLL()
            poll.register(socket.fileno(), select.POLLIN)
            self._poll = poll.poll

    def is_quiet(self) -> bool:
        """Whether the last that an idle connection got is the end of an answer.

        What comes after it is mostly a farewell; it may be a notice or a notification. Costs half a microsecond: the
        event loop has passed on what came before its last turn, and the socket holds what has come since. True where it
        cannot be told.
        """
        if self._listener is not None and self._listener.last != _READY:
            return False
        return self._poll is None or not self._poll(0)

    @property
    def _pool(self) -> Any:
        # asyncpg tells the pool, which it looks for here, when the schema is not what its caches say.
        return self.owner

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
