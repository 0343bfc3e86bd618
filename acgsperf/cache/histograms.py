"""The live histograms of a cache, for exporters: the snapshots in `stats()` cannot be added up."""

from typing import Any

from acgsperf.backplane.server import ServerBackplane
from acgsperf.cache.tiered import TieredCache
from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.server import ServerTier

__all__ = ["histograms_of"]


def histograms_of(cache: TieredCache[Any]) -> dict[str, LatencyHistogram]:
    """Return the histograms of a cache by name, in ns.

    `l2` and `l3` have the duration of reads, `l2 connect` and `l3 connect` that of opening a connection, and
    `backplane` the lag of the backplane.

    A tier or backplane of your own has none.
    """
    parts = cache._parts
    found = {}
    for name, tier in (("l2", parts.lower_tiers.l2), ("l3", parts.lower_tiers.l3)):
        if isinstance(tier, ServerTier):
            found[name] = tier._reads.latency
            found[f"{name} connect"] = tier.counted_connections.connect_time
    if isinstance(parts.backplane, ServerBackplane):
        found["backplane"] = parts.backplane._counts.lag
    return found
