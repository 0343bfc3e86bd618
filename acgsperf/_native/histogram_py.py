"""`LatencyHistogram` in pure Python. It behaves as the class of `_core`, which documents it; the two change together.

What changes or reads several fields is one atomic step; see `atomic`. Counts are computed from a copy.
"""

import math
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, islice, repeat
from operator import add, getitem, index, setitem
from typing import Final, NamedTuple, Self, SupportsIndex

from acgsperf._native import hdr_codec
from acgsperf._native.arguments import checked_bounds_ns, checked_interval_ns, checked_latency_s, checked_percent
from acgsperf._native.atomic import FinalType, atomic, qualified
from acgsperf._native.hdr_layout import Layout
from acgsperf._native.stats import HistogramSnapshot

_LARGEST: Final = 2**63 - 1


class _Reading(NamedTuple):
    """The state of a histogram at one moment: `counts` begins with slot `first` and ends with the last one in use."""

    layout: Layout
    counts: list[int]
    first: int
    total: int
    smallest: int
    largest: int

    def used(self) -> Iterator[tuple[int, int]]:
        return ((i, count) for i, count in enumerate(self.counts, self.first) if count)

    @property
    def min(self) -> int:
        return self.smallest if self.total else 0

    def mean(self) -> float:
        total = 0.0
        for i, count in self.used():
            total += float(count) * float(self.layout.median_of(i))
        return total / self.total if self.total else 0.0

    def stddev(self) -> float:
        mean, total = self.mean(), 0.0
        for i, count in self.used():
            deviation = self.layout.median_of(i) - mean
            total += deviation * deviation * count
        return math.sqrt(total / self.total) if self.total else 0.0

    def percentile(self, percent: float) -> int:
        if self.total == 0:
            return 0
        if percent == 0:
            return self.smallest
        wanted = max(1, int(percent / 100 * float(self.total) + 0.5))
        seen = 0
        for i, count in self.used():
            seen += count
            if seen >= wanted:
                return min(max(self.layout.highest_of(i), self.smallest), self.largest)
        return self.largest


