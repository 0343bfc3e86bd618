"""The tuner: one change at a time, kept or undone by what it did, and rest in the end."""

import math
from itertools import pairwise

import pytest

from acgsperf.service.tuning import Action, Knob, Outcome, Tuner


class Setting:
    """A setting of a real object, with what was ever set."""

    def __init__(self, value=5):
        self.value = value
        self.values = []
        self.broken = False

    def set(self, value):
        if self.broken:
            raise RuntimeError("it does not move")
        self.value = value
        self.values.append(value)

    def knob(self, name="size", lower=0, upper=10, step=1):
        return Knob(name=name, get=lambda: self.value, set=self.set, lower=lower, upper=upper, step=step)


def outcomes(actions):
    return [(action.name, action.outcome) for action in actions]


def test_a_change_that_made_things_better_is_kept_and_the_next_follows_at_once():
    setting = Setting()
    tuner = Tuner([setting.knob()])
    assert tuner.step(1.0) == (Action("size", 5, 6, 1.0, None, Outcome.APPLIED),)
    assert tuner.step(1.5) == (
        Action("size", 5, 6, 1.0, 1.5, Outcome.KEPT),
        Action("size", 6, 7, 1.5, None, Outcome.APPLIED),
    )
    assert setting.value == 7


def test_a_change_that_made_things_worse_is_undone_and_the_other_way_is_tried_after_a_pause():
    setting = Setting()
    tuner = Tuner([setting.knob()])
    tuner.step(1.0)
    assert tuner.step(0.9) == (Action("size", 5, 6, 1.0, 0.9, Outcome.UNDONE),)
    assert setting.value == 5
    assert tuner.step(1.0) == (Action("size", 5, 4, 1.0, None, Outcome.APPLIED),)


def test_a_change_without_effect_is_kept_and_each_pause_is_twice_as_long():
    setting = Setting(0)
    tuner = Tuner([setting.knob(upper=100)])
    applied = [i for i in range(200) for action in tuner.step(1.0) if action.outcome is Outcome.APPLIED]
    assert [b - a for a, b in pairwise(applied)] == [2, 3, 5, 9, 17, 33, 65]
    assert setting.value == len(applied)


def test_the_pause_has_an_end():
    tuner = Tuner([Setting(0).knob(upper=100)], max_pause=4)
    applied = [i for i in range(40) for action in tuner.step(1.0) if action.outcome is Outcome.APPLIED]
    assert {b - a for a, b in pairwise(applied[3:])} == {5}


@pytest.mark.parametrize("merit", [None, math.nan, math.inf, -math.inf])
def test_an_interval_without_a_merit_judges_nothing_and_changes_nothing(merit):
    setting = Setting()
    tuner = Tuner([setting.knob()])
    assert tuner.step(merit) == ()
    tuner.step(1.0)
    assert [tuner.step(merit) for _ in range(5)] == [()] * 5
    assert setting.value == 6
    assert outcomes(tuner.step(0.5)) == [("size", Outcome.UNDONE)]


@pytest.mark.parametrize("start", range(11))
@pytest.mark.parametrize("best", [0, 3, 10])
def test_it_climbs_to_the_best_setting_and_stays_near_it(start, best):
    setting = Setting(start)
    tuner = Tuner([setting.knob()], tolerance=0.001)
    for _ in range(480):
        tuner.step(100.0 - (setting.value - best) ** 2)
    assert abs(setting.value - best) <= 1
    assert len(tuner.actions) < 80


def test_negative_merits_are_compared_the_right_way():
    setting = Setting()
    tuner = Tuner([setting.knob()])
    tuner.step(-10.0)
    assert outcomes(tuner.step(-12.0)) == [("size", Outcome.UNDONE)]
    tuner.step(-10.0)
    assert outcomes(tuner.step(-8.0))[0] == ("size", Outcome.KEPT)


