"""Holds the entries of a tiered cache in this process: L1, the stale store and the negative entries."""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from msgspec.structs import replace

from acgsperf._native.arguments import checked_maxsize
from acgsperf._native.types import MAX_ENTRIES, EvictionReason
from acgsperf.cache.staleness import Staleness
from acgsperf.cache.tag_index import TagIndex
from acgsperf.dispatch import BoundedCache, LRUCache, weigh_bytes
from acgsperf.tiers.base import Entry

__all__ = ["L1", "MISSING", "most_entries"]

_V = TypeVar("_V")

MISSING: Final[Any] = object()
_OF_CACHE: Final[Any] = object()
_KEYS_WITHOUT_MAXSIZE: Final = 100_000
_WEIGHED: Final = 32


def most_entries(cache: "BoundedCache[Any, Any]") -> int:
    """Return the number of keys for which to remember something: the `maxsize` of L1, or 100,000 if it has none."""
    return cache.maxsize if cache.maxsize < MAX_ENTRIES else _KEYS_WITHOUT_MAXSIZE


class L1(Generic[_V]):
    """A cache of bare values, and three side caches for the entries that it does not answer with.

    The first, an `LRUCache` or `AdaptiveCache`, holds the value of an entry until the entry is due for refresh, so that
    a hit costs no more than its `get`. Then the entry moves to the stale store, where it stays while it may be served,
    fresh or stale.
    Negative entries have a cache of their own, so that requests for keys without a value evict no value.

    An entry is *unverified* if another process may have changed the key and this process does not know: the ttl of the
    `LRUCache` has passed, the backplane is silent, or it has missed records (a *gap*). The lower tiers are asked first
    then. An unverified entry is served only if no tier answers.

    Args:
        lru: belongs to this object from now on. Its `on_evict` is still called.
        staleness: decides about the times of entries.
        negative_maxsize: the maximum number of negative entries.
        on_evict_fresh: called with key and entry when a fresh entry is evicted to make room; None for no call.
        has_lower_tiers: whether there is a tier that can verify an entry.

    Attributes:
        lru: the cache of bare values.
        side_caches: the other caches of this process, to look for a key with `in`.
        negative_hits: how often `held` found a negative entry.

    Raises:
        ValueError: if `lru` belongs to another cache, or `negative_maxsize` is out of range.
    """

    def __init__(
        self,
        lru: "BoundedCache[str, _V]",
        staleness: Staleness,
        negative_maxsize: int,
        on_evict_fresh: Callable[[str, Entry], object] | None,
        has_lower_tiers: bool,
    ) -> None:
        if isinstance(getattr(lru.on_evict, "__self__", None), L1):
            raise ValueError("l1 must not belong to another TieredCache")
        self.lru = lru
        self._staleness = staleness
        self._on_evict_fresh = on_evict_fresh
        self._has_lower_tiers = has_lower_tiers
        # The entry of each value in the LRUCache.
        self._entries: dict[str, Entry] = {}
        # When each of them was put, if the LRUCache has a ttl.
        self._put_at: dict[str, float] = {}
        # Entries with the time at which they were known to be right.
        self._stale_store: LRUCache[str, tuple[Entry, float]] = LRUCache(
            lru.maxsize,
            maxweight=lru.maxweight,
            weigher=None if lru.weigher is None else self._weigh_stale,
            clock=staleness.lru_clock,
            on_evict=self._on_stale_store_evict,
        )
        self._negatives: LRUCache[str, Entry] = LRUCache(
            checked_maxsize(negative_maxsize, "negative_maxsize"),
            clock=staleness.lru_clock,
            on_evict=self._on_negative_evict,
        )
        # What the LRUCache held when the backplane missed records.
        self._unverified: dict[str, Entry] = {}
        # The places besides the LRUCache where an entry may be.
        self.side_caches: Final = (self._stale_store, self._negatives, self._unverified)
        self._missed_at = -math.inf
        self._answers_until = math.inf
        self._is_closed = False
        self._tags = TagIndex()
        self.negative_hits: int = 0
        self._users_on_evict = lru.on_evict
        lru.on_evict = self._on_lru_evict

    def __repr__(self) -> str:
        limit = "" if self.lru.maxweight else f" of {self.lru.maxsize}"
        return f"L1 with {len(self.lru)}{limit} entries"

    # Reading

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

    def held(self, key: str) -> Entry | None:
        """Return the entry of a key that the `LRUCache` misses: negative, stale, or fresh and due for refresh."""
        entry = self._side_entry(key)
        if entry is not None and entry.negative:
            self.negative_hits += 1
        return entry

    def peek(self, key: str, even_if_silent: bool = False) -> Any:
        """Return the fresh value of a key from any cache of this process, without counting a hit; else `MISSING`.

        Args:
            key: the key.
            even_if_silent: look even if the backplane is silent, because the value is newer than the call.
        """
        value: Any = self.lru.peek(key, MISSING) if even_if_silent or self._answers else MISSING
        if value is MISSING:
            entry = self._side_entry(key)
            if entry is not None and self._staleness.is_fresh(entry):
                return entry.value
        return value

    def _side_entry(self, key: str) -> Entry | None:
        found = self._stale_store.get(key)
        if found is not None and self._is_verified(found[1]):
            return found[0]
        return self._negatives.get(key) if self._answers else None

    def entry(self, key: str) -> Entry | None:
        """Look up a key as a `get` does, and return its entry, fresh or stale; None if a tier must be asked first."""
        if self.lru.get(key, MISSING) is not MISSING and (entry := self._entries.get(key)) is not None:
            return entry
        return self._side_entry(key)

    def unverified(self, key: str) -> Entry | None:
        """Return the entry of a key that may be served only if no tier answers."""
        found = self._stale_store.get(key)
        entry = found[0] if found is not None else self._unverified.get(key)
        if entry is None and not self._answers:
            entry = self._entries.get(key) or self._negatives.get(key)
        return entry if entry is not None and self._staleness.seconds_until_removal(entry) > 0 else None

    def was_unverified(self, key: str) -> bool:
        """Return whether the `LRUCache` held the key when the backplane missed records."""
        return key in self._unverified

    @property
    def _answers(self) -> bool:
        return self._staleness.clock() <= self._answers_until

    def has_been_silent_since(self, time: float) -> bool:
        """Return whether the backplane is silent, and was not at an earlier time of the cache's clock."""
        return time <= self._answers_until < self._staleness.clock()

    def _is_verified(self, put_at: float) -> bool:
        return not self._has_lower_tiers or self.verified_for(put_at) > 0

    def verified_for(self, put_at: float) -> float:
        """Return for how many seconds an entry need not be verified; 0 or less if it must be verified now.

        Args:
            put_at: when the entry was known to be right.
        """
        if put_at <= self._missed_at or not self._answers:
            return 0.0
        return math.inf if self.lru.ttl is None else put_at + self.lru.ttl - self._staleness.clock()

    # Writing

    def put(
        self, key: str, entry: Entry, refresh_ahead: float | None = _OF_CACHE, *, verified_for: float = math.inf
    ) -> None:
        """Store an entry: in the `LRUCache` until it is due for refresh, or else in the side cache where it belongs.

        Args:
            key: the key.
            entry: the entry.
            refresh_ahead: the share of its ttl after which it is due; by default, that of the cache.
            verified_for: after how many seconds the entry must be verified; at most the ttl of the `LRUCache`.
        """
        self._tags.discard(key, self._unverified.pop(key, None))
        if entry.negative:
            self.remove(key)
            remaining = self._up_to_ttl(self._staleness.seconds_until_removal(entry))
            if remaining > 0:
                self._negatives.set(key, entry, ttl=remaining)
                self._tags.add(key, entry)
            return
        if refresh_ahead is _OF_CACHE:
            refresh_ahead = self._staleness.options.refresh_ahead
        remaining = self._staleness.seconds_until_refresh(entry, refresh_ahead)
        if remaining <= 0:
            self.remove(key)
            self._tags.add(key, entry)
            self._put_in_stale_store(key, entry, self._staleness.clock())
            return
        # If an older value has expired, this call moves it to the stale store. It has to come before the pop below.
        self.lru.set(key, entry.value, min(verified_for, self._up_to_ttl(remaining)))
        if self.lru.maxweight is not None and self.lru.peek(key, MISSING) is MISSING:
            # The value is too heavy.
            self.remove(key)
            return
        self._tags.discard(key, self._negatives.pop(key, None))
        self._discard_stale(key)
        self._tags.discard(key, self._entries.get(key))
        self._entries[key] = entry
        if self.lru.ttl is not None:
            self._put_at[key] = self._staleness.clock() - max(0.0, self.lru.ttl - verified_for)
        self._tags.add(key, entry)

    def _up_to_ttl(self, seconds: float) -> float:
        return seconds if self.lru.ttl is None else min(seconds, self.lru.ttl)

    @property
    def has_room_for_negatives(self) -> bool:
        """Whether another negative entry can be stored without evicting one."""
        return len(self._negatives) < self._negatives.maxsize

    def remove(self, key: str) -> None:
        """Remove a key."""
        self.lru.pop(key, None)
        self._put_at.pop(key, None)
        self._tags.discard(key, self._negatives.pop(key, None))
        self._tags.discard(key, self._entries.pop(key, None))
        self._tags.discard(key, self._unverified.pop(key, None))
        self._discard_stale(key)

    def remove_unless(self, key: str, identifier: bytes) -> None:
        """Remove a key unless its entry has this id."""
        entry = self._entries.get(key)
        if entry is None or entry.id != identifier:
            self.remove(key)

    def remove_tag(self, tag: str) -> None:
        """Remove every entry with a tag."""
        for key in self._tags.keys(tag):
            self.remove(key)

    def remove_if(self, condition: Callable[[str], bool]) -> None:
        """Remove the keys for which a condition is true. O(n)."""
        for keys in (self._entries, self._unverified, self._stale_store.keys(), self._negatives.keys()):
            for key in [key for key in keys if condition(key)]:
                self.remove(key)

    def clear(self) -> None:
        """Remove everything."""
        for cache in (self.lru, self._entries, self._put_at, self._unverified, self._stale_store, self._negatives):
            cache.clear()
        self._tags.clear()

    def expire_now(self, key: str) -> None:
        """Make the entry of a key stale, and keep it in the stale store for as long as it may be served."""
        entry = self._entries.get(key)
        if entry is None:
            self._tags.discard(key, self._negatives.pop(key, None))
            found = self._stale_store.get(key)
            entry = found[0] if found is not None else self._unverified.get(key)
        if entry is not None:
            self.remove(key)
            if self._staleness.options.stale_ttl == 0 and entry.kept_until == entry.fresh_until:
                # It may not be served when it is stale.
                return
            now = self._staleness.clock()
            if entry.fresh_until is None or entry.fresh_until > now:
                entry = replace(entry, fresh_until=now)
            self._tags.add(key, entry)
            self._put_in_stale_store(key, entry, now)

    def expire_tag(self, tag: str) -> None:
        """Make every entry with a tag stale."""
        for key in self._tags.keys(tag):
            self.expire_now(key)

    def resize(self, maxsize: int) -> None:
        """Change the largest number of entries."""
        self.lru.resize(maxsize)
        self._stale_store.resize(maxsize)

    def typical_bytes(self) -> float | None:
        """Estimate how many bytes an entry takes, from a few of them; None if there are none."""
        some = list(islice(self._entries.items(), _WEIGHED))
        return sum(weigh_bytes(key, entry.value) for key, entry in some) / len(some) if some else None

    def remove_unservable(self) -> int:
        """Remove the entries that may no longer be served, and return their number. O(n)."""
        before = self._size()
        # An entry that expires here and may still be served moves to the stale store.
        self.lru.expire()
        self._stale_store.expire()
        self._negatives.expire()
        for key in [key for key in self._unverified if self.unverified(key) is None]:
            self.remove(key)
        return before - self._size()

    # What a former process has saved

    def answered_with(self, key: str) -> Entry | None:
        """Return the entry of a value in the `LRUCache`."""
        return self._entries.get(key)

    def restore(self, key: str, entry: Entry, remaining_ns: int | None, meta: int) -> bool:
        """Add a saved entry as the oldest one of its queue; False if the key is there, or if the entry does not fit.

        Args:
            key: the key.
            entry: its entry.
            remaining_ns: for how long the `LRUCache` would have answered with it.
            meta: the hits that its policy has counted.
        """
        if self._has(key) or not self.lru._restore(key, entry.value, remaining_ns, meta):
            return False
        self._entries[key] = entry
        if self.lru.ttl is not None:
            remaining = self.lru.ttl if remaining_ns is None else remaining_ns / 1e9
            self._put_at[key] = self._staleness.clock() - max(0.0, self.lru.ttl - remaining)
        self._tags.add(key, entry)
        return True

    def restore_unverified(self, key: str, entry: Entry) -> None:
        """Add a saved entry as an unverified one, unless the key is there."""
        if not self._has(key) and len(self._unverified) < most_entries(self.lru):
            self._unverified[key] = entry
            self._tags.add(key, entry)

    def _has(self, key: str) -> bool:
        return key in self._entries or any(key in cache for cache in self.side_caches)

    def move_to_oldest(self, key: str, meta: int) -> bool:
        """Make an entry the oldest one of its queue, with saved hits; False if the `LRUCache` does not have it."""
        value: Any = self.lru.peek(key, MISSING)
        if value is MISSING:
            return False
        remaining = self.lru.expires_in(key)
        self.lru.pop(key, None)
        if self.lru._restore(key, value, None if remaining is None else int(remaining * 1e9), meta):
            return True
        self.remove(key)
        return False

    # What the backplane says

    def answer_until(self, time: float) -> None:
        """Answer without asking a tier until this time of the cache's clock; then every entry is unverified."""
        self._answers_until = time
        if not self._is_closed:
            self.lru.answers_until = None if time == math.inf else time

    def close(self) -> None:
        """Let the `LRUCache` miss every key. `TieredCache` checks that it is open after a miss only."""
        self._is_closed = True
        self.lru.answers_until = -math.inf

    def open(self) -> None:
        """Let the `LRUCache` answer, until the time that `answer_until` has set."""
        self._is_closed = False
        self.answer_until(self._answers_until)

    def verify_all(self) -> None:
        """Make every entry unverified, because there is a gap: records may have been missed. O(n), in C."""
        self._missed_at = self._staleness.clock()
        self._unverified.update(self._entries)
        # Remove the oldest ones if there are too many.
        for key in list(islice(self._unverified, max(0, len(self._unverified) - most_entries(self.lru)))):
            self._tags.discard(key, self._unverified.pop(key))
        self._entries.clear()
        self._put_at.clear()
        self.lru.clear()
        self._negatives.expire()
        for key, entry in self._negatives.items():
            self._tags.discard(key, entry)
        self._negatives.clear()

    @property
    def stale_count(self) -> int:
        """The number of entries in the stale store."""
        return len(self._stale_store)

    @property
    def negative_count(self) -> int:
        """The number of negative entries."""
        return len(self._negatives)

    def _size(self) -> int:
        return len(self.lru) + len(self._stale_store) + len(self._negatives) + len(self._unverified)

    def _on_lru_evict(self, key: str, value: _V, reason: EvictionReason) -> None:
        entry = self._entries.pop(key, None)
        put_at = self._put_at.pop(key, None)
        if entry is not None:
            if reason is EvictionReason.EXPIRED:
                self._put_in_stale_store(key, entry, self._staleness.clock() if put_at is None else put_at)
            else:
                self._tags.discard(key, entry)
                if self._on_evict_fresh is not None and self._answers and self._staleness.is_fresh(entry):
                    self._on_evict_fresh(key, entry)
        if self._users_on_evict is not None:
            self._users_on_evict(key, value, reason)

    def _weigh_stale(self, key: str, found: tuple[Entry, float]) -> int:
        assert self.lru.weigher is not None
        return self.lru.weigher(key, found[0].value)

    def _put_in_stale_store(self, key: str, entry: Entry, put_at: float) -> None:
        if self.lru.ttl is not None and not self._has_lower_tiers and self._staleness.is_fresh(entry):
            # Only a load can verify the entry.
            if self._staleness.options.stale_ttl == 0:
                self._tags.discard(key, entry)
                return
            entry = replace(entry, fresh_until=self._staleness.clock())
        remaining = self._staleness.seconds_until_removal(entry)
        if remaining > 0:
            self._stale_store.set(key, (entry, put_at), ttl=remaining)
            if key not in self._stale_store:
                # The value is too heavy.
                self._tags.discard(key, entry)
        else:
            self._tags.discard(key, entry)

    def _discard_stale(self, key: str) -> None:
        found = self._stale_store.pop(key, None)
        if found is not None:
            self._tags.discard(key, found[0])

    def _on_stale_store_evict(self, key: str, found: tuple[Entry, float], reason: EvictionReason) -> None:
        self._tags.discard(key, found[0])

    def _on_negative_evict(self, key: str, entry: Entry, reason: EvictionReason) -> None:
        self._tags.discard(key, entry)
