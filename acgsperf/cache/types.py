"""Plain values that a tiered cache answers with."""

from dataclasses import dataclass

import msgspec

from acgsperf._native.types import CacheStats
from acgsperf.tiers.base import TierHealth, TierStats

__all__ = ["CacheHealth", "TieredStats", "Written"]


@dataclass(frozen=True, slots=True)
class Written:
    """Which tiers took a write or carried out a removal; None for a tier that the cache does not have."""

    l1: bool
    l2: bool | None
    l3: bool | None

    @property
    def everywhere(self) -> bool:
        """Whether every tier that there is did."""
        return self.l1 and self.l2 is not False and self.l3 is not False


@dataclass(frozen=True, slots=True)
class CacheHealth:
    """The servers behind a cache, asked just now; None for a tier that it does not have."""

    l2: TierHealth | None
    l3: TierHealth | None

    @property
    def ok(self) -> bool:
        """Whether every server that there is answered."""
        return all(tier is None or tier.ok for tier in (self.l2, self.l3))

    def as_dict(self) -> dict[str, object]:
        """The answers as JSON-like values."""
        values: dict[str, object] = msgspec.to_builtins(self)
        return {"ok": self.ok, **values}


@dataclass(frozen=True, slots=True)
class TieredStats:
    """Counts since a cache was made.

    Attributes:
        l1: L1's own; what is fresh but past its refresh point is a miss there.
        l2, l3: the tiers' own; None for a tier that the cache does not have.
        loads: loader calls that were begun, for one key or for many.
        load_errors: those that failed; time-outs are among them.
        load_timeouts: those that the hard time-out ended.
        missed: values, or errors, that a caller has waited for a loader for: its own call of it or another's.
        joined: waits for a load that another caller had begun.
        refreshes: loads begun behind a caller who was answered with what was fresh or stale.
        stale_served: values given though they were stale.
        negative_hits: times that a key was known to have no value.
        promotions: entries taken into L1 for their hits behind it.
        promotion_threshold: how many of those it takes at present.
        demotions: entries that L1 evicted, that L2 had lost, and that were given back to it.
        write_backs: other entries that the tiers took with nobody waiting: what was loaded, and L3 hits for L2.
        dropped: entries written with nobody waiting that a tier does not have: its queue was full, or it did not take
            them.
        deadlines: reads of the tiers that the total deadline ended.
        stale_entries, negative_entries: how many L1's companions hold now; some may be of no use any more.
        loading: keys that are being loaded now.
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
