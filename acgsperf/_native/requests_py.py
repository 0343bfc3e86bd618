"""`RequestCounters` in pure Python. It behaves as the class of `_core`, which documents it; the two change together."""

from operator import attrgetter
from typing import Final, Self

from acgsperf._native.arguments import checked_latency_s
from acgsperf._native.atomic import FinalType, atomic
from acgsperf._native.histogram_py import LatencyHistogram

_INFINITY: Final = float("inf")


def _settable(slot: str) -> property:
    def set_checked(counters: object, value: float) -> None:
        setattr(counters, slot, checked_latency_s(value))

    return property(attrgetter(slot), set_checked)


class RequestCounters(FinalType):
    """Counts requests and their response times. The shortest and the longest time can be set."""

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

    total_requests = property(attrgetter("_requests"))
    successful_requests = property(attrgetter("_successes"))
    failed_requests = property(attrgetter("_failures"))
    total_response_time = property(attrgetter("_total_s"))
    latency_ns = property(attrgetter("_latency_ns"))
    min_response_time = _settable("_shortest_s")
    max_response_time = _settable("_longest_s")

    def __new__(cls) -> Self:
        self = super().__new__(cls)
        self._requests = self._successes = self._failures = 0
        self._total_s = self._longest_s = 0.0
        self._shortest_s = _INFINITY
        self._latency_ns = LatencyHistogram()
        return self

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
