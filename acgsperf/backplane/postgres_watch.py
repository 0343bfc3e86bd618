"""Triggers on tables of an application: rows that change invalidate tags, whoever changes them.

A statement that changes rows fires one trigger, which reads the rows from the statement's transition tables and adds a
record to the log of the namespace, in the transaction of the writer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Final

from xxhash import xxh3_64_hexdigest

from acgsperf.errors import BackplaneError
from acgsperf.tiers.postgres_schema import Tables, channel_of, create, lock_of

__all__ = ["Watch", "install", "remove"]

# A statement that changes more rows than this invalidates one coarse tag.
MAX_ROWS: Final = 200
MAX_TEMPLATES: Final = 16
# A longer tag is replaced with the coarse one.
_LONGEST_TAG: Final = 1_024
_LOCK_TIMEOUT: Final = "5s"
_EVENTS: Final = {
    "insert": ("REFERENCING NEW TABLE AS acgsperf_new", "SELECT * FROM acgsperf_new"),
    "update": (
        "REFERENCING OLD TABLE AS acgsperf_old NEW TABLE AS acgsperf_new",
        "SELECT * FROM acgsperf_old UNION ALL SELECT * FROM acgsperf_new",
    ),
    "delete": ("REFERENCING OLD TABLE AS acgsperf_old", "SELECT * FROM acgsperf_old"),
    "truncate": ("", ""),
}
# The columns are read by dynamic SQL, so that a table may be altered. What does not work is a warning, never an
# error of the writer. Only the reading is in a block of its own, because a block that writes takes a transaction number
# of its own, and many of them in one transaction slow down every snapshot. If the whole transaction has one snapshot,
# removing a token that somebody has extended would be an error, so it is left to the caches that listen.
# A record is a MessagePack array: version, no writer, time, kind, pairs of tag and b"".
_FUNCTION: Final = r"""
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    changed bigint;
    longest int;
    tags text[];
