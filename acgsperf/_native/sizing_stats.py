"""What a cache would hit with other sizes: the values that `stats` returns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["SizeEstimate", "SizingStats", "sizing_stats"]

# The sizes, in relation to the present one.
FACTORS: Final = (0.5, 1.0, 2.0, 4.0)
_ONCE: Final = 1
_TWICE: Final = 2
# With fewer misses of sampled keys, an estimate is mostly chance.
_LEAST_MISSED: Final = 32
# A smaller gain from twice the size is mostly chance.
_LEAST_GAIN: Final = 0.001


@dataclass(frozen=True, slots=True)
class SizeEstimate:
    """What a cache would have hit with another size.

    Attributes:
        factor: the size in relation to the present one: 0.5, 1, 2 or 4.
        maxsize: the size, in entries.
        lru: the expected hit rate of an `LRUCache`.
        adaptive: the expected hit rate of an `AdaptiveCache`. With the factor 1, it is what this cache has reached.
    """

    factor: float
    maxsize: int
    lru: float
    adaptive: float


@dataclass(frozen=True, slots=True)
class SizingStats:
    """What an `AdaptiveCache` with `sizing` expects of other sizes. Hit rates are those of `CacheStats.hit_rate`.

    Attributes:
        requests: the hits and misses that the estimates are for: those since the last change of the size, or the last
            reset.
        sizes: the estimates, by size.
        entry_bytes: the mean weight of an entry; None if it is not known.
        point_entries: how many more entries are needed for a hit rate that is 0.01 higher. None if twice the size would
            bring less than a tenth of that.
        point_bytes: the same in bytes; None if the weight of an entry is not known either.
    """

    requests: int
    sizes: tuple[SizeEstimate, ...]
    entry_bytes: float | None = None
    point_entries: int | None = None
    point_bytes: int | None = None

    def weighed(self, entry_bytes: float) -> "SizingStats":
        """Return the same with the mean weight of an entry."""
        points = self.point_entries
        return replace(
            self, entry_bytes=entry_bytes, point_bytes=None if points is None else round(points * entry_bytes)
        )


def sizing_stats(
    tallies: Sequence[tuple[float, float, float]],
    size: int,
    requests: int,
    misses: int,
    entry_bytes: float | None,
) -> SizingStats | None:
    """Return the estimates; None if too few requests were seen.

    Args:
        tallies: for each size, how often the cache has missed a sampled key, and how often the shadow caches have, with
            LRU and with the best setting.
        size: the number of entries that fit.
        requests, misses: how often the cache was asked meanwhile, and how often it has missed.
        entry_bytes: the mean weight of an entry; None if it is not known.
    """
    if requests <= 0 or min(missed for missed, _, _ in tallies) < _LEAST_MISSED:
        return None
    rate = misses / requests
    sizes = []
    for scale, (missed, lru, best) in enumerate(tallies):
        # If a shadow cache has missed half as often as the cache itself, this size would have halved the misses.
        adaptive = 1 - rate if scale == _ONCE else max(0.0, 1 - rate * best / missed)
        factor = FACTORS[scale]
        sizes.append(SizeEstimate(factor, max(1, int(factor * size)), max(0.0, 1 - rate * lru / missed), adaptive))
    gain = sizes[_TWICE].adaptive - sizes[_ONCE].adaptive
    points = None if gain < _LEAST_GAIN else round(0.01 * size / gain)
    found = SizingStats(requests, tuple(sizes), point_entries=points)
    return found if entry_bytes is None else found.weighed(entry_bytes)
