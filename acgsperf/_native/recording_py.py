"""`RecordingCache` in pure Python. It behaves as the class of `_core`, which documents it; the two change together."""

import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self

from acgsperf._native.atomic import FinalType
from acgsperf._native.bounded_py import BoundedCache
from acgsperf._native.lru_table_py import Entry
from acgsperf._native.types import EvictionReason

_RECORDED: Final = 4_096


class RecordingCache(BoundedCache, FinalType):
    """An `LRUCache` that also records which keys were read."""

    __slots__ = ("_recorded",)

    _recorded: deque[Any]

    # Not __init__: calling that a second time must not change the object.
    def __new__(
        cls,
        maxsize: int | None = None,
        ttl: float | None = None,
        *,
        maxweight: int | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        clock: Callable[[], float] | None = None,
        on_evict: Callable[[Any, Any, EvictionReason], object] | None = None,
    ) -> Self:
        self = cls._create(maxsize, ttl, maxweight, weigher, clock, on_evict, False)
        self._recorded = deque(maxlen=_RECORDED)
        return self

    def _used(self, entry: Entry) -> None:
        # Not the key object of the caller, which may be another one and would stay in memory.
        self._recorded.append(entry.key)

    def take_hits(self) -> list[Any]:
        """Return a list of the keys of the hits since the last call, at most the latest 4,096, the oldest first."""
        recorded, keys = self._recorded, []
        # Not more than there are now, because other threads may add as fast as this one takes.
        for _ in range(len(recorded)):
            try:
                keys.append(recorded.popleft())
            except IndexError:
                break
        return keys

    def _kind(self) -> str:
        return "LRUCache"

    def __sizeof__(self) -> int:
        return super().__sizeof__() + sys.getsizeof(self._recorded)
