"""A PostgreSQL connection pool that recovers by itself.

`ConnectionPool` is made of parts. A `Lender` serves callers, who wait in a `WaitQueue`. A `Supply` brings connections,
which are in an `Inventory`. Both use the `Lifecycle` of the pool and the `ServerHealth` of its server.

The pool uses asyncpg's connections but not `asyncpg.Pool`, whose queue of holders is not fair to waiting callers and
has no place for a check before a connection is lent.
"""

import asyncio
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from acgsperf._native.arguments import checked_bool, checked_int, checked_seconds, checked_share, checked_str
from acgsperf.counting import note, read_at_end
from acgsperf.errors import PoolClosed, PoolError, PoolTimeout
from acgsperf.pool.acquire import Acquire
from acgsperf.pool.closing import close_connections
from acgsperf.pool.connector import Connector
from acgsperf.pool.health import ServerHealth
from acgsperf.pool.health_check import HealthCheck
from acgsperf.pool.lag import Replica, replica_lags
from acgsperf.pool.lender import Lender
from acgsperf.pool.lifecycle import Lifecycle
from acgsperf.pool.options import (
    MAX_MESSAGE_BYTES,
    TARGET_UTILIZATION,
    CloseReason,
    PoolHealth,
    PoolOptimization,
    PoolOptions,
    PoolStats,
    checked_sizes,
)
from acgsperf.pool.queries import Queries
from acgsperf.pool.server_address import checked_session_attributes, parsed_address
from acgsperf.pool.slot import call_stack
from acgsperf.pool.stats import collect_stats
from acgsperf.pool.supply import Supply
from acgsperf.pool.tasks import BackgroundTasks
from acgsperf.pool.waiters import SizeWaiters, WaitQueue

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection, Lease

_log = logging.getLogger("acgsperf.pool")


