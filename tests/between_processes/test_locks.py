"""With `lock_ttl`, processes share the outcome of a load, also if it leaves nothing that they could find."""

import time

import pytest

from .process import RemoteError

LOAD_S = 0.5
LOCK = {"lock_ttl": 30}
BACKPLANE = pytest.mark.parametrize("backplane", [{}, {"backplane": None}], ids=["backplane", "no-backplane"])


@pytest.mark.parametrize("failing", [{"error": "the source is down"}, {"value": "object()"}], ids=["error", "object"])
def test_six_processes_do_not_repeat_a_load_that_leaves_nothing_one_after_the_other(open_process, failing):
    processes = [open_process("l2", **LOCK) for _ in range(6)]
    start = time.monotonic()
    options = {"value": None, "gated": False, "seconds": LOAD_S, "error": ""} | failing
    calls = [process.begin("load", "k", **options) for process in processes]
    for call in calls:
        if "error" in failing:
            with pytest.raises(RemoteError, match="the source is down"):
                call.result()
        else:
            call.result()
    # One after the other they need 6 x 0.5 s.
    assert time.monotonic() - start < 3 * LOAD_S


@BACKPLANE
@pytest.mark.parametrize("keys", ["k", ["k", "l", "m"]], ids=["one", "many"])
@pytest.mark.parametrize("tiers", ["l2", "l2+l3"])
def test_a_process_waits_for_the_load_of_another(open_process, tiers, keys, backplane):
    a, b = open_process(tiers, **LOCK, **backplane), open_process(tiers, **LOCK, **backplane)
    load = a.begin_load(keys, "a's")
    wait = b.begin("load", keys, value="b's", gated=False, seconds=0, error="")
    assert not wait.begun(within=0.3)
    expected = "a's" if isinstance(keys, str) else dict.fromkeys(keys, "a's")
    assert load.finish() == expected
    assert wait.result() == expected
    assert b.stats()["loads"] == 0


@pytest.mark.parametrize("keys", ["k", ["k", "l", "m"]], ids=["one", "many"])
def test_a_waiting_process_wakes_up_when_the_load_fails(open_process, keys):
    a, b = open_process("l2", **LOCK), open_process("l2", **LOCK)
    load = a.begin_load(keys, error="the source is down")
    wait = b.begin("load", keys, value="b's", gated=False, seconds=0, error="")
    with pytest.raises(RemoteError, match="the source is down"):
        load.finish()
    # It shares the outcome, or loads now.
    try:
        answer = wait.result(within=2)
    except RemoteError as error:
        answer = str(error)
    shared = "the source is down"
    loaded = "b's" if isinstance(keys, str) else dict.fromkeys(keys, "b's")
    assert answer == loaded or shared in answer


def test_a_process_does_not_wait_for_one_that_has_died(open_process):
    a, b = open_process("l2", lock_ttl=0.5), open_process("l2", lock_ttl=0.5)
    load = a.begin_load("k", "a's")
    with a.frozen():
        assert b.load("k", "b's") == "b's"
    load.finish()
    assert b.get("k") == "b's"


def test_a_set_ends_the_wait_for_a_load(open_process):
    a, b, c = (open_process("l2", **LOCK) for _ in range(3))
    load = a.begin_load("k", "a's")
    wait = b.begin("load", "k", value="b's", gated=False, seconds=0, error="")
    assert not wait.begun(within=0.2)
    c.set("k", "set")
    assert wait.result(within=5) == "set"
    load.finish()
    assert b.get("k") == "set"
