"""The PL/pgSQL functions of the triggers that `PostgresBackplane.watch` installs.

Each event of each table has its own function. It is as short as possible, because every writer waits for it: in each
transaction PostgreSQL prepares every expression of a function again, which takes longer than the expression itself.

The functions run with the rights of their owner and with the search path of the writer, because setting another search
path takes longer than the rest of a short function. Therefore all functions, operators and types have their schemas.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from acgsperf.tiers.postgres_schema import tag_hash
from acgsperf.tiers.records import Record, RecordKind, packed

__all__ = [
    "LONGEST_TAG",
    "SILENT",
    "TRANSITION_TABLES",
    "Log",
    "Template",
    "literal",
    "lock_of_channel",
    "of_rows",
    "of_statement",
]

# A statement that changes more rows than this invalidates one coarse tag.
MAX_ROWS: Final = 200
# In bytes. A longer tag is replaced with the coarse one.
LONGEST_TAG: Final = 1_024

# Pairs of a text and the column that follows it, if there is one.
Template = Sequence[tuple[str, str | None]]

TRANSITION_TABLES: Final = {
    "INSERT": "NEW TABLE AS acgsperf_new",
    "UPDATE": "OLD TABLE AS acgsperf_old NEW TABLE AS acgsperf_new",
    "DELETE": "OLD TABLE AS acgsperf_old",
}
_ONE_ROW: Final = {
    "INSERT": "acgsperf_new AS n",
    # If a trigger of a partition drops a row that an update moves there, there is no new row.
    "UPDATE": "acgsperf_old AS o LEFT JOIN acgsperf_new AS n ON true",
    "DELETE": "acgsperf_old AS n",
}
_ALL_ROWS: Final = {
    "INSERT": "SELECT {columns} FROM acgsperf_new AS n",
    "UPDATE": "SELECT {columns} FROM acgsperf_old AS n UNION ALL SELECT {columns} FROM acgsperf_new AS n",
    "DELETE": "SELECT {columns} FROM acgsperf_old AS n",
}
# A failure of a trigger is a warning, never an error of the writer.
_OF_STATEMENT: Final = """
BEGIN
    IF ({may_write}) IS TRUE THEN
        {write}
        {notify}
    ELSE
        {warn}
    END IF;
    RETURN NULL;
END
"""
# Most statements change one row, and its tags stay the same. Then the first query is enough, and two short statements
# follow. Without the limit, a plan that is made when there are many rows would seem so expensive that PostgreSQL
# compiles it (`jit`) at each later statement.
# If the table was altered, PostgreSQL plans the queries again, and that fails if a column is gone. Only the queries
# have their own blocks, because a block that writes takes its own transaction number, and many of them in one
# transaction slow down every snapshot.
# NULL instead of the tags if there are too many.
_OF_ROWS: Final = """
DECLARE
    may_write boolean;
    changed bigint;
    longest int;
    tags pg_catalog.bytea[];
    {variables}
BEGIN
    BEGIN
        SELECT {may_write_here}, {values} INTO STRICT may_write, {names} FROM {row} LIMIT 2;
    EXCEPTION
        WHEN no_data_found THEN
            RETURN NULL;
        WHEN OTHERS THEN
            may_write := false;
    END;
    IF may_write AND {simple} THEN
        {write_row}
        {notify}
        RETURN NULL;
    END IF;
    BEGIN
        SELECT pg_catalog.count(*), pg_catalog.max(pg_catalog.octet_length(t.tag)), CASE
            WHEN pg_catalog.count(*) OPERATOR(pg_catalog.<=) {most} THEN pg_catalog.array_agg(DISTINCT t.tag) END
        INTO changed, longest, tags
        FROM (SELECT pg_catalog.unnest(ARRAY[{tags}]) AS tag FROM ({rows} LIMIT {limit}) AS n) AS t;
        IF longest OPERATOR(pg_catalog.>) {longest} THEN
            tags := NULL;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'acgsperf: the tags of changed rows in % are unknown (%); % is invalidated',
            TG_RELID::pg_catalog.regclass, SQLERRM, {coarse};
        tags := NULL;
    END;
    IF ({may_write}) IS TRUE THEN
        tags := coalesce(tags, ARRAY[{coarse_tag}]);
        {write_rows}
        {notify}
    ELSE
        {warn}
    END IF;
    RETURN NULL;
END
"""
# PostgreSQL commits transactions that notify one after the other. So of those that run at the same time, only one
# notifies, and holds a lock until it ends. Another lock takes its place every 100 ms, so that a long transaction does
# not keep later ones from notifying. After a minute the numbers of the locks begin again, which bounds how many a
# transaction holds. Those that do not notify share a lock that tells the readers to look for their records
# (`Log.plan_next`).
_NOTIFY: Final = """
        IF (pg_catalog.pg_try_advisory_xact_lock({lock}, {slot})
            OR NOT pg_catalog.pg_try_advisory_xact_lock_shared({lock}, {silent}))
            AND pg_catalog.pg_notify({channel}, '') IS NULL
        THEN
        END IF;
