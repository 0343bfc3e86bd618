"""Reads of the same turn of the event loop travel to the server together, as one batch or two."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Final, Generic, TypeVar

from acgsperf import hooks
from acgsperf.dispatch import LatencyHistogram, ReadQueue, answer
from acgsperf.tiers.deadline import Deadline
from acgsperf.tiers.server_calls import ServerCalls

__all__ = ["MAX_READS_TOGETHER", "SPLIT_FROM", "ReadBatches"]

MAX_READS_IN_FLIGHT: Final = 4
# A batch has to be answered within the deadline. A call for more keys is sent in parts.
MAX_READS_TOGETHER: Final = 2_000
# If no batch is in flight, this many reads of single keys are sent as two batches: the server answers one while this
# process resumes the callers of the other. With one batch, all callers would resume in the same turn and read again in
# the same turn, so that the process and the server wait for each other. With 50 callers, a hit of L2 or L3 takes a
# fifth less time. With fewer callers, the second batch costs more than it saves.
SPLIT_FROM: Final = 32

# What is read: a key, alone or with its tags. And what is found for it: an entry or an observation.
_K = TypeVar("_K")
_V = TypeVar("_V")
_GetMany = tuple[asyncio.Future[dict[_K, _V]], Sequence[_K]]


class ReadBatches(Generic[_K, _V]):
    """Collects keys until the event loop's next turn and reads them together; at most four batches are in flight.

    Many reads of single keys are sent as two batches, so that this process and the server work at the same time.

    Args:
        calls: makes the calls.
        fetch: returns what is found for keys, in order; None for a miss.
        deadline: seconds after which a read is answered, counted from the first key of its batch. `open` may set a
            shorter one.
        latency: where durations are recorded; by default in a histogram of its own.

    Attributes:
        hits, misses: keys read so far.
        latency: duration of reads, one value for each key.
        queue: reads of single keys that have not been sent; `queue.begin` reads one.
    """

    def __init__(
        self,
        calls: ServerCalls,
        fetch: Callable[[Sequence[_K]], Awaitable[list[_V | None]]],
        deadline: float,
        latency: LatencyHistogram | None = None,
    ) -> None:
        self.hits: int = 0
        self.misses: int = 0
        self.latency: Final = LatencyHistogram() if latency is None else latency
        self.queue: Final = ReadQueue(asyncio.Future, self._schedule)
        self._waiting_many: list[_GetMany[_K, _V]] = []
        self._calls = calls
        self._fetch = fetch
        self._longest_s = deadline
        # All batches share this one: they begin in order.
        self._deadline = Deadline(deadline)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started_at = 0.0
        self._in_flight = 0
        # Whether the waiting keys are the rest of a call that did not fit into one batch.
        self._oversized = False

    def open(self, deadline: float = inf) -> None:
        """Bind to the running event loop. Reads end after `deadline` if that is shorter than the tier's own."""
        self._deadline = Deadline(min(deadline, self._longest_s))
        self._loop = asyncio.get_running_loop()
        self.queue.open(self._loop)

    @property
    def is_idle(self) -> bool:
        """Whether no read waits or is in flight."""
        return not (self._in_flight or self.queue.keys or self._waiting_many)

    def close(self) -> None:
        """Answer all waiting reads with a miss. Call it when no task is in flight."""
        # A task that was cancelled before its first step has answered no caller.
        _, futures = self.queue.take(len(self.queue.keys))
        many, self._waiting_many, self.queue.scheduled = self._waiting_many, [], False
        self._answer(futures, many, [])
        self._deadline.close()
        self._loop = None

    def get_many(self, keys: Sequence[_K]) -> asyncio.Future[dict[_K, _V]]:
        """Read several keys."""
        future: asyncio.Future[dict[_K, _V]] = asyncio.Future(loop=self._loop)
        self._waiting_many.append((future, keys))
        if not self.queue.scheduled:
            self._schedule()
        return future

    def _schedule(self) -> None:
        assert self._loop is not None
        if len(self.queue.keys) + len(self._waiting_many) == 1:
            self._started_at = self._loop.time()
        if self._in_flight < MAX_READS_IN_FLIGHT:
            self._start()

    def _start(self) -> None:
        self.queue.scheduled = True
        self._calls.start(self._read())

    def _next_batch(self) -> tuple[list[_K], list[asyncio.Future[_V | None]], list[_GetMany[_K, _V]]]:
        """Return the next keys, the futures of those that were asked for one by one, and the other calls."""
        queue, reads = self.queue, self._waiting_many
        queue.scheduled = False
        if not reads and not self._in_flight and SPLIT_FROM <= len(queue.keys) <= MAX_READS_TOGETHER:
            self._oversized = False
            keys, futures = queue.take(len(queue.keys) // 2)
            self._start()
            return keys, futures, []
        asked = len(queue.keys) + (sum(len(keys) for _, keys in reads) if reads else 0)
        self._oversized = asked > MAX_READS_TOGETHER
        keys, futures = queue.take(MAX_READS_TOGETHER)
        if not self._oversized:
            self._waiting_many = []
        else:
            size, count = len(keys), 0
            while count < len(reads) and (not size or size + len(reads[count][1]) <= MAX_READS_TOGETHER):
                size += len(reads[count][1])
                count += 1
            reads, self._waiting_many = reads[:count], reads[count:]
            if self._in_flight + 1 < MAX_READS_IN_FLIGHT:
                self._start()
        for _, more in reads:
            keys += more
        return keys, futures, reads

    async def _read(self) -> None:
        keys, futures, reads = self._next_batch()
        started = self._started_at
        started_ns = time.perf_counter_ns()
        values: list[_V | None] | None = None
        failed = False
        self._in_flight += 1
        try:
            values = await self._calls.run(lambda: self._fetch(keys), self._deadline.wait(started))
            failed = values is None
        finally:
            self._in_flight -= 1
            elapsed_ns = time.perf_counter_ns() - started_ns
            if hooks.spans is not None:
                self._calls.batch_ended("tier.read", len(keys), started_ns, failed)
            self.latency.record_many([elapsed_ns] * len(keys))
            self._answer(futures, reads, values or [])
            if (self.queue.keys or self._waiting_many) and not self.queue.scheduled:
                if self._oversized and values is not None and self._loop is not None:
                    # The server answers: the rest of a large call gets a deadline of its own.
                    self._started_at = self._loop.time()
                self._start()

    def _answer(
        self, futures: list[asyncio.Future[_V | None]], reads: Sequence[_GetMany[_K, _V]], found: list[_V | None]
    ) -> None:
        """Give each caller what was found for its keys, in order; a miss for each key without anything."""
        asked = len(futures) + (sum(len(keys) for _, keys in reads) if reads else 0)
        hits = len(found) - found.count(None)
        self.hits += hits
        self.misses += asked - hits
        answer(futures, found)
        at = len(futures)
        for future, keys in reads:
            pairs = zip(keys, found[at : at + len(keys)], strict=False)
            at += len(keys)
            if not future.done():
                future.set_result({key: value for key, value in pairs if value is not None})
