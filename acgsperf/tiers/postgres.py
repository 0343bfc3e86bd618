"""L3: entries in a table of PostgreSQL, over a pool of its own whose sessions are not reset.

A reset after each use takes half of the throughput, and is for callers who change a session; nobody but this module
ever sees these. An entry is one row: its envelope, when it expires, and the xxh3-64 of its tags, by which a GIN index
finds them; two tags with one hash cost a miss. A write is acknowledged after its commit.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from random import uniform
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
from xxhash import xxh3_64_intdigest

from acgsperf._native import envelope_format as envelope
from acgsperf.pool import ConnectionPool
from acgsperf.pool.server_address import parsed_address
from acgsperf.tiers.base import Entry
from acgsperf.tiers.server import DEADLINE_S, MAX_VALUE_BYTES, ServerTier, WriteBatch

__all__ = ["PostgresTier"]

SCHEMA_VERSION: Final = 1
ROWS_A_STATEMENT: Final = 1_000
EXPIRY_INTERVAL_S: Final = 60.0
MAX_CONNECTIONS: Final = 6

# The version is in the table's comment, where a dump keeps it.
_COMMENT: Final = "acgsperf cache, schema {version}"
_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    namespace text NOT NULL,
    key bytea NOT NULL,
    value bytea NOT NULL,
    expires_at double precision,
    tags bigint[] NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX IF NOT EXISTS {table}_expires_at ON {table} (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS {table}_tags ON {table} USING gin (tags) WHERE tags <> '{{}}';
COMMENT ON TABLE {table} IS '{comment}';
"""
# The keys are text, for asyncpg takes longer to look at the items of an array than the server to read them: once, in a
# sub-select, for a filter would read them again for each row. What is too large to be read comes back empty.
_SELECT: Final = """
SELECT key, CASE WHEN octet_length(value) <= $3 THEN value ELSE '' END
FROM {table} WHERE namespace = $1 AND key = ANY((SELECT $2::text::bytea[])::bytea[])
"""
# In order of keys, so that two processes which write the same keys wait for one another rather than for ever.
_UPSERT: Final = """
INSERT INTO {table} (namespace, key, value, expires_at, tags)
SELECT $1, key, value, expires_at, tags::bigint[]
FROM unnest($2::bytea[], $3::bytea[], $4::double precision[], $5::text[]) AS entry (key, value, expires_at, tags)
ORDER BY key
ON CONFLICT (namespace, key)
DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at, tags = excluded.tags
"""
_DELETE: Final = """
WITH doomed AS (
    SELECT key FROM {table} WHERE namespace = $1 AND key = ANY($2::bytea[]) ORDER BY key FOR UPDATE
)
DELETE FROM {table} USING doomed WHERE namespace = $1 AND {table}.key = doomed.key RETURNING {table}.key
"""
_DELETE_SOME: Final = """
WITH doomed AS (
    SELECT namespace, key FROM {table} WHERE {condition} ORDER BY namespace, key LIMIT {rows} FOR UPDATE
)
DELETE FROM {table} USING doomed WHERE {table}.namespace = doomed.namespace AND {table}.key = doomed.key
"""


