"""The SQL of the PostgreSQL tier.

Rules that the statements keep, so that processes never deadlock and no write comes late:

- Tokens of tags are locked before entries, and both in ascending order. Statements that only remove rows skip
  locked ones.
- A write is compared with its deadline when its row is reached, and again after waiting for the lock of a row. The rows
  are sorted in a sub-select with OFFSET 0, which keeps the planner from comparing all of them before the first lock.
- The clock is `clock_timestamp()`: `now()` is when the transaction began.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from acgsperf.tiers.postgres_schema import INVALIDATIONS, NAMESPACE, Tables

__all__ = ["MOST_AHEAD_S", "ROWS_A_STATEMENT", "Statement", "Statements"]

ROWS_A_STATEMENT: Final = 1_000
# A stamp further ahead of the server's clock comes from no process, and supersedes nothing.
MOST_AHEAD_S: Final = 86_400
# If no process of a namespace is left, others remove its rows, this long after they have expired.
_FOREIGN_S: Final = 86_400

_PARAMETER: Final = re.compile(r"(?<!:):([a-z_]+)")
_NOW: Final = "extract(epoch FROM clock_timestamp())::double precision"


def _reversed(eight_bytes: str) -> str:
    """Return SQL for eight bytes in reverse order, so that numbers compare as bytes do, or are little-endian again."""
    parts = " || ".join(f"substr(b, {at}, 1)" for at in range(8, 0, -1))
    return f"(SELECT {parts} FROM (SELECT {eight_bytes} OFFSET 0) AS r (b))"


def _fresh_until(time: str, value: str) -> str:
    """Return SQL for an envelope that is fresh until a time, or as before if that is earlier (offset 32)."""
    earlier = f"least({_reversed(f'substr({value}, 33, 8)')}, float8send({time}))"
    return f"overlay({value} PLACING {_reversed(earlier)} FROM 33)"


# The value of a row: NULL if the token of a tag has changed, empty if it is too large. If a soft invalidation has made
# the row stale, the value is fresh until that time.
_VALUE: Final = f"""
CASE WHEN tags IS NULL THEN {{limited}} ELSE (
    SELECT CASE WHEN count(*) < cardinality(c.tags) THEN NULL
        WHEN max(t.stale_before) > c.created_at * 1e6 AND octet_length(value) <= :limit
        THEN {_fresh_until("(max(t.stale_before) / 1e6)::double precision", "value")} ELSE {{limited}} END
    FROM {{tags}} t WHERE t.namespace = :namespace AND t.tag = ANY(c.tags) AND t.token = ANY(c.tokens)
) END"""
_LIMITED: Final = "CASE WHEN octet_length(value) > :limit THEN '' ELSE value END"
_GENERATION: Final = "(SELECT token FROM {tags} WHERE namespace = :namespace AND tag = {namespace_tag})"
# The keys travel as one text, because asyncpg needs longer to encode an array than the server to parse its text. A
# sub-select parses it once; a filter would parse it again for each row.
_KEYS: Final = "namespace = :namespace AND key = ANY((SELECT :keys::text::bytea[])::bytea[])"

# The sub-select for tags costs a batch 8 us even if no row has any. This one returns rows with tags as empty.
_GET_UNTAGGED: Final = """
SELECT key, CASE WHEN tags IS NULL AND octet_length(value) <= :limit THEN value ELSE '' END
FROM {entries} c WHERE {keys} AND generation = {generation} AND value IS NOT NULL
"""
_GET: Final = "SELECT key, {value} FROM {entries} c WHERE {keys} AND generation = {generation} AND value IS NOT NULL"
_LOOK_UP: Final = """
SELECT key, CASE WHEN generation = {generation} THEN {value} END, id, stamp, 0::double precision
FROM {entries} c WHERE {keys}
UNION ALL
SELECT NULL, int8send(tag), int8send(token) || int8send(stale_before), (expires_at >= {now} + :retention)::int, {now}
FROM {tags} WHERE namespace = :namespace AND tag = ANY(:tags::bigint[])
"""
_PEEK: Final = """
SELECT c.key, c.id, c.stamp, {now} FROM (SELECT 1) one
LEFT JOIN {entries} c ON namespace = :namespace AND key = ANY(:keys::bytea[])
"""
_ENSURE: Final = """
INSERT INTO {tags} AS t (namespace, tag, token, expires_at)
SELECT :namespace, tag, token, {now} + lifetime
FROM unnest(:tags::bigint[], :tokens::bigint[], :lifetimes::double precision[]) AS w (tag, token, lifetime) ORDER BY tag
ON CONFLICT (namespace, tag) DO UPDATE SET expires_at = greatest(t.expires_at, excluded.expires_at)
RETURNING tag, token, stale_before
"""
_ADD_GENERATION: Final = """
INSERT INTO {tags} (namespace, tag, token, expires_at)
VALUES (:namespace, {namespace_tag}, ({now} * 1e6)::bigint, 'infinity'),
    (:namespace, {invalidations}, :token, 'infinity')
