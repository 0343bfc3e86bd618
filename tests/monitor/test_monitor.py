"""The monitor: which readings raise an alert, which clear it, and which do neither."""

import asyncio
import logging
import math

import pytest

from acgsperf import Alert, AlertKind, AlertState, Monitor, Reading, Targets

NORMAL = {"p50_ms": 0.5, "p95_ms": 1.0, "p99_ms": 2.0, "hit_rate": 0.99}


class Watch:
    """A monitor with its own clock. An interval is 30 s."""

    def __init__(self, targets=None, **options):
        self.monitor = Monitor(targets or Targets(), **options)
        self.now = 0.0

    def __call__(self, times=1, **figures):
        """Observe `times` equal intervals, normal except for `figures`; return the alerts of the last one."""
        for _ in range(times):
            self.now += 30.0
            alerts = self.monitor.observe(Reading(at=self.now, **{"requests": 1000, **NORMAL, **figures}))
        return [(alert.kind, alert.subject, alert.state) for alert in alerts]

    @property
    def active(self):
        return [(alert.kind, alert.subject) for alert in self.monitor.active]


@pytest.fixture
def watch():
    watch = Watch()
    watch(20)
    return watch


def raised(kind, subject):
    return [(kind, subject, AlertState.RAISED)]


def cleared(kind, subject):
    return [(kind, subject, AlertState.CLEARED)]


def test_normal_readings_raise_no_alert(watch):
    assert watch(1000) == []
    assert watch.active == []


@pytest.mark.parametrize(
    ("figures", "kind", "subject", "value", "limit"),
    [
        ({"p50_ms": 1.1}, AlertKind.RESPONSE_TIME, "p50", 1.1, 1.0),
        ({"p95_ms": 2.1}, AlertKind.RESPONSE_TIME, "p95", 2.1, 2.0),
        ({"p99_ms": 5.1}, AlertKind.RESPONSE_TIME, "p99", 5.1, 5.0),
        ({"hit_rate": 0.9499}, AlertKind.HIT_RATE, "hit_rate", 0.9499, 0.95),
        ({"unhealthy_pools": ("orders",)}, AlertKind.POOL_HEALTH, "orders", 1.0, 0.0),
        ({"violations": 3}, AlertKind.COMPLIANCE, "requests", 3, 0),
    ],
)
def test_an_alert_is_raised_once_and_cleared_by_good_intervals_in_a_row(watch, figures, kind, subject, value, limit):
    received = []
    watch.monitor.on_alert(received.append)
    assert watch(**figures) == raised(kind, subject)
    (alert,) = watch.monitor.active
    assert received == [alert]
    assert (alert.kind, alert.subject, alert.value, alert.limit, alert.at) == (kind, subject, value, limit, watch.now)
    assert watch(**figures) == []
    assert watch(2) == []
    assert watch(**figures) == []
    assert watch(2) == []
    assert watch.active == [(kind, subject)]
    assert watch() == cleared(kind, subject)
    assert watch.active == []
    assert [alert.state for alert in received] == ["raised", "cleared"]
    assert received[1].at == watch.now


@pytest.mark.parametrize(
    ("figures", "between"),
    [
        ({"p95_ms": 2.1}, {"p95_ms": 1.9}),
        ({"hit_rate": 0.94}, {"hit_rate": 0.951}),
    ],
)
def test_a_figure_only_just_within_its_target_does_not_clear_the_alert(watch, figures, between):
    watch(**figures)
    assert watch(10, **between) == []
    assert len(watch.active) == 1


def test_one_reading_can_raise_several_alerts_that_clear_separately(watch):
    watch(p99_ms=50.0, hit_rate=0.5, unhealthy_pools=("a", "b", "a"), violations=1)
    assert watch.active == [
        ("response_time", "p99"),
        ("hit_rate", "hit_rate"),
        ("pool_health", "a"),
        ("pool_health", "b"),
        ("compliance", "requests"),
    ]
    assert watch(3, p99_ms=50.0, unhealthy_pools=("b",)) == [
        *cleared("hit_rate", "hit_rate"),
        *cleared("pool_health", "a"),
        *cleared("compliance", "requests"),
    ]


def test_a_rise_within_the_target_is_not_a_regression():
    watch = Watch()
    watch(20, p50_ms=0.004, p95_ms=0.004, p99_ms=0.004)
    assert watch(20, p50_ms=0.007, p95_ms=0.4, p99_ms=0.8) == []


def test_a_target_that_is_always_missed_is_not_a_regression():
    watch = Watch()
    watch(20, p95_ms=10.0)
    assert watch(9, p95_ms=15.0) == []
    assert watch(p95_ms=15.1) == raised("response_time", "p95")


