"""`TieredCache.cached`: a decorator that caches what a coroutine function returns."""

import functools
import inspect
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

from acgsperf.fingerprint import fingerprint

__all__ = ["cached_function", "key_maker"]

_R = TypeVar("_R")
_P = ParamSpec("_P")


class _GetOrLoad(Protocol):
    def __call__(
        self, key: str, loader: Callable[[str], Awaitable[Any]], *, ttl: float | None, tags: Sequence[str]
    ) -> Awaitable[Any]: ...


def cached_function(
    get_or_load: _GetOrLoad,
    function: Callable[_P, Coroutine[Any, Any, _R]],
    *,
    key: Callable[_P, str] | None,
    ttl: float | None,
    tags: Sequence[str] | Callable[_P, Sequence[str]],
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    """Return a coroutine function that calls `function` through `get_or_load`.

    Args:
        get_or_load: that of a cache.
        function: the function to cache.
        key: makes the key of a call from its arguments; None for `key_maker(function)`.
        ttl: passed to `get_or_load`.
        tags: the tags of every result, or a function that makes them from the arguments.

    Raises:
        TypeError: if `function` is not a coroutine function.
    """
    key_of = key_maker(function)
    if key is not None:
        key_of = key

    @functools.wraps(function)
    async def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        async def load(key: str) -> Any:
            return await function(*args, **kwargs)

        own_tags = tags(*args, **kwargs) if callable(tags) else tags
        result: Any = await get_or_load(key_of(*args, **kwargs), load, ttl=ttl, tags=own_tags)
        return result  # type: ignore[no-any-return]

    return call


def key_maker(function: Callable[..., Any]) -> Callable[..., str]:
    """Return a function that makes the key of a call: the function's name and the fingerprint of its arguments.

    Calls that bind the same arguments have the same key, whether they pass them by position or by name. For a method,
    instances that are equal share a key, in this process only: there is no way to tell whether they would be equal in
    another. A class counts by its name.

    Raises:
        TypeError: if `function` is not a coroutine function. The returned function raises it for arguments that are not
            JSON-like, and for a `self` that is not hashable or cannot be weakly referenced.
    """
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"cached() needs a coroutine function, got {function!r}")
    signature = inspect.signature(function)
    name: Final = f"{function.__module__}.{function.__qualname__}"
    first = next(iter(signature.parameters), None)
    owner: Final = first if first in ("self", "cls") else None
    instances: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def key_of(*args: Any, **kwargs: Any) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        if owner is not None:
            held = arguments[owner]
            if isinstance(held, type):
                arguments[owner] = f"{held.__module__}.{held.__qualname__}"
            else:
                arguments[owner] = instances.setdefault(held, uuid.uuid4().hex)
        return f"{name}:{fingerprint(arguments)}"

    return key_of
