"""Estimates which keys of a cache are read most often, from samples of the reads."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from secrets import token_bytes
from typing import Any, Final

from acgsperf.cache.read_sample import ReadSample
from acgsperf.cache.tiered import TieredCache
from acgsperf.dashboard.snapshot import HotKey
from acgsperf.printable import printable

__all__ = ["HotKeys", "SpaceSaving"]

_COUNTERS: Final = 128
_SAMPLE: Final = 32
_PAUSE_S: Final = (0.05, 0.15)
# A read of a minute ago counts an eighth.
_HALF_LIFE_S: Final = 20.0
# How often the counts are reduced accordingly.
_FADE_S: Final = 1.0
# A key counted less often may be there by chance.
_LEAST: Final = 3
_LONGEST_KEY: Final = 120


class SpaceSaving:
    """Counts the most frequent of many keys in little memory (Metwally, Agrawal and El Abbadi 2005).

    A new key takes the place of the key with the lowest count, and inherits the count as its error. A key that is more
    frequent than one in `size` is always among the counted ones.

    Args:
        size: the number of counters.

    Attributes:
        total: the sum of all counts.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._counts: dict[str, float] = {}
        self._errors: dict[str, float] = {}
        self.total: float = 0.0

    def add(self, keys: Iterable[str]) -> None:
        """Count keys."""
        counts = self._counts
        for key in keys:
            self.total += 1
            if key in counts:
                counts[key] += 1
            elif len(counts) < self._size:
                counts[key], self._errors[key] = 1, 0
            else:
                rarest = min(counts, key=counts.__getitem__)
                inherited = counts.pop(rarest)
                del self._errors[rarest]
                counts[key], self._errors[key] = inherited + 1, inherited

    def fade(self, factor: float) -> None:
        """Multiply all counts by a factor below 1, so that keys that were frequent long ago are forgotten."""
        self.total *= factor
        for counts in (self._counts, self._errors):
            for key in counts:
                counts[key] *= factor

    def top(self, most: int) -> list[tuple[str, float, float]]:
        """Return the most frequent keys, each with its count and by how much that may be too high."""
        found = sorted(self._counts.items(), key=lambda item: -item[1])
        return [(key, count, self._errors[key]) for key, count in found[:most]]


class HotKeys:
    """Takes some 300 samples of the keys of a cache in each second, in bursts at random times.

    A read counts less and less from then on, and an eighth after one minute.

    Args:
        name: the name of the cache.
        cache: the cache.
        others: see `ReadSample`.
        show_keys: whether to return the keys themselves and not digests.
        uniform: returns a random number between two others.
        clock: returns the time, in seconds; it must not go back.
    """

    def __init__(
        self,
        name: str,
        cache: TieredCache[Any],
        *others: object,
        show_keys: bool,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._sample = ReadSample(cache, *others)
        self._sketch = SpaceSaving(_COUNTERS)
        self._shown = _clear if show_keys else _digests(token_bytes(16))
        self._uniform = uniform
        self._clock = clock
        self._faded_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take samples from now on, in the running event loop. Those before the last `stop` are forgotten."""
        if self._timer is None:
            self._sketch = SpaceSaving(_COUNTERS)
            self._faded_at = self._clock()
            self._turn()

    def stop(self) -> None:
        """Take no more samples."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sample.end()

    def top(self, most: int) -> list[HotKey]:
        """Return the keys that were read most often lately."""
        sketch = self._sketch
        return [
            HotKey(self._name, self._shown(key), float(f"{count / sketch.total:.3g}"), round(error / sketch.total, 4))
            for key, count, error in sketch.top(most)
            if count - error >= _LEAST
        ]

    def _turn(self) -> None:
        passed = self._clock() - self._faded_at
        if passed >= _FADE_S:
            self._faded_at += passed
            self._sketch.fade(0.5 ** (passed / _HALF_LIFE_S))
        self._sketch.add(self._sample.take(_SAMPLE))
        self._timer = asyncio.get_running_loop().call_later(self._uniform(*_PAUSE_S), self._turn)


def _clear(key: str) -> str:
    shown = key if len(key) <= _LONGEST_KEY else f"{key[: _LONGEST_KEY - 1]}…"
    return printable(shown)


def _digests(secret: bytes) -> Callable[[str], str]:
    """Return what makes digests. Without the secret, nobody can find a key by trying the digests of many."""

    def digest(key: str) -> str:
        return blake2b(key.encode(errors="surrogatepass"), digest_size=8, key=secret).hexdigest()

    return digest
