"""Lending the connections of a pool: waiting for one, leases, and how long callers wait for and use connections."""

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from asyncpg.exceptions import (
    ConfigurationLimitExceededError,
    InsufficientResourcesError,
    InternalServerError,
    PostgresSystemError,
    ReadOnlySQLTransactionError,
)

from acgsperf import hooks
from acgsperf.balance.ejection import BAD_IN_A_ROW, Ejection
from acgsperf.dispatch import LatencyHistogram
from acgsperf.errors import PoolTimeout
from acgsperf.pool.health import ServerHealth
from acgsperf.pool.lifecycle import Lifecycle
from acgsperf.pool.options import PoolOptions
from acgsperf.pool.slot import Slot, call_stack, describe_stack, slot_of
from acgsperf.pool.supply import Supply, nanoseconds
from acgsperf.pool.waiters import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from types import CodeType

    from acgsperf.pool.slot import CallStack, Lease

_log = logging.getLogger("acgsperf.pool")
_LATENCY_WEIGHT: Final = 0.2
_LATENCY_HALF_LIFE_S: Final = 10.0
# A replica whose borrowers return no connection counts as at most this many times slower than before.
_MOST_SUSPECTED: Final = 4.0
# The maximum number of places in the code that a pool reports for acquiring a second connection.
_MOST_PLACES: Final = 100
# The server is to blame, and not the query: no memory, no disk space, a file that cannot be read.
_SERVER_FAILURES: Final = InsufficientResourcesError, PostgresSystemError, InternalServerError


