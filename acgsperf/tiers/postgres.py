"""L3: entries in a PostgreSQL table, over a connection pool of the tier's own.

The pool does not reset sessions after use: a reset halves the throughput, and only this module uses these sessions.
An entry is one row: its envelope, its expiry time, and the xxh3-64 hashes of its tags, which have a GIN index. If two
tags have the same hash, invalidating one also deletes the entries of the other. A write is acknowledged after its
commit.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Sequence
from random import uniform
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import asyncpg
from xxhash import xxh3_64_intdigest

from acgsperf._native import envelope_format as envelope
from acgsperf._native.arguments import checked_at_least
from acgsperf.pool import ConnectionPool
from acgsperf.pool.server_address import parsed_address
from acgsperf.tiers.base import Entry
from acgsperf.tiers.server import DEADLINE_S, MAX_VALUE_BYTES, ServerTier, check_tag, seconds
from acgsperf.tiers.write_batches import WriteBatch

__all__ = ["PostgresTier"]

_T = TypeVar("_T")

SCHEMA_VERSION: Final = 1
ROWS_A_STATEMENT: Final = 1_000
EXPIRY_INTERVAL_S: Final = 60.0
MAX_CONNECTIONS: Final = 6
_CONNECT_TIMEOUT_S: Final = 1.0

# The schema version is in the table's comment, so that a dump keeps it.
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
# The keys travel as one text, because asyncpg needs longer to encode an array than the server to parse its text. A
# sub-select parses it once; a filter would parse it again for each row. Values that are too large come back empty.
_SELECT: Final = """
SELECT key, CASE WHEN octet_length(value) <= $3 THEN value ELSE '' END
FROM {table} WHERE namespace = $1 AND key = ANY((SELECT $2::text::bytea[])::bytea[])
"""
# Ordered by key, so that two processes that write the same keys wait for each other and never deadlock.
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


# No connection, no login, no database, too many connections, shutting down: the SQLSTATE concerns all calls.
_REFUSES_ALL: Final = ("08", "28", "3D", "53300", "57P")


class TableError(Exception):
    """The table cannot be used or created. This concerns all calls."""


class PostgresTier(ServerTier):
    """Keeps entries in a PostgreSQL table that processes share. The tier creates the table and its indexes.

    Args:
        dsn: `postgresql://` URL, as asyncpg accepts it.
        table: name of the table: lower-case letters, digits and underscores.
        deadline: seconds after which a call returns, even if the server does not answer.
        max_value_bytes: larger envelopes are neither stored nor read.
        statement_cache_size: number of prepared statements for each connection; must be 0 for PgBouncer in transaction
            mode.
        expiry_interval: seconds between two searches for expired rows.

    Raises:
        ValueError: if the table name or the DSN is not valid. The message does not repeat the DSN, because it may
            contain a password.
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
        self._expiry_interval = seconds("expiry_interval", expiry_interval)
        self._statement_cache_size = checked_at_least("statement_cache_size", statement_cache_size, 0)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,49}", table):
            raise ValueError(f"table must be 1 to 50 lower-case letters, digits and underscores, got {table!r:.80}")
        address = parsed_address("the DSN", dsn)
        parts = urlsplit(address.dsn)
        where = f"{parts.hostname or 'a unix socket'}{parts.path}"
        super().__init__(where, deadline=deadline, max_value_bytes=max_value_bytes)
        self._dsn = dsn
        self._table = table
        # While an attempt waits for a silent server, the pool starts no other.
        self._connect_timeout = address.connect_timeout or max(self.deadline, _CONNECT_TIMEOUT_S)
        self._pool: ConnectionPool | None = None
        self._ready = False
        self._setting_up = asyncio.Lock()
        self._select, self._upsert, self._delete = (s.format(table=table) for s in (_SELECT, _UPSERT, _DELETE))

    def __repr__(self) -> str:
        return f"PostgresTier({self._where!r}, table={self._table!r})"

    async def invalidate_tag(self, tag: str) -> int | None:
        check_tag(tag)
        return await self._delete_all("namespace = $1 AND tags <> '{}' AND tags @> ARRAY[$2::bigint]", _tag_hash(tag))

    async def clear(self) -> int | None:
        return await self._delete_all("namespace = $1")

    async def _delete_all(self, condition: str, *arguments: object) -> int | None:
        self._check_use()
        if not self._calls.allow(1):
            return None
        await self._writes.wait_for_all()
        deleted = 0
        while True:
            some = await self._calls.run(lambda: self._delete_some(condition, self._namespace, *arguments))
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
        # A lock belongs to the event loop in which it was first waited for.
        self._setting_up = asyncio.Lock()
        self._calls.start(self._expire())
        async with self._connection():
            pass

    def _is_refusal(self, error: Exception) -> bool:
        state = getattr(error, "sqlstate", None) if isinstance(error, asyncpg.PostgresError) else None
        return state is not None and not state.startswith(_REFUSES_ALL)

    async def _stop(self) -> None:
        pool, self._pool, self._ready = self._pool, None, False
        if pool is not None:
            # All calls have ended or were cancelled; closing must not wait for a server that hangs.
            await pool.close(0)

    async def close(self) -> None:
        for task in self._calls.tasks:
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
                    connect_timeout=self._connect_timeout,
                    statement_cache_size=self._statement_cache_size,
                )
                await pool.open()
                self._pool = pool
            async with self._pool.acquire() as connection:
                try:
                    await self._create_table(connection)
                except asyncpg.PostgresError as error:
                    connection.terminate()
                    if self._is_refusal(error):
                        raise TableError(f"table {self._table} cannot be created: {error}") from error
                    raise
                except BaseException:
                    # Without a rollback: a server that hangs would not answer it.
                    connection.terminate()
                    raise
            self._ready = True

    async def _create_table(self, connection: Any) -> None:
        comment = _COMMENT.format(version=SCHEMA_VERSION)
        await connection.execute("BEGIN")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _tag_hash(f"schema {self._table}"))
        found = await connection.fetchval("SELECT obj_description(to_regclass($1), 'pg_class')", self._table)
        if found is not None and found != comment:
            raise TableError(f"table {self._table} must have the comment {comment!r}, got {found!r}")
        if found is None:
            await connection.execute(_CREATE.format(table=self._table, comment=comment))
        await connection.execute("COMMIT")

    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        identities = envelope.identities(keys)
        addresses = envelope.addresses(identities)
        async with self._connection() as connection:
            rows = await connection.fetch(self._select, self._namespace, _array(addresses), self._max_value_bytes)
        # `dict(rows)` takes twice as long for asyncpg's records.
        blobs = {address: blob for address, blob in rows}  # noqa: C416
        found, _, corrupt = self._unseal(map(blobs.get, addresses), identities)
        self._corrupt += corrupt
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
                blob = b"".join(envelope.seal(entry, identity, payload, 0.0, with_tokens=False))
                rows.append((address, blob, entry.kept_until, tags))
        # Two transactions: each is committed when it is acknowledged, and the first holds no row lock while the second
        # waits for one, so that two processes cannot deadlock.
        async with self._connection() as connection:
            if deletes:
                gone = await self._unless_refused(connection.fetch(self._delete, self._namespace, list(deletes)))
                batch.removed = {deletes[row[0]] for row in gone or ()}
                batch.refused.update(deletes.values() if gone is None else ())
            else:
                batch.removed = set()
            if rows:
                keys = {key for key, operation in batch.operations.items() if operation is not None}
                columns = list(map(list, zip(*rows, strict=True)))
                if await self._unless_refused(connection.execute(self._upsert, self._namespace, *columns)) is not None:
                    batch.stored = keys
                    return
                batch.refused |= keys
                self._refused += len(keys)
                # The former values are deleted, because they are out of date.
                gone = await self._unless_refused(connection.fetch(self._delete, self._namespace, columns[0]))
                self._deletes += len(gone or ())

    async def _unless_refused(self, statement: Awaitable[_T]) -> _T | None:
        """Returns the result of a statement; None if the server refuses it."""
        try:
            return await statement
        except asyncpg.PostgresError as error:
            if isinstance(error, asyncpg.UndefinedTableError) or not self._is_refusal(error):
                raise
            self._calls.errors[type(error).__name__] += 1
            return None

    async def _describe(self) -> str:
        async with self._connection() as connection:
            return f"PostgreSQL {await connection.fetchval('SHOW server_version')} at {self._where}"

    async def _expire(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.set_name("expiry")
        while True:
            # With jitter, so that processes do not search at the same time.
            await asyncio.sleep(self._expiry_interval * uniform(0.8, 1.2))
            deleted: int | None = ROWS_A_STATEMENT
            while deleted == ROWS_A_STATEMENT and self._calls.allow(0):
                deleted = await self._calls.run(lambda: self._delete_some("expires_at < $1", time.time()))


class _Connection:
    """Borrows a connection to a server that has the table. If its use fails, the connection is closed."""

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
            # The table was dropped; the next call creates it again.
            self._tier._ready = False
        elif error is not None and not isinstance(error, asyncpg.PostgresError):
            self._connection.terminate()
        await self._acquire.__aexit__(kind, error, trace)


def _array(addresses: Sequence[bytes]) -> str:
    """Returns a bytea[] of at least one item as text."""
    return '{"\\\\x' + '","\\\\x'.join(map(bytes.hex, addresses)) + '"}'


def _tag_hash(tag: str) -> int:
    """Returns the hash of a tag as a bigint."""
    return xxh3_64_intdigest(envelope.identity(tag)) - (1 << 63)
