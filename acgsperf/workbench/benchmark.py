"""Times single calls by hand."""

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from acgsperf.dispatch import LatencyHistogram

__all__ = ["PerformanceBenchmark"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class PerformanceBenchmark:
    """Records how long calls take, including those that raise. Every figure includes the time of reading the clock."""

    def __init__(self) -> None:
        self._latency = LatencyHistogram()

    def measure(self, func: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function and return its result."""
        with self._latency.time():
            return func(*args, **kwargs)

    async def measure_async(self, awaitable: Awaitable[_T]) -> _T:
        """Await an awaitable and return its result."""
        with self._latency.time():
            return await awaitable

    def get_statistics(self) -> dict[str, Any]:
        """`count` and the usual figures in milliseconds, accurate to 0.1 %; {} before the first measurement."""
        figures = self._latency.snapshot()
        if not figures.count:
            return {}
        return {
            "count": figures.count,
            "min_ms": figures.min / 1e6,
            "max_ms": figures.max / 1e6,
            "mean_ms": figures.mean / 1e6,
            "median_ms": figures.p50 / 1e6,
            "p95_ms": figures.p95 / 1e6,
            "p99_ms": figures.p99 / 1e6,
        }

    def reset(self) -> None:
        """Discard all measurements."""
        self._latency.reset()
