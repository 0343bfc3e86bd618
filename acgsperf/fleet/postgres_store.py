"""Reports in PostgreSQL: a row for each instance, which expires, and a row for the shared document of a namespace."""

from typing import Final

from acgsperf.fleet.own_tables import OwnTables
from acgsperf.fleet.report import LARGEST_REPORT_BYTES
from acgsperf.fleet.store import LARGEST_DOCUMENT_BYTES, MOST_REPORTS, REPORTS_A_PAGE, Found, ReportStore, Stored
from acgsperf.pool.server_address import parsed_address

__all__ = ["PostgresStore"]

_TABLES: Final = ("acgsperf_fleet_v1", "acgsperf_fleet_documents_v1")
# The reports need not survive a crash of the server: the instances write them again.
_CREATE: Final = """
CREATE UNLOGGED TABLE IF NOT EXISTS acgsperf_fleet_v1 (
    namespace text NOT NULL,
    instance text NOT NULL,
    stored_at double precision NOT NULL,
    expires_at double precision NOT NULL,
    report bytea NOT NULL,
    PRIMARY KEY (namespace, instance)
);
CREATE INDEX IF NOT EXISTS acgsperf_fleet_v1_old ON acgsperf_fleet_v1 (expires_at);
CREATE TABLE IF NOT EXISTS acgsperf_fleet_documents_v1 (
    namespace text PRIMARY KEY,
    revision bigint NOT NULL,
    document bytea NOT NULL
);
"""
_NOW: Final = "extract(epoch FROM clock_timestamp())::double precision"
# The reports of all namespaces expire here: perhaps no instance of another namespace is left.
_PUBLISH: Final = f"""
WITH expired AS (
    DELETE FROM acgsperf_fleet_v1 WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM acgsperf_fleet_v1
        WHERE expires_at < {_NOW} AND NOT (namespace = $1 AND instance = $2)
        LIMIT 1000 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO acgsperf_fleet_v1 (namespace, instance, stored_at, expires_at, report)
VALUES ($1, $2, {_NOW}, {_NOW} + $3, $4)
ON CONFLICT (namespace, instance) DO UPDATE
SET stored_at = excluded.stored_at, expires_at = excluded.expires_at, report = excluded.report
"""
_WITHDRAW: Final = "DELETE FROM acgsperf_fleet_v1 WHERE namespace = $1 AND instance = $2"
_READ: Final = f"""
SELECT
    instance, {_NOW} - stored_at AS age, CASE WHEN octet_length(report) <= $4 THEN report END AS report
FROM acgsperf_fleet_v1
WHERE namespace = $1 AND expires_at > {_NOW} AND instance > $2 AND octet_length(instance) = 16
ORDER BY instance LIMIT $3
"""
# No instance can have written another one. It counts as absent.
_IS_POSSIBLE: Final = "revision BETWEEN 1 AND 9007199254740991"
_STATE: Final = f"""
SELECT revision, CASE WHEN octet_length(document) <= $2 THEN document ELSE '' END
FROM acgsperf_fleet_documents_v1 WHERE namespace = $1 AND {_IS_POSSIBLE}
"""
# Like the time, a revision does not come again, even if the table was dropped.
_NEXT: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_INSERT: Final = f"""
INSERT INTO acgsperf_fleet_documents_v1 AS stored (namespace, revision, document) VALUES ($1, {_NEXT}, $2)
ON CONFLICT (namespace) DO UPDATE SET revision = excluded.revision, document = excluded.document
WHERE NOT stored.{_IS_POSSIBLE} RETURNING true
"""
_REPLACE: Final = f"""
UPDATE acgsperf_fleet_documents_v1 SET revision = greatest(revision + 1, {_NEXT}), document = $2
WHERE namespace = $1 AND revision = $3 RETURNING true
"""


class PostgresStore(ReportStore):
    """Keeps reports in PostgreSQL. It creates its tables.

    Args:
        dsn: as for `PostgresTier`.
        namespace: instances with the same one on the same server see each other.
        lifetime: seconds after which a report that was not replaced is removed.
        timeout: seconds after which a call fails.
        statement_cache_size: number of prepared statements for each connection; must be 0 for PgBouncer in transaction
            mode.

    Raises:
        ValueError: if the DSN is not valid. The message does not repeat it, because it may contain a password.
    """

    def __init__(
        self,
        dsn: str,
        namespace: str,
        *,
        lifetime: float = 90.0,
        timeout: float = 5.0,
        statement_cache_size: int = 100,
    ) -> None:
        address = parsed_address("the DSN", dsn)
        super().__init__(address.full_name, namespace, lifetime=lifetime, timeout=timeout)
        self._tables = OwnTables(
            dsn,
            address,
            name=f"fleet {namespace!r}",
            create=_CREATE,
            tables=_TABLES,
            connections=2,
            statement_cache_size=statement_cache_size,
        )

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return self._tables.ERRORS

    async def _open(self) -> None:
        await self._tables.open()

    async def _close(self) -> None:
        await self._tables.close()

    async def _publish(self, instance: str, blob: bytes) -> None:
        await self._tables.change(_PUBLISH, self.namespace, instance, self._lifetime_ms / 1000, blob)

    async def _withdraw(self, instance: str) -> None:
        await self._tables.fetch(_WITHDRAW, self.namespace, instance)

    async def _read(self, found: Found) -> None:
        count, last = 0, ""
        while True:
            rows = await self._tables.fetch(_READ, self.namespace, last, REPORTS_A_PAGE, LARGEST_REPORT_BYTES)
            if count + len(rows) > MOST_REPORTS:
                found.more = True
                return
            has_room = await found.add(Stored(*row) for row in rows)
            count += len(rows)
            if len(rows) < REPORTS_A_PAGE or not has_room:
                return
            last = rows[-1][0]

    async def _state(self) -> tuple[int, bytes]:
        rows = await self._tables.fetch(_STATE, self.namespace, LARGEST_DOCUMENT_BYTES)
        return (rows[0][0], rows[0][1]) if rows else (0, b"")

    async def _replace_state(self, expected_revision: int, document: bytes) -> bool:
        if expected_revision == 0:
            return bool(await self._tables.change(_INSERT, self.namespace, document))
        return bool(await self._tables.change(_REPLACE, self.namespace, document, expected_revision))
