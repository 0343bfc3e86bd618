"""Finds the keys of this process that have a tag."""

from acgsperf.tiers.base import Entry

__all__ = ["TagIndex"]


class TagIndex:
    """The keys of each tag."""

    def __init__(self) -> None:
        self._keys: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, tag: str) -> list[str]:
        """Return the keys of a tag."""
        return list(self._keys.get(tag, ()))

    def add(self, key: str, entry: Entry) -> None:
        """Add the key of an entry to its tags."""
        for tag in entry.tags:
            self._keys.setdefault(tag, set()).add(key)

    def discard(self, key: str, entry: Entry | None) -> None:
        """Remove the key of an entry from its tags."""
        for tag in entry.tags if entry is not None else ():
            keys = self._keys.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._keys[tag]

    def clear(self) -> None:
        """Remove every tag."""
        self._keys.clear()
