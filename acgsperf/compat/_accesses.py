"""The access times of keys, in a plain dict of bounded size that callers may read and write."""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from acgsperf.compat._l1 import CacheEntry
from acgsperf.dispatch import RecordingCache

__all__ = ["AccessLog"]

MAX_KEYS: Final = 10_000
MAX_TIMES_PER_KEY: Final = 256


class _Recorded(float):
    """A time that `AccessLog` has recorded. A time that a caller puts into the dict is another float."""

    __slots__ = ()


class AccessLog:
    """The latest 256 access times of each of the 10,000 keys that were accessed last.

    L1 records the keys of its hits without their times, because reading a clock would make a hit a third slower. Slower
    operations call `stamp`, which takes those hits from L1 and gives them the current time. Of the hits between two
    stamps, the latest 4,096 count.

    Args:
        entries: the L1. `stamp` also updates the `access_count` and `last_accessed` of its entries.
    """

    def __init__(self, entries: RecordingCache[str, CacheEntry]) -> None:
        self._entries = entries
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def stamp(self) -> dict[str, list[float]]:
        """Give the hits without a time the current time; return key -> wall-clock times, the oldest first."""
        if hits := self._entries.take_hits():
            self._add(hits)
        return self._times

    def record(self, key: str) -> None:
        """Record an access now."""
        self._add([*self._entries.take_hits(), key])

    def replace(self, times: Mapping[str, Iterable[float]]) -> None:
        """Replace all access times with those of a caller."""
        self._entries.take_hits()
        self._times = OrderedDict((key, list(of_key)[-MAX_TIMES_PER_KEY:]) for key, of_key in times.items())
        while len(self._times) > MAX_KEYS:
            self._times.popitem(last=False)

    def times_of_callers(self, key: str) -> list[float]:
        """Return the times of a key that callers have put into the dict."""
        return [at for at in self.stamp().get(key, ()) if type(at) is not _Recorded]

    def clear(self) -> None:
        """Remove all accesses."""
        self._entries.take_hits()
        self._times.clear()

    def _add(self, keys: list[str]) -> None:
        now = _Recorded(time.time())
        for key, count in Counter(keys).items():
            entry = self._entries.peek(key)
            if entry is not None:
                entry.access_count += count
                entry.last_accessed = now
            times = self._times.setdefault(key, [])
            times += [now] * min(count, MAX_TIMES_PER_KEY)
            del times[:-MAX_TIMES_PER_KEY]
            self._times.move_to_end(key)
            if len(self._times) > MAX_KEYS:
                self._times.popitem(last=False)
