"""What loads have stored while other calls read the lower tiers. Such a call must not load the same key again."""

from collections.abc import Sequence
from typing import Final

from acgsperf.cache.ordering import Ordering
from acgsperf.tiers.base import Entry

__all__ = ["RecentLoads"]


class RecentLoads:
    """Keeps a loaded entry until the calls that were reading its key have ended.

    A call that finds no load in flight reads the lower tiers first. Another call may begin and end a load of the same
    key meanwhile, and a small L1 may have evicted the value again before the read ends.

    Args:
        ordering: tells which entries a write has superseded since.
    """

    def __init__(self, ordering: Ordering) -> None:
        self._ordering = ordering
        self._reads: Final[dict[str, int]] = {}
        # By key: what was loaded, and the number of the latest write then.
        self._entries: Final[dict[str, tuple[Entry, int]]] = {}

    def begin(self, keys: Sequence[str]) -> None:
        """Note that a call begins to read keys."""
        for key in keys:
            self._reads[key] = self._reads.get(key, 0) + 1

    def end(self, keys: Sequence[str]) -> None:
        """Note that this call has ended."""
        for key in keys:
            reads = self._reads.pop(key) - 1
            if reads:
                self._reads[key] = reads
            else:
                self._entries.pop(key, None)

    def add(self, key: str, entry: Entry) -> None:
        """Keep what a load has stored, if a call is reading its key."""
        if key in self._reads:
            self._entries[key] = entry, self._ordering.latest

    def get(self, key: str) -> Entry | None:
        """Return what was loaded since a call began to read its key; None if nothing was, or a write superseded it."""
        entry, number = self._entries.get(key, (None, 0))
        return entry if entry is not None and self._ordering.is_current(number, key, entry.tags) else None
