"""What the exporters read: a service, and a middleware in front of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from acgsperf.cache import TieredCache
from acgsperf.dispatch import LatencyHistogram
from acgsperf.pool import ConnectionPool, PoolManager
from acgsperf.validator import ComplianceValidator

__all__ = ["HttpCounts", "HttpSource", "MetricsSource", "RequestCounts", "pools_of"]


class RequestCounts(Protocol):
    """Counts of a service since it was created; they never decrease."""

    @property
    def failed(self) -> int:
        """Requests whose handler raised."""

    @property
    def violations(self) -> int:
        """Requests refused for their constitutional hash."""

    @property
    def missed(self) -> int:
        """Requests that no tier could answer."""


@runtime_checkable
class MetricsSource(Protocol):
    """A service whose metrics can be exported; `PerformanceService` is one."""

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
        """Return a copy of the latencies of answered requests, in ns."""

    def counts(self) -> RequestCounts:
        """Return the counts of the other requests."""


@dataclass(frozen=True, slots=True)
class HttpCounts:
    """Counts of a middleware since it was created.

    Attributes:
        refused: requests that the compliance gate refused.
        hits: requests answered from the response cache.
        misses: requests that the response cache could have answered, but had no response for.
        bypassed: requests that the response cache must not answer, because of their method or headers.
        stored: responses stored in the response cache.
    """

    refused: int
    hits: int
    misses: int
    bypassed: int
    stored: int


class HttpSource(Protocol):
    """A middleware whose metrics can be exported; `PerformanceMiddleware` is one."""

    def routes(self) -> Mapping[str, LatencyHistogram]:
        """Return the latencies of responses by route, in ns."""

    def counts(self) -> HttpCounts:
        """Return the counts so far."""


def pools_of(source: MetricsSource) -> list[ConnectionPool]:
    """Return the open pools and their replicas; each has a unique name."""
    pools = [source.pools.get(name) for name in source.pools.names()]
    return [member for pool in pools for member in (pool, *pool.replicas)]
