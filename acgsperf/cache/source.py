"""Where the values of a call come from when the cache has none."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import FunctionType
from typing import Any, Final

from acgsperf._native.entry import Codec, Entry
from acgsperf.cache.options import EntryOptions

__all__ = ["Source"]

_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Source:
    """The loader of one call, and how its values are stored.

    Args:
        loader: called with the missing keys; returns the values that it has. With a second parameter, it also gets what
            the values replace, by key.
        options: all options of the entries.
        tags: the tags of the entries.
        local: whether only L1 keeps the entries.
        reload: whether the loader is called even if the tiers have a fresh value.
        codec: packs and opens the values; None for JSON-like values.

    Attributes:
        loader: the loader.
        for_many: whether the loader loads any keys; otherwise only those of its call.
        predicted: whether nobody has requested the keys yet.
        takes_previous: whether the loader has a second parameter.
        replaced: the entries that the values replace, as far as they are known.
    """

    __slots__ = (
        "codec",
        "for_many",
        "loader",
        "local",
        "options",
        "predicted",
        "reload",
        "replaced",
        "tags",
        "takes_previous",
    )

    def __init__(
        self,
        loader: Callable[..., Awaitable[Mapping[str, Any]]],
        options: EntryOptions,
        tags: tuple[str, ...],
        local: bool = False,
        reload: bool = False,
        codec: Codec | None = None,
    ) -> None:
        self.loader: Final = loader
        self.for_many: bool = True
        self.predicted: bool = False
        self.options: Final = options
        self.tags: Final = tags
        self.local: Final = local
        self.reload: Final = reload
        self.codec: Final = codec
        self.takes_previous: bool = _takes_previous(loader)
        self.replaced: dict[str, Entry] = {}

    @classmethod
    def of_one(
        cls,
        key: str,
        loader: Callable[..., Awaitable[Any]],
        options: EntryOptions,
        tags: tuple[str, ...],
        codec: Codec | None,
        reload: bool = False,
    ) -> "Source":
        """Return the source for a loader that is called with one key and, with a second parameter, what it replaces."""

        async def load(keys: list[str], previous: Mapping[str, Any] | None = None) -> dict[str, Any]:
            value = loader(key) if previous is None else loader(key, previous.get(key))
            if not inspect.isawaitable(value):
                raise TypeError(f"loader must be a coroutine function, but it returned {type(value).__name__}")
            return {key: await value}

        source = cls(load, options, tags, codec=codec, reload=reload)
        source.for_many = False
        source.takes_previous = _takes_previous(loader)
        return source


def _takes_previous(loader: Callable[..., Any]) -> bool:
    """Return whether a loader has a second parameter, by position and without a default."""
    if type(loader) is FunctionType:
        # This is much faster than its signature.
        return loader.__code__.co_argcount - len(loader.__defaults__ or ()) >= 2
    try:
        parameters = inspect.signature(loader, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(one.kind in _POSITIONAL and one.default is one.empty for one in parameters) >= 2
