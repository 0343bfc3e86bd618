"""Makes a snapshot of the values of the metrics."""

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from acgsperf.dashboard.bands import bands_ms, heat_of
from acgsperf.dashboard.interval import Buckets, Interval
from acgsperf.dashboard.rounding import clipped, four_digits, share
from acgsperf.dashboard.snapshot import (
    BackplaneState,
    CacheState,
    Point,
    PoolState,
    PredictionState,
    RouteState,
    SizeState,
    SizingState,
    Snapshot,
    TierState,
)
from acgsperf.tiers.base import BreakerState

__all__ = ["compose"]

_T = TypeVar("_T")

_MOST_PARTS: Final = 20
_TIERS: Final = ("l1", "l2", "l3")
# The states of a breaker, the worst first. The figures of several processes may have several.
_BREAKERS: Final = tuple(state.value for state in (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED))


def compose(name: str, interval: Interval) -> Snapshot:
    """Return the snapshot at the end of an interval.

    Args:
        name: what the figures are of.
        interval: the figures.
    """
    has_service = interval.has("requests")
    durations = "request_duration_seconds" if has_service else "http_request_duration_seconds"
    latency = interval.buckets(durations)
    pools = _busiest((_pool(interval, pool) for pool in interval.names("pool_connections")), lambda p: p.in_use)
    return Snapshot(
        name=clipped(name),
        point=_point(interval, latency, has_service),
        seconds=round(interval.seconds, 6),
        processes=max(1, interval.count("processes")),
        requests=interval.count("requests") if has_service else round(interval.buckets(durations, total=True).total),
        bands_ms=bands_ms(latency.bounds_ns),
        caches=_busiest(
            (_cache(interval, cache) for cache in interval.names("cache_entries")),
            lambda c: c.tiers[0].lookups or 0,
        ),
        pools=pools,
        routes=_busiest(
            (_route(interval, route) for route in interval.names("http_request_duration_seconds")),
            lambda r: r.total,
        ),
    )


def _point(interval: Interval, latency: Buckets, has_service: bool) -> Point:
    errors = interval.per_second("request_errors")
    violations = interval.per_second("compliance_violations" if has_service else "http_refused")
    answered, failed, missed = (interval.growth(f"request{kind}") for kind in ("s", "_errors", "_misses"))
    passed = (answered or 0) + (failed or 0)
    requests = passed / interval.seconds if has_service and interval.seconds else None
    if not has_service and interval.seconds and interval.has("http_request_duration_seconds"):
        requests = latency.total / interval.seconds
    lag = interval.buckets("backplane_lag_seconds").quantile_ms(0.99)
    return Point(
        at=round(interval.now.at, 3),
        requests=four_digits(requests),
        errors=four_digits(errors),
        violations=four_digits(violations),
        p50_ms=four_digits(latency.quantile_ms(0.5)),
        p95_ms=four_digits(latency.quantile_ms(0.95)),
        p99_ms=four_digits(latency.quantile_ms(0.99)),
        heat=heat_of(latency),
        hit_rate=four_digits(max(0.0, 1 - (missed or 0) / passed)) if has_service and passed else None,
        l1=_hit_rate_of_tier(interval, "l1"),
        l2=_hit_rate_of_tier(interval, "l2"),
        l3=_hit_rate_of_tier(interval, "l3"),
        evictions=_sum_of_rates(interval, "cache_evictions", "size"),
        loads=four_digits(interval.per_second("cache_loads")),
        stale=four_digits(interval.per_second("cache_stale_served")),
        in_use=interval.count("pool_used_connections") if interval.has("pool_connections") else None,
        waiting=interval.count("pool_waiting_requests") if interval.has("pool_connections") else None,
        lag_ms=four_digits(lag),
    )


def _hit_rate_of_tier(interval: Interval, tier: str) -> float | None:
    caches = interval.names("cache_hits")
    hits = sum(interval.growth("cache_hits", cache, tier) or 0 for cache in caches)
    misses = sum(interval.growth("cache_misses", cache, tier) or 0 for cache in caches)
    return share(hits, hits + misses)


def _sum_of_rates(interval: Interval, name: str, label: str) -> float | None:
    rates = [interval.per_second(name, cache, label) for cache in interval.names(name)]
    known = [rate for rate in rates if rate is not None]
    return four_digits(sum(known)) if known else None


def _cache(interval: Interval, name: str) -> CacheState:
    def rate(metric: str, *labels: str) -> float | None:
        return four_digits(interval.per_second(metric, name, *labels))

    tiers = [tier for tier in _TIERS if tier == "l1" or interval.exists("cache_breaker_state", name, tier)]
    return CacheState(
        name=clipped(name),
        tiers=tuple(_tier(interval, name, tier) for tier in tiers),
        entries=interval.count("cache_entries", name),
        max_entries=interval.count("cache_max_entries", name),
        evictions=rate("cache_evictions", "size"),
        expirations=rate("cache_evictions", "expired"),
        loads=rate("cache_loads"),
        load_errors=rate("cache_load_errors"),
        joins=rate("cache_load_joins"),
        refreshes=rate("cache_refreshes"),
        stale=rate("cache_stale_served"),
        negative=rate("cache_negative_hits"),
        loading=interval.count("cache_loading", name),
        unrepaired=interval.count("cache_unrepaired_writes", name),
        sizing=_sizing(interval, name),
        prediction=_prediction(interval, name),
        backplane=_backplane(interval, name),
    )


