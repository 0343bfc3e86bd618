"""The values that a tiered cache returns about itself."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

from acgsperf._native.prediction_stats import PredictionStats
from acgsperf._native.sizing_stats import SizingStats
from acgsperf._native.stats import CacheStats
from acgsperf.backplane.base import BackplaneStats
from acgsperf.tiers.base import TierHealth, TierStats

__all__ = ["CacheHealth", "CachedValue", "TieredStats", "Written"]

_V_co = TypeVar("_V_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Written:
    """Which tiers accepted a write, or carried out a removal.

    Attributes:
        l1: True; for a `touch` that a tier with the value did not carry out, False.
        l2: whether L2 did; False also if that was not known when the caller was answered; None if the cache has no L2.
        l3: the same for L3.
        published: whether the other processes have been told; None if the cache has no backplane. If it is False, they
            are told as soon as the backplane's server answers. If this process ends before that, their L1 keeps what it
            has until it expires there.
    """

    l1: bool
    l2: bool | None
    l3: bool | None
    published: bool | None = None

    @property
    def everywhere(self) -> bool:
        """Whether every tier of the cache did so, and every other process knows."""
        return self.l1 and self.l2 is not False and self.l3 is not False and self.published is not False


@dataclass(frozen=True, slots=True)
class CachedValue(Generic[_V_co]):
    """A fresh value, and what the cache knows of it.

    Attributes:
        value: the value.
        age: the seconds since it was loaded or set. `touch` does not change it.
        ttl: the seconds for which it is still fresh; None for no limit.
        tags: its tags.
        tier: where it was found: "l1", "l2" or "l3".
    """

    value: _V_co
    age: float
    ttl: float | None
    tags: tuple[str, ...]
    tier: Literal["l1", "l2", "l3"]


@dataclass(frozen=True, slots=True)
class CacheHealth:
    """The answers of the servers of the lower tiers.

    Attributes:
        l2: the health of L2; None if the cache has no L2.
        l3: the health of L3; None if the cache has no L3.
    """

    l2: TierHealth | None
    l3: TierHealth | None

    @property
    def ok(self) -> bool:
        """Whether every server answered."""
        return all(tier is None or tier.ok for tier in (self.l2, self.l3))

    def as_dict(self) -> dict[str, object]:
        """Return the answers as JSON-like values."""
        values: dict[str, object] = msgspec.to_builtins(self)
        return {"ok": self.ok, **values}


@dataclass(frozen=True, slots=True)
class TieredStats:
    """Counts since the cache was made.

    Attributes:
        l1: the counts of L1's `LRUCache`. A value that is fresh but due for refresh is a miss there.
        l2: the counts of L2; None if the cache has no L2.
        l3: the counts of L3; None if the cache has no L3.
        loads: loader calls, each for one key or for many.
        load_errors: loader calls that failed, timeouts included.
        load_timeouts: loader calls that the hard timeout ended.
        missed: values or errors for which a caller waited for a loader, its own or that of another caller.
        joined: times that a caller joined the load of another caller.
        refreshes: loads that ran in the background, while callers got a fresh or stale value.
        stale_served: stale values that callers got.
        negative_hits: times that a negative entry answered a call.
        promotions: entries promoted to L1, because of their hits in lower tiers.
        promotion_threshold: the hit at which an entry is promoted now.
        demotions: entries evicted from L1 that were written to L2, because L2 had lost them.
        write_backs: other entries that were written in the background: loaded values, and L3 hits to L2.
        dropped: background writes that were lost: the queue of the tier was full, or the tier did not accept them.
        deadlines: reads of the lower tiers that the deadline ended.
        stale_entries: entries in the stale store now, including those that may not be served any more.
        negative_entries: negative entries now, including those that have expired.
        loading: keys that are being loaded now.
        unrepaired: writes that one tier carried out and another did not, and that wait for a repair.
        backplane: the counts of the backplane; None if the cache has none.
        prediction: the counts of prediction; None if the cache does not predict.
    """

    l1: CacheStats
    l2: TierStats | None
    l3: TierStats | None
    loads: int
    load_errors: int
    load_timeouts: int
    missed: int
    joined: int
    refreshes: int
    stale_served: int
    negative_hits: int
    promotions: int
    promotion_threshold: int
    demotions: int
    write_backs: int
    dropped: int
    deadlines: int
    stale_entries: int
    negative_entries: int
    loading: int
    unrepaired: int = 0
    backplane: BackplaneStats | None = None
    prediction: PredictionStats | None = None

    @property
    def sizing(self) -> SizingStats | None:
        """What other sizes of L1 would hit; None if L1 is no `AdaptiveCache` with `sizing`, or has seen few requests.

        Without a weigher, `entry_bytes` and `point_bytes` are estimated from a few values, by `weigh_bytes`.
        """
        return self.l1.sizing
