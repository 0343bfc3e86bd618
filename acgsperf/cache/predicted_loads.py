"""Loads predicted keys that no tier has, with the loader of the call that requested them last."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Final

from acgsperf.cache.source import Source
from acgsperf.dispatch import LRUCache

__all__ = ["PredictedLoads"]

# How many keys one call of a loader gets.
_KEYS_PER_CALL: Final = 16
# The most keys that are loaded while none is requested. Each requested key allows one more.
_MOST_ALLOWED: Final = 64
_KNOWN_KEYS: Final = 10_000

_log: Final = logging.getLogger("acgsperf.cache")


class PredictedLoads:
    """Calls the loaders of `get_or_load_many` for predicted keys, in a task, one call at a time.

    A key is loaded with the loader and the options of the last call that requested it. At most as many keys are loaded
    as such calls have requested.

    Args:
        load: loads keys and stores them.
        ended: called with each key, and whether it was loaded.

    Attributes:
        loaded: the keys that were loaded.
    """

    def __init__(
        self, load: Callable[[Sequence[str], Source], Awaitable[object]], ended: Callable[[str, bool], object]
    ) -> None:
        self._load = load
        self._ended = ended
        self._sources: LRUCache[str, Source] = LRUCache(_KNOWN_KEYS)
        self._waiting: dict[str, Source] = {}
        self._allowed = 0
        self._task: asyncio.Task[None] | None = None
        self.loaded: int = 0

    def note(self, keys: Sequence[str], source: Source) -> None:
        """Remember the source of requested keys."""
        if source.for_many and not source.reload:
            for key in keys:
                self._sources.set(key, source)
            self._allowed = min(self._allowed + len(keys), _MOST_ALLOWED)

    def begin(self, key: str) -> bool:
        """Load a key soon; return whether it will be."""
        source = self._sources.get(key)
        if source is None or self._allowed == 0:
            return False
        self._allowed -= 1
        self._waiting[key] = source
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="acgsperf cache: predicted loads")
        return True

    async def _run(self) -> None:
        try:
            while self._waiting:
                loader = next(iter(self._waiting.values())).loader
                keys = [key for key, source in self._waiting.items() if source.loader == loader][:_KEYS_PER_CALL]
                source = [self._waiting.pop(key) for key in keys][-1]
                await self._load_keys(keys, source)
        finally:
            self._task = None

    async def _load_keys(self, keys: Sequence[str], source: Source) -> None:
        predicted = copy(source)
        predicted.predicted = True
        predicted.replaced = {}
        loaded = False
        try:
            await self._load(keys, predicted)
            loaded = True
            self.loaded += len(keys)
        # A caller that requests the keys gets its own error.
        except Exception as error:
            _log.debug("cache: %d predicted keys were not loaded: %r", len(keys), error)
        for key in keys:
            self._ended(key, loaded)

    async def close(self) -> None:
        """Stop loading."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
