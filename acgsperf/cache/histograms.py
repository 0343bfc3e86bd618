"""The live histograms of a cache, for exporters: the snapshots in `stats()` cannot be added up."""

from typing import Any

from acgsperf.backplane import Backplane
from acgsperf.backplane.server import ServerBackplane
from acgsperf.cache.tiered import TieredCache
from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.base import Tier
from acgsperf.tiers.server import ServerTier

__all__ = ["connect_time_of", "histograms_of", "lag_of", "read_time_of"]


def read_time_of(tier: Tier) -> LatencyHistogram | None:
    """Return the duration of reads from a tier, in ns. A tier of your own has none."""
    return tier._reads.latency if isinstance(tier, ServerTier) else None


def connect_time_of(tier: Tier) -> LatencyHistogram | None:
    """Return how long it took to open each connection of a tier, in ns. A tier of your own has none."""
    return tier.counted_connections.connect_time if isinstance(tier, ServerTier) else None


def lag_of(backplane: Backplane) -> LatencyHistogram | None:
    """Return the lag of a backplane, in ns. A backplane of your own has none."""
    return backplane._counts.lag if isinstance(backplane, ServerBackplane) else None


def histograms_of(cache: TieredCache[Any]) -> list[LatencyHistogram]:
    """Return all histograms of a cache."""
    parts = cache._parts
    found = [read(tier) for tier in parts.lower_tiers.tiers for read in (read_time_of, connect_time_of)]
    found += [] if parts.backplane is None else [lag_of(parts.backplane)]
    return [histogram for histogram in found if histogram is not None]
