"""Metrics for Prometheus. They are read from the service at each scrape, so nothing is counted twice."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from acgsperf._native.types import CacheStats, HistogramSnapshot
from acgsperf.backplane import BackplaneState, BackplaneStats
from acgsperf.dispatch import LatencyHistogram
from acgsperf.metrics.source import HttpSource, MetricsSource, pools_of
from acgsperf.tiers.base import BreakerState, TierStats

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
        SummaryMetricFamily,
    )
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.registry import Collector
except ImportError as missing:
    raise ImportError("prometheus_client is not installed: pip install 'acgsperf[prometheus]'") from missing

__all__ = ["BUCKETS_S", "PerformanceCollector", "exposition"]

# From an L1 hit to a request that hangs. The targets of 1, 2 and 5 ms are bounds of buckets.
BUCKETS_S: Final = (
    *(1e-6, 5e-6, 25e-6, 1e-4, 25e-5, 5e-4),
    *(1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_QUANTILES: Final = (("0.5", "p50"), ("0.9", "p90"), ("0.95", "p95"), ("0.99", "p99"), ("0.999", "p999"))
_Value = tuple[tuple[str, ...], float]


class PerformanceCollector(Collector):
    """Exports the metrics of a service to a `prometheus_client` registry. Metrics are read at each scrape.

    A registry refuses a second collector with the same namespace with a ValueError, even if its labels differ.

    A scrape must run in the event loop of the source, like its caches and pools: serve the metrics page with
    `exposition` and `PerformanceMiddleware`.

    Args:
        source: the service; None to export only a middleware.
        http: a middleware whose routes are exported as well.
        namespace: prefix of all metric names.
        labels: constant labels of every metric.
        buckets_s: bounds of the histograms, in seconds, ascending.

    Raises:
        TypeError: if the source is not a service, or a label is not a str.
        ValueError: if Prometheus does not accept a name, or if the bounds are not positive and ascending.
    """

    def __init__(
        self,
        source: MetricsSource | None = None,
        *,
        http: HttpSource | None = None,
        namespace: str = "acgsperf",
        labels: Mapping[str, str] | None = None,
        buckets_s: Sequence[float] = BUCKETS_S,
    ) -> None:
        constants = dict(labels or {})
        for name, value in constants.items():
            if not isinstance(value, str):
                raise TypeError(f"labels must be a str, got {name}={value!r:.100}")
        if source is not None and not isinstance(source, MetricsSource):
            raise TypeError(f"source must be a service or None, got {source!r:.100}")
        for name in (namespace, *constants):
            if not _NAME.fullmatch(name) or name.startswith("__"):
                raise ValueError(f"namespace and label names must be letters, digits and _, got {name!r}")
        bounds_ns = [round(bound * 1e9) for bound in buckets_s]
        if bounds_ns != sorted(set(bounds_ns)) or not all(bound > 0 for bound in bounds_ns):
            raise ValueError(f"buckets_s must be positive and ascending, got {buckets_s!r}")
        self._source = source
        self._http = http
        self._namespace = namespace
        self._label_names, self._label_values = tuple(constants), tuple(constants.values())
        self._bounds_ns = bounds_ns
        self._bound_names = [f"{bound:g}" for bound in buckets_s]

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its current value."""
        if self._source is not None:
            yield from self._requests(self._source)
            yield from self._compliance(self._source)
            yield from self._cache(self._source)
            yield from self._pools(self._source)
        if self._http is not None:
            yield from self._routes(self._http)

    def describe(self) -> Iterator[Metric]:
        """Yield the same metrics as `collect`, so that a registry refuses a second collector with the same names."""
        return self.collect()

    def _requests(self, source: MetricsSource) -> Iterator[Metric]:
        counts = source.counts()
        latency = source.latency()
        yield self._counter("requests", "Requests answered.", latency.count)
        yield self._counter("request_errors", "Requests whose handler raised an error.", counts.failed)
        yield self._counter("request_misses", "Requests that no tier could answer.", counts.missed)
        yield self._histogram("request_duration_seconds", "Duration of answered requests.", [((), latency)])

    def _compliance(self, source: MetricsSource) -> Iterator[Metric]:
        violations = source.counts().violations
        yield self._counter("compliance_violations", "Requests refused for their constitutional hash.", violations)
        verdicts = source.validator.metrics().verdicts
        yield self._counter(
            "compliance_validations",
            "Hashes checked, by verdict.",
            [
                (("valid",), verdicts.valid),
                (("mismatch",), verdicts.mismatched),
                (("malformed",), verdicts.malformed),
            ],
            ("verdict",),
        )

    def _cache(self, source: MetricsSource) -> Iterator[Metric]:
        stats = source.cache.stats()
        l1 = stats.l1
        lower_tiers = [((name,), tier) for name, tier in (("l2", stats.l2), ("l3", stats.l3)) if tier is not None]
        tiers: list[tuple[tuple[str, ...], CacheStats | TierStats]] = [(("l1",), l1), *lower_tiers]
        tier = ("tier",)
        yield self._counter("cache_hits", "Keys found.", [(name, it.hits) for name, it in tiers], tier)
        yield self._counter("cache_misses", "Keys not found.", [(name, it.misses) for name, it in tiers], tier)
        yield self._gauge("cache_entries", "Entries in L1.", l1.size)
        yield self._gauge("cache_max_entries", "Maximum entries in L1.", l1.maxsize)
        yield self._counter(
            "cache_evictions",
            "Entries that L1 evicted or expired.",
            [(("size",), l1.evictions), (("expired",), l1.expirations)],
            ("reason",),
        )
        yield self._counter("cache_promotions", "Entries promoted to L1 after hits in a lower tier.", stats.promotions)
        yield self._counter("cache_demotions", "Entries evicted from L1 and written back to L2.", stats.demotions)
        yield self._counter("cache_loads", "Loader calls.", stats.loads)
        yield self._counter("cache_load_errors", "Loader calls that failed.", stats.load_errors)
        yield self._counter("cache_load_joins", "Calls that joined a load already in flight.", stats.joined)
        yield self._counter("cache_stale_served", "Stale values served.", stats.stale_served)
        yield self._counter("cache_deadlines", "Reads of lower tiers ended by the deadline.", stats.deadlines)
        yield self._counter("cache_dropped_writes", "Queued writes that a tier did not store.", stats.dropped)
        yield self._gauge("cache_loading", "Keys whose load is in flight.", stats.loading)
        if stats.backplane is not None:
            yield from self._backplane(stats.backplane)
        if not lower_tiers:
            return
        yield self._counter(
            "cache_skipped",
            "Keys that skipped the tier: open breaker.",
            [(n, t.skipped) for n, t in lower_tiers],
            tier,
        )
        yield self._counter(
            "cache_timeouts", "Calls ended by the deadline.", [(n, t.timeouts) for n, t in lower_tiers], tier
        )
        yield self._counter(
            "cache_errors", "Failed calls.", [(name, sum(it.errors.values())) for name, it in lower_tiers], tier
        )
        yield self._gauge(
            "cache_breaker_state",
            "1 for the current state of the circuit breaker.",
            [((*name, state.value), float(it.breaker is state)) for name, it in lower_tiers for state in BreakerState],
            ("tier", "state"),
        )
        yield self._summary(
            "cache_access_seconds",
            "Duration of reads, for each key.",
            [(name, it.latency) for name, it in lower_tiers],
            tier,
        )

    def _backplane(self, stats: BackplaneStats) -> Iterator[Metric]:
        yield self._gauge(
            "backplane_state",
            "1 for the current state of the backplane.",
            [((state.value,), float(stats.state is state)) for state in BackplaneState],
            ("state",),
        )
        yield self._counter("backplane_sent", "Records of this cache that the log has.", stats.sent)
        yield self._counter("backplane_received", "Records of other caches that were read.", stats.received)
        yield self._counter("backplane_applied", "Records of other caches that were applied.", stats.applied)
        yield self._counter("backplane_recovered", "Records read after a lost connection.", stats.recovered)
        yield self._counter("backplane_gaps", "Gaps after which L1 was verified.", stats.gaps)
        yield self._counter("backplane_malformed", "Records that could not be parsed.", stats.malformed)
        yield self._gauge("backplane_queued", "Records that wait to be published.", stats.queued)
        yield self._summary("backplane_lag_seconds", "Time from a write to its record.", [((), stats.lag)], ())

    def _pools(self, source: MetricsSource) -> Iterator[Metric]:
        pools = pools_of(source)
        if not pools:
            return
        stats = [((pool.name,), pool.stats()) for pool in pools]
        pool = ("pool",)

        def each(attribute: str) -> list[_Value]:
            return [(name, getattr(it, attribute)) for name, it in stats]

        yield self._gauge("pool_connections", "Open connections.", each("size"), pool)
        yield self._gauge("pool_idle_connections", "Idle connections.", each("idle"), pool)
        yield self._gauge(
            "pool_used_connections", "Connections in use, in a check or in a reset.", each("in_use"), pool
        )
        yield self._gauge("pool_min_connections", "Minimum connections kept open.", each("min_size"), pool)
        yield self._gauge("pool_max_connections", "Maximum connections open.", each("max_size"), pool)
        yield self._gauge("pool_waiting_requests", "Callers waiting for a connection.", each("waiting"), pool)
        healthy = [((it.name,), float(it.healthy)) for it in pools]
        yield self._gauge("pool_healthy", "1 when the server answers.", healthy, pool)
        yield self._counter("pool_timeouts", "Callers whose wait timed out.", each("timeouts"), pool)
        yield self._counter("pool_saturations", "Callers refused: too many were waiting.", each("saturations"), pool)
        yield self._counter("pool_connect_errors", "Failed attempts to connect.", each("failed_connects"), pool)
        yield self._counter("pool_opened_connections", "Connections opened.", each("opened"), pool)
        yield self._counter(
            "pool_closed_connections",
            "Connections closed, by reason.",
            [((*name, reason), count) for name, it in stats for reason, count in it.closed.items()],
            ("pool", "reason"),
        )
        waits = [((it.name,), it.wait_time) for it in pools]
        yield self._histogram("pool_wait_seconds", "Time that callers waited for a connection.", waits, pool)
        uses = [((it.name,), it.use_time) for it in pools]
        yield self._histogram("pool_use_seconds", "Time that callers kept a connection.", uses, pool)

    def _routes(self, http: HttpSource) -> Iterator[Metric]:
        counts = http.counts()
        yield self._counter("http_refused", "Requests refused for their constitutional hash.", counts.refused)
        yield self._counter(
            "http_cache_requests",
            "Requests seen by the response cache, by result.",
            [(("hit",), counts.hits), (("miss",), counts.misses), (("bypass",), counts.bypassed)],
            ("result",),
        )
        yield self._counter("http_cache_stores", "Responses stored in the response cache.", counts.stored)
        yield self._histogram(
            "http_request_duration_seconds",
            "Duration of responses, by route.",
            [((route,), latency) for route, latency in http.routes().items()],
            ("route",),
        )

    def _counter(self, name: str, text: str, values: float | Iterable[_Value], labels: tuple[str, ...] = ()) -> Metric:
        return self._filled(CounterMetricFamily, name, text, values, labels)

    def _gauge(self, name: str, text: str, values: float | Iterable[_Value], labels: tuple[str, ...] = ()) -> Metric:
        return self._filled(GaugeMetricFamily, name, text, values, labels)

    def _filled(
        self, family: Any, name: str, text: str, values: float | Iterable[_Value], labels: tuple[str, ...]
    ) -> Metric:
        metric: Metric = self._family(family, name, text, labels)
        for own, value in [((), values)] if isinstance(values, int | float) else values:
            metric.add_metric((*self._label_values, *own), value)  # type: ignore[attr-defined]
        return metric

    def _family(self, family: Any, name: str, text: str, labels: tuple[str, ...]) -> Any:
        return family(f"{self._namespace}_{name}", text, labels=(*self._label_names, *labels))

    def _histogram(
        self,
        name: str,
        text: str,
        latencies: Iterable[tuple[tuple[str, ...], LatencyHistogram]],
        labels: tuple[str, ...] = (),
    ) -> Metric:
        metric = self._family(HistogramMetricFamily, name, text, labels)
        for own, latency in latencies:
            within, total, sum_ns = latency.cumulative(self._bounds_ns)
            buckets = [*zip(self._bound_names, within, strict=True), ("+Inf", total)]
            metric.add_metric((*self._label_values, *own), buckets, sum_ns / 1e9)
        return metric  # type: ignore[no-any-return]

    def _summary(
        self, name: str, text: str, values: Iterable[tuple[tuple[str, ...], HistogramSnapshot]], labels: tuple[str, ...]
    ) -> Metric:
        """Return a summary, for latencies of which there is only a snapshot."""
        metric = self._family(SummaryMetricFamily, name, text, labels)
        for own, latency in values:
            constants = dict(zip((*self._label_names, *labels), (*self._label_values, *own), strict=True))
            for quantile, attribute in _QUANTILES:
                seconds = getattr(latency, attribute) / 1e9
                metric.add_sample(metric.name, {**constants, "quantile": quantile}, seconds)
            metric.add_metric((*self._label_values, *own), latency.count, latency.count * latency.mean / 1e9)
        return metric  # type: ignore[no-any-return]


def exposition(registry: CollectorRegistry) -> Callable[[], tuple[str, bytes]]:
    """Return a function for `PerformanceMiddleware(metrics=...)` that renders all metrics of a registry."""
    return lambda: (CONTENT_TYPE_LATEST, generate_latest(registry))