"""
_SLOT: Final = (
    "(pg_catalog.date_part('milliseconds', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog./) {length_ms})::int"
)
_SLOT_MS: Final = 100
# The second number of the lock of those that do not notify.
SILENT: Final = 1_000_000
_RIGHTS: Final = (("log", "INSERT"), ("tags", "SELECT"), ("tags", "UPDATE"), ("tags", "DELETE"))
_WARN: Final = (
    "RAISE WARNING 'acgsperf: caches do not get the changes in %, because % or % cannot be used',"
    " TG_RELID::pg_catalog.regclass, {log}, {tags};"
)
_NOW: Final = "pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())"
_CONCAT: Final = " OPERATOR(pg_catalog.||) "
# The same as `tag_hash`.
_HASH: Final = (
    "('x' OPERATOR(pg_catalog.||) pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256({tag}), 1, 8), 'hex'))"
    "::bit(64)::bigint OPERATOR(pg_catalog.&) (-4)::bigint"
)
_INSERT: Final = (
    "INSERT INTO {log} (namespace, xid, record, logged_at)"
    " SELECT {namespace}, pg_catalog.pg_current_xact_id(), {record}, {now}{source};"
)
# If the whole transaction has one snapshot, removing a token that another transaction has extended would be an error.
# Then no token is removed here, and the open caches remove it.
_REMOVE: Final = (
    "DELETE FROM {tags} WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT t.ctid FROM {tags} AS t"
    " WHERE t.namespace OPERATOR(pg_catalog.=) {namespace} AND t.tag OPERATOR(pg_catalog.=) {wanted}"
    " FOR UPDATE SKIP LOCKED));"
)
_IF_READ_COMMITTED: Final = (
    "CASE WHEN pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=) 'read committed' THEN {} END"
)
# A record is a MessagePack array: version, no writer, time, kind, pairs of tag and b"". The time is 8 bytes long.
_BEFORE_TIME: Final = b"\x95\x01\xc4\x00\xcf"
_KIND: Final = b"\xa1t\xdc"
_BEFORE_TAG: Final = b"\x92\xc6"
_AFTER_TAG: Final = b"\xc4\x00"
_TIME_US: Final = f"pg_catalog.int8send(({_NOW} OPERATOR(pg_catalog.*) 1000000)::bigint)"


class Log:
    """What the functions of a namespace have in common.

    Args:
        log: the name of the log's table, with its schema.
        tags: that of the table of tokens.
        namespace: the namespace.
        channel: the channel to notify; None to notify nobody.
    """

    def __init__(self, log: str, tags: str, namespace: str, channel: str | None) -> None:
        self._names = {"log": log, "tags": tags, "namespace": literal(namespace)}
        places = {"log": literal(log), "tags": literal(tags)}
        # This fails if a table does not exist.
        self.may_write_here: Final = _rights(lambda table: f"{places[table]}::pg_catalog.regclass")
        self.may_write: Final = _rights(lambda table: f"pg_catalog.to_regclass({places[table]})")
        self.notify: Final = "" if channel is None else _notify(channel)
        self.warn: Final = _WARN.format(**places)

    def write(self, record: Sequence[str], hashes: str, *, several: bool = True, source: str = "") -> str:
        """Return the statements that add a record and remove the tokens of its tags.

        Args:
            record: the parts of the record, as SQL expressions.
            hashes: an SQL expression for the hashes of the tags.
            several: whether `hashes` is an array; False for a single hash.
            source: the FROM clause that the record needs.
        """
        hashes = _IF_READ_COMMITTED.format(hashes)
        insert = _INSERT.format(**self._names, record=_CONCAT.join(record), now=_NOW, source=source)
        remove = _REMOVE.format(**self._names, wanted=f"ANY ({hashes})" if several else hashes)
        return f"{insert}\n        {remove}"


def lock_of_channel(channel: str) -> int:
    """Return the first number of the advisory locks of those that notify a channel, which ends with a hash."""
    return int(channel[-8:], 16) >> 1


def _notify(channel: str) -> str:
    """Return the statement that notifies a channel, unless a transaction in flight does."""
    return _NOTIFY.format(
        lock=lock_of_channel(channel),
        slot=_SLOT.format(length_ms=_SLOT_MS),
        silent=SILENT,
        channel=literal(channel),
    ).strip()


def _rights(place: Callable[[str], str]) -> str:
    return " AND ".join(f"pg_catalog.has_table_privilege({place(table)}, '{right}')" for table, right in _RIGHTS)


def of_statement(log: Log, tags: Sequence[str]) -> str:
    """Return the function that invalidates the same tags at each statement, without reading its rows."""
    unique = tuple(dict.fromkeys(tags))
    record = packed(Record(RecordKind.TAG, tuple((tag.encode(), b"") for tag in unique)), b"", 1 << 40)
    parts = _bytes(_BEFORE_TIME), _TIME_US, _bytes(record[len(_BEFORE_TIME) + 8 :])
    hashes = "{" + ",".join(str(tag_hash(tag)) for tag in unique) + "}"
    return _OF_STATEMENT.format(
        may_write=log.may_write,
        write=log.write(parts, f"{literal(hashes)}::bigint[]"),
        notify=log.notify,
        warn=log.warn,
    )


def of_rows(log: Log, event: str, templates: Sequence[Template], coarse: str) -> str:
    """Return the function that invalidates the tags of the rows that a statement has changed."""
    columns = sorted({column for template in templates for _, column in template if column is not None})
    tags = [_tag(template, "n") for template in templates]
    new = [f"new_{number}" for number in range(1, len(templates) + 1)]
    values = dict(zip(new, tags, strict=True))
    simple = [f"pg_catalog.octet_length({name}) OPERATOR(pg_catalog.<=) {LONGEST_TAG}" for name in new]
    if event == "UPDATE":
        old = [f"old_{number}" for number in range(1, len(templates) + 1)]
        values |= {name: _tag(template, "o") for name, template in zip(old, templates, strict=True)}
        simple += [f"{one} OPERATOR(pg_catalog.=) {other}" for one, other in zip(old, new, strict=True)]
    # An update has the rows before and after.
    most = MAX_ROWS * (2 if event == "UPDATE" else 1)
    rows = _ALL_ROWS[event].format(columns=", ".join(f"n.{_identifier(column)}" for column in columns))
    return _OF_ROWS.format(
        variables=" ".join(f"{name} pg_catalog.bytea;" for name in values),
        may_write_here=log.may_write_here,
        may_write=log.may_write,
        simple=" AND ".join(simple),
        values=", ".join(values.values()),
        names=", ".join(values),
        row=_ONE_ROW[event],
        write_row=_write_row(log, new),
        most=most * len(templates),
        tags=", ".join(tags),
        rows=rows,
        limit=most + 1,
        longest=LONGEST_TAG,
        coarse=literal(coarse),
        coarse_tag=f"pg_catalog.convert_to({literal(coarse)}, 'UTF8')",
        write_rows=_write_rows(log),
        notify=log.notify,
        warn=log.warn,
    )


def _write_row(log: Log, names: Sequence[str]) -> str:
    """Return the statements that write a record of the tags in some variables."""
    parts = [_bytes(_BEFORE_TIME), _TIME_US]
    before = _KIND + len(names).to_bytes(2, "big")
    for name in names:
        parts += [_bytes(before + _BEFORE_TAG), f"pg_catalog.int4send(pg_catalog.octet_length({name}))", name]
        before = _AFTER_TAG
    parts.append(_bytes(before))
    hashes = ", ".join(_HASH.format(tag=name) for name in names)
    # One tag needs no array.
    several = len(names) > 1
    return log.write(parts, f"ARRAY[{hashes}]" if several else hashes, several=several)


def _write_rows(log: Log) -> str:
    """Return the statements that write a record of the tags in the array `tags`."""
    one = (
        _bytes(_BEFORE_TAG),
        "pg_catalog.int4send(pg_catalog.octet_length(u.tag))",
        "u.tag",
        _bytes(_AFTER_TAG),
    )
    parts = (
        _bytes(_BEFORE_TIME),
        _TIME_US,
        _bytes(_KIND),
        "pg_catalog.int2send(pg_catalog.count(*)::smallint)",
        f"pg_catalog.string_agg({_CONCAT.join(one)}, {_bytes(b'')})",
    )
    source = " FROM pg_catalog.unnest(tags) AS u (tag)"
    hashes = f"ARRAY(SELECT {_HASH.format(tag='u.tag')}{source})"
    return log.write(parts, hashes, source=source)


def _tag(template: Template, row: str) -> str:
    """Return a template as an SQL expression: the bytes of the tag, so that no collation matters."""
    parts = []
    for text, column in template:
        if text:
            parts.append(literal(text))
        if column is not None:
            parts.append(f"coalesce({row}.{_identifier(column)}::pg_catalog.text, '')")
    return f"pg_catalog.convert_to({_CONCAT.join(parts)}, 'UTF8')"


def _bytes(data: bytes) -> str:
    return f"'\\x{data.hex()}'::pg_catalog.bytea"


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else "E'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
