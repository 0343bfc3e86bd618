"""What is usual at an hour of the week: a Monday peak raises no forecast, and a leak does."""

import asyncio
import math
import random
import time
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from acgsperf import AlertKind, Monitor, PerformanceService, Reading, Settings, Targets
from acgsperf.trends import Hour, season_of
from trends.conftest import HOUR, encoded

MONDAY = int(datetime(2026, 11, 2, tzinfo=UTC).timestamp())
TARGETS = Targets(p50_ms=10, p95_ms=10, p99_ms=5, hit_rate=0.01)


def usual_p99(at):
    """2 ms, and up to 5.5 ms at noon on Mondays."""
    hours = (at - MONDAY) / HOUR % 168
    return 2 + 3.5 * math.exp(-(((hours - 12) / 1.5) ** 2))


def steep_p99(at):
    """1 ms, and 4.5 ms from 10 to 12 on Mondays, with an hour of rise and an hour of fall."""
    hours = (at - MONDAY) / HOUR % 168
    return 1 + 3.5 * max(0, min(1, hours - 9, 13 - hours))


def flat_p99(at):
    return 1.0


def mean_of_hour(p99, at):
    return sum(p99(MONDAY + at * HOUR + minute * 60) for minute in range(60)) / 60


def weeks(count, noise=lambda number: 0.0, p99=None):
    return [
        Hour(
            start=MONDAY + at * HOUR,
            version=None,
            requests=1000,
            failed=0,
            violations=0,
            missed=0,
            p50_ms=0.1,
            p95_ms=0.5,
            p99_ms=(mean_of_hour(p99, at) if p99 else usual_p99(MONDAY + (at + 0.5) * HOUR)) * math.exp(noise(at)),
        )
        for at in range(168 * count)
    ]


@pytest.mark.parametrize("figure", ["p50", "p95", "p99"])
def test_the_usual_value_is_the_median_of_the_weeks_and_has_no_steps(figure):
    hours = weeks(3, noise=lambda at: 0.7 if 168 <= at < 336 else 0.0)
    season = season_of(hours)
    middle = MONDAY + 4 * 168 * HOUR + 30 * HOUR + HOUR / 2
    assert season.usual_ms(figure, middle) == pytest.approx(getattr(hours[30], f"{figure}_ms"))
    values = [season.usual_ms("p99", middle + minute * 60) for minute in range(24 * 60)]
    assert max(abs(after / before - 1) for before, after in pairwise(values)) < 0.02


def test_less_than_two_weeks_are_not_enough():
    assert season_of([]) is None
    assert season_of(weeks(2)[:-1]) is None
    assert season_of(weeks(2)) is not None


