"""Writes travel to the server in batches, one batch at a time and in order."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from acgsperf import hooks
from acgsperf.tiers.base import Entry, Outcome, Store, WriteResult
from acgsperf.tiers.deadline import Deadline
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.server_calls import Attempt, ServerCalls
from acgsperf.tiers.tier_arguments import MOST_STAMP

__all__ = ["REFUSED", "UNKNOWN", "Action", "Operation", "WriteBatch", "WriteBatches"]

# A batch has to arrive within the deadline, however much a caller writes at once.
MAX_WRITES_TOGETHER: Final = 1_000
MAX_BYTES_TOGETHER: Final = 1 << 20
# How often a write is repeated because another process has written with a greater stamp.
_RETRIES: Final = 3

REFUSED: Final = WriteResult(Outcome.REFUSED)
UNKNOWN: Final = WriteResult(Outcome.UNKNOWN)


class Action(Enum):
    """What to do with a key: see the methods of `Tier`.

    WRITE: store the entry, or a tombstone if there is none. STORE: store what was loaded, copied or demoted.
    EXPIRE: `expire_now`. UNDO: replace the entry with this id by a tombstone.
    """

    WRITE = "write"
    STORE = "store"
    EXPIRE = "expire"
    UNDO = "undo"


class Operation(Struct, frozen=True, eq=False):
    """What to do with one key.

    Attributes:
        action: what to do.
        id: the id of the entry or tombstone that is written; for UNDO, of the entry that is removed.
        stamp: the stamp of the write.
        entry: what to store; None for a tombstone.
        payload: its packed value.
        flags: those of the payload in the envelope.
        refused: the tier cannot keep the entry of this write. A tombstone takes its place, and the result is REMOVED.
        store: the conditions of a STORE.
    """

    action: Action
    id: bytes
    stamp: int = 0
    entry: Entry | None = None
    payload: bytes = b""
    flags: int = 0
    refused: bool = False
    store: Store | None = None


class WriteBatch(Attempt):
    """Operations that travel together, at most one for each key.

    Attributes:
        operations: what to do with each key.
        results: what became of each key. The `write` callback fills it, except for `Operation.refused`. A key
            that is missing at the end has an unknown outcome.
        removed: keys that had a live entry and were deleted.
        size: bytes of the packed values.
        done: set when the batch has ended, successfully or not.
        queued_at: when its first operation was queued; -1 once it has been sent.
    """

    __slots__ = ("done", "operations", "queued_at", "removed", "results", "size")

    def __init__(self, done: asyncio.Future[None], queued_at: float) -> None:
        super().__init__()
        self.operations: dict[str, Operation] = {}
        self.results: dict[str, WriteResult] = {}
        self.removed: set[str] = set()
        self.size: int = 0
        self.done: Final = done
        self.queued_at: float = queued_at

    def has_room(self, key: str) -> bool:
        """Return whether an operation on a key may be added."""
        return (
            self.queued_at >= 0
            and len(self.operations) < MAX_WRITES_TOGETHER
            and self.size < MAX_BYTES_TOGETHER
            and key not in self.operations
        )

    @property
    def is_answered(self) -> bool:
        """Whether the outcome of every operation is known."""
        return len(self.results) == len(self.operations)

    @property
    def is_explicit(self) -> bool:
        """Whether a caller relies on an operation of unknown outcome not being carried out later."""
        return any(operation.action in _EXPLICIT for operation in self.operations.values())


_EXPLICIT: Final = frozenset({Action.WRITE, Action.EXPIRE})


class WriteBatches:
    """Queues operations and sends them, one batch at a time.

    The deadline of a batch begins when it is sent, so that a large call, which needs many batches, arrives whole. If
    the batch before it failed, its deadline begins when it was queued: it has already waited for a server that does not
    answer.

    A batch whose outcome is unknown ends when its deadline has passed, not before: until then the server may still
    carry it out.

    Args:
        calls: makes the calls.
        write: carries out a batch and records the results in it.
        deadline: seconds after which a batch ends.
        pending: the attribute below, if it is shared with other queues.

    Attributes:
        stores, deletes, refused: entries stored, deleted, and refused by the server so far.
        pending: the last batch that writes a key, for each key in a batch that has not ended.
    """

    def __init__(
        self,
        calls: ServerCalls,
        write: Callable[[WriteBatch], Awaitable[None]],
        deadline: float,
        pending: dict[str, WriteBatch] | None = None,
    ) -> None:
        self.stores: int = 0
        self.deletes: int = 0
        self.refused: int = 0
        self.pending: Final[dict[str, WriteBatch]] = {} if pending is None else pending
        self._queue: deque[WriteBatch] = deque()
        self._calls = calls
        self._write = write
        self._deadline = Deadline(deadline)
        self._deadline_s = deadline

    @property
    def is_idle(self) -> bool:
        """Whether no operation is queued or in flight."""
        return not self._queue

    def close(self) -> None:
        """End all queued batches as failed. Call it when no task is in flight."""
        while self._queue:
            self._finish(self._queue.popleft())
        self._deadline.close()

    async def carry_out(self, operations: Mapping[str, Operation]) -> dict[str, WriteResult]:
        """Queue operations and return their results."""
        return {key: batch.results[key] for batch, keys in await self.carried_out(operations) for key in keys}

    async def carry_out_last(self, operations: Mapping[str, Operation]) -> tuple[dict[str, WriteResult], int]:
        """Carry out operations, and repeat with a greater stamp those that another process has superseded.

        Returns:
            The results, and how many live entries were removed.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._deadline_s
        results: dict[str, WriteResult] = {}
        removed = 0
        for _ in range(1 + _RETRIES):
            for batch, keys in await self.carried_out(operations):
                results |= {key: batch.results[key] for key in keys}
                removed += len(batch.removed.intersection(keys))
            operations = {
                key: replace(operation, id=new_id(), stamp=results[key].stamp + 1)
                for key, operation in operations.items()
                if results[key].outcome is Outcome.NEWER and results[key].stamp + 1 < MOST_STAMP
            }
            if not operations or loop.time() >= until or not self._calls.is_open:
                break
        return results, removed

    async def carried_out(self, operations: Mapping[str, Operation]) -> list[tuple[WriteBatch, list[str]]]:
        """Queue operations and return, once they have ended, the batches with them and their keys in each."""
        places = self._enqueue(operations)
        for batch, _ in places:
            # Others wait for the same batch: cancelling one caller must not cancel it.
            await asyncio.shield(batch.done)
        return places

    def _enqueue(self, operations: Mapping[str, Operation]) -> list[tuple[WriteBatch, list[str]]]:
        loop = asyncio.get_running_loop()
        places: list[tuple[WriteBatch, list[str]]] = []
        for key, operation in operations.items():
            # The first batch may be in flight. A second operation on a key waits for the next batch, so that both are
            # carried out in order and each caller gets the result of its own.
            queue = self._queue
            batch = queue[-1] if queue else None
            if batch is None or not batch.has_room(key):
                batch = WriteBatch(loop.create_future(), loop.time())
                queue.append(batch)
                if len(queue) == 1:
                    self._calls.start(self._write_queued())
            batch.operations[key] = operation
            batch.size += len(operation.payload)
            self.pending[key] = batch
            if not places or places[-1][0] is not batch:
                places.append((batch, []))
            places[-1][1].append(key)
        return places

    async def wait_for_keys(self, keys: Sequence[str]) -> None:
        """Return when the operations on some keys that are queued now have ended."""
        # Not later ones: a key that is written again and again would keep its readers waiting forever.
        await self._wait({batch: None for key in keys if (batch := self.pending.get(key))})

    async def wait_for_all(self) -> None:
        """Return when all operations that are queued now have ended."""
        await self._wait(list(self._queue))

    async def _wait(self, batches: Iterable[WriteBatch]) -> None:
        for batch in batches:
            await asyncio.shield(batch.done)

    async def _write_queued(self) -> None:
        try:
            answered = True
            while self._queue:
                batch = self._queue[0]
                queued_at, batch.queued_at = batch.queued_at, -1.0
                if answered or self._calls.allow(len(batch.operations)):
                    batch.began_at = asyncio.get_running_loop().time() if answered else queued_at
                    wait = self._deadline.wait(batch.began_at)
                    batch.set_deadline(self._deadline_s)
                    started_ns = 0 if hooks.spans is None else time.perf_counter_ns()
                    await self._calls.run(lambda batch=batch: self._write(batch), wait)  # type: ignore[misc]
                    answered = batch.is_answered
                    if started_ns and hooks.spans is not None:
                        self._calls.batch_ended("tier.write", len(batch.operations), started_ns, not answered)
                    if batch.sent and not answered and batch.is_explicit:
                        await batch.wait_for_deadline()
                self._finish(self._queue.popleft())
        finally:
            while self._queue:
                self._finish(self._queue.popleft())

    def _finish(self, batch: WriteBatch) -> None:
        unsure = UNKNOWN if batch.sent else REFUSED
        for key, operation in batch.operations.items():
            result = batch.results.setdefault(key, unsure)
            if operation.refused and result.outcome is Outcome.STORED:
                batch.results[key] = WriteResult(Outcome.REMOVED, published=result.published)
            elif operation.entry is not None:
                self.stores += result.outcome is Outcome.STORED
                self.refused += batch.sent and result.outcome in (Outcome.REFUSED, Outcome.REMOVED)
            if self.pending.get(key) is batch:
                del self.pending[key]
        self.deletes += len(batch.removed)
        if not batch.done.done():
            batch.done.set_result(None)
