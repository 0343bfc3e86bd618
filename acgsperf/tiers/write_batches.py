"""Writes travel to the server in batches, one batch at a time and in order."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from acgsperf.tiers.base import Entry
from acgsperf.tiers.deadline import Deadline
from acgsperf.tiers.server_calls import ServerCalls

__all__ = ["Operation", "WriteBatch", "WriteBatches"]

# A batch has to arrive within the deadline, however much a caller writes at once.
MAX_WRITES_TOGETHER: Final = 1_000
MAX_BYTES_TOGETHER: Final = 1 << 20

# An entry with its packed value; None deletes the key.
Operation = tuple[Entry, bytes] | None


class WriteBatch:
    """Writes that travel together, at most one for each key.

    Attributes:
        operations: what to do with each key.
        stored: keys that the server acknowledged.
        removed: keys that had an entry and were deleted; None until the server has answered.
        refused: keys whose operation the server has refused. If one was to be deleted, its entry is still there.
        size: bytes of the packed values.
        done: set when the batch has ended, successfully or not.
        queued_at: when its first write was queued; -1 once it has been sent.
    """

    __slots__ = ("done", "operations", "queued_at", "refused", "removed", "size", "stored")

    def __init__(self, done: asyncio.Future[None], queued_at: float) -> None:
        self.operations: dict[str, Operation] = {}
        self.stored: set[str] = set()
        self.removed: set[str] | None = None
        self.refused: set[str] = set()
        self.size = 0
        self.done = done
        self.queued_at = queued_at

    def has_room(self, key: str) -> bool:
        """Returns whether a write of a key may be added."""
        return (
            self.queued_at >= 0
            and len(self.operations) < MAX_WRITES_TOGETHER
            and self.size < MAX_BYTES_TOGETHER
            and key not in self.operations
        )


class WriteBatches:
    """Queues writes and sends them, one batch at a time.

    The deadline of a batch begins when it is sent, so that a large call, which needs many batches, arrives whole. If
    the batch before it failed, its deadline begins when it was queued: it has already waited for a server that does not
    answer.

    Args:
        calls: makes the calls.
        write: carries out a batch and records in it what was stored and removed.
        deadline: seconds after which a batch ends.

    Attributes:
        stores, deletes: entries stored and deleted so far.
        pending: the last batch that writes a key, for each key in a batch that has not ended.
    """

    def __init__(self, calls: ServerCalls, write: Callable[[WriteBatch], Awaitable[None]], deadline: float) -> None:
        self.stores = self.deletes = 0
        self.pending: Final[dict[str, WriteBatch]] = {}
        self._queue: deque[WriteBatch] = deque()
        self._calls = calls
        self._write = write
        self._deadline = Deadline(deadline)

    def close(self) -> None:
        """Ends all queued batches as failed. Call it when no task is in flight."""
        while self._queue:
            self._finish(self._queue.popleft())
        self._deadline.close()

    def enqueue(self, operations: Mapping[str, Operation]) -> list[WriteBatch]:
        """Queues operations and returns the batches that contain them."""
        loop = asyncio.get_running_loop()
        batches: list[WriteBatch] = []
        for key, operation in operations.items():
            # The first batch may be in flight. A second write of a key waits for the next batch, so that both are
            # carried out in order and each caller gets the result of its own.
            queue = self._queue
            batch = queue[-1] if queue else None
            if batch is None or not batch.has_room(key):
                batch = WriteBatch(loop.create_future(), loop.time())
                queue.append(batch)
                if len(queue) == 1:
                    self._calls.start(self._write_queued())
            batch.operations[key] = operation
            batch.size += len(operation[1]) if operation is not None else 0
            self.pending[key] = batch
            if not batches or batches[-1] is not batch:
                batches.append(batch)
        return batches

    async def wait(self, batches: Iterable[WriteBatch]) -> None:
        """Returns when all batches have ended."""
        for batch in batches:
            # Others wait for the same batch: cancelling one caller must not cancel it.
            await asyncio.shield(batch.done)

    async def wait_for_keys(self, keys: Sequence[str]) -> None:
        """Returns when the writes of some keys that are queued now have ended."""
        # Not later ones: a key that is written again and again would keep its readers waiting forever.
        await self.wait({batch: None for key in keys if (batch := self.pending.get(key))})

    async def wait_for_all(self) -> None:
        """Returns when all writes that are queued now have ended."""
        await self.wait(list(self._queue))

    async def _write_queued(self) -> None:
        try:
            answered = True
            while self._queue:
                batch = self._queue[0]
                queued_at, batch.queued_at = batch.queued_at, -1.0
                if answered or self._calls.allow(len(batch.operations)):
                    wait = self._deadline.wait(None if answered else queued_at)
                    await self._calls.run(lambda batch=batch: self._write(batch), wait)  # type: ignore[misc]
                    answered = batch.removed is not None
                self._finish(self._queue.popleft())
        finally:
            while self._queue:
                self._finish(self._queue.popleft())

    def _finish(self, batch: WriteBatch) -> None:
        self.stores += len(batch.stored)
        self.deletes += len(batch.removed or ())
        for key in batch.operations:
            if self.pending.get(key) is batch:
                del self.pending[key]
        if not batch.done.done():
            batch.done.set_result(None)
