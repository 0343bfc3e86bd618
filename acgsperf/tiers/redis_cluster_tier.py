"""What a Redis tier uses in a cluster in place of one server: nodes, and a queue of reads and writes for each."""

from binascii import crc_hqx
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from acgsperf._native import envelope_format as envelope
from acgsperf.tiers.base import BreakerState, Entry, Observation, TierStats
from acgsperf.tiers.breaker import CircuitBreaker
from acgsperf.tiers.redis_cluster import RedisCluster
from acgsperf.tiers.redis_cluster_batches import ClusterReads, ClusterWriteBatches
from acgsperf.tiers.redis_cluster_entries import ClusterEntries
from acgsperf.tiers.redis_connections import Credentials
from acgsperf.tiers.redis_keys import BUCKETS, bucket_of
from acgsperf.tiers.redis_locks import RedisLocks
from acgsperf.tiers.redis_node import Node
from acgsperf.tiers.redis_replies import is_refusal
from acgsperf.tiers.redis_slots import RedisSlots
from acgsperf.tiers.server import Wanted
from acgsperf.tiers.server_calls import ServerCalls
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.tiers.stats import CountedConnections
from acgsperf.tiers.write_batches import WriteBatch

if TYPE_CHECKING:
    import asyncio

__all__ = ["InCluster"]


class _Breakers(CircuitBreaker):
    """Sums up the breakers of the nodes."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        super().__init__()

    @property
    def failures_in_a_row(self) -> int:
        """0 if a node has answered its last call."""
        return min((node.calls.breaker.failures_in_a_row for node in self._cluster.in_use), default=0)

    @failures_in_a_row.setter
    def failures_in_a_row(self, count: int) -> None:
        pass


class InCluster:
    """The nodes of a cluster, and what a tier collects for each of them.

    Args:
        slots: knows the slots of the cluster.
        calls: those of the tier.
        deadline: that of the tier.
        check_use: raises `TierError` if the tier may not be used.
        stamps: the clock for stamps, which is measured here.
        credentials, max_connections, max_lifetime: as for `RedisTier`.

    Attributes:
        reads, observations, writes: what the tier uses for single keys and batches of them.
        breaker: tells the tier whether any node has answered its last call. It stays closed.
    """

    def __init__(
        self,
        slots: RedisSlots,
        calls: ServerCalls,
        *,
        deadline: float,
        check_use: Callable[[], object],
        stamps: ServerClock,
        credentials: Credentials | None,
        max_connections: int | None,
        max_lifetime: float,
    ) -> None:
        self._calls = calls
        self._deadline = deadline
        self._check_use = check_use
        self._namespace = ""
        self._entries: ClusterEntries
        self._cluster: Final = RedisCluster(
            slots,
            new_calls=self._new_calls,
            equip=self._equip,
            stamps=stamps,
            credentials=credentials,
            max_connections=max_connections,
            max_lifetime=max_lifetime,
        )
        self.breaker: Final = _Breakers(self._cluster)
        self.reads: Final = ClusterReads[str, Entry](calls, self._fetch, deadline, lambda key: self._home(key).reads)
        self.observations: Final = ClusterReads[Wanted, Observation](
            calls, self._observe, deadline, lambda wanted: self._home(wanted[0]).observations
        )
        self.writes: Final = ClusterWriteBatches(
            calls,
            self._write,
            deadline,
            lambda key: self._home(key).writes,
            lambda: [node.writes for node in self._cluster.nodes.all],
        )

    def open(
        self, namespace: str, label: str, count_corrupt: Callable[[], None], max_value_bytes: int, retention: float
    ) -> ClusterEntries:
        """Bind to the running event loop, and return what carries out calls."""
        self._namespace = namespace
        self._cluster.open(namespace, label)
        self._entries = ClusterEntries(
            self._cluster, self._calls, count_corrupt, max_value_bytes=max_value_bytes, retention=retention
        )
        return self._entries

    async def find(self) -> None:
        """See `RedisCluster.find`."""
        await self._cluster.find()

    async def close(self) -> None:
        """Close all connections."""
        self._entries.close()
        await self._cluster.close()

    @property
    def counted_connections(self) -> CountedConnections:
        """The connections to all nodes."""
        return self._cluster

    def stats(self, stats: TierStats) -> TierStats:
        """Return the counts of the tier together with those of the nodes. The breaker is the worst one."""
        states = [node.calls.breaker.state for node in self._cluster.in_use]
        worst = next((state for state in (BreakerState.OPEN, BreakerState.HALF_OPEN) if state in states), stats.breaker)
        return replace(stats, breaker=worst)

    def begin_get(self, key: str) -> "asyncio.Future[Entry | None] | None":
        """See `ServerTier`."""
        homes = self._cluster.homes
        if not homes:
            self._check_use()
        # As `bucket_of`, without calls: this is the hot path.
        try:
            bucket = crc_hqx(key.encode(), 0) % BUCKETS
        except UnicodeEncodeError:
            bucket = bucket_of(envelope.identity(key))
        future: asyncio.Future[Entry | None] | None = homes[bucket].begin_get(key)
        return future

    def locks(self, key: str) -> RedisLocks:
        """Return the locks among which that of a key is."""
        return self._entries.locks(key)

    async def sweep(self) -> int | None:
        """See `ClusterEntries`."""
        return await self._entries.sweep()

    async def describe(self) -> str:
        """See `ClusterEntries`."""
        return await self._entries.describe()

    def _home(self, key: str) -> Node:
        return self._cluster.homes[bucket_of(envelope.identity(key))]

    def _new_calls(self, timed_out: Callable[[], None]) -> ServerCalls:
        calls = ServerCalls("redis", self._deadline, timed_out, is_refusal, self._calls)
        calls.hint = self._calls.hint
        calls.open(self._namespace)
        return calls

    def _equip(self, node: Node) -> None:
        node.reads = self.reads.new_queue(node.calls)
        node.begin_get = node.reads.queue.begin
        node.reads.queue.guard(self._check_use, node.calls.breaker, BreakerState.CLOSED, self.writes.pending)
        node.observations = self.observations.new_queue(node.calls)
        node.writes = self.writes.new_queue(node.calls)

    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        return await self._entries.fetch(keys)

    async def _observe(self, wanted: Sequence[Wanted]) -> list[Observation | None]:
        return await self._entries.observe(wanted)

    async def _write(self, batch: WriteBatch) -> None:
        await self._entries.carry_out(batch)