class PostgresTier(ServerTier):
    """Entries in a PostgreSQL that processes share. The table and its indexes are made by the tier.

    Args:
        dsn: as asyncpg takes it.
        table: its name: small letters, digits and underscores.
        deadline: seconds after which a caller is answered, whatever the server does.
        max_value_bytes: larger envelopes are neither stored nor read.
        statement_cache_size: 0 behind PgBouncer in transaction mode.
        expiry_interval: seconds between two searches for expired rows.

    Raises:
        ValueError: for a table name or a DSN that cannot be used; the message does not repeat a DSN.
    """

    name = "postgres"

    def __init__(
        self,
        dsn: str,
        *,
        table: str = "acgsperf_cache",
        deadline: float = DEADLINE_S,
        max_value_bytes: int = MAX_VALUE_BYTES,
        statement_cache_size: int = 100,
        expiry_interval: float = EXPIRY_INTERVAL_S,
    ) -> None:
        super().__init__(deadline=deadline, max_value_bytes=max_value_bytes)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,49}", table):
            raise ValueError(f"table must be 1 to 50 small letters, digits and underscores, not {table!r:.80}")
        parts = urlsplit(parsed_address("the DSN", dsn).dsn)
        self._where = f"{parts.hostname or 'a unix socket'}{parts.path}"
        self._dsn = dsn
        self._table = table
        self._statement_cache_size = statement_cache_size
        self._expiry_interval = expiry_interval
        self._pool: ConnectionPool | None = None
        self._ready = False
        self._setting_up = asyncio.Lock()
        self._select, self._upsert, self._delete = (s.format(table=table) for s in (_SELECT, _UPSERT, _DELETE))

    def __repr__(self) -> str:
        return f"PostgresTier({self._where!r}, table={self._table!r})"

    async def invalidate_tag(self, tag: str) -> int | None:
        return await self._delete_all("namespace = $1 AND tags <> '{}' AND tags @> ARRAY[$2::bigint]", _tag_hash(tag))

    async def clear(self) -> int | None:
        return await self._delete_all("namespace = $1")

    async def _delete_all(self, condition: str, *arguments: object) -> int | None:
        self._check_use()
        if not self._may_write(1):
            return None
        await self._all_written()
        deleted = 0
        while True:
            some = await self._guarded(lambda: self._delete_some(condition, self._namespace, *arguments))
            if some is None:
                return None
            deleted += some
            if some < ROWS_A_STATEMENT:
                return deleted

    async def _delete_some(self, condition: str, *arguments: object) -> int:
        statement = _DELETE_SOME.format(table=self._table, condition=condition, rows=ROWS_A_STATEMENT)
        async with self._connection() as connection:
            status: str = await connection.execute(statement, *arguments)
        return int(status.rpartition(" ")[2])

    async def _start(self) -> None:
        self._own(self._expire())
        async with self._connection():
            pass

    async def _stop(self) -> None:
        pool, self._pool, self._ready = self._pool, None, False
        if pool is not None:
            # What was under way has ended or was cancelled; a server that hangs is not waited for.
            await pool.close(0)

    async def close(self) -> None:
        for task in self._tasks:
            if task.get_name() == "expiry":
                task.cancel()
        await super().close()

    def _connection(self) -> "_Connection":
        return _Connection(self)

    async def _set_up(self) -> None:
        async with self._setting_up:
            if self._ready:
                return
            if self._pool is None:
                pool = ConnectionPool(
                    self._dsn,
                    name=f"tier {self._table}",
                    min_size=0,
                    max_size=MAX_CONNECTIONS,
                    reset=False,
                    statement_cache_size=self._statement_cache_size,
                )
                await pool.open()
                self._pool = pool
            async with self._pool.acquire() as connection:
                try:
                    await self._make_table(connection)
                except BaseException:
                    # Before anything else is waited for: a server that hangs would not hear of a rollback.
                    connection.terminate()
                    raise
            self._ready = True

    async def _make_table(self, connection: Any) -> None:
        comment = _COMMENT.format(version=SCHEMA_VERSION)
        await connection.execute("BEGIN")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _tag_hash(f"schema {self._table}"))
        found = await connection.fetchval("SELECT obj_description(to_regclass($1), 'pg_class')", self._table)
        if found is not None and found != comment:
            raise RuntimeError(f"table {self._table} is {found!r}, not {comment!r}")
        if found is None:
            await connection.execute(_CREATE.format(table=self._table, comment=comment))
        await connection.execute("COMMIT")

    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        identities = envelope.identities(keys)
        addresses = envelope.addresses(identities)
        async with self._connection() as connection:
            rows = await connection.fetch(self._select, self._namespace, _array(addresses), self._max_value_bytes)
        # Not `dict(rows)`, which takes twice as long for asyncpg's records.
        blobs = {address: blob for address, blob in rows}  # noqa: C416
        found, _ = self._unseal(map(blobs.get, addresses), identities)
        return found

    async def _write(self, batch: WriteBatch) -> None:
        rows = []
        deletes: dict[bytes, str] = {}
        for key, operation in batch.operations.items():
            identity = envelope.identity(key)
            address = envelope.address(identity)
            if operation is None:
                deletes[address] = key
            else:
                entry, payload = operation
                tags = "{" + ",".join(str(_tag_hash(tag)) for tag in entry.tags) + "}"
                rows.append((address, envelope.seal(entry, identity, payload), entry.kept_until, tags))
        # Each is a transaction of its own: what is acknowledged has been committed, and the one holds no lock while the
        # other waits for one, where two processes could wait for each other.
        async with self._connection() as connection:
            gone = await connection.fetch(self._delete, self._namespace, list(deletes)) if deletes else []
            batch.removed = {deletes[row[0]] for row in gone}
            if rows:
                await connection.execute(self._upsert, self._namespace, *map(list, zip(*rows, strict=True)))
                batch.stored = {key for key, operation in batch.operations.items() if operation is not None}

    async def _describe(self) -> str:
        async with self._connection() as connection:
            return f"PostgreSQL {await connection.fetchval('SHOW server_version')} at {self._where}"

    async def _expire(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.set_name("expiry")
        while True:
            # Not all processes at once.
            await asyncio.sleep(self._expiry_interval * uniform(0.8, 1.2))
            deleted: int | None = ROWS_A_STATEMENT
            while deleted == ROWS_A_STATEMENT and self._may_write(0):
                deleted = await self._guarded(lambda: self._delete_some("expires_at < $1", time.time()))


class _Connection:
    """A connection to a server that has the table. One whose use did not end well is closed."""

    __slots__ = ("_acquire", "_connection", "_tier")

    def __init__(self, tier: PostgresTier) -> None:
        self._tier = tier

    async def __aenter__(self) -> Any:
        tier = self._tier
        if not tier._ready:
            await tier._set_up()
        assert tier._pool is not None
        self._acquire = tier._pool.acquire()
        self._connection = await self._acquire.__aenter__()
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, asyncpg.UndefinedTableError):
            # Somebody has dropped the table; the next call makes it again.
            self._tier._ready = False
        elif error is not None and not isinstance(error, asyncpg.PostgresError):
            self._connection.terminate()
        await self._acquire.__aexit__(kind, error, trace)


def _array(addresses: Sequence[bytes]) -> str:
    """A bytea[] of at least one item, as text."""
    return '{"\\\\x' + '","\\\\x'.join(map(bytes.hex, addresses)) + '"}'


def _tag_hash(tag: str) -> int:
    """A bigint."""
    return xxh3_64_intdigest(envelope.identity(tag)) - (1 << 63)
