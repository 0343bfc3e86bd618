"""Collects the counts of the parts of a tiered cache."""

from typing import Any

from acgsperf.backplane.base import Backplane
from acgsperf.cache.l1 import L1
from acgsperf.cache.loading import Loading
from acgsperf.cache.lookup import Lookup
from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.repairs import Repairs
from acgsperf.cache.types import TieredStats

__all__ = ["collect_stats"]


def collect_stats(
    l1: L1[Any],
    lower_tiers: LowerTiers,
    lookup: Lookup,
    loading: Loading,
    promotion: Promotion,
    repairs: Repairs,
    backplane: Backplane | None,
) -> TieredStats:
    """Return the counts of the parts so far."""
    l2, l3, queues = lower_tiers.l2, lower_tiers.l3, lower_tiers.queues
    return TieredStats(
        l1=l1.lru.stats(),
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
        unrepaired=len(repairs),
        backplane=None if backplane is None else backplane.stats(),
    )
