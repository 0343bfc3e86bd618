"""Snapshots of the page of metrics of another process."""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from acgsperf.dashboard.compose import compose
from acgsperf.dashboard.interval import Interval, Observation
from acgsperf.dashboard.snapshot import Snapshot
from acgsperf.dashboard.sources import SnapshotSource
from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.figures import Figures, put
from acgsperf.metrics.metric import Kind, Metric

__all__ = ["PageSource"]

_METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in METRICS}
# No count, number of bytes or time of a real process is greater.
_MOST: Final = 2.0**63
_SUFFIXES: Final = ("_total", "_bucket", "_count", "_sum")


class PageSource(SnapshotSource):
    """Shows the page of metrics of an application, which may be the sum of several processes.

    It needs the extra `cli` or `prometheus`. A page of metrics has no alerts and no hot keys. Its percentiles are as
    exact as its buckets.

    Args:
        url: the page, for example `http://localhost:8000/metrics`.
        namespace: prefix of the metrics' names.
        timeout: deadline for the whole page, in seconds.

    Raises:
        ImportError: if `prometheus_client` is not installed.
    """

    def __init__(self, url: str, *, namespace: str = "acgsperf", timeout: float = 5.0) -> None:
        # Imported here, so that a dashboard of this process does not need prometheus_client.
        from acgsperf.workbench import scrape

        self._fetch, self._parse, self._error = scrape.fetch, scrape.samples, scrape.ScrapeError
        self._url, self._namespace, self._timeout = url, namespace, timeout
        self._before: Observation | None = None

    def start(self) -> None:
        """Forget the last observation: the first rates must not be those of the time without viewers."""
        self._before = None

    async def snapshot(self) -> Snapshot:
        """Fetch the page, and return the figures of the time since the last call.

        Raises:
            ScrapeError: if the page cannot be fetched or read.
        """
        # In threads, because a large page takes long to read. They may outlast the last viewer, and keep nothing.
        now = await asyncio.to_thread(self.observe)
        before, self._before = self._before, now
        return await asyncio.to_thread(self._compose, now, before)

    def observe(self) -> Observation:
        """Fetch the page, and return its values. It blocks, and may run in a thread.

        Raises:
            ScrapeError: if the page cannot be fetched or read.
        """
        page = self._fetch(self._url, self._timeout)
        at, clock = time.time(), time.monotonic()
        samples = self._parse(page, self._namespace)
        try:
            figures, bounds_ns = _figures(samples)
        except (ArithmeticError, LookupError, ValueError) as error:
            raise self._error(f"not a page of acgsperf's metrics: {error!r:.100}") from None
        return Observation(at, clock, figures, bounds_ns)

    def compare(self, now: Observation) -> Snapshot:
        """Return the figures of the time from the last observation to this one.

        Raises:
            ScrapeError: if they cannot be those of acgsperf.
        """
        before, self._before = self._before, now
        return self._compose(now, before)

    def _compose(self, now: Observation, before: Observation | None) -> Snapshot:
        try:
            return compose(self._url, Interval(now, before))
        except (ArithmeticError, LookupError, ValueError) as error:
            raise self._error(f"not a page of acgsperf's metrics: {error!r:.100}") from None


def _figures(samples: Mapping[str, list[tuple[dict[str, str], float]]]) -> tuple[Figures, tuple[int, ...]]:
    """Return the values of the samples in the form of `gather`, and the bounds of the buckets."""
    figures: Figures = {}
    bounds: dict[float, None] = {}
    # By metric, labels and bound.
    buckets: dict[str, dict[tuple[str, ...], dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, found in samples.items():
        metric, suffix = _metric_of(name)
        if metric is None:
            continue
        for labels, value in found:
            # The rate could be infinite.
            if value > _MOST:
                raise ValueError(f"{name} is {value:g}")
            own = tuple(labels.get(label, "") for label in metric.labels)
            if metric.kind is not Kind.HISTOGRAM:
                put(figures.setdefault(metric.name, {}), own, value, metric.merge)
            elif suffix == "_bucket":
                bound = float(labels["le"])
                bounds[bound] = None
                of_series = buckets[metric.name][own]
                of_series[bound] = of_series.get(bound, 0.0) + value
    finite = sorted(bound for bound in bounds if math.isfinite(bound))
    for name, series in buckets.items():
        for own, within in series.items():
            total = within.get(math.inf, max(within.values()))
            # A histogram with other bounds has no count for some: then as many as within the bound before.
            counts, last = [], 0.0
            for bound in finite:
                last = within.get(bound, last)
                counts.append(last)
            figures.setdefault(name, {})[own] = [*counts, total, 0.0]
    return figures, tuple(round(bound * 1e9) for bound in finite)


def _metric_of(name: str) -> tuple[Metric | None, str]:
    if name in _METRICS:
        return _METRICS[name], ""
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in _METRICS:
            return _METRICS[name.removesuffix(suffix)], suffix
    return None, ""
