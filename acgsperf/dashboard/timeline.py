"""The points of the last hours for the charts. Older ones are coarser, so that there are never many."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

from msgspec.structs import asdict, replace

from acgsperf.dashboard.rounding import four_digits
from acgsperf.dashboard.snapshot import Point

__all__ = ["Timeline"]

# The seconds of one point, and the number of points: with one snapshot per second 5 minutes, 1 hour and 8 hours.
_LEVELS: Final = ((0.5, 300), (15.0, 240), (90.0, 320))
# Between two points that are not further apart, nothing else is needed.
_COVERED_S: Final = 240.0
_HIGHEST: Final = frozenset({"p50_ms", "p95_ms", "p99_ms", "in_use", "waiting", "lag_ms"})


class Timeline:
    """Keeps at most 860 points.

    When there are too many, the oldest become points of 15 s, and later of 90 s. These have the mean of rates and
    ratios, the highest of latencies, lags and connections, and the sum of the heat map.
    """

    def __init__(self) -> None:
        # Each point with the number of points that it was merged from.
        self._levels: tuple[deque[tuple[Point, int]], ...] = tuple(deque() for _ in _LEVELS)

    def add(self, point: Point, seconds: float) -> None:
        """Add the latest point.

        If the clock was set back, the earlier points move with it. If it was ahead for a while only, there is a gap
        before that, and the points before the gap stay where they are.

        Args:
            point: the point.
            seconds: the length of its interval.
        """
        latest = self._levels[0]
        if latest and point.at <= latest[-1][0].at:
            self._set_back(latest[-1][0].at - point.at + seconds)
        self._put(0, point, 1)

    def history(self, readings: Iterable[Point]) -> list[Point]:
        """Return all points, the oldest first, and the readings of the times that have none.

        Args:
            readings: what the source knows.
        """
        points = [point for level in reversed(self._levels) for point, _ in level]
        times = [point.at for point in points]
        found = [*points, *(reading for reading in readings if not _is_covered(times, reading.at))]
        return sorted(found, key=lambda point: point.at)

    def _put(self, level: int, point: Point, count: int) -> None:
        points, (seconds, most) = self._levels[level], _LEVELS[level]
        if points and points[-1][0].at // seconds == point.at // seconds:
            last, of_last = points.pop()
            point, count = _merged(last, of_last, point, count), of_last + count
        points.append((point, count))
        if len(points) > most:
            oldest = points.popleft()
            if level + 1 < len(_LEVELS):
                self._put(level + 1, *oldest)

    def _set_back(self, seconds: float) -> None:
        times = [point.at for level in reversed(self._levels) for point, _ in level]
        gap_s = max(seconds, _COVERED_S)
        first = next((later for later, earlier in pairwise(reversed(times)) if later - earlier > gap_s), times[0])
        for level in self._levels:
            moved = [
                (replace(point, at=round(point.at - seconds, 3)) if point.at >= first else point, count)
                for point, count in level
            ]
            level.clear()
            level.extend(moved)


def _is_covered(times: list[float], at: float) -> bool:
    """Return whether the points before and after a time are close together, or the last one was a short time ago."""
    following = bisect_left(times, at)
    if following == 0:
        return False
    until = times[following] if following < len(times) else at
    return until - times[following - 1] <= _COVERED_S


def _merged(first: Point, of_first: int, second: Point, of_second: int) -> Point:
    """Return one point for the time of two."""
    changes: dict[str, Any] = {}
    for name, later in asdict(second).items():
        earlier = getattr(first, name)
        if earlier is None or name == "at":
            continue
        if later is None:
            changes[name] = earlier
        elif name == "heat":
            if len(earlier) == len(later):
                changes[name] = tuple(map(sum, zip(earlier, later, strict=True)))
        elif name in _HIGHEST:
            changes[name] = max(earlier, later)
        else:
            changes[name] = four_digits((earlier * of_first + later * of_second) / (of_first + of_second))
    return replace(second, **changes)
