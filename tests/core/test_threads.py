"""Each race runs in a process of its own, so that a deadlock or a crash is the failure of one test."""

import pytest
from conftest import IMPLEMENTATIONS, MODULES

RACES = [
    "cache_counts_exactly",
    "keys_that_yield_to_others",
    "cache_is_resized_cleared_and_expired",
    "callback_is_replaced_while_entries_are_evicted",
    "answers_end_and_resume_while_entries_are_read",
    "pop_gives_an_entry_to_one_thread",
    "setdefault_gives_every_thread_the_same",
    "validator_counts_exactly",
    "histogram_equals_one_recorded_by_one_thread",
    "histogram_is_looked_at_while_it_is_reset",
    "histograms_merged_both_ways_do_not_deadlock",
]


@pytest.mark.parametrize("race", RACES)
def test_threads_leave_a_shared_object_whole_and_its_counters_exact(core, isolated, race):
    isolated("races.py", core.__name__, race)


@pytest.mark.parametrize("race", [race for race in RACES if not race.startswith(("validator", "histogram"))])
@pytest.mark.parametrize("policy", ["adaptive", "s3fifo"])
def test_threads_leave_an_adaptive_cache_whole_and_its_counters_exact(core, isolated, race, policy):
    isolated("races.py", f"{core.__name__} AdaptiveCache:{policy}", race)


def test_a_request_that_other_threads_change_is_encoded_whole(encoder, isolated):
    isolated("races.py", encoder.__name__, "requests_change_while_they_are_encoded")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_threads_leave_a_shared_dialogue_whole(isolated, implementation):
    isolated("races.py", MODULES["pg_dialogue"][implementation], "a_dialogue_has_several_users")
