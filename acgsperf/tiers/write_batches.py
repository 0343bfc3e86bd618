"""Writes travel to the server in batches, one batch at a time and in order."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from acgsperf.tiers.base import Entry
from acgsperf.tiers.deadline import Deadline
from acgsperf.tiers.server_calls import ServerCalls

__all__ = ["Operation", "WriteBatch", "WriteBatches"]

MAX_WRITES_TOGETHER: Final = 1_000

# An entry with its packed value; None deletes the key.
Operation = tuple[Entry, bytes] | None


class WriteBatch:
    """Writes that travel together, at most one for each key.

    Attributes:
        operations: what to do with each key.
        stored: keys that the server acknowledged.
        removed: keys that had an entry and were deleted; None until the server has answered.
        refused: keys whose operation the server has refused. If one was to be deleted, its entry is still there.
        done: set when the batch has ended, successfully or not.
        started_at: when its first write was queued; -1 once it has been sent.
    """

    __slots__ = ("done", "operations", "refused", "removed", "started_at", "stored")

    def __init__(self, done: asyncio.Future[None], started_at: float) -> None:
        self.operations: dict[str, Operation] = {}
        self.stored: set[str] = set()
        self.removed: set[str] | None = None
        self.refused: set[str] = set()
        self.done = done
        self.started_at = started_at


class WriteBatches:
    """Queues writes and sends them, one batch at a time.

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
        # All batches share this one: they begin in order.
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
            closed = batch is None or batch.stored or key in batch.operations
            if batch is None or closed or batch.started_at < 0 or len(batch.operations) >= MAX_WRITES_TOGETHER:
                batch = WriteBatch(loop.create_future(), loop.time())
                queue.append(batch)
                if len(queue) == 1:
                    self._calls.start(self._write_queued())
            batch.operations[key] = operation
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
            while self._queue:
                batch = self._queue[0]
                started, batch.started_at = batch.started_at, -1.0
                wait = self._deadline.wait(started)
                await self._calls.run(lambda batch=batch: self._write(batch), wait)  # type: ignore[misc]
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
