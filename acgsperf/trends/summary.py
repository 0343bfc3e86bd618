"""Compares weeks and versions, and says what became slower or faster, and since when."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, Final

from acgsperf.trends.changes import DAY, HOUR_S, LEAST_SPAN, WEEK, Comparison, Point, Shift, compare, shifts_of
from acgsperf.trends.history import History, Hour

__all__ = ["Change", "Period", "Trends", "trends_of"]

PERCENTILES: Final = ("p50", "p95", "p99")
# A smaller change is not worth a message, however certain it is.
LEAST_CHANGE: Final = 0.05
# Of a comparison that someone looks at; changes are searched for with a stricter test.
LARGEST_P: Final = 0.001
# With fewer requests, the percentiles of an hour are mostly chance.
LEAST_REQUESTS: Final = 200
_MOST_WEEKS: Final = 5
_MOST_VERSIONS: Final = 10
# What a version is compared with.
_WEEKS_BEFORE: Final = 4
# A version that appeared so near to a change may be its cause.
_NEAR_HOURS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A lasting change of a percentile.

    Attributes:
        figure: "p50", "p95" or "p99".
        since: the start of its first hour, in seconds since 1970.
        change: as a share: 0.1 for 10 % slower, -0.1 for 10 % faster.
        z: its size in standard errors.
        lasts: whether the percentile is still that much higher or lower: no later change has taken it back.
        version: the version of the service that appeared within 6 hours of it; None for none.
    """

    figure: str
    since: int
    change: float
    z: float
    lasts: bool
    version: str | None

    @property
    def is_slower(self) -> bool:
        """Whether the percentile rose."""
        return self.change > 0

    def __str__(self) -> str:
        """Return the change in words: `P99 10.0% slower since 2026-11-02 09:00 UTC`."""
        verb = "slower" if self.is_slower else "faster"
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M")
        version = f"; version {self.version} appeared then" if self.version else ""
        ended = "" if self.lasts else "; no longer"
        return f"{self.figure.upper()} {abs(self.change):.1%} {verb} since {since} UTC{version}{ended}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The figures of a week or a version, and how they differ from before.

    Attributes:
        start, end: the start of its first hour and the end of its last one, in seconds since 1970.
        version: the version of the service; None for all versions together.
        hours: how many hours had requests.
        requests, failed, violations, missed: sums.
        p50_ms, p95_ms, p99_ms: the median of the hours; None if no hour had enough requests.
        comparisons: for "p50", "p95" and "p99", how they differ from the same hours of the week before: of the week
            before, or of the four weeks before the version. Without enough hours to compare, there is none.
    """

    start: int
    end: int
    version: str | None
    hours: int
    requests: int
    failed: int
    violations: int
    missed: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    comparisons: dict[str, Comparison]

    @property
    def hit_rate(self) -> float | None:
        """The share of requests that did not wait for the handler; None without requests."""
        return max(0, self.requests - self.missed) / self.requests if self.requests else None

    def is_significant(self, figure: str) -> bool:
        """Return whether a percentile differs from before by at least 5 %, with p < 0.001."""
        found = self.comparisons.get(figure)
        return found is not None and found.p < LARGEST_P and _is_large(math.log1p(found.change))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trends:
    """What became slower or faster.

    Attributes:
        start, end: the start of the first hour and the end of the last one, in seconds since 1970; 0 without hours.
        hours: how many hours had requests.
        changes: the lasting changes of at least 5 %, in the order of time.
        weeks: up to 5 spans of 7 days, the last one first. The last one ends with the last hour.
        versions: up to 10 versions, the one that appeared last first.
        missing: what cannot be said, in words. Empty if nothing is missing.
    """

    start: int
    end: int
    hours: int
    changes: tuple[Change, ...]
    weeks: tuple[Period, ...]
    versions: tuple[Period, ...]
    missing: tuple[str, ...]

    def slower(self, days: float = 14) -> tuple[Change, ...]:
        """Return the changes to slower within the last days that still last."""
        return tuple(
            one for one in self.changes if one.is_slower and one.lasts and one.since >= self.end - days * 86_400
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-like values."""
        return asdict(self)


