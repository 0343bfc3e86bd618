"""The points that a dashboard keeps for the charts."""

import pytest

from acgsperf.dashboard import Point
from acgsperf.dashboard.timeline import Timeline


def timeline_of(count, seconds=1.0, start=0.0):
    timeline = Timeline()
    for number in range(1, count + 1):
        timeline.add(Point(start + number * seconds, requests=2.0, p99_ms=1.0 + number % 2, heat=(1, 0)), seconds)
    return timeline


def times(points):
    return [point.at for point in points]


@pytest.mark.parametrize(("seconds", "least_s"), [(0.01, 5), (1, 8 * 3600), (30, 8 * 3600), (3600, 8 * 3600)])
def test_eight_hours_are_kept_in_few_points(seconds, least_s):
    count = round(9 * 3600 / seconds) if seconds >= 1 else 100_000
    points = timeline_of(count, seconds).history(())
    assert len(points) <= 860
    assert points[-1].at == pytest.approx(count * seconds)
    assert points[-1].at - points[0].at >= least_s
    assert times(points) == sorted(times(points))
    assert (
        max(after - before for before, after in zip(times(points), times(points)[1:], strict=False)) < 90 + 2 * seconds
    )


def test_the_latest_points_are_kept_as_they_are():
    points = timeline_of(10_000).history(())
    assert times(points[-300:]) == [float(at) for at in range(9701, 10_001)]


def test_a_coarse_point_has_the_mean_of_rates_the_highest_latency_and_the_sum_of_the_heat():
    timeline = Timeline()
    for number in range(301):
        rates = {"requests": 10.0 * (number % 3), "p99_ms": float(number % 3), "in_use": number % 3}
        # The first three are within the same 15 s.
        timeline.add(Point(15.0 + number, heat=(1, number), **rates), 1.0)
    for number in (316, 317):
        timeline.add(Point(float(number)), 1.0)
    (first, *_) = timeline.history(())
    assert (first.at, first.requests, first.p99_ms, first.in_use, first.heat) == (17.0, 10.0, 2.0, 2, (3, 3))


def test_a_value_that_was_not_measured_does_not_hide_another_one():
    timeline = Timeline()
    timeline.add(Point(10.1, requests=5.0, heat=(1, 2)), 0.1)
    timeline.add(Point(10.2, p99_ms=2.0, heat=(1, 2, 3)), 0.1)
    (point,) = timeline.history(())
    # The bands of the heat map have changed.
    assert point == Point(10.2, requests=5.0, p99_ms=2.0, heat=(1, 2, 3))


def test_points_move_with_a_clock_that_is_set_back():
    timeline = timeline_of(5, start=5000.0)
    timeline.add(Point(1400.0), 1.0)
    timeline.add(Point(1401.0), 1.0)
    assert times(timeline.history(())) == [float(at) for at in range(1395, 1402)]
    # Coarse ones, too.
    timeline = timeline_of(2000, start=5000.0)
    timeline.add(Point(3000.0), 1.0)
    points = times(timeline.history(()))
    assert points == sorted(points)
    assert (points[0], points[-1]) == (pytest.approx(1000, abs=15), 3000.0)


def test_points_from_before_a_clock_was_ahead_for_a_while_stay():
    timeline = timeline_of(2000)
    earlier = times(timeline.history(()))
    for number in range(2001, 2011):
        timeline.add(Point(86_400.0 + number), 1.0)
    timeline.add(Point(2011.0), 1.0)
    found = times(timeline.history(()))
    assert found[-11:] == [float(at) for at in range(2001, 2012)]
    # The oldest ones may have been merged meanwhile.
    assert found[0] == pytest.approx(earlier[0], abs=15)
    assert found == sorted(found)


def test_a_clock_that_is_set_back_moves_everything_in_spite_of_a_short_gap():
    timeline = timeline_of(5, start=1000.0)
    for number in range(1, 6):
        timeline.add(Point(2000.0 + number), 1.0)
    timeline.add(Point(2001.0 - 3600), 1.0)
    found = times(timeline.history(()))
    assert found == [*(1001.0 - 3605 + number for number in range(5)), *(2001.0 - 3605 + number for number in range(6))]


def test_readings_fill_the_times_without_points_only():
    timeline = timeline_of(5, start=1000.0)
    for number in range(5):
        timeline.add(Point(5000.0 + number), 1.0)
    readings = [Point(float(at), requests=7.0) for at in (500, 1003.5, 1004, 3000, 5002, 5004.5, 6000)]
    found = timeline.history(readings)
    assert [point.at for point in found if point.requests == 7] == [500, 3000, 6000]
    assert times(found) == sorted(times(found))
