"""The tuner makes one change at a time, keeps or undoes it by its effect, and changes ever more rarely."""

import math
from itertools import pairwise

import pytest

from acgsperf.service.tuning import Action, Outcome, Tunable, Tuner


class Setting:
    """A setting of a real object. It records every value that was set."""

    def __init__(self, value=5):
        self.value = value
        self.values = []
        self.broken = False

    def set(self, value):
        if self.broken:
            raise RuntimeError("it does not move")
        self.value = value
        self.values.append(value)

    def tunable(self, name="size", lower=0, upper=10, step=1):
        return Tunable(name=name, get=lambda: self.value, set=self.set, lower=lower, upper=upper, step=step)


def outcomes(actions):
    return [(action.name, action.outcome) for action in actions]


def test_a_change_that_helps_is_kept_and_the_next_change_follows_at_once():
    setting = Setting()
    tuner = Tuner([setting.tunable()])
    assert tuner.step(1.0) == (Action("size", 5, 6, 1.0, None, Outcome.APPLIED),)
    assert tuner.step(1.5) == (
        Action("size", 5, 6, 1.0, 1.5, Outcome.KEPT),
        Action("size", 6, 7, 1.5, None, Outcome.APPLIED),
    )
    assert setting.value == 7


def test_a_change_that_hurts_is_undone_and_the_other_direction_is_tried_after_a_pause():
    setting = Setting()
    tuner = Tuner([setting.tunable()])
    tuner.step(1.0)
    assert tuner.step(0.9) == (Action("size", 5, 6, 1.0, 0.9, Outcome.UNDONE),)
    assert setting.value == 5
    assert tuner.step(1.0) == (Action("size", 5, 4, 1.0, None, Outcome.APPLIED),)


def test_a_change_without_effect_is_kept_and_the_pause_doubles():
    setting = Setting(0)
    tuner = Tuner([setting.tunable(upper=100)])
    applied = [i for i in range(200) for action in tuner.step(1.0) if action.outcome is Outcome.APPLIED]
    assert [b - a for a, b in pairwise(applied)] == [2, 3, 5, 9, 17, 33, 65]
    assert setting.value == len(applied)


def test_a_pause_is_never_longer_than_max_pause():
    tuner = Tuner([Setting(0).tunable(upper=100)], max_pause=4)
    applied = [i for i in range(40) for action in tuner.step(1.0) if action.outcome is Outcome.APPLIED]
    assert {b - a for a, b in pairwise(applied[3:])} == {5}


@pytest.mark.parametrize("merit", [None, math.nan, math.inf, -math.inf])
def test_an_interval_without_a_measurement_judges_and_changes_nothing(merit):
    setting = Setting()
    tuner = Tuner([setting.tunable()])
    assert tuner.step(merit) == ()
    tuner.step(1.0)
    assert [tuner.step(merit) for _ in range(5)] == [()] * 5
    assert setting.value == 6
    assert outcomes(tuner.step(0.5)) == [("size", Outcome.UNDONE)]


@pytest.mark.parametrize("start", range(11))
@pytest.mark.parametrize("best", [0, 3, 10])
def test_the_tuner_finds_the_best_value_and_stays_near_it(start, best):
    setting = Setting(start)
    tuner = Tuner([setting.tunable()], tolerance=0.001)
    for _ in range(480):
        tuner.step(100.0 - (setting.value - best) ** 2)
    assert abs(setting.value - best) <= 1
    assert len(tuner.actions) < 80


def test_a_less_negative_merit_is_better():
    setting = Setting()
    tuner = Tuner([setting.tunable()])
    tuner.step(-10.0)
    assert outcomes(tuner.step(-12.0)) == [("size", Outcome.UNDONE)]
    tuner.step(-10.0)
    assert outcomes(tuner.step(-8.0))[0] == ("size", Outcome.KEPT)


def test_settings_take_turns_and_only_one_change_is_in_trial():
    settings = [Setting() for _ in range(3)]
    tuner = Tuner([setting.tunable(name) for setting, name in zip(settings, "abc", strict=True)])
    names = [action.name for i in range(4) for action in tuner.step(1.0 + i) if action.outcome is Outcome.APPLIED]
    assert names == ["a", "b", "c", "a"]
    in_trial = 0
    for action in tuner.actions:
        in_trial += 1 if action.outcome is Outcome.APPLIED else -1
        assert in_trial in (0, 1)


