"""Carries the changes of watched tables into the log.

A writer waits for the trigger of a watched table, so the trigger only notes in a table which tags its statement
concerns. The processes of the cache look into this table. One of them, which holds an advisory lock, does so every
10 ms. If that process is paused, the others find the changes, because they look each time they read the log.
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
# For this time after a change a process that does not hold the lock looks as often: the one that does may be paused.
_STAND_IN_S: Final = 1.0
_RETRY_S: Final = 1.0
# If there are more changes than this, their coarse tags are invalidated, so that the others do not have to wait.
_MOST: Final = 1_000

_LEAD: Final = "SELECT pg_try_advisory_lock($1)"
_FOLLOW: Final = "SELECT pg_advisory_unlock($1)"
_FIND: Final = f"""
SELECT ctid, xmin, namespace, coarse, tags, extract(epoch FROM changed_at)::double precision
FROM {{changes}} LIMIT {_MOST}
"""
# A place may have got another row since, but not one of a transaction that was seen before. If another process carries
# the same changes at the same time, there are two records, which does no harm. The tokens that are in use are left to
# the caches that get the record. The commit need not wait for the disk: if it is lost, the changes are there again.
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
    """The changes that are noted in one table.

    Args:
        tables: the tables of the cache.

    Attributes:
        leads: whether this process holds the lock.
    """

    def __init__(self, tables: Tables) -> None:
        self.leads: bool = False
        self._tables = tables
        self._find = tables.fill(_FIND)
        self._carry = tables.fill(_CARRY)
        self._lock = xxh3_64_intdigest(f"changes {tables.table}".encode()) - (1 << 63)
        self._often_until: float = -inf
        self._refused = False
        self._retry_at: float = -inf

    @property
    def pause_s(self) -> float:
        """The seconds until the table is to be looked at again, apart from the readings of the log."""
        return _OFTEN_S if self.leads or monotonic() < self._often_until else inf

    def disconnected(self) -> None:
        """Note that the lock went with the connection."""
        self.leads, self._often_until, self._retry_at = False, -inf, -inf

    async def lead(self, connection: Any) -> None:
        """Look often from now on, unless another process does."""
        if not self.leads:
            self.leads = await connection.fetchval(_LEAD, self._lock)

    async def follow(self, connection: Any) -> None:
        """Let another process look often."""
        self._often_until = -inf
        if self.leads:
            self.leads = False
            await connection.fetchval(_FOLLOW, self._lock)

    async def carry(self, connection: Any) -> None:
        """Carry changes into the log, at most 1,000, if the server lets this process do so."""
        if monotonic() < self._retry_at:
            return
        try:
            if not await self.carry_some(connection):
                return
        except asyncpg.UndefinedTableError:
            # The last watch has just ended.
            await self.follow(connection)
            return
        except asyncpg.InsufficientPrivilegeError as error:
            self._refuse(error)
            await self.follow(connection)
            return
        self._refused = False
        self._often_until = monotonic() + _STAND_IN_S

    async def carry_some(self, connection: Any) -> bool:
        """Carry at most 1,000 changes into the log. Return False if there are none."""
        rows = await connection.fetch(self._find)
        if rows:
            await connection.fetch(self._carry, *self._arguments(rows))
        return bool(rows)

    def _arguments(self, rows: Sequence[Any]) -> tuple[list[Any], ...]:
        """Return the arguments of the statement that carries some changes."""
        records: dict[tuple[str, bytes], None] = {}
        removed: dict[tuple[str, int], None] = {}
        for *_, namespace, coarse, tags, at in rows:
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
                "postgres backplane: this process cannot carry the changes of watched tables into the log (%s); the "
                "user needs SELECT and DELETE on %s, INSERT on %s, and SELECT, UPDATE and DELETE on %s; it tries again",
                *(error, self._tables.changes, self._tables.log, self._tables.tags),
            )


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6) if isfinite(seconds) and 0 <= seconds < 1e12 else 0
