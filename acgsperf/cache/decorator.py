"""`cached`: a decorator that caches what a coroutine function returns."""

import functools
import inspect
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Concatenate, Final, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from acgsperf.cache.arguments import checked_tags
from acgsperf.cache.call_keys import CallKey, CallKeys, is_coroutine_function, is_same_definition, name_of
from acgsperf.cache.l1 import MISSING
from acgsperf.cache.source import Source
from acgsperf.cache.types import Written
from acgsperf.errors import CacheError

__all__ = ["DEFAULT_TTL", "BoundCachedFunction", "CachedFunction", "Decorator", "cached", "refuse_function"]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_S = TypeVar("_S")

# Stands for the cache's own ttl when a call passes none: None means that a value does not expire.
DEFAULT_TTL: Final[Any] = object()


class ResultCache(Protocol):
    """A `TieredCache`, as `cached` uses it."""

    @property
    def namespace(self) -> str:
        """The namespace of the cache."""

    def get_local(self, key: str, default: Any, /) -> Any:
        """Return the value of a key in L1, or the default."""

    async def get(self, key: str) -> Any:
        """Return the value of a key."""

    async def delete(self, key: str) -> Written:
        """Remove a key."""

    async def _load(self, key: str, source: Source) -> Any:
        """Return the value of a key that L1 has missed."""

    def _ttl(self, ttl: float | None) -> float | None:
        """Return the ttl of a call in seconds."""


# The functions that are decorated for each cache, by their names.
_names: "weakref.WeakKeyDictionary[ResultCache, weakref.WeakValueDictionary[str, CachedFunction[Any, Any]]]"
_names = weakref.WeakKeyDictionary()


class Decorator(Protocol):
    """What `cached` returns."""

    def __call__(self, function: Callable[_P, Awaitable[_R]], /) -> "CachedFunction[_P, _R]":
        """Return the function with its results cached."""


def cached(
    cache: ResultCache | None = None,
    *,
    key: Callable[..., str] | None = None,
    ttl: float | None = DEFAULT_TTL,
    tags: Sequence[str] | Callable[..., Sequence[str]] = (),
) -> Decorator:
    """Decorate a coroutine function or method: calls with the same arguments share one cached result.

    Without a `key`, instances that are not equal do not share the results of a method. Such results stay in L1, because
    no other process could find them.

    Args:
        cache: where the results are. With None (default), call `bind` of the decorated function before the first call.
        key: makes the key of a call from its arguments, `self` included. By default, the key is the function's name and
            the `fingerprint` of its arguments.
        ttl: as for `TieredCache.set`; by default, that of the cache.
        tags: the tags of every result, or a function that makes them from the arguments, `self` included.

    Raises:
        TypeError: if the decorated object is not a coroutine function, or `cached` has no parentheses. Without a `key`,
            a call raises it for arguments that are not JSON-like.
        ValueError: if another function with the same module and qualified name is cached in this cache without a `key`.
    """
    if callable(cache):
        refuse_function(cache, "cached")

    def decorate(function: Any, /) -> Any:
        return CachedFunction(function, cache, key, ttl, tags)

    return decorate


def refuse_function(function: object, name: str) -> NoReturn:
    """Raise the error for a decorator that was used without parentheses."""
    raise TypeError(f"{name} must be called before it decorates {function!r:.100}: write @{name}()")


