"""The statistics of trials: an effect is found, chance is not taken for one, and it counts by instances."""

import math
import random
from collections import Counter
from itertools import product

import pytest

from acgsperf.fleet.effects import Block, blocks_needed, difference_of_changes, effect_of, treated_first


def names(number):
    return [f"{i:016x}" for i in range(number)]


@pytest.mark.parametrize("number", [2, 3, 4, 7, 8])
def test_the_groups_have_the_same_size_and_change_with_trial_and_block(number):
    groups = [treated_first(names(number), f"trial-{trial}", block) for trial, block in product(range(100), range(4))]
    assert {len(group) for group in groups} == {number // 2, (number + 1) // 2}
    # Each instance is as often in one group as in the other.
    times = Counter(instance for group in groups for instance in group)
    assert all(130 < times[instance] < 270 for instance in names(number))


def test_an_instance_is_in_the_same_group_whoever_asks():
    instances = names(8)
    assert treated_first(instances, "trial", 1) == treated_first(instances[::-1], "trial", 1)


def block(random_, number, effect, noise, load=0.3):
    """Measure a block: the instances differ, and the load differs between the periods."""
    first = treated_first(names(number), f"{random_.random()}", 0)
    loads = [random_.gauss(0, load), random_.gauss(0, load)]
    measured = {}
    for instance in names(number):
        own = random_.gauss(0, 0.3)
        measured[instance] = tuple(
            own + loads[half] + random_.gauss(0, noise) + effect * ((instance in first) == (half == 0))
            for half in (0, 1)
        )
    return Block(
        {instance: values for instance, values in measured.items() if instance in first},
        {instance: values for instance, values in measured.items() if instance not in first},
    )


@pytest.mark.parametrize("number", [2, 3, 4, 8, 64])
def test_without_noise_the_estimate_is_the_effect(number):
    random_ = random.Random(1)
    blocks = [block(random_, number, effect=-0.2, noise=0) for _ in range(blocks_needed(number, 0.025))]
    effect = effect_of(blocks, "seed")
    assert effect.estimate == pytest.approx(-0.2)
    assert effect.p_lower <= 0.025
    assert effect.p_higher > 0.9
    assert effect == effect_of(blocks, "seed")


@pytest.mark.parametrize("number", [2, 3, 8])
def test_without_an_effect_the_p_value_is_as_rarely_low_as_it_says(number):
    random_ = random.Random(number)
    blocks = blocks_needed(number, 0.05)
    low = sum(
        effect_of([block(random_, number, 0, 0.1) for _ in range(blocks)], f"{run}").p_lower <= 0.05
        for run in range(120)
    )
    # Binomial: 6 are expected, and 14 or more are in one of 400 runs.
    assert low < 14


def test_requests_of_one_instance_do_not_count_as_independent():
    # One of four instances is slower by chance while it has the new value, in one block. With thousands of requests in
    # each period, a test that counts requests would be sure of an effect.
    one = Block({"a": (1.0, 0.0), "b": (0.0, 0.0)}, {"c": (0.0, 0.0), "d": (0.0, 0.0)})
    rest = Block({"a": (0.0, 0.0), "c": (0.0, 0.0)}, {"b": (0.0, 0.0), "d": (0.0, 0.0)})
    assert effect_of([one, rest, rest, rest], "seed").p_higher > 0.25


def test_an_instance_that_left_counts_in_no_block():
    block_ = Block({"a": (0.9, 1.0)}, {"b": (1.0, 0.9), "c": (1.1, 1.0)})
    effect = effect_of([block_, Block({}, {"a": (1.0, 1.0)})], "seed")
    assert (effect.estimate, effect.blocks) == (pytest.approx(-0.1), 1)
    assert effect_of([Block({}, {"a": (1.0, 1.0)})], "seed") is None
    assert effect_of([], "seed") is None


def test_two_instances_need_more_blocks_than_eight():
    assert blocks_needed(8, 0.025) == blocks_needed(64, 0.025) == 4
    assert blocks_needed(2, 0.025) == 7


def differences(treated, others, chance=0.0):
    random_ = random.Random(5)
    changes = {f"new-{i}": math.log(change) for i, change in enumerate(treated)}
    changes |= {f"old-{i}": math.log(change) for i, change in enumerate(others)}
    before = {instance: random_.gauss(0, 1) for instance in changes}
    now = {instance: before[instance] + change for instance, change in changes.items()}
    found = difference_of_changes(before, now, [instance for instance in changes if instance.startswith("new")])
    return found if found is None else (found[0], found[0] > found[1])


def test_what_is_clearly_worse_differs_by_more_than_the_instances_do():
    assert differences([1.3, 1.32, 1.28], [1.0, 1.01, 0.99]) == (pytest.approx(math.log(1.3), rel=0.01), True)
    # The load of all doubles.
    assert differences([2.0, 2.02, 1.98], [2.0, 2.01, 1.99])[1] is False
    # So much they differ anyway.
    assert differences([1.3, 1.7, 0.9], [1.0, 0.7, 1.3])[1] is False
    # With one instance against several, the others say what is chance.
    assert differences([1.5], [1.0, 1.01, 0.99, 1.02, 0.98])[1] is True
    assert differences([1.5], [1.0, 1.4, 0.7, 1.3, 0.8])[1] is False


def test_of_two_instances_only_a_large_difference_is_clear():
    assert differences([1.4], [1.0])[1] is False
    assert differences([1.6], [1.0])[1] is True
    assert differences([1.6], []) is None
