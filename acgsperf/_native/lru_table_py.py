"""The entries of an `LRUCache` in pure Python: a table by hash, in order of use, with counters.

A caller reads the version of the table, prepares a change, and commits it in one atomic step if the version is still
the same; else it starts again. See `atomic`.
"""

from collections import OrderedDict
from collections.abc import Hashable
from sys import getsizeof
from typing import Any, Final

from acgsperf._native.atomic import atomic, exclusive

# Places in the list of counters; the last one counts what is not reported.
HITS, MISSES, INSERTIONS, UPDATES, EVICTIONS, EXPIRATIONS, UNCOUNTED = range(7)
COUNTERS: Final = 7


class Entry:
    """What the cache holds for one key. It never changes: an update puts a new entry in its place."""

    __slots__ = ("expires_ns", "hash", "key", "value")

    def __init__(self, key: Any, key_hash: int, value: Any, expires_ns: int) -> None:
        self.key = key
        self.hash = key_hash
        self.value = value
        self.expires_ns = expires_ns


Bucket = tuple[Entry, ...]
_SAMPLE: Final = Entry(None, 0, None, 0)


class Table:
    """Finds entries by the hash of their key, and orders them by their last use.

    A bucket contains the entries of one hash. It is a tuple, and replaced at every change. Only `_search` runs a key's
    own code: the order knows entries by identity.
    """

    __slots__ = ("_by_hash", "_counters", "_order", "maxsize", "size", "version")

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.size = 0
        self.version = 0
        self._by_hash: dict[int, Bucket] = {}
        self._order: OrderedDict[Entry, None] = OrderedDict()
        self._counters = [0] * COUNTERS

    def bucket(self, key_hash: int) -> Bucket:
        """Return the entries of a hash."""
        return self._by_hash.get(key_hash, ())

    def find(self, key: Hashable, key_hash: int) -> tuple[Bucket, Entry | None]:
        """Return the bucket of a hash and the entry of a key in it."""
        bucket = self._by_hash.get(key_hash, ())
        if not bucket:
            return bucket, None
        if bucket[0].key is key:
            return bucket, bucket[0]
        return self._search(key, key_hash)

    def _search(self, key: Hashable, key_hash: int) -> tuple[Bucket, Entry | None]:
        """Compare keys. If a comparison changes the bucket, start again, without the keys known to be different."""
        different: dict[int, Any] = {}
        while True:
            bucket = self._by_hash.get(key_hash, ())
            for entry in bucket:
                if id(entry.key) in different:
                    continue
                same = entry.key is key or bool(entry.key == key)
                if not same:
                    different[id(entry.key)] = entry.key
                now = self._by_hash.get(key_hash, ())
                if now is bucket:
                    if same:
                        return bucket, entry
                    continue
                # The comparison changed the bucket. What it found may still be there.
                for other in now if same else ():
                    if other.key is entry.key:
                        return now, other
                break
            else:
                return bucket, None

    @atomic
    def hit(self, entry: Entry) -> bool:
        """Count a hit and make the entry the most recently used; False if it is no longer in the cache."""
        if entry not in self._order:
            return False
        self._counters[HITS] += 1
        self.version += 1
        self._order.move_to_end(entry)
        return True

    @atomic
    def miss(self) -> None:
        """Count a miss."""
        self._counters[MISSES] += 1

    @atomic
    def exchange(
        self,
        version: int,
        old: Entry | None,
        rest: Bucket,
        new: Entry | None,
        bucket: Bucket,
        counted: tuple[int, int, int],
        maxsize: int = 0,
    ) -> bool:
        """Remove an entry, insert another, and count, all at once.

        Args:
            version: the version for which the rest was prepared.
            old: the entry to remove, or None.
            rest: the bucket of its hash afterwards.
            new: the entry to insert, or None.
            bucket: the bucket of its hash afterwards.
            counted: which counters to increment.
            maxsize: the new one, 0 to keep it.

        Returns:
            False, and nothing has changed, if the cache is of another version.
        """
        if self.version != version:
            return False
        order = self._order
        by_hash = self._by_hash
        counters = self._counters
        first, second, third = counted
        if new is not None:
            order[new] = None
            by_hash[new.hash] = bucket
            self.size += 1
        if old is not None:
            del order[old]
            if rest:
                by_hash[old.hash] = rest
            else:
                del by_hash[old.hash]
            self.size -= 1
        counters[first] += 1
        counters[second] += 1
        counters[third] += 1
        if maxsize:
            self.maxsize = maxsize
        self.version = version + 1
        return True

    @exclusive
    def oldest(self) -> Entry | None:
        """Return the least recently used entry, or None."""
        while True:
            try:
                return next(iter(self._order), None)
            except RuntimeError:
                # Something changed the order between the two calls.
                continue

    @exclusive
    def entries(self) -> list[Entry]:
        """Return every entry, least recently used first; one call of C code, and so of one moment."""
        return list(self._order)

    def without(self, entry: Entry) -> Bucket:
        """Return the bucket of an entry as it is without it."""
        return tuple(other for other in self._by_hash.get(entry.hash, ()) if other is not entry)

    def take(self, bucket: Bucket, entry: Entry, *counted: int) -> bool:
        """Remove an entry of a bucket; False if the bucket has changed."""
        version = self.version
        if self._by_hash.get(entry.hash) is not bucket:
            return False
        first, second = counted
        return self.exchange(version, entry, self.without(entry), None, (), (first, second, UNCOUNTED))

    @atomic
    def empty(self, order: OrderedDict[Entry, None], by_hash: dict[int, Bucket]) -> object:
        """Continue with empty containers; return the full ones."""
        old_order = self._order
        old_by_hash = self._by_hash
        self._order = order
        self._by_hash = by_hash
        self.size = 0
        self.version += 1
        # The caller drops them: the end of a value may run code that uses the cache.
        return old_order, old_by_hash

    @atomic
    def limit(self, maxsize: int) -> int:
        """Change the size unless there are more entries; return how many there are."""
        size = self.size
        if size <= maxsize:
            self.maxsize = maxsize
            self.version += 1
        return size

    @atomic
    def counts(self) -> tuple[list[int], int, int]:
        """Return the counters, the number of entries, and the largest number."""
        counters = [*self._counters]
        size = self.size
        maxsize = self.maxsize
        return counters, size, maxsize

    @exclusive
    def reset_counters(self) -> None:
        """Set the counters to zero."""
        self._counters = [0] * COUNTERS

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._order

    def __sizeof__(self) -> int:
        entries = self.size * getsizeof(_SAMPLE)
        return object.__sizeof__(self) + getsizeof(self._order) + getsizeof(self._by_hash) + entries
