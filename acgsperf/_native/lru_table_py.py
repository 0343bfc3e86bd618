"""The entries of a cache in pure Python: a table by hash, in order of use, with counters.

A caller reads the version of the table, prepares a change, and commits it in one atomic step if the version is still
the same; else it starts again. See `atomic`.
"""

from collections import OrderedDict
from collections.abc import Hashable
from sys import getsizeof
from typing import Any, Final

from acgsperf._native.atomic import atomic, exclusive

# Places in the list of counters; the last one counts what is not reported.
HITS, MISSES, INSERTIONS, UPDATES, EVICTIONS, EXPIRATIONS, REJECTIONS, UNCOUNTED = range(8)
COUNTERS: Final = 8


class Token:
    """Identifies an entry in a policy. It stays the same when an update replaces the entry."""

    __slots__ = ()


class Entry:
    """What the cache holds for one key. It never changes: an update puts a new entry in its place."""

    __slots__ = ("expires_ns", "hash", "key", "token", "value", "weight")

    def __init__(self, key: Any, key_hash: int, value: Any, expires_ns: int, weight: int = 1) -> None:
        self.key = key
        self.hash = key_hash
        self.value = value
        self.expires_ns = expires_ns
        self.weight = weight
        self.token: Token | None = None


Bucket = tuple[Entry, ...]
_SAMPLE: Final = Entry(None, 0, None, 0)


class Table:
    """Finds entries by the hash of their key, and orders them by their last use.

    A bucket contains the entries of one hash. It is a tuple, and replaced at every change. Only `_search` runs a key's
    own code: the order knows entries by identity.
    """

    __slots__ = ("_by_hash", "_by_token", "_counters", "_order", "maxsize", "maxweight", "size", "version", "weight")

    def __init__(self, maxsize: int, maxweight: int) -> None:
        self.maxsize = maxsize
        # 0 for no limit.
        self.maxweight = maxweight
        self.size = 0
        self.weight = 0
        self.version = 0
        self._by_hash: dict[int, Bucket] = {}
        self._by_token: dict[Token, Entry] = {}
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

    def of_token(self, token: Token) -> Entry | None:
        """Return the entry of a token, None if it was removed."""
        return self._by_token.get(token)

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
        maxweight: int = 0,
    ) -> bool:
        """Remove an entry, insert another, and count, all at once.

        Args:
            version: the version of the table for which the caller prepared the other arguments.
            old: the entry to remove, or None.
            rest: the bucket of its hash afterwards.
            new: the entry to insert, or None.
            bucket: the bucket of its hash afterwards.
            counted: which counters to increment.
            maxsize: the new bound, 0 to keep the present one.
            maxweight: the new bound, 0 to keep the present one.

        Returns:
            False, and nothing has changed, if the table has another version now.
        """
        if self.version != version:
            return False
        order = self._order
        by_hash = self._by_hash
        by_token = self._by_token
        counters = self._counters
        first, second, third = counted
        if new is not None:
            order[new] = None
            by_hash[new.hash] = bucket
            self.size += 1
            self.weight += new.weight
        if old is not None:
            if old.token is not None:
                del by_token[old.token]
            del order[old]
            if rest:
                by_hash[old.hash] = rest
            else:
                del by_hash[old.hash]
            self.size -= 1
            self.weight -= old.weight
        if new is not None and new.token is not None:
            by_token[new.token] = new
        counters[first] += 1
        counters[second] += 1
        counters[third] += 1
        if maxsize:
            self.maxsize = maxsize
        if maxweight:
            self.maxweight = maxweight
        self.version = version + 1
        return True

    @atomic
    def add_oldest(self, version: int, new: Entry, bucket: Bucket) -> bool:
        """Insert an entry as the least recently used one, and count that; see `exchange`."""
        if self.version != version:
            return False
        order = self._order
        order[new] = None
        self._by_hash[new.hash] = bucket
        if new.token is not None:
            self._by_token[new.token] = new
        self.size += 1
        self.weight += new.weight
        self._counters[INSERTIONS] += 1
        self.version = version + 1
        order.move_to_end(new, False)
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

    def remove(self, version: int, entry: Entry, counter: int, maxsize: int = 0, maxweight: int = 0) -> bool:
        """Remove an entry and count that; see `exchange`. False if it was removed before, or if the version differs."""
        return entry in self._order and self.exchange(
            version, entry, self.without(entry), None, (), (counter, UNCOUNTED, UNCOUNTED), maxsize, maxweight
        )

    def take(self, bucket: Bucket, entry: Entry, *counted: int) -> bool:
        """Remove an entry of a bucket; False if the bucket has changed."""
        version = self.version
        if self._by_hash.get(entry.hash) is not bucket:
            return False
        first, second = counted
        return self.exchange(version, entry, self.without(entry), None, (), (first, second, UNCOUNTED))

    @atomic
    def empty(
        self, order: OrderedDict[Entry, None], by_hash: dict[int, Bucket], by_token: dict[Token, Entry]
    ) -> object:
        """Continue with empty containers; return the full ones."""
        old_order = self._order
        old_by_hash = self._by_hash
        old_by_token = self._by_token
        self._order = order
        self._by_hash = by_hash
        self._by_token = by_token
        self.size = 0
        self.weight = 0
        self.version += 1
        # The caller drops them: the end of a value may run code that uses the cache.
        return old_order, old_by_hash, old_by_token

    def has_room(self, weight: int) -> bool:
        """Whether a new entry of this weight fits; if the weight is 0, whether the present entries fit."""
        if self.maxweight and self.weight + weight > self.maxweight:
            return False
        return self.size < self.maxsize if weight else self.size <= self.maxsize

    @atomic
    def limit(self, maxsize: int, maxweight: int) -> tuple[int, int]:
        """Change the bounds, 0 to keep one, unless the entries exceed them; return the present size and weight."""
        size = self.size
        weight = self.weight
        fits = True
        if maxsize and size > maxsize:
            fits = False
        if maxweight and weight > maxweight:
            fits = False
        if fits and maxsize:
            self.maxsize = maxsize
        if fits and maxweight:
            self.maxweight = maxweight
        if fits:
            self.version += 1
        return size, weight

    @atomic
    def counts(self) -> tuple[list[int], int, int, int, int]:
        """Return the counters, the number and weight of the entries, and their bounds."""
        counters = [*self._counters]
        size = self.size
        weight = self.weight
        maxsize = self.maxsize
        maxweight = self.maxweight
        return counters, size, weight, maxsize, maxweight

    @atomic
    def requests(self) -> int:
        """Return the sum of hits and misses."""
        return self._counters[HITS] + self._counters[MISSES]

    @exclusive
    def reset_counters(self) -> None:
        """Set the counters to zero."""
        self._counters = [0] * COUNTERS

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._order

    def __sizeof__(self) -> int:
        entries = self.size * getsizeof(_SAMPLE)
        return (
            object.__sizeof__(self)
            + getsizeof(self._order)
            + getsizeof(self._by_hash)
            + getsizeof(self._by_token)
            + entries
        )
