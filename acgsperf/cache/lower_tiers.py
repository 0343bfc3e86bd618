"""L2 and L3 together: opens and closes them, and stores entries in the background. `Writes` carries out writes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any, Final

from msgspec.structs import replace

from acgsperf.cache.ordering import Ordering
from acgsperf.cache.write_behind import WriteBehind
from acgsperf.tiers.base import ONLY_L1, Entry, Observation, Store, StoreKind, Tier, TierHealth

__all__ = ["LowerTiers", "Seen"]

# The share of the deadline after which L3 is asked if L2 has not answered.
_SHARE_OF_L2: Final = 0.5


class Seen:
    """What L2 and L3 had under a key before a load; None for a tier that is absent or could not be observed."""

    __slots__ = ("l2", "l3")

    def __init__(self, l2: Observation | None = None, l3: Observation | None = None) -> None:
        self.l2: Final = l2
        self.l3: Final = l3

    @property
    def expires_at(self) -> float:
        """The time of `time.monotonic` until which the value of the load may be kept."""
        return min((seen.expires_at for seen in (self.l2, self.l3) if seen is not None), default=float("inf"))


class LowerTiers:
    """The tiers below L1, either of which may be absent. `Lookup` reads them.

    Everything that is stored here was read or loaded before. The tiers store it only if no write has superseded it.

    Args:
        l2: the faster tier.
        l3: the slower tier.
        retention: the seconds for which the tiers remember what was removed.
        deadline: the seconds after which a read of both tiers ends.

    Attributes:
        l2_deadline: the seconds after which the read of L2 ends: half of `deadline`, if there is an L3 to ask then.
        tiers: those that are present, in the order in which they are read.
        queues: the write-behind queue of each.
        ordering: the order of the writes of this process.
        log_position: returns the last position of L2's log that this process has processed; None if L2 has no log.

    Raises:
        TypeError: if `l2` or `l3` is neither a `Tier` nor None.
    """

    def __init__(self, l2: Tier | None, l3: Tier | None, retention: float, deadline: float) -> None:
        for name, tier in (("l2", l2), ("l3", l3)):
            if tier is not None and not isinstance(tier, Tier):
                raise TypeError(f"{name} must be a Tier or None, got {type(tier).__name__}")
        self.l2: Tier | None = l2
        self.l3: Tier | None = l3
        self.tiers: Final = tuple(tier for tier in (l2, l3) if tier is not None)
        self.queues: Final = tuple(WriteBehind(tier) for tier in self.tiers)
        self.ordering: Final = Ordering()
        self.log_position: Callable[[], bytes | None] = _no_position
        self.l2_deadline: Final = deadline if l3 is None else deadline * _SHARE_OF_L2
        self._retention = retention

    async def open(self, namespace: str) -> None:
        """Open the tiers and start their queues. If a tier does not open, close those that did."""
        opened: list[Tier] = []
        try:
            for tier in self.tiers:
                tier.retention = self._retention
                tier.read_deadline = self.l2_deadline if tier is self.l2 else inf
                await tier.open(namespace)
                opened.append(tier)
        except BaseException:
            for tier in opened:
                await tier.close()
            raise
        for queue in self.queues:
            queue.open()

    async def end_stores(self) -> None:
        """Store what is queued."""
        await asyncio.gather(*(queue.close() for queue in self.queues))

    async def close(self) -> None:
        """Store what is queued, and close the tiers."""
        try:
            await self.end_stores()
        finally:
            for tier in self.tiers:
                await tier.close()

    async def health(self) -> tuple[TierHealth | None, TierHealth | None]:
        """Ask the servers of L2 and L3 now; None for an absent tier."""
        answers = iter(await asyncio.gather(*(tier.health() for tier in self.tiers)))
        return None if self.l2 is None else next(answers), None if self.l3 is None else next(answers)

    def put(self, key: str, entry: Entry, seen: Seen) -> None:
        """Queue a loaded entry for every tier that was observed. Reads in flight are superseded."""
        self.ordering.supersede(key)
        for queue, store in self._stores(entry, seen):
            queue.put(key, store)

    def queued(self, key: str) -> Entry | None:
        """Return an entry that waits to be sent to a tier. A small L1 may have evicted it already."""
        for queue in self.queues:
            if (entry := queue.queued(key)) is not None:
                return entry
        return None

    def put_and_wait(self, entries: Mapping[str, Entry], seen: Mapping[str, Seen]) -> Awaitable[frozenset[str]]:
        """`put` entries now, but wait for the first tier, and return the keys that it has stored."""
        first: dict[str, Store] = {}
        for key, entry in entries.items():
            self.ordering.supersede(key)
            for queue, store in self._stores(entry, seen[key]):
                if queue is self.queues[0]:
                    queue.supersede(key)
                    first[key] = store
                else:
                    queue.put(key, store)
        return self.tiers[0].store(first) if first else _nothing_stored()

    def _stores(self, entry: Entry, seen: Seen) -> "list[tuple[WriteBehind, Store]]":
        stores = []
        for queue, tier in zip(self.queues, self.tiers, strict=True):
            observed = seen.l2 if tier is self.l2 else seen.l3
            if observed is not None:
                # A load keeps the observed stamp: it is older than any write that comes after the observation.
                stores.append((queue, Store(replace(entry, stamp=observed.stamp), observed)))
        return stores

    def copy_to_l2(self, key: str, entry: Entry, seen: Observation) -> None:
        """Queue an entry that was found in L3 for L2."""
        self.queues[0].put(key, Store(entry, seen, StoreKind.COPY))

    def demote(self, key: str, entry: Entry) -> None:
        """Queue a fresh entry that L1 has evicted for L2, in case L2 has lost it."""
        if self.l2 is None or entry.id == ONLY_L1:
            return
        if not self.ordering.is_current(self.ordering.latest, key, entry.tags):
            # A write of this key is in flight, and may fail.
            return
        position = self.log_position()
        if position is not None:
            self.queues[0].demote(key, Store(entry, None, StoreKind.DEMOTION, position))
        elif not self.l2.coherent:
            self.queues[0].demote(key, Store(entry, None, StoreKind.DEMOTION))

    def supersede(self, key: str) -> None:
        """Remove what is queued for a key, because of a later write."""
        for queue in self.queues:
            queue.supersede(key)

    def supersede_tag(self, tag: str) -> None:
        """Remove every queued entry with a tag."""
        for queue in self.queues:
            queue.supersede_tag(tag)

    def supersede_all(self) -> None:
        """Remove every queued entry."""
        for queue in self.queues:
            queue.supersede_all()


async def _nothing_stored() -> frozenset[str]:
    return frozenset()


def _no_position() -> Any:
    return None
