"""Reads the values of metrics out of the figures of a process; the catalogue says which metric has which."""

from collections.abc import Callable, Iterable
from typing import Any

from acgsperf._native.prediction_stats import PredictionStats
from acgsperf._native.sizing_stats import SizingStats
from acgsperf._native.stats import CacheStats, PolicyStats
from acgsperf.backplane import BackplaneState, BackplaneStats
from acgsperf.balance.balancer import BalancerStats
from acgsperf.balance.endpoint import EndpointStats
from acgsperf.cache.types import TieredStats
from acgsperf.dispatch import LatencyHistogram
from acgsperf.metrics.source import HttpCounts, LimitCounts, PoolReading, Reading, ServiceReading
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
    "l1s",
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


def l1s(read: Callable[[CacheStats], Value]) -> Read:
    return lambda reading: [((l1.cache,), read(l1.stats)) for l1 in reading.l1s]


def evictions(reading: Reading) -> Values:
    for l1 in reading.l1s:
        yield (l1.cache, "size"), l1.stats.evictions
        yield (l1.cache, "expired"), l1.stats.expirations


def weights(read: Callable[[CacheStats], int | None]) -> Read:
    return lambda reading: [((l1.cache,), weight) for l1 in reading.l1s if (weight := read(l1.stats)) is not None]


def _policies(reading: Reading) -> Iterable[tuple[str, PolicyStats]]:
    return [(l1.cache, policy) for l1 in reading.l1s if (policy := l1.stats.policy) is not None]


def policies(read: Callable[[PolicyStats], Value]) -> Read:
    return lambda reading: [((name,), read(policy)) for name, policy in _policies(reading)]


def settings(reading: Reading) -> Values:
    for name, policy in _policies(reading):
        for setting in {policy.setting: 0, **policy.hit_rates}:
            yield (name, setting), int(setting == policy.setting)


def setting_hit_rates(reading: Reading) -> Values:
    for name, policy in _policies(reading):
        for setting, rate in policy.hit_rates.items():
            yield (name, setting), rate


def _sizings(reading: Reading) -> Iterable[tuple[str, SizingStats]]:
    return [(l1.cache, sizing) for l1 in reading.l1s if (sizing := l1.stats.sizing) is not None]


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


def all_tiers(read: Callable[[Any], Value]) -> Read:
    return lambda reading: [
        *(((l1.cache, "l1"), read(l1.stats)) for l1 in reading.l1s),
        *(((tier.cache, tier.tier), read(tier.stats)) for tier in reading.tiers),
    ]


def tiers(read: Callable[[TierStats], Value]) -> Read:
    return lambda reading: [((tier.cache, tier.tier), read(tier.stats)) for tier in reading.tiers]


def connections(read: Callable[[ConnectionStats], Value]) -> Read:
    return lambda reading: [
        ((tier.cache, tier.tier), read(tier.stats.connections))
        for tier in reading.tiers
        if tier.stats.connections is not None
    ]


def errors(reading: Reading) -> Values:
    for tier in reading.tiers:
        # Timeouts are always exported, at first with 0: otherwise `rate` would not count the first one.
        for error, count in {"TimeoutError": 0, **tier.stats.errors}.items():
            yield (tier.cache, tier.tier, error), count


def breakers(reading: Reading) -> Values:
    for tier in reading.tiers:
        for state in BreakerState:
            yield (tier.cache, tier.tier, state.value), int(tier.stats.breaker is state)


def accesses(reading: Reading) -> Values:
    return [((tier.cache, tier.tier), tier.access) for tier in reading.tiers if tier.access is not None]


def connect_times(reading: Reading) -> Values:
    return [((tier.cache, tier.tier), tier.connect) for tier in reading.tiers if tier.connect is not None]


def predictions(read: Callable[[PredictionStats], Value]) -> Read:
    return lambda reading: [
        ((cache.name,), read(stats)) for cache in reading.caches if (stats := cache.stats.prediction) is not None
    ]


def backplanes(read: Callable[[BackplaneStats], Value]) -> Read:
    return lambda reading: [((backplane.cache,), read(backplane.stats)) for backplane in reading.backplanes]


def backplane_states(reading: Reading) -> Values:
    for backplane in reading.backplanes:
        for state in BackplaneState:
            yield (backplane.cache, state.value), int(backplane.stats.state is state)


def lags(reading: Reading) -> Values:
    return [((backplane.cache,), backplane.lag) for backplane in reading.backplanes if backplane.lag is not None]


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