def trends_of(history: History) -> Trends:
    """Analyze the hours of a service.

    Hours with fewer than 200 requests are counted, but their percentiles are not compared. Changes are found from 21
    days on, and weeks are compared from 8 days on.
    """
    hours = history.hours
    missing = []
    if history.damaged:
        missing.append(f"rows that are damaged or too large: {history.damaged}")
    if not hours:
        return Trends(start=0, end=0, hours=0, changes=(), weeks=(), versions=(), missing=(*missing, "no hours yet"))
    end = hours[-1].start + HOUR_S
    days = (LEAST_SPAN - (end - hours[0].start) // HOUR_S) / DAY
    if days > 0:
        missing.append(f"changes are found when there are 21 days; {days:.1f} days to go")
    if not any(hour.requests >= LEAST_REQUESTS for hour in hours):
        missing.append(f"no hour has the {LEAST_REQUESTS} requests that a comparison needs")
    appeared = _appearances(history.versions)
    points = {figure: _points(hours, figure) for figure in PERCENTILES}
    return Trends(
        start=hours[0].start,
        end=end,
        hours=sum(hour.requests > 0 for hour in hours),
        changes=tuple(
            sorted(
                (change for figure in PERCENTILES for change in _changes(figure, shifts_of(points[figure]), appeared)),
                key=lambda change: change.since,
            )
        ),
        weeks=tuple(_weeks(hours, points, end)),
        versions=tuple(_versions(history.versions, points, appeared)),
        missing=tuple(missing),
    )


def _is_large(size: float) -> bool:
    return abs(size) >= math.log1p(LEAST_CHANGE)


def _points(hours: Iterable[Hour], figure: str) -> list[Point]:
    """Return the logarithms of a percentile, of the hours with enough requests."""
    return [
        Point(hour.start // HOUR_S, math.log(value))
        for hour in hours
        if hour.requests >= LEAST_REQUESTS and (value := getattr(hour, f"{figure}_ms")) > 0
    ]


def _appearances(versions: Iterable[Hour]) -> dict[str, int]:
    """Return the number of the first hour of each version, in the order of time."""
    found: dict[str, int] = {}
    for hour in versions:
        assert hour.version is not None
        found.setdefault(hour.version, hour.start // HOUR_S)
    return found


def _changes(figure: str, shifts: Sequence[Shift], appeared: dict[str, int]) -> Iterable[Change]:
    # The versions of the first hour did not appear in it.
    first = min(appeared.values(), default=0)
    for at, shift in enumerate(shifts):
        if not _is_large(shift.size):
            continue
        near = [
            (abs(hour - shift.hour), version)
            for version, hour in appeared.items()
            if first < hour and abs(hour - shift.hour) <= _NEAR_HOURS
        ]
        since_then = sum(later.size for later in shifts[at:])
        yield Change(
            figure=figure,
            since=shift.hour * HOUR_S,
            change=math.expm1(shift.size),
            z=shift.z,
            lasts=_is_large(since_then) and (since_then > 0) == (shift.size > 0),
            version=min(near)[1] if near else None,
        )


def _weeks(hours: Sequence[Hour], points: dict[str, list[Point]], end: int) -> Iterable[Period]:
    for ago in range(_MOST_WEEKS):
        last = end - ago * WEEK * HOUR_S
        first = last - WEEK * HOUR_S
        found = [hour for hour in hours if first <= hour.start < last]
        if not found:
            continue
        comparisons = {
            figure: compare(
                _between(points[figure], first // HOUR_S - WEEK, first // HOUR_S),
                _between(points[figure], first // HOUR_S, last // HOUR_S),
            )
            for figure in PERCENTILES
        }
        yield _period(found, None, comparisons)


def _versions(versions: Sequence[Hour], points: dict[str, list[Point]], appeared: dict[str, int]) -> Iterable[Period]:
    hours_of: defaultdict[str | None, list[Hour]] = defaultdict(list)
    for hour in versions:
        hours_of[hour.version].append(hour)
    for version, first in list(reversed(appeared.items()))[:_MOST_VERSIONS]:
        found = hours_of[version]
        comparisons = {
            figure: compare(
                _between(points[figure], first - _WEEKS_BEFORE * WEEK, first),
                _points(found, figure),
            )
            for figure in PERCENTILES
        }
        yield _period(found, version, comparisons)


def _between(points: Iterable[Point], first: int, end: int) -> list[Point]:
    return [point for point in points if first <= point.hour < end]


def _period(hours: Sequence[Hour], version: str | None, comparisons: dict[str, Comparison | None]) -> Period:
    enough = [hour for hour in hours if hour.requests >= LEAST_REQUESTS]
    p50_ms, p95_ms, p99_ms = (
        median(getattr(hour, f"{figure}_ms") for hour in enough) if enough else None for figure in PERCENTILES
    )
    return Period(
        start=hours[0].start,
        end=hours[-1].start + HOUR_S,
        version=version,
        hours=sum(hour.requests > 0 for hour in hours),
        requests=sum(hour.requests for hour in hours),
        failed=sum(hour.failed for hour in hours),
        violations=sum(hour.violations for hour in hours),
        missed=sum(hour.missed for hour in hours),
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        comparisons={figure: found for figure, found in comparisons.items() if found is not None},
    )
