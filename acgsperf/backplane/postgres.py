"""A backplane in a PostgreSQL database: a table of records, and NOTIFY."""

import asyncio
import re
from collections.abc import Sequence
from typing import Final

from acgsperf.backplane.base import TIMEOUT_S
from acgsperf.backplane.postgres_reader import PostgresReader
from acgsperf.backplane.receiver import Receiver
from acgsperf.backplane.server import ServerBackplane
from acgsperf.pool.server_address import parsed_address
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.records import Record, packed

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
        self._connect_timeout = parsed_address("the DSN", dsn).connect_timeout or max(self.timeout, _CONNECT_TIMEOUT_S)
        self._dsn = dsn
        self._table = table
        self._reader: PostgresReader | None = None

    @classmethod
    def beside(cls, tier: PostgresTier, *, timeout: float = TIMEOUT_S) -> "PostgresBackplane":
        """Return a backplane in the database of a tier."""
        return cls(tier._dsn, table=tier._tables.table, timeout=timeout)

    def __repr__(self) -> str:
        return f"PostgresBackplane(table={self._table!r})"

    async def _join(self, receiver: Receiver) -> None:
        place = asyncio.get_running_loop(), self._dsn
        reader = _readers.get(place)
        if reader is None:
            reader = _readers[place] = PostgresReader(self._dsn, self._connect_timeout)
        self._reader = reader
        await reader.join(self._table, receiver)

    async def _leave(self, receiver: Receiver) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        if reader.is_only(receiver):
            # Before the reader is closed, so that a cache that opens meanwhile gets a new one.
            _readers.pop((asyncio.get_running_loop(), self._dsn), None)
        await reader.leave(self._table, receiver)

    async def _publish(self, records: Sequence[Record]) -> int:
        reader = self._reader
        assert reader is not None
        blobs = [packed(record, record.writer, record.sent_us) for record in records]
        async with asyncio.timeout(self.timeout):
            return await reader.publish(self._table, self._namespace, blobs)

    def _now_us(self) -> int:
        assert self._reader is not None
        return self._reader.clock.now_us()
