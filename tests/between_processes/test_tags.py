"""Tags between processes: negative entries have them, and what they need in Redis does not remain."""

import pytest
import redis

from .process import wait_for

# Two minutes, and a moment.
LONGEST_MS = 125_000
HANDFUL = 10
REMOVALS = {
    "delete": lambda process: process.delete("team:1"),
    "invalidate_tag": lambda process: process.invalidate_tag("teams"),
    "clear": lambda process: process.clear(),
}


@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("tiers", ["", "l2", "l3", "l2+l3"])
def test_a_process_that_removes_a_remembered_none_loads_again(open_process, tiers, remove):
    a = open_process(tiers, negative_ttl=60)
    assert a.load("team:1", None, tags=["teams"]) is None
    assert a.load("team:1", "not loaded", tags=["teams"]) is None
    REMOVALS[remove](a)
    assert a.load("team:1", "created", tags=["teams"]) == "created"


@pytest.mark.parametrize("remove", REMOVALS)
def test_a_none_that_another_process_removes_is_loaded_again(open_process, tiers, remove):
    a, b = open_process(tiers, negative_ttl=60), open_process(tiers, negative_ttl=60)
    assert a.load("team:1", None, tags=["teams"]) is None
    REMOVALS[remove](b)
    wait_for(lambda: a.load("team:1", "created", tags=["teams"]) == "created", within=1)
    # The value is stored in the background; not at all if the record of the removal has come during the load. After
    # `clear`, what frees the memory removes the tokens of tags, the new ones too: then the tiers lose the value.
    if remove != "clear":
        wait_for(lambda: a.load("team:1", "created", tags=["teams"]) == b.get("team:1") == "created")
    wait_for(lambda: b.load("team:1", "created", tags=["teams"]) == b.get_local("team:1") == "created")


def test_a_none_is_remembered_for_all_processes(open_process, tiers):
    a, b = open_process(tiers, negative_ttl=60), open_process(tiers, negative_ttl=60)
    assert a.load("team:1", None, tags=["teams"]) is None
    # It is stored in the background.
    a.close()
    assert b.load("team:1", "not loaded", tags=["teams"]) is None


def test_an_invalidated_tag_does_not_concern_what_is_stored_with_it_later(open_process, open_watcher, tiers):
    a, b, c = open_process(tiers), open_process(tiers), open_watcher(tiers)
    a.set("k", "old", tags=["t", "u"])
    b.invalidate_tag("t")
    assert c.get("k") is None
    b.set("k", "new", tags=["t", "u"])
    a.set("l", "new", tags=["t"])
    assert c.watch("k", 0.1) == c.watch("l", 0.1) == ["new"]
    b.invalidate_tag("u")
    assert c.watch("k", 0.1) == [None]
    assert c.watch("l", 0.1) == ["new"]


def kept(client):
    """The keys that Redis keeps for more than two minutes."""
    keys = list(client.scan_iter(count=1_000))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.pttl(key)
    # -2 is the answer for a key that has just expired.
    return {key: ttl for key, ttl in zip(keys, pipeline.execute(), strict=True) if ttl == -1 or ttl > LONGEST_MS}


@pytest.fixture
def client(private_redis):
    with redis.Redis.from_url(private_redis.url, protocol=2, socket_timeout=10) as client:
        yield client


def test_tokens_live_no_longer_than_the_entries_that_need_them(open_process, private_redis, client):
    a = open_process("l2", l2={"url": private_redis.url}, ttl=1)
    for number in range(300):
        a.set(f"k{number}", 1, tags=[f"uri{number}"])
    for number in range(100):
        assert a.load(f"loaded{number}", 1, tags=[f"uri of loaded{number}"]) == 1
    a.close()
    assert len(kept(client)) <= HANDFUL, kept(client)


def test_invalidating_tags_that_never_had_an_entry_leaves_nothing(open_process, private_redis, client):
    a = open_process("l2", l2={"url": private_redis.url})
    a.set("k", 1)
    before = client.dbsize()
    for number in range(300):
        a.invalidate_tag(f"never{number}")
    assert client.dbsize() <= before + HANDFUL
    assert a.get("k") == 1


def test_what_is_removed_leaves_only_what_expires_soon(open_process, private_redis, client):
    a = open_process("l2", l2={"url": private_redis.url}, ttl=None)
    keys = [f"k{number}" for number in range(300)]
    a.set_many(dict.fromkeys(keys, 1), tags=["t"])
    a.delete_many(keys)
    for number in range(100):
        a.delete(f"never{number}")
    a.close()
    # The token of "t" must live as long as its entries, which had no limit.
    assert len(kept(client)) <= HANDFUL, kept(client)


def test_keys_that_are_only_read_leave_only_what_expires_soon(open_process, private_redis, client):
    a = open_process("l2+l3", l2={"url": private_redis.url})
    for number in range(300):
        a.get(f"never{number}")
    a.close()
    assert len(kept(client)) <= HANDFUL, kept(client)
