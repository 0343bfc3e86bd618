"""`RequestCounters` in pure Python. It behaves as the class of `_core`, which documents it; the two change together."""

from collections.abc import Callable
from operator import attrgetter, index
from typing import Any, Final, Self

from acgsperf._native.arguments import checked_latency_s
from acgsperf._native.atomic import FinalType, atomic
from acgsperf._native.histogram_py import LatencyHistogram

_INFINITY: Final = float("inf")


def _counter(slot: str, convert: Callable[[Any], float]) -> property:
    def set_converted(counters: object, value: object) -> None:
        setattr(counters, slot, convert(value))

    return property(attrgetter(slot), set_converted)


class RequestCounters(FinalType):
    """Counts requests and their response times. All attributes but `latency_ns` can be set."""

    __slots__ = (
        "__weakref__",
        "_failures",
        "_latency_ns",
        "_longest_s",
        "_requests",
        "_shortest_s",
        "_successes",
        "_total_s",
    )

    _requests: int
    _successes: int
    _failures: int
    _total_s: float
    _shortest_s: float
    _longest_s: float
    _latency_ns: LatencyHistogram

    total_requests = _counter("_requests", index)
    successful_requests = _counter("_successes", index)
    failed_requests = _counter("_failures", index)
    total_response_time = _counter("_total_s", checked_latency_s)
    min_response_time = _counter("_shortest_s", checked_latency_s)
    max_response_time = _counter("_longest_s", checked_latency_s)

    def __new__(cls) -> Self:
        self = super().__new__(cls)
        self._requests = self._successes = self._failures = 0
        self._total_s = self._longest_s = 0.0
        self._shortest_s = _INFINITY
        self._latency_ns = LatencyHistogram()
        return self

    @property
    def latency_ns(self) -> LatencyHistogram:
        """The response times."""
        return self._latency_ns

    def add_request(self, response_time: float, success: bool = True) -> None:
        """Count a request that took `response_time` seconds."""
        seconds, failed = checked_latency_s(response_time), not success
        ns, longest = seconds * 1e9, self._latency_ns.highest_ns
        if not 0 <= ns <= longest:
            ns = longest if ns > 0 else 0
        self._count(seconds, failed)
        self._latency_ns.record(int(ns))

    @atomic
    def _count(self, seconds: float, failed: bool) -> None:
        self._requests += 1
        self._failures += failed
        self._successes += 1 - failed
        self._total_s += seconds
        if seconds < self._shortest_s:
            self._shortest_s = seconds
        if seconds > self._longest_s:
            self._longest_s = seconds
