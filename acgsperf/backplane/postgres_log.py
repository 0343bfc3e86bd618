"""The state of one log in a PostgreSQL database that a reader follows."""

import asyncio
from typing import Any, Final

from acgsperf.backplane.postgres_changes import Changes
from acgsperf.backplane.receiver import Receiver
from acgsperf.tiers.postgres_schema import Tables, position_bytes

__all__ = ["KEPT_S", "Log"]

# How long records are kept after their transaction has committed.
KEPT_S: Final = 60.0
_SWEPT_ROWS: Final = 5_000

# One statement, so that the records and the snapshot belong together. Another file number says that the table was
# truncated or created anew.
_READ: Final = """
SELECT pg_current_snapshot()::text, pg_snapshot_xmin(pg_current_snapshot())::text, one.file,
    extract(epoch FROM clock_timestamp())::double precision, to_regclass('{changes}') IS NOT NULL, l.namespace, l.record
FROM (SELECT relfilenode AS file FROM pg_catalog.pg_class WHERE oid = '{log}'::regclass) one
LEFT JOIN {log} l ON l.namespace = ANY($1::text[])
    AND l.xid >= pg_snapshot_xmin($2::text::pg_snapshot) AND NOT pg_visible_in_snapshot(l.xid, $2::text::pg_snapshot)
ORDER BY l.xid
"""

# The age of a record counts from its commit, because it may have been written long before.
_SWEEP: Final = """
DELETE FROM {log} WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {log} WHERE namespace = ANY($1::text[]) AND xid < pg_snapshot_xmax($2::text::pg_snapshot)
        AND pg_visible_in_snapshot(xid, $2::text::pg_snapshot) LIMIT $3 FOR UPDATE SKIP LOCKED
))
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
        watched: whether the table of changes exists, so that other tables may be watched.
        changes: the changes of watched tables, which are to be carried into the log.
    """

    def __init__(self, tables: Tables, where: str) -> None:
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
        self.watched = False
        self.changes: Final = Changes(tables, where)
        self.read_sql: Final = tables.fill(_READ)

    @property
    def all_receivers(self) -> list[Receiver]:
        """The caches that follow this log."""
        return [receiver for group in self.receivers.values() for receiver in group]

    @property
    def position(self) -> bytes:
        """The position in the log, as the tier compares it."""
        return position_bytes(self.xmin)

    def missed(self) -> None:
        """Note a gap: records may have been missed."""
        self.snapshot = ""
        for receiver in self.all_receivers:
            receiver.missed()

    async def sweep(self, connection: Any) -> None:
        """Remove records that all processes have had time to read."""
        snapshot, old_at = self.old
        if not snapshot:
            self.old = self.snapshot, self.read_at + KEPT_S
        elif self.read_at > old_at:
            sweep, status = self.tables.fill(_SWEEP), f"DELETE {_SWEPT_ROWS}"
            while status == f"DELETE {_SWEPT_ROWS}":
                status = await connection.execute(sweep, list(self.receivers), snapshot, _SWEPT_ROWS)
            self.old = self.snapshot, self.read_at + KEPT_S
