"""A PostgreSQL connection pool that recovers by itself.

The pool holds asyncpg connections itself rather than over `asyncpg.Pool`, whose queue of holders can be given neither
fairness towards waiters nor a check before a connection is handed out.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from acgsperf._native.arguments import checked_int, checked_seconds
from acgsperf.addresses import checked_dsn
from acgsperf.errors import PoolClosed, PoolError, PoolTimeout
from acgsperf.pool.acquire import Acquire
from acgsperf.pool.options import (
    TARGET_UTILIZATION,
    CloseReason,
    PoolHealth,
    PoolOptimization,
    PoolOptions,
    PoolStats,
    checked_sizes,
)
from acgsperf.pool.slot import Slot, describe_place, place_of_caller, slot_of
from acgsperf.pool.supply import HEALTH_TICKET, Supply, nanoseconds

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection, Lease, Place

_log = logging.getLogger("acgsperf.pool")
_LATENCY_HALF_LIFE_S: Final = 10.0
_MOST_SUSPECTED: Final = 4.0


class ConnectionPool(Supply):
    """A bounded set of PostgreSQL connections that many tasks of one event loop share.

    Args:
        dsn: where the server is, as asyncpg and libpq write it.
        min_size: connections that `open` waits for, and that are kept.
        max_size: the most that are open at any time.
        name: how the pool calls itself in logs and errors.
        replicas: servers that `acquire(readonly=True)` may use; each gets a pool with the same options.
        timeout: seconds that `acquire` waits for a connection, unless it is told otherwise.
        max_waiting: callers that may wait at once for others to give a connection back; None for no bound.
        check_after: a connection idle for this many seconds is tested before it is handed out.
        check_timeout: seconds in which it has to answer.
        max_lifetime: no connection older than this many seconds is handed out; most are replaced up to 10 % earlier, at
            random, and not all at once.
        max_idle: seconds after which a connection that nobody needed is closed, down to the size that is kept.
        leak_threshold: a connection lent for longer than this many seconds is reported once; None for never.
        reset: whether a session is made like new between borrowers. Without, only an open transaction is rolled back.
        reset_timeout: seconds that a reset may take.
        connect_timeout: seconds that a connection attempt may take, `init` not included.
        close_timeout: seconds that a connection may take to say goodbye.
        init: called with each new connection, for type codecs and the like; has `connect_timeout` of its own.
        housekeeping_interval: seconds between two rounds of `maintain`.
        clock: seconds for ages and idle times, `time.monotonic` or a replacement; deadlines are the event loop's.
        connect_options: anything else is for `asyncpg.connect`: `command_timeout`, `server_settings`, `ssl`, ... A
            `connection_class` is subclassed, for its reset to be as thorough; one without a reset query stays so.

    Raises:
        ValueError: for sizes or times that make no sense, or a DSN that cannot be used; the message does not repeat it.
        TypeError: for an argument of the wrong type, or an option that neither the pool nor `asyncpg.connect` has.
    """

    def __init__(
        self,
        dsn: str,
        *,
        min_size: int = 20,
        max_size: int = 100,
        name: str = "default",
        replicas: Sequence[str] = (),
        timeout: float = 30.0,
        max_waiting: int | None = None,
        check_after: float = 0.5,
        check_timeout: float = 2.0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        leak_threshold: float | None = None,
        reset: bool = True,
        reset_timeout: float = 5.0,
        connect_timeout: float = 5.0,
        close_timeout: float = 2.0,
        init: "Callable[[Connection], Awaitable[None]] | None" = None,
        housekeeping_interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        **connect_options: Any,
    ) -> None:
        options = PoolOptions(
            min_size=min_size,
            max_size=max_size,
            timeout=timeout,
            max_waiting=max_waiting,
            check_after=check_after,
            check_timeout=check_timeout,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            leak_threshold=leak_threshold,
            reset=reset,
            reset_timeout=reset_timeout,
            connect_timeout=connect_timeout,
            close_timeout=close_timeout,
            init=init,
            housekeeping_interval=housekeeping_interval,
            clock=clock,
        )
        super().__init__(name, dsn, options, connect_options)
        if isinstance(replicas, str | bytes | bytearray) or not isinstance(replicas, Sequence):
            raise TypeError(f"replicas must be a sequence of DSNs, not of type {type(replicas).__name__}")
        for number, replica in enumerate(replicas):
            checked_dsn(f"replicas[{number}]", replica)
        self._housekeeper: asyncio.Task[None] | None = None
        self._leaks = 0
        self._replicas = tuple(
            ConnectionPool(replica, name=f"{name}/replica-{number}", **options.as_keywords(), **connect_options)
            for number, replica in enumerate(replicas, 1)
        )

    def __repr__(self) -> str:
        """The name, the state and the figures; nothing of the address."""
        state = "closed" if self._closed else "new" if not self._open else "open" if self.healthy else "unhealthy"
        return f"<ConnectionPool {self.name!r}, {state}, {self._in_use} of {len(self._slots)} in use>"

    @property
    def min_size(self) -> int:
        """Connections that are always kept."""
        return self._min_size

    @property
    def max_size(self) -> int:
        """Connections that may be open at once."""
        return self._max_size

    @property
    def healthy(self) -> bool:
        """Whether the server could be reached when the pool last needed it; an unhealthy pool refuses callers."""
        return self._error is None

    @property
    def closed(self) -> bool:
        """Whether it was closed, for good."""
        return self._closed

    @property
    def replicas(self) -> "tuple[ConnectionPool, ...]":
        """The pools of the replicas, which are opened and closed with this one."""
        return self._replicas

    async def open(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        """Connect `min_size` times and start housekeeping.

        A replica that cannot be reached is no error: its pool goes on trying.

        Raises:
            PoolUnhealthy: when the server refuses three attempts in a row; the pool is closed then.
            PoolTimeout: when the connections are not there within `timeout` seconds.
            PoolClosed: when it was opened or closed before.
            TypeError, ValueError: for a timeout that is none.
        """
        timeout = checked_seconds("timeout", timeout, zero=True)
        if self._open or self._closed:
            raise PoolClosed(f"pool {self.name!r} is opened once")
        self._start()
        try:
            await asyncio.gather(
                self.warm(self._min_size, timeout), *(replica._open_as_replica(timeout) for replica in self._replicas)
            )
        except BaseException:
            await self.close(0)
            raise

    def _start(self) -> None:
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._housekeeper = asyncio.create_task(self._keep_house(), name=f"acgsperf pool {self.name}")

    async def _open_as_replica(self, timeout: float) -> None:  # noqa: ASYNC109
        self._start()
        try:
            await self.warm(max(self._min_size, 1), min(timeout, self.options.connect_timeout))
        except PoolError as error:
            if self._error is None and not self._slots:
                self._fail(error)

    async def __aenter__(self) -> Self:
        """Open the pool."""
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool; when leaving with an error, without waiting for its borrowers."""
        await self.close(10.0 if error is None else 0.0)

    def acquire(self, timeout: float | None = None, *, readonly: bool = False) -> Acquire:
        """A connection: `async with pool.acquire() as connection`, or `await pool.acquire()` and `release`.

        First come, first served. An idle connection is lent without a turn of the event loop.

        Args:
            timeout: seconds to wait for one, 0 or more; None means the pool's own `timeout`, not for ever. 0 takes what
                can be lent without a question to the server.
            readonly: whether a replica will do: the better of two healthy ones taken at random, by requests in flight
                and recent latency. The primary serves when there is none, and when it has none for half the time-out.

        Raises:
            PoolTimeout: when none became free in time.
            PoolSaturated: at once, when `max_waiting` callers wait for others to give one back.
            PoolUnhealthy: at once, while the server cannot be reached.
            PoolClosed: when the pool is not open.
            PoolError: in another event loop, or in a process that was forked since.
            TypeError, ValueError: at once, for a timeout that is none.
        """
        timeout = self.options.timeout if timeout is None else checked_seconds("timeout", timeout, zero=True)
        place = place_of_caller(1) if self.options.leak_threshold is not None else None
        return Acquire(self, timeout, readonly, place)

    async def release(self, connection: "Lease") -> None:
        """Give a connection back, and return when its session is reset or `reset_timeout` has passed.

        Cancelling does not hurt: the reset goes on. A connection that was released, or has been closed, is ignored.

        Raises:
            ValueError: for a connection that is not from this pool.
        """
        task = self._take_back(connection)
        if task is not None:
            # Not a shield: when the pool is closed and the reset is cancelled, this caller is not.
            await asyncio.wait((task,))

    async def warm(self, n: int, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        """Return when at least `n` connections are open; those beyond the kept size stay for `max_idle`.

        Raises:
            ValueError: when `n` is negative or more than `max_size`.
            TypeError: when `n` is no integer, or `timeout` no number.
            PoolTimeout: when they are not open within `timeout` seconds.
            PoolUnhealthy, PoolClosed: as `acquire`.
        """
        n, timeout = checked_int("n", n), checked_seconds("timeout", timeout, zero=True)
        if n < 0:
            raise ValueError(f"n must be at least 0, not {n}")
        if n > self._max_size:
            raise ValueError(f"cannot warm {n} connections of at most {self._max_size}")
        self._refuse_unless_open()
        if len(self._slots) >= n:
            return
        warmer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._warmers[warmer] = n
        self._supply()
        try:
            async with asyncio.timeout(timeout):
                await warmer
        except TimeoutError:
            text = f"pool {self.name!r}: {n} connections were not open in {timeout} s"
            raise PoolTimeout(text) from self._last_failure
        finally:
            del self._warmers[warmer]

    def resize(self, min_size: int, max_size: int) -> None:
        """Change the bounds at once.

        Surplus idle connections are closed, lent ones when they come back; missing ones are opened in the background.

        Raises:
            ValueError: for sizes that make no sense.
            TypeError: for sizes that are no integers.
        """
        min_size, max_size = checked_sizes(min_size, max_size)
        self._refuse_elsewhere()
        # What nobody has raised above the old minimum goes down with it.
        target = min_size if self._target_size == self._min_size else self._target_size
        self._min_size, self._max_size = min_size, max_size
        self._target_size = min(max(target, min_size), max_size)
        self._close_surplus(max_size)
        self._supply()

    def drain(self) -> None:
        """Replace every connection, idle ones now and lent ones when they come back: after a failover, for example."""
        self._refuse_elsewhere()
        self._generation += 1
        while self._idle:
            self._retire(self._idle.popleft(), CloseReason.DRAINED)
        self._supply()

    def stats(self) -> PoolStats:
        """The figures of the pool now, its replicas' not included."""
        return PoolStats(
            size=len(self._slots),
            idle=len(self._idle),
            in_use=self._in_use,
            waiting=len(self._waiters),
            connecting=self._connecting,
            min_size=self._min_size,
            max_size=self._max_size,
            target_size=self._target_size,
            opened=self._opened,
            closed={reason: self._closed_by[reason] for reason in CloseReason},
            failed_connects=self._failed_connects,
            timeouts=self._timeouts,
            saturations=self._saturations,
            leaks=self._leaks,
            wait=self.wait_time.snapshot(),
            use=self.use_time.snapshot(),
        )

    async def health(self) -> PoolHealth:
        """Ask the server with an idle connection, within `check_timeout`, or with a new one, within `connect_timeout`.

        A pool that has neither, or whose server is full, is as healthy as it was. One that gets no answer closes its
        idle connections and refuses callers until it can connect again, which it goes on trying by itself.
        """
        self._refuse_elsewhere()
        if not self._open:
            return PoolHealth(False, error=f"pool {self.name!r} is not open")
        start = self._clock()
        if self._error is None and self._idle:
            if await self._ask_with_idle():
                return PoolHealth(True, nanoseconds(self._clock() - start))
            if self._error is None and not self._has_lent():
                self._fail(TimeoutError(f"no answer within {self.options.check_timeout} s"))
        if self._open and self._error is None and self._room > 0:
            opened = self._opened
            await asyncio.wait((self._start_connecting(),))
            if self._opened > opened:
                return PoolHealth(True, nanoseconds(self._clock() - start))
            if not self._open:
                return PoolHealth(False, error=f"pool {self.name!r} is not open")
            # A server that refuses answers at least; of one that says nothing the connections are silent too.
            if isinstance(self._last_failure, TimeoutError):
                self._fail(self._last_failure)
            elif self._last_failure is not None and not self._has_live():
                return PoolHealth(False, error=self._describe(self._last_failure))
        return PoolHealth(True) if self._error is None else PoolHealth(False, error=self._describe(self._error))

    async def _ask_with_idle(self) -> bool:
        # As the first of those who wait, and not counted among those whose time ran out.
        slot = None
        try:
            async with asyncio.timeout(self.options.check_timeout):
                slot = await self._wait(HEALTH_TICKET, math.inf, math.inf)
                # What a borrower has just given back was not asked.
                await slot.connection.execute("SELECT 1")
        except PoolError:
            return False
        except BaseException as error:
            if slot is not None:
                self._drop(slot, CloseReason.CHECK_FAILED)
                self._supply()
            if isinstance(error, Exception):
                return False
            raise
        self._give(slot)
        return True

    def _has_lent(self) -> bool:
        return any(slot.lease is not None and not slot.connection.is_closed() for slot in self._slots)

    def optimize(self) -> PoolOptimization:
        """Keep as many connections as make recent demand 80 % of them, between `min_size` and `max_size`.

        Demand is the most that was in use and waited for at once since the last call. What is missing is opened in the
        background, surplus idle connections are closed.
        """
        self._refuse_elsewhere()
        if not self._open:
            return PoolOptimization(0, 0.0, self._target_size, self._target_size, 0, 0)
        demand = max(self._peak, self._demand)
        self._peak = self._demand
        old = self._target_size
        wanted = math.ceil(demand / TARGET_UTILIZATION)
        self._target_size = min(max(wanted, self._min_size), self._max_size)
        size = len(self._slots)
        closed = self._close_surplus(self._target_size)
        self._supply()
        missing = max(0, self._target_size - size)
        return PoolOptimization(demand, demand / max(old, 1), old, self._target_size, missing, closed)

    def maintain(self) -> None:
        """One round of housekeeping, which otherwise happens every `housekeeping_interval`.

        Replaces connections that are lost or near the end of their lifetime, closes those that nobody needs, reports
        leaks and opens what is missing.
        """
        self._refuse_elsewhere()
        now = self._clock()
        for slot in self._slots:
            slot.ageing = now >= slot.retires_at
        self._ageing = sum(slot.ageing for slot in self._slots)
        for slot in list(self._idle):
            if slot.connection.is_closed():
                self._idle.remove(slot)
                self._drop(slot, CloseReason.LOST)
            elif now >= slot.expires_at or (slot.ageing and self._has_successors()):
                self._idle.remove(slot)
                self._retire(slot, CloseReason.LIFETIME)
        unused_since = now - self.options.max_idle
        kept = self._target_size + self._ageing
        while len(self._slots) > kept and self._idle and self._idle[0].idle_since <= unused_since:
            self._retire(self._idle.popleft(), CloseReason.IDLE)
        if self.options.leak_threshold is not None:
            for slot in self._slots:
                if slot.lease is not None and not slot.reported and now - slot.taken_at >= self.options.leak_threshold:
                    self._report_leak(slot, now)
        self._supply()

    async def close(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Refuse new callers, wait for connections to come back, and close them.

        Waiting callers get `PoolClosed`. What is still lent after `timeout` seconds is terminated. Closing twice is
        fine.

        Raises:
            TypeError, ValueError: for a timeout that is none; the pool goes on.
        """
        timeout = checked_seconds("timeout", timeout, zero=True)
        self._refuse_elsewhere()
        was_open, self._open, self._closed = self._open, False, True
        self._refuse_waiters(lambda: PoolClosed(f"pool {self.name!r} is closed"))
        if self._retry is not None:
            self._retry.cancel()
        if was_open and self._housekeeper is not None:
            self._housekeeper.cancel()
            self._tasks.add(self._housekeeper)
        while self._idle:
            self._retire(self._idle.popleft(), CloseReason.CLOSED)
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                for replica in self._replicas:
                    group.create_task(replica.close(timeout))
                while self._slots or self._leaving:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            if self._slots:
                _log.warning("pool %s: closed with %d connections still in use", self.name, len(self._slots))
        finally:
            for slot in list(self._slots):
                self._drop(slot, CloseReason.CLOSED)
            for slot in self._leaving:
                slot.connection.terminate()
            self._leaving.clear()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.clear()

    async def _take(self, timeout: float, place: "Place | None") -> "Lease":  # noqa: ASYNC109
        self._refuse_unless_open()
        start = self._clock()
        # Whoever waits comes first, even if something is idle.
        slot = None if self._waiters else self._pop_fresh(start)
        if slot is None:
            ticket = self._take_ticket()
            slot = await self._wait(ticket, timeout, timeout)
            while (closed := slot.connection.is_closed()) or not slot.is_quiet():
                # The server ended it in the turn between being handed over and arriving here.
                if closed:
                    self._drop(slot, CloseReason.LOST)
                else:
                    self._start_check(slot)
                self._refuse_unless_open()
                slot = await self._wait(ticket, max(timeout - (self._clock() - start), 0.0), timeout)
        now = self._clock()
        self.wait_time.record(nanoseconds(now - start))
        lent = self._in_use - self._checks
        if lent > self._peak:
            self._peak = lent
        if lent == 1:
            self._progress_at = now
        return slot.lend(now, place)

    def _take_back(self, lease: "Lease") -> "asyncio.Task[None] | None":
        slot = slot_of(lease)
        self._refuse_elsewhere()
        if slot is None or (slot.owner is not self and slot.owner not in self._replicas):
            raise ValueError(f"{lease!r} is not from pool {self.name!r}")
        owner = slot.owner
        assert isinstance(owner, ConnectionPool)
        return owner._end_lease(slot) if slot.lease is lease else None

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(self.options.housekeeping_interval)
            try:
                self.maintain()
            except Exception:
                _log.exception("pool %s: housekeeping failed", self.name)

    def _report_leak(self, slot: Slot, now: float) -> None:
        slot.reported = True
        self._leaks += 1
        _log.warning(
            "pool %s: a connection has been in use for %.1f s; it was acquired at\n%s",
            self.name,
            now - slot.taken_at,
            describe_place(slot.place),
        )

    def _load(self, latency_known: bool) -> float:
        """What one more reader would meet here, to compare replicas by: requests in flight times latency."""
        requests = self._in_use + len(self._waiters) + 1
        if not latency_known:
            return requests
        age_s = self._clock() - self._progress_at
        if self._in_use:
            # One that gives nothing back any more may be slower than it was, or has lent one connection for long.
            return requests * max(self._recent_use_s, min(age_s, _MOST_SUSPECTED * self._recent_use_s))
        # What is remembered fades, or a replica that was slow once would never be asked again.
        return requests * self._recent_use_s * math.exp2(-age_s / _LATENCY_HALF_LIFE_S)
