"""Weeks and versions are compared, and changes are named with their time and version."""

import json
import math

import pytest

from acgsperf.trends import History, Hour, trends_of
from acgsperf.trends.changes import Shift
from acgsperf.trends.summary import _changes
from trends.conftest import HOUR, levels

START = 480_000 * HOUR


def hour_of(start, version, level, requests=1000, **counts):
    ms = math.exp(level)
    percentiles = {"p50_ms": 0.2 * ms, "p95_ms": 0.6 * ms, "p99_ms": ms}
    return Hour(
        start=start,
        version=version,
        requests=requests,
        **{"failed": 0, "violations": 0, "missed": 10} | percentiles | counts,
    )


def history_of(levels, version_of=lambda at: "1", **options):
    history = History()
    for at, level in enumerate(levels):
        for hours, version in ((history.hours, None), (history.versions, version_of(at))):
            hours.append(hour_of(START + at * HOUR, version, level, **options))
    return history


def test_a_slower_version_is_named_with_the_time_since_when():
    deployed = 4 * 168 - 24
    trends = trends_of(history_of(levels(1, slower=0.1), lambda at: "2" if at >= deployed else "1"))
    assert {change.figure for change in trends.changes} == {"p50", "p95", "p99"}
    for change in trends.changes:
        assert (change.version, change.lasts, change.is_slower) == ("2", True, True)
        assert change.change == pytest.approx(0.1, abs=0.04)
        assert abs(change.since - START - deployed * HOUR) <= 6 * HOUR
    assert trends.slower() == trends.changes
    assert trends.slower(days=0.5) == ()
    assert trends.missing == ()


def test_a_change_far_from_any_version_has_none():
    trends = trends_of(history_of(levels(1, slower=0.1), lambda at: "2" if at >= 4 * 168 - 100 else "1"))
    assert {change.version for change in trends.changes} == {None}


def test_a_percentile_alone_may_become_slower():
    history = history_of(levels(2))
    history.hours = [
        hour_of(hour.start, None, math.log(hour.p99_ms), p99_ms=hour.p99_ms * (1.2 if at >= 600 else 1))
        for at, hour in enumerate(history.hours)
    ]
    assert {change.figure for change in trends_of(history).changes} == {"p99"}


def test_a_change_that_was_taken_back_does_not_last():
    slower, faster = _changes("p99", [Shift(480_600, 0.3, 9.0), Shift(481_000, -0.3, -9.0)], {})
    assert (slower.is_slower, slower.lasts) == (True, False)
    assert (faster.is_slower, faster.lasts) == (False, True)


def test_weeks_are_compared_with_the_week_before():
    trends = trends_of(history_of(levels(4, slower=0.1, slower_hours=168)))
    last, before, *_ = trends.weeks
    assert last.end == trends.end == START + 4 * 168 * HOUR
    assert [week.end - week.start for week in trends.weeks] == [7 * 24 * HOUR] * 4
    assert last.comparisons["p99"].change == pytest.approx(0.1, abs=0.03)
    assert last.is_significant("p99")
    assert not before.is_significant("p99")
    assert trends.weeks[3].comparisons == {}
    assert (last.requests, last.hours, last.hit_rate) == (168_000, 168, 0.99)


def test_versions_are_compared_with_the_weeks_before_them():
    trends = trends_of(history_of(levels(5, slower=0.2, slower_hours=48), lambda at: str(at // (7 * 24 + 144))))
    last, first = trends.versions[0], trends.versions[-1]
    assert (last.version, first.version) == ("2", "0")
    assert last.is_significant("p50")
    assert first.comparisons == {}


def test_two_versions_in_the_same_hours_are_each_judged():
    history = history_of(levels(6))
    end = history.hours[-1].start
    for hour in history.hours[-24:]:
        history.versions.append(hour_of(hour.start, "canary", math.log(hour.p99_ms * 1.3)))
    trends = trends_of(history)
    (canary,) = (period for period in trends.versions if period.version == "canary")
    assert canary.end == end + HOUR
    assert canary.is_significant("p99")
    assert trends.changes == ()


def test_a_week_without_a_regression_is_not_significant():
    for seed in range(20):
        trends = trends_of(history_of(levels(50 + seed)))
        assert trends.changes == ()
        assert not any(week.is_significant(figure) for week in trends.weeks for figure in week.comparisons)


def test_hours_with_few_requests_are_counted_and_not_compared():
    trends = trends_of(history_of(levels(7, slower=0.5), requests=199))
    assert trends.changes == ()
    assert trends.weeks[0].comparisons == {}
    assert trends.weeks[0].p99_ms is None
    assert trends.weeks[0].requests == 199 * 168
    assert trends.missing == ("no hour has the 200 requests that a comparison needs",)


def test_hours_without_requests_are_not_counted():
    history = history_of(list(levels(7))[:10])
    history.hours.append(hour_of(START + 10 * HOUR, None, 0.0, requests=0, missed=0, violations=3))
    trends = trends_of(history)
    assert (trends.hours, trends.weeks[0].hours, trends.weeks[0].violations) == (10, 10, 3)


def test_a_short_history_says_what_is_missing():
    trends = trends_of(history_of(list(levels(8))[: 9 * 24]))
    assert trends.missing == ("changes are found when there are 21 days; 12.0 days to go",)
    assert trends_of(History()).missing == ("no hours yet",)
    assert "rows that are damaged or too large: 2" in trends_of(History(damaged=2)).missing


def test_hours_in_which_every_request_failed_harm_nothing():
    zero = {"p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0, "failed": 1000}
    trends = trends_of(history_of(levels(9), **zero))
    assert (trends.changes, trends.weeks[0].comparisons) == ((), {})


def test_everything_is_json_like():
    found = json.loads(json.dumps(trends_of(history_of(levels(1, slower=0.1))).as_dict()))
    assert found["changes"][0]["figure"] in {"p50", "p95", "p99"}
    assert found["weeks"][0]["comparisons"]["p99"]["hours"] == 168
