"""The common read of a lower tier in pure Python: the twin of `read_path`."""

from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

__all__ = ["IMPLEMENTATION", "ReadPath"]

IMPLEMENTATION: Final = "python"


class _Hits(Protocol):
    def get(self, key: str, default: int, /) -> int: ...
    def set(self, key: str, value: int) -> None: ...


class _Promotion(Protocol):
    threshold: int
    hits: _Hits


class ReadPath:
    """What happens before and after the `await` of a common read: one that a lower tier answers with a fresh entry.

    If `begin` or `end` finds that a read is not common, it does nothing, and `Lookup` answers the read.

    Args:
        held: collections of the keys that this process holds besides the `LRUCache`. A read of one of them is not
            common.
        start: starts a read of the first tier, and returns a future; None if the read is not common.
        promotion: has `hits`, a cache of the number of hits by key, and `threshold`. The hit that reaches the threshold
            is not common.
        clock: the clock of the entries.

    Attributes:
        enabled: False makes every read uncommon.
    """

    __slots__ = ("_clock", "_held", "_hits", "_promotion", "_start", "enabled")

    def __init__(
        self,
        held: "tuple[Collection[str], ...]",
        start: Callable[[str], Any],
        promotion: _Promotion,
        clock: Callable[[], float],
    ) -> None:
        self.enabled = False
        self._held = held
        self._start = start
        self._hits = promotion.hits
        self._promotion = promotion
        self._clock = clock

    def begin(self, key: object, /) -> Any:
        """Start the read of a key, and return its future; None if the read is not common, and nothing was done."""
        if not self.enabled or type(key) is not str:
            return None
        for held in self._held:
            if held and key in held:
                return None
        return self._start(key)

    def end(self, key: str, entry: Any, /) -> bool:
        """Count a hit, and return whether the entry is the answer; if not, nothing was done."""
        if entry is None or entry.negative:
            return False
        fresh_until = entry.fresh_until
        if fresh_until is not None and self._clock() >= fresh_until:
            return False
        hits = self._hits.get(key, 0) + 1
        if hits >= self._promotion.threshold:
            return False
        self._hits.set(key, hits)
        return True
