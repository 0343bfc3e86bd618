"""A load that takes long does not undo what another process has written meanwhile."""

import pytest

from .process import wait_for

# What another process does during the load of "k", and what the tiers have afterwards.
WRITES = {
    "set": (lambda b: b.set("k", "new", tags=["t"]), "new"),
    "set_many": (lambda b: b.set_many({"k": "new", "l": "new"}, tags=["t"])["k"], "new"),
    "delete": (lambda b: b.delete("k"), None),
    "delete_many": (lambda b: b.delete_many(["k", "l"]), None),
    "invalidate_tag": (lambda b: b.invalidate_tag("t"), None),
    "clear": (lambda b: b.clear(), None),
}
# What the rarer kinds of loads are tested with.
SINGLE = ["set", "delete", "invalidate_tag", "clear"]
LOCKED = [("l2", None), ("l3", None), ("l2+l3", None), ("l2", 10), ("l2+l3", 10)]


@pytest.fixture(params=SINGLE)
def write(request):
    return WRITES[request.param]


def check(a, b, c, load, write):
    """Let a load of "k" in one process end after a write in another, and check that the write remains."""
    carry_out, expected = write
    written = carry_out(b)
    assert written["l2"] in (True, None)
    assert written["l3"] in (True, None)
    load.finish()
    assert c.watch("k", 0.15) == [expected]
    wait_for(lambda: a.get_local("k") in (None, expected), within=2)
    assert a.get("k") == b.get("k") == expected


@pytest.mark.parametrize(("tiers", "lock_ttl"), LOCKED, ids=[f"{t}{'-lock' * bool(lock)}" for t, lock in LOCKED])
@pytest.mark.parametrize("write", WRITES)
def test_a_later_write_wins_over_the_load_of_a_missing_key(open_process, open_watcher, tiers, lock_ttl, write):
    a, b, c = open_process(tiers, lock_ttl=lock_ttl), open_process(tiers, lock_ttl=lock_ttl), open_watcher(tiers)
    check(a, b, c, a.begin_load("k", "old", tags=["t"]), WRITES[write])


def test_a_later_write_wins_without_a_backplane(open_process, open_watcher, tiers, write):
    a, b, c = open_process(tiers, backplane=None), open_process(tiers, backplane=None), open_watcher(tiers)
    load = a.begin_load("k", "old", tags=["t"])
    carry_out, expected = write
    carry_out(b)
    load.finish()
    assert c.watch("k", 0.15) == [expected]


@pytest.mark.parametrize("ttl", [3600, None])
def test_a_later_write_wins_over_the_load_of_a_value_without_limit(open_process, open_watcher, tiers, ttl):
    a, b, c = open_process(tiers), open_process(tiers), open_watcher(tiers)
    check(a, b, c, a.begin_load("k", "old", ttl=ttl), WRITES["delete"])


def test_a_later_write_wins_over_the_load_of_many_keys(open_process, open_watcher, tiers, write):
    a, b, c = open_process(tiers), open_process(tiers), open_watcher(tiers)
    check(a, b, c, a.begin_load(["j", "k", "l"], "old", tags=["t"]), write)


def test_a_later_write_wins_over_the_refresh_of_an_expired_value(open_process, open_watcher, tiers, write):
    options = {"stale_ttl": 60, "soft_timeout": None}
    a, b, c = open_process(tiers, **options), open_process(tiers, **options), open_watcher(tiers, **options)
    a.set("k", "expired", ttl=0.2, tags=["t"])
    wait_for(lambda: a.get("k") is None)
    check(a, b, c, a.begin_load("k", "old", tags=["t"]), write)


def test_a_later_write_wins_over_a_refresh_ahead(open_process, open_watcher, tiers, write):
    options = {"refresh_ahead": 0.001}
    a, b, c = open_process(tiers, **options), open_process(tiers, **options), open_watcher(tiers)
    a.set("k", "fresh", ttl=60, tags=["t"])
    wait_for(lambda: a.get_local("k") is None)
    load = a.begin_load("k", "old", tags=["t"])
    assert load.result() == "fresh"
    check(a, b, c, load, write)


def test_a_later_write_wins_over_a_remembered_none(open_process, open_watcher, tiers):
    a, b, c = open_process(tiers, negative_ttl=60), open_process(tiers, negative_ttl=60), open_watcher(tiers)
    load = a.begin_load("k", None)
    b.set("k", "new")
    load.finish()
    assert c.watch("k", 0.15) == ["new"]
    wait_for(lambda: a.get("k") == "new", within=2)
    assert a.load("k", "not loaded") == "new"


def test_a_write_during_a_load_reaches_the_process_that_loads_within_milliseconds(open_process, tiers):
    a, b = open_process(tiers), open_process(tiers)
    load = a.begin_load("k", "old")
    b.set("k", "new")
    load.finish()
    # Whatever L1 answers from now on, it is not what was loaded.
    wait_for(lambda: a.get_local("k") != "old", within=1)
    assert a.get("k") == "new"
    assert a.get_local("k") == "new"


@pytest.mark.parametrize("many", [False, True], ids=["one key", "many keys"])
def test_a_caller_after_a_pause_does_not_join_a_load_from_before_it(open_process, tiers, write, many):
    keys = ["k", "l"] if many else "k"
    a, b = open_process(tiers), open_process(tiers)
    early = a.begin_load(keys, "old", tags=["t"])
    carry_out, written = write
    # The lease of L1 runs out in the meantime.
    with a.frozen_before_load(keys, "loaded", seconds=1.5) as answers:
        carry_out(b)
    expected = written or "loaded"
    assert answers == [{"k": expected, "l": "loaded"} if many else expected]
    early.finish()
    # What was loaded before the record of a removal arrived may have been removed again.
    for process in (a, b):
        wait_for(lambda process=process: process.get("k") in (expected, written))


def test_callers_during_an_outage_of_the_backplane_share_a_load(open_process, private_redis):
    a = open_process("l2", l2={"url": private_redis.url, "deadline": 0.2})
    private_redis.freeze()
    wait_for(lambda: a.call("stats")["backplane"]["state"] != "following")
    first = a.begin_load("k", "value")
    second = a.begin("load", "k", value="another", gated=False, seconds=0, error="")
    wait_for(lambda: a.call("stats")["joined"] == 1)
    assert first.finish() == second.result() == "value"
