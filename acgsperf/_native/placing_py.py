"""How a cache with a policy or with weights stores an entry and makes room for it, in pure Python."""

from collections.abc import Callable
from typing import Any, Final

from acgsperf._native.arguments import HEAVIEST_SHARE
from acgsperf._native.atomic import Immutable
from acgsperf._native.lru_table_py import (
    EVICTIONS,
    EXPIRATIONS,
    INSERTIONS,
    REJECTIONS,
    UNCOUNTED,
    UPDATES,
    Bucket,
    Entry,
    Table,
    Token,
)
from acgsperf._native.stats import PolicyStats
from acgsperf._native.types import EvictionReason
from acgsperf._native.unraisable import report_unraisable

REMOVALS: Final = {None: UNCOUNTED, EvictionReason.SIZE: EVICTIONS, EvictionReason.EXPIRED: EXPIRATIONS}


class Placing(metaclass=Immutable):
    """The part of `BoundedCache` that makes room. A class with a policy overrides the methods before `_reason`."""

    __slots__ = (
        "__weakref__",
        "_answers_until_ns",
        "_clock",
        "_managed",
        "_on_evict",
        "_table",
        "_ttl",
        "_ttl_ns",
        "_weigher",
    )

    _answers_until_ns: int
    _clock: Callable[[], float] | None
    # Whether there are weights or a policy, so that an insertion is more than one step.
    _managed: bool
    _on_evict: Callable[[Any, Any, EvictionReason], object] | None
    _table: Table
    _ttl: float | None
    _ttl_ns: int | None
    _weigher: Callable[[Any, Any], int] | None

    # Without a policy, the table's own order is the order of use.

    def _used(self, entry: Entry) -> None:
        """Called after an entry was hit or updated."""

    def _missed(self, key_hash: int) -> int:
        """Called before a new key is inserted. Returns the `meta` argument of `_inserted`."""
        return 0

    def _victim(self) -> Entry | None:
        """Return the entry to evict next, or None if there is none."""
        return self._table.oldest()

    def _spared(self, entry: Entry) -> None:
        """Called if an entry that `_victim` returned must not be evicted."""

    def _removed(self, entry: Entry, for_room: bool) -> None:
        """Called after an entry was removed; `for_room` if it was evicted to make room."""

    def _inserted(self, entry: Entry, meta: int) -> None:
        """Called after an entry was inserted."""

    def _reweighed(self, entry: Entry) -> None:
        """Called after the weight of an entry changed."""

    def _resized(self) -> None:
        """Called after the bounds changed."""

    def _filled(self) -> None:
        """Called before an eviction if the weight is limited: the number of entries that fit is known then."""

    def _cleared(self) -> None:
        """Called after all entries were removed."""

    def _entries(self) -> list[Entry]:
        """Return every entry, in the order of the policy."""
        return self._table.entries()

    def _restored(self, entry: Entry, meta: int) -> None:
        """Called after an entry of a saved cache was inserted as the oldest one of its queue."""

    def _policy_state(self) -> tuple[int | None, dict[Any, int]]:
        """Return the number of the setting, None without a policy, and the hits and queue of each token."""
        return None, {}

    def _policy_stats(self, hits: int, misses: int) -> PolicyStats | None:
        return None

    def _reason(self, entry: Entry, now_ns: int) -> EvictionReason:
        return EvictionReason.EXPIRED if now_ns >= entry.expires_ns else EvictionReason.SIZE

    def _notify(self, entry: Entry, reason: EvictionReason) -> None:
        callback = self._on_evict
        if callback is None:
            return
        try:
            callback(entry.key, entry.value, reason)
        except BaseException as error:
            report_unraisable(error, callback)

    def _place_by_policy(self, bucket: Bucket, found: Entry | None, new: Entry, now_ns: int, counted: int) -> bool:
        """Do the work of `_place` for a cache with a policy or with weights."""
        if self._table.maxweight and new.weight > self._table.maxweight // HEAVIEST_SHARE:
            return self._reject(bucket, found, new, counted)
        if found is not None and now_ns < found.expires_ns:
            return self._replace(bucket, found, new, now_ns, counted)
        evicted: list[tuple[Entry, EvictionReason]] = []
        try:
            if found is not None:
                if not self._table.take(bucket, found, EXPIRATIONS, UNCOUNTED):
                    return False
                evicted.append((found, EvictionReason.EXPIRED))
                self._removed(found, False)
                bucket = self._table.bucket(new.hash)
            new.token = Token()
            meta = self._missed(new.hash)
            while True:
                version = self._table.version
                room = self._table.has_room(new.weight)
                if self._table.bucket(new.hash) is not bucket:
                    return False
                if room:
                    if self._table.exchange(version, None, (), new, (*bucket, new), (INSERTIONS, UNCOUNTED, counted)):
                        self._inserted(new, meta)
                        return True
                else:
                    self._evict_one(version, None, now_ns, evicted)
                    if evicted and evicted[-1][0].hash == new.hash:
                        bucket = self._table.bucket(new.hash)
        finally:
            for entry, reason in evicted:
                self._notify(entry, reason)

    def _evict_one(
        self, version: int, spared: Entry | None, now_ns: int, evicted: list[tuple[Entry, EvictionReason]]
    ) -> None:
        """Evict one entry, unless the cache has changed meanwhile."""
        if self._table.maxweight:
            self._filled()
        old = self._victim()
        if old is None:
            return
        if old is spared:
            self._spared(old)
            return
        reason = self._reason(old, now_ns)
        if self._table.remove(version, old, REMOVALS[reason]):
            evicted.append((old, reason))
            self._removed(old, reason is EvictionReason.SIZE)

    def _reject(self, bucket: Bucket, found: Entry | None, new: Entry, counted: int) -> bool:
        """Remove the entry of a key whose new value is too heavy; False if the cache has changed."""
        version = self._table.version
        if self._table.bucket(new.hash) is not bucket:
            return False
        rest = () if found is None else self._table.without(found)
        if not self._table.exchange(version, found, rest, None, (), (REJECTIONS, UNCOUNTED, counted)):
            return False
        if found is not None:
            self._removed(found, False)
        return True

    def _replace(self, bucket: Bucket, found: Entry, new: Entry, now_ns: int, counted: int) -> bool:
        """Replace a fresh entry by a new one; False if the cache has changed."""
        version = self._table.version
        if self._table.bucket(new.hash) is not bucket:
            return False
        new.key, new.token = found.key, found.token
        into = (*(entry for entry in bucket if entry is not found), new)
        if not self._table.exchange(version, found, into, new, into, (UPDATES, UNCOUNTED, counted)):
            return False
        evicted: list[tuple[Entry, EvictionReason]] = []
        try:
            if new.weight != found.weight:
                self._reweighed(new)
            self._used(new)
            while new in self._table and not self._table.has_room(0):
                self._evict_one(self._table.version, new, now_ns, evicted)
        finally:
            for entry, reason in evicted:
                self._notify(entry, reason)
        return True
