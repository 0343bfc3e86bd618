"""Reads the keys that are likely to be requested next from Redis, before they are requested."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from acgsperf._native.predicting import SHARE
from acgsperf._native.prediction_stats import PredictionStats
from acgsperf.cache.ordering import Ordering
from acgsperf.compat._l1 import CacheEntry
from acgsperf.dispatch import Predictor, RecordingCache

__all__ = ["ReadAhead"]

# No process tells this one that it has changed a value in Redis. So a value is used for this long after it was read.
_HELD_S: Final = 1.0
_MOST_HELD: Final = 1_000
# 512 KiB.
_TABLE_SIZE: Final = 16_384


class ReadAhead:
    """Learns which keys are read from Redis after which, and reads them in a task.

    Args:
        l1: keys in it are not read.
        ordering: knows which keys were written.
    """

    def __init__(self, l1: RecordingCache[str, CacheEntry], ordering: Ordering) -> None:
        self._l1 = l1
        self._ordering = ordering
        self._predictor: Final = Predictor(max(1, min(int(SHARE * l1.maxsize), _MOST_HELD)), table_size=_TABLE_SIZE)
        self._task: asyncio.Task[None] | None = None

    def stats(self) -> PredictionStats:
        """Return the counts so far."""
        return self._predictor.stats()

    def request(self, key: str, read: Callable[[str], Awaitable[Any]]) -> Any:
        """Return the value of a key that L1 has missed, if it was read ahead; None if the caller must read it.

        Args:
            key: the key.
            read: reads a key from Redis; returns None if there is no value.
        """
        if type(key) is not str:
            return None
        found = self._predictor.peek(key)
        value = None
        if found is not None:
            value, began_at, read_at = found
            if time.monotonic() - read_at > _HELD_S or not self._ordering.is_current(began_at, key):
                value = None
                self._predictor.refuse(key)
        # Also if there is no value: then it is late.
        self._predictor.take(key)
        wanted = self._predictor.next(key, self._l1, self._l1.requests, value is not None)
        if wanted:
            self._start(wanted, read)
        return value

    def _start(self, keys: list[str], read: Callable[[str], Awaitable[Any]]) -> None:
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            self._task = asyncio.create_task(self._read(keys, read), name="acgsperf: read ahead")
            return
        # More than one read at a time would delay requests.
        for key in keys:
            self._predictor.discard(key)

    async def _read(self, keys: Iterable[str], read: Callable[[str], Awaitable[Any]]) -> None:
        for key in keys:
            began_at = self._ordering.latest
            value = await read(key)
            if value is None or not self._ordering.is_current(began_at, key):
                self._predictor.fail(key)
            else:
                self._predictor.store(key, (value, began_at, time.monotonic()))

    async def close(self) -> None:
        """Stop reading, and drop what is held. What was learned stays."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        self._predictor.clear()
