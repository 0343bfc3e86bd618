"""The base class of `LRUCache` and `AdaptiveCache` in pure Python. It behaves as `BoundedCache` of `_core`.

The two change together. The table contains everything that changes. This class adds the clock and the callback.
"""

import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from types import GenericAlias
from typing import Any, Final, NoReturn, Self

from acgsperf._native.arguments import (
    checked_bounds,
    checked_callable,
    checked_limits,
    checked_time_ns,
    checked_ttl_ns,
)
from acgsperf._native.lru_table_py import (
    EXPIRATIONS,
    INSERTIONS,
    MISSES,
    UNCOUNTED,
    UPDATES,
    Bucket,
    Entry,
    Table,
)
from acgsperf._native.placing_py import REMOVALS
from acgsperf._native.saving_py import NEVER, Saving
from acgsperf._native.stats import CacheStats
from acgsperf._native.types import EvictionReason

_MISSING: Final = object()


class BoundedCache(Saving):
    """A mapping of bounded size. A subclass chooses the entry to evict."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        raise TypeError(f"cannot create '{cls.__module__}.{cls.__name__}' instances")

    @classmethod
    def _create(
        cls,
        maxsize: int | None,
        ttl: float | None,
        maxweight: int | None,
        weigher: Callable[[Any, Any], int] | None,
        clock: Callable[[], float] | None,
        on_evict: Callable[[Any, Any, EvictionReason], object] | None,
        managed: bool,
    ) -> Self:
        self = super().__new__(cls)
        self._table = Table(*checked_bounds(maxsize, maxweight, weigher))
        self._weigher = weigher
        self._managed = managed or weigher is not None
        self._ttl_ns = checked_ttl_ns(ttl)
        self._ttl = None if ttl is None else math.inf if self._ttl_ns is None else float(ttl)
        self._answers_until_ns = NEVER
        self._clock = checked_callable("clock", clock)
        self._on_evict = checked_callable("on_evict", on_evict)
        return self

    @property
    def maxsize(self) -> int:
        """The largest number of entries; 2**30 if only the weight is limited; `resize` changes it."""
        return self._table.maxsize

    @property
    def requests(self) -> int:
        """Hits and misses since the creation or the last reset."""
        return self._table.requests()

    @property
    def maxweight(self) -> int | None:
        """The largest sum of weights, None for no limit; `resize` changes it."""
        return self._table.maxweight or None

    @property
    def weigher(self) -> Callable[[Any, Any], int] | None:
        """Returns the weight of an entry, called with (key, value); None if every entry weighs 1."""
        return self._weigher

    @property
    def ttl(self) -> float | None:
        """Seconds until an entry expires unless `set` says otherwise; None for never."""
        return self._ttl

    @property
    def on_evict(self) -> Callable[[Any, Any, EvictionReason], object] | None:
        """The callback for entries removed by size or expiry; called with (key, value, reason); may be replaced."""
        return self._on_evict

    @on_evict.setter
    def on_evict(self, callback: Callable[[Any, Any, EvictionReason], object] | None) -> None:
        self._on_evict = checked_callable("on_evict", callback)

    @property
    def answers_until(self) -> float | None:
        """The time of the cache's clock from which reads miss, while the entries stay; None for never."""
        until = self._answers_until_ns
        return None if until == NEVER else until / 1e9

    @answers_until.setter
    def answers_until(self, time: float | None) -> None:
        ns = checked_time_ns("answers_until", time)
        self._answers_until_ns = NEVER if ns is None else ns

    def _place(self, bucket: Bucket, found: Entry | None, new: Entry, now_ns: int, counted: int) -> bool:
        """Store an entry for a key that `find` found or did not find; False if the cache has changed since."""
        if self._managed:
            return self._place_by_policy(bucket, found, new, now_ns, counted)
        version = self._table.version
        if self._table.bucket(new.hash) is not bucket:
            return False
        old, inserted, reason = found, INSERTIONS, None
        if found is not None and now_ns < found.expires_ns:
            new.key, inserted = found.key, UPDATES
        elif found is not None:
            reason = EvictionReason.EXPIRED
        elif self._table.size >= self._table.maxsize:
            old = self._table.oldest()
            if old is None:
                return False
            reason = self._reason(old, now_ns)
        into = (*(entry for entry in bucket if entry is not old), new)
        rest = () if old is None else into if old.hash == new.hash else self._table.without(old)
        if not self._table.exchange(version, old, rest, new, into, (inserted, REMOVALS[reason], counted)):
            return False
        if old is not None and reason is not None:
            self._notify(old, reason)
        return True

    def _answers(self, entry: Entry, now_ns: int) -> bool:
        return now_ns < entry.expires_ns and now_ns < self._answers_until_ns

    def _lookup(self, key: Hashable, key_hash: int, now_ns: int) -> Any:
        while True:
            bucket, entry = self._table.find(key, key_hash)
            if entry is None:
                self._table.miss()
                return _MISSING
            if self._answers(entry, now_ns):
                if self._table.hit(entry):
                    self._used(entry)
                    return entry.value
            elif now_ns < entry.expires_ns:
                self._table.miss()
                return _MISSING
            elif self._table.take(bucket, entry, EXPIRATIONS, MISSES):
                self._removed(entry, False)
                self._notify(entry, EvictionReason.EXPIRED)
                return _MISSING

    def _store(self, key: Hashable, key_hash: int, value: Any, expires_ns: int, now_ns: int, weight: int) -> None:
        while True:
            bucket, found = self._table.find(key, key_hash)
            if self._place(bucket, found, Entry(key, key_hash, value, expires_ns, weight), now_ns, UNCOUNTED):
                return

    def get(self, key: Hashable, default: Any = None, /) -> Any:
        """Return the value of a key, which becomes the most recently used; `default` if missing or expired."""
        key_hash = hash(key)
        value = self._lookup(key, key_hash, self._now_ns())
        return default if value is _MISSING else value

    def peek(self, key: Hashable, default: Any = None, /) -> Any:
        """Return the value of a fresh entry, or `default`; neither the order nor the counters change."""
        key_hash = hash(key)
        now_ns = self._now_ns()
        _, entry = self._table.find(key, key_hash)
        return default if entry is None or now_ns >= entry.expires_ns else entry.value

    def set(self, key: Hashable, value: Any, ttl: Any = ...) -> None:
        """Store a value as the most recently used; if the cache is full, evict the entry that the policy chooses."""
        ttl_ns = self._ttl_ns if ttl is ... else checked_ttl_ns(ttl)
        key_hash = hash(key)
        weight = self._weigh(key, value)
        now_ns = self._now_ns()
        self._store(key, key_hash, value, self._expiry(ttl_ns, now_ns), now_ns, weight)

    def setdefault(self, key: Hashable, default: Any = None, /) -> Any:
        """Return the value of a key; if it is missing, expired or past `answers_until`, store `default` first."""
        key_hash = hash(key)
        weight = self._weigh(key, default)
        now_ns = self._now_ns()
        expires_ns = self._expiry(self._ttl_ns, now_ns)
        while True:
            bucket, found = self._table.find(key, key_hash)
            if found is not None and self._answers(found, now_ns):
                if self._table.hit(found):
                    self._used(found)
                    return found.value
            elif self._place(bucket, found, Entry(key, key_hash, default, expires_ns, weight), now_ns, MISSES):
                return default

    def pop(self, key: Hashable, default: Any = ..., /) -> Any:
        """Remove a key and return its value."""
        key_hash = hash(key)
        now_ns = self._now_ns()
        while True:
            bucket, entry = self._table.find(key, key_hash)
            if entry is None:
                break
            if now_ns < entry.expires_ns:
                if self._table.take(bucket, entry, UNCOUNTED, UNCOUNTED):
                    self._removed(entry, False)
                    return entry.value
            elif self._table.take(bucket, entry, EXPIRATIONS, UNCOUNTED):
                self._removed(entry, False)
                self._notify(entry, EvictionReason.EXPIRED)
                break
        if default is ...:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return the fresh (key, value) that would be evicted next."""
        now_ns = self._now_ns()
        while True:
            version = self._table.version
            entry = self._victim()
            if entry is None:
                raise KeyError("popitem(): cache is empty")
            expired = now_ns >= entry.expires_ns
            if self._table.remove(version, entry, EXPIRATIONS if expired else UNCOUNTED):
                self._removed(entry, False)
                if not expired:
                    return entry.key, entry.value
                self._notify(entry, EvictionReason.EXPIRED)

    def update(self, other: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /) -> None:
        """Set every item of a mapping, or of an iterable of (key, value)."""
        for key, value in other.items() if isinstance(other, Mapping) else other:
            self.set(key, value)

    def clear(self) -> None:
        """Remove every entry; the counters stay, `on_evict` is not called."""
        self._table.empty(OrderedDict(), {}, {})
        self._cleared()

    def expire(self) -> int:
        """Remove every expired entry, in the order of `keys`, and return how many there were."""
        now_ns = self._now_ns()
        evicted: list[Entry] = []
        try:
            for entry in self._entries():
                # One at a time, because an expired entry looks the same to a reader as a removed one.
                while now_ns >= entry.expires_ns:
                    version = self._table.version
                    if entry not in self._table:
                        break
                    if self._table.remove(version, entry, EXPIRATIONS):
                        self._removed(entry, False)
                        evicted.append(entry)
                        break
        finally:
            for entry in evicted:
                self._notify(entry, EvictionReason.EXPIRED)
        return len(evicted)

    def expires_in(self, key: Hashable, /) -> float | None:
        """Return the seconds until a key expires, None for never; KeyError if it is missing or has expired."""
        key_hash = hash(key)
        now_ns = self._now_ns()
        _, entry = self._table.find(key, key_hash)
        if entry is None or now_ns >= entry.expires_ns:
            raise KeyError(key)
        return None if entry.expires_ns == NEVER else (entry.expires_ns - now_ns) / 1e9

    def resize(self, maxsize: int | None = None, *, maxweight: int | None = None) -> None:
        """Change the largest number of entries, the largest sum of weights, or both; evict until the limits hold."""
        limit, weight_limit = checked_limits(maxsize, maxweight, self._weigher)
        now_ns = self._now_ns()
        evicted: list[tuple[Entry, EvictionReason]] = []
        try:
            while True:
                version = self._table.version
                size, weight = self._table.limit(limit, weight_limit)
                if (not limit or size <= limit) and (not weight_limit or weight <= weight_limit):
                    break
                entry = self._victim()
                if entry is None:
                    continue
                reason = self._reason(entry, now_ns)
                # The bounds shrink with the entries, so that others cannot add as many as are removed here.
                bounds = (limit and size - 1, weight_limit and max(weight_limit, weight - entry.weight))
                if self._table.remove(version, entry, REMOVALS[reason], *bounds):
                    evicted.append((entry, reason))
                    self._removed(entry, reason is EvictionReason.SIZE)
            self._resized()
        finally:
            for entry, reason in evicted:
                self._notify(entry, reason)

    def _fresh(self) -> list[Entry]:
        now_ns = self._now_ns()
        return [entry for entry in self._entries() if now_ns < entry.expires_ns]

    def keys(self) -> list[Any]:
        """Return a list of the fresh keys, in the order of the policy: least recently used first for an `LRUCache`."""
        return [entry.key for entry in self._fresh()]

    def values(self) -> list[Any]:
        """Return a list of the fresh values, in the order of `keys`."""
        return [entry.value for entry in self._fresh()]

    def items(self) -> list[tuple[Any, Any]]:
        """Return a list of the fresh (key, value) pairs, in the order of `keys`."""
        return [(entry.key, entry.value) for entry in self._fresh()]

    def stats(self) -> CacheStats:
        """Return the counters since creation or `reset_stats`, and the size now."""
        counters, size, weight, maxsize, maxweight = self._table.counts()
        hits, misses, insertions, updates, evictions, expirations, rejections, _ = counters
        return CacheStats(
            hits,
            misses,
            insertions,
            updates,
            evictions,
            expirations,
            size,
            maxsize,
            None if self._weigher is None else weight,
            maxweight or None,
            rejections,
            self._policy_stats(hits, misses),
        )

    def reset_stats(self) -> None:
        """Set the counters to zero."""
        self._table.reset_counters()

    def __getitem__(self, key: Hashable, /) -> Any:
        key_hash = hash(key)
        value = self._lookup(key, key_hash, self._now_ns())
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Hashable, value: Any, /) -> None:
        self.set(key, value)

    def __delitem__(self, key: Hashable, /) -> None:
        key_hash = hash(key)
        while True:
            bucket, entry = self._table.find(key, key_hash)
            if entry is None:
                raise KeyError(key)
            if self._table.take(bucket, entry, UNCOUNTED, UNCOUNTED):
                self._removed(entry, False)
                return

    def __contains__(self, key: Hashable, /) -> bool:
        key_hash = hash(key)
        now_ns = self._now_ns()
        _, entry = self._table.find(key, key_hash)
        return entry is not None and self._answers(entry, now_ns)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __reversed__(self) -> Iterator[Any]:
        return iter(self.keys()[::-1])

    def __len__(self) -> int:
        return self._table.size

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + sys.getsizeof(self._table)

    def __repr__(self) -> str:
        _, size, _, maxsize, _ = self._table.counts()
        return f"<{type(self).__name__} size={size} maxsize={maxsize} ttl={self.ttl}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle '{type(self).__name__}' object")

    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias:
        return GenericAlias(cls, item)


MutableMapping.register(BoundedCache)
