"""Counters under their former names that are derived from figures kept elsewhere."""

import time
from collections.abc import Callable
from typing import Any

from acgsperf._native.stats import HistogramSnapshot

__all__ = ["derived", "percentiles_ms", "seconds_per_call"]

_ROUNDS = 5
_CALLS = 200


class _Derived:
    """An attribute whose value is read elsewhere. Setting it stores the difference to that value."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self._difference = f"_{name.strip('_')}_difference"

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return self._read(instance) + vars(instance).get(self._difference, 0)

    def __set__(self, instance: object, value: float) -> None:
        vars(instance)[self._difference] = value - self._read(instance)


def derived(read: Callable[[Any], float]) -> Any:
    """Return a counter attribute for a class body. `read` takes the instance and returns the value.

    Code may set the attribute or add to it; later values continue from there.
    """
    return _Derived(read)


def percentiles_ms(latency: HistogramSnapshot) -> dict[str, float]:
    """Return the count and the percentiles of a histogram in milliseconds."""
    return {
        "count": latency.count,
        "p50_ms": latency.p50 / 1e6,
        "p95_ms": latency.p95 / 1e6,
        "p99_ms": latency.p99 / 1e6,
    }


def seconds_per_call(function: Callable[[Any], object], argument: object) -> float:
    """Measure the seconds that one call takes: the best of a few short rounds, in less than a millisecond.

    Use it for calls that are too fast to be timed one by one, because reading a clock twice takes longer than the call.
    """
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(_CALLS):
            function(argument)
        best = min(best, time.perf_counter() - started)
    return best / _CALLS
