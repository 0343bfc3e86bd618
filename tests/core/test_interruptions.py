"""Each case runs in a process of its own, so that a deadlock or a crash is the failure of one test."""

import signal

import pytest

INTERRUPTED = [
    "validator_counts_exactly",
    "a_batch_is_counted_at_once",
    "cache_stays_whole",
    "cache_counts_exactly",
    "entries_expire_once",
    "a_listing_is_of_one_moment",
    "histogram_counts_exactly",
    "a_snapshot_is_of_one_moment",
    "histograms_are_compared_at_one_moment",
]
CACHES = ["cache_stays_whole", "cache_counts_exactly", "entries_expire_once", "a_listing_is_of_one_moment"]
LOCKED = [
    "keys_look_into_each_others_caches",
    "a_key_that_waits_for_another_thread_can_be_compared",
    "finalizers_use_each_others_objects",
]
with_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")


@pytest.mark.parametrize("kind", ["garbage", pytest.param("signals", marks=with_signals)])
@pytest.mark.parametrize("case", INTERRUPTED)
def test_an_operation_that_is_interrupted_is_done_or_not_done(core, isolated, case, kind):
    isolated("interruptions.py", core.__name__, f"{case}/{kind}")


@pytest.mark.parametrize("kind", ["garbage", pytest.param("signals", marks=with_signals)])
@pytest.mark.parametrize("case", CACHES)
def test_an_operation_of_an_adaptive_cache_that_is_interrupted_is_done_or_not_done(core, isolated, case, kind):
    isolated("interruptions.py", f"{core.__name__} AdaptiveCache", f"{case}/{kind}")


@pytest.mark.parametrize(
    "case",
    [
        *LOCKED,
        "a_finalizer_that_waits_for_another_thread_does_not_block_it",
        pytest.param("an_exception_of_a_signal_handler_leaves_everything_whole", marks=with_signals),
    ],
)
def test_nothing_waits_for_itself(core, isolated, case):
    isolated("interruptions.py", core.__name__, case)
    isolated("interruptions.py", f"{core.__name__} AdaptiveCache", case)


@pytest.mark.parametrize("case", LOCKED + [f"{case}/garbage" for case in INTERRUPTED])
def test_the_lock_of_the_twin_without_the_gil_blocks_no_interruption(isolated, monkeypatch, case):
    monkeypatch.setenv("ACGSPERF_TEST_LOCK", "1")
    isolated("interruptions.py", "acgsperf._native.core_py", case)
    if case.partition("/")[0] in (*LOCKED, *CACHES):
        isolated("interruptions.py", "acgsperf._native.core_py AdaptiveCache", case)
