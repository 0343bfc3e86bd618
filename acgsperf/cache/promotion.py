"""Decides when a key that is found in a lower tier is promoted to L1."""

from typing import Final

from acgsperf._native.stats import CacheStats
from acgsperf.dispatch import LRUCache

__all__ = ["Promotion"]

LOWEST: Final = 1
HIGHEST: Final = 10
# With fewer requests, or a smaller change, the hit rate may have changed by chance.
_MIN_REQUESTS: Final = 1_000
_MIN_RATE_CHANGE: Final = 0.005


class Promotion:
    """Counts the hits of each key in the lower tiers, and promotes a key at the threshold.

    Args:
        threshold: the hit at which a key is promoted; 1 promotes at the first.
        counters: the maximum number of keys that are counted; the least recently hit key is forgotten first.

    Attributes:
        threshold: the hit at which a key is promoted.
        hits: the hits of each key that is counted.
    """

    def __init__(self, threshold: int, counters: int) -> None:
        self.set_threshold(threshold)
        self._highest = max(HIGHEST, threshold)
        self.hits: LRUCache[str, int] = LRUCache(counters)
        self._step = -1
        self._before: CacheStats | None = None
        self._rate: float | None = None

    def set_threshold(self, threshold: int) -> None:
        """Change the threshold. The hits counted so far stay."""
        if isinstance(threshold, bool) or not isinstance(threshold, int):
            raise TypeError(f"promotion_threshold must be an integer, got {threshold!r}")
        if threshold < LOWEST:
            raise ValueError(f"promotion_threshold must be at least {LOWEST}, got {threshold!r}")
        self.threshold: int = threshold

    def count_hit(self, key: str) -> bool:
        """Count a hit, and return whether the key is to be promoted now."""
        hits = self.hits.get(key, 0) + 1
        if hits >= self.threshold:
            self.hits.pop(key, 0)
            return True
        self.hits.set(key, hits)
        return False

    def forget(self, key: str) -> None:
        """Reset the count of a key."""
        self.hits.pop(key, 0)

    def clear(self) -> None:
        """Reset the count of every key."""
        self.hits.clear()

    def adapt(self, l1: CacheStats) -> str | None:
        """Move the threshold by one, judged by L1's hit rate since the last move.

        While L1 evicts nothing it has room, and the threshold falls. Otherwise this is hill climbing: while the hit
        rate rises, the threshold moves on in the same direction; when the rate falls, it moves back.

        Returns:
            How it moved and why, or None if it did not move.
        """
        before, self._before = self._before, l1
        if before is None or l1.hits < before.hits or l1.misses < before.misses:
            self._rate = None
            return None
        hits, requests = l1.hits - before.hits, l1.hits + l1.misses - before.hits - before.misses
        if requests < _MIN_REQUESTS:
            self._before = before
            return None
        rate, last = hits / requests, self._rate
        self._rate = rate
        if l1.evictions == before.evictions:
            return self._move(-1, "L1 has room")
        if last is None:
            return self._move(self._step, f"trying a new threshold; L1 hit rate is {rate:.1%}")
        if rate >= last + _MIN_RATE_CHANGE:
            return self._move(self._step, f"the L1 hit rate rose from {last:.1%} to {rate:.1%}")
        if rate <= last - _MIN_RATE_CHANGE:
            self._step = -self._step
            return self._move(self._step, f"the L1 hit rate fell from {last:.1%} to {rate:.1%}")
        return None

    def _move(self, step: int, why: str) -> str | None:
        old, self.threshold = self.threshold, min(max(self.threshold + step, LOWEST), self._highest)
        if old == self.threshold:
            self._step = -self._step
            return None
        return f"promotion threshold changed from {old} to {self.threshold}: {why}"
