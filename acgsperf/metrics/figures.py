"""The values of all metrics at one moment, as plain numbers that can be added up and written to a file."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Final

from acgsperf.dispatch import LatencyHistogram
from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.metric import Kind, Merge, Metric
from acgsperf.metrics.readers import Value, Values
from acgsperf.metrics.source import Reading

__all__ = [
    "COUNTED",
    "GAUGES",
    "Counts",
    "Figures",
    "Number",
    "Series",
    "add",
    "by_field",
    "counts_of",
    "figures_of",
    "gather",
    "negative",
    "put",
    "valid_text",
]

# A number; or for a histogram: how many latencies are within each bound, how many there are, and their sum in ns.
Number = int | float | Sequence[float]
Series = dict[tuple[str, ...], Number]
# By the name of the metric, then by the values of its labels.
Figures = dict[str, Series]
# Values at a former moment, see `counts_of`.
Counts = list[tuple[Metric, Values]]

# The counters and histograms: a process adds them up for each part that it has had.
COUNTED: Final = tuple(metric for metric in METRICS if metric.kind is not Kind.GAUGE)
GAUGES: Final = tuple(metric for metric in METRICS if metric.kind is Kind.GAUGE)


def gather(reading: Reading, bounds_ns: Sequence[int], metrics: Iterable[Metric] = METRICS) -> Figures:
    """Return the values of all metrics that have any.

    Args:
        reading: the figures of the service, the caches, the pools and the middleware.
        bounds_ns: the bounds of the buckets of histograms, ascending.
        metrics: the metrics to return.
    """
    return figures_of(((metric, metric.read(reading)) for metric in metrics), bounds_ns)


def counts_of(reading: Reading) -> Counts:
    """Return the counters, and copies of the histograms: they do not change when the sources count on."""
    return [
        (metric, [(labels, _copied(value)) for labels, value in values])
        for metric in COUNTED
        if (values := list(metric.read(reading)))
    ]


class _Fields:
    """Stands for an empty reading, and remembers which of its fields were read."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> tuple[()]:
        self.names.add(name)
        return ()


def by_field(metrics: Iterable[Metric]) -> dict[str, list[Metric]]:
    """Return for each field of `Reading` the metrics that it has values of: a part has values of few metrics."""
    found: dict[str, list[Metric]] = {}
    for metric in metrics:
        fields: Any = _Fields()
        list(metric.read(fields))
        for name in fields.names:
            found.setdefault(name, []).append(metric)
    return found


def _copied(value: Value) -> Value:
    # Exact, with the layout of the histogram: `merge` into another layout moves latencies to other buckets.
    return LatencyHistogram.decode(value.encode()) if isinstance(value, LatencyHistogram) else value


def figures_of(values: Iterable[tuple[Metric, Values]], bounds_ns: Sequence[int]) -> Figures:
    """Return the values of metrics as numbers."""
    figures: Figures = {}
    for metric, found in values:
        series: Series = {}
        for labels, value in found:
            number: Number
            if isinstance(value, LatencyHistogram):
                within, total, sum_ns = value.cumulative(bounds_ns)
                number = [*within, total, round(sum_ns)]
            else:
                number = value
            # Two pools may have the same name, and `valid_text` may return the same text for two routes.
            put(series, tuple(map(valid_text, labels)), number, metric.merge)
        if series:
            figures[metric.name] = series
    return figures


def valid_text(text: str) -> str:
    """Return a text that can be encoded as UTF-8. A server may decode a path to lone surrogates."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def put(series: Series, labels: tuple[str, ...], number: Number, rule: Merge) -> None:
    """Merge a value into the values of a metric."""
    known = series.get(labels)
    if known is None:
        series[labels] = number
    elif rule is Merge.SUM:
        series[labels] = _sum(known, number)
    else:
        assert isinstance(known, int | float)
        assert isinstance(number, int | float)
        series[labels] = min(known, number) if rule is Merge.MIN else max(known, number)


def _sum(one: Number, other: Number) -> Number:
    if isinstance(one, int | float):
        assert isinstance(other, int | float)
        return one + other
    assert not isinstance(other, int | float)
    return list(map(operator.add, one, other))


def add(into: Figures, counts: Figures) -> None:
    """Add counts, also of metrics that are not in the catalogue of this version."""
    for name, series in counts.items():
        known = into.setdefault(name, {})
        for labels, number in series.items():
            put(known, labels, number, Merge.SUM)


def negative(counts: Figures) -> Figures:
    """Return counts to add in order to subtract."""
    return {
        name: {
            labels: -number if isinstance(number, int | float) else [-part for part in number]
            for labels, number in series.items()
        }
        for name, series in counts.items()
    }
