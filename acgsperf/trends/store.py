"""Keeps the hours of services in a table of PostgreSQL, for 90 days."""

import asyncio
import logging
from typing import Any, Final

from acgsperf.errors import AcgsperfError, TrendError
from acgsperf.fleet.own_tables import OwnTables
from acgsperf.fleet.server_store import ServerStore
from acgsperf.pool.server_address import parsed_address
from acgsperf.trends.changes import HOUR_S
from acgsperf.trends.history import LARGEST_LATENCY_BYTES, History, HourSum, InstanceHour

__all__ = ["DAYS_KEPT", "TrendStore"]

_log: Final = logging.getLogger("acgsperf.trends")

DAYS_KEPT: Final = 90
_ROWS_A_PAGE: Final = 200
# Rows merged in one transaction.
_ROWS_TO_MERGE: Final = 100
_MOST_MERGES: Final = 20
# Decoding one takes up to 0.3 ms.
_AT_ONCE: Final = 5
# An instance may replace its row of an hour so long after its start. Later the rows of all instances are merged.
_WRITABLE_S: Final = 3 * HOUR_S
_MERGED_AFTER_S: Final = 4 * HOUR_S
_LONGEST_TEXT: Final = 200
# Of one hour. The others count as unknown.
_MOST_VERSIONS: Final = 20

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS acgsperf_trends_v1 (
    namespace text NOT NULL,
    hour bigint NOT NULL,
    version text NOT NULL,
    instance text NOT NULL,
    failed bigint NOT NULL,
    violations bigint NOT NULL,
    missed bigint NOT NULL,
    latency bytea NOT NULL,
    PRIMARY KEY (namespace, hour, version, instance)
);
CREATE INDEX IF NOT EXISTS acgsperf_trends_v1_old ON acgsperf_trends_v1 (hour);
CREATE INDEX IF NOT EXISTS acgsperf_trends_v1_unmerged ON acgsperf_trends_v1 (namespace, hour) WHERE instance <> '';
"""
_NOW: Final = "extract(epoch FROM clock_timestamp())::bigint"
_SAVE: Final = f"""
INSERT INTO acgsperf_trends_v1 (namespace, hour, version, instance, failed, violations, missed, latency)
SELECT $1, $2::bigint, $3, $4, $5, $6, $7, $8 WHERE abs({_NOW} - $2::bigint) <= {_WRITABLE_S}
ON CONFLICT (namespace, hour, version, instance) DO UPDATE
SET failed = excluded.failed, violations = excluded.violations, missed = excluded.missed, latency = excluded.latency
RETURNING true
"""
# The hours of all namespaces expire here: perhaps no instance of another namespace is left.
_EXPIRE: Final = f"""
DELETE FROM acgsperf_trends_v1 WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM acgsperf_trends_v1
    WHERE hour < {_NOW} - {DAYS_KEPT * 24 * HOUR_S} LIMIT 1000 FOR UPDATE SKIP LOCKED
))
"""
_UNMERGED: Final = f"""
SELECT hour, version FROM acgsperf_trends_v1
WHERE namespace = $1 AND instance <> '' AND hour < {_NOW} - {_MERGED_AFTER_S} ORDER BY hour LIMIT 1
"""
_BLOB: Final = f"CASE WHEN octet_length(latency) <= {LARGEST_LATENCY_BYTES} THEN latency END"
# The merged row has an empty instance, and is the first one.
_TAKE: Final = f"""
DELETE FROM acgsperf_trends_v1 WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM acgsperf_trends_v1 WHERE namespace = $1 AND hour = $2 AND version = $3
    ORDER BY instance LIMIT {_ROWS_TO_MERGE} FOR UPDATE
)) RETURNING instance, failed, violations, missed, {_BLOB} AS latency
"""
_PUT: Final = """
INSERT INTO acgsperf_trends_v1 (namespace, hour, version, instance, failed, violations, missed, latency)
VALUES ($1, $2, $3, '', $4, $5, $6, $7)
"""
_READ: Final = f"""
SELECT hour, version, instance, failed, violations, missed, {_BLOB} AS latency
FROM acgsperf_trends_v1
WHERE namespace = $1 AND (hour, version, instance) > ($2, $3, $4)
    AND hour < {_NOW} / {HOUR_S} * {HOUR_S} AND hour >= {_NOW} - {DAYS_KEPT * 24 * HOUR_S}
    AND octet_length(version) <= 1000 AND octet_length(instance) <= 100
