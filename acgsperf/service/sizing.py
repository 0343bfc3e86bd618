"""Resizes L1 within the bounds of the settings, by what its shadow caches expect of other sizes."""

from collections.abc import Iterator
from typing import Any, Final

from acgsperf._native.sizing_stats import SizingStats
from acgsperf.cache import TieredCache
from acgsperf.service.tuning import Action, Outcome
from acgsperf.settings import Settings

__all__ = ["Sizer"]

# Estimates are used if they are for at least this many requests, and this many for each entry.
_MIN_REQUESTS: Final = 1_000
_REQUESTS_PER_ENTRY: Final = 4
# L1 grows if twice the size would gain this much hit rate, and shrinks if half the size would lose less than that.
_LEAST_GAIN: Final = 0.01
_MOST_LOSS: Final = 0.002
# Evicting more entries at once would delay requests by more than some milliseconds.
_MOST_EVICTED: Final = 5_000
_HALF, _ONCE, _TWICE = 0, 1, 2


class Sizer:
    """Doubles the size of L1 if that gains 1 point of hit rate or more, halves it if that loses less than 0.2 points.

    Args:
        cache: its L1 must be an `AdaptiveCache` with `sizing`. Otherwise nothing is resized.
        least, most: the bounds, in entries.
    """

    def __init__(self, cache: TieredCache[Any], least: int, most: int) -> None:
        self._cache = cache
        self._least, self._most = least, most
        # The expected hits of each size when the last decision was made, the requests, and the size that they are for.
        self._hits = [0.0] * 4
        self._requests = 0
        self._size = 0

    @classmethod
    def from_settings(cls, cache: TieredCache[Any], settings: Settings) -> "Sizer | None":
        """Return None if the settings have no bounds."""
        least, size, most = settings.l1_cache_size_min, settings.l1_cache_size, settings.l1_cache_size_max
        if least is None and most is None:
            return None
        return cls(cache, size if least is None else least, size if most is None else most)

    def step(self) -> Iterator[Action]:
        """Resize L1 if enough requests say so."""
        sizing = self._cache.stats().sizing
        if sizing is None:
            return
        size = self._cache.l1_maxsize
        rates = self._rates_since_last_decision(sizing, max(_MIN_REQUESTS, _REQUESTS_PER_ENTRY * size))
        if rates is None:
            return
        after, expected = size, rates[_ONCE]
        if rates[_TWICE] - rates[_ONCE] >= _LEAST_GAIN:
            after, expected = max(size, min(2 * size, self._most)), rates[_TWICE]
        elif rates[_ONCE] - rates[_HALF] < _MOST_LOSS:
            after, expected = min(size, max(size // 2, size - _MOST_EVICTED, self._least)), rates[_HALF]
        if after != size:
            self._cache.resize_l1(after)
            yield Action("entries of L1", size, after, rates[_ONCE], expected, Outcome.KEPT)

    def _rates_since_last_decision(self, sizing: SizingStats, needed: int) -> list[float] | None:
        """Return the expected hit rate of each size for the requests since the last decision; None if they are few."""
        hits = [found.adaptive * sizing.requests for found in sizing.sizes]
        if sizing.requests < self._requests or sizing.sizes[_ONCE].maxsize != self._size:
            # The counts have started again since then.
            self._hits, self._requests, self._size = [0.0] * 4, 0, sizing.sizes[_ONCE].maxsize
        requests = sizing.requests - self._requests
        if requests < needed:
            return None
        rates = [(now - before) / requests for now, before in zip(hits, self._hits, strict=True)]
        self._hits, self._requests = hits, sizing.requests
        return rates
