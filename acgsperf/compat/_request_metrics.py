"""The counters of the service under their former names."""

from dataclasses import Field, dataclass
from typing import Any, ClassVar

from acgsperf.dispatch import RequestCounters

__all__ = ["PerformanceMetrics"]


class _Figures(RequestCounters):
    """Shows slots and the counters of the base class in `vars`, like attributes in the dict of the instance."""

    __slots__ = ()

    # The fields of the dataclass that is derived from this class.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(slots=True)
class PerformanceMetrics(_Figures):
    """The counters of a service; times are in seconds."""

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

    def __reduce__(self) -> tuple[type["PerformanceMetrics"], tuple[Any, ...]]:
        """Copy and pickle the figures without the histogram, which the replaced class did not have."""
        return type(self), tuple(vars(self).values())

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


# The slots of the dataclass hide the counters of the base class.
for _name in vars(RequestCounters).keys() & PerformanceMetrics.__dataclass_fields__.keys():
    delattr(PerformanceMetrics, _name)
