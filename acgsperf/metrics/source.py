"""What the exporters read: a service, caches, pools, a middleware, its limit, and balancers."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Protocol, runtime_checkable

from acgsperf import counting
from acgsperf._native.stats import CacheStats
from acgsperf.backplane import Backplane, BackplaneStats
from acgsperf.balance import Balancer
from acgsperf.balance.balancer import BalancerStats
from acgsperf.cache import TieredCache
from acgsperf.cache.histograms import connect_time_of, lag_of, read_time_of
from acgsperf.cache.parts import Parts as CacheParts
from acgsperf.cache.stats import collect_stats
from acgsperf.cache.types import TieredStats
from acgsperf.dispatch import BoundedCache, LatencyHistogram
from acgsperf.pool import ConnectionPool, PoolManager
from acgsperf.pool.options import PoolStats
from acgsperf.tiers.base import Tier, TierStats
from acgsperf.validator import ComplianceValidator, ValidatorMetrics

__all__ = [
    "BackplaneReading",
    "Balancers",
    "CacheReading",
    "Caches",
    "HttpCounts",
    "HttpReading",
    "HttpSource",
    "L1Reading",
    "LimitCounts",
    "LimitSource",
    "MetricsSource",
    "Part",
    "Parts",
    "PoolReading",
    "Pools",
    "Reading",
    "RequestCounts",
    "ServiceReading",
    "Sources",
    "TierReading",
    "combined",
    "parts_of",
    "reading_of",
]

Caches = TieredCache[Any] | Iterable[TieredCache[Any]] | Mapping[str, TieredCache[Any]]
Pools = PoolManager | ConnectionPool | Iterable[PoolManager | ConnectionPool]
Balancers = Balancer | Iterable[Balancer]


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


@runtime_checkable
class HttpSource(Protocol):
    """A middleware whose metrics can be exported; `PerformanceMiddleware` is one.

    It may also have a method `connection_uses`. For each (route, pool) it returns how many connections requests have
    used, and the ns of their use.
    """

    def routes(self) -> Mapping[str, LatencyHistogram]:
        """Return the latencies of the responses of each route, in ns."""

    def counts(self) -> HttpCounts:
        """Return the counts so far."""


class LimitCounts(Protocol):
    """The state of a limit of the requests in flight; `ConcurrencyLimitStats` is one."""

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""

    @property
    def in_flight(self) -> int:
        """Requests in the application now."""

    @property
    def accepted(self) -> int:
        """Requests that the application got."""

    @property
    def refused(self) -> int:
        """Requests that were refused."""

    @property
    def usual_latency_s(self) -> float | None:
        """The mean latency when no request is refused; None before the first measurement."""


class LimitSource(Protocol):
    """A limit whose metrics can be exported; `ConcurrencyLimit` is one."""

    def stats(self) -> LimitCounts:
        """Return the limit and the counts."""


@dataclass(frozen=True, slots=True)
class CacheReading:
    """The figures of a cache at one moment, without those of its tiers and its backplane."""

    name: str
    stats: TieredStats


@dataclass(frozen=True, slots=True)
class L1Reading:
    """The figures of the L1 of a cache at one moment."""

    cache: str
    stats: CacheStats


@dataclass(frozen=True, slots=True)
class TierReading:
    """The figures of a lower tier of a cache at one moment; the histograms are live."""

    cache: str
    tier: str
    stats: TierStats
    access: LatencyHistogram | None
    connect: LatencyHistogram | None


@dataclass(frozen=True, slots=True)
class BackplaneReading:
    """The figures of the backplane of a cache at one moment; `lag` is live."""

    cache: str
    stats: BackplaneStats
    lag: LatencyHistogram | None


@dataclass(frozen=True, slots=True)
class PoolReading:
    """The figures of a pool at one moment; the histograms are live."""

    name: str
    healthy: bool
    stats: PoolStats
    wait: LatencyHistogram
    use: LatencyHistogram
    create: LatencyHistogram


@dataclass(frozen=True, slots=True)
class ServiceReading:
    """The figures of a service at one moment; `validation_time` is live."""

    counts: RequestCounts
    latency: LatencyHistogram
    validator: ValidatorMetrics
    validation_time: LatencyHistogram


@dataclass(frozen=True, slots=True)
class HttpReading:
    """The figures of a middleware at one moment; the histograms in `routes` are live."""

    counts: HttpCounts
    routes: Mapping[str, LatencyHistogram]
    connection_uses: Mapping[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Reading:
    """All figures that the exporters read at one moment."""

    services: list[ServiceReading] = field(default_factory=list)
    caches: list[CacheReading] = field(default_factory=list)
    l1s: list[L1Reading] = field(default_factory=list)
    tiers: list[TierReading] = field(default_factory=list)
    backplanes: list[BackplaneReading] = field(default_factory=list)
    pools: list[PoolReading] = field(default_factory=list)
    https: list[HttpReading] = field(default_factory=list)
    limits: list[LimitCounts] = field(default_factory=list)
    balancers: list[BalancerStats] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """Something that counts for itself: a service, a cache, an L1, a tier, a pool, a middleware and so on.

    Attributes:
        source: the object that counts.
        labels: the first labels of its figures, if they depend on the cache to which it belongs.
        reading: its figures, and nothing else.
    """

    source: object
    labels: tuple[str, ...]
    reading: Reading


# By the id of the object and the labels. An object with two names is two parts.
Parts = dict[tuple[int, tuple[str, ...]], Part]


class Sources:
    """What an exporter reads.

    Args:
        source: a service, with its cache and its pools.
        cache: more caches: one, several, or a mapping of names to caches. The default name of a cache is its
            namespace.
        pools: more pools: a manager, a pool, or several of them.
        http: a middleware.
        limit: a limit of the requests in flight.
        balancers: a balancer, or several. Figures of one endpoint in several balancers are added up.

    Attributes:
        service: the service.
        http: the middleware.
        caches: the caches by name, that of the service first.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if two caches have the same name.
    """

    def __init__(
        self,
        source: MetricsSource | None = None,
        cache: Caches = (),
        pools: Pools = (),
        http: HttpSource | None = None,
        limit: LimitSource | None = None,
        balancers: Balancers = (),
    ) -> None:
        if source is not None and not isinstance(source, MetricsSource):
            hint = "; pass it as cache=" if isinstance(source, TieredCache) else ""
            raise TypeError(f"source must be a service or None, got {source!r:.100}{hint}")
        self.service = source
        self.http = http
        self.caches: Final[dict[str, TieredCache[Any]]] = {}
        self._pools: list[PoolManager | ConnectionPool] = []
        if source is not None:
            self.caches[source.cache.namespace] = source.cache
            self._pools.append(source.pools)
        for name, found in _named(cache):
            if not isinstance(found, TieredCache):
                raise TypeError(f"cache must be a TieredCache, or several, got {found!r:.100}")
            if not isinstance(name, str):
                raise TypeError(f"names of caches must be a str, got {name!r:.100}")
            if self.caches.setdefault(name, found) is not found:
                raise ValueError(f"caches must have different names, got {name!r} twice; pass a mapping of names")
        for pool in (pools,) if isinstance(pools, PoolManager | ConnectionPool) else pools:
            if not isinstance(pool, PoolManager | ConnectionPool):
                raise TypeError(f"pools must be a PoolManager, a ConnectionPool, or several, got {pool!r:.100}")
            if pool not in self._pools:
                self._pools.append(pool)

        self._limit = limit
        self._balancers = (balancers,) if isinstance(balancers, Balancer) else tuple(balancers)
        for balancer in self._balancers:
            if not isinstance(balancer, Balancer):
                raise TypeError(f"balancers must be a Balancer, or several, got {balancer!r:.100}")
        # Those of the user are not noted yet.
        counting.note(source, http, limit)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the service has closed, if the service has a method `on_close`."""
        register = getattr(self.service, "on_close", None)
        if register is not None:
            register(callback)

    @property
    def directory(self) -> str | None:
        """The `workers_directory` of the service; without a service, the environment variable `WORKERS_DIRECTORY`."""
        if self.service is None:
            return os.environ.get("WORKERS_DIRECTORY")
        return getattr(getattr(self.service, "settings", None), "workers_directory", None)

    def read(self) -> Reading:
        """Return the current figures of all parts."""
        return combined(self.parts())

    def parts(self) -> Parts:
        """Return the current figures of each part."""
        found: list[Part] = []
        for name, cache in self.caches.items():
            found += _parts_of_cache(name, cache._parts)
        others = [self.service, *self._open_pools(), self.http, self._limit, *self._balancers]
        found += [Part(source, (), reading_of(source)) for source in others if source is not None]
        return {(id(part.source), part.labels): part for part in found}

    def closed_pool(self, pool: ConnectionPool) -> Part | None:
        """Return the figures of a pool that was just closed; None if it is not one of these sources."""
        for source in self._pools:
            if pool in _members(source._created if isinstance(source, PoolManager) else (source,)):
                return Part(pool, (), reading_of(pool))
        return None

    def _open_pools(self) -> list[ConnectionPool]:
        pools: list[ConnectionPool] = []
        for source in self._pools:
            own = [source] if isinstance(source, ConnectionPool) else [source.get(name) for name in source.names()]
            pools += _members(own)
        return list(dict.fromkeys(pools))


