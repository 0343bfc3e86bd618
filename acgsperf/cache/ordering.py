"""Tells a read whether a write has superseded what the read found."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

__all__ = ["Ordering"]

# The maximum number of keys, and of tags, whose last write is remembered. Beyond that, every read in flight is
# superseded.
_MAX_REMEMBERED: Final = 10_000


class Ordering:
    """The order of the writes of this process, which tells a read whether a write has superseded it.

    A read that overlaps with a write of the same key may have found the old value. Its caller may get that value, but
    no tier may store it: otherwise the read would restore what a `delete` has just removed.

    Every write has a number. A read notes `latest` when it begins. Its result for a key is current if no write of
    that key is in flight or has a higher number.

    Attributes:
        latest: the number of the latest write.
    """

    def __init__(self) -> None:
        self.latest: int = 0
        self._keys = _Writes()
        self._tags = _Writes()
        self._clears = 0
        # Reads that began before this number are superseded, whatever their keys.
        self._all_superseded_at = 0

    def is_current(self, began_at: int, key: str, tags: tuple[str, ...] = ()) -> bool:
        """Return whether no write has changed this key, or a tag of its entry, since `latest` was `began_at`."""
        return (
            began_at >= self._all_superseded_at
            and not self._clears
            and self._keys.is_current(began_at, key)
            and (not tags or all(self._tags.is_current(began_at, tag) for tag in tags))
        )

    def is_unwritten(self, key: str, tags: tuple[str, ...]) -> bool:
        """Return whether no write of this key, or of a tag of its entry, is in flight or remembered."""
        return self._keys.is_current(0, key) and all(self._tags.is_current(0, tag) for tag in tags)

    def supersede(self, key: str) -> None:
        """Supersede the reads of a key that are in flight."""
        self._record(self._keys, key)

    def supersede_tag(self, tag: str) -> None:
        """Supersede the reads in flight that find an entry with a tag."""
        self._record(self._tags, tag)

    def supersede_all(self) -> None:
        """Supersede every read in flight."""
        self.latest += 1
        self._all_superseded_at = self.latest

    def writing(self, keys: Iterable[str]) -> AbstractContextManager[None]:
        """Return a context for a `set` or `delete` in flight."""
        return self._in_flight(self._keys, tuple(keys))

    def invalidating(self, tag: str) -> AbstractContextManager[None]:
        """Return a context for an `invalidate_tag` in flight."""
        return self._in_flight(self._tags, (tag,))

    @contextmanager
    def clearing(self) -> Iterator[None]:
        """Return a context for a `clear` in flight."""
        self._clears += 1
        try:
            yield
        finally:
            self._clears -= 1
            self.supersede_all()

    @contextmanager
    def _in_flight(self, writes: "_Writes", names: tuple[str, ...]) -> Iterator[None]:
        writes.in_flight.update(names)
        try:
            yield
        finally:
            for name in names:
                writes.in_flight[name] -= 1
                if not writes.in_flight[name]:
                    del writes.in_flight[name]
                self._record(writes, name)

    def _record(self, writes: "_Writes", name: str) -> None:
        self.latest += 1
        writes.last[name] = self.latest
        if len(writes.last) > _MAX_REMEMBERED:
            writes.last.clear()
            self.supersede_all()


class _Writes:
    """The writes of keys, or of tags: how many of each name are in flight, and the number of the last that ended."""

    __slots__ = ("in_flight", "last")

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()
        self.last: dict[str, int] = {}

    def is_current(self, began_at: int, name: str) -> bool:
        return name not in self.in_flight and self.last.get(name, 0) <= began_at
