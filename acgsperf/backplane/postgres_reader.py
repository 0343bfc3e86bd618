"""Follows the logs of all caches of an event loop in one PostgreSQL database, over one connection.

A log is a table of records. NOTIFY says that there are new ones. The reader also looks for them several times within
the timeout, which proves that it has missed none. The position in a log is the snapshot of the last reading:
records that this snapshot did not see are new. A sequence or a transaction number cannot be the position, because
transactions do not commit in the order in which they begin.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from acgsperf.backplane.backoff import Backoff
from acgsperf.backplane.postgres_log import KEPT_S, Log
from acgsperf.backplane.receiver import Receiver, parsed
from acgsperf.backplane.wake import Wake
from acgsperf.errors import AcgsperfError
from acgsperf.pool.connector import Connector
from acgsperf.pool.options import PoolOptions
from acgsperf.pool.server_address import of_primary, parsed_address
from acgsperf.tiers.postgres_schema import TableError, Tables, channel_of, create, position_bytes
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.timeouts import time_limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from acgsperf.backplane.postgres_changes import Changes

__all__ = ["PostgresReader"]

# asyncpg raises its internal error if the server ends a connection between two messages. A TimeoutError is an OSError.
_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_log: Final = logging.getLogger("acgsperf.backplane")
_LONGEST_BLOCK_S: Final = 5.0
_SHORTEST_BLOCK_S: Final = 0.01
_SWEEP_EVERY_S: Final = 30.0
_RETRY_S: Final = 1.0
_CATCH_UP_S: Final = 0.5
_SLICE_S: Final = 0.005
# The largest message is a row with one record.
_MAX_MESSAGE_BYTES: Final = 32 << 20

_START: Final = """
SELECT pg_current_snapshot()::text, pg_snapshot_xmin(pg_current_snapshot())::text, relfilenode,
    extract(epoch FROM clock_timestamp())::double precision, to_regclass('{changes}') IS NOT NULL
FROM pg_catalog.pg_class WHERE oid = '{log}'::regclass
"""
_PUBLISH: Final = """
WITH logged AS (INSERT INTO {log} (namespace, record) SELECT $1, unnest($2::bytea[])) SELECT pg_notify($3, '')
"""
# A failover changes the first two values, a restart the third, and a recovery after a crash the last. After a crash the
# server uses transaction numbers again that the last snapshot contains.
_SERVER: Final = """
SELECT (SELECT system_identifier::text FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8),
    pg_postmaster_start_time(), coalesce((SELECT stats_reset::text FROM pg_stat_bgwriter), '')
