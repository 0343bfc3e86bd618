"""Where the values of a call come from when the cache has none."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

__all__ = ["Source"]


class Source:
    """The loader of a call, and how its values are stored.

    Args:
        loader: called with the missing keys; returns the values that it has.
        ttl: the ttl of the entries, in seconds; None for no expiration.
        tags: the tags of the entries.
        local: whether only L1 keeps the entries.
        reload: whether the loader is called even if the tiers have a fresh value.
    """

    __slots__ = ("loader", "local", "reload", "tags", "ttl")

    def __init__(
        self,
        loader: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
        ttl: float | None,
        tags: tuple[str, ...],
        local: bool = False,
        reload: bool = False,
    ) -> None:
        self.loader: Final = loader
        self.ttl: Final = ttl
        self.tags: Final = tags
        self.local: Final = local
        self.reload: Final = reload

    @classmethod
    def of_one(
        cls, key: str, loader: Callable[[str], Awaitable[Any]], ttl: float | None, tags: tuple[str, ...]
    ) -> "Source":
        """Return the source for a loader that is called with one key."""

        async def load(keys: list[str]) -> dict[str, Any]:
            value = loader(key)
            if not inspect.isawaitable(value):
                raise TypeError(f"loader must be a coroutine function, but it returned {type(value).__name__}")
            return {key: await value}

        return cls(load, ttl, tags)
