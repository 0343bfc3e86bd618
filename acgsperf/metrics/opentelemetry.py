"""Metrics and spans for OpenTelemetry, by its semantic conventions for database clients."""

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, finalize

from acgsperf import hooks
from acgsperf._native.arguments import checked_seconds
from acgsperf._native.unraisable import report_unraisable
from acgsperf.dispatch import LatencyHistogram
from acgsperf.metrics.catalogue import ATTRIBUTES, METRICS
from acgsperf.metrics.figures import Figures, valid_text
from acgsperf.metrics.ledger import Ledger
from acgsperf.metrics.metric import Kind, Merge, Metric
from acgsperf.metrics.readers import Value
from acgsperf.metrics.source import (
    Balancers,
    Caches,
    HttpSource,
    LimitSource,
    MetricsSource,
    Pools,
    Reading,
    Sources,
    combined,
)

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation, get_meter_provider
    from opentelemetry.trace import TracerProvider
except ImportError as _missing:
    raise ImportError("opentelemetry-api is not installed: pip install 'acgsperf[opentelemetry]'") from _missing

from acgsperf.metrics.spans import CHECK_EVERY_S, MIN_SPAN_S, OpenTelemetrySpans

__all__ = ["Instrumentation", "instrument"]

_T = TypeVar("_T")
_NAME: Final = "acgsperf"
_QUANTILE: Final = "acgsperf.quantile"
_QUANTILES: Final = ((50, "0.5"), (95, "0.95"), (99, "0.99"))
# A collection calls every instrument once, one after the other. So one reading is used for all of them, up to this age.
_LONGEST_COLLECTION_S: Final = 1.0
# From an idle connection to the default timeout of `acquire`.
_BUCKETS_S: Final = (1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
# The metrics of the times that `hooks.connection_times` gets.
_TIMES: Final = {
    what: next(metric for metric in METRICS if metric.name == f"pool_{what}_seconds")
    for what in ("wait", "use", "create")
}


_COUNTERS: Final = tuple(metric for metric in METRICS if metric.kind is Kind.COUNTER)


class Instrumentation:
    """The object that `instrument` returns. After `close` it reports nothing and holds no reference to the sources."""

    def __init__(self, instruments: "_Instruments", sources: Sources, spans: OpenTelemetrySpans) -> None:
        self._instruments = instruments
        self._sources: Sources | None = sources
        self._spans = spans
        if sources.service is not None and any(other.service is sources.service for other in _reported_by(instruments)):
            raise ValueError("the meter provider already reports this service; close that instrumentation first")
        instruments.sources.append(sources)
        _running.append(self)
        _install_hooks()

    def close(self) -> None:
        """Stop reporting and release the sources. You may call it again."""
        if self._sources is not None:
            for instruments in [*_global, *_instruments_of.values()]:
                instruments.read_last()
            self._instruments.sources.remove(self._sources)
            self._sources = None
            _running.remove(self)
            _install_hooks()

    def _record_time(self, what: str, pool: str, seconds: float) -> None:
        """Record how long a caller waited for a connection or used it, or how long it took to open one."""
        self._instruments.times[what].record(seconds, {hooks.POOL: valid_text(pool)})


_running: Final[list[Instrumentation]] = []


def _install_hooks() -> None:
    """Set the hooks to those of the latest instrumentation; to None if there is none."""
    hooks.spans = None
    if _running:
        _install_spans(_running[-1])
    hooks.connection_times = _running[-1]._record_time if _running else None


def _install_spans(latest: Instrumentation, watch: "_Watch | None" = None) -> None:
    """Set the hook of the spans. Until the SDK is set up, an event loop checks for it: an unset hook costs nothing.

    Args:
        latest: does nothing if there is a later instrumentation.
        watch: what the event loop holds that has checked so far.
    """
    if not _running or _running[-1] is not latest:
        return
    if latest._spans.is_set_up():
        hooks.spans = latest._spans
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        hooks.spans = _UntilALoopRuns(latest)
        return
    hooks.spans = None
    if watch is None:
        watch = _Watch()
        # If this event loop ends before the SDK is set up, the next one has to check.
        finalize(watch, _install_spans, latest).atexit = False
    loop.call_later(CHECK_EVERY_S, _install_spans, latest, watch)


class _Watch:
    """Referenced by nothing but the calls that an event loop has scheduled, which it releases when it is closed."""


class _UntilALoopRuns:
    """Makes no spans. The first call, which is in an event loop, lets that loop check for the SDK."""

    def __init__(self, latest: Instrumentation) -> None:
        self._latest = latest

    def during(self, name: str, attributes: object, work: Awaitable[_T], **options: object) -> Awaitable[_T]:
        _install_spans(self._latest)
        return work

    def past(self, *arguments: object) -> None:
        _install_spans(self._latest)

    def batch(self, *arguments: object) -> None:
        _install_spans(self._latest)


class _Instruments:
    """The instruments of a provider, and the sources that they report. The provider keeps its instruments forever."""

    def __init__(self, provider: MeterProvider) -> None:
        self.sources: list[Sources] = []
        # The SDK continues in a forked child with the sums of the parent, so they must not go back to 0.
        self._ledger = Ledger(lambda: _reported_by(self), (), _COUNTERS, begins_at_fork=False)
        self._reading = Reading()
        self._counts: Figures = {}
        self._read_at = 0.0
        self._served: set[str] = set()
        self._lock = threading.Lock()
        meter = provider.get_meter(_NAME, version(_NAME))
        self.times: Final = {what: _histogram(meter, metric) for what, metric in _TIMES.items()}
        create = {
            Kind.COUNTER: meter.create_observable_counter,
            Kind.GAUGE: meter.create_observable_up_down_counter,
            Kind.HISTOGRAM: meter.create_observable_gauge,
        }
        for name, metrics in INSTRUMENTS.items():
            first = metrics[0]
            make = create[first.kind] if first.merge is Merge.SUM else meter.create_observable_gauge
            make(name, [self._observing(name, metrics)], first.unit, first.help)

    def after_fork(self) -> None:
        """Prepare for the use in a forked child. Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def read_last(self) -> None:
        """Read the counts before some sources are removed, and release what the last collection has read."""
        with self._lock:
            try:
                self._ledger.read()
            except Exception as error:
                # A source of the user may raise, and must not keep its instrumentation open.
                report_unraisable(error, self)
            self._reading = Reading()
            self._served.clear()
            self._read_at = 0.0

    def _observing(self, name: str, metrics: Sequence[Metric]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            if not _reported_by(self):
                return []
            reading, counts = self._read_for(name)
            return [
                observation
                for metric in metrics
                for observation in (
                    _of_counter(metric, counts) if metric.kind is Kind.COUNTER else _observations(metric, reading)
                )
            ]

        return observe

    def _read_for(self, instrument: str) -> tuple[Reading, Figures]:
        """Return the figures of this collection. If the instrument already got them, a new collection has begun."""
        with self._lock:
            now = time.monotonic()
            if instrument in self._served or now - self._read_at > _LONGEST_COLLECTION_S:
                parts, self._counts = self._ledger.read()
                self._reading, self._read_at = combined(parts), now
                self._served.clear()
            self._served.add(instrument)
            return self._reading, self._counts


def _instruments() -> dict[str, list[Metric]]:
    """Return the observable instruments, and the metrics that each of them reports."""
    found: dict[str, list[Metric]] = {}
    for metric in METRICS:
        # OpenTelemetry has no observable histogram, so the times of connections are recorded one by one.
        if metric not in _TIMES.values():
            name = f"{metric.instrument}.quantile" if metric.kind is Kind.HISTOGRAM else metric.instrument
            found.setdefault(name, []).append(metric)
    return found


INSTRUMENTS: Final = _instruments()


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    options: dict[str, Any] = {}
    # Older versions of the API do not have this parameter.
    if "explicit_bucket_boundaries_advisory" in inspect.signature(meter.create_histogram).parameters:
        options["explicit_bucket_boundaries_advisory"] = _BUCKETS_S
    return meter.create_histogram(metric.instrument, metric.unit, metric.help, **options)


def _of_counter(metric: Metric, counts: Figures) -> Iterable[Observation]:
    for labels, number in counts.get(metric.name, {}).items():
        assert isinstance(number, int | float)
        yield Observation(number / 1e9 if metric.in_ns else number, _attributes(metric, labels))


def _attributes(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    own = {ATTRIBUTES[name]: text for name, text in zip(metric.labels, labels, strict=True)}
    return dict(metric.otel_attributes) | own


def _observations(metric: Metric, reading: Reading) -> Iterable[Observation]:
    values: dict[tuple[str, ...], Value] = {}
    for labels, value in metric.read(reading):
        key = tuple(map(valid_text, labels))
        values[key] = _merged(values[key], value, metric.merge) if key in values else value
    for labels, value in values.items():
        attributes = _attributes(metric, labels)
        if isinstance(value, LatencyHistogram):
            for percent, quantile in _QUANTILES:
                yield Observation(value.percentile(percent) / 1e9, {**attributes, _QUANTILE: quantile})
        else:
            yield Observation(value, attributes)


def _merged(one: Value, other: Value, rule: Merge) -> Value:
    if isinstance(one, LatencyHistogram) and isinstance(other, LatencyHistogram):
        both = LatencyHistogram()
        both.merge(one)
        both.merge(other)
        return both
    assert not isinstance(one, LatencyHistogram)
    assert not isinstance(other, LatencyHistogram)
    return one + other if rule is Merge.SUM else min(one, other) if rule is Merge.MIN else max(one, other)


_instruments_of: Final[WeakKeyDictionary[MeterProvider, _Instruments]] = WeakKeyDictionary()
# The instruments that were made for the provider that was the global one then. Before the SDK is set up, that is the
# proxy of the API. It passes its instruments to the SDK's provider later.
_global: list[_Instruments] = []


def _of(provider: MeterProvider | None) -> _Instruments:
    current = get_meter_provider()
    if provider is None:
        provider = current
    found = _instruments_of.get(provider)
    if found is None and provider is current and _global:
        found = _global[0]
    if found is None:
        found = _instruments_of[provider] = _Instruments(provider)
        if provider is current:
            _global.append(found)
    return found


def _after_fork_in_child() -> None:
    for instruments in [*_global, *_instruments_of.values()]:
        instruments.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _reported_by(instruments: _Instruments) -> list[Sources]:
    """Return the sources that some instruments report.

    The proxy may pass its instruments to a provider that has such instruments already. The SDK ignores the second ones,
    so the first ones report the sources of both.
    """
    together = {*_global, *filter(None, [_instruments_of.get(get_meter_provider())])}
    return [sources for each in (together if instruments in together else [instruments]) for sources in each.sources]


def instrument(
    source: MetricsSource | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    cache: Caches = (),
    pools: Pools = (),
    http: HttpSource | None = None,
    limit: LimitSource | None = None,
    balancers: Balancers = (),
    tracer_provider: TracerProvider | None = None,
    min_span_s: float = MIN_SPAN_S,
) -> Instrumentation:
    """Report metrics at every collection, and make spans of slow operations.

    You may call it before the SDK is set up, and several times. Figures without a distinguishing attribute, such as the
    requests of two services, are added up.

    There are spans for loads, for waits for the load of another caller or process, for waits for a connection, and for
    calls to a tier that take longer than 95 % of the calls. A hit in L1 never makes a span. The latest instrumentation
    makes the spans of all caches and pools of the process, and measures the times of all their connections.

    A metric reader may collect in its own thread. The counters are read without locks, and each of them is exact.

    Args:
        source: a service, with its cache and its pools.
        meter_provider: None for the global one.
        cache: other caches, as for `PerformanceCollector`.
        pools: other pools, as for `PerformanceCollector`.
        http: a middleware.
        limit: a `ConcurrencyLimit`.
        balancers: a `Balancer`, or several.
        tracer_provider: None for the global one.
        min_span_s: an operation that takes less time makes no span, unless its loader makes spans, or it fails.

    Returns:
        An object with `close()`.

    Raises:
        TypeError, ValueError: as `PerformanceCollector`; also if the provider already reports this service.
    """
    sources = Sources(source, cache, pools, http, limit, balancers)
    return Instrumentation(
        _of(meter_provider),
        sources,
        OpenTelemetrySpans(tracer_provider, checked_seconds("min_span_s", min_span_s, zero=True)),
    )