def _state(interval: Interval, metric: str, *labels: str) -> str | None:
    """Return the state of the series with these labels, that of the least healthy process if there are several."""
    found = map(clipped, interval.states(metric, *labels))
    return min(found, key=lambda state: _BREAKERS.index(state) if state in _BREAKERS else -1, default=None)


def _tier(interval: Interval, cache: str, tier: str) -> TierState:
    hits, misses = (interval.growth(f"cache_{kind}", cache, tier) for kind in ("hits", "misses"))
    total_hits, total_misses = (interval.value(f"cache_{kind}", cache, tier) for kind in ("hits", "misses"))
    lookups = None if hits is None or misses is None else hits + misses
    state = TierState(
        name=tier,
        lookups=None if lookups is None else four_digits(lookups / interval.seconds),
        hit_rate=share(hits or 0, lookups or 0),
        total_hit_rate=share(total_hits, total_hits + total_misses),
    )
    if tier == "l1":
        return state
    return TierState(
        state.name,
        state.lookups,
        state.hit_rate,
        state.total_hit_rate,
        read_p99_ms=four_digits(interval.buckets("cache_access_seconds", cache, tier, total=True).quantile_ms(0.99)),
        breaker=_state(interval, "cache_breaker_state", cache, tier),
        errors=four_digits(interval.per_second("cache_errors", cache, tier)),
        skipped=four_digits(interval.per_second("cache_skipped", cache, tier)),
    )


def _sizing(interval: Interval, cache: str) -> SizingState | None:
    factors = interval.last_labels("cache_sizing_entries", cache)
    if not factors:
        return None

    def known(metric: str) -> int | None:
        return interval.count(metric, cache) if interval.exists(metric, cache) else None

    def hit_rate(factor: str, policy: str) -> float:
        # Several processes are merged to the lowest rate.
        return round(interval.value("cache_sizing_hit_rate", cache, factor, policy), 5)

    return SizingState(
        requests=interval.count("cache_sizing_requests", cache),
        sizes=tuple(
            SizeState(
                float(factor),
                interval.count("cache_sizing_entries", cache, factor),
                lru=hit_rate(factor, "lru"),
                adaptive=hit_rate(factor, "adaptive"),
            )
            for factor in sorted(factors, key=float)
        ),
        point_entries=known("cache_sizing_point_entries"),
        point_bytes=known("cache_sizing_point_bytes"),
    )


def _prediction(interval: Interval, cache: str) -> PredictionState | None:
    if not interval.exists("cache_prediction_issued", cache):
        return None
    issued, used, wasted, late = (
        four_digits(interval.per_second(f"cache_prediction_{kind}", cache))
        for kind in ("issued", "used", "wasted", "late")
    )
    known = {kind: interval.value(f"cache_prediction_{kind}", cache) for kind in ("used", "wasted", "late")}
    return PredictionState(
        issued,
        used,
        wasted,
        late,
        precision=share(known["used"], sum(known.values())),
        held=interval.count("cache_prediction_held", cache),
        classes=interval.count("cache_prediction_classes", cache),
    )


def _backplane(interval: Interval, cache: str) -> BackplaneState | None:
    state = _state(interval, "backplane_state", cache)
    if state is None:
        return None
    lag = interval.buckets("backplane_lag_seconds", cache, total=True)
    return BackplaneState(
        state=state,
        applied=four_digits(interval.per_second("backplane_applied", cache)),
        queued=interval.count("backplane_queued", cache),
        gaps=interval.count("backplane_gaps", cache),
        lag_p50_ms=four_digits(lag.quantile_ms(0.5)),
        lag_p99_ms=four_digits(lag.quantile_ms(0.99)),
    )


def _pool(interval: Interval, name: str) -> PoolState:
    def count(metric: str) -> int:
        return interval.count(f"pool_{metric}", name)

    def quantile(metric: str, quantile: float) -> float | None:
        return four_digits(interval.buckets(f"pool_{metric}_seconds", name, total=True).quantile_ms(quantile))

    return PoolState(
        name=clipped(name),
        healthy=count("healthy") > 0,
        connections=count("connections"),
        idle=count("idle_connections"),
        in_use=count("used_connections"),
        max=count("max_connections"),
        target=count("target_connections"),
        waiting=count("waiting_requests"),
        oldest_wait_s=four_digits(interval.value("pool_oldest_wait_seconds", name)) or 0.0,
        wait_p99_ms=quantile("wait", 0.99),
        use_p50_ms=quantile("use", 0.5),
        use_p99_ms=quantile("use", 0.99),
        leaks=count("leaks"),
        timeouts=count("timeouts"),
        connect_errors=count("connect_errors"),
    )


def _route(interval: Interval, name: str) -> RouteState:
    metric = "http_request_duration_seconds"
    total = interval.buckets(metric, name, total=True)
    recent = interval.buckets(metric, name).total / interval.seconds if interval.seconds else None
    return RouteState(
        clipped(name),
        four_digits(recent),
        round(total.total),
        four_digits(total.quantile_ms(0.5)),
        four_digits(total.quantile_ms(0.99)),
    )


def _busiest(parts: Iterable[_T], traffic: Callable[[_T], float]) -> tuple[_T, ...]:
    return tuple(sorted(parts, key=traffic, reverse=True)[:_MOST_PARTS])
