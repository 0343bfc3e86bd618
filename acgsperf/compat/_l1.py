"""The entries of the cache in memory as callers know them, and a mapping over the `LRUCache` that holds them."""

import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.dispatch import LRUCache

__all__ = ["CacheEntry", "L1View"]


@dataclass(slots=True)
class CacheEntry:
    """A value and when it was stored and used; times are seconds of the wall clock, `ttl` None for never."""

    value: Any
    created_at: float
    last_accessed: float
    access_count: int = 0
    ttl: float | None = None
    size_bytes: int = 0
    constitutional_hash: str = CONSTITUTIONAL_HASH

    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.ttl is not None and time.time() - self.created_at > self.ttl

    def touch(self) -> None:
        """Count an access now."""
        self.last_accessed = time.time()
        self.access_count += 1


class L1View(MutableMapping[str, CacheEntry]):
    """Entries by key, the least recently used first. Looking at them counts nothing and moves nothing.

    Args:
        entries: where they are.
        store: puts an entry there under a key, for so many seconds or, with None, for ever.
        settle: called before an entry is shown, so that its accesses are counted.
    """

    def __init__(
        self,
        entries: LRUCache[str, CacheEntry],
        store: Callable[[str, CacheEntry, float | None], None],
        settle: Callable[[], object],
    ) -> None:
        self._entries = entries
        self._store = store
        self._settle = settle

    def __getitem__(self, key: str) -> CacheEntry:
        self._settle()
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
        """Remove every entry."""
        self._entries.clear()
