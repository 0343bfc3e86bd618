"""Reads of the same turn of the event loop travel to the server as one batch."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from acgsperf import hooks
from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.deadline import Deadline
from acgsperf.tiers.server_calls import ServerCalls

__all__ = ["MAX_READS_TOGETHER", "ReadBatches"]

MAX_READS_IN_FLIGHT: Final = 4
# A batch has to be answered within the deadline. A call for more keys is sent in parts.
MAX_READS_TOGETHER: Final = 2_000

# What is read: a key, alone or with its tags. And what is found for it: an entry or an observation.
_K = TypeVar("_K")
_V = TypeVar("_V")
_Get = tuple[asyncio.Future[_V | None], _K]
_GetMany = tuple[asyncio.Future[dict[_K, _V]], Sequence[_K]]


class ReadBatches(Generic[_K, _V]):
    """Collects keys until the event loop's next turn and reads them together; at most four batches are in flight.

    Args:
        calls: makes the calls.
        fetch: returns what is found for keys, in order; None for a miss.
        deadline: seconds after which a read is answered, counted from the first key of its batch.
        latency: where durations are recorded; by default in a histogram of its own.

    Attributes:
        hits, misses: keys read so far.
        latency: duration of reads, one value for each key.
        waiting: reads of single keys that have not been sent.
    """

    def __init__(
        self,
        calls: ServerCalls,
        fetch: Callable[[Sequence[_K]], Awaitable[list[_V | None]]],
        deadline: float,
        latency: LatencyHistogram | None = None,
    ) -> None:
        self.hits = self.misses = 0
        self.latency: Final = LatencyHistogram() if latency is None else latency
        self.waiting: list[_Get[_V, _K]] = []
        self._waiting_many: list[_GetMany[_K, _V]] = []
        self._calls = calls
        self._fetch = fetch
        # All batches share this one: they begin in order.
        self._deadline = Deadline(deadline)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started_at = 0.0
        self._in_flight = 0
        self._scheduled = False
        # Whether the waiting keys are the rest of a call that did not fit into one batch.
        self._oversized = False

    def open(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Answer all waiting reads with a miss. Call it when no task is in flight."""
        # A task that was cancelled before its first step has answered no caller.
        self._answer(self.waiting, self._waiting_many, [])
        self.waiting, self._waiting_many, self._scheduled = [], [], False
        self._deadline.close()
        self._loop = None

    def get(self, key: _K) -> asyncio.Future[_V | None]:
        """Read one key."""
        # `loop.create_future` does the same with one more call for each key.
        future: asyncio.Future[_V | None] = asyncio.Future(loop=self._loop)
        self.waiting.append((future, key))
        if not self._scheduled:
            self._schedule()
        return future

    def get_many(self, keys: Sequence[_K]) -> asyncio.Future[dict[_K, _V]]:
        """Read several keys."""
        future: asyncio.Future[dict[_K, _V]] = asyncio.Future(loop=self._loop)
        self._waiting_many.append((future, keys))
        if not self._scheduled:
            self._schedule()
        return future

    def _schedule(self) -> None:
        assert self._loop is not None
        if len(self.waiting) + len(self._waiting_many) == 1:
            self._started_at = self._loop.time()
        if self._in_flight < MAX_READS_IN_FLIGHT:
            self._scheduled = True
            self._calls.start(self._read())

    def _next_batch(self) -> tuple[list[_Get[_V, _K]], list[_GetMany[_K, _V]]]:
        self._scheduled = False
        gets, reads = self.waiting, self._waiting_many
        if len(gets) + (sum(len(keys) for _, keys in reads) if reads else 0) <= MAX_READS_TOGETHER:
            self.waiting, self._waiting_many, self._oversized = [], [], False
            return gets, reads
        self._oversized = True
        gets, self.waiting = gets[:MAX_READS_TOGETHER], gets[MAX_READS_TOGETHER:]
        size, count = len(gets), 0
        while count < len(reads) and (not size or size + len(reads[count][1]) <= MAX_READS_TOGETHER):
            size += len(reads[count][1])
            count += 1
        reads, self._waiting_many = reads[:count], reads[count:]
        if self._in_flight + 1 < MAX_READS_IN_FLIGHT:
            self._scheduled = True
            self._calls.start(self._read())
        return gets, reads

    async def _read(self) -> None:
        gets, reads = self._next_batch()
        started = self._started_at
        started_ns = time.perf_counter_ns()
        keys = [key for _, key in gets]
        for _, more in reads:
            keys += more
        values: list[_V | None] | None = None
        self._in_flight += 1
        try:
            values = await self._calls.run(lambda: self._fetch(keys), self._deadline.wait(started))
        finally:
            self._in_flight -= 1
            elapsed_ns = time.perf_counter_ns() - started_ns
            if hooks.spans is not None:
                hooks.spans.tier_call(self._calls.label, len(keys), self.latency, elapsed_ns)
            self.latency.record_many([elapsed_ns] * len(keys))
            self._answer(gets, reads, values or [])
            if (self.waiting or self._waiting_many) and not self._scheduled:
                if self._oversized and values is not None and self._loop is not None:
                    # The server answers: the rest of a large call gets a deadline of its own.
                    self._started_at = self._loop.time()
                self._scheduled = True
                self._calls.start(self._read())

    def _answer(self, gets: Sequence[_Get[_V, _K]], reads: Sequence[_GetMany[_K, _V]], found: list[_V | None]) -> None:
        """Give each caller what was found for its keys, in order; a miss for each key without anything."""
        asked = len(gets) + sum(len(keys) for _, keys in reads)
        found += [None] * (asked - len(found))
        hits = asked - found.count(None)
        self.hits += hits
        self.misses += asked - hits
        for (future, _), value in zip(gets, found, strict=False):
            if not future.done():
                future.set_result(value)
        at = len(gets)
        for answer, keys in reads:
            pairs = zip(keys, found[at : at + len(keys)], strict=True)
            at += len(keys)
            if not answer.done():
                answer.set_result({key: value for key, value in pairs if value is not None})