def test_hours_that_are_not_known_have_no_usual_value():
    hours = [hour for hour in weeks(3) if (hour.start - MONDAY) // HOUR % 168 != 20]
    season = season_of(hours)
    assert season.usual_ms("p99", MONDAY + 20.5 * HOUR) is None
    assert season.usual_ms("p99", MONDAY + 22 * HOUR) is not None
    idle = [Hour(**{name: getattr(hour, name) for name in Hour.__slots__} | {"requests": 1}) for hour in weeks(3)]
    assert season_of(idle) is None


def test_the_first_and_the_last_half_hour_of_a_day_with_a_silent_night_are_known():
    season = season_of([hour for hour in weeks(3) if 8 <= (hour.start - MONDAY) // HOUR % 24 < 18])
    assert season.usual_ms("p99", MONDAY + 8 * HOUR) == season.usual_ms("p99", MONDAY + 8.4 * HOUR)
    assert season.usual_ms("p99", MONDAY + 17.9 * HOUR) is not None
    assert season.usual_ms("p99", MONDAY + 7.9 * HOUR) is None
    assert season.usual_ms("p99", MONDAY + 18 * HOUR) is None


def forecasts(monkeypatch, season, factor, hours, seed=0, *, interval_s=300, p99=usual_p99, shift_s=0):
    """The forecasts of P99 in readings from Monday, 8 o'clock, of a later week, with 2 % noise."""
    monitor = Monitor(TARGETS)
    monitor.usual_ms = None if season is None else season.usual_ms
    found = []
    noise = random.Random(seed)
    for number in range(round(hours * HOUR / interval_s)):
        now = MONDAY + 5 * 168 * HOUR + 8 * HOUR + number * interval_s
        monkeypatch.setattr(time, "time", lambda now=now: now)
        p99_ms = p99(now + shift_s) * factor(number) * math.exp(noise.gauss(0, 0.02))
        reading = Reading(at=now, requests=1000, p50_ms=0.1, p95_ms=0.5, p99_ms=p99_ms, hit_rate=1.0)
        found += [alert for alert in monitor.observe(reading) if alert.kind is AlertKind.FORECAST]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_peak_of_each_monday_raises_no_forecast(monkeypatch, seed):
    season = season_of(weeks(4))
    assert forecasts(monkeypatch, season, lambda number: 1.0, 8, seed) == []


@pytest.mark.parametrize("interval_s", [30, 300])
@pytest.mark.parametrize("shift_s", [-HOUR, 0, HOUR])
@pytest.mark.parametrize("p99", [usual_p99, steep_p99])
def test_a_peak_an_hour_early_or_late_raises_no_forecast(monkeypatch, p99, shift_s, interval_s):
    season = season_of(weeks(2, p99=p99))
    assert forecasts(monkeypatch, season, lambda number: 1.0, 7, interval_s=interval_s, p99=p99, shift_s=shift_s) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("an_hour", [1.2, 1.5, 1.8, 2.3, 3, 10])
def test_slow_and_fast_leaks_raise_a_forecast_before_they_miss_the_target(monkeypatch, an_hour, seed):
    """In readings each 30 s, the target of 5 ms is missed after 1.5 hours."""
    season = season_of(weeks(2, p99=flat_p99))

    def leaking(number):
        return 5 * an_hour ** (number / 120 - 1.5)

    found = forecasts(monkeypatch, season, leaking, 1.5, seed, interval_s=30, p99=flat_p99)
    assert [alert.subject for alert in found][:1] == ["p99"]
    missed = MONDAY + 5 * 168 * HOUR + 9.5 * HOUR
    # Not much earlier than the 10 intervals that a forecast covers.
    assert missed - 0.5 * HOUR < found[0].at < missed


def test_without_the_season_the_peak_raises_one(monkeypatch):
    assert forecasts(monkeypatch, None, lambda number: 1.0, 8) != []


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_raises_one_before_it_misses_the_target(monkeypatch, seed):
    """From 13:30 on the usual value falls, and the leak is 3 % more each 5 minutes."""
    season = season_of(weeks(4))

    def leaking(number):
        return math.exp(0.03 * max(0, number - 84))

    found = forecasts(monkeypatch, season, leaking, 12, seed)
    assert found
    first = found[0]
    assert first.subject == "p99"
    missed = next(n for n in range(1000) if n > 84 and usual_p99(MONDAY + 8 * HOUR + n * 300) * leaking(n) > 5)
    start = MONDAY + 5 * 168 * HOUR + 8 * HOUR
    assert start + 84 * 300 < first.at < start + missed * 300
    # A straight line falls behind an exponential rise.
    assert first.due == pytest.approx(start + missed * 300, abs=1800)


async def test_a_service_tells_its_monitor_what_is_usual(servers, namespace, writer):
    end = int(time.time() // HOUR) * HOUR
    rows = [(end - (at + 1) * HOUR, "1", "a", 0, 0, 0, encoded([1_000_000] * 300)) for at in range(15 * 24)]
    await writer.write(*rows)

    async def handler(request):
        return request["id"]

    settings = Settings(cache_namespace=namespace, database_url=servers.database_url, db_pool_min_size=0)
    async with PerformanceService(settings, handler=handler) as service:
        assert service.monitor.usual_ms is None
        service.observe()
        async with asyncio.timeout(60):
            while service.monitor.usual_ms is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        known = [service.monitor.usual_ms("p99", time.time() + at * HOUR) for at in range(168)]
        assert max(value for value in known if value) == pytest.approx(1, rel=0.01)
