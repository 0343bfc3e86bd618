"""Triggers on tables of an application: rows that change invalidate tags, no matter who changes them.

A statement that changes rows fires one trigger, which reads the rows from the statement's transition tables and adds a
record to the log of the namespace, in the transaction of the writer.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Final

from xxhash import xxh3_64_hexdigest

from acgsperf._native.arguments import checked_bool
from acgsperf.errors import BackplaneError
from acgsperf.tiers.postgres_schema import Tables, channel_of, create, lock_of

__all__ = ["Watch", "install", "remove"]

# A statement that changes more rows than this invalidates one coarse tag.
MAX_ROWS: Final = 200
MAX_TEMPLATES: Final = 16
# A longer tag is replaced with the coarse one.
_LONGEST_TAG: Final = 1_024
_LOCK_TIMEOUT: Final = "5s"
_NEW: Final = "NEW TABLE AS acgsperf_new"
_OLD: Final = "OLD TABLE AS acgsperf_old"
# For each event: the transition tables, and the rows whose tags are invalidated.
_EVENTS: Final = {
    "INSERT": (_NEW, "SELECT {columns} FROM acgsperf_new"),
    "UPDATE": (
        f"{_OLD} {_NEW}",
        "SELECT {columns} FROM acgsperf_old UNION ALL SELECT {columns} FROM acgsperf_new",
    ),
    "DELETE": (_OLD, "SELECT {columns} FROM acgsperf_old"),
    "TRUNCATE": ("", ""),
}
# A failure of the trigger is a warning, never an error of the writer. If the table was altered, PostgreSQL plans the
# query again, and that fails if a column is gone. Only the query has its own block, because a block that writes takes
# its own transaction number, and many of them in one transaction slow down every snapshot. If the whole transaction
# has one snapshot, removing a token that another transaction has extended would be an error. The open caches
# remove it then.
# A record is a MessagePack array: version, no writer, time, kind, pairs of tag and b"".
_BODY: Final = r"""
DECLARE
    changed bigint;
    longest int;
    tags text[];
