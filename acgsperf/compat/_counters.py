"""Counters under their former names, read from where they are kept."""

import time
from collections.abc import Callable
from typing import Any

from acgsperf._native.types import HistogramSnapshot

__all__ = ["derived", "percentiles_ms", "seconds_per_call"]

_ROUNDS = 5
_CALLS = 200


class _Derived:
    """An attribute that is a figure kept elsewhere; setting it remembers by how much the two differ."""

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
    """A counter of a class: `read` takes the instance and returns the figure; the attribute may be set and added to."""
    return _Derived(read)


def percentiles_ms(latency: HistogramSnapshot) -> dict[str, float]:
    """A histogram in the form of the former figures."""
    return {
        "count": latency.count,
        "p50_ms": latency.p50 / 1e6,
        "p95_ms": latency.p95 / 1e6,
        "p99_ms": latency.p99 / 1e6,
    }


def seconds_per_call(function: Callable[[Any], object], argument: object) -> float:
    """What one call costs now: the best of a few short rounds, a fraction of a millisecond in all.

    For what is too quick to be timed call by call: reading a clock twice takes longer than the call itself.
    """
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(_CALLS):
            function(argument)
        best = min(best, time.perf_counter() - started)
    return best / _CALLS