class ConnectionPool(Queries):
    """A bounded set of PostgreSQL connections that many tasks of one event loop share.

    Use it with `async with`, or call `open` and `close`; then it can be opened again. `acquire` lends a connection.
    `fetch`, `fetchrow`, `fetchval`, `execute`, `executemany` and `transaction` borrow one for a single query or
    transaction.

    Args:
        dsn: the address of the server, or of several of which one is used, in the form that asyncpg and libpq read.
        min_size: the number of connections that `open` waits for and the pool keeps.
        max_size: the highest number of open connections. While connections or attempts do not get an answer, the pool
            may have up to two more.
        name: the name of the pool in log lines and errors.
        replicas: the DSNs of servers that `acquire(readonly=True)` may use. Each gets a pool with the same options.
        timeout: seconds that `acquire` waits for a connection if it is called without a timeout.
        max_waiting: how many callers may wait for borrowers to return a connection; None for no limit.
        check_after: a connection that was idle for this many seconds is checked before it is lent.
        check_timeout: seconds within which the server has to answer the check.
        max_lifetime: a connection older than this many seconds is not lent. Most are replaced up to 10 % earlier, at
            random, so that not all are replaced at once.
        max_idle: seconds after which an idle connection is closed if the pool has more than it keeps.
        leak_threshold: seconds after which a lease is reported as a leak, once; None for never.
        reset: whether a session is reset between borrowers. If not, only an open transaction is rolled back.
        reset_timeout: seconds that a reset may take, and that the server may take to confirm a cancellation.
        connect_timeout: seconds that a connection attempt may take, without `init`. Each of several servers has an
            equal share. None means the `connect_timeout` of the DSN, or 5 s.
        close_timeout: seconds that closing a connection gracefully may take.
        max_message_bytes: the largest message, for example a row, that the server may send; None for no limit.
        target_session_attrs: which servers are used: `any`, `read-write`, `primary`, `standby`, `prefer-standby` or
            `read-only`. None means the `target_session_attrs` of the DSN, or `any`. It does not apply to replicas.
        max_replica_lag: a replica that lags more seconds behind the primary is not used; None for no limit.
        init: called with each new connection, for example to set type codecs. It may take `connect_timeout` seconds.
        housekeeping_interval: seconds between two calls of `maintain`.
        clock: returns seconds, for ages and idle times: `time.monotonic` or a replacement. Deadlines use the clock of
            the event loop.
        connect_options: other keyword arguments for `asyncpg.connect`: `command_timeout`, `server_settings`, `ssl`, ...
            A `connection_class` is subclassed so that its reset is as thorough, unless it has no reset query.

    Attributes:
        name, options: the name and the options of the pool.
        wait_time: a `LatencyHistogram` of how long callers waited for a connection.
        use_time: a `LatencyHistogram` of how long borrowers kept a connection.
        create_time: a `LatencyHistogram` of how long it took to open a connection.

    Raises:
        ValueError: for sizes or times that are out of range, or a DSN that cannot be used or has a parameter that
            cannot be honored. The message names the parameter, but does not contain the DSN.
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
        connect_timeout: float | None = None,
        close_timeout: float = 2.0,
        max_message_bytes: int | None = MAX_MESSAGE_BYTES,
        target_session_attrs: str | None = None,
        max_replica_lag: float | None = None,
        init: "Callable[[Connection], Awaitable[None]] | None" = None,
        housekeeping_interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        **connect_options: Any,
    ) -> None:
        address = parsed_address("dsn", dsn)
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
            connect_timeout=address.connect_timeout or 5.0 if connect_timeout is None else connect_timeout,
            close_timeout=close_timeout,
            max_message_bytes=max_message_bytes,
            max_replica_lag=max_replica_lag,
            init=init,
            housekeeping_interval=housekeeping_interval,
            clock=clock,
        )
        self.name: Final = checked_str("name", name)
        self.options = options
        connecting = connect_options | checked_session_attributes(target_session_attrs)
        connector = Connector(dsn, address, options, connecting, f"pool {name!r}")
        if isinstance(replicas, str | bytes | bytearray) or not isinstance(replicas, Sequence):
            raise TypeError(f"replicas must be a sequence of DSNs, got one of type {type(replicas).__name__}")
        for number, replica in enumerate(replicas):
            parsed_address(f"replicas[{number}]", replica)
        same = {**options.as_keywords(), "connect_timeout": connect_timeout, **connect_options}
        self._replicas: tuple[ConnectionPool, ...] = tuple(
            ConnectionPool(replica, name=f"{name}/replica-{number}", **same)
            for number, replica in enumerate(replicas, 1)
        )
        self._lifecycle = lifecycle = Lifecycle(name)
        self._health = health = ServerHealth(name, connector)
        self._waiters = waiters = WaitQueue(name, options.max_waiting)
        self._size_waiters = SizeWaiters()
        self._tasks = BackgroundTasks()
        self._housekeeper: asyncio.Task[None] | None = None
        self._supply = supply = Supply(lifecycle, connector, health, waiters, self._size_waiters, self._tasks, options)
        self._inventory = supply.inventory
        lenders = [replica._lender for replica in self._replicas]
        self._lags = replica_lags(self, [Replica(it.name, it, it._lender) for it in self._replicas], options)
        self._lender: Lender = Lender(lifecycle, health, waiters, supply, options, lenders)
        self._health_check = HealthCheck(lifecycle, health, supply, self._lender, options)
        self.wait_time: Final = self._lender.wait_time
        self.use_time: Final = self._lender.use_time
        self.create_time: Final = supply.create_time
        note(self)

    def __repr__(self) -> str:
        """Return the name, the state and the numbers of connections; nothing of the address."""
        lifecycle, inventory = self._lifecycle, self._inventory
        opened = "open" if self.healthy else "unhealthy"
        state = "closed" if lifecycle.closed else opened if lifecycle.is_open else "new"
        return f"<ConnectionPool {self.name!r}, {state}, {inventory.in_use} of {len(inventory.slots)} in use>"

    @property
    def min_size(self) -> int:
        """The number of connections that the pool always keeps."""
        return self._supply.min_size

    @property
    def max_size(self) -> int:
        """The highest number of open connections."""
        return self._supply.max_size

    @property
    def healthy(self) -> bool:
        """Whether the server could be reached when the pool last needed it. An unhealthy pool refuses callers."""
        return self._health.error is None

    @property
    def closed(self) -> bool:
        """Whether the pool was closed, and was not opened again."""
        return self._lifecycle.closed

    @property
    def replicas(self) -> "tuple[ConnectionPool, ...]":
        """The pools of the replicas, which are opened and closed with this one."""
        return self._replicas

    async def open(self, timeout: float = 30.0, *, retry: bool = False) -> None:  # noqa: ASYNC109
        """Open `min_size` connections and start housekeeping.

        A closed pool can be opened again, also in another event loop. Its counters and histograms go on. A replica that
        cannot be reached is no error: its pool keeps trying.

        Args:
            timeout: seconds to wait for the connections.
            retry: whether to wait for a server that is still starting or cannot be reached yet. The pool then opens at
                least one connection. An error that waiting cannot fix, such as a wrong password, still ends the wait.

        Raises:
            PoolUnhealthy: if the server refuses three attempts in a row and `retry` does not apply; the pool is closed
                then.
            PoolTimeout: if the connections are not open within `timeout` seconds; the pool is closed then.
            PoolClosed: if the pool is closed meanwhile.
            PoolError: if the pool is open already, or is being closed.
            TypeError, ValueError: if the timeout is not a number of seconds, 0 or more, or `retry` is not a bool; the
                pool can still be opened.
        """
        timeout = checked_seconds("timeout", timeout, zero=True)
        checked_bool("retry", retry)
        self._start()
        self._supply.patient = retry
        with self._lifecycle.changing():
            try:
                await asyncio.gather(
                    self.warm(max(self.min_size, int(retry)), timeout),
                    *(replica._open_as_replica(timeout) for replica in self._replicas),
                )
            except BaseException:
                await self.close(0)
                raise
            finally:
                self._supply.patient = False

    def _start(self) -> None:
        self._lifecycle.start(remains=bool(self._inventory.size or len(self._tasks)))
        self._supply.restart()
        self._lender.restart()
        self._housekeeper = self._tasks.start(self._keep_house(), name=f"acgsperf pool {self.name}")

    async def _open_as_replica(self, timeout: float) -> None:  # noqa: ASYNC109
        self._start()
        try:
            await self.warm(max(self.min_size, 1), min(timeout, self.options.connect_timeout))
        except PoolError as error:
            if self.healthy and not self._inventory.slots:
                self._supply.mark_unhealthy(error)

    async def __aenter__(self) -> Self:
        """Open the pool."""
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool. After an error, it does not wait for borrowers."""
        await self.close(10.0 if error is None else 0.0)

    def acquire(self, timeout: float | None = None, *, readonly: bool = False) -> Acquire:
        """Borrow a connection: `async with pool.acquire() as connection`, or `await pool.acquire()` and `release`.

        Callers are served in the order in which they came. An idle connection is lent without a turn of the event loop.

        Args:
            timeout: seconds to wait for a connection, 0 or more; None for the `timeout` of the pool. With 0, only a
                connection that needs no check is lent.
            readonly: whether a replica may serve the caller. The pool picks two healthy replicas at random and takes
                the better one, by requests in flight and recent latency. The primary serves the caller if no replica
                is healthy, or if the replica has no connection for half the timeout.

        Raises:
            PoolTimeout: if no connection became free in time.
            PoolSaturated: at once, if `max_waiting` callers wait for borrowers to return a connection.
            PoolUnhealthy: at once, while the server cannot be reached.
            PoolClosed: if the pool is not open.
            PoolError: in another event loop, or in a process that was forked since the pool was opened.
            TypeError, ValueError: at once, if the timeout is not a number of seconds, 0 or more.
        """
        timeout = self.options.timeout if timeout is None else checked_seconds("timeout", timeout, zero=True)
        borrower = call_stack(1) if self.options.leak_threshold is not None else None
        return Acquire(self._lender, timeout, readonly, borrower)

    async def release(self, connection: "Lease") -> None:
        """Return a connection; ends when its session is reset or `reset_timeout` has passed.

        If the caller is cancelled, the reset goes on in the background. A connection that was released before, or was
        closed, is ignored.

        Raises:
            ValueError: if the connection is not from this pool.
        """
        if (error := sys.exception()) is not None:
            self._lender.note_error(connection, error)
        reset = self._lender.take_back(connection)
        if reset is not None:
            await reset

    async def warm(self, n: int, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        """Return when at least `n` connections are open. Surplus ones are closed after `max_idle`.

        Raises:
            ValueError: if `n` is negative or more than `max_size`.
            TypeError: if `n` is not an integer, or `timeout` not a number.
            PoolTimeout: if they are not open within `timeout` seconds.
            PoolUnhealthy, PoolClosed: as `acquire`.
        """
        n, timeout = checked_int("n", n), checked_seconds("timeout", timeout, zero=True)
        if not 0 <= n <= self.max_size:
            raise ValueError(f"n must be between 0 and max_size ({self.max_size}), got {n}")
        self._lifecycle.refuse_unless_open()
        if not self.healthy:
            raise self._health.unhealthy()
        if len(self._inventory.slots) >= n:
            return
        try:
            await self._size_waiters.wait(n, timeout, begin=self._supply.replenish)
        except TimeoutError:
            size = len(self._inventory.slots)
            text = f"pool {self.name!r}: only {size} of {n} connections were open after {timeout} s"
            failure = self._health.last_failure
            if failure is not None:
                text += f": {self._health.describe(failure)}"
            raise PoolTimeout(text) from failure

    def resize(self, min_size: int, max_size: int) -> None:
        """Change the bounds at once.

        Surplus idle connections are closed now, lent ones when they come back. Missing ones are opened in the
        background.

        Raises:
            ValueError: unless 0 <= min_size <= max_size and max_size >= 1.
            TypeError: if a size is not an integer.
        """
        min_size, max_size = checked_sizes(min_size, max_size)
        self._lifecycle.refuse_elsewhere()
        self._supply.resize(min_size, max_size)

    def drain(self) -> None:
        """Replace every connection, for example after a failover: idle ones now, lent ones when they come back."""
        self._lifecycle.refuse_elsewhere()
        self._supply.drain()

    def _is_leaving(self) -> bool:
        return self._supply.roles.leaving

    def stats(self) -> PoolStats:
        """Return the state and the counters of the pool, without its replicas."""
        return collect_stats(self._supply, self._lender, self._waiters, self._health)

    async def health(self) -> PoolHealth:
        """Ask the server with an idle connection, within `check_timeout`, or with a new one, within `connect_timeout`.

        If the pool has neither, or the server has no room for another session, the pool is as healthy as before. If the
        server does not answer, the pool closes its idle connections and refuses callers until it can connect again. It
        keeps trying by itself.
        """
        self._lifecycle.refuse_elsewhere()
        return await self._health_check.run()

    def optimize(self, utilization: float = TARGET_UTILIZATION) -> PoolOptimization:
        """Adapt the size of the pool to recent demand, between `min_size` and `max_size`.

        Demand is the highest number of connections in use and waiting callers at once since the last call. The pool
        then keeps enough connections that demand is 80 % of their number. Missing ones are opened in the background,
        surplus idle ones are closed.

        Args:
            utilization: the share of its connections that the pool is to use at that demand, at most 1.

        Raises:
            TypeError, ValueError: if it is not a number greater than 0 and at most 1.
        """
        utilization = checked_share("utilization", utilization)
        self._lifecycle.refuse_elsewhere()
        supply = self._supply
        old = supply.target_size
        if not self._lifecycle.is_open:
            return PoolOptimization(0, 0.0, old, old, 0, 0)
        demand = self._lender.restart_peak()
        size = len(self._inventory.slots)
        closed = supply.aim_at(math.ceil(demand / utilization))
        missing = max(0, supply.target_size - size)
        return PoolOptimization(demand, demand / max(old, 1), old, supply.target_size, missing, closed)

    def maintain(self) -> None:
        """Do one round of housekeeping. The pool does it every `housekeeping_interval`.

        Replaces connections that are lost or near the end of their lifetime, closes those that nobody needs, reports
        leaks and opens missing connections.
        """
        self._lifecycle.refuse_elsewhere()
        now = self.options.clock()
        self._supply.retire_old(now)
        self._lender.report_leaks(now)
        self._lender.forget_closed()
        self._supply.replenish()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(self.options.housekeeping_interval)
            try:
                self.maintain()
                if self._lags is not None:
                    await self._lags.measure()
            except Exception:
                interval = self.options.housekeeping_interval
                _log.exception("pool %r: housekeeping failed; trying again in %g s", self.name, interval)

    async def close(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Refuse new callers, wait for borrowers to return their connections, and close them.

        Waiting callers get `PoolClosed`. If connections are still lent after `timeout` seconds, their queries are
        cancelled on the server, and they are closed within `close_timeout`. Their borrowers get an error of asyncpg. A
        pool may be closed again, for example if the first call was cancelled.

        Raises:
            TypeError, ValueError: if the timeout is not a number of seconds, 0 or more; the pool stays open.
        """
        timeout = checked_seconds("timeout", timeout, zero=True)
        self._lifecycle.refuse_elsewhere()
        self._lifecycle.stop()
        with read_at_end(self), self._lifecycle.changing():
            self._supply.refuse_all(lambda: PoolClosed(f"pool {self.name!r} is closed"))
            self._health.cancel_retry()
            if self._housekeeper is not None:
                self._housekeeper.cancel()
            self._inventory.retire_idle(CloseReason.CLOSED)
            async with asyncio.TaskGroup() as group:
                for replica in self._replicas:
                    group.create_task(replica.close(timeout))
                await close_connections(self.name, self._supply, self._tasks, timeout)
