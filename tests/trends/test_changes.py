"""Lasting changes are found in synthetic weeks with seasons, and nothing else is."""

import math
import random

import pytest

from acgsperf.trends.changes import Point, compare, shifts_of
from trends.conftest import levels

FIRST = 480_000
LEAST = math.log(1.05)


def weeks_of(seed, weeks=4, **options):
    return [Point(FIRST + at, level) for at, level in enumerate(levels(seed, weeks, **options))]


def large(points):
    return [shift for shift in shifts_of(points) if abs(shift.size) >= LEAST]


@pytest.mark.parametrize("seed", range(20))
def test_a_regression_of_10_percent_is_found_within_a_day(seed):
    (shift,) = large(weeks_of(seed, slower=0.1))
    assert shift.size == pytest.approx(math.log(1.1), abs=0.045)
    assert shift.hour == pytest.approx(FIRST + 4 * 168 - 24, abs=24)


@pytest.mark.parametrize("weeks", [3, 4, 8, 12])
def test_20_runs_without_a_regression_raise_no_alarm(weeks):
    assert [found for seed in range(20) if (found := large(weeks_of(100 + seed, weeks)))] == []


def test_an_improvement_is_found_too():
    (shift,) = large(weeks_of(1, slower=-0.2, slower_hours=48))
    assert shift.size == pytest.approx(math.log(0.8), abs=0.05)
    assert shift.z < -4.5


def test_two_changes_are_told_apart_and_dated():
    points = [
        Point(hour, value + 0.3 * (hour >= FIRST + 700) - 0.3 * (hour >= FIRST + 1100))
        for hour, value in weeks_of(2, weeks=8)
    ]
    first, second = large(points)
    assert (first.size, second.size) == (pytest.approx(0.3, abs=0.05), pytest.approx(-0.3, abs=0.05))
    assert abs(first.hour - FIRST - 700) <= 6
    assert abs(second.hour - FIRST - 1100) <= 6


def test_an_incident_that_ended_is_no_change():
    points = [Point(hour, value + 2 * (FIRST + 400 <= hour < FIRST + 405)) for hour, value in weeks_of(3)]
    assert large(points) == []


# With these seeds, the noise of the hour next to the bad ones looks like a part of them.
@pytest.mark.parametrize("seed", [312, 313, 319])
@pytest.mark.parametrize("factor", [1.5, 3, 30])
@pytest.mark.parametrize("hours", [3, 5])
def test_less_than_6_bad_hours_at_the_start_or_the_end_are_no_change(hours, factor, seed):
    quiet = weeks_of(seed, weeks=6)
    assert large([*quiet[:-hours], *(raised(point, factor) for point in quiet[-hours:])]) == []
    assert large([*(raised(point, factor) for point in quiet[:hours]), *quiet[hours:]]) == []


def raised(point, factor):
    return Point(point.hour, point.value + math.log(factor))


def test_a_change_before_bad_hours_at_the_end_is_found():
    points = weeks_of(5, weeks=6, slower=0.1, slower_hours=48)
    (shift,) = large([*points[:-4], *(raised(point, 3) for point in points[-4:])])
    assert shift.size == pytest.approx(math.log(1.1), abs=0.045)
    assert shift.hour == pytest.approx(FIRST + 6 * 168 - 48, abs=24)


def test_8_bad_hours_at_the_end_are_a_change():
    points = weeks_of(6, weeks=6)
    (shift,) = large([*points[:-8], *(raised(point, 1.5) for point in points[-8:])])
    assert shift.hour == FIRST + 6 * 168 - 8


def test_missing_hours_harm_nothing():
    source = random.Random(4)
    points = [point for point in weeks_of(4, slower=0.15) if source.random() < 0.7]
    (shift,) = large(points)
    assert shift.size == pytest.approx(math.log(1.15), abs=0.06)
    assert large([point for point in weeks_of(4) if point.hour % 24 < 10]) == []


def test_before_three_weeks_nothing_is_claimed():
    assert shifts_of(weeks_of(5, weeks=2, slower=0.5)) == []
    assert shifts_of([]) == []


def test_figures_without_any_noise_can_be_judged():
    flat = [Point(FIRST + hour, 0.0) for hour in range(4 * 168)]
    assert shifts_of(flat) == []
    (shift,) = shifts_of([Point(hour, 0.5 * (hour >= FIRST + 600)) for hour, _ in flat])
    assert (shift.hour, shift.size) == (FIRST + 600, 0.5)


def test_weeks_are_compared_hour_by_hour():
    points = weeks_of(6, weeks=2, slower=0.1, slower_hours=168)
    found = compare(points[:168], points[168:])
    assert found.change == pytest.approx(0.1, abs=0.03)
    assert (found.hours, found.p < 0.001) == (168, True)
    same = weeks_of(7, weeks=2)
    assert compare(same[:168], same[168:]).p > 0.001


def test_a_peak_is_not_compared_with_quiet_hours():
    points = weeks_of(8)
    # Monday morning alone.
    found = compare(points[: 3 * 168], points[3 * 168 + 4 : 3 * 168 + 12])
    assert abs(found.change) < 0.05


def test_too_few_hours_are_not_compared():
    points = weeks_of(9, weeks=2)
    assert compare(points[:168], points[168:172]) is None
    assert compare(points[:100], points[100:168]) is None
    assert compare([], points) is None
