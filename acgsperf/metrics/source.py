"""What the exporters read, and no more: a service, and a middleware in front of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from acgsperf.cache import TieredCache
from acgsperf.dispatch import LatencyHistogram
from acgsperf.pool import ConnectionPool, PoolManager
from acgsperf.validator import ComplianceValidator

__all__ = ["HttpCounts", "HttpSource", "MetricsSource", "RequestCounts", "pools_of"]


class RequestCounts(Protocol):
    """Counts of a service since it was made; none ever falls."""

    @property
    def failed(self) -> int:
        """Requests whose handler raised."""

    @property
    def violations(self) -> int:
        """Requests refused for their constitutional hash."""

    @property
    def missed(self) -> int:
        """Requests that no tier had an answer to."""


@runtime_checkable
class MetricsSource(Protocol):
    """A service that can be watched; `PerformanceService` is one."""

    @property
    def cache(self) -> TieredCache[Any]:
        """The cache that answers its requests."""

    @property
    def pools(self) -> PoolManager:
        """Its connection pools."""

    @property
    def validator(self) -> ComplianceValidator:
        """Its compliance gate."""

    def latency(self) -> LatencyHistogram:
        """How long the requests that were answered took, in ns; a copy."""

    def counts(self) -> RequestCounts:
        """What became of the others."""


@dataclass(frozen=True, slots=True)
class HttpCounts:
    """Counts of a middleware since it was made.

    Attributes:
        refused: requests that the compliance gate refused.
        hits: requests answered from the response cache.
        misses: those that it might have answered and could not.
        bypassed: those that it may not answer, by their method or their headers.
        stored: responses put into it.
    """

    refused: int
    hits: int
    misses: int
    bypassed: int
    stored: int


class HttpSource(Protocol):
    """A middleware that can be watched; `PerformanceMiddleware` is one."""

    def routes(self) -> Mapping[str, LatencyHistogram]:
        """How long responses took, in ns, by route."""

    def counts(self) -> HttpCounts:
        """The counts so far."""


def pools_of(source: MetricsSource) -> list[ConnectionPool]:
    """The open pools and their replicas, each with a name of its own."""
    pools = [source.pools.get(name) for name in source.pools.names()]
    return [member for pool in pools for member in (pool, *pool.replicas)]
