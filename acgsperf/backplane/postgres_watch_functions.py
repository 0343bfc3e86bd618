"""The PL/pgSQL functions of the triggers that `PostgresBackplane.watch` installs.

Each event of each table has its own function. It is as short as possible, because every writer waits for it: in each
transaction PostgreSQL prepares every expression of a function again, which takes longer than the expression itself.

The functions run with the rights of their owner and with the search path of the writer, because setting another search
path takes longer than the rest of a short function. Therefore all functions, operators and types have their schemas.
"""

import re
from collections.abc import Sequence
from typing import Final

__all__ = [
    "LONGEST_TAG",
    "TRANSITION_TABLES",
    "NoteWriter",
    "Template",
    "literal",
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
    ELSE
        {warn}
    END IF;
    RETURN NULL;
END
"""
# Most statements change one row, and its tags stay the same. Then the first query is enough, and one short statement
# follows. Without the limit, a plan that is made when there are many rows would seem so expensive that PostgreSQL
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
    ELSE
        {warn}
    END IF;
    RETURN NULL;
END
"""
_WARN: Final = (
    "RAISE WARNING 'acgsperf: caches keep old values of %, because the owner of its trigger cannot insert into %: grant"
    " INSERT, or watch the table again', TG_RELID::pg_catalog.regclass, {changes};"
)
_INSERT: Final = "INSERT INTO {changes} (namespace, coarse, tags) VALUES ({namespace}, {coarse}, {tags});"


class NoteWriter:
    """Builds the SQL with which the functions of a watched table note a change.

    Args:
        schema: the schema of the table of changes, as SQL.
        changes: the name of that table.
        namespace: the namespace whose tags are invalidated.
        coarse: the tag that is invalidated instead if there are too many changes; None if no template has a column.
    """

    def __init__(self, schema: str, changes: str, namespace: str, coarse: str | None) -> None:
        changes = f"{schema}.{changes}"
        place = literal(changes)
        # This fails if the table does not exist.
        self.may_write_here: Final = _may_write(f"{place}::pg_catalog.regclass")
        # `to_regclass` fails without the right to use the schema. A schema that was renamed is NULL here.
        may_use = f"pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace({literal(schema)}), 'USAGE')"
        self.may_write: Final = f"{may_use} AND " + _may_write(f"pg_catalog.to_regclass({place})")
        self.warn: Final = _WARN.format(changes=place)
        self.coarse_tag: Final = "NULL" if coarse is None else _bytes(coarse.encode())
        self._parts = {"changes": changes, "namespace": literal(namespace), "coarse": self.coarse_tag}

    def write(self, tags: str) -> str:
        """Return the statement that notes a change; `tags` is an SQL expression."""
        return _INSERT.format(**self._parts, tags=tags)


def _may_write(place: str) -> str:
    return f"pg_catalog.has_table_privilege({place}, 'INSERT')"


def of_statement(notes: NoteWriter, tags: Sequence[str]) -> str:
    """Return the function that invalidates the same tags at each statement, without reading its rows."""
    unique = ", ".join(_bytes(tag.encode()) for tag in dict.fromkeys(tags))
    return _OF_STATEMENT.format(may_write=notes.may_write, write=notes.write(f"ARRAY[{unique}]"), warn=notes.warn)


def of_rows(notes: NoteWriter, event: str, templates: Sequence[Template], coarse: str) -> str:
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
        may_write_here=notes.may_write_here,
        may_write=notes.may_write,
        simple=" AND ".join(simple),
        values=", ".join(values.values()),
        names=", ".join(values),
        row=_ONE_ROW[event],
        write_row=notes.write(f"ARRAY[{', '.join(new)}]"),
        most=most * len(templates),
        tags=", ".join(tags),
        rows=rows,
        limit=most + 1,
        longest=LONGEST_TAG,
        coarse=literal(coarse),
        coarse_tag=notes.coarse_tag,
        write_rows=notes.write("tags"),
        warn=notes.warn,
    )


def _tag(template: Template, row: str) -> str:
    """Return a template as an SQL expression: the bytes of the tag, so that no collation matters."""
    # Not a cast: the owner of the table may define casts, and they would run with the rights of the function's owner.
    texts, columns = [], []
    for text, column in template:
        texts.append(text.replace("%", "%%"))
        if column is not None:
            texts.append("%s")
            columns.append(f", {row}.{_identifier(column)}")
    return f"pg_catalog.convert_to(pg_catalog.format({literal(''.join(texts))}{''.join(columns)}), 'UTF8')"


def _bytes(data: bytes) -> str:
    # Not a literal with a backslash, which depends on a setting of the writer.
    return f"pg_catalog.decode('{data.hex()}', 'hex')"


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else "E'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
