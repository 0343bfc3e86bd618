"""A trend is found in a drift, and not in noise, steps or spikes."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acgsperf.monitor.forecast import Trend, trend


def points(values):
    return list(enumerate(values))


def test_the_trend_of_a_straight_line_is_the_line():
    line = trend(points(1.0 + 0.25 * i for i in range(20)))
    assert line == Trend(5.75, 0.25)
    assert line.crossing(6.75) == 4.0
    assert line.crossing(5.75) == 0.0
    assert line.crossing(5.0) is None


def test_gaps_between_points_change_the_slope():
    line = trend([(3 * i, 10.0 - i) for i in range(20)])
    assert line.slope == pytest.approx(-1 / 3)
    assert line.crossing(-11.0) == pytest.approx(6.0)


def test_outliers_do_not_move_a_trend():
    values = [1.0 + 0.1 * i for i in range(20)]
    values[4], values[13] = 1000.0, 1000.0
    line = trend(points(values))
    assert line.slope == pytest.approx(0.1, rel=0.2)
    assert line.level == pytest.approx(2.9, rel=0.05)


@pytest.mark.parametrize("at", range(1, 20))
@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_a_step_is_not_a_trend(at, noise):
    generator = random.Random(at)
    assert trend(points((1.0 if i < at else 2.0) + generator.gauss(0, noise) for i in range(20))) is None


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 20,
        [1.0, 2.0] * 10,
        [1.0] * 19 + [50.0],
        [1.0, 1.0, 1.0, 1.0, 9.0] * 4,
        [abs(10.0 - i) for i in range(20)],
    ],
    ids=["constant", "alternating", "spike", "spikes", "valley"],
)
def test_values_without_a_direction_have_no_trend(values):
    assert trend(points(values)) is None


def test_noise_almost_never_has_a_trend_and_a_noisy_drift_almost_always_has():
    generator = random.Random(7)
    noise = [trend(points(generator.lognormvariate(0, 1) for _ in range(20))) for _ in range(1000)]
    assert sum(found is not None for found in noise) <= 3
    drift = [trend(points(0.4 * i + generator.gauss(0, 1) for i in range(20))) for _ in range(200)]
    assert sum(found is not None for found in drift) >= 180


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=0), min_size=8, max_size=20))
def test_negated_values_have_the_negated_trend(values):
    found = trend(points(values))
    mirrored = trend(points(-value for value in values))
    assert (found is None) == (mirrored is None)
    if found is not None and math.isfinite(found.slope):
        assert mirrored.slope == -found.slope
