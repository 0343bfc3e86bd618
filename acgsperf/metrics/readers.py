"""Reads the values of metrics out of the figures of a process; the catalogue says which metric has which."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from acgsperf._native.sizing_stats import SizingStats
from acgsperf._native.types import CacheStats, PolicyStats
from acgsperf.backplane import BackplaneState
from acgsperf.balance.balancer import BalancerStats
from acgsperf.balance.endpoint import EndpointStats
from acgsperf.cache.types import TieredStats
from acgsperf.dispatch import LatencyHistogram
from acgsperf.metrics.source import CacheReading, HttpCounts, LimitCounts, PoolReading, Reading, ServiceReading
from acgsperf.tiers.base import BreakerState, ConnectionStats, TierStats

__all__ = [
    "Read",
    "Value",
    "Values",
    "accesses",
    "all_tiers",
    "backplane_states",
    "backplanes",
    "balancers",
    "breakers",
    "caches",
    "closed",
    "connect_times",
    "connections",
    "endpoints",
    "errors",
    "evictions",
    "http",
    "lags",
    "limits",
    "points",
    "policies",
    "pools",
    "predictions",
    "responses",
    "routes",
    "service",
    "setting_hit_rates",
    "settings",
    "size_hit_rates",
    "sizes",
    "sizings",
    "tiers",
    "uses",
    "verdicts",
    "weights",
]

Value = int | float | LatencyHistogram
Values = Iterable[tuple[tuple[str, ...], Value]]
Read = Callable[[Reading], Values]


def service(read: Callable[[ServiceReading], Value]) -> Read:
    return lambda reading: [((), read(figures)) for figures in reading.services]


def verdicts(reading: Reading) -> Values:
    for figures in reading.services:
        verdicts = figures.validator.verdicts
        yield ("valid",), verdicts.valid
        yield ("mismatch",), verdicts.mismatched
        yield ("malformed",), verdicts.malformed


def caches(read: Callable[[TieredStats], Value]) -> Read:
    return lambda reading: [((cache.name,), read(cache.stats)) for cache in reading.caches]


def evictions(reading: Reading) -> Values:
    for cache in reading.caches:
        yield (cache.name, "size"), cache.stats.l1.evictions
        yield (cache.name, "expired"), cache.stats.l1.expirations


def weights(read: Callable[[CacheStats], int | None]) -> Read:
    return lambda reading: [
        ((cache.name,), weight) for cache in reading.caches if (weight := read(cache.stats.l1)) is not None
    ]


def policies(read: Callable[[PolicyStats], Value]) -> Read:
    return lambda reading: [
        ((cache.name,), read(policy)) for cache in reading.caches if (policy := cache.stats.l1.policy) is not None
    ]


def settings(reading: Reading) -> Values:
    for cache in reading.caches:
        if (policy := cache.stats.l1.policy) is not None:
            for setting in {policy.setting: 0, **policy.hit_rates}:
                yield (cache.name, setting), int(setting == policy.setting)


def setting_hit_rates(reading: Reading) -> Values:
    for cache in reading.caches:
        if (policy := cache.stats.l1.policy) is not None:
            for setting, rate in policy.hit_rates.items():
                yield (cache.name, setting), rate


def _sizings(reading: Reading) -> Iterable[tuple[str, SizingStats]]:
    return [(cache.name, sizing) for cache in reading.caches if (sizing := cache.stats.sizing) is not None]


def sizings(read: Callable[[SizingStats], Value]) -> Read:
    return lambda reading: [((name,), read(sizing)) for name, sizing in _sizings(reading)]


def points(read: Callable[[SizingStats], int | float | None]) -> Read:
    return lambda reading: [
        ((name,), value) for name, sizing in _sizings(reading) if (value := read(sizing)) is not None
    ]


def sizes(reading: Reading) -> Values:
    for name, sizing in _sizings(reading):
        for size in sizing.sizes:
            yield (name, f"{size.factor:g}"), size.maxsize


def size_hit_rates(reading: Reading) -> Values:
    for name, sizing in _sizings(reading):
        for size in sizing.sizes:
            yield (name, f"{size.factor:g}", "lru"), size.lru
            yield (name, f"{size.factor:g}", "adaptive"), size.adaptive


def _lower_tiers(cache: CacheReading) -> list[tuple[str, TierStats]]:
    tiers = (("l2", cache.stats.l2), ("l3", cache.stats.l3))
    return [(name, stats) for name, stats in tiers if stats is not None]


def all_tiers(read: Callable[[Any], Value]) -> Read:
    return lambda reading: [
        ((cache.name, name), read(stats))
        for cache in reading.caches
        for name, stats in (("l1", cache.stats.l1), *_lower_tiers(cache))
    ]


def tiers(read: Callable[[TierStats], Value]) -> Read:
    return lambda reading: [
        ((cache.name, name), read(stats)) for cache in reading.caches for name, stats in _lower_tiers(cache)
    ]


def connections(read: Callable[[ConnectionStats], Value]) -> Read:
    return lambda reading: [
        ((cache.name, name), read(stats.connections))
        for cache in reading.caches
        for name, stats in _lower_tiers(cache)
        if stats.connections is not None
    ]


def errors(reading: Reading) -> Values:
    for cache in reading.caches:
        for name, stats in _lower_tiers(cache):
            # Timeouts are always exported, at first with 0: otherwise `rate` would not count the first one.
            for error, count in {"TimeoutError": 0, **stats.errors}.items():
                yield (cache.name, name, error), count


def breakers(reading: Reading) -> Values:
    for cache in reading.caches:
        for name, stats in _lower_tiers(cache):
            for state in BreakerState:
                yield (cache.name, name, state.value), int(stats.breaker is state)


def _of_tiers(suffix: str) -> Read:
    return lambda reading: [
        ((cache.name, tier), histogram)
        for cache in reading.caches
        for tier in ("l2", "l3")
        if (histogram := cache.histograms.get(f"{tier}{suffix}")) is not None
    ]


accesses: Final = _of_tiers("")
connect_times: Final = _of_tiers(" connect")


def _optional(part: str) -> Callable[[Callable[[Any], Value]], Read]:
    """Return what reads a part of the statistics that not every cache has."""
    return lambda read: (
        lambda reading: [
            ((cache.name,), read(stats))
            for cache in reading.caches
            if (stats := getattr(cache.stats, part)) is not None
        ]
    )


predictions: Final = _optional("prediction")
backplanes: Final = _optional("backplane")


def backplane_states(reading: Reading) -> Values:
    for cache in reading.caches:
        if cache.stats.backplane is not None:
            for state in BackplaneState:
                yield (cache.name, state.value), int(cache.stats.backplane.state is state)


def lags(reading: Reading) -> Values:
    for cache in reading.caches:
        if "backplane" in cache.histograms:
            yield (cache.name,), cache.histograms["backplane"]


def pools(read: Callable[[PoolReading], Value]) -> Read:
    return lambda reading: [((pool.name,), read(pool)) for pool in reading.pools]


def closed(reading: Reading) -> Values:
    for pool in reading.pools:
        for reason, count in pool.stats.closed.items():
            yield (pool.name, reason.value), count


def http(read: Callable[[HttpCounts], Value]) -> Read:
    return lambda reading: [((), read(figures.counts)) for figures in reading.https]


def responses(reading: Reading) -> Values:
    for figures in reading.https:
        yield ("hit",), figures.counts.hits
        yield ("miss",), figures.counts.misses
        yield ("bypass",), figures.counts.bypassed


def routes(reading: Reading) -> Values:
    return [((route,), latency) for figures in reading.https for route, latency in figures.routes.items()]


def uses(position: int) -> Read:
    def read(reading: Reading) -> Values:
        for figures in reading.https:
            for key, used in figures.connection_uses.items():
                yield key, used[position]

    return read


def limits(read: Callable[[LimitCounts], int | float | None]) -> Read:
    return lambda reading: [((), value) for counts in reading.limits if (value := read(counts)) is not None]


def balancers(read: Callable[[BalancerStats], Value]) -> Read:
    return lambda reading: [((), read(stats)) for stats in reading.balancers]


def endpoints(read: Callable[[EndpointStats], int | float | None]) -> Read:
    return lambda reading: [
        ((endpoint.endpoint,), value)
        for stats in reading.balancers
        for endpoint in stats.endpoints
        if (value := read(endpoint)) is not None
    ]
