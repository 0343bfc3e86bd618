"""When keys were accessed, in a plain dict of bounded size that callers may read and write."""

import time
from collections import Counter, OrderedDict, deque
from typing import Final

from acgsperf.compat._l1 import CacheEntry
from acgsperf.dispatch import LRUCache

__all__ = ["AccessLog"]

KEYS: Final = 10_000
TIMES_A_KEY: Final = 256
_UNSTAMPED: Final = 4_096


class AccessLog:
    """The access times of the 10,000 keys that were accessed last, the latest 256 of each.

    A hit in memory is one append to `unstamped`: reading a clock would cost a third of it. Those hits get their time
    from `stamp`, which everything calls that takes longer anyway; of hits between two stamps the latest 4,096 count.

    Args:
        entries: whose `access_count` and `last_accessed` are kept as well.
    """

    def __init__(self, entries: LRUCache[str, CacheEntry]) -> None:
        self.unstamped: deque[str] = deque(maxlen=_UNSTAMPED)
        self._entries = entries
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def stamp(self) -> dict[str, list[float]]:
        """Give every access that has no time yet the present one; key -> wall-clock times, the oldest first."""
        if self.unstamped:
            now = time.time()
            counts = Counter(self.unstamped)
            self.unstamped.clear()
            for key, count in counts.items():
                self._add(key, count, now)
        return self._times

    def record(self, key: str) -> None:
        """An access now, after all before it."""
        self.unstamped.append(key)
        self.stamp()

    def clear(self) -> None:
        """Forget every access."""
        self.unstamped.clear()
        self._times.clear()

    def _add(self, key: str, count: int, now: float) -> None:
        entry = self._entries.peek(key)
        if entry is not None:
            entry.access_count += count
            entry.last_accessed = now
        times = self._times.setdefault(key, [])
        times += [now] * min(count, TIMES_A_KEY)
        del times[:-TIMES_A_KEY]
        self._times.move_to_end(key)
        if len(self._times) > KEYS:
            self._times.popitem(last=False)
