"""The origin of a replay: a table in PostgreSQL with a value for each distinct request."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from acgsperf.errors import AcgsperfError, PoolError
from acgsperf.fingerprint import fingerprint
from acgsperf.pool import ConnectionPool, PoolManager

__all__ = ["Origin", "WrongValueError", "as_failure", "connected", "value_of", "version_of"]

_POOL_SIZE: Final = 8
# asyncpg raises an internal error when a connection breaks at certain moments.
_ERRORS: Final = (
    OSError,
    PoolError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# The errors that a restarting server causes.
_PASSING_ERRORS: Final = (
    OSError,
    PoolError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_RETRY_S: Final = 0.05


class WrongValueError(AcgsperfError):
    """A request was answered with the value of another request."""


def value_of(address: str, version: int = 0) -> str:
    """Return the value of a request: it names its request and its version."""
    return f"value of {address}, version {version}"


def version_of(address: str, value: object) -> int | None:
    """Return the version of a value; None if it is not a value of this request."""
    start = value_of(address, 0)[:-1]
    if not isinstance(value, str) or not value.startswith(start):
        return None
    version = value[len(start) :]
    return int(version) if version.isdecimal() else None


class Origin:
    """Reads and changes the values.

    Args:
        pool: connections to the server.
        table: where the values are.
        patience: the seconds for which the server may be unreachable.

    Attributes:
        loads: values that were read.
    """

    def __init__(self, pool: ConnectionPool, table: str, patience: float) -> None:
        self._pool = pool
        self._table = table
        self._patience = patience
        self.loads: int = 0

    async def fill(self, addresses: Iterable[str]) -> None:
        """Create the table, with the first version of each value."""
        async with self._pool.acquire() as connection:
            try:
                # Not an unlogged table: a server that is killed must still have it after its restart.
                await connection.execute(f"CREATE TABLE {self._table} (address text PRIMARY KEY, value text NOT NULL)")
                rows = ((address, value_of(address)) for address in addresses)
                await connection.copy_records_to_table(self._table, records=rows)
            except asyncio.CancelledError:
                # The server may still be creating the table. Only the same session is sure to find it.
                await connection.execute(f"DROP TABLE IF EXISTS {self._table}")
                raise

    async def drop(self, *others: str) -> None:
        """Drop the table, and other tables."""
        async with self._pool.acquire() as connection:
            await connection.execute(f"DROP TABLE IF EXISTS {', '.join((self._table, *others))}")

    async def __call__(self, request: Mapping[str, Any]) -> str:
        """Read the value of a request: the handler of the service."""
        address = fingerprint(request)
        value: str | None = await self._patiently(f"SELECT value FROM {self._table} WHERE address = $1", address)
        if value is None:
            raise WrongValueError(f"the origin has no row for {address}")
        self.loads += 1
        return value

    async def write(self, address: str, version: int) -> None:
        """Change the value of a request to another version."""
        update = f"UPDATE {self._table} SET value = $2 WHERE address = $1"
        await self._patiently(update, address, value_of(address, version))

    async def _patiently(self, statement: str, *arguments: str) -> Any:
        """Run a statement. While the server is unreachable, try again for `patience` seconds."""
        give_up = time.monotonic() + self._patience
        while True:
            try:
                async with self._pool.acquire() as connection:
                    return await connection.fetchval(statement, *arguments)
            except _PASSING_ERRORS:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(_RETRY_S)


@asynccontextmanager
async def connected(
    database_url: str, table: str, *, concurrency: int, patience: float
) -> AsyncIterator[tuple[Origin, PoolManager]]:
    """Connect to the origin of a replay with `concurrency` requests in flight."""
    async with PoolManager() as pools:
        size = min(concurrency, _POOL_SIZE)
        # Nothing here changes a session, so nothing has to be reset.
        pool = await pools.create("origin", database_url, min_size=size, max_size=size, reset=False)
        yield Origin(pool, table, patience), pools


def as_failure(error: BaseException) -> BaseException:
    """Return what a replay raises because of an error: one error, which names PostgreSQL if that is the cause."""
    while isinstance(error, BaseExceptionGroup):
        # Workers that fail together fail for the same reason.
        error = error.exceptions[0]
    if isinstance(error, PoolError):
        return AcgsperfError(f"PostgreSQL cannot be reached: {error}")
    if isinstance(error, _ERRORS):
        return AcgsperfError(f"PostgreSQL failed: {str(error) or type(error).__name__}")
    return error
