"""`cached`: a decorator that caches what a coroutine function returns."""

import functools
import inspect
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from acgsperf._native.entry import Codec
from acgsperf.cache.annotations import codec_of_results
from acgsperf.cache.arguments import checked_tags, checked_ttl
from acgsperf.cache.call_keys import (
    CallKey,
    CallKeys,
    execution_of,
    is_coroutine_function,
    is_same_class,
    is_same_definition,
    name_of,
    takes_class,
)
from acgsperf.cache.l1 import MISSING
from acgsperf.cache.options import DEFAULT_TTL, EntryOptions, checked_options
from acgsperf.cache.results import Loaded
from acgsperf.cache.source import Source
from acgsperf.cache.types import Written
from acgsperf.cache.values import codec_of
from acgsperf.errors import CacheError

__all__ = ["BoundCachedFunction", "CachedFunction", "CachedMethod", "Decorator", "cached", "refuse_function"]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)
_S = TypeVar("_S")
_S_contra = TypeVar("_S_contra", contravariant=True)
_T = TypeVar("_T")


class ResultCache(Protocol):
    """A `TieredCache`, as `cached` uses it."""

    @property
    def namespace(self) -> str:
        """The namespace of the cache."""

    def get_local(self, key: str, default: Any, /) -> Any:
        """Return the value of a key in L1, or the default."""

    @property
    def _codec(self) -> Codec | None:
        """Packs the values of the cache's own type."""

    async def _get(self, key: str, default: Any, codec: Codec | None) -> Any:
        """Return the value of a key that L1 has missed."""

    async def delete(self, key: str) -> Written:
        """Remove a key."""

    async def _load(self, key: str, source: Source) -> Any:
        """Return the value of a key that L1 has missed."""

    def _options(self, options: EntryOptions | None, ttl: float | None) -> EntryOptions:
        """Return all options of a call."""


# The functions that are decorated for each cache, by their names.
_names: "weakref.WeakKeyDictionary[ResultCache, weakref.WeakValueDictionary[str, CachedFunction[Any, Any]]]"
_names = weakref.WeakKeyDictionary()
# The names of functions that were redefined while their former version was in use.
_redefined: "weakref.WeakKeyDictionary[ResultCache, set[str]]" = weakref.WeakKeyDictionary()
# The classes whose class methods are called in each cache, by their names.
_classes: "weakref.WeakKeyDictionary[ResultCache, weakref.WeakValueDictionary[str, type]]" = weakref.WeakKeyDictionary()


class _FunctionOfFirst(Protocol[_P, _S_contra, _Q, _R_co]):
    """A coroutine function with a positional parameter.

    The second overload divides the parameters into the first one and the others. `Concatenate` alone would lose the
    name of the first one.
    """

    @overload
    def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> Awaitable[_R_co]: ...
    @overload
    def __call__(self, first: _S_contra, /, *args: _Q.args, **kwargs: _Q.kwargs) -> Awaitable[_R_co]: ...


class Decorator(Protocol):
    """What `cached` returns."""

    @overload
    def __call__(self, function: _FunctionOfFirst[_P, _S, _Q, Loaded[_R]], /) -> "CachedMethod[_P, _R, _S, _Q]": ...
    @overload
    def __call__(
        self, function: _FunctionOfFirst[_P, _S, _Q, _R | Loaded[_R]], /
    ) -> "CachedMethod[_P, _R, _S, _Q]": ...
    @overload
    def __call__(self, function: Callable[_P, Awaitable[Loaded[_R]]], /) -> "CachedFunction[_P, _R]": ...
    @overload
    def __call__(self, function: Callable[_P, Awaitable[_R | Loaded[_R]]], /) -> "CachedFunction[_P, _R]": ...
    def __call__(self, function: Callable[_P, Awaitable[Any]], /) -> "CachedFunction[_P, Any]":
        """Return the function with its results cached."""


