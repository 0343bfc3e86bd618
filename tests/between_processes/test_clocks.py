"""Wall clocks do not matter, and L1's own ttl limits how long a process answers without asking the tiers."""

import pytest

from .process import wait_for

DAY_S = 86_400
OFFSETS = pytest.mark.parametrize("offset", [DAY_S, -DAY_S], ids=["ahead", "behind"])
SINGLE_TIERS = pytest.mark.parametrize("tiers", ["l2", "l3"])
ALL_TIERS = pytest.mark.parametrize("tiers", ["", "l2", "l3", "l2+l3"])


@ALL_TIERS
def test_a_wall_clock_that_is_set_back_revives_no_expired_value(open_process, tiers):
    a = open_process(tiers, stale_ttl=0.1)
    a.set("k", 1, ttl=0.5)
    assert a.get("k") == 1
    a.move_wall_clock(-3_600)
    wait_for(lambda: a.get("k") is None, within=3)
    # The stale value may be served for a moment, and not for an hour.
    wait_for(lambda: a.get("k") == "loaded" or a.load("k", "loaded") == "loaded", within=3)


@ALL_TIERS
def test_a_wall_clock_that_jumps_ahead_expires_no_value(open_process, tiers):
    a = open_process(tiers, negative_ttl=60)
    a.set("k", 1, ttl=60)
    assert a.load("none", None) is None
    a.move_wall_clock(8 * 3_600)
    assert a.get("k") == 1
    assert a.load("none", "loaded") is None


@ALL_TIERS
def test_a_wall_clock_that_is_set_back_prolongs_no_stale_value(open_process, tiers):
    a = open_process(tiers, stale_ttl=0.3, soft_timeout=None, retry_after=0)
    a.set("k", "stale", ttl=0.1)
    wait_for(lambda: a.get("k") is None, within=3)
    a.move_wall_clock(-3_600)

    def answer():
        try:
            return a.load("k", error="the source is down")
        except Exception as error:
            return str(error)

    wait_for(lambda: answer() == "OSError: the source is down", within=3)


@OFFSETS
def test_a_value_of_a_process_whose_clock_is_wrong_lives_as_long_as_it_said(open_process, open_watcher, tiers, offset):
    wrong, right = open_process(tiers, clock_offset_s=offset), open_watcher(tiers)
    wrong.set("short", 1, ttl=1)
    assert right.get("short") == 1
    wait_for(lambda: right.get("short") is None, within=4)
    wrong.set("long", 1, ttl=60)
    assert right.watch("long", 0.1) == [1]
    assert wrong.load("loaded", 1, ttl=60) == 1
    wait_for(lambda: right.get("loaded") == 1)


@OFFSETS
@SINGLE_TIERS
def test_a_process_whose_clock_is_wrong_reads_a_value_as_long_as_the_others(open_process, open_watcher, tiers, offset):
    wrong, right = open_watcher(tiers, clock_offset_s=offset), open_process(tiers)
    right.set("short", 1, ttl=1)
    assert wrong.get("short") == 1
    wait_for(lambda: wrong.get("short") is None, within=4)
    right.set("long", 1, ttl=60)
    assert wrong.watch("long", 0.1) == [1]


@OFFSETS
@SINGLE_TIERS
def test_what_a_process_whose_clock_is_wrong_keeps_in_l1_expires_as_well(open_process, tiers, offset):
    wrong, right = open_process(tiers, clock_offset_s=offset), open_process(tiers)
    right.set("k", 1, ttl=1)
    # If the record of the write comes during a read, L1 does not keep what the read finds.
    wait_for(lambda: wrong.get("k") == wrong.get_local("k") == 1, within=0.5)
    wait_for(lambda: wrong.get_local("k") is None, within=4)


@pytest.mark.parametrize("tiers", ["l3", "l2+l3"])
def test_a_process_whose_clock_is_ahead_removes_no_fresh_rows(open_process, open_watcher, tiers):
    right = open_watcher(tiers)
    right.set("k", "fresh", ttl=60)
    ahead = open_process("l3", clock_offset_s=DAY_S, l3={"expiry_interval": 0.05})
    ahead.set("other", 1)
    reader = open_watcher("l3")
    assert reader.watch("k", 0.5) == ["fresh"]


@pytest.mark.parametrize("backplane", [{}, {"backplane": None}], ids=["backplane", "no-backplane"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stale_ttl": 300},
        {"stale_ttl": 300, "soft_timeout": None},
        {"stale_ttl": 300, "refresh_ahead": 0.01},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_after_its_own_ttl_l1_asks_the_tiers_first(open_process, tiers, options, backplane):
    options = options | backplane
    a, b = open_process(tiers, l1_ttl=0.2, **options), open_process(tiers, **options)
    a.set_many({"set": "old", "deleted": "old"}, ttl=3600)
    b.set("set", "new", ttl=3600)
    b.delete("deleted")
    wait_for(lambda: a.get_local("set") is None and a.get_local("deleted") is None, within=3)
    assert a.load("set", "loaded") == "new"
    assert a.load("deleted", "loaded") == "loaded"
    assert a.get("set") == "new"


def test_after_its_own_ttl_l1_asks_the_tiers_first_for_many_keys(open_process, tiers):
    options = {"stale_ttl": 300, "backplane": None}
    a, b = open_process(tiers, l1_ttl=0.2, **options), open_process(tiers, **options)
    a.set_many({"set": "old", "deleted": "old"}, ttl=3600)
    b.set("set", "new", ttl=3600)
    b.delete("deleted")
    wait_for(lambda: a.get_local("set") is None and a.get_local("deleted") is None, within=3)
    assert a.load(["set", "deleted"], "loaded") == {"set": "new", "deleted": "loaded"}