class CachedFunction(Generic[_P, _R]):
    """A coroutine function whose results are cached; see `cached`. Its calls take the function's own arguments.

    Attributes:
        cache: where the results are; None until `bind`.
    """

    cache: ResultCache | None

    def __init__(
        self,
        function: Callable[_P, Awaitable[_R]],
        cache: ResultCache | None,
        key: Callable[..., str] | None,
        ttl: float | None,
        tags: Sequence[str] | Callable[..., Sequence[str]],
    ) -> None:
        self._of_class = isinstance(function, classmethod)
        self._is_static = isinstance(function, staticmethod)
        if self._of_class or self._is_static:
            function = function.__func__  # type: ignore[attr-defined]
        if not is_coroutine_function(function):
            raise TypeError(f"cached() needs a coroutine function, got {function!r}")
        functools.update_wrapper(self, function)
        self.__qualname__: str = getattr(function, "__qualname__", type(function).__qualname__)
        # With these, `inspect` treats the object as a coroutine function, as it does an AsyncMock.
        self.__name__: str = getattr(function, "__name__", type(function).__name__)
        self.__code__: Final = type(self).__call__.__code__
        self.__defaults__: None = None
        self.__kwdefaults__: None = None
        self._function = function
        self._key = key
        self._keys: Final = CallKeys(function) if key is None else None
        self._ttl = ttl
        self._tags = tags if callable(tags) else checked_tags(tags)
        self.cache = None
        if cache is not None:
            self.bind(cache)

    def __repr__(self) -> str:
        return f"<cached {name_of(self._function)}>"

    def __reduce__(self) -> str:
        # As a function, it is pickled by its name.
        return self.__qualname__

    def bind(self, cache: ResultCache) -> None:
        """Use a cache from now on, for a function that was decorated before the cache existed.

        Raises:
            ValueError: if another function with the same module and qualified name is cached there without a `key`.
        """
        if self._keys is not None:
            name, names = name_of(self._function), _names.setdefault(cache, weakref.WeakValueDictionary())
            other = names.get(name)
            if other is not None and not is_same_definition(other._function, self._function):
                raise ValueError(
                    f"two functions named {name} are cached in {cache.namespace!r}, and would share their results: "
                    "pass `key` to cached()"
                )
            names[name] = self
        self.cache = cache

    async def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return the cached result, or else call the function."""
        return await self._load(args, kwargs, False)

    def key(self, /, *args: _P.args, **kwargs: _P.kwargs) -> str:
        """Return the key of a call."""
        return self._key_of(args, kwargs, False).key

    async def invalidate(self, /, *args: _P.args, **kwargs: _P.kwargs) -> Written:
        """Remove the result of a call, as `TieredCache.delete`."""
        return await self._invalidate(args, kwargs, False)

    async def refresh(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the function now, and replace the cached result. If the function fails, the former result stays."""
        return await self._load(args, kwargs, False, reload=True)

    async def peek(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        """Return the cached result of a call; None if no tier has it. The function is not called."""
        return await self._peek(args, kwargs, False)

    @overload
    def __get__(self, instance: None, owner: type) -> "CachedFunction[_P, _R]": ...
    # A class method. Called on its class, it has the same type as a method: type checkers cannot tell these two apart.
    @overload
    def __get__(
        self: "CachedFunction[Concatenate[type[_S], _Q], _R]", instance: _S, owner: type[_S]
    ) -> "BoundCachedFunction[_Q, _R]": ...
    @overload
    def __get__(
        self: "CachedFunction[Concatenate[_S, _Q], _R]", instance: _S, owner: type | None = None
    ) -> "BoundCachedFunction[_Q, _R]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self._is_static:
            return self
        if self._of_class:
            instance = owner if owner is not None else type(instance)
        return self if instance is None else BoundCachedFunction(self, instance)

    async def _load(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_method: bool, reload: bool = False
    ) -> _R:
        async def load(keys: list[str]) -> dict[str, Any]:
            return {keys[0]: await self._function(*args, **kwargs)}

        cache = self._bound_cache()
        key = self._key_of(args, kwargs, is_method)
        result: Any = MISSING if reload else cache.get_local(key.key, MISSING)
        if result is MISSING:
            tags = checked_tags(self._tags(*args, **kwargs)) if callable(self._tags) else self._tags
            result = await cache._load(key.key, Source(load, cache._ttl(self._ttl), tags, key.local, reload))
        return result  # type: ignore[no-any-return]

    async def _invalidate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_method: bool) -> Written:
        return await self._bound_cache().delete(self._key_of(args, kwargs, is_method).key)

    async def _peek(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_method: bool) -> _R | None:
        result: _R | None = await self._bound_cache().get(self._key_of(args, kwargs, is_method).key)
        return result

    def _key_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_method: bool) -> CallKey:
        if self._keys is not None:
            return self._keys.of(args, kwargs, is_method=is_method)
        assert self._key is not None
        return CallKey(self._key(*args, **kwargs), False)

    def _bound_cache(self) -> ResultCache:
        if self.cache is None:
            raise CacheError(f"{name_of(self._function)} has no cache: call its bind(cache) first")
        return self.cache


class BoundCachedFunction(Generic[_P, _R]):
    """A `CachedFunction` as a method of an object. Its calls take the arguments without `self`."""

    __slots__ = ("__self__", "__wrapped__")

    def __init__(self, function: CachedFunction[Any, _R], owner: object) -> None:
        self.__wrapped__: Final = function
        self.__self__: Final = owner

    def __repr__(self) -> str:
        return f"<bound {self.__wrapped__!r} of {self.__self__!r}>"

    def __getattr__(self, name: str) -> Any:
        # The name and the docstring, for example.
        return getattr(self.__wrapped__, name)

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.__wrapped__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    async def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return the cached result, or else call the method."""
        return await self.__wrapped__._load((self.__self__, *args), kwargs, True)

    def key(self, /, *args: _P.args, **kwargs: _P.kwargs) -> str:
        """See `CachedFunction.key`."""
        return self.__wrapped__._key_of((self.__self__, *args), kwargs, True).key

    async def invalidate(self, /, *args: _P.args, **kwargs: _P.kwargs) -> Written:
        """See `CachedFunction.invalidate`."""
        return await self.__wrapped__._invalidate((self.__self__, *args), kwargs, True)

    async def refresh(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """See `CachedFunction.refresh`."""
        return await self.__wrapped__._load((self.__self__, *args), kwargs, True, reload=True)

    async def peek(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        """See `CachedFunction.peek`."""
        return await self.__wrapped__._peek((self.__self__, *args), kwargs, True)