"""
# Whatever the default is. A serializable reading of the notes would make their writers fail.
_READ_COMMITTED: Final = "SET default_transaction_isolation = 'read committed'"
# A pooler gives its clients numbers of its own.
_IS_DIRECT: Final = "SELECT WHERE pg_backend_pid() = {}"


class PoolerError(AcgsperfError):
    """Between this process and PostgreSQL there is a pooler, over which notifications do not arrive."""


class PostgresReader:
    """Follows the logs of all caches of an event loop in one database.

    Args:
        dsn: the DSN of the database.

    Attributes:
        clock: the clock of the server.
        logs: the logs that are followed, by the configured name of the table.
        where: the server, for messages.
    """

    def __init__(self, dsn: str, connect_timeout: float) -> None:
        self.clock: Final = ServerClock()
        self.logs: Final[dict[str, Log]] = {}
        address = parsed_address("the DSN", dsn)
        options = PoolOptions(connect_timeout=connect_timeout, max_message_bytes=_MAX_MESSAGE_BYTES)
        self._connector = Connector(dsn, address, options, of_primary(address), "postgres backplane")
        self.where: Final = self._connector.where
        self._connection: Any = None
        # asyncpg allows one query at a time.
        self._turn = asyncio.Lock()
        self._server: tuple[object, ...] = ()
        self._listening: set[str] = set()
        self._failing = self._off = False
        self._wake = Wake()
        # The changes of logs that no cache of this process follows any more. Their locks must still be released.
        self._left: list[Changes] = []
        self._leaving: set[Receiver] = set()
        self._task: asyncio.Task[None] | None = None

    async def join(self, table: str, receiver: Receiver) -> None:
        """Let a cache follow a log. Return when it does, at the latest after its timeout."""
        log = self.logs.get(table)
        if log is None:
            log = self.logs[table] = Log(Tables(table), self.where)
        log.receivers.setdefault(receiver.namespace, {})[receiver] = None
        if self._off:
            receiver.refused()
            return
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="acgsperf postgres backplane")
        if log.snapshot and len(log.receivers[receiver.namespace]) > 1:
            receiver.start(log.level_at, log.position)
            return
        # The namespace is new. The next reading looks for its records too.
        self._wake.set()
        if not self._failing and not log.refused:
            try:
                async with time_limit(receiver.timeout):
                    while not receiver.position and not log.refused and not self._off:
                        log.settled.clear()
                        await log.settled.wait()
            except TimeoutError:
                self._warn(f"no answer within {receiver.timeout:g} s")

    async def leave(self, table: str, receiver: Receiver, forget: Callable[[], object]) -> None:
        """Let a cache follow a log no longer. If it was the last one, close the connection.

        Args:
            table: the configured name of the table.
            receiver: the cache.
            forget: called if it was the last one, so that a cache that opens meanwhile gets another reader.
        """
        log = self.logs.get(table)
        self._leaving.add(receiver)
        try:
            if log is not None and log.watched and receiver.position:
                await self._catch_up(log, receiver)
        finally:
            self._leaving.discard(receiver)
            if log is not None:
                self._remove(log, receiver)
            if not self.logs:
                forget()
                task, self._task = self._task, None
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])

    def _remove(self, log: Log, receiver: Receiver) -> None:
        group = log.receivers.get(receiver.namespace, {})
        group.pop(receiver, None)
        if not group:
            log.receivers.pop(receiver.namespace, None)
        if log.receivers:
            # Another cache may have joined while this one caught up.
            log.changes.paused = False
        elif self.logs.pop(log.tables.table, None) is not None:
            self._left.append(log.changes)

    async def _catch_up(self, log: Log, receiver: Receiver) -> None:
        """Read the log once more, because this process may have carried changes into it."""
        if self._leaving.issuperset(log.all_receivers):
            log.changes.paused = True
        with suppress(TimeoutError):
            async with time_limit(min(receiver.timeout, _CATCH_UP_S)):
                log.settled.clear()
                self._wake.set()
                await log.settled.wait()

    def look_again(self) -> None:
        """Read the logs now: a table has just been watched."""
        self._wake.set()

    async def publish(self, table: str, namespace: str, records: Sequence[bytes]) -> int:
        """Append records to a log. Return how many the server has accepted: all or none."""
        async with self._turn:
            connection = self._connection
            if connection is None:
                return 0
            statement = Tables(table).fill(_PUBLISH)
            await connection.fetchval(statement, namespace, list(records), channel_of(table, namespace))
        return len(records)

    @asynccontextmanager
    async def connect(self) -> "AsyncIterator[Any]":
        """Provide another connection, for calls that take long."""
        connection = await self._connector.connect()
        try:
            yield connection
        finally:
            connection.terminate()

    def described(self, error: Exception) -> str:
        """Return an error as text, without the password."""
        return self._connector.describe(error)

    def _block_s(self) -> float:
        """Return how long to wait for a notification, in seconds."""
        return max(min(self._patience() / 4, _LONGEST_BLOCK_S), _SHORTEST_BLOCK_S)

    def _query_limit(self) -> float:
        """Return how long a query may take, in seconds."""
        return max(min(self._patience(), 4 * _LONGEST_BLOCK_S), 4 * _SHORTEST_BLOCK_S) / 2

    def _patience(self) -> float:
        """Return the shortest timeout of the caches."""
        return min((it.timeout for log in self.logs.values() for it in log.all_receivers), default=1.0)

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                connection = await self._greet()
                try:
                    while True:
                        await self._round(connection)
                        backoff.reset()
                        if self._failing:
                            _log.info("postgres backplane at %s: the server answers again", self.where)
                            self._failing = False
                        await self._wait(connection)
                finally:
                    self._connection = None
                    connection.terminate()
            except PoolerError as error:
                self._turn_off(error)
                return
            except _LOST as error:
                self._lost(error)
            except Exception:
                _log.exception("postgres backplane at %s: unexpected error; connecting again", self.where)
                self._lost(None)
            await asyncio.sleep(backoff.pause())

    async def _wait(self, connection: Any) -> None:
        """Wait for a notification, but not for so long that the leases end, and look for changes of watched tables."""
        ends = monotonic() + self._block_s()
        while (left := ends - monotonic()) > 0:
            if await self._wake.wait(min(left, *(log.changes.pause_s for log in self.logs.values()), left)):
                return
            for log in tuple(self.logs.values()):
                if log.changes.pause_s < left:
                    async with self._turn:
                        await self._carry(connection, log)

    async def _greet(self) -> Any:
        """Connect, and find out whether the server is the same as before, and whether a pooler is in between."""
        try:
            connection = await self._connector.connect()
        except Exception as error:
            self._warn(self._connector.describe(error))
            raise
        try:
            async with time_limit(min(self._patience(), 4 * _LONGEST_BLOCK_S)):
                # Not as a prepared statement: its name may be taken in the session that the pooler lends.
                if await connection.execute(_IS_DIRECT.format(connection.get_server_pid())) != "SELECT 1":
                    raise PoolerError("the connection goes through a pooler such as PgBouncer")
                await connection.execute(_READ_COMMITTED)
                server = await self._ask_server(connection)
        except TimeoutError:
            self._warn("no answer")
            connection.terminate()
            raise
        except BaseException:
            connection.terminate()
            raise
        connection.add_termination_listener(lambda _: self._wake.set())
        for log in self.logs.values():
            log.recovering = bool(log.snapshot)
            log.changes.disconnected()
            if log.snapshot and (None in server or tuple(server) != self._server):
                # Another server may not have what was committed on the former one.
                log.missed()
        self._server = tuple(server)
        self._left.clear()
        self._listening.clear()
        self._connection = connection
        return connection

    @staticmethod
    async def _ask_server(connection: Any) -> Sequence[Any]:
        try:
            return await connection.fetchrow(_SERVER)  # type: ignore[no-any-return]
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
            return (None,)

    async def _round(self, connection: Any) -> None:
        """Read what is new in each log, and apply it."""
        self._wake.clear()
        while self._left:
            async with self._turn, time_limit(self._query_limit()):
                await self._left.pop().release(connection)
        for log in tuple(self.logs.values()):
            if log.retry_at > monotonic():
                continue
            namespaces = list(log.receivers)
            try:
                async with self._turn, time_limit(self._query_limit()):
                    await self._listen(connection)
                    if not log.snapshot:
                        await self._start(connection, log)
                        continue
                    sent = monotonic()
                    rows = await connection.fetch(log.read_sql, namespaces, log.snapshot)
            except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedTableError, TableError) as error:
                self._refuse(log, error)
                continue
            await self._take(log, namespaces, sent, rows)
            if not log.snapshot:
                continue
            async with self._turn:
                await self._carry(connection, log)
            if sent - log.swept_at > _SWEEP_EVERY_S:
                log.swept_at = sent
                async with self._turn, time_limit(self._query_limit()):
                    await log.sweep(connection)

    async def _carry(self, connection: Any, log: Log) -> None:
        """Carry the changes of watched tables into a log. If that takes too long, the log itself is still followed."""
        try:
            async with time_limit(self._query_limit() / 2):
                if log.watched:
                    await log.changes.carry(connection, self._block_s())
                else:
                    await log.changes.release(connection)
        except TimeoutError:
            log.changes.took_too_long()

    async def _listen(self, connection: Any) -> None:
        """Listen to the channels of all namespaces: before the records are read."""
        wanted = {channel_of(log.tables.table, namespace) for log in self.logs.values() for namespace in log.receivers}
        for channel in wanted - self._listening:
            self._listening.add(channel)
            await connection.add_listener(channel, self._notified)
        for channel in self._listening - wanted:
            self._listening.discard(channel)
            await connection.remove_listener(channel, self._notified)

    def _notified(self, *_: object) -> None:
        self._wake.set()

    async def _start(self, connection: Any, log: Log) -> None:
        """Follow a log from now on. Creates its tables if they are missing."""
        sent = monotonic()
        if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", log.tables.log):
            try:
                await create(connection, log.tables)
            except (asyncpg.PostgresError, TableError):
                await connection.execute("ROLLBACK")
                raise
            sent = monotonic()
        log.snapshot, xmin, log.file, now, log.watched = await connection.fetchrow(log.tables.fill(_START))
        self.clock.measured(sent, monotonic(), now)
        if log.watched:
            # What was changed while no cache was open. The snapshot is older, so that this process gets the records.
            await self._carry(connection, log)
            self._wake.set()
        log.xmin, log.read_at, log.level_at = int(xmin), now, sent
        log.refused = log.recovering = False
        log.settled.set()
        for receiver in log.all_receivers:
            receiver.start(sent, log.position)

    async def _take(self, log: Log, namespaces: Sequence[str], sent: float, rows: Sequence[Any]) -> None:
        """Apply what was read."""
        if not rows:
            # The table is gone. If it is created again, that is another log.
            log.missed()
            self._wake.set()
            return
        snapshot, xmin, file, now, log.watched, *_ = rows[0]
        self.clock.measured(sent, monotonic(), now)
        if file != log.file or now - log.read_at > KEPT_S:
            _log.info("postgres backplane at %s: the log %s has a gap; L1 is verified", self.where, log.tables.log)
            log.missed()
            self._wake.set()
            return
        position = position_bytes(int(xmin))
        began = monotonic()
        for *_, namespace, data in rows:
            if namespace is None:
                break
            record = parsed(data)
            for receiver in tuple(log.receivers.get(namespace, ())):
                receiver.take(record, self.clock, recovering=log.recovering)
            if monotonic() - began > _SLICE_S:
                await asyncio.sleep(0)
                began = monotonic()
        log.snapshot, log.xmin, log.read_at, log.level_at, log.recovering = snapshot, int(xmin), now, sent, False
        log.settled.set()
        for namespace in namespaces:
            for receiver in log.receivers.get(namespace, ()):
                if receiver.position:
                    receiver.level(sent, position)
                else:
                    receiver.start(sent, position)

    def _refuse(self, log: Log, error: Exception) -> None:
        """Note that the server does not let this process follow a log, at least for now."""
        if log.snapshot:
            log.missed()
        log.retry_at = monotonic() + _RETRY_S
        log.settled.set()
        for receiver in log.all_receivers:
            receiver.refused()
        if not log.refused:
            log.refused = True
            _log.warning(
                "postgres backplane at %s: the server refuses the log %s (%s); the user needs SELECT, INSERT and DELETE"
                " on it, or CREATE in the schema; these caches get no records of other processes, and try again",
                *(self.where, log.tables.log, error),
            )

    def _turn_off(self, error: PoolerError) -> None:
        self._off = True
        _log.warning(
            "postgres backplane at %s: %s, so notifications do not arrive; these caches get no records of other "
            "processes. Give PostgresBackplane a DSN that leads directly to PostgreSQL",
            *(self.where, error),
        )
        for log in self.logs.values():
            log.settled.set()
            for receiver in log.all_receivers:
                receiver.refused()

    def _lost(self, error: Exception | None) -> None:
        if error is not None and not self._failing:
            _log.info("postgres backplane at %s: connection lost (%s)", self.where, self._connector.describe(error))
        for log in self.logs.values():
            for receiver in log.all_receivers:
                receiver.lost()

    def _warn(self, problem: str) -> None:
        if not self._failing:
            _log.warning(
                "postgres backplane at %s: cannot reach the server (%s); this process gets no records of other "
                "processes, and tries again",
                *(self.where, problem),
            )
            self._failing = True
