"""Reads a key that L1's `LRUCache` misses: from the side caches, or from L2 and L3 within one deadline."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self

from acgsperf._native.entry import Codec
from acgsperf.cache.l1 import L1
from acgsperf.cache.lower_tiers import LowerTiers, Seen
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.staleness import Staleness
from acgsperf.cache.values import UNOPENED, open_all, opened
from acgsperf.tiers.base import Entry, Observation, Tier
from acgsperf.tiers.deadline import Deadline, Wait
from acgsperf.tiers.server import ServerTier

__all__ = ["Found", "Lookup"]

# The waits for L3 share one timer if their reads began at most this long ago. So a wait may end late by up to this
# time.
_SHARED_TIMER_TOLERANCE_S: Final = 0.01


class Found:
    """The result of a read of the lower tiers.

    Args:
        began_at: the number of the latest write when the read began.

    Attributes:
        entries: for each key the entry of the first tier that has a fresh one, or else the newest stale one.
        l2: the observation of a key in L2, if L2 had no fresh entry.
        l3: the same for L3.
        of_l3: the keys whose entry is that of L3; None for no key.
        reached: whether a tier has answered.
        unasked: whether L3 was not asked, because the deadline had passed.
        predicted: whether nobody has requested the keys yet.
    """

    __slots__ = ("began_at", "entries", "l2", "l3", "of_l3", "predicted", "reached", "unasked")

    def __init__(self, began_at: int, predicted: bool = False) -> None:
        self.began_at: Final = began_at
        self.predicted: Final = predicted
        self.entries: dict[str, Entry] = {}
        self.l2: dict[str, Observation] = {}
        self.l3: dict[str, Observation] = {}
        self.of_l3: set[str] | None = None
        self.reached: bool = False
        self.unasked: bool = False

    def answered(self, key: str) -> bool:
        """Whether a tier has answered for a key."""
        return self.reached or key in self.entries or key in self.l2 or key in self.l3

    def seen(self, key: str) -> Seen:
        """Return the observation of a key in each tier."""
        return Seen(self.l2.get(key), self.l3.get(key))


class Lookup:
    """Reads the side caches of L1, then the lower tiers in order, down to the first fresh entry.

    A fresh entry that is found in L3 is copied to L2. A key is promoted to L1 when its hits in the lower tiers reach
    the threshold. Neither happens if a write has superseded the read.

    L2 is observed before L3 is read. If L2 has something newer than the row of L3, that row is not used.

    Args:
        l1: is read first, and gets the promoted entries.
        lower_tiers: are read after it.
        staleness: decides whether an entry is fresh; its `deadline` limits a read of both tiers together.
        promotion: decides when a key is promoted.

    Attributes:
        promotions: the entries promoted so far.
        deadlines: the reads that the deadline has ended.
        begin_get: starts a read of the first tier; None if that tier needs a coroutine for it.
    """

    def __init__(self, l1: L1[Any], lower_tiers: LowerTiers, staleness: Staleness, promotion: Promotion) -> None:
        self._l1 = l1
        self._lower_tiers = lower_tiers
        self._tiers = lower_tiers.tiers
        self._ordering = lower_tiers.ordering
        self._staleness = staleness
        self._promotion = promotion
        self._deadline = Deadline(staleness.deadline)
        # For L2. Without L3, L2 has the whole time.
        l2_deadline = lower_tiers.l2_deadline
        self._l2_deadline = self._deadline if l2_deadline == staleness.deadline else Deadline(l2_deadline)
        # The first tier, if it answers within the deadline by itself: a read needs no timer for it.
        self._self_limited = next((tier for tier in self._tiers[:1] if self._limits_itself(tier)), None)
        # Starts a read of that tier without a coroutine.
        self.begin_get: Final = self._self_limited.begin_get if isinstance(self._self_limited, ServerTier) else None
        self._time: Callable[[], float] = time.monotonic
        self.promotions: int = 0
        self.deadlines: int = 0

    def open(self) -> None:
        """Measure time by the running event loop from now on."""
        self._time = asyncio.get_running_loop().time

    def close(self) -> None:
        """Cancel the timer of the deadline."""
        self._deadline.close()
        self._l2_deadline.close()

    async def get(self, key: str, default: Any, codec: Codec | None) -> Any:
        """Return the fresh value of a key, or `default`."""
        entry = self._l1.held(key)
        if entry is None or not self._staleness.is_fresh(entry):
            entry = await self._get_from_tiers(key, codec)
        if entry is None or entry.negative or not self._staleness.is_fresh(entry):
            return default
        return entry.value

    async def find(self, key: str, codec: Codec | None) -> tuple[Entry, Literal["l1", "l2", "l3"]] | None:
        """Return the fresh entry of a key and the tier that has it, "l1", "l2" or "l3"; None if there is none."""
        entry = self._l1.entry(key)
        tier: Literal["l1", "l2", "l3"] = "l1"
        if entry is None or not self._staleness.is_fresh(entry):
            read = await self._read((key,), (), codec, observing=False)
            entry = read.entries.get(key)
            if entry is not None:
                tier = "l3" if self._lower_tiers.l2 is None or read.of_l3 is not None else "l2"
            else:
                entry = self.unverified(key, read)
        if entry is None or entry.negative or not self._staleness.is_fresh(entry):
            return None
        return entry, tier

    async def get_many(self, keys: Iterable[str], codec: Codec | None) -> dict[str, Any]:
        """Return the fresh values of those keys that have one, with one call of each tier."""
        found: dict[str, Any] = {}
        unknown = []
        for key in keys:
            entry = self._l1.held(key)
            if entry is None or not self._staleness.is_fresh(entry):
                unknown.append(key)
            elif not entry.negative:
                found[key] = entry.value
        if unknown:
            read = await self._read(unknown, (), codec, observing=False)
            for key in unknown:
                entry = read.entries.get(key) or self.unverified(key, read)
                if entry is not None and not entry.negative and self._staleness.is_fresh(entry):
                    found[key] = entry.value
        return found

    async def read(self, keys: Sequence[str], tags: Sequence[str], codec: Codec | None, *, l3: bool = True) -> Found:
        """Return the entries of keys, and observe those without a fresh one, for a load that will store them.

        Args:
            keys: distinct keys.
            tags: those of the entries that the load will make.
            codec: opens their values.
            l3: whether to ask L3, too.
        """
        return await self._read(keys, tags, codec, observing=True, asking_l3=l3)

    async def read_predicted(self, keys: Sequence[str], began_at: int, *, after_first_tier: bool) -> dict[str, Entry]:
        """Return the entries of keys that may be requested soon, for the codecs of their callers. It promotes none.

        Args:
            keys: distinct keys.
            began_at: the number of the latest write when the read began.
            after_first_tier: whether the first tier was asked already, and had no entry.
        """
        found, started, wanted = Found(began_at, predicted=True), self._time(), list(keys)
        cut = False
        if not after_first_tier:
            with self._limit(self._tiers[0], started) as wait:
                found.entries = await self._tiers[0].get_many(keys)
            open_all(found.entries, UNOPENED, self._tiers[0])
            cut = wait.passed
            wanted = self._missing(keys, found)
        if len(self._tiers) > 1:
            found.reached = not cut and self._tiers[0].is_answering
            await self._go_on(found, wanted, (), UNOPENED, began_at, started, cut, observing=False)
        return found.entries

    async def observe(self, keys: Sequence[str], tags: Sequence[str]) -> dict[str, Seen]:
        """Return what the tiers have under keys, before a load that replaces a fresh entry."""
        l2, l3 = self._lower_tiers.l2, self._lower_tiers.l3
        found, started = Found(self._ordering.latest), self._time()
        if l2 is not None:
            with self._timer(started, self._l2_deadline):
                found.l2 = await l2.observe(keys, tags)
        if l3 is not None:
            with self._timer(started):
                found.l3 = await l3.observe(keys, tags)
        return {key: found.seen(key) for key in keys}

    def unverified(self, key: str, found: Found) -> Entry | None:
        """Return L1's unverified entry of a key if no tier has answered.

        If a tier has answered without a fresh entry, remove the unverified one.
        """
        if found.answered(key):
            if (entry := found.entries.get(key)) is None or not self._staleness.is_fresh(entry):
                self._drop_unverified(key, found.began_at)
            return None
        return None if found.unasked else self._l1.unverified(key)

    def _drop_unverified(self, key: str, began_at: int) -> None:
        # What was written or loaded since the read began is newer than what the read has found.
        if self._l1.unverified(key) is not None and self._ordering.is_current(began_at, key):
            self._l1.remove(key)

    async def _get_from_tiers(self, key: str, codec: Codec | None) -> Entry | None:
        """Return the entry of a key. Observe the key only if the answer needs it."""
        if not self._tiers:
            return self._l1.unverified(key)
        began_at = self._ordering.latest
        started = self._time()
        tier = self._tiers[0]
        entry = None
        with self._limit(tier, started) as wait:
            entry = await tier.get(key)
        return await self._after_first_tier(key, entry, codec, began_at, started, wait.passed)

    async def get_on(
        self, key: str, default: Any, entry: Entry | None, codec: Codec | None, began_at: int, started: float
    ) -> Any:
        """Return the fresh value of a key, or `default`, after a read that `begin_get` has started.

        Args:
            key: the key.
            default: what to return if there is no fresh value.
            entry: what the first tier had.
            codec: opens its value.
            began_at: the number of the latest write when the read began.
            started: the time of `time.monotonic` at which it began.
        """
        entry = await self._after_first_tier(key, entry, codec, began_at, started, False)
        if entry is None or entry.negative or not self._staleness.is_fresh(entry):
            return default
        return entry.value

    async def _after_first_tier(
        self, key: str, entry: Entry | None, codec: Codec | None, began_at: int, started: float, cut: bool
    ) -> Entry | None:
        if entry is not None:
            entry = opened(entry, codec, self._tiers[0])
        if entry is not None and self._staleness.is_fresh(entry):
            self._keep(began_at, key, entry)
            return entry
        if len(self._tiers) == 1 and self._l1.unverified(key) is None:
            if cut or (entry is None and self._deadline_passed(started)):
                self.deadlines += 1
            return entry
        found = Found(began_at)
        found.reached = not cut and self._tiers[0].is_answering
        if entry is not None:
            found.entries[key] = entry
        await self._go_on(found, [key], (), codec, began_at, started, cut, observing=False)
        return found.entries.get(key) or self.unverified(key, found)

    async def _read(
        self,
        keys: Sequence[str],
        tags: Sequence[str],
        codec: Codec | None,
        observing: bool,
        asking_l3: bool = True,
    ) -> Found:
        began_at = self._ordering.latest
        found = Found(began_at)
        if not self._tiers or not keys:
            return found
        started = self._time()
        tier = self._tiers[0]
        cut = False
        if tier is self._lower_tiers.l2 or not observing:
            with self._limit(tier, started) as wait:
                if len(keys) == 1:
                    entry = await tier.get(keys[0])
                    found.entries = {} if entry is None else {keys[0]: entry}
                else:
                    found.entries = await tier.get_many(keys)
            open_all(found.entries, codec, tier)
            cut = wait.passed
            found.reached = not cut and tier.is_answering
            for key, entry in found.entries.items():
                if self._staleness.is_fresh(entry):
                    self._keep(began_at, key, entry)
        wanted = self._missing(keys, found)
        await self._go_on(found, wanted, tags, codec, began_at, started, cut, observing, asking_l3)
        return found

    async def _go_on(
        self,
        found: Found,
        wanted: Sequence[str],
        tags: Sequence[str],
        codec: Codec | None,
        began_at: int,
        started: float,
        cut: bool,
        observing: bool,
        asking_l3: bool = True,
    ) -> None:
        """Observe L2 and read L3, for keys for which the first tier had no fresh entry.

        `cut` says that the first tier had no more time. If that was L2 and it has not answered, only L3 is asked.
        """
        l2, l3 = self._lower_tiers.l2, self._lower_tiers.l3 if asking_l3 else None
        if (cut or not found.entries) and self._deadline_passed(started):
            if wanted:
                self.deadlines += 1
                found.unasked = l2 is not None and l3 is not None
            return
        if not wanted:
            return
        if l2 is not None and found.reached:
            with self._timer(started, self._l2_deadline) as wait:
                found.l2 = await l2.observe(wanted, tags)
            if wait.passed and self._deadline_passed(started):
                self.deadlines += 1
                found.unasked = l3 is not None
                return
        if l3 is None:
            return
        if l2 is None and not observing:
            # L3 was the first tier, and was read already.
            if any(self._l1.unverified(key) is not None for key in wanted):
                with self._timer(started):
                    found.l3 = await l3.observe(wanted, tags)
            return
        entries: dict[str, Entry] = {}
        with self._timer(started) as wait:
            entries, found.l3 = await self._look_up(l3, wanted, tags, codec, observing)
        found.reached = found.reached or (not wait.passed and l3.is_answering)
        if wait.passed or (not entries and self._deadline_passed(started)):
            self.deadlines += 1
            return
        unanswerable = await self._refused_below(entries, found, tags, started)
        for key, entry in entries.items():
            seen = found.l2.get(key)
            if key in unanswerable or (seen is not None and l3.coherent and entry.stamp < seen.stamp):
                # L2 has had a newer write, which L3 has not carried out.
                continue
            best = found.entries.get(key)
            if best is None or entry.created_at > best.created_at:
                found.entries[key] = entry
                found.of_l3 = {key, *(found.of_l3 or ())}
                if self._staleness.is_fresh(entry):
                    if seen is not None and self._ordering.is_current(began_at, key, entry.tags):
                        self._lower_tiers.copy_to_l2(key, entry, seen)
                    if not found.predicted:
                        self._keep(began_at, key, entry)

    async def _refused_below(
        self, entries: Mapping[str, Entry], found: Found, tags: Sequence[str], started: float
    ) -> set[str]:
        """Return the keys of entries of L3 with a tag whose invalidation L3 has refused or not yet answered."""
        l2 = self._lower_tiers.l2
        refused = {key for key in entries if (seen := found.l2.get(key)) is not None and seen.refused_below}
        if l2 is not None and l2.coherent:
            for key, entry in entries.items():
                # If the caller did not name the tags, they are known only now, from the row.
                if key in found.l2 and key not in refused and not set(entry.tags) <= set(tags):
                    with self._timer(started):
                        more = await l2.observe((key,), entry.tags)
                        if (seen := more.get(key)) is not None and seen.refused_below:
                            refused.add(key)
        return refused

    async def _look_up(
        self, l3: Tier, keys: Sequence[str], tags: Sequence[str], codec: Codec | None, observing: bool
    ) -> tuple[dict[str, Entry], dict[str, Observation]]:
        seen: dict[str, Observation] = {}
        if observing:
            entries, seen = await l3.look_up(keys, tags)
        elif len(keys) == 1:
            entry = await l3.get(keys[0])
            entries = {} if entry is None else {keys[0]: entry}
        else:
            entries = await l3.get_many(keys)
        unopened = open_all(entries, codec, l3)
        if observing and unopened:
            seen = {**seen, **await l3.observe(unopened, tags)}
        return entries, seen

    def _missing(self, keys: Sequence[str], found: Found) -> list[str]:
        is_fresh = self._staleness.is_fresh
        return [key for key in keys if (entry := found.entries.get(key)) is None or not is_fresh(entry)]

    def _deadline_passed(self, started: float) -> bool:
        # A tier that limits its calls by itself does not report that the deadline has passed.
        return self._time() - started >= self._staleness.deadline

    def _limit(self, tier: Tier, started: float) -> "Wait | _NoLimit":
        """Return a context that ends the first call of a read, which began at `started`, at the deadline."""
        if tier is self._self_limited:
            return _NO_LIMIT
        return self._timer(started, self._l2_deadline if tier is self._lower_tiers.l2 else self._deadline)

    def _limits_itself(self, tier: Tier) -> bool:
        # With L3, a tier with a server gets the deadline of L2 as its `read_deadline`.
        return tier.deadline <= self._staleness.deadline or (len(self._tiers) > 1 and isinstance(tier, ServerTier))

    def _timer(self, started: float, deadline: Deadline | None = None) -> Wait:
        deadline = deadline or self._deadline
        if self._time() - started <= _SHARED_TIMER_TOLERANCE_S:
            return deadline.wait(started)
        # The shared timer ends waits in the order in which they were made. A wait with an older start needs its own.
        return Deadline(deadline.seconds).wait(started)

    def _keep(self, began_at: int, key: str, entry: Entry) -> None:
        """Put a fresh entry of a tier into L1 if its key is promoted now, or if it verifies an entry of L1."""
        if not self._ordering.is_current(began_at, key, entry.tags):
            return
        if entry.negative or self._l1.was_unverified(key):
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