class Lender:
    """Lends the connections of one server to callers, and takes them back.

    An idle connection is lent without a turn of the event loop. Otherwise the caller joins the queue, and the supply
    hands it a connection.

    Attributes:
        replicas: the lenders of the replicas, whose leases `take_back` accepts as well.
        wait_time: how long callers waited for a connection.
        use_time: how long they kept it.
        recent_use_s: how long the last ones kept it: a moving average; 0 before the first.
        leaks: leases that were reported as leaks.
        lags: whether this is a replica that lags too far behind its primary.
        lag_s: how far it lags, in seconds; None if it is unknown.
        ejection: counts the readers of this replica that failed because of its server; None if the last one did not.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        health: ServerHealth,
        waiters: WaitQueue,
        supply: Supply,
        options: PoolOptions,
        replicas: "Sequence[Lender]",
    ) -> None:
        self._lifecycle = lifecycle
        self._health = health
        self._waiters = waiters
        self._supply = supply
        self._inventory = supply.inventory
        self._leak_threshold = options.leak_threshold
        self._clock = options.clock
        self.replicas: Final = tuple(replicas)
        self.wait_time: Final = LatencyHistogram()
        self.use_time: Final = LatencyHistogram()
        self.recent_use_s: float = 0.0
        self.leaks: int = 0
        self.lags: bool = False
        self.lag_s: float | None = None
        self.ejection: Ejection | None = None
        # The connection that each task holds; the first one, if it holds several.
        self._held: dict[asyncio.Task[Any] | None, Slot] = {}
        # When the waiting callers began to wait; the oldest one comes first.
        self._waiting_since: dict[Awaitable[Slot], float] = {}
        self._nesting_reported: set[tuple[tuple[CodeType, int], ...]] = set()
        self._peak = 0
        # When the last lease ended, or when the first of the current ones began if none has ended since.
        self._progress_at = 0.0

    def restart(self) -> None:
        """Forget the borrowers, the demand, the lag and failures from before, because the pool is opened again."""
        self._held.clear()
        self._peak = 0
        self.lags, self.lag_s = False, None
        self.ejection = None

    @property
    def available(self) -> bool:
        """Whether the pool is open, its server can be reached, does not lag, and is not ejected."""
        return (
            self._lifecycle.is_open
            and self._health.error is None
            and not self.lags
            and (self.ejection is None or self.ejection.until is None or self.ejection.is_due(self._clock()))
        )

    async def take(self, timeout: float, borrower: "CallStack | None") -> "Lease":  # noqa: ASYNC109
        """Return a lease. It raises what `ConnectionPool.acquire` raises."""
        self._lifecycle.refuse_unless_open()
        if self._health.error is not None:
            raise self._health.unhealthy()
        task = asyncio.current_task()
        first = self._held.get(task)
        if first is not None:
            first = self._check_nesting(task, first)
        start = self._clock()
        # Waiting callers come first, even if a connection is idle.
        slot = None if self._waiters.waiting else self._supply.take_idle(start)
        if slot is None:
            slot = await self._wait_in_turn(start, timeout)
        now = self._clock()
        self.wait_time.record(nanoseconds(now - start))
        if hooks.connection_times is not None:
            hooks.connection_times("wait", self._lifecycle.name, now - start)
        lent = self._inventory.in_use - len(self._supply.checks)
        if lent > self._peak:
            self._peak = lent
        if lent == 1:
            self._progress_at = now
        if first is None:
            self._held[task] = slot
        return slot.lend(now, borrower, task)

    async def _wait_in_turn(self, start: float, timeout: float) -> Slot:  # noqa: ASYNC109
        work: Awaitable[Slot] = self._take_in_turn(start, timeout)
        if hooks.spans is not None:
            work = hooks.spans.during("pool.acquire", {hooks.POOL: self._lifecycle.name}, work)
        self._waiting_since[work] = start
        try:
            return await work
        finally:
            del self._waiting_since[work]

    def oldest_wait_s(self) -> float:
        """Return how long the first of the waiting callers has waited, in seconds; 0 if none waits."""
        # A copy, because an exporter may read this in another thread.
        began = next(iter(list(self._waiting_since.values())), None)
        return 0.0 if began is None else max(self._clock() - began, 0.0)

    async def _take_in_turn(self, start: float, timeout: float) -> Slot:  # noqa: ASYNC109
        ticket = self._waiters.take_ticket(self._supply.arriving)
        self._peak = max(self._peak, self._demand + 1)
        slot = await self.wait(ticket, timeout, timeout)
        # The server may have ended the session between the hand-over and this turn of the event loop.
        while slot.connection.is_closed() or not slot.is_quiet():
            self._supply.recheck(slot)
            self._lifecycle.refuse_unless_open()
            if self._health.error is not None:
                raise self._health.unhealthy()
            slot = await self.wait(ticket, max(timeout - (self._clock() - start), 0.0), timeout)
        return slot

    async def wait(self, ticket: int, remaining: float, timeout: float) -> Slot:  # noqa: ASYNC109
        """Wait for the supply to hand over a connection.

        Args:
            ticket: the place in the queue.
            remaining: seconds to wait; infinity for no limit.
            timeout: seconds that the caller asked for, for the message.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Slot] = loop.create_future()
        timer = None
        if remaining < math.inf:
            timer = loop.call_later(remaining, self._waiters.time_out, waiter, lambda: self._timed_out(timeout))
        try:
            self._waiters.add(waiter, ticket)
            self._supply.replenish()
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # The connection arrived in the turn of the event loop in which the caller was cancelled.
                self._supply.offer(waiter.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._waiters.remove(waiter)

    def _timed_out(self, timeout: float) -> PoolTimeout:
        in_use, size = self._inventory.in_use, len(self._inventory.slots)
        text = f"pool {self._lifecycle.name!r}: no connection within {timeout} s; {in_use} of {size} connections in use"
        failure = self._health.last_failure
        if failure is not None:
            text += f"; opening another one failed: {self._health.describe(failure)}"
        error = PoolTimeout(text)
        error.__cause__ = failure
        return error

    def take_back(self, lease: "Lease") -> "asyncio.Future[None] | None":
        """End a lease, and return the end of the reset of its connection, if one is needed.

        A lease that has ended is ignored.

        Raises:
            ValueError: for a connection that neither this pool nor one of its replicas lent.
            PoolError: in another event loop or process.
        """
        slot = slot_of(lease)
        self._lifecycle.refuse_elsewhere()
        if slot is None or slot.owner is not self._supply:
            for replica in self.replicas:
                if slot is not None and slot.owner is replica._supply:
                    return replica.take_back(lease)
            raise ValueError(f"{lease!r} is not from pool {self._lifecycle.name!r}")
        if slot.lease is not lease:
            return None
        if self._held.get(slot.task) is slot:
            del self._held[slot.task]
        slot.end_lease()
        self._progress_at = now = self._clock()
        used_ns = nanoseconds(now - slot.lent_at)
        self.use_time.record(used_ns)
        hooks.note_connection_use(self._lifecycle.name, used_ns)
        self.recent_use_s += _LATENCY_WEIGHT * (used_ns / 1e9 - self.recent_use_s)
        return self._supply.put_back(slot, now)

    def note_error(self, lease: "Lease", error: BaseException) -> None:
        """Note the error with which a borrower ended, before `take_back`: the server may have become read-only."""
        if not isinstance(error, ReadOnlySQLTransactionError):
            return
        slot = slot_of(lease)
        if slot is not None and slot.owner is self._supply and slot.lease is lease:
            self._supply.roles.note_refused_write(slot)

    @property
    def is_ejected(self) -> bool:
        """Whether readers do not use this replica, because its server failed them."""
        return self.ejection is not None and self.ejection.until is not None

    def note_probe(self) -> None:
        """Note that a reader is about to use this replica: if it is ejected, the others wait for the next probe."""
        if self.ejection is not None and self.is_ejected:
            self.ejection.begin(self._clock())

    def note_reader(self, error: BaseException | None) -> None:
        """Note how the lease of a reader of this replica ended.

        Other errors than those of the server count as nothing.
        """
        name = self._lifecycle.name
        if error is None:
            if self.is_ejected:
                _log.info("pool %r: a reader has succeeded; readers use it again", name)
            self.ejection = None
        elif isinstance(error, _SERVER_FAILURES) and not isinstance(error, ConfigurationLimitExceededError):
            if self.ejection is None:
                self.ejection = Ejection()
            # A reader that fails while the replica is ejected came before, or is a probe.
            if self.ejection.note_bad() and self.ejection.until is None:
                _log.warning(
                    "pool %r: %d leases in a row failed because of the server (%s: %s); readers use other servers, "
                    "except a probe after %g s",
                    *(name, BAD_IN_A_ROW, type(error).__name__, error.args[0], self.ejection.begin(self._clock())),
                )

    @property
    def _demand(self) -> int:
        """Callers that have a connection or wait for one."""
        return self._inventory.in_use - len(self._supply.checks) + len(self._waiters.waiting)

    def restart_peak(self) -> int:
        """Return the highest demand since the last call, and begin to look for the next peak."""
        demand = self._demand
        peak, self._peak = max(self._peak, demand), demand
        return peak

    def _check_nesting(self, task: asyncio.Task[Any] | None, first: Slot) -> Slot | None:
        """Log that a task acquires a second connection, once per place; return the first one if it is still lent."""
        if task is None or first.task is not task:
            # The first connection was closed while it was lent.
            del self._held[task]
            return None
        stack = call_stack(2)
        place = tuple(stack)
        if place in self._nesting_reported or len(self._nesting_reported) >= _MOST_PLACES:
            return first
        self._nesting_reported.add(place)
        _log.warning(
            "pool %r: a task that holds a connection acquires a second one; such tasks can deadlock when the pool is"
            " full. The second connection is acquired at\n%s",
            self._lifecycle.name,
            describe_stack(stack),
        )
        return first

    def forget_closed(self) -> None:
        """Forget the tasks whose connections were closed while they were lent."""
        if len(self._held) > self._inventory.in_use:
            self._held = {task: slot for task, slot in self._held.items() if slot.task is task}

    def report_leaks(self, now: float) -> None:
        """Log each lease that is older than `leak_threshold`, once."""
        if self._leak_threshold is None:
            return
        for slot in self._inventory.slots:
            used_s = now - slot.lent_at
            if slot.lease is not None and not slot.leak_reported and used_s >= self._leak_threshold:
                slot.leak_reported = True
                self.leaks += 1
                _log.warning(
                    "pool %r: possible leak: a connection has been in use for %.1f s; it was acquired at\n%s",
                    self._lifecycle.name,
                    used_s,
                    describe_stack(slot.borrower),
                )

    def load(self, latency_known: bool) -> float:
        """Return the load that one more reader would meet: requests in flight, times the latency if it is known."""
        in_use = self._inventory.in_use
        requests = in_use + len(self._waiters.waiting) + 1
        if not latency_known:
            return requests
        age_s = self._clock() - self._progress_at
        if in_use:
            # If no connection comes back, the server may be slower, or one borrower keeps its connection for long.
            return requests * max(self.recent_use_s, min(age_s, _MOST_SUSPECTED * self.recent_use_s))
        # The latency fades. Otherwise a replica that was slow once would never be asked again.
        return requests * self.recent_use_s * math.exp2(-age_s / _LATENCY_HALF_LIFE_S)
