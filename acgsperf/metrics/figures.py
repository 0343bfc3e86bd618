"""The values of all metrics at one moment, as plain numbers that can be added up and written to a file."""

from collections.abc import Mapping, Sequence
from typing import Final

from acgsperf.dispatch import LatencyHistogram
from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.metric import Merge
from acgsperf.metrics.source import Reading

__all__ = ["Figures", "Number", "Series", "gather", "merge", "put", "valid_text"]

# A number; or for a histogram: how many latencies are within each bound, how many there are, and their sum in ns.
Number = int | float | Sequence[float]
Series = dict[tuple[str, ...], Number]
# By the name of the metric, then by the values of its labels.
Figures = dict[str, Series]

_MERGE: Final[Mapping[str, Merge]] = {metric.name: metric.merge for metric in METRICS}


def gather(reading: Reading, bounds_ns: Sequence[int]) -> Figures:
    """Return the values of all metrics that have any.

    Args:
        reading: the figures of the service, the caches, the pools and the middleware.
        bounds_ns: the bounds of the buckets of histograms, ascending.
    """
    figures: Figures = {}
    for metric in METRICS:
        series: Series = {}
        for labels, value in metric.read(reading):
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
    return [a + b for a, b in zip(one, other, strict=True)]


def merge(into: Figures, figures: Figures) -> None:
    """Merge the values of another process."""
    for name, series in figures.items():
        rule = _MERGE.get(name)
        # A process of another version may have other metrics.
        if rule is not None:
            known = into.setdefault(name, {})
            for labels, number in series.items():
                put(known, labels, number, rule)
