"""Triggers on tables of an application: rows that change invalidate tags, no matter who changes them.

A statement that changes rows fires one trigger, which reads the rows from the statement's transition tables and notes
their tags in the table of changes, in the transaction of the writer. `postgres_changes` does the rest.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Final

import asyncpg
from xxhash import xxh3_64_hexdigest

from acgsperf.backplane.postgres_changes import Changes
from acgsperf.backplane.postgres_watch_functions import (
    LONGEST_TAG,
    TRANSITION_TABLES,
    NoteWriter,
    Template,
    literal,
    of_rows,
    of_statement,
)
from acgsperf.errors import BackplaneError
from acgsperf.tiers.postgres_schema import Tables, create, lock_of

__all__ = ["Watch", "install", "prepare", "remove"]

MAX_TEMPLATES: Final = 16
_MOST_BATCHES: Final = 1_000
_LOCK_TIMEOUT: Final = "5s"
_EVENTS: Final = (*TRANSITION_TABLES, "TRUNCATE")
_CREATE: Final = """
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS {body};
COMMENT ON FUNCTION {function}() IS {comment};
DROP TRIGGER IF EXISTS {trigger} ON {table};
CREATE TRIGGER {trigger} AFTER {event} ON {table} {transition} FOR EACH STATEMENT EXECUTE FUNCTION {function}()
"""
# No index: every writer would have to update it. Autovacuum keeps the table small, so that it is read fast. Without the
# identity, a publication of all tables would not let rows be deleted.
_CREATE_CHANGES: Final = """
CREATE TABLE {schema}.{changes} (
    namespace text NOT NULL,
    coarse bytea,
    tags bytea[] NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE {schema}.{changes} REPLICA IDENTITY FULL
"""
_TABLE: Final = """
SELECT c.oid, c.oid::regclass::text, ARRAY(
    SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
)
FROM pg_class c WHERE c.oid = to_regclass($1)
"""
_SCHEMA: Final = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass($1)"
_TRIGGERS: Final = """
SELECT t.tgname::text, t.tgenabled IN ('O', 'A'), p.prosrc
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = $1 AND t.tgname = ANY($2::text[])
"""
# Also those of tables that were dropped.
_UNUSED: Final = """
SELECT oid::regprocedure::text FROM pg_proc p
WHERE proname LIKE 'acgsperf\\_watch\\_%' AND pg_has_role(proowner, 'USAGE') AND obj_description(oid, 'pg_proc') = $1
    AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = p.oid)
"""
_MAY_DROP: Final = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass($1)"
# Nobody notes changes any more, and this user may drop their table.
_IS_LAST: Final = """
SELECT pg_has_role(relowner, 'USAGE')
    AND NOT EXISTS (
        SELECT FROM pg_proc p WHERE proname LIKE 'acgsperf\\_watch\\_%' AND obj_description(p.oid, 'pg_proc') = $2
    )
