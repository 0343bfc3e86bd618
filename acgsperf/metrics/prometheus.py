"""Metrics for Prometheus. They are read at each scrape."""

import asyncio
import atexit
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final
from weakref import WeakSet, ref

from xxhash import xxh3_64_hexdigest

from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.figures import Number, Series, valid_text
from acgsperf.metrics.metric import Kind
from acgsperf.metrics.metric import Metric as Listed
from acgsperf.metrics.process import ProcessFigures, figures_of_process
from acgsperf.metrics.source import (
    Balancers,
    Caches,
    HttpSource,
    LimitSource,
    MetricsSource,
    Pools,
    Sources,
)

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample
    from prometheus_client.utils import floatToGoString
except ImportError as _missing:
    raise ImportError("prometheus_client is not installed: pip install 'acgsperf[prometheus]'") from _missing

__all__ = ["BUCKETS_S", "PerformanceCollector", "exposition"]

# From an L1 hit to a request that hangs. The targets of 1, 2 and 5 ms are bounds.
BUCKETS_S: Final = (
    *(1e-6, 5e-6, 25e-6, 1e-4, 25e-5, 5e-4),
    *(1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED: Final = frozenset({"le", "quantile"}).union(*(metric.labels for metric in METRICS))
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
# `floatToGoString` writes an integer below this limit with `.0`, and a greater one with an exponent.
_PLAIN: Final = 1_000_000
_PUBLISH_EVERY_S: Final = 5.0


class PerformanceCollector(Collector):
    """Exports metrics to a `prometheus_client` registry. They are read at each scrape.

    A registry refuses a second collector with the same namespace with a ValueError, even if its labels differ.

    A scrape must run in the event loop of the caches and pools: serve the metrics page with `exposition` and
    `PerformanceMiddleware`.

    Args:
        source: a service, with its cache and its pools.
        cache: other caches: one, several, or a mapping of names to caches. The default name of a cache is its
            namespace. The name is the label `cache`.
        pools: other pools: a `PoolManager`, a `ConnectionPool`, or several of them.
        http: a middleware whose routes are exported as well.
        limit: a `ConcurrencyLimit`.
        balancers: a `Balancer`, or several. Figures of one endpoint in several balancers are added up.
        namespace: prefix of all metric names.
        labels: constant labels of every metric.
        buckets_s: bounds of the histograms, in seconds, ascending.
        workers_directory: a directory that the processes of an application share. Each page then has the figures of all
            of them; those of other processes are at most 5 s old. Collectors of one process with the same directory,
            `namespace` and `labels` have the same page, on which each cache, pool and so on counts once; their
            histograms are as fine as the `buckets_s` of the first of them. None: the `workers_directory` of the
            service, or without a service the environment variable `WORKERS_DIRECTORY`. An empty string: the figures of
            this collector only.

    Raises:
        SettingsError: if the directory cannot be created or written.
        TypeError: if an argument has the wrong type.
        ValueError: if Prometheus does not accept a name, two caches have the same name, or the bounds are not positive
            and ascending.
    """

    def __init__(
        self,
        source: MetricsSource | None = None,
        *,
        cache: Caches = (),
        pools: Pools = (),
        http: HttpSource | None = None,
        limit: LimitSource | None = None,
        balancers: Balancers = (),
        namespace: str = "acgsperf",
        labels: Mapping[str, str] | None = None,
        buckets_s: Sequence[float] = BUCKETS_S,
        workers_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        constants = dict(labels or {})
        for name, value in constants.items():
            if not isinstance(value, str):
                raise TypeError(f"labels must be a str, got {name}={value!r:.100}")
            if name in _RESERVED:
                raise ValueError(f"labels must have other names than those of the metrics, got {name!r}")
        for name in (namespace, *constants):
            if not _NAME.fullmatch(name) or name.startswith("__"):
                raise ValueError(f"namespace and label names must be letters, digits and _, got {name!r}")
        self._sources = Sources(source, cache, pools, http, limit, balancers)
        self._bounds_ns = _bounds_ns(buckets_s)
        self._layout = _Layout(namespace, constants, [_written(bound) for bound in buckets_s])
        directory = self._sources.directory if workers_directory is None else workers_directory
        name = _name_of_files(namespace, constants)
        self._process: ProcessFigures | None = figures_of_process(directory or "", name, self._bounds_ns)
        self._process.begin(self._sources)
        self._publishing: _Publishing | None = None
        if directory:
            _shared.add(self)
            self._sources.on_close(partial(_publish_last, ref(self)))
            self._publish_regularly()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that has a value, with its current values; nothing after `close`."""
        if self._process is None:
            return
        self._publish_regularly()
        figures = self._process.page(self._bounds_ns)
        for metric in METRICS:
            if metric.name in figures:
                yield _Family(self._layout, metric, figures[metric.name])

    def describe(self) -> Iterator[Metric]:
        """Yield every metric without values, so that a registry refuses a second collector with the same names."""
        for metric in METRICS:
            yield _Family(self._layout, metric, {})

    def publish(self) -> None:
        """Write the figures of this process for the pages of the other workers.

        Does nothing without a `workers_directory`. A collector that was created or scraped in an event loop publishes
        every 5 s, when its service has closed, when the process forks, and when the interpreter exits. Some servers end
        their workers by a signal, so the interpreter does not exit normally: without a service, call `close` when the
        application has closed its caches and pools.
        """
        if self._process is not None:
            self._process.publish()

    def close(self) -> None:
        """Publish for the last time, and export nothing from now on. You may call it again.

        Call it after you have closed the caches and pools: they count until then.

        If the process has no other collector with the same directory, namespace and labels, the other workers then
        count it as ended.
        """
        if self._process is not None:
            self._process.end(self._sources)
            self._process = None

    def _publish_regularly(self) -> None:
        if self not in _shared or (self._publishing is not None and self._publishing.loop.is_running()):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._publishing = _Publishing(self, loop)


_shared: Final[WeakSet[PerformanceCollector]] = WeakSet()


class _Publishing:
    """Publishes every 5 s in an event loop, until the collector is closed, is no longer referenced, or has another."""

    def __init__(self, collector: PerformanceCollector, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._collector: Final = ref(collector)
        # Soon, so that the pages of the other workers include this one.
        loop.call_soon(self._publish)

    def _publish(self) -> None:
        collector = self._collector()
        if collector is not None and collector._process is not None and collector._publishing is self:
            try:
                collector.publish()
            finally:
                self.loop.call_later(_PUBLISH_EVERY_S, self._publish)


def _stop_in_child() -> None:
    # The event loop of the parent seems to run in a forked child.
    for collector in list(_shared):
        collector._publishing = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stop_in_child)


def _publish_last(reference: "ref[PerformanceCollector]") -> None:
    collector = reference()
    if collector is not None:
        collector.publish()


@atexit.register
def _close_all() -> None:
    for collector in list(_shared):
        collector.close()


def _name_of_files(namespace: str, constants: Mapping[str, str]) -> str:
    """Return a name for the files of all processes with these labels: figures with other labels are not added up."""
    if not constants:
        return namespace
    return f"{namespace}-{xxh3_64_hexdigest(repr(sorted(constants.items())).encode())}"


def _bounds_ns(buckets_s: Sequence[float]) -> list[int]:
    bounds = [round(bound * 1e9) if math.isfinite(bound) else 0 for bound in buckets_s]
    if bounds != sorted(set(bounds)) or not all(bound > 0 for bound in bounds):
        raise ValueError(f"buckets_s must be positive, finite and ascending by at least 1 ns, got {buckets_s!r}")
    return bounds


def _written(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


class _Layout:
    """Makes the names, labels and lines of the metrics of a collector."""

    def __init__(self, namespace: str, constants: Mapping[str, str], bounds: Sequence[str]) -> None:
        self._namespace = namespace
        self._constants = {name: valid_text(value) for name, value in constants.items()}
        self._bounds = (*bounds, "+Inf")
        # The lines of a metric with some labels, without their values. Making them takes most of the time of a page.
        self._beginnings: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def name(self, metric: Listed) -> str:
        """Return the name of a metric without `_total`, which `prometheus_client` adds to counters itself."""
        return f"{self._namespace}_{metric.name}"

    def exported_name(self, metric: Listed) -> str:
        """Return the name of a metric on a page."""
        return f"{self._namespace}_{metric.exported_name}"

    def samples(self, metric: Listed, labels: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
        """Return the names and labels of the samples of a metric, in the order of `_values`."""
        name = self.exported_name(metric)
        named = {**self._constants, **dict(zip(metric.labels, labels, strict=True))}
        if metric.kind is not Kind.HISTOGRAM:
            return [(name, named)]
        buckets = [(f"{name}_bucket", {**named, "le": bound}) for bound in self._bounds]
        return [*buckets, (f"{name}_count", named), (f"{name}_sum", named)]

    def lines(self, metric: Listed, labels: tuple[str, ...], number: Number) -> list[str]:
        """Return the lines of a page for a metric with some labels."""
        key = (metric.name, labels)
        beginnings = self._beginnings.get(key)
        if beginnings is None:
            beginnings = self._beginnings[key] = tuple(
                _beginning(name, named) for name, named in self.samples(metric, labels)
            )
        return [
            f"{beginning} {value}.0\n"
            if type(value) is int and -_PLAIN < value < _PLAIN
            else f"{beginning} {_written(value)}\n"
            for beginning, value in zip(beginnings, _values(metric, number), strict=True)
        ]


def _beginning(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    pairs = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in sorted(labels.items()))
    return f"{name}{{{pairs}}}"


def _values(metric: Listed, number: Number) -> Sequence[float]:
    """Return the values of the samples of a number: of a histogram its buckets, its count and its sum."""
    if isinstance(number, int | float):
        return (number / 1e9 if metric.in_ns else number,)
    *buckets, total, total_ns = number
    return (*buckets, total, total, total_ns / 1e9)


class _Family(Metric):
    """A metric with its values. Its samples are made when they are first read. `exposition` does not read them."""

    def __init__(self, layout: _Layout, metric: Listed, series: Series) -> None:
        self._samples: list[Sample] | None = None
        self._layout, self._metric, self._series = layout, metric, series
        super().__init__(layout.name(metric), metric.help, metric.kind.value)

    @property
    def samples(self) -> list[Sample]:
        if self._samples is None:
            self._samples = [
                Sample(name, labels, value)
                for own, number in self._series.items()
                for (name, labels), value in zip(
                    self._layout.samples(self._metric, own), _values(self._metric, number), strict=True
                )
            ]
        return self._samples

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        # The constructor of `Metric` sets an empty list, which must not replace the samples.
        if samples:
            self._samples = samples

    def page(self) -> list[str]:
        """Return the lines that `generate_latest` would write."""
        name = self._layout.exported_name(self._metric)
        lines = [f"# HELP {name} {self.documentation}\n# TYPE {name} {self.type}\n"]
        for labels, number in self._series.items():
            lines += self._layout.lines(self._metric, labels, number)
        return lines


class _Others(Collector):
    """The metrics of other collectors."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []

    def collect(self) -> list[Metric]:
        return self.metrics


class _Exposition:
    """Renders all metrics of a registry. `PerformanceMiddleware` calls it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def __call__(self) -> tuple[str, bytes]:
        own: list[str] = []
        others = _Others()
        for metric in self._registry.collect():
            if isinstance(metric, _Family) and metric._samples is None:
                own += metric.page()
            else:
                others.metrics.append(metric)
        return CONTENT_TYPE_LATEST, "".join(own).encode() + generate_latest(others)

    @staticmethod
    def publish_regularly() -> None:
        """Let all collectors publish. The middleware calls it in the event loop, when the application starts."""
        for collector in list(_shared):
            collector._publish_regularly()


def exposition(registry: CollectorRegistry) -> Callable[[], tuple[str, bytes]]:
    """Return a function for `PerformanceMiddleware(metrics=...)` that renders all metrics of a registry.

    The page is the same as that of `generate_latest`, but it renders the metrics of this package in a fraction of the
    time.
    """
    return _Exposition(registry)
