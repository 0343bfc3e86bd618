"""`get_or_load` for a caller that has already looked in L1: a second look-up would count as another miss."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from acgsperf.cache.source import Source

if TYPE_CHECKING:
    from acgsperf.cache.tiered import TieredCache

__all__ = ["load_missed"]


async def load_missed(cache: "TieredCache[Any]", key: str, loader: Callable[[str], Awaitable[Any]]) -> Any:
    """Return the value of a key that `cache.get_local` has just missed, without `await` in between.

    It does what `cache.get_or_load(key, loader)` does after a miss in L1, and raises the same errors.
    """
    cache._require_open()
    return (await cache._loading.load((key,), Source.of_one(key, loader, cache.options, (), cache._codec)))[key]