ON CONFLICT DO NOTHING
"""

# Explicit writes. `given` has one row for each key; kept_until is NULL for a tombstone.
_GIVEN: Final = """
given AS (
    SELECT key, id, stamp, value, least(created_at, {now}) AS created_at, coalesce(kept_until, {now}) AS kept_until,
        tags::bigint[] AS tags
    FROM unnest(:keys::bytea[], :ids::bytea[], :stamps::bigint[], :values::bytea[], :created::double precision[],
        :kept::double precision[], :tags::text[]) AS g (key, id, stamp, value, created_at, kept_until, tags)
)"""
# Tokens that are missing are created, and tokens that end before the entry are extended. A reserve saves most writes
# from extending a token. Only tokens that are changed are locked.
_TAGGED: Final = """
wanted AS (
    SELECT * FROM unnest(:wanted::bigint[], :until::double precision[], :tokens::bigint[]) AS w (tag, expires_at, token)
), ensured AS (
    INSERT INTO {tags} AS t (namespace, tag, token, expires_at)
    SELECT :namespace, w.tag, w.token, w.expires_at + :reserve
    FROM wanted w LEFT JOIN {tags} t ON t.namespace = :namespace AND t.tag = w.tag
    WHERE t.expires_at IS NULL OR t.expires_at < w.expires_at ORDER BY w.tag
    ON CONFLICT (namespace, tag) DO UPDATE SET expires_at = greatest(t.expires_at, excluded.expires_at)
    RETURNING tag, token
), current AS (
    SELECT tag, token FROM ensured
    UNION ALL
    SELECT t.tag, t.token FROM {tags} t JOIN wanted w ON t.namespace = :namespace AND t.tag = w.tag
    WHERE NOT EXISTS (SELECT FROM ensured e WHERE e.tag = t.tag)
), marked AS (
    SELECT g.key, array_agg(c.token) AS tokens
    FROM given g CROSS JOIN unnest(g.tags) AS u (tag) JOIN current c USING (tag) GROUP BY g.key
)"""
_WRITTEN: Final = """
written AS (
    INSERT INTO {entries} AS c (namespace, key, id, stamp, generation, created_at, kept_until, tags, tokens, value)
    SELECT :namespace, key, id, stamp, generation, created_at, kept_until, tags, tokens, value
    FROM (
        SELECT g.*, {tokens} AS tokens, n.token AS generation FROM given g {marked}
        CROSS JOIN (SELECT token FROM {tags} WHERE namespace = :namespace AND tag = {namespace_tag}) n
        ORDER BY g.key OFFSET 0
    ) s
    WHERE {now} < :deadline
    ON CONFLICT (namespace, key) DO UPDATE SET {updated}
    WHERE {now} < :deadline
    AND (c.stamp < excluded.stamp OR c.id = excluded.id OR c.stamp > ({now} + {most_ahead}) * 1000000)
    RETURNING c.key
)"""
_REPLACED: Final = ", ".join(
    f"{name} = excluded.{name}"
    for name in ("id", "stamp", "generation", "created_at", "kept_until", "tags", "tokens", "value")
)
# The former entry stays and is stale from now on. The new id and stamp are the first 16 bytes of an envelope. If
# there is no entry, the tombstone supersedes loads that have begun earlier.
_EXPIRED: Final = f"""id = excluded.id, stamp = excluded.stamp,
        kept_until = CASE WHEN c.value IS NULL THEN excluded.kept_until ELSE c.kept_until END,
        value = overlay({_fresh_until("{now}", "c.value")}
            PLACING excluded.id || int8send(excluded.stamp) FROM 1)"""
_LOGGED: Final = """
logged AS (
    INSERT INTO {log} (namespace, record) SELECT :namespace, record FROM unnest(:records::bytea[]) AS r (record)
    WHERE EXISTS (SELECT FROM {cause}) RETURNING pg_notify(:channel, '')
)"""
# Whether there was a valid entry before: the outer statement still sees the former row.
_FORMER: Final = """
EXISTS (
    SELECT FROM {entries} c WHERE c.namespace = :namespace AND c.key = w.key AND c.value IS NOT NULL
    AND c.kept_until > {now} AND c.generation = {generation} AND (c.tags IS NULL OR cardinality(c.tags) = (
        SELECT count(*) FROM {tags} t
        WHERE t.namespace = :namespace AND t.tag = ANY(c.tags) AND t.token = ANY(c.tokens)
    ))
)"""

# Conditional stores. `pairs` has a row for each tag of each entry, with the observed token. If none was observed, it is
# NULL, and the statement creates the token. If another process creates it at the same time, the reason may be an
# invalidation, so the entry is not stored.
_STORES: Final = """
WITH given AS (
    SELECT *, tags::bigint[] AS tag_array
    FROM unnest(:keys::bytea[], :observed::bytea[], :ids::bytea[], :stamps::bigint[], :values::bytea[],
        :created::double precision[], :kept::double precision[], :tags::text[], :not_after::double precision[],
        :generations::bigint[], :invalidations::bigint[], :positions::text[], :copied::boolean[])
        AS g (key, observed, id, stamp, value, created_at, kept_until, tags, not_after, seen_generation,
        seen_invalidations, position, copied)
), pairs AS (
    SELECT * FROM unnest(:pair_keys::bytea[], :pair_tags::bigint[], :pair_tokens::bigint[], :pair_stale::bigint[])
        AS p (key, tag, token, stale_before)
), wanted AS (
    SELECT * FROM unnest(:wanted::bigint[], :until::double precision[], :tokens::bigint[]) AS w (tag, expires_at, token)
), ensured AS (
    INSERT INTO {tags} AS t (namespace, tag, token, expires_at)
    SELECT :namespace, w.tag, w.token, w.expires_at + :reserve
    FROM wanted w LEFT JOIN {tags} t ON t.namespace = :namespace AND t.tag = w.tag
    WHERE t.expires_at < w.expires_at OR (
        t.expires_at IS NULL AND EXISTS (SELECT FROM pairs p WHERE p.tag = w.tag AND p.token IS NULL)
    ) ORDER BY w.tag
    ON CONFLICT (namespace, tag) DO UPDATE SET expires_at = greatest(t.expires_at, excluded.expires_at)
    RETURNING tag, token
), marked AS (
    SELECT p.key, count(*) AS tokens_found, array_agg(coalesce(t.token, w.token)) AS tokens,
        bool_or(t.copies_refused) AS copies_refused
    FROM pairs p JOIN wanted w USING (tag) LEFT JOIN {tags} t ON t.namespace = :namespace AND t.tag = p.tag
    LEFT JOIN ensured e ON e.tag = p.tag AND e.token = w.token
    WHERE (t.token = p.token AND t.stale_before = p.stale_before)
        OR (p.token IS NULL AND (t.token IS NOT NULL OR e.token IS NOT NULL))
    GROUP BY p.key
), checked AS (
    SELECT g.*, n.token AS generation, m.tokens FROM given g LEFT JOIN marked m USING (key)
    CROSS JOIN (SELECT * FROM {tags} WHERE namespace = :namespace AND tag = {namespace_tag}) n
    CROSS JOIN (SELECT count(*) FROM ensured) x
    WHERE coalesce(cardinality(g.tag_array), 0) = coalesce(m.tokens_found, 0)
    AND (g.seen_generation IS NULL OR g.seen_generation = n.token)
    AND (g.seen_invalidations IS NULL OR g.seen_invalidations = (
        SELECT token FROM {tags} WHERE namespace = :namespace AND tag = {invalidations}
    ))
    AND NOT (g.copied AND (n.copies_refused OR coalesce(m.copies_refused, false)))
    AND (g.position IS NULL OR NOT EXISTS (
        SELECT FROM {log} l WHERE l.namespace = :namespace AND l.xid >= g.position::xid8
    ))
)"""
# A load counts as old as its observation, because a soft invalidation since then may not have been committed yet.
_CREATED: Final = "least(s.created_at, s.not_after - :retention, {now})"
_STORE_NEW: Final = """
INSERT INTO {entries} AS c (namespace, key, id, stamp, generation, created_at, kept_until, tags, tokens, value)
SELECT :namespace, key, id, stamp, generation, {created}, kept_until, tag_array, tokens, value
FROM (SELECT * FROM checked ORDER BY key OFFSET 0) s WHERE {now} < not_after AND {now} < :deadline
ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value WHERE c.id = excluded.id
RETURNING c.key
"""
_STORE_OVER: Final = """
UPDATE {entries} c SET id = s.id, stamp = s.stamp, generation = s.generation, created_at = {created},
    kept_until = s.kept_until, tags = s.tag_array, tokens = s.tokens, value = s.value
