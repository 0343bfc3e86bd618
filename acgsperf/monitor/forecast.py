"""Finds a robust, statistically significant trend in a series of points.

The slope is the median of the slopes between all pairs of points (Theil 1950, Sen 1968), so up to 29 % of the points
can be outliers. The Mann-Kendall test (Mann 1945, Kendall 1955) decides whether there is a trend; it compares ranks
only. With n points both take O(n**2); n is 20.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Final, NamedTuple

# Two-sided: 1 window of pure noise in 1,000 is significant. Every interval tests a window, so this must be rare.
_SIGNIFICANT_Z: Final = 3.29


class Trend(NamedTuple):
    """A straight line: its value at the last point, and its slope."""

    level: float
    slope: float

    def crossing(self, target: float) -> float | None:
        """Return how many units of x remain until the line reaches the target; None if it leads away from it."""
        distance = target - self.level
        if distance == 0:
            return 0.0
        return distance / self.slope if distance * self.slope > 0 else None


def trend(points: Sequence[tuple[float, float]]) -> Trend | None:
    """Return the trend of points with ascending x; None if noise or a single step can explain the points.

    A step has its slope in one half of the points. A trend has at least half of its slope in each half.
    """
    slope = _slope(points)
    if slope == 0 or abs(_mann_kendall_z([y for _, y in points])) < _SIGNIFICANT_Z:
        return None
    middle = len(points) // 2
    if any(_slope(half) / slope < 0.5 for half in (points[:middle], points[middle:])):
        return None
    last = points[-1][0]
    return Trend(median(y - slope * (x - last) for x, y in points), slope)


def smoothed_trend(points: Sequence[tuple[float, float]], size: int) -> Trend | None:
    """Return the trend of the medians of `size` points each. It finds slower trends in the same noise.

    Args:
        points: with ascending x; a multiple of `size`.
        size: how many points are taken together.
    """
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return trend([(fmean(x for x, _ in group), median(y for _, y in group)) for group in groups])


def _slope(points: Sequence[tuple[float, float]]) -> float:
    return median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))


def _mann_kendall_z(values: Sequence[float]) -> float:
    """Return the test statistic in standard deviations, corrected for ties and for continuity."""
    n = len(values)
    score = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    if score == 0 or variance == 0:
        return 0.0
    return (score - math.copysign(1, score)) / math.sqrt(variance)
