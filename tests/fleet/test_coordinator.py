"""Coordinated tuning: it finds the better value, harms nobody, and leaves no trace of a trial whatever fails."""

import logging

import msgspec
import pytest

from acgsperf.fleet.judging import TrialOptions
from acgsperf.fleet.trials import FORMAT, Agreement, TrialOutcome, decode_agreement, encoded

from .simulated import Fleet, run

# A round is 30 s: a trial, and a pause after it.
ROUNDS = 130
# With time for a second trial, if the first one has cost little.
LONG = 200


def first_outcomes(seeds, instances, effects, rounds=ROUNDS):
    fleets = [run(seed, instances, effects, rounds) for seed in seeds]
    assert all(fleet.finished for fleet in fleets)
    return fleets, [fleet.finished[0].outcome for fleet in fleets]


def test_eight_instances_find_the_better_of_two_values():
    # 10 % better, when instances differ by 30 %, drift, and the load changes.
    fleets, outcomes = first_outcomes(range(20), 8, {6: -0.1})
    assert outcomes.count(TrialOutcome.ADOPTED) >= 19
    assert max(fleet.harm for fleet in fleets) <= 0.02


@pytest.mark.parametrize("worse", [0.05, 0.2, 1.0, 5.0])
def test_a_worse_value_is_never_adopted_and_costs_little(worse):
    fleets, outcomes = first_outcomes(range(6), 8, {6: worse, 4: worse}, LONG)
    assert TrialOutcome.ADOPTED not in outcomes
    # All requests of the fleet, over the run.
    assert max(fleet.harm for fleet in fleets) <= 0.02


def test_two_equal_values_are_not_told_apart():
    _, outcomes = first_outcomes(range(20), 8, {})
    assert outcomes.count(TrialOutcome.ADOPTED) <= 1


@pytest.mark.parametrize("instances", [2, 3, 4])
def test_a_few_instances_find_a_much_better_value(instances):
    fleets, outcomes = first_outcomes(range(5), instances, {6: -0.4})
    assert outcomes.count(TrialOutcome.ADOPTED) == 5
    assert all(6 in fleet.values for fleet in fleets)


async def in_trial(instances=4, effects=None, seed=1):
    fleet = Fleet(seed, instances, effects)
    await fleet.until(lambda: 6 in fleet.values)
    return fleet


async def test_all_instances_adopt_what_won_and_one_that_joins_later_does_too():
    fleet = Fleet(1, 4, {6: -0.4})
    await fleet.until(lambda: fleet.finished)
    await fleet.rounds(2)
    assert fleet.values == [6, 6, 6, 6]
    fleet.join()
    await fleet.rounds(2)
    assert fleet.values == [6] * 5
    assert {it.coordinator.revision for it in fleet.live} == {1}


async def test_what_lost_is_undone():
    fleet = Fleet(1, 4, {6: 1.0, 4: 1.0})
    await fleet.until(lambda: fleet.finished)
    await fleet.rounds(2)
    assert fleet.finished[0].outcome is TrialOutcome.STOPPED
    assert fleet.values == [5, 5, 5, 5]


async def test_a_single_instance_leaves_its_settings_to_itself():
    fleet = Fleet(1, 1, {6: -0.5})
    await fleet.rounds(100)
    assert fleet.instances[0].coordinator.is_alone
    assert fleet.instances[0].sets == []
    # It has tuned itself. Then another one starts.
    fleet.instances[0].value = 6
    fleet.join()
    await fleet.rounds(6)
    assert not any(it.coordinator.is_alone for it in fleet.live)
    assert fleet.values == [6, 5]


async def test_a_coordinator_that_dies_is_replaced_and_its_trial_undone():
    fleet = await in_trial(effects={6: -0.4})
    dead = fleet.leader
    dead.alive = False
    await fleet.rounds(fleet.options.silent_rounds + 3)
    assert fleet.values == [5, 5, 5]
    assert fleet.leader is not dead
    assert fleet.leader.coordinator.agreement.finished[-1].outcome is TrialOutcome.ABANDONED
    # Its trials go on, with those that are left.
    await fleet.until(lambda: 6 in fleet.values)


async def test_of_instances_that_start_a_trial_at_once_only_one_says_so(caplog):
    fleet = Fleet(1, 3, options=TrialOptions(least_pause=1))
    for it in fleet.live:
        await it.coordinator.follow()
    with caplog.at_level(logging.INFO, "acgsperf.fleet"):
        for it in fleet.live:
            await it.coordinator.lead(fleet.standings)
    begun = [record.message for record in caplog.records if "begins" in record.message]
    assert begun == [f"fleet: trial {fleet.trial.id} of setting 'size' begins: 6 against 5 on 3 instances"]


async def test_a_coordinator_that_was_suspended_cannot_write():
    fleet = await in_trial()
    suspended = fleet.leader
    await suspended.coordinator.follow()
    suspended.alive = False
    await fleet.rounds(fleet.options.silent_rounds + 3)
    before = fleet.document.blob
    # It continues where it was: between reading and writing.
    assert await suspended.coordinator.lead(fleet.standings) is None
    assert fleet.document.blob == before