class LatencyHistogram(FinalType):
    """Counts latencies in buckets whose width grows with the value (HdrHistogram, by Gil Tene)."""

    # The slots in use are _first to _end - 1, and those two are not zero. _counts is always the same list: steps and
    # windows are prepared on it.
    __slots__ = (
        "__weakref__",
        "_counts",
        "_end",
        "_first",
        "_largest",
        "_layout",
        "_smallest",
        "_total",
    )

    _counts: list[int]
    _end: int
    _first: int
    _largest: int
    _layout: Layout
    _smallest: int
    _total: int

    __hash__ = None  # type: ignore[assignment]

    # Not __init__: calling that a second time must not change the object.
    def __new__(
        cls,
        lowest_ns: int = 1,
        highest_ns: int = 3_600_000_000_000,
        significant_figures: int = 3,
    ) -> Self:
        self = super().__new__(cls)
        self._layout = Layout(lowest_ns, highest_ns, significant_figures)
        self._counts = [0] * self._layout.length
        self._total = 0
        self._smallest = _LARGEST
        self._largest = 0
        self._first = self._layout.length
        self._end = 0
        return self

    @property
    def lowest_ns(self) -> int:
        """The smallest difference that it distinguishes, in ns."""
        return self._layout.lowest_ns

    @property
    def highest_ns(self) -> int:
        """The largest latency that can be recorded, in ns."""
        return self._layout.highest_ns

    @property
    def significant_figures(self) -> int:
        """The number of decimal figures to which every result is right."""
        return self._layout.significant_figures

    @atomic
    def _count(self, slot: int, value: int) -> None:
        """Count one latency."""
        self._counts[slot] += 1
        self._total += 1
        if value < self._smallest:
            self._smallest = value
            self._first = slot
        if value > self._largest or slot >= self._end:
            self._largest = value
            self._end = slot + 1

    @atomic
    def _apply(
        self, steps: Iterator[None], done: list[None], total: int, smallest: int, largest: int, first: int, end: int
    ) -> int:
        """Add to several slots at once.

        Args:
            steps: adds to a slot with each iteration, in C code alone.
            done: an empty list.
            total: how many latencies these are.
            smallest: the smallest of them.
            largest: the largest of them.
            first: the slot of the smallest.
            end: one more than the slot of the largest.

        Returns:
            How many latencies there are then. 2**63 or more do not fit: nothing has changed.
        """
        reached = self._total + total
        if reached > _LARGEST:
            return reached
        # One instruction does every step.
        done += steps
        self._total = reached
        if smallest < self._smallest:
            self._smallest = smallest
            self._first = first
        if largest > self._largest or end > self._end:
            self._largest = largest
            self._end = end
        return reached

    def _add(self, counted: Mapping[int, int], total: int, smallest: int, largest: int) -> int:
        counts = repeat(self._counts)
        slots = list(counted)
        sums = map(add, map(getitem, counts, slots), counted.values())
        ends = self._layout.index_of(smallest), self._layout.index_of(largest) + 1
        return self._apply(map(setitem, counts, slots, sums), [], total, smallest, largest, *ends)

    @atomic
    def _copy(self, window: Iterator[int], counts: list[int], first: int, end: int) -> tuple[int, int, int] | None:
        """Copy the counts of the slots in use; None if these are not `first` to `end`."""
        if self._first != first or self._end != end:
            return None
        counts += window
        total = self._total
        smallest = self._smallest
        largest = self._largest
        return total, smallest, largest

    def _read(self) -> _Reading:
        while True:
            first, end = self._first, self._end
            counts: list[int] = []
            figures = self._copy(islice(self._counts, first, max(first, end)), counts, first, end)
            if figures is not None:
                return _Reading(self._layout, counts, first, *figures)

    def _checked(self, ns: SupportsIndex) -> int:
        try:
            value = index(ns)
        except TypeError:
            raise TypeError(f"latency must be an integer number of nanoseconds, got {ns!r}") from None
        if not 0 <= value <= self.highest_ns:
            raise ValueError(f"latency must be between 0 and {self.highest_ns} ns, got {value!r}")
        return value

    def record(self, ns: int, /) -> None:
        """Count one latency in nanoseconds."""
        value = self._checked(ns)
        self._count(self._layout.index_of(value), value)

    def record_seconds(self, seconds: float, /) -> None:
        """Count one latency in seconds, rounded down to whole nanoseconds."""
        ns = checked_latency_s(seconds) * 1e9
        if not 0 <= ns <= self.highest_ns:
            raise ValueError(f"latency must be between 0 and {self.highest_ns / 1e9} s, got {seconds!r}")
        value = int(ns)
        self._count(self._layout.index_of(value), value)

    def record_many(self, values_ns: Iterable[int], /) -> None:
        """Count every latency of an iterable, or none of them if one is bad."""
        values = [self._checked(ns) for ns in values_ns]
        if values:
            self._add(Counter(map(self._layout.index_of, values)), len(values), min(values), max(values))

    def record_corrected(self, ns: int, expected_interval_ns: int) -> None:
        """Count a latency, and those that a client which waits for answers could not measure meanwhile."""
        value = self._checked(ns)
        interval = checked_interval_ns(value, expected_interval_ns)
        omitted = range(value - interval, interval - 1, -interval)
        counted = Counter(map(self._layout.index_of, omitted))
        counted[self._layout.index_of(value)] += 1
        self._add(counted, 1 + len(omitted), omitted[-1] if omitted else value, value)

    @property
    def count(self) -> int:
        """The number of recorded latencies."""
        return self._total

    @property
    def min(self) -> int:
        """The smallest recorded latency, in ns; 0 if there is none."""
        smallest = self._smallest
        return 0 if smallest == _LARGEST else smallest

    @property
    def max(self) -> int:
        """The largest recorded latency, in ns; 0 if there is none."""
        return self._largest

    @property
    def mean(self) -> float:
        """The arithmetic mean in ns, from the middle of each bucket; 0.0 if empty."""
        return self._read().mean()

    @property
    def stddev(self) -> float:
        """The standard deviation in ns of the whole population; 0.0 if empty."""
        return self._read().stddev()

    def percentile(self, q: float, /) -> int:
        """Return the latency in ns of the nearest rank to `q` percent of the recorded ones; 0 if empty."""
        percent = checked_percent(q)
        return self._read().percentile(percent)

    def cumulative(self, bounds_ns: Iterable[int], /) -> tuple[list[int], int, float]:
        """Return how many latencies are within each bound, the count of all, and the sum of all in ns."""
        bounds = checked_bounds_ns(bounds_ns)
        read = self._read()
        within, total_ns = [0] * (len(bounds) + 1), 0.0
        for i, count in read.used():
            total_ns += float(count) * float(read.layout.median_of(i))
            within[bisect_left(bounds, read.layout.lowest_of(i))] += count
        return list(accumulate(within[:-1])), read.total, total_ns

    def merge(self, other: "LatencyHistogram", /) -> None:
        """Add the counts of another histogram; if its layout differs, by the middle of each of its buckets."""
        if not isinstance(other, LatencyHistogram):
            raise TypeError(_incorrect("other", other))
        read = other._read()
        if read.largest > self.highest_ns:
            raise ValueError(f"merged latencies must be at most {self.highest_ns} ns, got {read.largest}")
        if not read.total:
            return
        counted: Counter[int] = Counter()
        first, last = other._layout.index_of(read.smallest), other._layout.index_of(read.largest)
        for i, count in read.used():
            # Count one largest and one smallest value exactly: they are the ends of the slots in use.
            if i == last:
                counted[self._layout.index_of(read.largest)] += 1
                count -= 1
            if i == first and count:
                counted[self._layout.index_of(read.smallest)] += 1
                count -= 1
            if count:
                middle = min(max(other._layout.median_of(i), read.smallest), read.largest)
                counted[self._layout.index_of(middle)] += count
        reached = self._add(counted, read.total, read.smallest, read.largest)
        if reached > _LARGEST:
            raise ValueError(f"merged latencies must be fewer than 2**63, got {reached}")

    def snapshot(self) -> HistogramSnapshot:
        """Return the usual figures, all of one moment."""
        read = self._read()
        percentiles = map(read.percentile, (50, 90, 95, 99, 99.9))
        return HistogramSnapshot(read.total, read.min, read.largest, read.mean(), read.stddev(), *percentiles)

    @atomic
    def _clear(self, used: slice, zeros: list[int], first: int, end: int, empty: int) -> bool:
        if self._first != first or self._end != end:
            return False
        self._counts[used] = zeros
        self._total = 0
        self._smallest = _LARGEST
        self._largest = 0
        self._first = empty
        self._end = 0
        return True

    def reset(self) -> None:
        """Forget every latency."""
        while True:
            first, end = self._first, self._end
            zeros = [0] * (end - first)
            if self._clear(slice(first, max(first, end)), zeros, first, end, self._layout.length):
                return

    def time(self) -> "Timer":
        """Return a context manager that records how long its block took, whether it raised or not."""
        return Timer(self)

    def encode(self) -> bytes:
        """Return the HdrHistogram V2 compressed format, as bytes (other tools expect it in base64)."""
        read = self._read()
        return hdr_codec.encode(read.layout, read.used(), read.smallest, read.largest)

    @classmethod
    def decode(cls, blob: bytes, /) -> Self:
        """Create a histogram from the HdrHistogram V2 compressed format."""
        layout, used, counts, smallest, largest = hdr_codec.decode(blob)
        histogram = cls(layout.lowest_ns, layout.highest_ns, layout.significant_figures)
        for i, count in zip(used, counts, strict=True):
            histogram._counts[i] = count
            histogram._total += count
        if used:
            histogram._smallest, histogram._largest = smallest, largest
            histogram._first, histogram._end = layout.index_of(smallest), layout.index_of(largest) + 1
        return histogram

    def __eq__(self, other: object, /) -> bool:
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        if (self.lowest_ns, self.highest_ns, self.significant_figures) != (
            other.lowest_ns,
            other.highest_ns,
            other.significant_figures,
        ):
            return False
        return _have_equal_counts(self, other)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + sys.getsizeof(self._counts)

    @atomic
    def _extremes(self) -> tuple[int, int, int]:
        total = self._total
        smallest = self._smallest
        largest = self._largest
        return total, smallest, largest

    def __repr__(self) -> str:
        total, smallest, largest = self._extremes()
        return f"<LatencyHistogram count={total} min={smallest if total else 0} max={largest}>"


