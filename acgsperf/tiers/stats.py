"""Collects the counts of the parts of a tier."""

from typing import Any, Protocol

from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.base import ConnectionStats, TierStats
from acgsperf.tiers.read_batches import ReadBatches
from acgsperf.tiers.server_calls import ServerCalls
from acgsperf.tiers.write_batches import WriteBatches

__all__ = ["CountedConnections", "collect_stats"]


class CountedConnections(Protocol):
    """The connections of a tier to its server."""

    failovers: int

    @property
    def connect_time(self) -> LatencyHistogram:
        """How long it took to open a connection, in ns."""

    def stats(self) -> ConnectionStats:
        """Return the open connections, and the counts so far."""


def collect_stats(
    calls: ServerCalls,
    reads: ReadBatches[Any, Any],
    writes: WriteBatches,
    connections: CountedConnections,
    *,
    refused: int,
    corrupt: int,
) -> TierStats:
    """Return the counts of a tier so far.

    Args:
        calls, reads, writes, connections: its parts.
        refused: entries that were not sent to the server.
        corrupt: stored values that could not be used.
    """
    return TierStats(
        hits=reads.hits,
        misses=reads.misses,
        stores=writes.stores,
        refused=refused + writes.refused,
        deletes=writes.deletes,
        skipped=calls.skipped,
        timeouts=calls.errors["TimeoutError"],
        errors=dict(calls.errors),
        corrupt=corrupt,
        breaker=calls.breaker.state,
        latency=reads.latency.snapshot(),
        failovers=connections.failovers,
        connections=connections.stats(),
    )