def cached(
    cache: ResultCache | None = None,
    *,
    key: Callable[..., str] | None = None,
    ttl: float | None = DEFAULT_TTL,
    tags: Sequence[str] | Callable[..., Sequence[str]] = (),
    value_type: Any = None,
    options: EntryOptions | None = None,
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
        value_type: the type of the results, as for `TieredCache`. With None (default), it is the cache's `value_type`,
            or else what the function's annotation says, if that is a type that can be stored.
        options: the options of the results; by default, those of the cache.

    Raises:
        TypeError: if the decorated object is not a coroutine function, `value_type` is not a type that can be stored,
            or `cached` has no parentheses. Without a `key`, a call raises it for arguments that are not JSON-like.
        ValueError: if another function with the same module and qualified name is cached in this cache without a `key`,
            and this one does not replace it after a reload of the module or in a notebook. A call of a class method
            raises it for another class of the same name.
    """
    if callable(cache):
        refuse_function(cache, "cached")

    def decorate(function: Any, /) -> Any:
        return CachedMethod(function, cache, key, ttl, tags, value_type, options)

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
        value_type: Any,
        options: EntryOptions | None,
    ) -> None:
        self._of_class = isinstance(function, classmethod)
        self._is_static = isinstance(function, staticmethod)
        if self._of_class or self._is_static:
            function = function.__func__  # type: ignore[attr-defined]
        if not is_coroutine_function(function):
            raise TypeError(f"cached() needs a coroutine function, got {function!r}")
        if key is not None and not callable(key):
            raise TypeError(f"key must be a function that returns a str, got {key!r:.100}")
        if ttl is not DEFAULT_TTL:
            checked_ttl(ttl)
        checked_options(options)
        functools.update_wrapper(self, function)
        self.__qualname__: str = getattr(function, "__qualname__", type(function).__qualname__)
        # With these, `inspect` treats the object as a coroutine function, as it does an AsyncMock.
        self.__name__: str = getattr(function, "__name__", type(function).__name__)
        self.__code__: Final = type(self).__call__.__code__
        self.__defaults__: None = None
        self.__kwdefaults__: None = None
        self._function = function
        # `classmethod` may be above `cached`.
        self._needs_class: Final = not self._of_class and takes_class(function)
        self._key = key
        self._keys: Final = CallKeys(function) if key is None else None
        self._execution: Final = execution_of(function)
        self._ttl = ttl
        self._options = options
        self._tags = tags if callable(tags) else checked_tags(tags)
        self._own_codec: Final = None if value_type is None else codec_of(value_type)
        self._annotated: Codec | None = None
        self._knows_annotated = False
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
            TypeError: if it is not a `TieredCache`.
            ValueError: if another function with the same module and qualified name is cached there without a `key`.
        """
        if not hasattr(type(cache), "get_or_load"):
            raise TypeError(f"cache must be a TieredCache, got {cache!r:.100}")
        if self._keys is not None:
            name, names = name_of(self._function), _names.setdefault(cache, weakref.WeakValueDictionary())
            other = names.get(name)
            redefined = _redefined.setdefault(cache, set())
            if other is not None and is_same_definition(other._function, self._function):
                self._keys.share(other._keys)
            elif other is None and name not in redefined:
                self._keys.share(None)
            elif other is None or other._execution.is_followed_by(self._execution):
                # The results of the former version must not be those of the new one.
                self._keys.separate()
                redefined.add(name)
            else:
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
            options = cache._options(self._options, self._ttl)
            source = Source(load, options, tags, key.local, reload, self._codec_in(cache))
            source.for_many = False
            result = await cache._load(key.key, source)
        return result  # type: ignore[no-any-return]

    async def _invalidate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_method: bool) -> Written:
        return await self._bound_cache().delete(self._key_of(args, kwargs, is_method).key)

    async def _peek(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_method: bool) -> _R | None:
        cache, key = self._bound_cache(), self._key_of(args, kwargs, is_method).key
        result: Any = cache.get_local(key, MISSING)
        if result is MISSING:
            result = await cache._get(key, None, self._codec_in(cache))
        return result  # type: ignore[no-any-return]

    def _key_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_method: bool) -> CallKey:
        if self._needs_class and not (args and isinstance(args[0], type)):
            # From Python 3.13 on, `classmethod` passes the class to a call of the function, and not to `key`.
            raise TypeError(f"{name_of(self._function)} needs its class: put @cached() above @classmethod")
        if self._keys is not None:
            key = self._keys.of(args, kwargs, is_method=is_method)
            if key.of_class is not None and self.cache is not None:
                self._claim_name(self.cache, key.of_class)
            return key
        assert self._key is not None
        return CallKey(self._key(*args, **kwargs), False)

    def _claim_name(self, cache: ResultCache, of_class: type) -> None:
        """Raise ValueError if another class of the same name has class methods in a cache."""
        name = f"{of_class.__module__}.{of_class.__qualname__}"
        classes = _classes.setdefault(cache, weakref.WeakValueDictionary())
        if not is_same_class(classes.setdefault(name, of_class), of_class):
            raise ValueError(
                f"two classes named {name} have a class method {self.__name__} in {cache.namespace!r}, and would share "
                "its results: pass `key` to cached()"
            )

    def _codec_in(self, cache: ResultCache) -> Codec | None:
        """Return what packs the results."""
        if self._own_codec is not None or cache._codec is not None:
            return self._own_codec or cache._codec
        if not self._knows_annotated:
            # At the first call, because the annotation may name what is defined after the function.
            self._annotated, self._knows_annotated = codec_of_results(self._function), True
        return self._annotated

    def _bound_cache(self) -> ResultCache:
        if self.cache is None:
            raise CacheError(f"{name_of(self._function)} has no cache: call its bind(cache) first")
        return self.cache


class CachedMethod(CachedFunction[_P, _R], Generic[_P, _R, _S, _Q]):
    """A `CachedFunction` that can be a method, a class method or a static method, because it has a first parameter.

    `_S` is the type of the first parameter, and `_Q` are the other parameters. Type checkers see neither `classmethod`
    nor `staticmethod`, so the type of the first parameter says what the function is.
    """

    # A class method. `cls` has a type such as `type[Repo]`.
    @overload
    def __get__(
        self: "CachedMethod[_P, _R, type[_T], _Q]", instance: _T | None, owner: type[_T]
    ) -> "BoundCachedFunction[_Q, _R]": ...
    # A method or a static method, called on the class.
    @overload
    def __get__(self, instance: None, owner: type) -> "CachedFunction[_P, _R]": ...
    # A method.
    @overload
    def __get__(self, instance: _S, owner: type | None = None) -> "BoundCachedFunction[_Q, _R]": ...
    # A static method, called on an instance.
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> "CachedFunction[_P, _R]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self._is_static:
            return self
        if self._of_class:
            instance = owner if owner is not None else type(instance)
        return self if instance is None else BoundCachedFunction(self, instance)


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
