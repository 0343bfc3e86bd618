"""The tables of the PostgreSQL tier: names, columns, and how they are created.

| table | a row is |
|---|---|
| `<table>_v2` | an entry; or, with `value` NULL, a tombstone, which remembers a removal |
| `<table>_v2_tags` | the current token of a tag. An entry is valid while all its tokens are current |
| `<table>_v2_log` | a record of a write, for the backplane |
| `<table>_v2_changes` | a note of a statement that has changed rows of a watched table, while there is one |

All times are seconds since the epoch by the server's clock. Tags are hashes: if two tags have the same hash,
invalidating one also invalidates the other. The table of version 1 is neither read nor changed.
"""

import secrets
from hashlib import sha256
from typing import Any, Final

from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from acgsperf._native import envelope_format as envelope

__all__ = [
    "INVALIDATIONS",
    "NAMESPACE",
    "TableError",
    "Tables",
    "channel_of",
    "create",
    "hash_of_tag",
    "position_bytes",
    "tag_hash",
    "token_bytes",
    "token_number",
]

SCHEMA_VERSION: Final = 2
# Hashes that no tag has. They stand for the token of the namespace, and for its invalidations.
NAMESPACE: Final = 1
INVALIDATIONS: Final = 2
_RESERVED: Final = 3

# The schema version is in the table's comment, so that a dump keeps it.
_COMMENT: Final = "acgsperf cache, schema {version}"
_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {entries} (
    namespace text NOT NULL,
    key bytea NOT NULL,
    id bytea NOT NULL,
    stamp bigint NOT NULL,
    generation bigint NOT NULL,
    created_at double precision NOT NULL,
    kept_until double precision NOT NULL,
    tags bigint[],
    tokens bigint[],
    value bytea,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX IF NOT EXISTS {entries}_kept ON {entries} (kept_until) WHERE kept_until < 'infinity';
CREATE INDEX IF NOT EXISTS {entries}_tagged ON {entries} USING gin (tags) WHERE tags IS NOT NULL;
CREATE TABLE IF NOT EXISTS {tags} (
    namespace text NOT NULL,
    tag bigint NOT NULL,
    token bigint NOT NULL,
    stale_before bigint NOT NULL DEFAULT 0,
    copies_refused boolean NOT NULL DEFAULT false,
    expires_at double precision NOT NULL,
    PRIMARY KEY (namespace, tag)
);
CREATE INDEX IF NOT EXISTS {tags}_old ON {tags} (expires_at) WHERE expires_at < 'infinity';
CREATE TABLE IF NOT EXISTS {log} (
    namespace text NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    record bytea NOT NULL,
    logged_at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp())
);
ALTER TABLE {log} REPLICA IDENTITY FULL;
CREATE INDEX IF NOT EXISTS {log}_xid ON {log} (namespace, xid);
CREATE INDEX IF NOT EXISTS {log}_old ON {log} (logged_at);
COMMENT ON TABLE {entries} IS '{comment}';
"""
_FOUND: Final = """
SELECT obj_description(to_regclass($1), 'pg_class'), to_regclass($2) IS NOT NULL AND to_regclass($3) IS NOT NULL
"""


class TableError(Exception):
    """The table cannot be used or created. This concerns all calls."""


class Tables:
    """The names of the tables that belong to a configured table name."""

    def __init__(self, table: str) -> None:
        self.table: Final = table
        self.entries: Final = f"{table}_v2"
        self.tags: Final = f"{table}_v2_tags"
        self.log: Final = f"{table}_v2_log"
        self.changes: Final = f"{table}_v2_changes"

    @property
    def names(self) -> tuple[str, str, str]:
        """The names of the tables that every cache has."""
        return self.entries, self.tags, self.log

    def fill(self, statement: str, **parts: object) -> str:
        """Return a statement with the names of the tables put in."""
        return statement.format(entries=self.entries, tags=self.tags, log=self.log, changes=self.changes, **parts)


async def create(connection: Any, tables: Tables) -> None:
    """Create the tables that are missing. One process does it, the others wait.

    Raises:
        TableError: if a table of that name exists and has another comment.
    """
    comment = _COMMENT.format(version=SCHEMA_VERSION)
    await connection.execute("BEGIN")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_of(tables.table))
    found, complete = await connection.fetchrow(_FOUND, tables.entries, tables.tags, tables.log)
    if found is not None and found != comment:
        raise TableError(f"table {tables.entries} must have the comment {comment!r}, got {found!r}")
    if found is None or not complete:
        await connection.execute(tables.fill(_CREATE, comment=comment))
    await connection.execute("COMMIT")


def lock_of(table: str) -> int:
    """Return the number of the advisory lock under which the tables are created."""
    return xxh3_64_intdigest(f"schema {table}".encode()) - (1 << 63)


def channel_of(table: str, namespace: str) -> str:
    """Return the channel on which a namespace's writes are notified: at most 63 bytes, whatever the namespace."""
    return f"acgsperf_{xxh3_128_hexdigest(f'{table} {namespace}'.encode())}"


def position_bytes(position: int) -> bytes:
    """Return a position in the log as bytes: the transaction number from which on the log has not been read."""
    return position.to_bytes(8, "big")


def tag_hash(tag: str) -> int:
    """Return the hash of a tag as a bigint that is not reserved."""
    return hash_of_tag(envelope.identity(tag))


def hash_of_tag(identity: bytes) -> int:
    """Return the hash of a tag, of which the bytes are given."""
    return int.from_bytes(sha256(identity).digest()[:8], "big", signed=True) & ~_RESERVED


def new_token() -> int:
    """Return a random token as a bigint."""
    return token_number(secrets.token_bytes(8))


def token_number(token: bytes) -> int:
    """Return a token as a bigint."""
    return int.from_bytes(token[:8], "big", signed=True)


def token_bytes(token: int, stale_before: int = 0) -> bytes:
    """Return a token as bytes: 8, or 16 if entries created before a time (in microseconds) are stale."""
    head = token.to_bytes(8, "big", signed=True)
    return head + stale_before.to_bytes(8, "big") if stale_before else head
