"""The counters of the cache under their former names."""

from dataclasses import dataclass
from functools import cache

from acgsperf.compat._counters import derived, seconds_per_call
from acgsperf.compat._l1 import CacheEntry
from acgsperf.dispatch import RecordingCache

__all__ = ["CacheActivity", "CacheMetrics", "LiveCacheMetrics"]


@dataclass
class CacheMetrics:
    """The counters of a cache; times are in seconds."""

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
        """Return the hits of all tiers / (those hits + L3 misses), between 0 and 1; 0.0 without accesses."""
        hits = self.l1_hits + self.l2_hits + self.l3_hits
        asked = hits + self.l3_misses
        return hits / asked if asked else 0.0

    def get_avg_access_time_ms(self) -> float:
        """Return the average access time in milliseconds; 0.0 without accesses."""
        return self.total_access_time / self.total_accesses * 1e3 if self.total_accesses else 0.0


class CacheActivity:
    """What a cache did: the lookups that its L1 counts, and the time that `get` spent after an L1 miss.

    Args:
        l1: the entries in memory.

    Attributes:
        other_lookups: lookups in L1 that were not part of a `get`.
        l1_miss_s: seconds that `get` spent after an L1 miss.
    """

    def __init__(self, l1: RecordingCache[str, CacheEntry]) -> None:
        self.l1 = l1
        self.other_lookups = 0
        self.l1_miss_s = 0.0

    @property
    def gets(self) -> int:
        """How often `get` was called."""
        counted = self.l1.stats()
        return counted.hits + counted.misses - self.other_lookups

    @property
    def access_s(self) -> float:
        """Seconds spent in `get`. L1 hits are estimated, because reading a clock takes longer than a hit."""
        return self.l1_miss_s + self.l1.stats().hits * _l1_hit_s()


@cache
def _l1_hit_s() -> float:
    entries: RecordingCache[str, int] = RecordingCache(1)
    entries["key"] = 1
    return seconds_per_call(entries.__getitem__, "key")


class LiveCacheMetrics(CacheMetrics):
    """The counters of a cache in use: those that its L1 counts are read from there."""

    l1_hits: int = derived(lambda self: self._activity.l1.stats().hits)
    l1_misses: int = derived(lambda self: self._activity.l1.stats().misses)
    evictions: int = derived(lambda self: self._activity.l1.stats().evictions)
    total_accesses: int = derived(lambda self: self._activity.gets)
    total_access_time: float = derived(lambda self: self._activity.access_s)

    def __init__(self, activity: CacheActivity) -> None:
        self._activity = activity
        super().__init__()

    def __eq__(self, other: object) -> bool:
        """Return whether all counters are equal now."""
        if not isinstance(other, CacheMetrics):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in CacheMetrics.__dataclass_fields__)

    def __reduce__(self) -> tuple[type[CacheMetrics], tuple[float, ...]]:
        """Copy and pickle as a plain `CacheMetrics` with the current values."""
        return CacheMetrics, tuple(getattr(self, name) for name in CacheMetrics.__dataclass_fields__)
