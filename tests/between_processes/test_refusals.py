"""A Redis that refuses commands: what is reported as done is done, and what is missing is named."""

import pytest
import redis

from .process import wait_for

REMOVALS = {
    "delete": lambda a: a.delete("k"),
    "invalidate_tag": lambda a: a.invalidate_tag("t"),
    "clear": lambda a: a.clear(),
}


@pytest.fixture
def client(private_redis):
    with redis.Redis.from_url(private_redis.url, protocol=2, socket_timeout=10) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.fixture
def cache_of(open_process, open_watcher, private_redis):
    """A process that writes, and one that sees what Redis has."""
    url = {"l2": {"url": private_redis.url, "deadline": 5}}
    return open_process("l2", **url), open_watcher("l2", **url)


def test_a_delete_is_possible_when_memory_is_full(cache_of, client):
    a, c = cache_of
    a.set("k", "v")
    client.config_set("maxmemory", 1)
    assert a.delete("k")["l2"] is True
    assert c.watch("k", 0.1) == [None]


@pytest.mark.parametrize("remove", REMOVALS)
def test_a_removal_that_is_reported_as_done_is_done_when_memory_is_full(cache_of, client, remove):
    a, c = cache_of
    a.set("k", "v", tags=["t"])
    client.config_set("maxmemory", 1)
    removed = REMOVALS[remove](a)
    assert set(c.watch("k", 0.1)) <= ({None} if removed["l2"] else {"v", None})
    client.config_set("maxmemory", 0)
    # What was refused is repaired.
    wait_for(lambda: removed["l2"] or a.get("k") is None)


def test_a_set_that_is_refused_leaves_no_old_value(cache_of, client):
    a, c = cache_of
    a.set("k", "old")
    client.config_set("maxmemory", 1)
    assert a.set("k", "new")["l2"] is False
    wait_for(lambda: c.get("k") is None)
    assert c.watch("k", 0.1) == [None]
    client.config_set("maxmemory", 0)
    assert a.set("k", "newer")["l2"] is True
    assert c.watch("k", 0.1) == ["newer"]


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl", "noeviction"])
def test_evictions_lose_values_and_bring_none_back(cache_of, client, policy):
    a, c = cache_of
    client.config_set("maxmemory-policy", policy)
    a.set_many({f"k{number}": "old" for number in range(500)}, tags=["t"])
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - 100_000)
    written = a.set_many({f"k{number}": "new" for number in range(0, 500, 2)})
    a.delete_many([f"k{number}" for number in range(1, 500, 2)])
    acknowledged = [key for key, one in written.items() if one["l2"]]
    found = c.get_many([*acknowledged, *(f"k{number}" for number in range(1, 500, 2))])
    assert set(found) <= set(acknowledged)
    assert set(found.values()) <= {"new"}


def test_a_server_that_refuses_scripts_is_named_once_with_the_rights_that_are_needed(cache_of, client):
    a, c = cache_of
    a.set("k", "old")
    before = len(a.errors())
    client.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
    for number in range(5):
        assert a.set("k", number)["l2"] is False
    said = a.errors()[before:]
    assert sum("evalsha" in line.lower() for line in said.splitlines()) == 1, said
    client.execute_command("ACL", "SETUSER", "default", "+@all")
    wait_for(lambda: a.set("k", "new")["l2"] is True)
    assert c.get("k") == "new"