def test_knobs_take_turns_and_one_change_is_under_way():
    settings = [Setting() for _ in range(3)]
    tuner = Tuner([setting.knob(name) for setting, name in zip(settings, "abc", strict=True)])
    names = [action.name for i in range(4) for action in tuner.step(1.0 + i) if action.outcome is Outcome.APPLIED]
    assert names == ["a", "b", "c", "a"]
    under_way = 0
    for action in tuner.actions:
        under_way += 1 if action.outcome is Outcome.APPLIED else -1
        assert under_way in (0, 1)


def test_a_proposal_beyond_a_bound_is_the_bound():
    setting = Setting(5)
    tuner = Tuner([setting.knob(lower=1, upper=12, step=lambda value, direction: value * 2**direction)])
    for i in range(100):
        tuner.step(1.0 + i)
    assert set(setting.values) >= {10, 12}
    assert min(setting.values) >= 1
    assert max(setting.values) <= 12


@pytest.mark.parametrize("proposed", [math.nan, 5, 4, -math.inf])
def test_a_proposal_that_leads_nowhere_is_none(proposed):
    knob = Setting(5).knob(step=lambda value, direction: proposed)
    assert knob.proposal(5, 1) is None


def test_a_setting_with_no_room_is_left_alone():
    setting = Setting(5)
    tuner = Tuner([setting.knob(lower=5, upper=5)])
    for i in range(50):
        assert tuner.step(1.0 + i) == ()
    assert setting.values == []


def test_somebody_elses_change_has_the_last_word():
    setting = Setting()
    tuner = Tuner([setting.knob()])
    tuner.step(1.0)
    setting.value = 9
    assert outcomes(tuner.step(0.1)) == [("size", Outcome.OVERTAKEN)]
    assert setting.value == 9
    setting.value = 99
    for _ in range(50):
        tuner.step(1.0)
    assert setting.value == 99


def test_a_setting_that_cannot_be_changed_is_logged_and_stands_back(caplog):
    broken, sound = Setting(), Setting()
    broken.broken = True
    tuner = Tuner([broken.knob("broken"), sound.knob("sound")])
    assert outcomes(tuner.step(1.0)) == [("sound", Outcome.APPLIED)]
    assert "broken cannot be set to 6" in caplog.text
    for i in range(100):
        tuner.step(2.0 + i)
    assert sum("cannot be set" in record.getMessage() for record in caplog.records) < 10


def test_an_undo_that_fails_is_tried_again():
    setting = Setting()
    tuner = Tuner([setting.knob()])
    tuner.step(1.0)
    setting.broken = True
    assert tuner.step(0.5) == ()
    setting.broken = False
    assert tuner.step(0.5) == (Action("size", 5, 6, 1.0, 0.5, Outcome.UNDONE),)
    assert setting.value == 5


def test_what_the_setting_makes_of_a_value_is_what_is_reported():
    kept = []
    value = [4]

    def set_even(wanted):
        value[0] = int(wanted) // 2 * 2
        kept.append(value[0])

    knob = Knob(name="even", get=lambda: value[0], set=set_even, lower=0, upper=10, step=3)
    assert Tuner([knob]).step(1.0) == (Action("even", 4, 6, 1.0, None, Outcome.APPLIED),)


def test_the_actions_are_bounded():
    tuner = Tuner([Setting(0).knob(upper=10_000)], history=5)
    for i in range(100):
        tuner.step(1.1**i)
    assert len(tuner.actions) == 5
    assert tuner.actions[-1].after == 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tuner([Setting().knob(), Setting().knob()]), "different names"),
        (lambda: Tuner([Setting(11).knob()]), "size must be between 0 and 10, not 11"),
        (lambda: Tuner([], tolerance=0), "tolerance must be"),
        (lambda: Tuner([], max_pause=0), "max_pause must be"),
        (lambda: Tuner([], history=0), "history must be"),
        (lambda: Setting().knob(lower=3, upper=2), "bounds must be finite and in order"),
        (lambda: Setting().knob(upper=math.inf), "bounds must be finite and in order"),
        (lambda: Setting().knob(step=0), "size: step must be"),
    ],
)
def test_what_cannot_be_used_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
