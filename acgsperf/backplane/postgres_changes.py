"""Carries the changes of watched tables into the log.

A writer waits for the trigger of a watched table, so the trigger only inserts a note: the tags of its statement. One
process, which holds an advisory lock, reads the table of notes every 10 ms. The other processes read it several times
within their timeout, so changes arrive even if the holder of the lock is paused.
"""

import logging
from collections.abc import Sequence
from math import inf, isfinite
from time import monotonic
from typing import Any, Final

import asyncpg
from xxhash import xxh3_64_intdigest

from acgsperf.backplane.postgres_watch_functions import LONGEST_TAG
from acgsperf.tiers.postgres_schema import Tables, channel_of, hash_of_tag
from acgsperf.tiers.records import Record, RecordKind, packed

__all__ = ["Changes"]

_log: Final = logging.getLogger("acgsperf.backplane")
_OFTEN_S: Final = 0.01
# If a process without the lock finds a note of this age, the holder of the lock may be paused. Then this process reads
# the notes every 10 ms too, until it has found no such note for a second.
_LATE_S: Final = 0.05
_STAND_IN_S: Final = 1.0
_RETRY_S: Final = 1.0
# The size of a batch; smaller after one that took too long. A full batch invalidates coarse tags, so that a backlog
# does not delay later changes, and so do the statements of a batch after this many tags or bytes.
_MOST: Final = 1_000
_LEAST: Final = 10
_MOST_TAGS: Final = 10_000
_MOST_BYTES: Final = 4 << 20
# Reading the notes takes at most this share of the time, even if there are many dead rows.
_SHARE: Final = 0.1

# Tables of the same name in other schemas have other locks.
_LEAD: Final = """
SELECT CASE WHEN pg_try_advisory_lock(number) THEN number END
FROM (SELECT $1 # to_regclass('{changes}')::oid::bigint AS number) AS lock
"""
_RELEASE: Final = "SELECT pg_advisory_unlock($1)"
_FIND: Final = f"""
SELECT ctid, xmin, namespace, coarse,
    CASE WHEN coarse IS NULL OR row_number() OVER seen = 1 OR sum(cardinality(tags)) OVER seen <= {_MOST_TAGS}
        AND sum(pg_column_size(tags)) OVER seen <= {_MOST_BYTES} THEN tags END,
    extract(epoch FROM changed_at)::double precision, extract(epoch FROM clock_timestamp())::double precision
FROM (SELECT ctid, xmin, * FROM {{changes}} LIMIT $1) AS note WINDOW seen AS (ROWS UNBOUNDED PRECEDING)
"""
# The same ctid may hold a newer row by now. Its xmin differs, so it is not deleted. If another process has carried all
# of these notes meanwhile, there is nothing to do; if it has carried some, they are carried twice, which does no harm.
# Locked tokens are skipped: the caches that get the record remove them. The commit does not wait for the disk: if a
# crash loses it, the notes are still there.
_CARRY: Final = """
WITH carried AS (DELETE FROM {changes} WHERE ctid = ANY($1::tid[]) AND xmin = ANY($2::xid[]) RETURNING true),
logged AS (
    INSERT INTO {log} (namespace, record)
    SELECT * FROM unnest($3::text[], $4::bytea[]) WHERE EXISTS (SELECT FROM carried)
),
removed AS (
    DELETE FROM {tags} WHERE ctid = ANY(ARRAY(
        SELECT t.ctid FROM {tags} t JOIN unnest($5::text[], $6::bigint[]) AS u (namespace, tag) USING (namespace, tag)
        FOR UPDATE OF t SKIP LOCKED
    ))
)
SELECT pg_notify(channel, ''), set_config('synchronous_commit', 'off', true) FROM unnest($7::text[]) AS channel
"""


