"""`LRUCache` in pure Python. It behaves as the class of `_core`, which documents it; the two change together."""

from collections.abc import Callable
from typing import Any, Self

from acgsperf._native.atomic import FinalType
from acgsperf._native.bounded_py import BoundedCache
from acgsperf._native.types import EvictionReason


class LRUCache(BoundedCache, FinalType):
    """A mapping of bounded size that evicts the least recently used entry, and removes expired ones."""

    __slots__ = ()

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
        return cls._create(maxsize, ttl, maxweight, weigher, clock, on_evict, False)