def test_nothing_is_judged_during_the_warm_up():
    watch = Watch()
    assert watch(10, p95_ms=1.0, hit_rate=0.2) == []
    assert watch(p95_ms=9.0, hit_rate=0.2) == [
        *raised("response_time", "p95"),
        *raised("hit_rate", "hit_rate"),
    ]
    eager = Watch(warm_up=0)
    assert eager(hit_rate=0.2) == raised("hit_rate", "hit_rate")
    assert eager(p95_ms=9.0) == raised("response_time", "p95")


def test_spikes_do_not_move_the_baseline(watch):
    for _ in range(5):
        assert watch(p95_ms=500.0) in ([], raised("response_time", "p95"))
        watch(3)
    while watch.active:
        watch()
    assert watch(p95_ms=2.1) == raised("response_time", "p95")


def test_a_permanent_shift_is_an_alert_until_it_becomes_the_usual_value(watch):
    assert watch(p95_ms=6.0) == raised("response_time", "p95")
    assert watch(19, p95_ms=6.0) == []
    assert watch(2, p95_ms=6.0) == []
    assert watch(p95_ms=6.0) == cleared("response_time", "p95")
    assert watch(100, p95_ms=6.0) == []
    assert watch(p95_ms=9.1) == raised("response_time", "p95")


@pytest.mark.parametrize(
    "figures",
    [
        {"requests": 0, "p50_ms": None, "p95_ms": None, "p99_ms": None, "hit_rate": None},
        {"requests": 0, "hit_rate": 0.0, "p95_ms": 0.0},
        {"requests": 19, "hit_rate": 0.0, "p95_ms": 100.0},
        {"p50_ms": math.nan, "p95_ms": math.nan, "p99_ms": math.inf, "hit_rate": math.nan},
        {"p50_ms": -1.0, "p95_ms": -math.inf, "p99_ms": None, "hit_rate": 1.5},
        {"requests": -5},
    ],
)
def test_an_interval_without_measurements_neither_raises_nor_clears(watch, figures):
    assert watch(50, **figures) == []
    watch(p50_ms=9.0, p95_ms=9.0, p99_ms=90.0, hit_rate=0.5)
    before = watch.active
    assert len(before) == 4
    watch(2)
    assert watch(50, **figures) == []
    assert watch.active == before
    watch()
    assert watch.active == []


def test_a_compliance_alert_is_cleared_by_traffic_and_not_by_idle_intervals(watch):
    watch(violations=1, requests=0)
    assert watch.active == [("compliance", "requests")]
    assert watch(10, requests=0) == []
    assert watch(3, requests=1) == cleared("compliance", "requests")


def test_pools_are_judged_in_idle_intervals_too(watch):
    assert watch(requests=0, unhealthy_pools=("orders",)) == raised("pool_health", "orders")
    assert watch(3, requests=0) == cleared("pool_health", "orders")


def test_an_alert_that_is_raised_again_soon_takes_twice_as_long_to_clear(watch):
    needed = []
    for _ in range(8):
        assert watch(violations=1) == raised("compliance", "requests")
        needed.append(1)
        while not watch():
            needed[-1] += 1
    assert needed == [3, 6, 12, 24, 48, 96, 96, 96]
    watch(6 * 48)
    watch(violations=1)
    assert watch(3) == cleared("compliance", "requests")


def test_the_state_of_a_pool_is_dropped_after_a_quiet_time(watch):
    for i in range(500):
        watch(unhealthy_pools=(f"pool-{i}",))
    assert len(watch.monitor._hysteresis) < 60
    watch(52)
    assert not [key for key in watch.monitor._hysteresis if key[0] is AlertKind.POOL_HEALTH]


def test_the_history_is_bounded():
    watch = Watch(history=3)
    watch(5)
    assert [reading.at for reading in watch.monitor.history] == [90.0, 120.0, 150.0]
    assert Watch().monitor._history.maxlen == 1000


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
def test_a_failing_callback_is_logged_and_the_others_run(watch, caplog, kind):
    received = []

    def fails(alert):
        raise kind("no pager")

    watch.monitor.on_alert(fails)
    watch.monitor.on_alert(received.append)
    assert watch(violations=1) == raised("compliance", "requests")
    assert len(received) == 1
    assert "compliance alert for requests: a callback failed" in caplog.text
    assert "no pager" in caplog.text


def test_unregistering_removes_one_registration_and_may_be_repeated(watch):
    received = []
    first, second = watch.monitor.on_alert(received.append), watch.monitor.on_alert(received.append)
    first()
    first()
    watch(violations=1)
    assert len(received) == 1
    second()
    watch(3)
    assert len(received) == 1


