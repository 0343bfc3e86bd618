"""`expire_now` and `expire_tag_now` make values stale in every process, and keep them for loads that fail."""

import pytest

from .process import RemoteError, wait_for

EXPIRE = {"expire_now": lambda a: a.expire_now("k"), "expire_tag_now": lambda a: a.expire_tag_now("t")}
# A stale value is served only if the load fails.
STALE = {"stale_ttl": 60, "soft_timeout": None}


@pytest.fixture(params=EXPIRE)
def expire(request):
    return EXPIRE[request.param]


@pytest.fixture
def expired(open_process, tiers, expire):
    """The process that expired "k", and two others: one that had it in L1, and one that had not."""
    a, b, c = (open_process(tiers, **STALE) for _ in range(3))
    a.set("k", "v", ttl=60, tags=["t"])
    wait_for(lambda: b.get("k") and b.get_local("k") == "v")
    written = expire(a)
    assert written["l2"] in (True, None)
    assert written["l3"] in (True, None)
    assert written["published"] is True
    wait_for(lambda: b.get_local("k") is None, within=1)
    return a, b, c


@pytest.mark.parametrize("who", [0, 1, 2], ids=["writer", "holder", "other"])
def test_an_expired_value_is_a_miss_and_is_loaded_again(expired, who):
    process = expired[who]
    assert process.get_local("k") is None
    assert process.get("k") is None
    assert process.load("k", "loaded", tags=["t"]) == "loaded"
    for other in expired:
        wait_for(lambda other=other: other.get("k") == "loaded")


@pytest.mark.parametrize("who", [0, 1, 2], ids=["writer", "holder", "other"])
def test_an_expired_value_is_served_if_the_load_fails(expired, who):
    process = expired[who]
    assert process.load("k", error="the source is down", tags=["t"]) == "v"
    assert process.get("k") is None


def test_an_expired_value_can_be_set_and_removed(expired):
    a, b, c = expired
    b.set("k", "new", ttl=60, tags=["t"])
    assert c.get("k") == "new"
    wait_for(lambda: a.get("k") == "new")
    c.delete("k")
    wait_for(lambda: a.get_local("k") is b.get_local("k") is None, within=1)
    for process in expired:
        with pytest.raises(RemoteError, match="the source is down"):
            process.load("k", error="the source is down")


def test_only_what_was_named_expires(open_process, tiers):
    a, b = open_process(tiers, **STALE), open_process(tiers, **STALE)
    a.set_many({"k": 1, "l": 2, "m": 3}, ttl=60)
    a.set("tagged", 4, ttl=60, tags=["t"])
    a.set("other", 5, ttl=60, tags=["u"])
    keys = ["k", "l", "m", "tagged", "other"]
    # If the record of a write comes during a read, L1 does not keep what the read finds.
    wait_for(lambda: b.get_many(keys) and b.get_local_many(keys) == [1, 2, 3, 4, 5])
    a.expire_now("k", "l")
    a.expire_tag_now("t")
    wait_for(lambda: b.get_local_many(keys) == [None, None, 3, None, 5], within=1)
    assert b.get_many(keys) == {"m": 3, "other": 5}
    assert a.get_many(keys) == {"m": 3, "other": 5}


def test_a_load_that_began_before_does_not_undo_an_expiry(open_process, open_watcher, tiers, expire):
    a, b, c = open_process(tiers, **STALE), open_process(tiers, **STALE), open_watcher(tiers)
    load = a.begin_load("k", "old", ttl=60, tags=["t"])
    expire(b)
    load.finish()
    assert c.watch("k", 0.15) == [None]
    wait_for(lambda: a.get_local("k") is None, within=1)


def test_without_a_stale_ttl_an_expired_value_is_gone(open_process, tiers, expire):
    a, b = open_process(tiers), open_process(tiers)
    a.set("k", "v", ttl=60, tags=["t"])
    wait_for(lambda: b.get("k") and b.get_local("k") == "v")
    expire(a)
    wait_for(lambda: b.get_local("k") is None, within=1)
    with pytest.raises(RemoteError, match="the source is down"):
        b.load("k", error="the source is down")


def test_what_may_not_be_served_any_more_is_removed_by_its_own_method(open_process):
    a = open_process("", **STALE)
    a.set("gone", 1, ttl=0.05)
    a.set("kept", 1, ttl=60)
    wait_for(lambda: a.get("gone") is None)
    # It may still be served if a load fails.
    assert a.remove_expired() == 0
    a.expire_now("kept")
    assert a.remove_expired() == 0
    assert a.load("kept", error="the source is down") == 1