BEGIN
    IF TG_OP <> 'TRUNCATE' THEN
        BEGIN
            EXECUTE TG_ARGV[3] INTO changed, longest, tags;
            IF changed = 0 THEN
                RETURN NULL;
            END IF;
            IF changed > TG_ARGV[4]::bigint OR longest > {longest} THEN
                tags := NULL;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'acgsperf: the tags of changed rows in % are unknown (%); % is invalidated',
                TG_RELID::regclass, SQLERRM, TG_ARGV[2];
            tags := NULL;
        END;
    END IF;
    tags := coalesce(tags, ARRAY[TG_ARGV[2]]);
    IF to_regclass('{log}') IS NULL OR to_regclass('{tags}') IS NULL
        OR NOT has_table_privilege('{log}', 'INSERT') OR NOT has_table_privilege('{tags}', 'UPDATE')
        OR NOT has_table_privilege('{tags}', 'SELECT') OR NOT has_table_privilege('{tags}', 'DELETE') THEN
        RAISE WARNING 'acgsperf: changes in % are not told to caches, because {log} or {tags} cannot be used',
            TG_RELID::regclass;
        RETURN NULL;
    END IF;
    IF current_setting('transaction_isolation') = 'read committed' THEN
        DELETE FROM {tags} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {tags} WHERE namespace = TG_ARGV[0] AND tag = ANY(ARRAY(
                SELECT ('x' || encode(substr(sha256(convert_to(tag, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
                    & ~3::bigint
                FROM unnest(tags) AS t (tag)
            )) FOR UPDATE SKIP LOCKED
        ));
    END IF;
    INSERT INTO {log} (namespace, record) SELECT TG_ARGV[0],
        '\x9501c400cf'::bytea || int8send((extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
        || '\xa174dc'::bytea || int2send(count(*)::int2)
        || string_agg('\x92c6'::bytea || int4send(octet_length(tag)) || tag || '\xc400'::bytea, ''::bytea)
    FROM (SELECT convert_to(tag, 'UTF8') AS tag FROM unnest(tags) AS t (tag)) t;
    PERFORM pg_notify(TG_ARGV[1], '');
    RETURN NULL;
END
$body$
"""
_TAGS: Final = """
SELECT count(*), max(octet_length(tag)), array_agg(DISTINCT tag)
FROM (SELECT unnest(ARRAY[{tags}]) AS tag FROM ({rows} LIMIT {limit}) AS r) AS t
"""
_TABLE: Final = """
SELECT c.oid, c.oid::regclass::text, ARRAY(
    SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
)
FROM pg_class c WHERE c.oid = to_regclass($1)
"""
_SCHEMA: Final = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass($1)"
_TRIGGERS: Final = """
SELECT tgname::text, tgargs FROM pg_trigger WHERE tgrelid = $1 AND tgname = ANY($2::text[]) AND tgenabled <> 'D'
"""
_VERSION: Final = "SELECT obj_description(to_regprocedure($1), 'pg_proc')"
_USED: Final = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgfoid = to_regprocedure($1))"
_COMMENT: Final = "acgsperf watch, version 1"


@dataclass(frozen=True, slots=True)
class Watch:
    """What a table is watched for.

    Attributes:
        table: the watched table, as the database's search path finds it.
        tags: templates such as `user:{id}`, as SQL expressions.
        columns: the columns in them.
        coarse: the tag of a large change.
    """

    table: str
    tags: tuple[str, ...]
    columns: frozenset[str]
    coarse: str

    @classmethod
    def of(cls, table: str, tags: Sequence[str], coarse: str | None) -> "Watch":
        """Check the arguments of `PostgresBackplane.watch`."""
        if not isinstance(table, str) or not table:
            raise ValueError(f"table must be the name of a table, got {table!r:.100}")
        if isinstance(tags, str) or not 1 <= len(tags) <= MAX_TEMPLATES:
            raise ValueError(f"tags must be a sequence of 1 to {MAX_TEMPLATES} templates, got {tags!r:.100}")
        columns: set[str] = set()
        coarse = f"table:{table}" if coarse is None else coarse
        if not isinstance(coarse, str) or not 0 < len(coarse.encode()) <= _LONGEST_TAG:
            raise ValueError(f"coarse must be a tag of at most {_LONGEST_TAG} bytes, got {coarse!r:.100}")
        return cls(table, tuple(_expression(tag, columns) for tag in tags), frozenset(columns), coarse)


def _expression(template: str, columns: set[str]) -> str:
    """Return a template as an SQL expression."""
    parts = []
    try:
        for text, column, spec, conversion in Formatter().parse(template):
            if text:
                parts.append(_literal(text))
            if column is not None:
                if not column or spec or conversion:
                    raise ValueError("not a name")
                columns.add(column)
                parts.append(f"coalesce({_identifier(column)}::text, '')")
    except (TypeError, ValueError):
        raise ValueError(
            f"a tag must be text with names of columns in braces, such as 'user:{{id}}', got {template!r:.100}"
        ) from None
    if not parts:
        raise ValueError("a tag must not be empty")
    return " || ".join(parts)


def _literal(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL")
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else "E'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def install(connection: Any, tables: Tables, namespace: str, watch: Watch) -> bool:
    """Create the triggers of a table. Returns False if they are there already, with the same tags.

    Raises:
        BackplaneError: if the table does not exist, or has no such column.
    """
    async with connection.transaction():
        await _lock(connection, tables)
        oid, name = await _found(connection, watch)
        function = await _function(connection, tables)
        wanted = _wanted(tables, namespace, watch)
        present = {name: bytes(args) for name, args in await connection.fetch(_TRIGGERS, oid, list(wanted))}
        same = all(present.get(name) == _packed(args) for name, (_, args) in wanted.items())
        if same and await connection.fetchval(_VERSION, f"{function}()") == _COMMENT:
            return False
        schema = function.rpartition(".")[0]
        await connection.execute(
            _FUNCTION.format(
                function=function,
                longest=_LONGEST_TAG,
                log=f"{schema}.{tables.log}",
                tags=f"{schema}.{tables.tags}",
            )
        )
        await connection.execute(f"COMMENT ON FUNCTION {function}() IS '{_COMMENT}'")
        for trigger, (event, args) in wanted.items():
            await connection.execute(f"DROP TRIGGER IF EXISTS {trigger} ON {name}")
            await connection.execute(
                f"CREATE TRIGGER {trigger} AFTER {event.upper()} ON {name} {_EVENTS[event][0]} FOR EACH STATEMENT"
                f" EXECUTE FUNCTION {function}({', '.join(map(_literal, args))})"
            )
        return True


async def remove(connection: Any, tables: Tables, namespace: str, table: str) -> bool:
    """Remove the triggers of a table, and their function with the last of them. Returns False if there are none."""
    async with connection.transaction():
        await _lock(connection, tables)
        found = await connection.fetchrow(_TABLE, table)
        removed = False
        if found is not None:
            names = [_trigger(tables, namespace, event) for event in _EVENTS]
            for name, _ in await connection.fetch(_TRIGGERS.replace(" AND tgenabled <> 'D'", ""), found[0], names):
                await connection.execute(f"DROP TRIGGER {name} ON {found[1]}")
                removed = True
        schema = await connection.fetchval(_SCHEMA, tables.log)
        if schema is not None:
            function = f"{schema}.{tables.entries}_watch"
            if not await connection.fetchval(_USED, f"{function}()"):
                await connection.execute(f"DROP FUNCTION IF EXISTS {function}()")
        return removed


async def _lock(connection: Any, tables: Tables) -> None:
    # Whoever waits for the lock of the watched table keeps all later writers waiting.
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_of(tables.table))


async def _found(connection: Any, watch: Watch) -> tuple[int, str]:
    found = await connection.fetchrow(_TABLE, watch.table)
    if found is None:
        raise BackplaneError(f"table {watch.table!r} does not exist")
    oid, name, columns = found
    if missing := sorted(watch.columns.difference(columns)):
        raise BackplaneError(f"table {watch.table!r} has no column {missing[0]!r}")
    return oid, name


async def _function(connection: Any, tables: Tables) -> str:
    """Return the qualified name of the trigger function, which is in the schema of the log."""
    schema = await connection.fetchval(_SCHEMA, tables.log)
    return f"{schema}.{tables.entries}_watch"


def _trigger(tables: Tables, namespace: str, event: str) -> str:
    # One for each cache and namespace. The name of the table is not in it, so that the table may be renamed.
    return f"acgsperf_{xxh3_64_hexdigest(f'{tables.table} {namespace}'.encode())}_{event}"


def _wanted(tables: Tables, namespace: str, watch: Watch) -> dict[str, tuple[str, list[str]]]:
    """Return the event and the arguments of each trigger, by its name."""
    wanted = {}
    for event, (_, rows) in _EVENTS.items():
        # An update has the rows before and after.
        most = MAX_ROWS * (2 if event == "update" else 1)
        query = _TAGS.format(tags=", ".join(watch.tags), rows=rows, limit=most + 1).strip()
        args = [namespace, channel_of(tables.table, namespace), watch.coarse, query, str(most * len(watch.tags))]
        wanted[_trigger(tables, namespace, event)] = event, args
    return wanted


def _packed(args: Sequence[str]) -> bytes:
    """Return the arguments of a trigger as PostgreSQL keeps them."""
    return b"".join(arg.encode() + b"\0" for arg in args)


async def prepare(connection: Any, tables: Tables) -> None:
    """Create the tables of the cache if they are missing."""
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", tables.log):
        try:
            await create(connection, tables)
        except BaseException:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            raise
