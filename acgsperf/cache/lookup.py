"""Reads a key that L1's `LRUCache` misses: from the side caches, or from L2 and L3 within one deadline."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self

from acgsperf.cache.l1 import L1
from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.staleness import Staleness
from acgsperf.tiers.base import Entry, Tier
from acgsperf.tiers.deadline import Deadline, Wait

__all__ = ["Lookup"]

# The waits for L3 share one timer if their reads began at most this long ago. So a wait may end late by up to this
# time.
_SHARED_TIMER_TOLERANCE_S: Final = 0.01


class Lookup:
    """Reads the side caches of L1, then the lower tiers in order, down to the first fresh entry.

    A fresh entry that is found in L3 is written to L2. A key is promoted to L1 when its hits in the lower tiers reach
    the threshold. Neither happens if a write has superseded the read.

    Args:
        l1: is read first, and gets the promoted entries.
        lower_tiers: are read after it.
        staleness: decides whether an entry is fresh; its `deadline` limits a read of both tiers together.
        promotion: decides when a key is promoted.

    Attributes:
        promotions: the entries promoted so far.
        deadlines: the reads that the deadline has ended.
    """

    def __init__(self, l1: L1[Any], lower_tiers: LowerTiers, staleness: Staleness, promotion: Promotion) -> None:
        self._l1 = l1
        self._lower_tiers = lower_tiers
        self._tiers = lower_tiers.tiers
        self._ordering = lower_tiers.ordering
        self._staleness = staleness
        self._promotion = promotion
        self._deadline = Deadline(staleness.deadline)
        # The first tier, if it answers within the deadline by itself: a read needs no timer for it.
        self._self_limited = next((tier for tier in self._tiers[:1] if tier.deadline <= staleness.deadline), None)
        self._time: Callable[[], float] = time.monotonic
        self.promotions = 0
        self.deadlines = 0

    def open(self) -> None:
        """Measure time by the running event loop from now on."""
        self._time = asyncio.get_running_loop().time

    def close(self) -> None:
        """Cancel the timer of the deadline."""
        self._deadline.close()

    async def get(self, key: str, default: Any) -> Any:
        """Return the fresh value of a key, or `default`."""
        entry = self._l1.in_side_caches(key)
        if entry is None or not self._staleness.is_fresh(entry):
            entry = await self.read(key)
        if entry is None or entry.negative or not self._staleness.is_fresh(entry):
            return default
        return entry.value

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the fresh values of those keys that have one, with one call of each tier."""
        found: dict[str, Any] = {}
        unknown = []
        for key in keys:
            entry = self._l1.in_side_caches(key)
            if entry is None or not self._staleness.is_fresh(entry):
                unknown.append(key)
            elif not entry.negative:
                found[key] = entry.value
        for key, entry in (await self.read_many(unknown)).items():
            if not entry.negative and self._staleness.is_fresh(entry):
                found[key] = entry.value
        return found

    async def read(self, key: str) -> Entry | None:
        """Return the entry of a key from the first lower tier that has a fresh one, or else the newest stale one."""
        if not self._tiers:
            return None
        began_at = self._ordering.latest
        best: Entry | None = None
        started = self._time()
        for tier in self._tiers:
            with self._limit(tier, started) as wait:
                entry = await tier.get(key)
            if wait.passed or (entry is None and self._deadline_passed(started)):
                self.deadlines += 1
                break
            if entry is not None and (best is None or entry.created_at > best.created_at):
                best = entry
                if self._staleness.is_fresh(entry):
                    self._copy_upwards(began_at, key, entry, tier)
                    break
        return best

    async def read_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """`read` every key that has an entry, with one call of each tier."""
        best: dict[str, Entry] = {}
        if not self._tiers or not keys:
            return best
        began_at = self._ordering.latest
        wanted = keys
        started = self._time()
        for tier in self._tiers:
            with self._limit(tier, started) as wait:
                found = await tier.get_many(wanted)
            if wait.passed or (not found and self._deadline_passed(started)):
                self.deadlines += 1
                break
            for key, entry in found.items():
                if key not in best or entry.created_at > best[key].created_at:
                    best[key] = entry
                    if self._staleness.is_fresh(entry):
                        self._copy_upwards(began_at, key, entry, tier)
            wanted = [key for key in wanted if key not in best or not self._staleness.is_fresh(best[key])]
            if not wanted:
                break
        return best

    def _deadline_passed(self, started: float) -> bool:
        # A tier that limits its calls by itself does not report that the deadline has passed.
        return self._time() - started >= self._staleness.deadline

    def _limit(self, tier: Tier, started: float) -> "Wait | _NoLimit":
        """Return a context that ends the call of a tier at the deadline of the read that began at `started`."""
        if tier is self._self_limited:
            return _NO_LIMIT
        if self._time() - started <= _SHARED_TIMER_TOLERANCE_S:
            return self._deadline.wait(started)
        # The shared timer ends waits in the order in which they were made. A wait with an older start needs its own.
        return Deadline(self._staleness.deadline).wait(started)

    def _copy_upwards(self, began_at: int, key: str, entry: Entry, tier: Tier) -> None:
        if not self._ordering.is_current(began_at, key, entry.tags):
            return
        if tier is not self._tiers[0]:
            self._lower_tiers.write_back(key, entry)
        if entry.negative:
            self._l1.put(key, entry)
        elif self._promotion.count_hit(key):
            self.promotions += 1
            self._l1.put(key, entry)


class _NoLimit:
    """Takes the place of a `Wait` for a call that needs no limit."""

    passed: Final = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


_NO_LIMIT: Final = _NoLimit()
