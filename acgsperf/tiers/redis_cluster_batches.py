"""What a tier collects for a cluster: a queue of reads and one of writes for each node.

Nodes do not wait for each other. A node that does not answer costs the keys of its own buckets only.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.read_batches import ReadBatches
from acgsperf.tiers.server_calls import ServerCalls
from acgsperf.tiers.write_batches import REFUSED, Operation, WriteBatch, WriteBatches

__all__ = ["ClusterReads", "ClusterWriteBatches"]

# If there are fewer reads than this, they wait for the batches in flight, at most for this time. The callers of all
# nodes then continue together, and batches are larger: with 50 callers and three nodes, by a third.
_LARGE: Final = 16
_PAUSE_S: Final = 0.0005
_K = TypeVar("_K")
_V = TypeVar("_V")


class ClusterReads(ReadBatches[_K, _V]):
    """Gives each read to the queue of its node.

    Args:
        calls: those of the tier.
        fetch: returns what is found for keys of one node.
        deadline: as for `ReadBatches`.
        queue_of: returns the queue of a key.

    Attributes:
        in_flight: batches of all nodes that were sent and not answered.
    """

    def __init__(
        self,
        calls: ServerCalls,
        fetch: Callable[[Sequence[_K]], Awaitable[list[_V | None]]],
        deadline: float,
        queue_of: Callable[[_K], ReadBatches[_K, _V]],
    ) -> None:
        super().__init__(calls, fetch, deadline)
        self.in_flight: int = 0
        self._held: list[_NodeReads[_K, _V]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._queue_of = queue_of

    def hold(self, queue: "_NodeReads[_K, _V]") -> None:
        """Start a batch of a node once no other batch is in flight, or after a short time."""
        self._held.append(queue)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, self.release)

    def release(self) -> None:
        """Start the batches that are held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, []
        for queue in held:
            queue.start_now()

    def close(self) -> None:
        super().close()
        # The queues of the nodes answer what is held.
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def new_queue(self, calls: ServerCalls) -> ReadBatches[_K, _V]:
        """Return a queue for a node, with the deadline of this one once it is open. Its reads count here."""
        queue = _NodeReads(calls, self._fetch, self._deadline.seconds, self.latency, self)
        queue.open()
        return queue

    def get_many(self, keys: Sequence[_K]) -> asyncio.Future[dict[_K, _V]]:
        groups: dict[ReadBatches[_K, _V], list[_K]] = {}
        for key in keys:
            groups.setdefault(self._queue_of(key), []).append(key)
        if len(groups) == 1:
            ((queue, _),) = groups.items()
            return queue.get_many(keys)
        return asyncio.ensure_future(self._merged([queue.get_many(some) for queue, some in groups.items()]))

    async def _merged(self, parts: Sequence[asyncio.Future[dict[_K, _V]]]) -> dict[_K, _V]:
        found: dict[_K, _V] = {}
        for part in await asyncio.gather(*parts):
            found |= part
        return found


class _NodeReads(ReadBatches[_K, _V]):
    """The reads of one node: they skip it if its breaker is open, and count for the tier."""

    def __init__(
        self,
        calls: ServerCalls,
        fetch: Callable[[Sequence[_K]], Awaitable[list[_V | None]]],
        deadline: float,
        latency: LatencyHistogram,
        tier: ClusterReads[_K, _V],
    ) -> None:
        super().__init__(calls, fetch, deadline, latency)
        self._tier: Final = tier

    def _start(self) -> None:
        self.queue.scheduled = True
        if self._tier.in_flight and len(self.queue.keys) < _LARGE:
            self._tier.hold(self)
        else:
            self.start_now()

    def start_now(self) -> None:
        """Start a batch."""
        if self._loop is not None:
            self._calls.start(self._read())

    async def _read(self) -> None:
        self._tier.in_flight += 1
        try:
            await super()._read()
        finally:
            self._tier.in_flight -= 1
            if not self._tier.in_flight:
                self._tier.release()

    def get_many(self, keys: Sequence[_K]) -> asyncio.Future[dict[_K, _V]]:
        if self._calls.allow(len(keys)):
            return super().get_many(keys)
        self._tier.misses += len(keys)
        nothing: asyncio.Future[dict[_K, _V]] = asyncio.Future(loop=self._loop)
        nothing.set_result({})
        return nothing

    def _answer(self, futures: list[asyncio.Future[_V | None]], reads: Sequence[Any], found: list[_V | None]) -> None:
        hits, misses = self.hits, self.misses
        super()._answer(futures, reads, found)
        self._tier.hits += self.hits - hits
        self._tier.misses += self.misses - misses


class ClusterWriteBatches(WriteBatches):
    """Gives each operation to the queue of its node.

    Args:
        calls: those of the tier.
        write: carries out a batch for one node.
        deadline: as for `WriteBatches`.
        queue_of: returns the queue of a key.
        queues: returns all queues.
    """

    def __init__(
        self,
        calls: ServerCalls,
        write: Callable[[WriteBatch], Awaitable[None]],
        deadline: float,
        queue_of: "Callable[[str], NodeWrites]",
        queues: "Callable[[], Sequence[NodeWrites]]",
    ) -> None:
        super().__init__(calls, write, deadline)
        self._queue_of = queue_of
        self._queues = queues

    def new_queue(self, calls: ServerCalls) -> "NodeWrites":
        """Return a queue for a node. Its operations count here."""
        return NodeWrites(calls, self._write, self._deadline_s, self)

    async def carried_out(self, operations: Mapping[str, Operation]) -> list[tuple[WriteBatch, list[str]]]:
        for key in operations:
            if (batch := self.pending.get(key)) is not None and not self._queue_of(key).has(batch):
                # Its slot has moved: an earlier write is in the queue of the former node.
                await asyncio.shield(batch.done)
        groups: dict[NodeWrites, dict[str, Operation]] = {}
        for key, operation in operations.items():
            groups.setdefault(self._queue_of(key), {})[key] = operation
        places = [place for queue, some in groups.items() for place in queue.placed(some)]
        for batch, _ in places:
            await asyncio.shield(batch.done)
        return places

    async def wait_for_all(self) -> None:
        for queue in self._queues():
            await queue.wait_for_all()


class NodeWrites(WriteBatches):
    """The writes of one node: they skip it if its breaker is open, and count for the tier."""

    def __init__(
        self,
        calls: ServerCalls,
        write: Callable[[WriteBatch], Awaitable[None]],
        deadline: float,
        tier: WriteBatches,
    ) -> None:
        super().__init__(calls, write, deadline, tier.pending)
        self._tier: Final = tier

    def has(self, batch: WriteBatch) -> bool:
        """Return whether a batch is in this queue."""
        return batch in self._queue

    def placed(self, operations: Mapping[str, Operation]) -> list[tuple[WriteBatch, list[str]]]:
        """Queue operations, and return the batches with them and their keys in each."""
        if self._calls.allow(len(operations)):
            return self._enqueue(operations)
        loop = asyncio.get_running_loop()
        batch = WriteBatch(loop.create_future(), loop.time())
        batch.operations = dict(operations)
        batch.results = dict.fromkeys(operations, REFUSED)
        batch.done.set_result(None)
        return [(batch, list(operations))]

    def _finish(self, batch: WriteBatch) -> None:
        stores, deletes, refused = self.stores, self.deletes, self.refused
        super()._finish(batch)
        self._tier.stores += self.stores - stores
        self._tier.deletes += self.deletes - deletes
        self._tier.refused += self.refused - refused
