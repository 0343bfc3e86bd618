"""What one process removes does not come back by what another does in the background, and leaves its L1 as well."""

import pytest

from .process import wait_for

ROUNDS = 20
REMOVALS = {
    "delete": lambda a, key: a.delete(key),
    "invalidate_tag": lambda a, key: a.invalidate_tag(f"tag of {key}"),
    "clear": lambda a, key: a.clear(),
}


@pytest.fixture(params=REMOVALS)
def remove(request):
    return REMOVALS[request.param]


@pytest.mark.parametrize("ttl", [3600, None])
def test_a_reader_that_copies_from_l3_to_l2_does_not_undo_a_removal(open_process, open_watcher, remove, ttl):
    a, b, c = open_process("l2+l3"), open_watcher("l2+l3"), open_watcher("l2+l3")
    came_back = {}
    for number in range(ROUNDS):
        key = f"k{number}"
        a.set(key, "removed", ttl, tags=[f"tag of {key}"])
        reads = b.begin("read_until_finished", key)
        assert reads.begun()
        removed = remove(a, key)
        assert (removed["l2"], removed["l3"]) == (True, True)
        reads.finish()
        answers = c.watch(key, 0.05)
        if answers != [None]:
            came_back[key] = answers
    assert came_back == {}


def test_a_reader_that_copies_from_l3_to_l2_does_not_undo_a_set(open_process, open_watcher, redis_client, namespace):
    a, b, c = open_process("l2+l3"), open_watcher("l2+l3"), open_watcher("l2+l3")
    superseded = {}
    for number in range(ROUNDS):
        key = f"k{number}"
        a.set(key, "old")
        # Redis has evicted everything, so that a read copies it from L3.
        redis_client.unlink(*redis_client.scan_iter(f"*{namespace}*", _type="string"))
        reads = b.begin("read_until_finished", key)
        assert reads.begun()
        a.set(key, "new")
        reads.finish()
        answers = c.watch(key, 0.05)
        if answers != ["new"]:
            superseded[key] = answers
    assert superseded == {}


@pytest.mark.parametrize("tiers", ["l2", "l2+l3"])
@pytest.mark.parametrize("backplane", [{}, {"backplane": None}], ids=["backplane", "no-backplane"])
def test_a_demotion_does_not_undo_a_removal(open_process, open_watcher, remove, tiers, backplane):
    a, b, c = open_process(tiers, **backplane), open_process(tiers, l1_size=5, **backplane), open_watcher(tiers)
    a.set("k", "secret", tags=["tag of k"])
    wait_for(lambda: b.get("k") and b.get_local("k"))
    remove(a, "k")
    b.set_many({f"other{number}": number for number in range(10)})
    # It writes what is queued.
    b.close()
    assert c.get("k") is None


@pytest.mark.parametrize("tiers", ["l2", "l2+l3"])
def test_the_demotion_of_a_frozen_process_does_not_undo_a_removal(open_process, open_watcher, remove, tiers):
    a, c = open_process(tiers), open_watcher(tiers)
    b = open_process(tiers, l1_size=5, backplane_timeout=0.2)
    a.set("k", "secret", tags=["tag of k"])
    wait_for(lambda: b.get("k") and b.get_local("k"))
    with b.frozen(0.5):
        remove(a, "k")
    b.set_many({f"other{number}": number for number in range(10)})
    b.close()
    assert c.get("k") is None


def test_l1_of_another_process_serves_no_removed_value(open_process, tiers, remove):
    a, b = open_process(tiers), open_process(tiers)
    a.set("k", "removed", tags=["tag of k"])
    wait_for(lambda: b.get("k") and b.get_local("k") == "removed")
    remove(a, "k")
    wait_for(lambda: b.get_local("k") is None, within=1)
    assert b.get("k") is None
    assert b.load("k", "loaded") == "loaded"


def test_l1_of_another_process_serves_no_value_that_many_keys_were_removed_with(open_process, tiers):
    a, b = open_process(tiers), open_process(tiers)
    keys = [f"k{number}" for number in range(50)]
    a.set_many(dict.fromkeys(keys, "removed"))
    # If the record of the write comes during a read, L1 does not keep what the read finds.
    wait_for(lambda: b.get_many(keys) and b.get_local_many(keys) == ["removed"] * 50)
    a.delete_many(keys)
    wait_for(lambda: b.get_local_many(keys) == [None] * 50, within=1)
    assert b.get_many(keys) == {}


def test_a_stale_store_of_another_process_serves_no_removed_value(open_process, tiers, remove):
    options = {"stale_ttl": 300, "soft_timeout": None}
    a, b = open_process(tiers, **options), open_process(tiers, **options)
    a.set("k", "removed", ttl=0.7, tags=["tag of k"])
    assert b.get("k") == "removed"
    wait_for(lambda: b.get("k") is None)
    remove(a, "k")

    def answer():
        try:
            return b.load("k", error="the source is down")
        except Exception as error:
            return str(error)

    wait_for(lambda: answer() == "OSError: the source is down", within=2)
