"""The counters of the cache under their former names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from acgsperf.compat._counters import derived

if TYPE_CHECKING:
    from acgsperf.compat.ultra_fast_cache import UltraFastMultiTierCache

__all__ = ["CacheMetrics", "LiveCacheMetrics"]


@dataclass
class CacheMetrics:
    """What a cache counted; times are in seconds."""

    l1_hits: int = 0
    l1_misses: int = 0
    l2_hits: int = 0
    l2_misses: int = 0
    l3_hits: int = 0
    l3_misses: int = 0
    promotions: int = 0
    demotions: int = 0
    evictions: int = 0
    total_access_time: float = 0.0
    total_accesses: int = 0

    def get_overall_hit_rate(self) -> float:
        """Hits of all tiers / (those + L3 misses), between 0 and 1; 0.0 when nothing was asked."""
        hits = self.l1_hits + self.l2_hits + self.l3_hits
        asked = hits + self.l3_misses
        return hits / asked if asked else 0.0

    def get_avg_access_time_ms(self) -> float:
        """The average access in milliseconds; 0.0 when there was none."""
        return self.total_access_time / self.total_accesses * 1e3 if self.total_accesses else 0.0


class LiveCacheMetrics(CacheMetrics):
    """The counters of a cache that is at work: what its L1 counts is read from there, when it is asked for."""

    l1_hits: int = derived(lambda self: self._cache._l1.stats().hits)
    l1_misses: int = derived(lambda self: self._cache._l1.stats().misses)
    evictions: int = derived(lambda self: self._cache._l1.stats().evictions)
    total_accesses: int = derived(lambda self: self._cache._gets())
    total_access_time: float = derived(lambda self: self._cache._access_s())

    def __init__(self, cache: "UltraFastMultiTierCache") -> None:
        self._cache = cache
        super().__init__()

    def __eq__(self, other: object) -> bool:
        """Whether the figures are the same now."""
        if not isinstance(other, CacheMetrics):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in CacheMetrics.__dataclass_fields__)

    def __reduce__(self) -> tuple[type[CacheMetrics], tuple[float, ...]]:
        """Copies, and what is sent elsewhere, are the figures of now."""
        return CacheMetrics, tuple(getattr(self, name) for name in CacheMetrics.__dataclass_fields__)
