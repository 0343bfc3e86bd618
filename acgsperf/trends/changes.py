"""Finds lasting changes in hourly figures that have a weekly season, and tests them.

An hour is compared only with the same hours of other weeks, so that no season has to be estimated. The score of a
change is the difference of the means before and after it within each hour of the week, added up (a two-way fixed
effects estimate), in standard errors. All moments are tried. The standard error comes from the median absolute
deviation, and outliers are clipped, so that single bad hours do not matter. Neighboring hours resemble each other: the
variance is inflated by what the autocorrelation and the means of whole days show.

Figures are logarithms, so that a change is a share: 0.095 is 10 %. All functions take O(n) or O(n log n).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import fmean, median
from typing import Final, NamedTuple

__all__ = ["DAY", "HOUR_S", "WEEK", "Comparison", "Point", "Shift", "compare", "shifts_of"]

HOUR_S: Final = 3600
DAY: Final = 24
WEEK: Final = 168
# With fewer weeks, an hour of the week does not show what is usual.
LEAST_SPAN: Final = 3 * WEEK

# Of the best moment out of thousands. A single moment needs 3.3 for a probability of 1 in 1,000.
_SIGNIFICANT_Z: Final = 4.5
# A shorter disturbance is not a change.
_LEAST_HOURS: Final = 6
_MOST_SHIFTS: Final = 8
_CLIP: Final = 5.0
# A histogram has 3 significant figures. A smaller noise cannot be told from its rounding.
_LEAST_SCALE: Final = 0.005
# The standard deviation of a normal distribution, in median absolute deviations.
_MAD: Final = 1.4826
_DAY_CLIP: Final = 2.5
_MOST_AUTOCORRELATION: Final = 0.95
_LEAST_DAYS: Final = 7


class Point(NamedTuple):
    """An hour and its figure.

    Attributes:
        hour: the number of the hour since 1970, in UTC.
        value: the logarithm of the figure.
    """

    hour: int
    value: float


@dataclass(frozen=True, slots=True)
class Shift:
    """A lasting change.

    Attributes:
        hour: its first hour.
        size: the change of the logarithm.
        z: its size in standard errors.
    """

    hour: int
    size: float
    z: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the figures of some hours differ from those of the same hours of other weeks.

    Attributes:
        change: as a share: 0.1 if they are 10 % higher.
        p: the probability of such a difference by chance, in both directions.
        hours: how many hours were compared.
    """

    change: float
    p: float
    hours: int


def shifts_of(points: Sequence[Point]) -> list[Shift]:
    """Return the lasting changes in points with ascending hours, in the order of time.

    Points of less than three weeks have none, because what is usual is not known yet.
    """
    if not points or points[-1].hour - points[0].hour + 1 < LEAST_SPAN:
        return []
    found: list[Shift] = []
    for _ in range(_MOST_SHIFTS):
        rest = _clipped(_without(points, found))
        best = _best_split(rest)
        if best is None:
            break
        hour, difference, weight = best
        z = difference * math.sqrt(weight) / _noise([_lowered(point, hour, difference) for point in rest])
        if abs(z) < _SIGNIFICANT_Z or any(shift.hour == hour for shift in found):
            break
        before = [point for point in rest if point.hour < hour]
        after = [point for point in rest if point.hour >= hour]
        # A disturbance of the first or last hours. Without them, another change is found.
        if _changed_hours(before, after, difference) < _LEAST_HOURS:
            points = [point for point in points if point.hour < hour]
            continue
        if _changed_hours(after, before, -difference) < _LEAST_HOURS:
            points = [point for point in points if point.hour >= hour]
            continue
        found.append(Shift(hour, difference, z))
        # Each size depends on the others.
        for _ in range(2):
            for at, shift in enumerate(found):
                others = _without(points, [*found[:at], *found[at + 1 :]])
                size = _difference(
                    [point for point in others if point.hour < shift.hour],
                    [point for point in others if point.hour >= shift.hour],
                )
                found[at] = Shift(shift.hour, shift.size if size is None else size, shift.z)
    return sorted(found, key=lambda shift: shift.hour)


def compare(before: Sequence[Point], after: Sequence[Point]) -> Comparison | None:
    """Compare points with those of the same hours of the week before them; None if too few can be compared."""
    size = _difference(before, after)
    if size is None:
        return None
    slots = {point.hour % WEEK for point in before}
    hours = sum(point.hour % WEEK in slots for point in after)
    if hours < _LEAST_HOURS:
        return None
    earlier, later = _by_slot(before), _by_slot(after)
    weight = sum(len(earlier[slot]) * len(later[slot]) / (len(earlier[slot]) + len(later[slot])) for slot in later)
    joined = sorted([*before, *(Point(point.hour, point.value - size) for point in after)])
    z = size * math.sqrt(weight) / _noise(_clipped(joined))
    return Comparison(math.expm1(size), math.erfc(abs(z) / math.sqrt(2)), hours)


def _by_slot(points: Iterable[Point]) -> defaultdict[int, list[float]]:
    slots: defaultdict[int, list[float]] = defaultdict(list)
    for hour, value in points:
        slots[hour % WEEK].append(value)
    return slots