ORDER BY hour, version, instance LIMIT {_ROWS_A_PAGE}
"""


class TrendStore(ServerStore):
    """Keeps the hours of services in PostgreSQL. It creates its table.

    Use it as an async context manager, or call `open` and `close`:

        async with TrendStore(dsn, "acgsperf") as store:
            trends = trends_of(await store.history())

    Args:
        dsn: as for `PostgresTier`.
        namespace: that of the service's cache. The instances of a service have the same one.
        timeout: seconds after which a call fails.
        statement_cache_size: number of prepared statements for each connection; must be 0 for PgBouncer in transaction
            mode.

    Attributes:
        where: the address of the server, for messages; without a password.
        namespace: the namespace.

    Raises:
        ValueError: if the DSN is not valid. The message does not repeat it, because it may contain a password.
    """

    content = "trends"
    error: type[AcgsperfError] = TrendError

    def __init__(self, dsn: str, namespace: str, *, timeout: float = 5.0, statement_cache_size: int = 100) -> None:
        address = parsed_address("the DSN", dsn)
        super().__init__(address.full_name, namespace, timeout)
        self._table = OwnTables(
            dsn,
            address,
            name=f"trends {namespace!r}",
            create=_CREATE,
            tables=("acgsperf_trends_v1",),
            connections=1,
            statement_cache_size=statement_cache_size,
        )

    async def save(self, hour: InstanceHour) -> bool:
        """Replace the row of an instance and an hour. To repeat it does no harm.

        Returns:
            Whether it was saved. An hour that started more than 3 hours before or after the server's time is not.

        Raises:
            TrendError: if the server cannot be reached or refuses it.
            ValueError: if `hour` has impossible texts, or more than 128 KiB of latencies.
        """
        for text in (hour.version, hour.instance):
            if len(text) > _LONGEST_TEXT or not text.isprintable():
                raise ValueError(f"version and instance must be at most {_LONGEST_TEXT} printable characters")
        if not hour.instance:
            raise ValueError("instance must not be empty")
        if len(hour.latency) > LARGEST_LATENCY_BYTES:
            raise ValueError(f"latency must have at most {LARGEST_LATENCY_BYTES} bytes, got {len(hour.latency)}")
        return await self._call(self._save(hour))

    async def tidy(self) -> None:
        """Remove hours older than 90 days, and merge the rows of the instances of an hour that is 4 hours old.

        If several instances call it at the same time, one of them works.

        Raises:
            TrendError: if the server cannot be reached or refuses it.
        """
        await self._call(self._tidy())

    async def history(self) -> History:
        """Return the complete hours of the last 90 days.

        Raises:
            TrendError: if the server cannot be reached or refuses it.
        """
        return await self._call(self._history())

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return self._table.ERRORS

    async def _open(self) -> None:
        await self._table.open()

    async def _close(self) -> None:
        await self._table.close()

    async def _save(self, hour: InstanceHour) -> bool:
        return bool(
            await self._table.change(
                *(_SAVE, self.namespace, hour.start, hour.version, hour.instance),
                *(hour.failed, hour.violations, hour.missed, hour.latency),
            )
        )

    async def _tidy(self) -> None:
        async with self._table.connection() as connection:
            await connection.execute(_EXPIRE)
            for _ in range(_MOST_MERGES):
                async with connection.transaction():
                    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", self._table.lock):
                        return
                    if (found := await connection.fetchrow(_UNMERGED, self.namespace)) is None:
                        return
                    await self._merge(connection, found["hour"], found["version"])

    async def _merge(self, connection: Any, hour: int, version: str) -> None:
        total, damaged = HourSum(), 0
        rows = await connection.fetch(_TAKE, self.namespace, hour, version)
        for number, (instance, *counts) in enumerate(rows, 1):
            damaged += not total.add(*counts, is_merged=not instance)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if damaged < len(rows):
            await connection.execute(
                *(_PUT, self.namespace, hour, version),
                *(total.failed, total.violations, total.missed, total.latency_ns.encode()),
            )
        if damaged:
            _log.warning("trends %r: %d damaged rows of an hour were removed", self.namespace, damaged)

    async def _history(self) -> History:
        found = History()
        last: tuple[int, str, str] = (0, "", "")
        of_hour: dict[str, HourSum] = {}
        while True:
            rows = await self._table.fetch(_READ, self.namespace, *last)
            for number, row in enumerate(rows, 1):
                hour, version, instance, *counts = row
                if not (isinstance(hour, int) and isinstance(version, str) and isinstance(instance, str)):
                    problem = "the columns of acgsperf_trends_v1 have other types"
                    raise TrendError(f"cannot use the trends at {self.where}: {problem}")
                if hour != last[0]:
                    _end_hour(found, last[0], of_hour)
                    of_hour = {}
                last = hour, version, instance
                if version not in of_hour and len(of_hour) >= _MOST_VERSIONS:
                    version = ""
                part = of_hour.get(version) or HourSum()
                if part.add(*counts, is_merged=not instance):
                    of_hour[version] = part
                else:
                    found.damaged += 1
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            if len(rows) < _ROWS_A_PAGE:
                _end_hour(found, last[0], of_hour)
                return found


def _end_hour(found: History, start: int, of_hour: dict[str, HourSum]) -> None:
    """Add an hour to the history."""
    if not of_hour:
        return
    total = HourSum()
    for version, part in of_hour.items():
        found.versions.append(part.figures(start, version))
        total.merge(part)
    found.hours.append(total.figures(start, None))
