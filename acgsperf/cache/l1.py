"""What a tiered cache holds in this process: L1, the stale store and the negative entries."""

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from msgspec.structs import replace

from acgsperf._native.arguments import checked_maxsize
from acgsperf._native.types import EvictionReason
from acgsperf.cache.staleness import Staleness
from acgsperf.dispatch import LRUCache
from acgsperf.tiers.base import Entry

__all__ = ["L1", "MISSING"]

_V = TypeVar("_V")

MISSING: Final[Any] = object()


class L1(Generic[_V]):
    """An `LRUCache` of bare values, and two side caches for the entries that it cannot hold.

    The `LRUCache` holds the value of an entry until the entry is due for refresh, so that a hit costs no more than
    `LRUCache.get`. Then the entry moves to the stale store, where it stays while it may be served, fresh or stale.
    Negative entries have a cache of their own, so that requests for keys without a value evict no value.

    Args:
        lru: belongs to this object from now on. Its `on_evict` is still called.
        staleness: decides about the times of entries.
        negative_maxsize: the maximum number of negative entries.
        on_evict_fresh: called with key and entry when a fresh entry is evicted to make room; None for no call.

    Attributes:
        lru: the `LRUCache`.
        negative_hits: how often `in_side_caches` found a negative entry.

    Raises:
        ValueError: if `lru` belongs to another cache, or `negative_maxsize` is out of range.
    """

    def __init__(
        self,
        lru: "LRUCache[str, _V]",
        staleness: Staleness,
        negative_maxsize: int,
        on_evict_fresh: Callable[[str, Entry], object] | None,
    ) -> None:
        if isinstance(getattr(lru.on_evict, "__self__", None), L1):
            raise ValueError("l1 must not belong to another TieredCache")
        self.lru = lru
        self._staleness = staleness
        self._on_evict_fresh = on_evict_fresh
        # The entry of each value in the LRUCache.
        self._entries: dict[str, Entry] = {}
        self._stale_store: LRUCache[str, Entry] = LRUCache(
            lru.maxsize, clock=staleness.lru_clock, on_evict=self._on_stale_store_evict
        )
        self._negatives: LRUCache[str, Entry] = LRUCache(
            checked_maxsize(negative_maxsize, "negative_maxsize"), clock=staleness.lru_clock
        )
        self._tags = _TagIndex()
        self.negative_hits = 0
        self._users_on_evict = lru.on_evict
        lru.on_evict = self._on_lru_evict

    def put(self, key: str, entry: Entry) -> None:
        """Store an entry: in the `LRUCache` until it is due for refresh, or else in the side cache where it belongs."""
        if entry.negative:
            self.remove(key)
            remaining = self._staleness.seconds_until_removal(entry)
            if remaining > 0:
                self._negatives.set(key, entry, ttl=remaining)
            return
        remaining = self._staleness.seconds_until_refresh(entry)
        if remaining <= 0:
            self.remove(key)
            self._tags.add(key, entry)
            self._put_in_stale_store(key, entry)
            return
        if self.lru.ttl is not None:
            remaining = min(remaining, self.lru.ttl)
        # If an older value has expired, this call moves it to the stale store. It has to come before the pop below.
        self.lru.set(key, entry.value, remaining)
        self._negatives.pop(key, None)
        self._tags.discard(key, self._stale_store.pop(key, None))
        self._tags.discard(key, self._entries.get(key))
        self._entries[key] = entry
        self._tags.add(key, entry)

    def get_many(self, keys: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the values that the `LRUCache` has, and the keys that it misses. Repeated keys count once."""
        values: dict[str, Any] = {}
        missed = []
        get = self.lru.get
        for key in dict.fromkeys(keys):
            value: Any = get(key, MISSING)
            if value is MISSING:
                missed.append(key)
            else:
                values[key] = value
        return values, missed

    def in_side_caches(self, key: str) -> Entry | None:
        """Return the entry of a key that the `LRUCache` misses: negative, stale, or fresh and due for refresh."""
        entry = self._side_entry(key)
        if entry is not None and entry.negative:
            self.negative_hits += 1
        return entry

    def peek(self, key: str) -> Any:
        """Return the fresh value of a key from any cache of this process, without counting a hit; else `MISSING`."""
        value: Any = self.lru.peek(key, MISSING)
        if value is MISSING:
            entry = self._side_entry(key)
            if entry is not None and self._staleness.is_fresh(entry):
                return entry.value
        return value

    def _side_entry(self, key: str) -> Entry | None:
        return self._stale_store.get(key) or self._negatives.get(key)

    @property
    def has_room_for_negatives(self) -> bool:
        """Whether another negative entry can be stored without evicting one."""
        return len(self._negatives) < self._negatives.maxsize

    def remove(self, key: str) -> None:
        """Remove a key."""
        self.lru.pop(key, None)
        self._negatives.pop(key, None)
        self._tags.discard(key, self._entries.pop(key, None))
        self._tags.discard(key, self._stale_store.pop(key, None))

    def remove_tag(self, tag: str) -> None:
        """Remove every entry with a tag."""
        for key in self._tags.keys(tag):
            self.remove(key)

    def clear(self) -> None:
        """Remove everything."""
        for cache in (self.lru, self._entries, self._stale_store, self._negatives, self._tags):
            cache.clear()

    def remove_unservable(self) -> int:
        """Remove the entries that may no longer be served, and return their number. O(n)."""
        before = self._size()
        # An entry that expires here and may still be served moves to the stale store.
        self.lru.expire()
        self._stale_store.expire()
        self._negatives.expire()
        return before - self._size()

    @property
    def stale_count(self) -> int:
        """The number of entries in the stale store."""
        return len(self._stale_store)

    @property
    def negative_count(self) -> int:
        """The number of negative entries."""
        return len(self._negatives)

    def _size(self) -> int:
        return len(self.lru) + len(self._stale_store) + len(self._negatives)

    def _on_lru_evict(self, key: str, value: _V, reason: EvictionReason) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            if reason is EvictionReason.EXPIRED:
                self._put_in_stale_store(key, entry)
            else:
                self._tags.discard(key, entry)
                if self._on_evict_fresh is not None and self._staleness.is_fresh(entry):
                    self._on_evict_fresh(key, entry)
        if self._users_on_evict is not None:
            self._users_on_evict(key, value, reason)

    def _put_in_stale_store(self, key: str, entry: Entry) -> None:
        if self.lru.ttl is not None and self._staleness.is_fresh(entry):
            # The LRUCache's own ttl limits how long this process may serve a value without asking the lower tiers.
            if self._staleness.stale_ttl == 0:
                self._tags.discard(key, entry)
                return
            entry = replace(entry, fresh_until=self._staleness.clock())
        remaining = self._staleness.seconds_until_removal(entry)
        if remaining > 0:
            self._stale_store.set(key, entry, ttl=remaining)
        else:
            self._tags.discard(key, entry)

    def _on_stale_store_evict(self, key: str, entry: Entry, reason: EvictionReason) -> None:
        self._tags.discard(key, entry)


class _TagIndex:
    """The keys of each tag."""

    def __init__(self) -> None:
        self._keys: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, tag: str) -> list[str]:
        return list(self._keys.get(tag, ()))

    def add(self, key: str, entry: Entry) -> None:
        for tag in entry.tags:
            self._keys.setdefault(tag, set()).add(key)

    def discard(self, key: str, entry: Entry | None) -> None:
        tags: Iterable[str] = entry.tags if entry is not None else ()
        for tag in tags:
            keys = self._keys.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._keys[tag]

    def clear(self) -> None:
        self._keys.clear()