def _members(pools: Iterable[ConnectionPool]) -> list[ConnectionPool]:
    return [member for pool in pools for member in (pool, *pool.replicas)]


def _parts_of_cache(name: str, cache: CacheParts) -> list[Part]:
    """Return the parts of a cache. Its L1, its tiers and its backplane may belong to another cache later."""
    stats = collect_stats(cache)
    found = [
        Part(cache, (name,), Reading(caches=[CacheReading(name, stats)])),
        Part(cache.l1.lru, (name,), Reading(l1s=[L1Reading(name, stats.l1)])),
    ]
    for label, tier, figures in (("l2", cache.lower_tiers.l2, stats.l2), ("l3", cache.lower_tiers.l3, stats.l3)):
        if tier is not None and figures is not None:
            found.append(Part(tier, (name, label), _read_tier(tier, name, label, figures)))
    if cache.backplane is not None and stats.backplane is not None:
        found.append(Part(cache.backplane, (name,), _read_backplane(cache.backplane, name, stats.backplane)))
    return found


def reading_of(source: Any) -> Reading:
    """Return the figures of an object that counts. The names of a cache and a tier are empty: they may have several."""
    match source:
        case CacheParts():
            return Reading(caches=[CacheReading("", collect_stats(source))])
        case BoundedCache():
            return Reading(l1s=[L1Reading("", source.stats())])
        case Tier():
            return _read_tier(source, "", "", source.stats())
        case Backplane():
            return _read_backplane(source, "", source.stats())
        case ConnectionPool():
            return Reading(pools=[_read_pool(source)])
        case Balancer():
            return Reading(balancers=[source.stats()])
        case MetricsSource():
            validator = source.validator
            figures = ServiceReading(source.counts(), source.latency(), validator.metrics(), validator.validation_time)
            return Reading(services=[figures])
        case HttpSource():
            uses: Mapping[tuple[str, str], tuple[int, int]] = getattr(source, "connection_uses", dict)()
            return Reading(https=[HttpReading(source.counts(), source.routes(), uses)])
        case _:
            return Reading(limits=[source.stats()])


