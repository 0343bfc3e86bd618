"""What is kept of a service: the counts and the latencies of each hour."""

from dataclasses import dataclass, field
from typing import Final, TypeGuard

from acgsperf._native.hdr_codec import layout_of
from acgsperf.dispatch import LatencyHistogram
from acgsperf.fleet.report import MOST_PER_S
from acgsperf.trends.changes import HOUR_S

__all__ = ["LARGEST_LATENCY_BYTES", "History", "Hour", "HourSum", "InstanceHour"]

# A histogram of an hour has about 3 KiB.
LARGEST_LATENCY_BYTES: Final = 128 << 10
# A row of an instance with more is false.
_MOST_A_ROW: Final = int(MOST_PER_S) * HOUR_S
# Of many instances. A row that would exceed it is not added, so that a merged row can always be read again.
_MOST_A_SUM: Final = 1000 * _MOST_A_ROW
_EMPTY: Final = LatencyHistogram()
_LAYOUT: Final = _EMPTY.lowest_ns, _EMPTY.highest_ns, _EMPTY.significant_figures


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHour:
    """What one instance of a service has done in an hour, until now.

    Attributes:
        start: the start of the hour, in seconds since 1970.
        instance: names the instance.
        version: of the service; empty if it is not known.
        failed, violations, missed: as in `Counts` of the service.
        latency: of its answered requests, in ns, encoded as HdrHistogram V2.
    """

    start: int
    instance: str
    version: str
    failed: int
    violations: int
    missed: int
    latency: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """The figures of an hour.

    Attributes:
        start: the start of the hour, in seconds since 1970.
        version: of the service; None for all versions together.
        requests: requests that passed the compliance gate.
        failed: those of them that ended in an error.
        violations: requests with a wrong compliance hash.
        missed: requests that waited for the handler.
        p50_ms, p95_ms, p99_ms: latency of the answered requests; 0 if there are none.
    """

    start: int
    version: str | None
    requests: int
    failed: int
    violations: int
    missed: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(slots=True)
class History:
    """The complete hours of a service, in the order of time. The hour in progress is not among them.

    Attributes:
        hours: all versions together.
        versions: each version apart.
        damaged: rows that cannot be read, or that claim more requests than possible. They are not in the figures.
    """

    hours: list[Hour] = field(default_factory=list)
    versions: list[Hour] = field(default_factory=list)
    damaged: int = 0


class HourSum:
    """The sum of several rows of an hour."""

    def __init__(self) -> None:
        self.failed: int = 0
        self.violations: int = 0
        self.missed: int = 0
        self.latency_ns: Final = LatencyHistogram()

    def add(self, failed: object, violations: object, missed: object, latency: object, *, is_merged: bool) -> bool:
        """Add a row, and return whether it could be read. Time and memory are bounded, whatever the row contains.

        Args:
            failed, violations, missed, latency: the columns.
            is_merged: whether the row is a sum of the rows of several instances.
        """
        # Somebody may have created the table with columns of other types.
        if not (_is_count(failed) and _is_count(violations) and _is_count(missed) and isinstance(latency, bytes)):
            return False
        try:
            # A few bytes can ask for a histogram of 50 MB.
            if layout_of(latency) != _LAYOUT:
                return False
            latency_ns = LatencyHistogram.decode(latency)
        except ValueError:
            return False
        if max(latency_ns.count + failed, violations, missed) > (_MOST_A_SUM if is_merged else _MOST_A_ROW):
            return False
        sums = self.failed + failed, self.violations + violations, self.missed + missed
        if max(self.latency_ns.count + latency_ns.count + sums[0], *sums[1:]) > _MOST_A_SUM:
            return False
        self.failed, self.violations, self.missed = sums
        self.latency_ns.merge(latency_ns)
        return True

    def merge(self, other: "HourSum") -> None:
        """Add another sum."""
        self.failed += other.failed
        self.violations += other.violations
        self.missed += other.missed
        self.latency_ns.merge(other.latency_ns)

    def figures(self, start: int, version: str | None) -> Hour:
        """Return the figures of the sum."""
        count = self.latency_ns.count
        p50_ms, p95_ms, p99_ms = (self.latency_ns.percentile(q) / 1e6 if count else 0.0 for q in (50, 95, 99))
        return Hour(
            start=start,
            version=version,
            requests=count + self.failed,
            failed=self.failed,
            violations=self.violations,
            missed=self.missed,
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            p99_ms=p99_ms,
        )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value >= 0
