"""Where a figure is going: a robust trend, tested for being one.

The slope is the median of the slopes between all pairs of points (Theil 1950, Sen 1968): up to 29 % of the points may
be anything. Whether there is a trend at all is for the Mann-Kendall test to say (Mann 1945, Kendall 1955), which
compares ranks only. With n points both take O(n**2); n is 20.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Final, NamedTuple

# Two-sided, one window of noise in a thousand: there is a window for every interval, day and night.
_SIGNIFICANT_Z: Final = 3.29


class Trend(NamedTuple):
    """A straight line: its value at the last point, and its slope."""

    level: float
    slope: float

    def crossing(self, target: float) -> float | None:
        """In how many units of x the line reaches the target; None when it leads away, 0.0 when it is there."""
        distance = target - self.level
        if distance == 0:
            return 0.0
        return distance / self.slope if distance * self.slope > 0 else None


def trend(points: Sequence[tuple[int, float]]) -> Trend | None:
    """The trend of some points with ascending x; None when there is none that noise or a step could not be.

    A step makes a slope in one half of the points; a trend makes at least half of its slope in each.
    """
    slope = _slope(points)
    if slope == 0 or abs(_mann_kendall_z([y for _, y in points])) < _SIGNIFICANT_Z:
        return None
    middle = len(points) // 2
    if any(_slope(half) / slope < 0.5 for half in (points[:middle], points[middle:])):
        return None
    last = points[-1][0]
    return Trend(median(y - slope * (x - last) for x, y in points), slope)


def _slope(points: Sequence[tuple[int, float]]) -> float:
    return median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))


def _mann_kendall_z(values: Sequence[float]) -> float:
    """The statistic in standard deviations, corrected for ties and for continuity."""
    n = len(values)
    score = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    if score == 0 or variance == 0:
        return 0.0
    return (score - math.copysign(1, score)) / math.sqrt(variance)