def _lowered(point: Point, hour: int, size: float) -> Point:
    return Point(point.hour, point.value - size) if point.hour >= hour else point


def _without(points: Sequence[Point], shifts: Iterable[Shift]) -> list[Point]:
    rest = list(points)
    for shift in shifts:
        rest = [_lowered(point, shift.hour, shift.size) for point in rest]
    return rest


def _difference(before: Sequence[Point], after: Sequence[Point]) -> float | None:
    """Return the median difference of all pairs of points of the same hour of the week (Hodges and Lehmann 1963)."""
    earlier = _by_slot(before)
    differences = [point.value - value for point in after for value in earlier.get(point.hour % WEEK, ())]
    return median(differences) if differences else None


def _clipped(points: Sequence[Point]) -> list[Point]:
    """Return the points with outliers moved to five standard deviations."""
    medians = {slot: median(values) for slot, values in _by_slot(points).items()}
    most = _CLIP * _scale([value - medians[hour % WEEK] for hour, value in points], len(medians))
    return [
        Point(hour, medians[hour % WEEK] + min(max(value - medians[hour % WEEK], -most), most))
        for hour, value in points
    ]


def _scale(residuals: Sequence[float], slots: int) -> float:
    """Return the standard deviation of residuals from which the median of each slot was subtracted."""
    # A slot with one value has the residual 0, and one with two values has too small ones.
    freedom = max(len(residuals) - slots, 1) / max(len(residuals), 1)
    return max(_MAD * median(map(abs, residuals)) / math.sqrt(freedom), _LEAST_SCALE)


def _best_split(points: Sequence[Point]) -> tuple[int, float, float] | None:
    """Return the first hour after the best split, the difference there, and its weight in hours."""
    later = {slot: (len(values), sum(values)) for slot, values in _by_slot(points).items()}
    earlier = dict.fromkeys(later, (0, 0.0))
    total = weight = 0.0
    best: tuple[int, float, float] | None = None
    best_score = 0.0
    for number, (point, following) in enumerate(pairwise(points), 1):
        slot = point.hour % WEEK
        score, share = _slot_score(earlier[slot], later[slot])
        total, weight = total - score, weight - share
        count, values = earlier[slot]
        earlier[slot] = count + 1, values + point.value
        count, values = later[slot]
        later[slot] = count - 1, values - point.value
        score, share = _slot_score(earlier[slot], later[slot])
        total, weight = total + score, weight + share
        if min(number, len(points) - number) < _LEAST_HOURS or weight < _LEAST_HOURS / 2:
            continue
        if (found := abs(total) / math.sqrt(weight)) > best_score:
            best, best_score = (following.hour, total / weight, weight), found
    return best


def _changed_hours(usual: Iterable[Point], points: Iterable[Point], difference: float) -> int:
    """Return in how many hours the change is visible: the value differs from the usual mean by 75 % of the change.

    A part has at least 6 hours. So a disturbance that is shorter shares its part with normal hours, which must not
    count. A normal hour often differs by 50 % of the change by chance, but rarely by 75 %.

    Args:
        usual: the points on the other side of the change.
        points: those to count.
        difference: the change.
    """
    means = {slot: fmean(values) for slot, values in _by_slot(usual).items()}
    return sum((value - means[hour % WEEK]) / difference >= 0.75 for hour, value in points if hour % WEEK in means)


def _slot_score(earlier: tuple[int, float], later: tuple[int, float]) -> tuple[float, float]:
    """Return the weighted difference of two means, and the weight."""
    m, n = earlier[0], later[0]
    if not m or not n:
        return 0.0, 0.0
    return (m * later[1] - n * earlier[1]) / (m + n), m * n / (m + n)


def _noise(points: Sequence[Point]) -> float:
    """Return the standard deviation of an hour for a test of many hours, in which neighbors resemble each other."""
    slots = _by_slot(points)
    means = {slot: fmean(values) for slot, values in slots.items()}
    residuals = [Point(hour, value - means[hour % WEEK]) for hour, value in points if len(slots[hour % WEEK]) > 1]
    if len(residuals) < 2 * _LEAST_HOURS:
        return math.inf
    used = sum(len(values) > 1 for values in slots.values())
    scale = max(_scale([value for _, value in residuals], used), _LEAST_SCALE)
    variance = fmean(value * value for _, value in residuals)
    products = [one.value * other.value for one, other in pairwise(residuals) if other.hour == one.hour + 1]
    correlation = fmean(products) / variance if products and variance else 0.0
    correlation = min(max(correlation, 0.0), _MOST_AUTOCORRELATION)
    inflation = (1 + correlation) / (1 - correlation)
    days = [[value for _, value in day] for _, day in groupby(residuals, key=lambda point: point.hour // DAY)]
    of_days = [math.sqrt(len(day)) * fmean(day) for day in days if len(day) >= _LEAST_HOURS]
    if len(of_days) >= _LEAST_DAYS:
        freedom = max(len(residuals) - used, 1) / len(residuals)
        most = _DAY_CLIP * _MAD * median(map(abs, of_days))
        # More precise than the median alone, of which there would be too few days.
        variance = fmean(min(abs(mean), most) ** 2 for mean in of_days)
        inflation = max(inflation, variance / scale**2 / freedom)
    return scale * math.sqrt(inflation)