def test_a_proposal_beyond_a_bound_becomes_the_bound():
    setting = Setting(5)
    tuner = Tuner([setting.tunable(lower=1, upper=12, step=lambda value, direction: value * 2**direction)])
    for i in range(100):
        tuner.step(1.0 + i)
    assert set(setting.values) >= {10, 12}
    assert min(setting.values) >= 1
    assert max(setting.values) <= 12


@pytest.mark.parametrize("proposed", [math.nan, 5, 4, -math.inf])
def test_a_proposal_in_the_wrong_direction_is_none(proposed):
    tunable = Setting(5).tunable(step=lambda value, direction: proposed)
    assert tunable.proposal(5, 1) is None


def test_a_setting_with_equal_bounds_never_changes():
    setting = Setting(5)
    tuner = Tuner([setting.tunable(lower=5, upper=5)])
    for i in range(50):
        assert tuner.step(1.0 + i) == ()
    assert setting.values == []


def test_a_change_by_someone_else_supersedes_the_change_in_trial():
    setting = Setting()
    tuner = Tuner([setting.tunable()])
    tuner.step(1.0)
    setting.value = 9
    assert outcomes(tuner.step(0.1)) == [("size", Outcome.SUPERSEDED)]
    assert setting.value == 9
    setting.value = 99
    for _ in range(50):
        tuner.step(1.0)
    assert setting.value == 99


def test_a_setting_that_cannot_be_changed_is_logged_and_backs_off(caplog):
    broken, sound = Setting(), Setting()
    broken.broken = True
    tuner = Tuner([broken.tunable("broken"), sound.tunable("sound")])
    assert outcomes(tuner.step(1.0)) == [("sound", Outcome.APPLIED)]
    assert "setting 'broken': cannot be set to 6" in caplog.text
    for i in range(100):
        tuner.step(2.0 + i)
    assert sum("cannot be set" in record.getMessage() for record in caplog.records) < 10


def test_an_undo_that_fails_is_tried_again_in_the_next_interval():
    setting = Setting()
    tuner = Tuner([setting.tunable()])
    tuner.step(1.0)
    setting.broken = True
    assert tuner.step(0.5) == ()
    setting.broken = False
    assert tuner.step(0.5) == (Action("size", 5, 6, 1.0, 0.5, Outcome.UNDONE),)
    assert setting.value == 5


def test_the_reported_value_is_the_one_in_effect():
    kept = []
    value = [4]

    def set_even(wanted):
        value[0] = int(wanted) // 2 * 2
        kept.append(value[0])

    tunable = Tunable(name="even", get=lambda: value[0], set=set_even, lower=0, upper=10, step=3)
    assert Tuner([tunable]).step(1.0) == (Action("even", 4, 6, 1.0, None, Outcome.APPLIED),)


def test_the_action_history_is_bounded():
    tuner = Tuner([Setting(0).tunable(upper=10_000)], history=5)
    for i in range(100):
        tuner.step(1.1**i)
    assert len(tuner.actions) == 5
    assert tuner.actions[-1].after == 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tuner([Setting().tunable(), Setting().tunable()]), "different names"),
        (lambda: Tuner([Setting(11).tunable()]), "size must be between 0 and 10, got 11"),
        (lambda: Tuner([], tolerance=0), "tolerance must be"),
        (lambda: Tuner([], max_pause=0), "max_pause must be"),
        (lambda: Tuner([], history=0), "history must be"),
        (lambda: Setting().tunable(lower=3, upper=2), "bounds must be finite"),
        (lambda: Setting().tunable(upper=math.inf), "bounds must be finite"),
        (lambda: Setting().tunable(step=0), "size: step must be"),
    ],
)
def test_an_invalid_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_abandoned_change_is_undone_unless_someone_changed_the_setting_since():
    setting = Setting()
    tuner = Tuner([setting.tunable()])
    assert tuner.abandon() == ()
    tuner.step(1.0)
    assert outcomes(tuner.abandon()) == [("size", Outcome.UNDONE)]
    assert setting.value == 5
    tuner.step(1.0)
    setting.value = 9
    assert outcomes(tuner.abandon()) == [("size", Outcome.SUPERSEDED)]
    assert setting.value == 9
    assert tuner.abandon() == ()
