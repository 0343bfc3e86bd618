"""When a key that is found behind L1 has earned its place in it."""

from typing import Final

from acgsperf._native.types import CacheStats
from acgsperf.dispatch import LRUCache

__all__ = ["Promotion"]

LOWEST: Final = 1
HIGHEST: Final = 10
# Below these, a change of the hit rate says nothing.
_ENOUGH_REQUESTS: Final = 1_000
_NOTICEABLE: Final = 0.005


class Promotion:
    """Counts hits behind L1, and promotes a key at the threshold.

    Args:
        threshold: the hit at which a key is promoted, 1 for the first.
        counters: keys that are counted; the one not seen for longest is forgotten.
    """

    def __init__(self, threshold: int, counters: int) -> None:
        self.set_threshold(threshold)
        self._highest = max(HIGHEST, threshold)
        self._hits: LRUCache[str, int] = LRUCache(counters)
        self._step = -1
        self._before: CacheStats | None = None
        self._rate: float | None = None

    def set_threshold(self, threshold: int) -> None:
        """Move it; keys keep the hits that they have."""
        if isinstance(threshold, bool) or not isinstance(threshold, int):
            raise TypeError(f"promotion_threshold must be an integer, not {threshold!r}")
        if threshold < LOWEST:
            raise ValueError(f"promotion_threshold must be at least {LOWEST}, not {threshold!r}")
        self.threshold = threshold

    def earned(self, key: str) -> bool:
        """Count a hit; whether it is the one that promotes the key."""
        hits = self._hits.get(key, 0) + 1
        if hits >= self.threshold:
            self._hits.pop(key, 0)
            return True
        self._hits.set(key, hits)
        return False

    def forget(self, key: str) -> None:
        """Count from zero again."""
        self._hits.pop(key, 0)

    def clear(self) -> None:
        """Count every key from zero again."""
        self._hits.clear()

    def adapt(self, l1: CacheStats) -> str | None:
        """Move the threshold by one, by what L1 gained since the last move; says how and why, None for no move.

        While L1 evicts nothing, room costs nothing: down. Otherwise by hill climbing on L1's hit rate: as long as it
        rises, on in the same direction; when it falls, back.
        """
        before, self._before = self._before, l1
        if before is None or l1.hits < before.hits or l1.misses < before.misses:
            self._rate = None
            return None
        hits, requests = l1.hits - before.hits, l1.hits + l1.misses - before.hits - before.misses
        if requests < _ENOUGH_REQUESTS:
            self._before = before
            return None
        rate, last = hits / requests, self._rate
        self._rate = rate
        if l1.evictions == before.evictions:
            return self._move(-1, "L1 has room")
        if last is None:
            return self._move(self._step, f"to see what it does to an L1 hit rate of {rate:.1%}")
        if rate >= last + _NOTICEABLE:
            return self._move(self._step, f"the L1 hit rate rose from {last:.1%} to {rate:.1%}")
        if rate <= last - _NOTICEABLE:
            self._step = -self._step
            return self._move(self._step, f"the L1 hit rate fell from {last:.1%} to {rate:.1%}")
        return None

    def _move(self, step: int, why: str) -> str | None:
        old, self.threshold = self.threshold, min(max(self.threshold + step, LOWEST), self._highest)
        if old == self.threshold:
            self._step = -self._step
            return None
        return f"promotion threshold from {old} to {self.threshold}: {why}"