async def test_an_instance_that_does_not_hear_the_server_undoes_the_trial():
    fleet = await in_trial()
    fleet.document.down = True
    await fleet.rounds(fleet.options.silent_rounds + 2)
    assert fleet.values == [5, 5, 5, 5]
    fleet.document.down = False
    await fleet.rounds(fleet.options.silent_rounds + 3)
    assert sum(it.coordinator.agreement.coordinator == it.name for it in fleet.live) == 1


async def test_a_server_that_loses_everything_undoes_the_trial_and_keeps_what_was_adopted():
    fleet = Fleet(1, 4, {6: -0.4})
    await fleet.until(lambda: fleet.finished)
    await fleet.until(lambda: fleet.trial is not None)
    fleet.document.lose_everything()
    fleet.join()
    await fleet.rounds(4)
    assert fleet.values == [6] * 5
    agreement = decode_agreement(fleet.document.blob)
    assert (agreement.revision, agreement.settings, agreement.trial) == (1, {"size": 6.0}, None)


async def test_instances_that_leave_during_a_trial_do_not_count():
    fleet = Fleet(3, 8, {6: -0.4})
    await fleet.until(lambda: fleet.trial is not None and fleet.trial.period == 4)
    others = [it for it in fleet.live if it is not fleet.leader]
    others[0].alive = others[1].alive = False
    fleet.join()
    await fleet.until(lambda: fleet.finished)
    assert fleet.finished[0].outcome is TrialOutcome.ADOPTED
    await fleet.rounds(2)
    assert fleet.values == [6] * 7


async def test_a_trial_that_is_left_by_all_but_one_is_abandoned():
    fleet = await in_trial(2)
    next(it for it in fleet.live if it is not fleet.leader).alive = False
    await fleet.rounds(2)
    assert fleet.finished[-1].outcome is TrialOutcome.ABANDONED
    assert fleet.values == [5]


async def test_a_trial_of_which_nobody_decides_anything_is_undone_after_its_longest_time():
    fleet = await in_trial(2)
    for it in fleet.live:
        # No period ends, because there are no requests.
        it.figures = lambda rounds, figures=it.figures: msgspec.structs.replace(figures(rounds), requests=0)
    await fleet.rounds(fleet.options.most_period_rounds + 10)
    assert fleet.finished[-1].outcome is TrialOutcome.ABANDONED
    assert set(fleet.values) == {5}


@pytest.mark.parametrize("blob", [b"\xff", b"x" * 65_536, msgspec.msgpack.encode({"format": FORMAT, "round": -1})])
async def test_a_damaged_agreement_undoes_the_trial_and_is_replaced(blob):
    fleet = await in_trial()
    fleet.document.revision += 1
    fleet.document.blob = blob
    await fleet.rounds(2)
    assert fleet.values == [5, 5, 5, 5]
    assert decode_agreement(fleet.document.blob).coordinator in {it.name for it in fleet.live}


async def test_an_agreement_of_another_version_stays_and_its_trial_is_undone(caplog):
    fleet = await in_trial()
    newer = msgspec.msgpack.encode({"format": FORMAT + 1})
    fleet.document.revision += 1
    fleet.document.blob = newer
    await fleet.rounds(10)
    assert fleet.values == [5, 5, 5, 5]
    assert fleet.document.blob == newer
    told = [record for record in caplog.records if "does not take part in tuning" in record.message]
    # Each instance says it once, and not in every round.
    assert len(told) == len(fleet.live)
    assert "format of an agreement must be 1, got 2" in told[0].message


async def test_an_instance_that_was_alone_changes_nothing_once_another_version_tunes():
    fleet = Fleet(1, 1)
    await fleet.rounds(5)
    (instance,) = fleet.instances
    assert instance.coordinator.is_alone
    fleet.document.revision += 1
    fleet.document.blob = msgspec.msgpack.encode({"format": FORMAT + 1})
    await fleet.rounds(2)
    assert not instance.coordinator.is_alone


async def test_a_foreign_agreement_cannot_leave_the_bounds_of_a_setting():
    fleet = Fleet(1, 2)
    await fleet.rounds(2)
    fleet.document.revision += 1
    fleet.document.blob = encoded(Agreement(coordinator="x", revision=9, settings={"size": 1e9, "unknown": 1.0}))
    await fleet.rounds(2)
    assert fleet.values == [5, 5]


async def test_a_value_that_the_application_changes_stays(caplog):
    fleet = await in_trial()
    await fleet.until(lambda: any(it.value == 6 and it is not fleet.leader for it in fleet.live))
    instance = next(it for it in fleet.live if it.value == 6 and it is not fleet.leader)
    instance.value = 4
    with caplog.at_level(logging.WARNING, "acgsperf.fleet"):
        await fleet.rounds(100)
    assert instance.value == 4
    assert "setting 'size': changed to 4 by the application; the fleet no longer tunes it" in caplog.text
