"""The state of one log in a PostgreSQL database that a reader follows."""

import asyncio
from math import inf
from typing import Final

from acgsperf.backplane.receiver import Receiver
from acgsperf.tiers.postgres_schema import Tables, position_bytes

__all__ = ["Log"]

_FIRST_PAUSE_S: Final = 0.005
_RECENT_S: Final = 0.25

# One statement, so that the records and the snapshot belong together. Another file number says that the table was
# truncated or created anew.
_READ: Final = """
SELECT pg_current_snapshot()::text, pg_snapshot_xmin(pg_current_snapshot())::text, one.file,
    extract(epoch FROM clock_timestamp())::double precision, l.namespace, l.record
FROM (SELECT relfilenode AS file FROM pg_catalog.pg_class WHERE oid = '{log}'::regclass) one
LEFT JOIN {log} l ON l.namespace = ANY($1::text[])
    AND l.xid >= pg_snapshot_xmin($2::text::pg_snapshot) AND NOT pg_visible_in_snapshot(l.xid, $2::text::pg_snapshot)
ORDER BY l.xid
"""


class Log:
    """The log in one table, with the namespaces that are followed.

    Attributes:
        tables: the names of the tables.
        receivers: the caches, by namespace.
        snapshot: the snapshot of the last reading; empty if the log is not followed.
        xmin: the oldest transaction that was in progress then.
        read_at: the time of the last reading, by the server's clock.
        level_at: the same time, by `time.monotonic`.
        pause_s: the seconds until the next reading if there is no notification before.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables: Final = tables
        self.receivers: dict[str, dict[Receiver, None]] = {}
        self.snapshot: str = ""
        self.xmin = 0
        self.file = 0
        self.read_at: float = 0.0
        self.level_at: float = 0.0
        self.recovering = self.refused = False
        self.retry_at: float = 0.0
        # A snapshot, and the server's time from which on the records that it saw may be removed.
        self.old: tuple[str, float] = ("", 0.0)
        self.swept_at: float = 0.0
        self.settled: Final = asyncio.Event()
        self.pause_s: float = inf
        self._watched_at: float = -inf
        self.read_sql: Final = tables.fill(_READ)

    @property
    def all_receivers(self) -> list[Receiver]:
        """The caches that follow this log."""
        return [receiver for group in self.receivers.values() for receiver in group]

    @property
    def position(self) -> bytes:
        """The position in the log, as the tier compares it."""
        return position_bytes(self.xmin)

    def plan_next(self, watched: bool, notified: bool, in_flight: bool) -> None:
        """Plan another reading soon if a transaction in flight may end without a notification.

        Of transactions that change watched tables at the same time, one notifies, and the others have a lock until they
        end. So after the record of one there is another reading, which looks for such locks before. As long as there
        are any, this process reads again, after pauses that double.

        Args:
            watched: whether there was a record of a watched table.
            notified: whether a notification has caused the reading.
            in_flight: whether there were such locks before the reading.
        """
        if watched:
            self._watched_at = self.level_at
        if watched or (notified and self.level_at - self._watched_at < _RECENT_S):
            self.pause_s = _FIRST_PAUSE_S
        else:
            self.pause_s = 2 * self.pause_s if in_flight else inf

    def missed(self) -> None:
        """Note a gap: records may have been missed."""
        self.snapshot, self.pause_s = "", inf
        for receiver in self.all_receivers:
            receiver.missed()
