"""The connections of a PostgreSQL tier: they create the tables, and measure the server's clock."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final

import asyncpg

from acgsperf.dispatch import LatencyHistogram
from acgsperf.pool import ConnectionPool
from acgsperf.tiers.base import ConnectionStats
from acgsperf.tiers.postgres_schema import TableError, Tables, create
from acgsperf.tiers.server_clock import ServerClock

__all__ = ["Connections", "StandbyError"]

_log: Final = logging.getLogger("acgsperf.tiers")
MAX_CONNECTIONS: Final = 6
_TIME: Final = "SELECT extract(epoch FROM clock_timestamp())::double precision"


class StandbyError(ConnectionError):
    """The server is a standby, although the connection led to a primary when it was opened."""


class Connections:
    """Lends connections of its own pool. The first borrower also creates the tables.

    Args:
        dsn: the DSN of the server.
        tables: are created if they are missing.
        clock: is measured at the beginning, after each new connection, because it may lead to another server, and if
            there was no sample for a minute.
        is_refusal: returns whether the server refuses one statement with this error.
        prepare: is called with a connection when the tables exist.
        options: the options of the pool.

    Attributes:
        pool: None if it is closed.
        failovers: how often a server turned out to have become a standby.
        leads_to_standby: whether the last write was refused by a standby.
        connect_time: how long it took to open a connection, in ns.
    """

    def __init__(
        self,
        dsn: str,
        tables: Tables,
        clock: ServerClock,
        is_refusal: Callable[[Exception], bool],
        prepare: Callable[[Any], Awaitable[None]],
        **options: Any,
    ) -> None:
        self.pool: ConnectionPool | None = None
        self._dsn = dsn
        self._tables = tables
        self._clock = clock
        self._is_refusal = is_refusal
        self._prepare = prepare
        self._options = options
        self._ready = self._clock_is_known = False
        self.leads_to_standby: bool = False
        self.failovers: int = 0
        # Of the pools that were closed.
        self._connect_time: Final = LatencyHistogram()
        self._failed_connects = 0
        self._setting_up = asyncio.Lock()

    def open(self) -> None:
        """Bind to the running event loop."""
        # A lock belongs to the event loop in which it was first waited for.
        self._setting_up = asyncio.Lock()

    async def close(self) -> None:
        """Close the pool without waiting for a server that hangs. Call it when no call is in flight."""
        pool, self.pool, self._ready = self.pool, None, False
        if pool is not None:
            # Before any await, so that no count decreases meanwhile.
            self._connect_time.merge(pool.create_time)
            self._failed_connects += pool.stats().failed_connects
            await pool.close(0)

    @property
    def connect_time(self) -> LatencyHistogram:
        if self.pool is None:
            return self._connect_time
        total = LatencyHistogram()
        total.merge(self._connect_time)
        total.merge(self.pool.create_time)
        return total

    def stats(self) -> ConnectionStats:
        """Return the open connections, and the counts so far."""
        now = None if self.pool is None else self.pool.stats()
        created = self.connect_time.snapshot()
        size, failed = (0, 0) if now is None else (now.size, now.failed_connects)
        return ConnectionStats(size, created.count, self._failed_connects + failed, created)

    def borrow(self) -> "_Loan":
        """Return a context manager that lends a connection to a server that has the tables."""
        return _Loan(self)

    async def check_role(self, connection: Any) -> None:
        """Ask for the role of a server that refuses to write. A pooler may lead a connection to another server.

        Raises:
            StandbyError: if it is a standby. The connection is closed when the exception leaves the loan.
        """
        if not await connection.fetchval("SELECT pg_is_in_recovery()"):
            # The server is read-only by its settings. What it has is up to date.
            return
        if self.pool is not None and not self.leads_to_standby:
            self.failovers += 1
            self.leads_to_standby = True
            _log.warning("%s: the server is a standby now; connecting again", self.pool.name)
        raise StandbyError("the server is a standby")

    async def _set_up(self) -> None:
        async with self._setting_up:
            if self._ready:
                return
            if self.pool is None:
                # A reset after each use would halve the throughput, and only this tier uses these sessions.
                pool = ConnectionPool(
                    self._dsn,
                    name=f"tier {self._tables.table}",
                    min_size=0,
                    max_size=MAX_CONNECTIONS,
                    reset=False,
                    init=self._note_connection,
                    **self._options,
                )
                await pool.open()
                self.pool = pool
            async with self.pool.acquire() as connection:
                try:
                    await create(connection, self._tables)
                    await self._prepare(connection)
                except asyncpg.PostgresError as error:
                    connection.terminate()
                    if self._is_refusal(error):
                        raise TableError(f"table {self._tables.entries} cannot be created: {error}") from error
                    raise
                except BaseException:
                    # Without a rollback: a server that hangs would not answer it.
                    connection.terminate()
                    raise
            self._ready = True

    async def _note_connection(self, connection: Any) -> None:
        self._clock_is_known = False

    async def _measure_clock(self, connection: Any) -> None:
        # The first call also prepares the statement, which takes a round trip of its own.
        for _ in range(2):
            sent = time.monotonic()
            server_time = await connection.fetchval(_TIME)
            self._clock.measured(sent, time.monotonic(), server_time)
        self._clock_is_known = True


class _Loan:
    """Lends a connection for an `async with`. If its use fails, the connection is closed."""

    __slots__ = ("_acquire", "_connection", "_owner")

    def __init__(self, owner: Connections) -> None:
        self._owner = owner

    async def __aenter__(self) -> Any:
        owner = self._owner
        if not owner._ready:
            await owner._set_up()
        assert owner.pool is not None
        self._acquire = owner.pool.acquire()
        self._connection = await self._acquire.__aenter__()
        if not owner._clock_is_known or owner._clock.is_due():
            try:
                await owner._measure_clock(self._connection)
            except BaseException as error:
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, asyncpg.UndefinedTableError):
            # The table was dropped; the next call creates it again.
            self._owner._ready = False
        elif error is not None and not isinstance(error, asyncpg.PostgresError):
            self._connection.terminate()
        await self._acquire.__aexit__(kind, error, trace)