def test_a_callback_may_unregister_itself_and_observe(watch):
    def once(alert):
        end()
        watch(violations=1, unhealthy_pools=("orders",))

    end = watch.monitor.on_alert(once)
    assert watch(violations=1) == raised("compliance", "requests")
    assert watch.active == [("compliance", "requests"), ("pool_health", "orders")]


async def coroutine(alert):
    await asyncio.sleep(0)


@pytest.mark.parametrize("callback", [None, "print", coroutine])
def test_a_callback_that_is_not_callable_or_is_a_coroutine_function_is_refused(watch, callback):
    with pytest.raises(TypeError, match="callback must be a callable that is not a coroutine function, got "):
        watch.monitor.on_alert(callback)


def test_alerts_are_logged(watch, caplog):
    caplog.set_level(logging.INFO, "acgsperf.monitor")
    watch(hit_rate=0.9)
    watch(3)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("acgsperf.monitor", "WARNING", "hit_rate alert for hit_rate raised: 90.00%, target 95.00%"),
        ("acgsperf.monitor", "INFO", "hit_rate alert for hit_rate cleared: 99.00%, target 95.00%"),
    ]


def test_the_clock_does_not_change_which_alerts_are_raised():
    def states(times):
        watch = Watch()
        found = []
        for i, at in enumerate(times):
            reading = Reading(at=at, requests=1000, **{**NORMAL, "p95_ms": 1.0 + 2 * (i == 30) + 0.04 * max(0, i - 50)})
            found += [(a.kind, a.subject, a.state) for a in watch.monitor.observe(reading)]
        return found

    forwards = states(30.0 * i for i in range(100))
    assert len(forwards) >= 3
    assert states(-30.0 * i for i in range(100)) == forwards
    assert states(0.0 for i in range(100)) == forwards
    assert states([math.nan] * 100) == forwards


def test_a_drift_is_forecast_before_it_crosses_the_target(watch):
    alerts = []
    watch.monitor.on_alert(alerts.append)
    level = 1.0
    while not alerts:
        level += 0.05
        watch(p95_ms=level)
    (alert,) = alerts
    assert (alert.kind, alert.subject, alert.limit) == (AlertKind.FORECAST, "p95", 2.0)
    assert 1.5 <= level < 2.0
    assert alert.value == pytest.approx(level, rel=0.05)
    assert alert.due == pytest.approx(watch.now + 30 * (2.0 - level) / 0.05, abs=60)
    assert "now; at its current slope it will cross the target of 2 in" in alert.message


def test_a_forecast_stays_while_the_target_is_missed_and_clears_once_it_is_met(watch):
    for i in range(30):
        watch(p95_ms=1.0 + 0.05 * i)
    assert ("forecast", "p95") in watch.active
    watch(30, p95_ms=2.4)
    assert ("forecast", "p95") in watch.active
    watch(30)
    assert ("forecast", "p95") not in watch.active


def test_a_falling_hit_rate_is_forecast(watch):
    for i in range(25):
        watch(hit_rate=0.99 - 0.0015 * i)
    assert watch.active == [("forecast", "hit_rate")]
    assert watch.monitor.active[0].due > watch.now - 30 * 25


def test_a_trend_away_from_the_target_is_not_forecast():
    watch = Watch(Targets(p99_ms=2.5))
    for i in range(40):
        watch(p95_ms=1.9 - 0.02 * i, p99_ms=5.0 - 0.05 * i, hit_rate=0.955 + 0.001 * i)
    assert watch.active == []


def test_a_forecast_with_only_one_reading_has_no_due_time():
    watch = Watch(history=1)
    watch(20)
    for i in range(25):
        watch(p95_ms=1.0 + 0.03 * i)
    assert watch.active == [("forecast", "p95")]
    assert watch.monitor.active[0].due is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"history": 0}, "history"),
        ({"baseline_window": 9}, "baseline_window"),
        ({"warm_up": -1}, "warm_up"),
        ({"regression": 0}, "regression"),
        ({"regression": math.inf}, "regression"),
        ({"min_requests": 0}, "min_requests"),
        ({"clear_after": 0}, "clear_after"),
        ({"forecast_intervals": 0}, "forecast_intervals"),
        ({"trend_window": 7}, "trend_window"),
    ],
)
def test_an_invalid_option_is_named(options, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Monitor(Targets(), **options)


@pytest.mark.parametrize(("name", "value"), [("p50_ms", 0), ("p99_ms", math.nan), ("hit_rate", 95)])
def test_an_invalid_target_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Targets(**{name: value})


def test_alerts_compare_by_value_and_can_be_hashed():
    alert = Alert(AlertKind.HIT_RATE, "hit_rate", AlertState.RAISED, "", 0.9, 0.95, 1.0)
    assert alert == Alert("hit_rate", "hit_rate", "raised", "", 0.9, 0.95, 1.0)
    assert hash(alert)