def parts_of(sources: Iterable[Sources]) -> Parts:
    """Return the current figures of each part. A part of several sources is there once."""
    parts: Parts = {}
    for each in sources:
        parts |= each.parts()
    return parts


def combined(parts: Parts) -> Reading:
    """Return the figures of all parts in one reading."""
    total = Reading()
    for part in parts.values():
        for name in _FIELDS:
            getattr(total, name).extend(getattr(part.reading, name))
    return total


_FIELDS: Final = tuple(known.name for known in fields(Reading))


def _named(caches: Caches) -> Iterable[tuple[str, TieredCache[Any]]]:
    if isinstance(caches, TieredCache):
        return [(caches.namespace, caches)]
    if isinstance(caches, Mapping):
        return caches.items()
    return [(getattr(cache, "namespace", ""), cache) for cache in caches]


def _read_tier(tier: Tier, cache: str, label: str, stats: TierStats) -> Reading:
    return Reading(tiers=[TierReading(cache, label, stats, read_time_of(tier), connect_time_of(tier))])


def _read_backplane(backplane: Backplane, cache: str, stats: BackplaneStats) -> Reading:
    return Reading(backplanes=[BackplaneReading(cache, stats, lag_of(backplane))])


def _read_pool(pool: ConnectionPool) -> PoolReading:
    return PoolReading(pool.name, pool.healthy, pool.stats(), pool.wait_time, pool.use_time, pool.create_time)