FROM (
    SELECT g.* FROM {entries} c JOIN checked g ON c.namespace = :namespace AND c.key = g.key
    WHERE c.id = g.observed OR c.id = g.id ORDER BY c.key OFFSET 0 FOR UPDATE OF c
) s
WHERE c.namespace = :namespace AND c.key = s.key AND {now} < s.not_after AND {now} < :deadline
RETURNING c.key
"""

# The token is replaced and not deleted, so that it conflicts with a store that creates the token at the same time.
_INVALIDATE: Final = """
gone AS (
    INSERT INTO {tags} AS t (namespace, tag, token, copies_refused, expires_at)
    SELECT :namespace, :tag, :new_token, :refused_below, {now} + :lifetime WHERE {now} < :deadline
    ON CONFLICT (namespace, tag) DO UPDATE SET token = excluded.token, stale_before = 0,
        copies_refused = excluded.copies_refused, expires_at = excluded.expires_at
    RETURNING (SELECT token FROM {tags} WHERE namespace = :namespace AND tag = :tag)
)"""
# Generations only grow, so that a `clear` also removes the rows that an earlier one has not removed.
_CLEAR: Final = """
gone AS (
    INSERT INTO {tags} AS t (namespace, tag, token, copies_refused, expires_at)
    SELECT :namespace, {namespace_tag}, ({now} * 1e6)::bigint, :refused_below, 'infinity' WHERE {now} < :deadline
    ON CONFLICT (namespace, tag) DO UPDATE SET token = greatest(excluded.token, t.token + 1),
        copies_refused = excluded.copies_refused
    RETURNING token
)"""
_COUNTED: Final = """
counted AS (
    INSERT INTO {tags} (namespace, tag, token, expires_at)
    SELECT :namespace, {invalidations}, :count, 'infinity' WHERE {now} < :deadline
    ON CONFLICT (namespace, tag) DO UPDATE SET token = excluded.token RETURNING 1
)"""
_SOFT: Final = """
soft AS (
    UPDATE {tags} SET stale_before = ({now} * 1e6)::bigint
    WHERE namespace = :namespace AND tag = :tag AND {now} < :deadline RETURNING 1
)"""
_IN_TIME: Final = "in_time AS (SELECT 1 WHERE {now} < :deadline)"
_UNDO: Final = """
undone AS (
    UPDATE {entries} c SET id = substring(uuid_send(gen_random_uuid()) FOR 8), value = NULL, tags = NULL, tokens = NULL,
        kept_until = {now}
    FROM (
        SELECT c.key, c.id FROM {entries} c JOIN unnest(:keys::bytea[], :ids::bytea[]) AS g (key, id) USING (key, id)
        WHERE c.namespace = :namespace ORDER BY c.key FOR UPDATE OF c
    ) s
    WHERE c.namespace = :namespace AND c.key = s.key AND c.id = s.id RETURNING c.key
)"""

# The rows of an invalidated tag become tombstones with the same id and stamp, which loads in flight compare.
_BURY: Final = """
WITH doomed AS (
    SELECT key, kept_until > {now} AS valid FROM {entries}
    WHERE namespace = :namespace AND tags IS NOT NULL AND tags @> ARRAY[:tag::bigint]
    AND tokens @> ARRAY[:token::bigint] LIMIT {rows} FOR UPDATE SKIP LOCKED
), gone AS (
    UPDATE {entries} c SET value = NULL, tags = NULL, tokens = NULL, kept_until = {now} FROM doomed
    WHERE c.namespace = :namespace AND c.key = doomed.key RETURNING doomed.valid
)
SELECT count(*), count(*) FILTER (WHERE valid) FROM gone
"""
# A store compares the generation, so `clear` needs no tombstones.
_SWEEP: Final = """
WITH doomed AS (
    SELECT key, value IS NOT NULL AND kept_until > {now} AS valid FROM {entries}
    WHERE namespace = :namespace AND generation < :generation ORDER BY key LIMIT {rows} FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {entries} c USING doomed WHERE c.namespace = :namespace AND c.key = doomed.key RETURNING doomed.valid
)
SELECT count(*), count(*) FILTER (WHERE valid) FROM gone
"""
# The clock is read in a sub-select, because a volatile function cannot be compared over an index. The index is partial.
_REMOVE: Final = """
WITH gone AS (
    DELETE FROM {table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM {table}
        WHERE {time} < (SELECT {now} - :retention) AND {time} < 'infinity'
        AND (namespace = :namespace OR {time} < (SELECT {now} - {foreign}))
        LIMIT {rows} FOR UPDATE SKIP LOCKED
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""


class Statement:
    """A statement with named parameters.

    Attributes:
        sql: the statement with numbered parameters.
    """

    __slots__ = ("_names", "sql")

    def __init__(self, text: str) -> None:
        self._names: Final = tuple(dict.fromkeys(_PARAMETER.findall(text)))
        numbers = {name: f"${number}" for number, name in enumerate(self._names, 1)}
        self.sql: Final = _PARAMETER.sub(lambda match: numbers[match[1]], text)

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the arguments in order."""
        return [values[name] for name in self._names]


class Statements:
    """The statements for the tables of a tier."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.get: Final = self._statement(_GET)
        self.get_untagged: Final = self._statement(_GET_UNTAGGED)
        self.look_up: Final = self._statement(_LOOK_UP)
        self.peek: Final = self._statement(_PEEK)
        self.ensure: Final = self._statement(_ENSURE)
        self.add_generation: Final = self._statement(_ADD_GENERATION)
        self.store_new: Final = self._statement(_STORES + _STORE_NEW)
        self.store_over: Final = self._statement(_STORES + _STORE_OVER)
        self.bury: Final = self._statement(_BURY)
        self.sweep: Final = self._statement(_SWEEP)
        self.remove: Final = tuple(
            self._statement(_REMOVE, table=table, time=time)
            for table, time in ((tables.entries, "kept_until"), (tables.tags, "expires_at"), (tables.log, "logged_at"))
        )
        self.write: Final = cache(self._write)
        self.invalidate: Final = cache(self._invalidate)
        self.expire_tag: Final = cache(self._expire_tag)
        self.undo: Final = cache(self._undo)

    def _write(
        self, *, tagged: bool = False, logged: bool = False, counted: bool = False, soft: bool = False
    ) -> Statement:
        """Explicit writes. It returns the keys that were written, and whether they had an entry.

        Args:
            tagged: whether an entry has a tag.
            logged: whether a record is put into the log.
            counted: whether the result says which keys had an entry.
            soft: makes entries stale instead of replacing them.
        """
        parts = [_GIVEN, *([_TAGGED] if tagged else []), _WRITTEN, *([_LOGGED] if logged else [])]
        return self._statement(
            f"WITH {','.join(parts)} SELECT key, {_FORMER if counted else 'false'} FROM written w",
            cause="written",
            updated=_EXPIRED if soft else _REPLACED,
            tokens="m.tokens" if tagged else "NULL::bigint[]",
            marked="LEFT JOIN marked m USING (key)" if tagged else "",
        )

    def _invalidate(self, *, clear: bool = False, logged: bool = False) -> Statement:
        """Invalidations. It returns the former token, or for `clear` the new generation, and whether it was in time."""
        parts = [_IN_TIME, _CLEAR if clear else _INVALIDATE, _COUNTED, *([_LOGGED] if logged else [])]
        result = "SELECT (SELECT token FROM gone), EXISTS (SELECT FROM in_time), {now}"
        return self._statement(f"WITH {','.join(parts)} {result}", cause="in_time")

    def _expire_tag(self, *, logged: bool = False) -> Statement:
        parts = [_IN_TIME, _SOFT, *([_LOGGED] if logged else [])]
        return self._statement(
            f"WITH {','.join(parts)} SELECT NULL, EXISTS (SELECT FROM in_time), {{now}}", cause="in_time"
        )

    def _undo(self, *, logged: bool = False) -> Statement:
        parts = [_UNDO, *([_LOGGED] if logged else [])]
        return self._statement(f"WITH {','.join(parts)} SELECT key FROM undone", cause="undone")

    def _statement(self, text: str, **parts: object) -> Statement:
        names = {"namespace_tag": NAMESPACE, "invalidations": INVALIDATIONS, "now": _NOW, "rows": ROWS_A_STATEMENT}
        names |= {"value": _VALUE, "keys": _KEYS, "generation": _GENERATION, "limited": _LIMITED, "foreign": _FOREIGN_S}
        names |= {"created": _CREATED, "most_ahead": MOST_AHEAD_S}
        for _ in range(3):
            # Parts contain parts.
            text = self._tables.fill(text, **names | parts)
        return Statement(text)
