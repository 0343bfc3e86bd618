"""The counters of the service under their former names."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from acgsperf.compat._counters import derived
from acgsperf.dispatch import LatencyHistogram, RequestCounters

__all__ = ["LivePerformanceMetrics", "PerformanceMetrics"]

_LONGEST_NS: Final = LatencyHistogram().highest_ns


@dataclass
class PerformanceMetrics:
    """The counters of a service; times are in seconds."""

    # A slot keeps the histogram out of `vars`, comparisons and copies, which have the former figures only.
    __slots__ = ("__dict__", "__weakref__", "latency_ns")

    total_requests: int = 0
    successful_requests: int = 0
    failed_requests: int = 0
    total_response_time: float = 0.0
    min_response_time: float = float("inf")
    max_response_time: float = 0.0
    constitutional_validations: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    db_connections_acquired: int = 0
    optimization_runs: int = 0
    last_optimization: float = 0.0

    def __post_init__(self) -> None:
        self.latency_ns: LatencyHistogram = LatencyHistogram()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.latency_ns = LatencyHistogram()

    def add_request(self, response_time: float, success: bool = True) -> None:
        """Count a request that took `response_time` seconds."""
        self.total_requests += 1
        if success:
            self.successful_requests += 1
        else:
            self.failed_requests += 1
        self.total_response_time += response_time
        if not self.min_response_time <= response_time <= self.max_response_time:
            self._extend_range(response_time)
        try:
            self.latency_ns.record_seconds(response_time)
        except ValueError:
            # The clock went back, or the request took longer than the histogram can record.
            self.latency_ns.record(_LONGEST_NS if response_time > 0 else 0)

    def _extend_range(self, response_time: float) -> None:
        if response_time < self.min_response_time:
            self.min_response_time = response_time
        if response_time > self.max_response_time:
            self.max_response_time = response_time

    def get_avg_response_time_ms(self) -> float:
        """Return the average response time in milliseconds; 0.0 without requests."""
        return self.total_response_time / self.total_requests * 1e3 if self.total_requests else 0.0

    def get_success_rate(self) -> float:
        """Return successful requests / all requests, between 0 and 1; 1.0 without requests."""
        return self.successful_requests / self.total_requests if self.total_requests else 1.0

    def get_cache_hit_rate(self) -> float:
        """Return hits / (hits + misses), between 0 and 1; 0.0 without lookups."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else 0.0


class LivePerformanceMetrics(PerformanceMetrics):
    """The counters of a service in use. Its `add_request` is compiled; what that counts is read from there."""

    # `add_request` is that of `_requests`: a call of a method in Python would take as long as the counting.
    __slots__ = ("_requests", "add_request")

    add_request: Callable[..., None]

    total_requests: int = derived(attrgetter("_requests.total_requests"))
    successful_requests: int = derived(attrgetter("_requests.successful_requests"))
    failed_requests: int = derived(attrgetter("_requests.failed_requests"))
    total_response_time: float = derived(attrgetter("_requests.total_response_time"))

    def __init__(self) -> None:
        self._requests = RequestCounters()
        self.add_request = self._requests.add_request
        self.latency_ns = self._requests.latency_ns
        # Not by `super().__init__`: setting a derived counter uses `vars`, and that makes all attributes slower.
        self.constitutional_validations = self.cache_hits = self.cache_misses = 0
        self.db_connections_acquired = self.optimization_runs = 0
        self.last_optimization = 0.0

    @property
    def min_response_time(self) -> float:
        """The shortest response time in seconds; inf at first. Later requests are compared with a value that is set."""
        return self._requests.min_response_time

    @min_response_time.setter
    def min_response_time(self, seconds: float) -> None:
        self._requests.min_response_time = seconds

    @property
    def max_response_time(self) -> float:
        """The longest response time in seconds. Later requests are compared with a value that is set."""
        return self._requests.max_response_time

    @max_response_time.setter
    def max_response_time(self, seconds: float) -> None:
        self._requests.max_response_time = seconds

    def __eq__(self, other: object) -> bool:
        """Return whether all counters are equal now."""
        if not isinstance(other, PerformanceMetrics):
            return NotImplemented
        return self.__reduce__()[1] == tuple(getattr(other, name) for name in PerformanceMetrics.__dataclass_fields__)

    def __reduce__(self) -> tuple[type[PerformanceMetrics], tuple[Any, ...]]:
        """Copy and pickle as a plain `PerformanceMetrics` with the current values."""
        return PerformanceMetrics, tuple(getattr(self, name) for name in PerformanceMetrics.__dataclass_fields__)
