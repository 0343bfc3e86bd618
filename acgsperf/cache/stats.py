"""Collects the counts of the parts of a tiered cache."""

from dataclasses import replace
from typing import Any

from acgsperf._native.stats import CacheStats
from acgsperf.cache.l1 import L1
from acgsperf.cache.parts import Parts
from acgsperf.cache.types import TieredStats

__all__ = ["collect_stats"]


def collect_stats(parts: Parts) -> TieredStats:
    """Return the counts of the parts so far."""
    l1, lookup, loading, promotion = parts.l1, parts.lookup, parts.loading, parts.promotion
    l2, l3, queues = parts.lower_tiers.l2, parts.lower_tiers.l3, parts.lower_tiers.queues
    return TieredStats(
        l1=_with_bytes(l1.lru.stats(), l1),
        l2=None if l2 is None else l2.stats(),
        l3=None if l3 is None else l3.stats(),
        loads=loading.loads,
        load_errors=loading.load_errors,
        load_timeouts=loading.load_timeouts,
        missed=loading.missed,
        joined=loading.joined,
        refreshes=loading.refreshes,
        stale_served=loading.stale_served,
        negative_hits=l1.negative_hits,
        promotions=lookup.promotions,
        promotion_threshold=promotion.threshold,
        demotions=sum(queue.demoted for queue in queues),
        write_backs=sum(queue.written for queue in queues),
        dropped=sum(queue.dropped + queue.refused for queue in queues),
        deadlines=lookup.deadlines,
        stale_entries=l1.stale_count,
        negative_entries=l1.negative_count,
        loading=len(loading.flights),
        unrepaired=len(parts.repairs),
        prediction=None if parts.prefetch is None else parts.prefetch.stats(),
        backplane=None if parts.backplane is None else parts.backplane.stats(),
    )


def _with_bytes(stats: CacheStats, l1: L1[Any]) -> CacheStats:
    """Add an estimate of the bytes of an entry, if there is no weigher that knows."""
    if stats.sizing is None or stats.sizing.entry_bytes is not None:
        return stats
    entry_bytes = l1.typical_bytes()
    return stats if entry_bytes is None else replace(stats, sizing=stats.sizing.weighed(entry_bytes))
