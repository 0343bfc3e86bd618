"""The connections that a pool has, and the ways in which one leaves it."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from acgsperf.pool.options import CloseReason
from acgsperf.pool.slot import Slot
from acgsperf.pool.tasks import BackgroundTasks
from acgsperf.pool.unanswered import Unanswered


class Inventory:
    """The connections of one pool.

    A connection is in `slots` while it is open, in `idle` as well while nobody uses it, and in neither while it is
    closed gracefully.

    Args:
        tasks: runs what closes a connection gracefully.
        close_timeout: seconds that a connection has for that.
        on_room: called when a connection that is closed gracefully makes room for another: at its end, or if the server
            does not answer.

    Attributes:
        ageing: open connections that housekeeping found past `retires_at` in its last round.
        closes: the connections that are being closed gracefully.
        closed_by: how many connections left the pool, by reason.
    """

    __slots__ = (
        "_close_timeout",
        "_closing",
        "_emptied",
        "_on_room",
        "_tasks",
        "ageing",
        "closed_by",
        "closes",
        "idle",
        "slots",
    )

    def __init__(self, tasks: BackgroundTasks, close_timeout: float, on_room: Callable[[], None]) -> None:
        self._tasks = tasks
        self._close_timeout = close_timeout
        self._on_room = on_room
        self.slots: set[Slot] = set()
        self.idle: deque[Slot] = deque()
        self._closing: set[Slot] = set()
        self.closes: Final = Unanswered(on_stall=on_room)
        self._emptied = asyncio.Event()
        self.ageing: int = 0
        self.closed_by: Counter[CloseReason] = Counter()

    def restart(self) -> None:
        """Get ready for another event loop: an `asyncio.Event` works in one only."""
        self._emptied = asyncio.Event()
        self.ageing = 0

    @property
    def in_use(self) -> int:
        """Connections that are lent, being checked or being reset."""
        return len(self.slots) - len(self.idle)

    @property
    def size(self) -> int:
        """Connections that the server knows of: the open ones, and those that are being closed gracefully."""
        return len(self.slots) + len(self._closing)

    def has_live(self) -> bool:
        """Return whether a connection is open, as far as asyncpg knows."""
        return any(not slot.connection.is_closed() for slot in self.slots)

    def has_lent(self) -> bool:
        """Return whether a borrower has a connection that is open, as far as asyncpg knows."""
        return any(slot.lease is not None and not slot.connection.is_closed() for slot in self.slots)

    def terminate(self, slot: Slot, reason: CloseReason) -> None:
        """Remove a connection and close its socket at once."""
        if self.remove(slot, reason):
            slot.connection.terminate()

    def retire(self, slot: Slot, reason: CloseReason) -> None:
        """Remove a connection that works, and close it gracefully in the background."""
        if slot in self.slots:
            self._closing.add(slot)
            self.remove(slot, reason)
            self._tasks.start(self._close_gracefully(slot))

    def retire_idle(self, reason: CloseReason, keep: int = 0) -> int:
        """Retire idle connections, those idle for longest first, down to `keep` open ones; return how many."""
        retired = 0
        while self.idle and len(self.slots) > keep:
            self.retire(self.idle.popleft(), reason)
            retired += 1
        return retired

    def retire_all(self, reason: CloseReason) -> None:
        """Retire all connections. asyncpg cancels on the server the queries that run on them."""
        self.idle.clear()
        for slot in list(self.slots):
            self.retire(slot, reason)

    async def _close_gracefully(self, slot: Slot) -> None:
        self.closes.begin(slot)
        try:
            await slot.connection.close(timeout=self._close_timeout)
        except Exception:
            slot.connection.terminate()
        finally:
            self.closes.end(slot)
        self._closing.discard(slot)
        self._note_if_empty()
        self._on_room()

    def remove(self, slot: Slot, reason: CloseReason) -> bool:
        """Remove a connection and end its lease; return whether the pool had it."""
        if slot not in self.slots:
            return False
        self.slots.discard(slot)
        self.ageing -= slot.ageing
        self.closed_by[reason] += 1
        slot.end_lease()
        self._note_if_empty()
        return True

    def _note_if_empty(self) -> None:
        if not self.slots and not self._closing:
            self._emptied.set()

    async def wait_until_empty(self) -> None:
        """Return when the last connection is closed."""
        while self.slots or self._closing:
            self._emptied.clear()
            await self._emptied.wait()

    def terminate_all(self) -> None:
        """Close the sockets of all connections at once."""
        for slot in list(self.slots):
            self.terminate(slot, CloseReason.CLOSED)
        for slot in self._closing:
            slot.connection.terminate()
        self._closing.clear()