FROM pg_class WHERE oid = to_regclass($1)
"""
_COMMENT: Final = "acgsperf watch for {table}"


@dataclass(frozen=True, slots=True)
class Watch:
    """What a table is watched for.

    Attributes:
        table: the watched table, as the database's search path finds it.
        tags: templates such as `user:{id}`.
        coarse: the tag of a large change.
        coarse_on: the events that always invalidate the coarse tag.
    """

    table: str
    tags: tuple[Template, ...]
    coarse: str
    coarse_on: frozenset[str]

    @classmethod
    def of(cls, table: str, tags: Sequence[str], coarse: str | None, coarse_on: Collection[str]) -> "Watch":
        """Check the arguments of `PostgresBackplane.watch`."""
        if not isinstance(table, str) or not table:
            raise ValueError(f"table must be the name of a table, got {table!r:.100}")
        if isinstance(tags, str) or not 1 <= len(tags) <= MAX_TEMPLATES:
            raise ValueError(f"tags must be a sequence of 1 to {MAX_TEMPLATES} templates, got {tags!r:.100}")
        templates = tuple(_parsed(tag) for tag in tags)
        coarse = f"table:{table}" if coarse is None else coarse
        if not isinstance(coarse, str) or not 0 < len(coarse.encode()) <= LONGEST_TAG or "\0" in coarse:
            raise ValueError(f"coarse must be a tag of at most {LONGEST_TAG} bytes without NUL, got {coarse!r:.100}")
        events = {event.lower(): event for event in TRANSITION_TABLES}
        if isinstance(coarse_on, str) or not all(isinstance(event, str) and event in events for event in coarse_on):
            raise ValueError(f"coarse_on must contain 'insert', 'update' or 'delete' only, got {coarse_on!r:.100}")
        return cls(table, templates, coarse, frozenset(events[event] for event in coarse_on))

    @property
    def columns(self) -> frozenset[str]:
        """The columns in the templates."""
        return frozenset(column for template in self.tags for _, column in template if column is not None)

    def needs_rows(self, event: str) -> bool:
        """Return whether the tags of an event depend on the rows."""
        return event in TRANSITION_TABLES and event not in self.coarse_on and bool(self.columns)

    def tags_without_rows(self, event: str) -> list[str]:
        """Return the tags of an event for which the rows do not matter."""
        if self.columns:
            return [self.coarse]
        tags = ["".join(text for text, _ in template) for template in self.tags]
        tags = [tag if len(tag.encode()) <= LONGEST_TAG else self.coarse for tag in tags]
        return [*tags, self.coarse] if event == "TRUNCATE" or event in self.coarse_on else tags


def _parsed(template: str) -> Template:
    parts = []
    try:
        for text, column, spec, conversion in Formatter().parse(template):
            if column is not None and (not column or spec or conversion):
                raise ValueError("not a name")
            parts.append((text, column))
    except (TypeError, ValueError):
        raise ValueError(
            f"a tag must be text with names of columns in braces, such as 'user:{{id}}', got {template!r:.100}"
        ) from None
    if not parts:
        raise ValueError("a tag must not be empty")
    if "\0" in template:
        raise ValueError(f"a tag must not contain a NUL character, got {template!r:.100}")
    return tuple(parts)


async def install(connection: Any, tables: Tables, namespace: str, watch: Watch) -> bool:
    """Create the triggers of a table. Return False if they are there already, with the same tags.

    Raises:
        BackplaneError: if the table does not exist, or has no such column.
    """
    async with connection.transaction(isolation="read_committed"):
        await _lock(connection, tables)
        oid, name = await _found(connection, watch)
        # That of the other tables, and not the first one of this user's search path.
        schema = await connection.fetchval(_SCHEMA, tables.log)
        if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{schema}.{tables.changes}"):
            await connection.execute(tables.fill(_CREATE_CHANGES, schema=schema))
        bodies = _bodies(tables, schema, namespace, watch)
        names = _triggers(tables, namespace)
        present = {
            trigger: enabled and source for trigger, enabled, source in await connection.fetch(_TRIGGERS, oid, [*names])
        }
        if all(present.get(trigger) == bodies[event] for trigger, event in names.items()):
            return False
        for trigger, event in names.items():
            await connection.execute(
                _CREATE.format(
                    function=f"{schema}.acgsperf_watch_{secrets.token_hex(8)}",
                    body=literal(bodies[event]),
                    comment=literal(_COMMENT.format(table=tables.table)),
                    trigger=trigger,
                    event=event,
                    table=name,
                    transition=f"REFERENCING {TRANSITION_TABLES[event]}" if watch.needs_rows(event) else "",
                )
            )
        await _drop_unused(connection, tables)
        return True


async def remove(connection: Any, tables: Tables, namespace: str, table: str) -> bool:
    """Remove the triggers of a table and their functions. Return False if there are none."""
    changes = Changes(tables, "")
    may_carry = True
    if await connection.fetchval(_MAY_DROP, tables.changes):
        # A backlog, before the writers of the table have to wait.
        try:
            async with connection.transaction(isolation="read_committed"):
                await changes.carry_all(connection, _MOST_BATCHES)
        except asyncpg.InsufficientPrivilegeError:
            may_carry = False
    async with connection.transaction(isolation="read_committed"):
        await _lock(connection, tables)
        found = await connection.fetchrow(_TABLE, table)
        present = []
        if found is not None:
            present = await connection.fetch(_TRIGGERS, found[0], [*_triggers(tables, namespace)])
            for trigger, *_ in present:
                await connection.execute(f"DROP TRIGGER {trigger} ON {found[1]}")
        await _drop_unused(connection, tables)
        if may_carry and await connection.fetchval(_IS_LAST, tables.changes, _COMMENT.format(table=tables.table)):
            await connection.execute(f"LOCK TABLE {tables.changes}")
            await changes.carry_all(connection)
            await connection.execute(f"DROP TABLE {tables.changes}")
        return bool(present)


async def _drop_unused(connection: Any, tables: Tables) -> None:
    for (function,) in await connection.fetch(_UNUSED, _COMMENT.format(table=tables.table)):
        await connection.execute(f"DROP FUNCTION {function}")


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


def _bodies(tables: Tables, schema: str, namespace: str, watch: Watch) -> Mapping[str, str]:
    """Return the trigger functions by their events."""
    notes = NoteWriter(schema, tables.changes, namespace, watch.coarse if watch.columns else None)
    return {
        event: of_rows(notes, event, watch.tags, watch.coarse)
        if watch.needs_rows(event)
        else of_statement(notes, watch.tags_without_rows(event))
        for event in _EVENTS
    }


async def prepare(connection: Any, tables: Tables) -> None:
    """Create the tables of the cache if they are missing."""
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", tables.log):
        try:
            await create(connection, tables)
        except BaseException:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            raise