BEGIN
    IF {may_be_read} THEN
        BEGIN
            {queries}
            IF changed = 0 THEN
                RETURN NULL;
            END IF;
            IF longest > {longest} THEN
                tags := NULL;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'acgsperf: the tags of changed rows in % are unknown (%); % is invalidated',
                TG_RELID::regclass, SQLERRM, {coarse};
            tags := NULL;
        END;
    END IF;
    tags := coalesce(tags, {tags_without});
    IF NOT coalesce(has_table_privilege({log_oid}::oid, 'INSERT') AND has_table_privilege({tags_oid}::oid, 'UPDATE')
        AND has_table_privilege({tags_oid}::oid, 'SELECT') AND has_table_privilege({tags_oid}::oid, 'DELETE'), false)
    THEN
        IF to_regclass({log_name}) IS NULL OR to_regclass({tags_name}) IS NULL
            OR NOT has_table_privilege({log_name}, 'INSERT') OR NOT has_table_privilege({tags_name}, 'UPDATE')
            OR NOT has_table_privilege({tags_name}, 'SELECT') OR NOT has_table_privilege({tags_name}, 'DELETE') THEN
            RAISE WARNING 'acgsperf: changes in % are not told to caches, because % or % cannot be used',
                TG_RELID::regclass, {log_name}, {tags_name};
            RETURN NULL;
        END IF;
    END IF;
    WITH changed AS (
        SELECT convert_to(tag, 'UTF8') AS tag FROM unnest(tags) AS t (tag)
    ), gone AS (
        DELETE FROM {tags} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {tags} WHERE namespace = {namespace} AND tag = ANY(ARRAY(
                SELECT ('x' || encode(substr(sha256(c.tag), 1, 8), 'hex'))::bit(64)::bigint & ~3::bigint FROM changed c
            )) AND current_setting('transaction_isolation') = 'read committed' FOR UPDATE SKIP LOCKED
        ))
    )
    INSERT INTO {log} (namespace, record) SELECT {namespace},
        '\x9501c400cf'::bytea || int8send((extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
        || '\xa174dc'::bytea || int2send(count(*)::int2)
        || string_agg('\x92c6'::bytea || int4send(octet_length(c.tag)) || c.tag || '\xc400'::bytea, ''::bytea)
    FROM changed c;
    {notify}
    RETURN NULL;
END
"""
# NULL instead of the tags if there are too many.
_QUERY: Final = """IF TG_OP = '{event}' THEN
                SELECT count(*), max(octet_length(tag)), CASE WHEN count(*) <= {most} THEN array_agg(DISTINCT tag) END
                INTO changed, longest, tags
                FROM (SELECT {tags} AS tag FROM ({rows} LIMIT {limit}) AS r) AS t;
            END IF;"""
_CREATE: Final = """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS {body}
"""
_TABLE: Final = """
SELECT c.oid, c.oid::regclass::text, ARRAY(
    SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
)
FROM pg_class c WHERE c.oid = to_regclass($1)
"""
_SCHEMA: Final = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass($1)"
_TRIGGERS: Final = """
SELECT t.tgname::text, t.tgenabled <> 'D', p.pronamespace::regnamespace || '.' || quote_ident(p.proname), p.prosrc
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = $1 AND t.tgname = ANY($2::text[])
"""
# Also those of tables that were dropped.
_UNUSED: Final = """
SELECT oid::regprocedure::text FROM pg_proc p
WHERE proname LIKE 'acgsperf\\_watch\\_%' AND pg_has_role(proowner, 'USAGE') AND obj_description(oid, 'pg_proc') = $1
    AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = p.oid)
"""
_COMMENT: Final = "acgsperf watch for {table}"


@dataclass(frozen=True, slots=True)
class Watch:
    """What a table is watched for.

    Attributes:
        table: the watched table, as the database's search path finds it.
        tags: templates such as `user:{id}`, as SQL expressions.
        columns: the columns in them.
        coarse: the tag of a large change.
        notify: whether PostgreSQL notifies the listeners.
    """

    table: str
    tags: tuple[str, ...]
    columns: frozenset[str]
    coarse: str
    notify: bool

    @classmethod
    def of(cls, table: str, tags: Sequence[str], coarse: str | None, notify: bool) -> "Watch":
        """Check the arguments of `PostgresBackplane.watch`."""
        if not isinstance(table, str) or not table:
            raise ValueError(f"table must be the name of a table, got {table!r:.100}")
        if isinstance(tags, str) or not 1 <= len(tags) <= MAX_TEMPLATES:
            raise ValueError(f"tags must be a sequence of 1 to {MAX_TEMPLATES} templates, got {tags!r:.100}")
        columns: set[str] = set()
        coarse = f"table:{table}" if coarse is None else coarse
        checked_bool("notify", notify)
        if not isinstance(coarse, str) or not 0 < len(coarse.encode()) <= _LONGEST_TAG:
            raise ValueError(f"coarse must be a tag of at most {_LONGEST_TAG} bytes, got {coarse!r:.100}")
        return cls(table, tuple(_expression(tag, columns) for tag in tags), frozenset(columns), coarse, notify)


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
        raise ValueError(f"text for a trigger must not contain a NUL character, got {text!r:.100}")
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else "E'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def install(connection: Any, tables: Tables, namespace: str, watch: Watch) -> bool:
    """Create the triggers of a table. Return False if they are there already, with the same tags.

    Raises:
        BackplaneError: if the table does not exist, or has no such column.
    """
    async with connection.transaction():
        await _lock(connection, tables)
        oid, name = await _found(connection, watch)
        schema = await connection.fetchval(_SCHEMA, tables.log)
        oids = await connection.fetchrow("SELECT to_regclass($1)::oid, to_regclass($2)::oid", tables.log, tables.tags)
        body = _body(tables, schema, oids, namespace, watch)
        names = _triggers(tables, namespace)
        present = await connection.fetch(_TRIGGERS, oid, list(names))
        if len(present) == len(names) and all(enabled and source == body for _, enabled, _, source in present):
            return False
        function = present[0][2] if present else f"{schema}.acgsperf_watch_{secrets.token_hex(8)}"
        await connection.execute(_CREATE.format(function=function, body=_literal(body)))
        comment = _literal(_COMMENT.format(table=tables.table))
        await connection.execute(f"COMMENT ON FUNCTION {function}() IS {comment}")
        for trigger, event in names.items():
            await connection.execute(f"DROP TRIGGER IF EXISTS {trigger} ON {name}")
            transition = f"REFERENCING {_EVENTS[event][0]}" if _EVENTS[event][0] and watch.columns else ""
            await connection.execute(
                f"CREATE TRIGGER {trigger} AFTER {event} ON {name} {transition} FOR EACH STATEMENT"
                f" EXECUTE FUNCTION {function}()"
            )
        return True


async def remove(connection: Any, tables: Tables, namespace: str, table: str) -> bool:
    """Remove the triggers of a table and their function. Return False if there are none."""
    async with connection.transaction():
        await _lock(connection, tables)
        found = await connection.fetchrow(_TABLE, table)
        present = []
        if found is not None:
            present = await connection.fetch(_TRIGGERS, found[0], list(_triggers(tables, namespace)))
            for trigger, *_ in present:
                await connection.execute(f"DROP TRIGGER {trigger} ON {found[1]}")
        for (function,) in await connection.fetch(_UNUSED, _COMMENT.format(table=tables.table)):
            await connection.execute(f"DROP FUNCTION {function}")
        return bool(present)


async def _lock(connection: Any, tables: Tables) -> None:
    # While this statement waits for the lock of the watched table, all later writers wait for it too.
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


def _triggers(tables: Tables, namespace: str) -> dict[str, str]:
    """Return the events by the names of their triggers."""
    # The name of the watched table is not in them, so that it may be renamed.
    place = xxh3_64_hexdigest(f"{tables.table} {namespace}".encode())
    return {f"acgsperf_{place}_{event.lower()}": event for event in _EVENTS}


def _body(tables: Tables, schema: str, oids: Sequence[int], namespace: str, watch: Watch) -> str:
    """Return the trigger function. It is written for one table, because dynamic SQL is planned at every call."""
    columns = ", ".join(map(_identifier, sorted(watch.columns))) or "1"
    queries = []
    for event, (transition, rows) in _EVENTS.items():
        if transition and watch.columns:
            # An update has the rows before and after.
            most = MAX_ROWS * (2 if event == "UPDATE" else 1)
            queries.append(
                _QUERY.format(
                    event=event,
                    most=most * len(watch.tags),
                    tags=watch.tags[0] if len(watch.tags) == 1 else f"unnest(ARRAY[{', '.join(watch.tags)}])",
                    rows=rows.format(columns=columns),
                    limit=most + 1,
                )
            )
    coarse = _literal(watch.coarse)
    may_be_read, without_rows = "TG_OP <> 'TRUNCATE'", f"ARRAY[{coarse}]"
    if not watch.columns:
        # The tags are always the same. Without transition tables, a statement costs the same for any number of rows.
        constant = ", ".join(tag if len(tag.encode()) <= _LONGEST_TAG else coarse for tag in dict.fromkeys(watch.tags))
        may_be_read = "false"
        without_rows = f"CASE WHEN TG_OP = 'TRUNCATE' THEN ARRAY[{constant}, {coarse}] ELSE ARRAY[{constant}] END"
    log, tags = f"{schema}.{tables.log}", f"{schema}.{tables.tags}"
    channel = channel_of(tables.table, namespace)
    return _BODY.format(
        queries="\n            ".join(queries),
        longest=_LONGEST_TAG,
        coarse=coarse,
        may_be_read=may_be_read,
        tags_without=without_rows,
        log_oid=oids[0],
        tags_oid=oids[1],
        namespace=_literal(namespace),
        log=log,
        tags=tags,
        log_name=_literal(log),
        tags_name=_literal(tags),
        notify=f"IF pg_notify({_literal(channel)}, '') IS NULL THEN END IF;" if watch.notify else "",
    )


async def prepare(connection: Any, tables: Tables) -> None:
    """Create the tables of the cache if they are missing."""
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", tables.log):
        try:
            await create(connection, tables)
        except BaseException:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            raise
