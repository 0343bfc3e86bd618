"""What a tiered cache holds in this process: L1 with the bare values, and beside it what L1 cannot say of them."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from msgspec.structs import replace

from acgsperf._native.types import EvictionReason
from acgsperf.cache.staleness import Staleness
from acgsperf.dispatch import LRUCache
from acgsperf.tiers.base import Entry

__all__ = ["MISSING", "Local"]

_V = TypeVar("_V")

MISSING: Final[Any] = object()


class Local(Generic[_V]):
    """L1 and its companions.

    L1 holds the bare value of an entry until the entry is due, so that a hit is nothing but `LRUCache.get`. What has
    left L1 by its time and is still of use, fresh or stale, stands on the shelf. Negative entries have a cache of their
    own: asking for what does not exist pushes nothing out that does.

    Args:
        l1: belongs to this object from now on; an `on_evict` that it has is called as before.
        staleness: the times of entries.
        negative_maxsize: the most negative entries.
        evicted: called with key and entry when L1 evicts one that is fresh, to make room; None for nobody.

    Raises:
        ValueError: when the L1 belongs to another cache.
    """

    def __init__(
        self,
        l1: "LRUCache[str, _V]",
        staleness: Staleness,
        negative_maxsize: int,
        evicted: Callable[[str, Entry], object] | None,
    ) -> None:
        if isinstance(getattr(l1.on_evict, "__self__", None), Local):
            raise ValueError("l1 must not belong to another TieredCache")
        # L1's own coarse clock is the faster one; a clock that was given is meant for everything.
        clock = self.clock = None if staleness.clock is time.time else staleness.clock
        self.l1 = l1
        self._staleness = staleness
        self._evicted = evicted
        self._entries: dict[str, Entry] = {}
        self._shelf: LRUCache[str, Entry] = LRUCache(l1.maxsize, clock=clock, on_evict=self._left_shelf)
        self._negatives: LRUCache[str, Entry] = LRUCache(negative_maxsize, clock=clock)
        self._tagged: dict[str, set[str]] = {}
        self._told = l1.on_evict
        l1.on_evict = self._left_l1

    def put(self, key: str, entry: Entry) -> None:
        """Hold an entry, in L1 until it is due."""
        if entry.negative:
            self.drop(key)
            left = self._staleness.until_dropped(entry)
            if left > 0:
                self._negatives.set(key, entry, ttl=left)
            return
        left = self._staleness.until_due(entry)
        if left <= 0:
            self.drop(key)
            self._tag(key, entry)
            self._put_on_shelf(key, entry)
            return
        if self.l1.ttl is not None:
            left = min(left, self.l1.ttl)
        # An older value whose time is over leaves L1 by this, and goes to the shelf; hence the order.
        self.l1.set(key, entry.value, left)
        self._negatives.pop(key, None)
        self._untag(key, self._shelf.pop(key, None))
        self._untag(key, self._entries.get(key))
        self._entries[key] = entry
        self._tag(key, entry)

    def beside(self, key: str) -> Entry | None:
        """What is kept of a key that L1 does not have: negative, stale, or fresh and due."""
        return self._shelf.get(key) or self._negatives.get(key)

    @property
    def has_room_for_negatives(self) -> bool:
        """Whether one more pushes none out."""
        return len(self._negatives) < self._negatives.maxsize

    def drop(self, key: str) -> None:
        """Forget a key."""
        self.l1.pop(key, None)
        self._negatives.pop(key, None)
        self._untag(key, self._entries.pop(key, None))
        self._untag(key, self._shelf.pop(key, None))

    def drop_tag(self, tag: str) -> int:
        """Forget every entry with a tag; how many they were."""
        keys = list(self._tagged.get(tag, ()))
        for key in keys:
            self.drop(key)
        return len(keys)

    def clear(self) -> None:
        """Forget everything."""
        for held in (self.l1, self._entries, self._shelf, self._negatives, self._tagged):
            held.clear()

    def expire(self) -> int:
        """Remove what is of no use any more; how many entries were. O(n)."""
        before = len(self._shelf) + len(self.l1) + len(self._negatives)
        self.l1.expire()
        self._shelf.expire()
        self._negatives.expire()
        return before - len(self._shelf) - len(self.l1) - len(self._negatives)

    @property
    def stale_count(self) -> int:
        """Entries on the shelf."""
        return len(self._shelf)

    @property
    def negative_count(self) -> int:
        """Negative entries."""
        return len(self._negatives)

    def _left_l1(self, key: str, value: _V, reason: EvictionReason) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            if reason is EvictionReason.EXPIRED:
                self._put_on_shelf(key, entry)
            else:
                self._untag(key, entry)
                if self._evicted is not None and self._staleness.is_fresh(entry):
                    self._evicted(key, entry)
        if self._told is not None:
            self._told(key, value, reason)

    def _put_on_shelf(self, key: str, entry: Entry) -> None:
        if self.l1.ttl is not None and self._staleness.is_fresh(entry):
            # A ttl of L1's own says how long this process may go without asking the others.
            if self._staleness.stale_ttl == 0:
                self._untag(key, entry)
                return
            entry = replace(entry, fresh_until=self._staleness.clock())
        left = self._staleness.until_dropped(entry)
        if left > 0:
            self._shelf.set(key, entry, ttl=left)
        else:
            self._untag(key, entry)

    def _left_shelf(self, key: str, entry: Entry, reason: EvictionReason) -> None:
        self._untag(key, entry)

    def _tag(self, key: str, entry: Entry) -> None:
        for tag in entry.tags:
            self._tagged.setdefault(tag, set()).add(key)

    def _untag(self, key: str, entry: Entry | None) -> None:
        tags: Iterable[str] = entry.tags if entry is not None else ()
        for tag in tags:
            keys = self._tagged.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._tagged[tag]
