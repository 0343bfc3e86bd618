"""Reads of the tiers that a write overtakes: what they find was true, but is not to be kept."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

__all__ = ["Ordering"]

# Keys and tags whose last write is remembered; after that many, what is being read is not kept.
_REMEMBERED: Final = 10_000


class Ordering:
    """The order of writes, by which a read knows whether one has overtaken it.

    A read that overlaps with a write of the same key may have found what was there before. Without this, it would put
    a value back that a `delete` has just removed.

    Writes have numbers. A read notes the latest as it begins, and what it finds of a key stands when no write of that
    key is under way or has a higher number.

    Attributes:
        latest: the number of the latest write.
    """

    def __init__(self) -> None:
        self.latest = 0
        self._keys = _Writes()
        self._tags = _Writes()
        self._clears = 0
        # What was being read at this number is overtaken, whatever its keys.
        self._all_overtaken_at = 0

    def stands(self, began_at: int, key: str, tags: tuple[str, ...] = ()) -> bool:
        """Whether no write has touched this key, or a tag of its entry, since `latest` was `began_at`."""
        return (
            began_at >= self._all_overtaken_at
            and not self._clears
            and self._keys.stands(began_at, key)
            and (not tags or all(self._tags.stands(began_at, tag) for tag in tags))
        )

    def overtake(self, key: str) -> None:
        """What reads under way find of a key is not to be kept."""
        self._note(self._keys, key)

    def writing(self, keys: Iterable[str]) -> AbstractContextManager[None]:
        """The time of a `set` or `delete`."""
        return self._under_way(self._keys, tuple(keys))

    def invalidating(self, tag: str) -> AbstractContextManager[None]:
        """The time of an `invalidate_tag`."""
        return self._under_way(self._tags, (tag,))

    @contextmanager
    def clearing(self) -> Iterator[None]:
        """The time of a `clear`."""
        self._clears += 1
        try:
            yield
        finally:
            self._clears -= 1
            self._overtake_all()

    @contextmanager
    def _under_way(self, writes: "_Writes", names: tuple[str, ...]) -> Iterator[None]:
        writes.under_way.update(names)
        try:
            yield
        finally:
            for name in names:
                writes.under_way[name] -= 1
                if not writes.under_way[name]:
                    del writes.under_way[name]
                self._note(writes, name)

    def _note(self, writes: "_Writes", name: str) -> None:
        self.latest += 1
        writes.last[name] = self.latest
        if len(writes.last) > _REMEMBERED:
            writes.last.clear()
            self._overtake_all()

    def _overtake_all(self) -> None:
        self.latest += 1
        self._all_overtaken_at = self.latest


class _Writes:
    """Writes by what they are of: those under way, and the numbers of those that were."""

    __slots__ = ("last", "under_way")

    def __init__(self) -> None:
        self.under_way: Counter[str] = Counter()
        self.last: dict[str, int] = {}

    def stands(self, began_at: int, name: str) -> bool:
        return name not in self.under_way and self.last.get(name, 0) <= began_at
