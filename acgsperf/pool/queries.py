"""Shortcuts that borrow a connection for one query or one transaction."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from asyncpg.exceptions import ReadOnlySQLTransactionError

from acgsperf.pool.acquire import Acquire

if TYPE_CHECKING:
    import asyncpg

    from acgsperf.pool.slot import Lease

    Isolation = Literal["read_uncommitted", "read_committed", "repeatable_read", "serializable"]


class Queries(ABC):
    """The methods of a pool that run one query. All of them use `acquire`.

    Each call borrows a connection, waits for it as `acquire()` does, runs the query and returns the connection. The
    `timeout` is that of the query, as in asyncpg; None means the `command_timeout` of the pool's connections. With
    `readonly=True`, a replica may serve the call.

    If the server refuses a query because it has become read-only, nothing was carried out: `fetch`, `fetchrow`,
    `fetchval` and `execute` run it once more over another connection.

    Raises:
        PoolError: as `acquire`.
        TimeoutError: if the query takes longer than its timeout.
    """

    __slots__ = ()

    @abstractmethod
    def _is_leaving(self) -> bool:
        """Return whether the server has just refused to write because it is read-only."""

    @abstractmethod
    def acquire(self, timeout: float | None = None, *, readonly: bool = False) -> Acquire:
        """Borrow a connection."""

    async def fetch(
        self,
        query: str,
        *args: object,
        timeout: float | None = None,  # noqa: ASYNC109
        readonly: bool = False,
    ) -> "list[asyncpg.Record]":
        """Run a query and return all rows."""
        try:
            async with self.acquire(readonly=readonly) as connection:
                return await connection.fetch(query, *args, timeout=timeout)
        except ReadOnlySQLTransactionError:
            if readonly or not self._is_leaving():
                raise
        async with self.acquire() as connection:
            return await connection.fetch(query, *args, timeout=timeout)

    async def fetchrow(
        self,
        query: str,
        *args: object,
        timeout: float | None = None,  # noqa: ASYNC109
        readonly: bool = False,
    ) -> "asyncpg.Record | None":
        """Run a query and return the first row, or None if there is none."""
        try:
            async with self.acquire(readonly=readonly) as connection:
                return await connection.fetchrow(query, *args, timeout=timeout)
        except ReadOnlySQLTransactionError:
            if readonly or not self._is_leaving():
                raise
        async with self.acquire() as connection:
            return await connection.fetchrow(query, *args, timeout=timeout)

    async def fetchval(
        self,
        query: str,
        *args: object,
        column: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109
        readonly: bool = False,
    ) -> Any:
        """Run a query and return one column of the first row, or None if there is no row."""
        try:
            async with self.acquire(readonly=readonly) as connection:
                return await connection.fetchval(query, *args, column=column, timeout=timeout)
        except ReadOnlySQLTransactionError:
            if readonly or not self._is_leaving():
                raise
        async with self.acquire() as connection:
            return await connection.fetchval(query, *args, column=column, timeout=timeout)

    async def execute(
        self,
        query: str,
        *args: object,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> str:
        """Run a command, or several without arguments, and return the status of the last one, such as `INSERT 0 1`."""
        try:
            async with self.acquire() as connection:
                return await connection.execute(query, *args, timeout=timeout)
        except ReadOnlySQLTransactionError:
            if not self._is_leaving():
                raise
        async with self.acquire() as connection:
            return await connection.execute(query, *args, timeout=timeout)

    async def executemany(
        self,
        command: str,
        args: Iterable[Sequence[object]],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        """Run a command once for each sequence of arguments, in one transaction."""
        try:
            async with self.acquire() as connection:
                return await connection.executemany(command, args, timeout=timeout)
        except ReadOnlySQLTransactionError:
            # An iterator has been read already.
            if not self._is_leaving() or iter(args) is args:
                raise
        async with self.acquire() as connection:
            return await connection.executemany(command, args, timeout=timeout)

    @asynccontextmanager
    async def transaction(
        self,
        *,
        isolation: "Isolation | None" = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> "AsyncIterator[Lease]":
        """Borrow a connection and begin a transaction: `async with pool.transaction() as connection`.

        The transaction is committed when the block ends, and rolled back if it ends with an error.

        Args:
            isolation: `read_uncommitted`, `read_committed`, `repeatable_read` or `serializable`; None for the default
                of the server.
            readonly: whether the transaction only reads. A replica may serve it then.
            deferrable: whether a serializable transaction that only reads may be delayed by the server.
        """
        async with (
            self.acquire(readonly=readonly) as connection,
            connection.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable),
        ):
            yield connection
