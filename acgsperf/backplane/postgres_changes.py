"""Carries the changes of watched tables into the log.

A writer waits for the trigger of a watched table, so the trigger only inserts a note: the tags of its statement. One
process, which holds an advisory lock, reads the table of notes every 10 ms. Every other process reads it each time it
reads the log, so changes arrive even if the holder of the lock is paused.
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
# If a process without the lock finds a note of this age, the holder of the lock may be paused. Then it reads the table
# as often, until there was no such note for a second.
_LATE_S: Final = 0.05
_STAND_IN_S: Final = 1.0
_RETRY_S: Final = 1.0
# The size of a batch. A full batch invalidates coarse tags, so that a backlog does not delay later changes.
_MOST: Final = 1_000

_LEAD: Final = "SELECT pg_try_advisory_lock($1)"
_RELEASE: Final = "SELECT pg_advisory_unlock($1)"
_FIND: Final = f"""
SELECT ctid, xmin, namespace, coarse, tags, extract(epoch FROM changed_at)::double precision,
    extract(epoch FROM clock_timestamp())::double precision
FROM {{changes}} LIMIT {_MOST}
"""
# The same ctid may hold a newer row by now. Its xmin differs, so it is not deleted. If another process carries the same
# notes at the same time, there are two records, which does no harm. Locked tokens are skipped: the caches that get the
# record remove them. The commit does not wait for the disk: if a crash loses it, the notes are still there.
_CARRY: Final = """
WITH carried AS (DELETE FROM {changes} WHERE ctid = ANY($1::tid[]) AND xmin = ANY($2::xid[])),
logged AS (INSERT INTO {log} (namespace, record) SELECT * FROM unnest($3::text[], $4::bytea[])),
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
        leads: whether this process holds the lock.
    """

    def __init__(self, tables: Tables, where: str) -> None:
        self.leads: bool = False
        self._tables = tables
        self._where = where
        self._find = tables.fill(_FIND)
        self._carry = tables.fill(_CARRY)
        self._lock = xxh3_64_intdigest(f"changes {tables.table}".encode()) - (1 << 63)
        self._often_until: float = -inf
        self._refused = False
        self._retry_at: float = -inf

    @property
    def pause_s(self) -> float:
        """The seconds until the notes are to be read again, apart from the readings of the log."""
        return _OFTEN_S if self.leads or monotonic() < self._often_until else inf

    def disconnected(self) -> None:
        """Note that the lock went with the connection."""
        self.leads, self._often_until, self._retry_at = False, -inf, -inf

    async def lead(self, connection: Any) -> None:
        """Try to take the lock, which lets this process read the notes every 10 ms."""
        if not self.leads and monotonic() >= self._retry_at:
            self.leads = await connection.fetchval(_LEAD, self._lock)

    async def release(self, connection: Any) -> None:
        """Release the lock, so that another process reads the notes every 10 ms."""
        self._often_until = -inf
        if self.leads:
            await connection.fetchval(_RELEASE, self._lock)
            self.leads = False

    async def carry(self, connection: Any) -> None:
        """Carry a batch of notes into the log, if the server lets this process do so."""
        if monotonic() < self._retry_at:
            return
        try:
            oldest_s = await self.carry_batch(connection)
        except asyncpg.UndefinedTableError:
            # The last watch has just ended.
            await self.release(connection)
            return
        except asyncpg.InsufficientPrivilegeError as error:
            self._refuse(error)
            await self.release(connection)
            return
        self._refused = False
        if oldest_s > _LATE_S:
            self._often_until = monotonic() + _STAND_IN_S

    async def carry_batch(self, connection: Any) -> float:
        """Carry a batch of notes into the log. Return the age of the oldest, in seconds; -inf if there are none."""
        rows = await connection.fetch(self._find)
        if rows:
            await connection.fetch(self._carry, *self._arguments(rows))
        return max((now - at for *_, at, now in rows), default=-inf)

    def _arguments(self, rows: Sequence[Any]) -> tuple[list[Any], ...]:
        """Return the arguments of the statement that carries some notes."""
        records: dict[tuple[str, bytes], None] = {}
        removed: dict[tuple[str, int], None] = {}
        for *_, namespace, coarse, tags, at, _ in rows:
            if coarse is not None and len(rows) == _MOST:
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
        self._retry_at = monotonic() + _RETRY_S
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
