"""The difference between two readings of the metrics: rates and percentiles of the time in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from acgsperf.metrics.figures import Figures, Number

__all__ = ["Buckets", "Interval", "Observation"]

_NO_FIGURES: Final[Figures] = {}
_MOST_NAMES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Observation:
    """The values of all metrics at one moment.

    Attributes:
        at: seconds since the epoch.
        clock: seconds on a clock that never goes back.
        figures: the values, see `gather`.
        bounds_ns: the bounds of the buckets of histograms.
    """

    at: float
    clock: float
    figures: Figures
    bounds_ns: Sequence[int]


class Buckets:
    """The counts of a histogram in each of its buckets.

    Args:
        bounds_ns: the upper bounds of the buckets; one more bucket has no upper bound.
        counts: the number of values in each bucket.
    """

    def __init__(self, bounds_ns: Sequence[int], counts: Sequence[float]) -> None:
        self.bounds_ns = bounds_ns
        self.counts = counts
        self.total = sum(counts)

    def quantile_ms(self, quantile: float) -> float | None:
        """Return a quantile, linear within a bucket, and at most the last bound; None without values."""
        if self.total <= 0:
            return None
        rank, below, lower = quantile * self.total, 0.0, 0
        for bound, count in zip(self.bounds_ns, self.counts, strict=False):
            if count and below + count >= rank:
                return (lower + (bound - lower) * (rank - below) / count) / 1e6
            below += count
            lower = bound
        return lower / 1e6

    def grouped(self, size: int) -> tuple[int, ...]:
        """Return the counts of `size` buckets at a time; the bucket without an upper bound stays alone."""
        last = len(self.bounds_ns)
        groups = [round(sum(self.counts[at : min(at + size, last)])) for at in range(0, last, size)]
        return (*groups, round(self.counts[last]))


class Interval:
    """The time between two observations of the same process.

    A series is selected by the values of its first labels; all series that have them are added up.

    Args:
        now: the later observation.
        before: the earlier one; None for the first observation, which has no rates.
    """

    def __init__(self, now: Observation, before: Observation | None) -> None:
        self.now = now
        if before is not None and list(before.bounds_ns) != list(now.bounds_ns):
            before = None
        self.seconds: float = 0.0 if before is None else max(now.clock - before.clock, 1e-3)
        self._figures = _Indexed(now.figures)
        self._before = _Indexed(_NO_FIGURES if before is None else before.figures)

    def has(self, name: str) -> bool:
        """Return whether there is a metric with this name."""
        return name in self.now.figures

    def names(self, metric: str) -> list[str]:
        """Return the values of the first label of a metric, at most 1,000."""
        return list(islice(dict.fromkeys(labels[0] for labels in self.now.figures.get(metric, ())), _MOST_NAMES))

    def value(self, name: str, *labels: str) -> float:
        """Return the value of a gauge or counter now."""
        return self._figures.sum(name, labels)

    def count(self, name: str, *labels: str) -> int:
        """Return the value of a gauge or counter now, as an integer."""
        return round(self.value(name, *labels))

    def growth(self, name: str, *labels: str) -> float | None:
        """Return by how much a counter grew; None for the first observation, or without such a counter."""
        if not self.seconds or name not in self.now.figures:
            return None
        now, before = self.value(name, *labels), self._before.sum(name, labels)
        # A process that has started again counts from 0.
        return now - before if now >= before else now

    def per_second(self, name: str, *labels: str) -> float | None:
        """Return the growth of a counter per second."""
        growth = self.growth(name, *labels)
        return None if growth is None else growth / self.seconds

    def states(self, name: str, *labels: str) -> list[str]:
        """Return the last label of each series that has these first labels and a value greater than 0."""
        return [
            own[-1]
            for own, number in self._figures.series(name, labels)
            if isinstance(number, int | float) and number > 0
        ]

    def last_labels(self, name: str, *labels: str) -> list[str]:
        """Return the last label of each series that has these first labels."""
        return [own[-1] for own, _ in self._figures.series(name, labels)]

    def exists(self, name: str, *labels: str) -> bool:
        """Return whether there is a series with these first labels."""
        return bool(self._figures.series(name, labels))

    def buckets(self, name: str, *labels: str, total: bool = False) -> Buckets:
        """Return the values that a histogram got in the interval, or with `total` since the start."""
        now = self._buckets(self._figures, name, labels)
        if total or not self.seconds:
            return Buckets(self.now.bounds_ns, now if total else [0] * len(now))
        before = self._buckets(self._before, name, labels)
        grown = [after - earlier for after, earlier in zip(now, before, strict=True)]
        return Buckets(self.now.bounds_ns, now if min(grown) < 0 else grown)

    def _buckets(self, figures: "_Indexed", name: str, labels: tuple[str, ...]) -> list[float]:
        summed = [0.0] * (len(self.now.bounds_ns) + 1)
        for number in figures.select(name, labels):
            if not isinstance(number, int | float):
                # The last number is the sum of the values.
                for at, within in enumerate(number[: len(summed)]):
                    summed[at] += within
        return [within - below for within, below in zip(summed, (0.0, *summed), strict=False)]


class _Indexed:
    """Figures whose series are found by their first label, because a page may have very many of them."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._by_first: dict[str, dict[str, list[tuple[tuple[str, ...], Number]]]] = {}

    def select(self, name: str, labels: tuple[str, ...]) -> list[Number]:
        """Return the values of the series that have these first labels."""
        return [number for _, number in self.series(name, labels)]

    def series(self, name: str, labels: tuple[str, ...]) -> list[tuple[tuple[str, ...], Number]]:
        """Return the series that have these first labels."""
        if not labels:
            return list(self._figures.get(name, {}).items())
        index = self._by_first.get(name)
        if index is None:
            index = self._by_first[name] = {}
            for own, number in self._figures.get(name, {}).items():
                index.setdefault(own[0], []).append((own, number))
        wanted = len(labels)
        return [found for found in index.get(labels[0], ()) if found[0][:wanted] == labels]

    def sum(self, name: str, labels: tuple[str, ...]) -> float:
        """Return the sum of these values, without histograms."""
        return sum(number for number in self.select(name, labels) if isinstance(number, int | float))
