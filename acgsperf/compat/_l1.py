"""The entries of L1 under their former names, and a mapping over the cache that holds them."""

import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.dispatch import RecordingCache

__all__ = ["CacheEntry", "L1View"]


@dataclass(slots=True)
class CacheEntry:
    """A value, and when it was stored and accessed. Times are wall-clock seconds; `ttl` None means it never expires."""

    value: Any
    created_at: float
    last_accessed: float
    access_count: int = 0
    ttl: float | None = None
    size_bytes: int = 0
    constitutional_hash: str = CONSTITUTIONAL_HASH

    def is_expired(self) -> bool:
        """Return whether the entry has expired."""
        return self.ttl is not None and time.time() - self.created_at > self.ttl

    def touch(self) -> None:
        """Count an access, now."""
        self.last_accessed = time.time()
        self.access_count += 1


class L1View(MutableMapping[str, CacheEntry]):
    """A mapping of key -> entry, the least recently used first. Reading it is not an access.

    Args:
        entries: the L1.
        store: stores an entry under a key for a number of seconds; with None, it never expires.
        before_read: called before an entry is returned, so that its accesses are counted.
    """

    def __init__(
        self,
        entries: RecordingCache[str, CacheEntry],
        store: Callable[[str, CacheEntry, float | None], None],
        before_read: Callable[[], object],
    ) -> None:
        self._entries = entries
        self._store = store
        self._before_read = before_read

    def __getitem__(self, key: str) -> CacheEntry:
        self._before_read()
        entry = self._entries.peek(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def __setitem__(self, key: str, entry: CacheEntry) -> None:
        self._store(key, entry, None if entry.ttl is None else entry.created_at + entry.ttl - time.time())

    def __delitem__(self, key: str) -> None:
        del self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<L1View of {self._entries!r}>"

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
