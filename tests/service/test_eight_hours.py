"""Simulates eight hours of adversarial figures: 960 readings and 480 optimization rounds."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acgsperf import AlertState, Monitor, Reading, Targets
from acgsperf.service.tuning import Outcome, Tunable, Tuner

READINGS = 960
OPTIMIZATIONS = 480


def reading(at, level, *, rate=0.99, requests=1000, violations=0, pools=()):
    return Reading(
        at=at,
        requests=requests,
        violations=violations,
        p50_ms=level,
        p95_ms=None if level is None else 2 * level,
        p99_ms=None if level is None else 4 * level,
        hit_rate=rate,
        unhealthy_pools=pools,
    )


def watch_all(readings):
    """Return how often each alert was raised. Asserts for every alert that it does not flap."""
    monitor = Monitor(Targets())
    alerts = []
    for count, each in enumerate(readings, 1):
        alerts += monitor.observe(each)
        assert len(monitor.history) == min(count, 1000)
    states = {}
    for alert in alerts:
        key = alert.kind, alert.subject
        before, states[key] = states.get(key, AlertState.CLEARED), alert.state
        assert before != alert.state
        assert not math.isnan(alert.limit)
    assert {(a.kind, a.subject) for a in monitor.active} == {k for k, s in states.items() if s is AlertState.RAISED}
    # An alert needs 3 intervals to clear and 48 to become quiet. If raised earlier, that doubles, at most 5 times.
    raised = Counter((alert.kind, alert.subject) for alert in alerts if alert.state is AlertState.RAISED)
    assert all(count <= 6 + READINGS // 52 for count in raised.values())
    return raised


def adversaries():
    generator = random.Random(5)
    noise = [generator.lognormvariate(0, 0.3) for _ in range(READINGS)]
    return {
        "alternating": (reading(30.0 * i, 0.3 if i % 2 else 9.0, rate=i % 2) for i in range(READINGS)),
        "clears just in time": (reading(30.0 * i, 0.3 if i % 4 else 9.0, rate=bool(i % 4)) for i in range(READINGS)),
        "spikes": (reading(30.0 * i, 0.3 if i % 17 else 90.0, pools=() if i % 17 else ("a",)) for i in range(READINGS)),
        "drift up": (reading(30.0 * i, 0.1 + 0.01 * i, rate=0.99 - i / READINGS) for i in range(READINGS)),
        "waves": (reading(30.0 * i, 1.0 + 0.9 * math.sin(i / 20), rate=0.95) for i in range(READINGS)),
        "noise at the target": (reading(30.0 * i, noise[i], rate=min(1, 0.95 * noise[i])) for i in range(READINGS)),
        "steps": (reading(30.0 * i, 0.1 * 3 ** (i // 60)) for i in range(READINGS)),
        "idle": (reading(30.0 * i, None, rate=None, requests=0) for i in range(READINGS)),
        "not numbers": (reading(math.nan, math.nan, rate=math.nan) for i in range(READINGS)),
        "a clock that goes back": (reading(-30.0 * i, 0.3 if i % 4 else 9.0) for i in range(READINGS)),
        "a violation every fifth interval": (reading(30.0 * i, 0.3, violations=not i % 5) for i in range(READINGS)),
    }


@pytest.mark.parametrize("adversary", adversaries())
def test_adversarial_figures_do_not_make_an_alert_flap(adversary):
    raised = watch_all(adversaries()[adversary])
    limits = {"idle": 0, "not numbers": 0, "drift up": 2, "alternating": 1, "steps": 16}
    assert max(raised.values(), default=0) <= limits.get(adversary, 8)
    assert bool(raised) is (adversary not in {"idle", "not numbers"})


def test_noise_within_the_targets_raises_almost_no_alerts():
    raised = Counter()
    for seed in range(10):
        generator = random.Random(seed)
        raised += watch_all(
            reading(30.0 * i, generator.gauss(0.8, 0.05), rate=min(1.0, generator.gauss(0.97, 0.005)))
            for i in range(READINGS)
        )
    assert raised.total() <= 2


figures = st.one_of(st.none(), st.floats(), st.floats(0, 10), st.sampled_from([0.1, 1.0, 9.0, math.nan, math.inf]))
patterns = st.lists(
    st.builds(
        reading,
        st.floats(),
        figures,
        rate=st.one_of(figures, st.floats(0.9, 1)),
        requests=st.sampled_from([0, 1, 1000, -1]),
        violations=st.sampled_from([0, 0, 0, 1]),
        pools=st.lists(st.sampled_from("ab")).map(tuple),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=15, deadline=None)
@given(patterns)
def test_no_repeated_pattern_of_readings_makes_an_alert_flap(pattern):
    watch_all(pattern[i % len(pattern)] for i in range(READINGS))


class Settings:
    """Two settings for a tuner. Setting one outside its bounds fails."""

    STEPS = 10

    def __init__(self):
        self.size, self.ttl = 5, 400.0

    def __setattr__(self, name, value):
        assert {"size": 0 <= value <= 10, "ttl": 1.0 <= value <= 1024.0}[name]
        super().__setattr__(name, value)

    def tuner(self):
        return Tuner(
            [
                Tunable(
                    name="size",
                    get=lambda: self.size,
                    set=lambda value: setattr(self, "size", value),
                    lower=0,
                    upper=10,
                    step=1,
                ),
                Tunable(
                    name="ttl",
                    get=lambda: self.ttl,
                    set=lambda value: setattr(self, "ttl", value),
                    lower=1.0,
                    upper=1024.0,
                    step=lambda value, direction: value * 2.0**direction,
                ),
            ]
        )


def tune_all(merits):
    """Return how often each setting changed. Asserts the documented bound on the number of changes."""
    tuned = Settings()
    tuner = tuned.tuner()
    changes = Counter()
    measured = 0
    for count in range(OPTIMIZATIONS):
        merit = merits(count, tuned)
        measured += merit is not None and math.isfinite(merit)
        for action in tuner.step(merit):
            changes[action.name] += action.outcome in {Outcome.APPLIED, Outcome.UNDONE}
        assert len(tuner.actions) <= 1000
    pauses = 1 + math.log2(measured + 1) + measured / 128
    assert all(count <= (Settings.STEPS + 2) * (pauses + 1) for count in changes.values())
    return changes


MERITS = {
    "constant": lambda i, tuned: 1.0,
    "alternating": lambda i, tuned: float(i % 2),
    "alternating slowly": lambda i, tuned: float(i // 2 % 2),
    "better and better": lambda i, tuned: 1.1**i,
    "worse and worse": lambda i, tuned: 0.9**i,
    "a moving optimum": lambda i, tuned: -abs(tuned.size - i % 11),
    "against every change": lambda i, tuned: (-1) ** tuned.size * (1 + i % 3),
    "noise": lambda i, tuned: random.Random(i).gauss(10, 3),
    "rarely measured": lambda i, tuned: None if i % 3 else math.nan if i % 2 else float(i),
}


@pytest.mark.parametrize("merits", MERITS.values(), ids=MERITS)
def test_no_merit_makes_a_setting_oscillate(merits):
    changes = tune_all(merits)
    assert changes.total() > 0


def test_changes_become_rare_if_every_change_makes_things_worse():
    """There are two changes per pause, a change and its undo, and the pauses double."""
    changes = tune_all(lambda i, tuned: 1.0 if (tuned.size, tuned.ttl) == (5, 400.0) else 0.0)
    assert all(count <= 2 * (math.log2(OPTIMIZATIONS) + OPTIMIZATIONS / 128) for count in changes.values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(), st.floats(-1, 1)), min_size=1, max_size=60))
def test_no_repeated_pattern_of_merits_makes_a_setting_oscillate(pattern):
    tune_all(lambda i, tuned: pattern[i % len(pattern)])


def test_an_adversary_that_sees_the_settings_cannot_make_them_oscillate():
    generator = random.Random(3)
    for _ in range(50):
        memory = {}
        tune_all(lambda i, tuned, memory=memory: memory.setdefault((tuned.size, tuned.ttl, i % 7), generator.random()))
