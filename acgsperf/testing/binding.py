"""Lets cached functions use the cache of a test."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from acgsperf.cache import CachedFunction, TieredCache

__all__ = ["bound"]


@contextmanager
def bound(cache: TieredCache[Any], *functions: CachedFunction[..., Any]) -> Iterator[None]:
    """Let cached functions use another cache in a `with` block. After it, each has its former cache again, or none.

    Code that uses the cache through a variable, such as `await cache.clear()`, is not changed.

    Args:
        cache: what the functions use in the block. It is not opened or closed.
        functions: functions that `cached` has returned. For a method, pass that of the class: `Shop.product`.

    Raises:
        TypeError: if one of the functions is not cached.
        ValueError: as `CachedFunction.bind`.
    """
    for function in functions:
        if not isinstance(function, CachedFunction):
            raise TypeError(f"functions must be made by cached(), got {function!r:.100}")
    with ExitStack() as stack:
        for function in functions:
            stack.callback(setattr, function, "cache", function.cache)
            function.bind(cache)
        yield
