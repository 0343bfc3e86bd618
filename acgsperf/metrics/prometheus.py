"""Metrics for Prometheus, read from the service when they are asked for: nothing is counted twice."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from acgsperf._native.hdr_codec import cumulative
from acgsperf._native.types import CacheStats, HistogramSnapshot
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

# From an L1 hit to a request that has hung; the targets of 1, 2 and 5 ms are bounds themselves.
BUCKETS_S: Final = (
    *(1e-6, 5e-6, 25e-6, 1e-4, 25e-5, 5e-4),
    *(1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_QUANTILES: Final = (("0.5", "p50"), ("0.9", "p90"), ("0.95", "p95"), ("0.99", "p99"), ("0.999", "p999"))
_Value = tuple[tuple[str, ...], float]


class PerformanceCollector(Collector):
    """Register it with a `prometheus_client` registry; a scrape reads the source, and costs nothing in between.

    A registry refuses a second one with the same namespace and a ValueError, whatever its labels.

    A scrape belongs to the event loop of the source, as its caches and pools do: serve it there, for which `exposition`
    and the middleware are.

    Args:
        source: the service; None for a middleware alone.
        http: a middleware whose routes are exported too.
        namespace: what the names of the metrics begin with.
        labels: constant labels of every metric.
        buckets_s: the bounds of the histograms, in seconds, ascending.

    Raises:
        TypeError: for a source that is no service, and for a label that is no text.
        ValueError: for a name that Prometheus does not accept, and for bounds that are not positive and ascending.
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
                raise TypeError(f"labels must be text, not {name}={value!r:.100}")
        if source is not None and not isinstance(source, MetricsSource):
            raise TypeError(f"source must be a service or None, not {source!r:.100}")
        for name in (namespace, *constants):
            if not _NAME.fullmatch(name) or name.startswith("__"):
                raise ValueError(f"namespace and labels must be names of letters, digits and _, not {name!r}")
        bounds_ns = [round(bound * 1e9) for bound in buckets_s]
        if bounds_ns != sorted(set(bounds_ns)) or not all(bound > 0 for bound in bounds_ns):
            raise ValueError(f"buckets_s must be positive and ascending, not {buckets_s!r}")
        self._source = source
        self._http = http
        self._namespace = namespace
        self._label_names, self._label_values = tuple(constants), tuple(constants.values())
        self._bounds_ns = bounds_ns
        self._bound_names = [f"{bound:g}" for bound in buckets_s]

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it is now."""
        if self._source is not None:
            yield from self._requests(self._source)
            yield from self._compliance(self._source)
            yield from self._cache(self._source)
            yield from self._pools(self._source)
        if self._http is not None:
            yield from self._routes(self._http)

    def describe(self) -> Iterator[Metric]:
        """What `collect` says: a registry refuses a second collector whose metrics have the same names."""
        return self.collect()

    def _requests(self, source: MetricsSource) -> Iterator[Metric]:
        counts = source.counts()
        latency = source.latency()
        yield self._counter("requests", "Requests answered.", latency.count)
        yield self._counter("request_errors", "Requests whose handler raised.", counts.failed)
        yield self._counter("request_misses", "Requests that no tier had an answer to.", counts.missed)
        yield self._histogram("request_duration_seconds", "How long requests took that were answered.", [((), latency)])

    def _compliance(self, source: MetricsSource) -> Iterator[Metric]:
        violations = source.counts().violations
        yield self._counter("compliance_violations", "Requests refused for their constitutional hash.", violations)
        verdicts = source.validator.metrics().verdicts
        yield self._counter(
            "compliance_validations",
            "Hashes looked at, by verdict.",
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
        behind = [((name,), tier) for name, tier in (("l2", stats.l2), ("l3", stats.l3)) if tier is not None]
        tiers: list[tuple[tuple[str, ...], CacheStats | TierStats]] = [(("l1",), l1), *behind]
        tier = ("tier",)
        yield self._counter("cache_hits", "Keys found.", [(name, it.hits) for name, it in tiers], tier)
        yield self._counter("cache_misses", "Keys not found.", [(name, it.misses) for name, it in tiers], tier)
        yield self._gauge("cache_entries", "Entries in L1.", l1.size)
        yield self._gauge("cache_max_entries", "The most entries that L1 holds.", l1.maxsize)
        yield self._counter(
            "cache_evictions",
            "Entries that L1 let go of.",
            [(("size",), l1.evictions), (("expired",), l1.expirations)],
            ("reason",),
        )
        yield self._counter("cache_promotions", "Entries taken into L1 for their hits behind it.", stats.promotions)
        yield self._counter("cache_demotions", "Evicted entries that were given back to L2.", stats.demotions)
        yield self._counter("cache_loads", "Loader calls.", stats.loads)
        yield self._counter("cache_load_errors", "Loader calls that failed.", stats.load_errors)
        yield self._counter("cache_load_joins", "Waits for a load that another had begun.", stats.joined)
        yield self._counter("cache_stale_served", "Values given though they were stale.", stats.stale_served)
        yield self._counter("cache_deadlines", "Reads behind L1 that the deadline ended.", stats.deadlines)
        yield self._counter("cache_dropped_writes", "Entries written behind that a tier did not take.", stats.dropped)
        yield self._gauge("cache_loading", "Keys being loaded.", stats.loading)
        if not behind:
            return
        yield self._counter(
            "cache_skipped", "Keys not asked for: open breaker.", [(n, t.skipped) for n, t in behind], tier
        )
        yield self._counter("cache_timeouts", "Calls that took too long.", [(n, t.timeouts) for n, t in behind], tier)
        yield self._counter(
            "cache_errors", "Calls that failed.", [(name, sum(it.errors.values())) for name, it in behind], tier
        )
        yield self._gauge(
            "cache_breaker_state",
            "1 for the state that the circuit breaker is in.",
            [((*name, state.value), float(it.breaker is state)) for name, it in behind for state in BreakerState],
            ("tier", "state"),
        )
        yield self._summary(
            "cache_access_seconds", "How long keys took.", [(name, it.latency) for name, it in behind], tier
        )

    def _pools(self, source: MetricsSource) -> Iterator[Metric]:
        pools = pools_of(source)
        if not pools:
            return
        stats = [((pool.name,), pool.stats()) for pool in pools]
        pool = ("pool",)

        def each(attribute: str) -> list[_Value]:
            return [(name, getattr(it, attribute)) for name, it in stats]

        yield self._gauge("pool_connections", "Open connections.", each("size"), pool)
        yield self._gauge("pool_idle_connections", "Connections that nobody uses.", each("idle"), pool)
        yield self._gauge("pool_used_connections", "Connections lent, checked or reset.", each("in_use"), pool)
        yield self._gauge("pool_min_connections", "The least connections kept.", each("min_size"), pool)
        yield self._gauge("pool_max_connections", "The most connections.", each("max_size"), pool)
        yield self._gauge("pool_waiting_requests", "Callers that wait for a connection.", each("waiting"), pool)
        healthy = [((it.name,), float(it.healthy)) for it in pools]
        yield self._gauge("pool_healthy", "1 when the server answers.", healthy, pool)
        yield self._counter("pool_timeouts", "Callers that waited too long.", each("timeouts"), pool)
        yield self._counter("pool_saturations", "Callers refused by the bound on waiters.", each("saturations"), pool)
        yield self._counter("pool_connect_errors", "Attempts to connect that failed.", each("failed_connects"), pool)
        yield self._counter("pool_opened_connections", "Connections opened.", each("opened"), pool)
        yield self._counter(
            "pool_closed_connections",
            "Connections let go of, by reason.",
            [((*name, reason), count) for name, it in stats for reason, count in it.closed.items()],
            ("pool", "reason"),
        )
        waits = [((it.name,), it.wait_time) for it in pools]
        yield self._histogram("pool_wait_seconds", "How long callers waited for a connection.", waits, pool)
        uses = [((it.name,), it.use_time) for it in pools]
        yield self._histogram("pool_use_seconds", "How long callers kept a connection.", uses, pool)

    def _routes(self, http: HttpSource) -> Iterator[Metric]:
        counts = http.counts()
        yield self._counter("http_refused", "Requests refused for their constitutional hash.", counts.refused)
        yield self._counter(
            "http_cache_requests",
            "What the response cache did with requests.",
            [(("hit",), counts.hits), (("miss",), counts.misses), (("bypass",), counts.bypassed)],
            ("result",),
        )
        yield self._counter("http_cache_stores", "Responses put into the response cache.", counts.stored)
        yield self._histogram(
            "http_request_duration_seconds",
            "How long responses took, by route.",
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
            within, total, sum_ns = cumulative(latency.encode(), self._bounds_ns)
            buckets = [*zip(self._bound_names, within, strict=True), ("+Inf", total)]
            metric.add_metric((*self._label_values, *own), buckets, sum_ns / 1e9)
        return metric  # type: ignore[no-any-return]

    def _summary(
        self, name: str, text: str, values: Iterable[tuple[tuple[str, ...], HistogramSnapshot]], labels: tuple[str, ...]
    ) -> Metric:
        """For what there is only a snapshot of."""
        metric = self._family(SummaryMetricFamily, name, text, labels)
        for own, latency in values:
            constants = dict(zip((*self._label_names, *labels), (*self._label_values, *own), strict=True))
            for quantile, attribute in _QUANTILES:
                seconds = getattr(latency, attribute) / 1e9
                metric.add_sample(metric.name, {**constants, "quantile": quantile}, seconds)
            metric.add_metric((*self._label_values, *own), latency.count, latency.count * latency.mean / 1e9)
        return metric  # type: ignore[no-any-return]


def exposition(registry: CollectorRegistry) -> Callable[[], tuple[str, bytes]]:
    """What `PerformanceMiddleware(metrics=...)` calls: the content type and the text of all metrics of a registry."""
    return lambda: (CONTENT_TYPE_LATEST, generate_latest(registry))
