"""A backplane in a PostgreSQL database: a table of records, and NOTIFY."""

import asyncio
import re
from collections.abc import Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from acgsperf.backplane.base import TIMEOUT_S
from acgsperf.backplane.postgres_reader import PostgresReader
from acgsperf.backplane.postgres_watch import Watch, install, prepare, remove
from acgsperf.backplane.receiver import Receiver
from acgsperf.backplane.server import ServerBackplane
from acgsperf.errors import BackplaneError
from acgsperf.pool.server_address import parsed_address
from acgsperf.tiers.base import Tier
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.postgres_schema import Tables
from acgsperf.tiers.records import Record, packed
from acgsperf.timeouts import time_limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["PostgresBackplane"]

_CONNECT_TIMEOUT_S: Final = 1.0

# One reader for each event loop and database. Only the thread of an event loop uses its readers.
_readers: Final[dict[tuple[asyncio.AbstractEventLoop, str], PostgresReader]] = {}


class PostgresBackplane(ServerBackplane):
    """Carries records of writes between processes over a table in PostgreSQL.

    All caches of an event loop share one connection to a database. It must lead directly to PostgreSQL: behind a pooler
    such as PgBouncer the backplane logs a warning and stays off. Records are kept for 60 s. A process that was
    disconnected for longer verifies its L1.

    Args:
        dsn: `postgresql://` URL. It should be the database of L3: then a write and its record are one transaction.
        table: the name of the cache's table, as for `PostgresTier`. The records are in `<table>_v2_log`, which is
            created if it is missing.
        timeout: the seconds after which a process that gets no records notices it; L1 does not answer then.

    Raises:
        ValueError: if the table name or the DSN is not valid. The message does not repeat the DSN, because it may
            contain a password.
    """

    name = "postgres"

    def __init__(self, dsn: str, *, table: str = "acgsperf_cache", timeout: float = TIMEOUT_S) -> None:
        super().__init__(timeout)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,49}", table):
            raise ValueError(f"table must be 1 to 50 lower-case letters, digits and underscores, got {table!r:.80}")
        address = parsed_address("the DSN", dsn)
        self._where = address.full_name
        self._connect_timeout = address.connect_timeout or max(self.timeout, _CONNECT_TIMEOUT_S)
        self._dsn = dsn
        self._tables = Tables(table)
        self._reader: PostgresReader | None = None

    @classmethod
    def beside(cls, tier: PostgresTier, *, timeout: float = TIMEOUT_S) -> "PostgresBackplane":
        """Return a backplane in the database of a tier."""
        return cls(tier._dsn, table=tier._tables.table, timeout=timeout)

    def __repr__(self) -> str:
        return f"PostgresBackplane({self._where!r}, table={self._tables.table!r})"

    def shares_server_with(self, tier: Tier) -> bool:
        if not isinstance(tier, PostgresTier):
            return False
        return (tier._dsn, tier._tables.table) == (self._dsn, self._tables.table)

    async def watch(
        self,
        table: str,
        tags: Sequence[str],
        *,
        coarse: str | None = None,
        coarse_on: Collection[str] = (),
    ) -> bool:
        """Install triggers: rows that change in a table of the application invalidate tags, no matter who
        changes them.

        The trigger inserts a note into the table `<table>_v2_changes`, in the transaction of the writer. One of the
        processes that follow this log reads that table every 10 ms, invalidates the tags in L3, and adds a record
        without a writer to the log. Each cache that gets the record drops the entries with these tags from L1, and
        invalidates the tags in its tiers. So a change takes effect about 10 ms after its transaction has committed. If
        no cache with this `table` is open, the note stays until one opens.

        The triggers stay until `unwatch`. They run once for each statement, and never make a write fail: if a column
        has been dropped or renamed, they invalidate the coarse tag and warn the writer. They take about 20 us for each
        statement, or 40 us if a template has a column. PostgreSQL then also keeps the changed rows until the end of the
        statement, which takes 0.2 to 0.6 us for each row. A change that names a partition or an inheriting table, and a
        change by logical replication, fire no triggers.

        Args:
            table: the table, with its schema if it is not in the search path.
            tags: templates with names of columns in braces, such as `"user:{id}"`. For an update, the tags of the row
                before and after are invalidated. The text of a column is what PostgreSQL prints for the writer; NULL is
                empty text. If no template has a column, a statement costs the same for any number of rows, and
                invalidates the tags even if it changes no row.
            coarse: what is invalidated instead if a statement changes more than 200 rows, or truncates the table; by
                default `"table:"` and the name of the table. Give entries this tag as well.
            coarse_on: any of `"insert"`, `"update"` and `"delete"`: these statements always invalidate the coarse tag.
                They cost the same for any number of rows.

        Returns:
            Whether the triggers were installed now; False if they were there.

        Raises:
            BackplaneError: if the table or a column does not exist, the user lacks a right (TRIGGER on the table,
                CREATE in the schema of the cache), or the table is locked for longer than 5 s.
            TierError: if the backplane is not open.
            ValueError: if an argument is not valid.
        """
        self._check_use()
        watch = Watch.of(table, tags, coarse, coarse_on)
        async with self._own_connection() as connection:
            await prepare(connection, self._tables)
            installed = await install(connection, self._tables, self._namespace, watch)
        if self._reader is not None:
            self._reader.look_again()
        return installed

    async def unwatch(self, table: str) -> bool:
        """Remove what `watch` has installed for this namespace. Return False if there was nothing.

        Raises:
            BackplaneError: if the user lacks a right, or the table is locked for longer than 5 s.
            TierError: if the backplane is not open.
        """
        self._check_use()
        async with self._own_connection() as connection:
            return await remove(connection, self._tables, self._namespace, table)

    @asynccontextmanager
    async def _own_connection(self) -> "AsyncIterator[Any]":
        assert self._reader is not None
        try:
            async with self._reader.connect() as connection:
                yield connection
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise BackplaneError(f"the watch cannot be changed: {self._reader.described(error)}") from error

    async def _join(self, receiver: Receiver) -> None:
        place = asyncio.get_running_loop(), self._dsn
        reader = _readers.get(place)
        if reader is None:
            reader = _readers[place] = PostgresReader(self._dsn, self._connect_timeout)
        self._reader = reader
        await reader.join(self._tables.table, receiver)

    async def _leave(self, receiver: Receiver) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        place = asyncio.get_running_loop(), self._dsn

        def forget() -> None:
            if _readers.get(place) is reader:
                del _readers[place]

        await reader.leave(self._tables.table, receiver, forget)

    async def _publish(self, records: Sequence[Record]) -> int:
        reader = self._reader
        assert reader is not None
        blobs = [packed(record, record.writer, record.sent_us) for record in records]
        async with time_limit(self.timeout):
            return await reader.publish(self._tables.table, self._namespace, blobs)

    def _now_us(self) -> int:
        assert self._reader is not None
        return self._reader.clock.now_us()