class Changes:
    """The notes of the changes in watched tables.

    Args:
        tables: the tables of the cache.
        where: the server, for messages.

    Attributes:
        paused: whether nothing is carried, because this process may not read the log again.
    """

    def __init__(self, tables: Tables, where: str) -> None:
        self._tables = tables
        self._where = where
        self._lead = tables.fill(_LEAD)
        self._find = tables.fill(_FIND)
        self._carry = tables.fill(_CARRY)
        self._number = xxh3_64_intdigest(f"changes {tables.table}".encode()) - (1 << 63)
        # The lock that this process holds.
        self._lock: int | None = None
        self._often_until: float = -inf
        self._pause_s: float = _OFTEN_S
        self._next_at: float = -inf
        self._most = _MOST
        self._refused = False
        self.paused: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    @property
    def pause_s(self) -> float:
        """The seconds until the notes are to be read again, apart from the readings of the log."""
        return self._pause_s if self.leads or monotonic() < self._often_until else inf

    def disconnected(self) -> None:
        """Note that the lock went with the connection."""
        self._lock, self._often_until, self._next_at = None, -inf, -inf

    async def release(self, connection: Any) -> None:
        """Release the lock, so that another process reads the notes every 10 ms."""
        self._often_until = -inf
        if self._lock is not None:
            await connection.fetchval(_RELEASE, self._lock)
            self._lock = None

    async def carry(self, connection: Any, pause_s: float) -> None:
        """Carry a batch of notes into the log, if the server lets this process do so, and no other process does.

        Args:
            connection: to the server.
            pause_s: how often to look whether the process that does is late, in seconds.
        """
        now = monotonic()
        if self.paused or now < self._next_at:
            return
        self._next_at = now + pause_s
        try:
            if self._lock is None:
                self._lock = await connection.fetchval(self._lead, self._number)
            began = monotonic()
            rows = await connection.fetch(self._find, self._most)
            self._pause_s = max(_OFTEN_S, (monotonic() - began) / _SHARE)
            late = _oldest_s(rows) > _LATE_S
            if late or self.leads:
                await self._carry_rows(connection, rows)
        except asyncpg.QueryCanceledError:
            # The server has a limit of its own.
            self.took_too_long()
            return
        except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
            raise
        except asyncpg.PostgresError as error:
            await self.release(connection)
            if not (isinstance(error, asyncpg.UndefinedTableError) and self._tables.changes in str(error)):
                self._refuse(error)
            # Otherwise the last watch has just ended.
            return
        if rows:
            self._refused = False
        self._most = min(2 * self._most, _MOST)
        if late:
            self._often_until = monotonic() + _STAND_IN_S
        self._next_at = now + max(self._pause_s, 0.0 if self.pause_s < inf else pause_s)

    def took_too_long(self) -> None:
        """Try again later, with fewer notes: the table may be locked, or have many dead rows."""
        self._next_at = monotonic() + _RETRY_S
        self._most = max(self._most // 4, _LEAST)

    async def carry_all(self, connection: Any, batches: float = inf) -> None:
        """Carry all notes into the log, or at most some batches."""
        rows = [None] * _MOST
        while len(rows) == _MOST and batches > 0:
            batches -= 1
            rows = await connection.fetch(self._find, _MOST)
            await self._carry_rows(connection, rows)

    async def _carry_rows(self, connection: Any, rows: Sequence[Any]) -> None:
        if rows:
            await connection.fetch(self._carry, *self._arguments(rows))

    def _arguments(self, rows: Sequence[Any]) -> tuple[list[Any], ...]:
        """Return the arguments of the statement that carries some notes."""
        records: dict[tuple[str, bytes], None] = {}
        removed: dict[tuple[str, int], None] = {}
        for *_, namespace, coarse, tags, at, _ in rows:
            if coarse is not None and (tags is None or len(rows) >= self._most):
                tags, at = [coarse], 0
            # Another program may have written anything.
            names = [*dict.fromkeys(tag for tag in tags if isinstance(tag, bytes) and len(tag) <= LONGEST_TAG)]
            record = Record(RecordKind.TAG, tuple((tag, b"") for tag in names))
            records[namespace, packed(record, b"", _microseconds(at))] = None
            removed.update(((namespace, hash_of_tag(tag)), None) for tag in names)
        channels = {channel_of(self._tables.table, namespace) for namespace, _ in records}
        return (
            *([row[0] for row in rows], [row[1] for row in rows]),
            *([namespace for namespace, _ in records], [record for _, record in records]),
            *([namespace for namespace, _ in removed], [tag for _, tag in removed]),
            sorted(channels),
        )

    def _refuse(self, error: Exception) -> None:
        self._next_at = monotonic() + _RETRY_S
        if not self._refused:
            self._refused = True
            _log.warning(
                "postgres backplane at %s: cannot carry the changes of watched tables into the log (%s); unless another"
                " process does, caches keep old values. The user needs SELECT and DELETE on %s, INSERT on %s, and "
                "SELECT, UPDATE and DELETE on %s; trying again every %g s",
                *(self._where, error, self._tables.changes, self._tables.log, self._tables.tags, _RETRY_S),
            )


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6) if isfinite(seconds) and 0 <= seconds < 1e12 else 0


def _oldest_s(rows: Sequence[Any]) -> float:
    return max((now - at for *_, at, now in rows), default=-inf)
