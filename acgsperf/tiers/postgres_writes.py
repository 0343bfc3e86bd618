"""Carries out the operations of a batch in PostgreSQL, and finds out why some were not carried out."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg

from acgsperf._native import envelope_format as envelope
from acgsperf.tiers.base import RETENTION_S, Outcome, WriteResult
from acgsperf.tiers.postgres_rows import (
    can_compare,
    columns_of_stores,
    columns_of_writes,
    packed_records,
)
from acgsperf.tiers.postgres_schema import new_token
from acgsperf.tiers.postgres_statements import MOST_AHEAD_S, Statement, Statements
from acgsperf.tiers.records import RecordKind
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.tiers.write_batches import REFUSED, Action, Operation, WriteBatch

__all__ = ["Writer"]

_T = TypeVar("_T")
_Rows = list[tuple[str, Operation]]

# A write is sent again if the server's clock was wrong here, or if the namespace had no generation.
_ATTEMPTS: Final = 3
# These errors concern one value or row. The other rows of the statement can be stored.
_REFUSES_A_ROW: Final = ("21", "22", "23", "54")
# A deadlock or a serialization failure.
_ENDED_BY_OTHERS: Final = "40"
_NEWER: Final = WriteResult(Outcome.NEWER)


class Writer:
    """Writes over one connection.

    Args:
        statements: the SQL.
        clock: converts the deadline.
        namespace: the namespace of the tier.
        channel: on which a record is notified.
        is_refusal: returns whether the server refuses one statement with this error.

    Attributes:
        retention, writer: those of the tier.
        errors: receives refusals, by kind.
        read_only_answers: how many of them were for a read-only transaction.
    """

    def __init__(
        self,
        statements: Statements,
        clock: ServerClock,
        namespace: str,
        channel: str,
        is_refusal: Callable[[Exception], bool],
    ) -> None:
        self.retention = RETENTION_S
        self.writer = b""
        self.errors: Counter[str] = Counter()
        self.read_only_answers: int = 0
        self._statements = statements
        self._clock = clock
        self._namespace = namespace
        self._channel = channel
        self._is_refusal = is_refusal

    async def carry_out(self, batch: WriteBatch, connection: Any) -> None:
        """Carry out the operations of a batch that have no result yet."""
        rows: dict[Action, _Rows] = {}
        for key, operation in batch.operations.items():
            if key not in batch.results:
                rows.setdefault(operation.action, []).append((key, operation))
        batch.mark_sent()
        # Each statement is a transaction of its own, so that it holds no lock while the next one waits.
        if undone := rows.get(Action.UNDO):
            await self._undo(batch, undone, connection)
        if stored := rows.get(Action.STORE):
            await self._store(batch, stored, connection)
        for action in (Action.EXPIRE, Action.WRITE):
            if written := rows.get(action):
                await self._write(batch, written, connection)

    async def unless_refused(self, statement: Awaitable[_T]) -> _T | None:
        """Return the result of a statement; None if the server refuses it."""
        try:
            return await statement
        except asyncpg.PostgresError as error:
            self._check_refusal(error)
            return None

    def _check_refusal(self, error: asyncpg.PostgresError) -> None:
        if isinstance(error, asyncpg.UndefinedTableError) or not self._is_refusal(error):
            raise error
        self.errors[type(error).__name__] += 1
        self.read_only_answers += isinstance(error, asyncpg.ReadOnlySQLTransactionError)

    async def _write(self, batch: WriteBatch, rows: _Rows, connection: Any) -> None:
        """Write rows. If the server refuses one, the others are written without it, and a tombstone takes its place."""
        try:
            await self._write_all(batch, rows, connection)
            return
        except asyncpg.PostgresError as error:
            self._check_refusal(error)
            rows = [row for row in rows if row[0] not in batch.results]
            if len(rows) > 1 and str(error.sqlstate).startswith(_REFUSES_A_ROW):
                middle = len(rows) // 2
                await self._write(batch, rows[:middle], connection)
                await self._write(batch, rows[middle:], connection)
                return
        entries = [(key, operation) for key, operation in rows if operation.entry is not None]
        tombstones = [(key, Operation(Action.WRITE, operation.id, operation.stamp)) for key, operation in entries]
        try:
            await self._write_all(batch, tombstones, connection)
        except asyncpg.PostgresError as error:
            self._check_refusal(error)
        for key, _ in rows:
            result = batch.results.get(key, REFUSED)
            removed = result.outcome is Outcome.STORED
            batch.results[key] = WriteResult(
                Outcome.REMOVED if removed else Outcome.REFUSED, published=result.published
            )

    async def _write_all(self, batch: WriteBatch, rows: _Rows, connection: Any) -> None:
        soft = bool(rows) and rows[0][1].action is Action.EXPIRE
        for attempt in range(_ATTEMPTS):
            if not rows:
                return
            deadline = self._clock.deadline(batch.until)
            try:
                written = await self._write_once(batch, rows, deadline, soft, connection)
            except asyncpg.PostgresError as error:
                if not str(error.sqlstate).startswith(_ENDED_BY_OTHERS) or attempt == _ATTEMPTS - 1:
                    raise
                continue
            stored = WriteResult(Outcome.STORED, published=bool(self.writer))
            batch.results.update(dict.fromkeys(written, stored))
            rows = [row for row in rows if row[0] not in written]
            if rows:
                rows = await self._not_newer(batch, rows, connection)
        batch.results.update({key: REFUSED for key, _ in rows})

    async def _write_once(
        self, batch: WriteBatch, rows: _Rows, deadline: float, soft: bool, connection: Any
    ) -> set[str]:
        """Send rows and return the keys that were written."""
        arguments, tagged = columns_of_writes(rows, self._clock, self.retention)
        arguments |= {"namespace": self._namespace, "deadline": deadline}
        kind = RecordKind.EXPIRED_KEYS if soft else RecordKind.KEYS
        self._add_records(arguments, kind, [(key, operation.id) for key, operation in rows])
        counted = not soft and any(operation.entry is None for _, operation in rows)
        statement = self._statements.write(tagged=tagged, logged=bool(self.writer), counted=counted, soft=soft)
        done = await connection.fetch(statement.sql, *statement.arguments(arguments))
        names = dict(zip(arguments["keys"], rows, strict=True))
        written = set()
        for address, had_entry in done:
            key, operation = names[address]
            written.add(key)
            if had_entry and operation.entry is None:
                batch.removed.add(key)
        return written

    async def _not_newer(self, batch: WriteBatch, rows: _Rows, connection: Any) -> _Rows:
        """Record for which keys the server has something newer, and return the other rows that can be sent again."""
        addresses = {envelope.address(envelope.identity(key)): (key, operation) for key, operation in rows}
        statement = self._statements.peek
        found = await self._timed(statement, {"namespace": self._namespace, "keys": list(addresses)}, connection)
        for address, id_, stamp, now in found:
            if address is None:
                continue
            key, operation = addresses[address]
            if operation.stamp <= stamp <= (now + MOST_AHEAD_S) * 1e6 and id_ != operation.id:
                batch.results[key] = WriteResult(Outcome.NEWER, stamp)
        rows = [row for row in rows if row[0] not in batch.results]
        if rows and batch.remaining() <= 0:
            batch.results.update({key: REFUSED for key, _ in rows})
            return []
        if rows:
            await self.add_generation(connection)
        return rows

    async def _timed(self, statement: Statement, arguments: dict[str, Any], connection: Any) -> list[Any]:
        """Fetch rows whose last column is the server's time, and take it as a sample of the server's clock."""
        sent = time.monotonic()
        rows: list[Any] = await connection.fetch(statement.sql, *statement.arguments(arguments))
        if rows:
            self._clock.measured(sent, time.monotonic(), rows[0][-1])
        return rows

    async def add_generation(self, connection: Any) -> None:
        """Give the namespace a generation if it has none."""
        statement = self._statements.add_generation
        arguments = {"namespace": self._namespace, "token": new_token()}
        await connection.execute(statement.sql, *statement.arguments(arguments))

    async def _store(self, batch: WriteBatch, rows: _Rows, connection: Any) -> None:
        comparable = [(key, operation) for key, operation in rows if operation.store and can_compare(operation.store)]
        new = [row for row in comparable if not _observed(row[1])]
        over = [row for row in comparable if _observed(row[1])]
        for statement, some in ((self._statements.store_new, new), (self._statements.store_over, over)):
            if some:
                await self._store_some(batch, statement, some, connection)
        for key, _ in rows:
            batch.results.setdefault(key, _NEWER)

    async def _store_some(self, batch: WriteBatch, statement: Statement, rows: _Rows, connection: Any) -> None:
        arguments = columns_of_stores(rows, self._clock, self.retention)
        arguments |= {"namespace": self._namespace, "deadline": self._clock.deadline(batch.until)}
        arguments["retention"] = self.retention
        try:
            stored = await connection.fetch(statement.sql, *statement.arguments(arguments))
        except asyncpg.PostgresError as error:
            self._check_refusal(error)
            if len(rows) > 1 and str(error.sqlstate).startswith(_REFUSES_A_ROW):
                middle = len(rows) // 2
                for some in (rows[:middle], rows[middle:]):
                    await self._store_some(batch, statement, some, connection)
                return
            batch.results.update({key: REFUSED for key, _ in rows})
            return
        names = {address: key for address, (key, _) in zip(arguments["keys"], rows, strict=True)}
        batch.results.update({names[address]: WriteResult(Outcome.STORED) for (address,) in stored})

    async def _undo(self, batch: WriteBatch, rows: _Rows, connection: Any) -> None:
        ids = [operation.id for _, operation in rows]
        arguments = {
            "namespace": self._namespace,
            "keys": [envelope.address(envelope.identity(key)) for key, _ in rows],
        }
        arguments["ids"] = ids
        # The record has no id, so that a process whose L1 has the entry with this id drops it.
        self._add_records(arguments, RecordKind.KEYS, [(key, b"") for key, _ in rows])
        statement = self._statements.undo(logged=bool(self.writer))
        done = await self.unless_refused(connection.fetch(statement.sql, *statement.arguments(arguments)))
        result = REFUSED if done is None else WriteResult(Outcome.STORED, published=bool(self.writer))
        batch.results.update({key: result for key, _ in rows})

    def _add_records(self, arguments: dict[str, Any], kind: RecordKind, ids: list[tuple[str, bytes]]) -> None:
        if self.writer:
            arguments["channel"] = self._channel
            arguments["records"] = packed_records(kind, ids, self.writer, self._clock.now_us())


def _observed(operation: Operation) -> bytes:
    assert operation.store is not None
    return operation.store.seen.id if operation.store.seen else b""