@atomic
def _have_equal_counts(one: LatencyHistogram, other: LatencyHistogram) -> bool:
    """Return whether two histograms of one layout have counted the same."""
    if one._total != other._total or one._first != other._first or one._end != other._end:
        return False
    return one._counts == other._counts


def _incorrect(name: str, value: object) -> str:
    """The message of compiled code for an argument that is no histogram."""
    expected = qualified(LatencyHistogram)
    return f"Argument '{name}' has incorrect type (expected {expected}, got {qualified(type(value))})"


class Timer(FinalType):
    """Records the time between entering and leaving; created by `LatencyHistogram.time`."""

    __slots__ = ("_histogram", "_started_ns")

    _histogram: LatencyHistogram
    _started_ns: int

    def __new__(cls, histogram: LatencyHistogram) -> Self:
        if not isinstance(histogram, LatencyHistogram):
            raise TypeError(_incorrect("histogram", histogram))
        self = super().__new__(cls)
        self._histogram = histogram
        self._started_ns = -1
        return self

    def __enter__(self) -> Self:
        self._started_ns = time.monotonic_ns()
        return self

    def __exit__(self, *exc_info: object) -> None:
        elapsed = time.monotonic_ns() - self._started_ns
        if self._started_ns < 0:
            raise RuntimeError("the timer was not entered")
        self._started_ns = -1
        self._histogram.record(min(max(elapsed, 0), self._histogram.highest_ns))
