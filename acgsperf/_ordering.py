"""Reads of the tiers that a write overtakes: what they find was true, but is not to be kept."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from acgsperf.tiers.base import Entry

__all__ = ["Ordering", "Read"]


class Read:
    """One read of the tiers under way."""

    __slots__ = ("keys", "overtaken", "overtaken_tags")

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.overtaken: set[str] = set()
        self.overtaken_tags: set[str] = set()

    def stands(self, key: str, entry: Entry) -> bool:
        """Whether no write has touched this key or a tag of its entry since the read began."""
        return key not in self.overtaken and self.overtaken_tags.isdisjoint(entry.tags)


class Ordering:
    """Which keys are being read, and which are being written.

    A read that overlaps with a write of the same key may have found what was there before. Without this, it would put
    a value back that a `delete` has just removed.
    """

    def __init__(self) -> None:
        self._reads: dict[str, list[Read]] = {}
        self._writes: Counter[str] = Counter()
        self._tag_writes: Counter[str] = Counter()
        self._clears = 0

    def begin_read(self, keys: Sequence[str]) -> Read:
        """Before the first tier is asked; has to be followed by `end_read`."""
        read = Read(keys)
        for key in keys:
            self._reads.setdefault(key, []).append(read)
        if self._writes:
            read.overtaken.update(key for key in keys if key in self._writes)
        if self._tag_writes:
            read.overtaken_tags.update(self._tag_writes)
        if self._clears:
            read.overtaken.update(keys)
        return read

    def end_read(self, read: Read) -> None:
        """Once what was found has been kept, or not."""
        for key in read.keys:
            reads = self._reads[key]
            reads.remove(read)
            if not reads:
                del self._reads[key]

    def overtake(self, key: str) -> None:
        """What reads under way find of a key is not to be kept."""
        for read in self._reads.get(key, ()):
            read.overtaken.add(key)

    @contextmanager
    def writing(self, keys: Iterable[str]) -> Iterator[None]:
        """The time of a `set` or `delete`."""
        keys = tuple(keys)
        for key in keys:
            self._writes[key] += 1
            self.overtake(key)
        try:
            yield
        finally:
            for key in keys:
                _count_down(self._writes, key)

    @contextmanager
    def invalidating(self, tag: str) -> Iterator[None]:
        """The time of an `invalidate_tag`."""
        self._tag_writes[tag] += 1
        for reads in self._reads.values():
            for read in reads:
                read.overtaken_tags.add(tag)
        try:
            yield
        finally:
            _count_down(self._tag_writes, tag)

    @contextmanager
    def clearing(self) -> Iterator[None]:
        """The time of a `clear`."""
        self._clears += 1
        for key, reads in self._reads.items():
            for read in reads:
                read.overtaken.add(key)
        try:
            yield
        finally:
            self._clears -= 1


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
