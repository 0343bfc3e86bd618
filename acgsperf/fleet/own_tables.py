"""Tables in PostgreSQL that belong to the package. The first write creates them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from xxhash import xxh3_64_intdigest

from acgsperf.errors import PoolError
from acgsperf.pool import ConnectionPool
from acgsperf.pool.server_address import ServerAddress, of_primary

__all__ = ["OwnTables"]

# A connection is needed once in half a minute or less often. In between it does not stay open.
_MAX_IDLE_S: Final = 5.0
_MAX_MESSAGE_BYTES: Final = 1 << 20


class OwnTables:
    """A connection pool, and tables that are created before the first write, also after somebody has dropped them.

    Args:
        dsn: as for `PostgresTier`.
        address: the same, parsed.
        name: that of the pool, for messages.
        create: the statements that create the tables; they change nothing if the tables exist.
        tables: what `create` creates.
        connections: at most so many.
        statement_cache_size: number of prepared statements for each connection; must be 0 for PgBouncer in transaction
            mode.

    Attributes:
        lock: number of an advisory lock. Who holds it creates the tables, and may use it to work alone on their rows.
    """

    # What the calls raise if the server cannot be reached or refuses them.
    ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, PoolError, OSError)

    def __init__(
        self,
        dsn: str,
        address: ServerAddress,
        *,
        name: str,
        create: str,
        tables: tuple[str, ...],
        connections: int,
        statement_cache_size: int,
    ) -> None:
        self.lock: Final = xxh3_64_intdigest(f"schema {tables[0]}".encode()) - (1 << 63)
        self._create = create
        self._tables = tables
        self._exist = False
        target: dict[str, Any] = {**of_primary(address)}
        self._pool = ConnectionPool(
            dsn,
            name=name,
            min_size=0,
            max_size=connections,
            max_idle=_MAX_IDLE_S,
            # Only the package uses these sessions.
            reset=False,
            max_message_bytes=_MAX_MESSAGE_BYTES,
            statement_cache_size=statement_cache_size,
            **target,
        )

    async def open(self) -> None:
        """Bind to the running event loop. The first call connects to the server."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        self._exist = False
        await self._pool.close(0)

    async def fetch(self, statement: str, *arguments: object) -> list[Any]:
        """Run a statement that reads or removes. Without the tables, there is nothing."""
        try:
            return await self._pool.fetch(statement, *arguments)
        except asyncpg.UndefinedTableError:
            self._exist = False
            return []

    async def change(self, statement: str, *arguments: object) -> list[Any]:
        """Run a statement that writes, and create the tables first if they are missing."""
        async with self.connection() as connection:
            rows: list[Any] = await connection.fetch(statement, *arguments)
            return rows

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Lend a connection for statements that write, and create the tables first if they are missing."""
        async with self._pool.acquire() as connection:
            if not self._exist:
                await self._ensure(connection)
            try:
                yield connection
            except asyncpg.UndefinedTableError:
                # They were dropped; the next call creates them again.
                self._exist = False
                raise

    async def _ensure(self, connection: Any) -> None:
        found = "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name"
        if not await connection.fetchval(found, self._tables):
            async with connection.transaction():
                # One process creates the tables, and the others wait.
                await connection.execute("SELECT pg_advisory_xact_lock($1)", self.lock)
                await connection.execute(self._create)
        self._exist = True
