"""The callers that wait for a connection: first come, first served."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from acgsperf.errors import PoolError, PoolSaturated
from acgsperf.pool.slot import Slot
from acgsperf.timeouts import time_limit

# A health check is served before all callers.
HEALTH_CHECK_TICKET: Final = 0


class WaitQueue:
    """A queue of futures, one for each waiting caller, in the order of their tickets.

    A caller gets a ticket when it begins to wait. It keeps the ticket, and so its place, if the connection that it
    received turns out to be closed and it has to wait again.

    Attributes:
        waiting: the future and the ticket of each waiting caller, lowest ticket first. Read only.
        timeouts: callers that got no connection in time.
        saturations: callers that were refused because of `max_waiting`.
    """

    __slots__ = ("_max_waiting", "_name", "_tickets", "saturations", "timeouts", "waiting")

    def __init__(self, name: str, max_waiting: int | None) -> None:
        self._name = name
        self._max_waiting = max_waiting
        self._tickets = itertools.count(HEALTH_CHECK_TICKET + 1)
        self.waiting: OrderedDict[asyncio.Future[Slot], int] = OrderedDict()
        self.timeouts: int = 0
        self.saturations: int = 0

    def take_ticket(self, arriving: int) -> int:
        """Return a ticket for one more caller.

        Args:
            arriving: connections that become available although no borrower returns one.

        Raises:
            PoolSaturated: if `max_waiting` callers wait for borrowers already.
        """
        waiting = len(self.waiting)
        if self._max_waiting is not None and waiting - arriving >= self._max_waiting:
            self.saturations += 1
            raise PoolSaturated(
                f"pool {self._name!r}: {waiting} callers are waiting already, max_waiting is {self._max_waiting};"
                " raise max_waiting or max_size, or retry later"
            )
        return next(self._tickets)

    def add(self, waiter: asyncio.Future[Slot], ticket: int) -> None:
        """Put a caller into the queue, before those with a higher ticket."""
        waiting = self.waiting
        in_order = not waiting or next(reversed(waiting.values())) < ticket
        later = [] if in_order else [other for other, other_ticket in waiting.items() if other_ticket > ticket]
        waiting[waiter] = ticket
        for other in later:
            waiting.move_to_end(other)

    def remove(self, waiter: asyncio.Future[Slot]) -> None:
        """Remove a caller that waits no longer; does nothing if it is not in the queue."""
        self.waiting.pop(waiter, None)

    def time_out(self, waiter: asyncio.Future[Slot], error: Callable[[], PoolError]) -> None:
        """End the wait of a caller with an error, unless it has been served."""
        if not waiter.done():
            self.timeouts += 1
            self.remove(waiter)
            waiter.set_exception(error())

    def serve(self, slot: Slot) -> bool:
        """Hand a connection to the first caller; return whether there was one."""
        while self.waiting:
            waiter, _ = self.waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(slot)
                return True
        return False

    def refuse_all(self, error: Callable[[], PoolError]) -> None:
        """End the wait of every caller with an error of its own."""
        refused = list(self.waiting)
        self.waiting.clear()
        for waiter in refused:
            if not waiter.done():
                waiter.set_exception(error())


class SizeWaiters:
    """The callers of `warm`, which wait for a number of open connections."""

    __slots__ = ("_wanted",)

    def __init__(self) -> None:
        self._wanted: dict[asyncio.Future[None], int] = {}

    @property
    def most(self) -> int:
        """The largest number of connections that a caller waits for; 0 if nobody waits."""
        return max(self._wanted.values(), default=0)

    async def wait(self, n: int, timeout: float, begin: Callable[[], None]) -> None:  # noqa: ASYNC109
        """Call `begin`, and return when `n` connections are open; raise TimeoutError after `timeout` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted[waiter] = n
        try:
            begin()
            async with time_limit(timeout):
                await waiter
        finally:
            del self._wanted[waiter]

    def serve(self, size: int) -> None:
        """End the wait of those for whom `size` open connections are enough."""
        for waiter, n in self._wanted.items():
            if size >= n and not waiter.done():
                waiter.set_result(None)

    def refuse_all(self, error: Callable[[], PoolError]) -> None:
        """End the wait of every caller with an error of its own."""
        for waiter in self._wanted:
            if not waiter.done():
                waiter.set_exception(error())
