"""The statistics of both implementations. They are imported when they are used: dataclasses take long to create."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from acgsperf._native.sizing_stats import SizingStats
from acgsperf._native.types import SETTING_NAMES


@dataclass(frozen=True, slots=True)
class ValidatorStats:
    """Counters of a `HashValidator` since its creation or last reset."""

    valid: int
    mismatched: int
    malformed: int

    @property
    def validations(self) -> int:
        """The number of validated values."""
        return self.valid + self.mismatched + self.malformed


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """What an `AdaptiveCache` with the policy "adaptive" has learned.

    Attributes:
        setting: the name of the active setting.
        seconds: how long it has been active.
        switches: how often the setting has changed.
        samples: how many requests the shadow caches have seen.
        hit_rates: by setting, the estimated hit rate if it had always been active, for the same requests as
            `CacheStats.hit_rate`; empty if too few requests were seen.
    """

    setting: str
    seconds: float
    switches: int
    samples: int
    hit_rates: dict[str, float]


def policy_stats(
    setting: int,
    seconds: float,
    switches: int,
    samples: int,
    missed: int,
    shadow_misses: Sequence[int],
    hits: int,
    misses: int,
) -> PolicyStats:
    """Return the statistics of a policy from the counters of either implementation.

    Args:
        setting: the number of the active setting.
        seconds: how long it has been active.
        switches: how often the setting has changed.
        samples: how many requests the shadow caches have seen.
        missed: how often the cache has missed a sampled key.
        shadow_misses: how often each shadow cache has missed one.
        hits: how often the cache has hit any key.
        misses: how often the cache has missed any key.
    """
    rates = {}
    if missed and hits + misses:
        # If a shadow cache has missed half as often as the cache itself, its setting would have halved the misses.
        rate = misses / (hits + misses) / missed
        rates = {name: max(0.0, 1 - rate * n) for name, n in zip(SETTING_NAMES, shadow_misses, strict=True)}
    return PolicyStats(SETTING_NAMES[setting], seconds, switches, samples, rates)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters of an `LRUCache` or `AdaptiveCache` since its creation or last reset, and its size now.

    Attributes:
        weight: the sum of the weights now, None without a weigher.
        maxweight: the limit of `weight`, None for no limit.
        rejections: how many values were too heavy to be stored.
        policy: the statistics of the policy, None if it is fixed. Comparisons ignore it.
        sizing: what other sizes would hit; None without `sizing`, or if too few requests were seen.
    """

    hits: int
    misses: int
    insertions: int
    updates: int
    evictions: int
    expirations: int
    size: int
    maxsize: int
    weight: int | None = None
    maxweight: int | None = None
    rejections: int = 0
    policy: PolicyStats | None = field(default=None, compare=False)
    sizing: SizingStats | None = field(default=None, compare=False)

    @property
    def hit_rate(self) -> float:
        """Hits / (hits + misses), between 0 and 1; 0.0 if there were none."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else 0.0

    @property
    def mean_weight(self) -> float | None:
        """The mean weight of an entry; None without a weigher or entries."""
        return self.weight / self.size if self.weight is not None and self.size else None


@dataclass(frozen=True, slots=True)
class SaveResult:
    """What `save` of a cache has done.

    Attributes:
        entries: how many entries the file has.
        left_out: how many entries it does not have, because their key or value would not be equal after `load`.
    """

    entries: int
    left_out: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What `load` of a cache has done.

    Attributes:
        entries: how many entries were added.
        expired: how many entries of the file have expired since they were saved.
        left_out: how many others were not added, because the cache has the key or no room.
    """

    entries: int
    expired: int
    left_out: int


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """The usual figures of a `LatencyHistogram` at one moment; all except `count` are in nanoseconds."""

    count: int
    min: int
    max: int
    mean: float
    stddev: float
    p50: int
    p90: int
    p95: int
    p99: int
    p999: int
