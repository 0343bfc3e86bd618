"""What the backplane does: L1 gets records of writes within milliseconds, and knows when it has missed some."""

import os

import pytest
import redis

from .process import wait_for

# A record takes a fraction of a millisecond. A machine that is busy with other tests gets more time.
SOON_S = 1.0
# A process that is frozen for longer than its `backplane_timeout` must assume that it has missed records.
TIMEOUT_S = 0.3
FROZEN_S = 0.8


@pytest.fixture
def client(private_redis):
    with redis.Redis.from_url(private_redis.url, protocol=2, socket_timeout=10) as client:
        yield client


@pytest.fixture
def private(private_redis):
    """The arguments of a process that uses the Redis of this test."""
    return {"l2": {"url": private_redis.url, "deadline": 5}}


def streams(client):
    """The streams that a Redis has."""
    return list(client.scan_iter(_type="stream"))


def hold(process, *keys):
    """Let a process get keys, and return when it has them in L1.

    A record that arrives during a read stops L1 from keeping what the read finds. So it may take more than one read.
    """
    wait_for(lambda: process.get_many(keys) and None not in process.get_local_many(keys))


def stats(process):
    return process.stats()["backplane"]


WRITES = {
    "set": lambda a: a.set("k", "new"),
    "set_many": lambda a: a.set_many({"k": "new", "l": "new"})["k"],
    "delete": lambda a: a.delete("k"),
    "delete_many": lambda a: a.delete_many(["k", "l"]),
    "invalidate_tag": lambda a: a.invalidate_tag("t"),
    "clear": lambda a: a.clear(),
}


@pytest.mark.parametrize("write", WRITES)
def test_after_a_write_l1_of_every_process_has_a_miss_or_the_new_value(open_process, tiers, write):
    a, b, c = (open_process(tiers) for _ in range(3))
    a.set("k", "old", tags=["t"])
    for process in (b, c):
        hold(process, "k")
    assert WRITES[write](a)["published"] is True
    expected = "new" if write.startswith("set") else None
    for process in (b, c):
        wait_for(lambda process=process: process.get_local("k") != "old", within=SOON_S)
        assert process.get("k") == expected
    # The writer keeps what it wrote.
    assert a.get_local("k") == expected


@pytest.mark.parametrize("backplane", ["redis", "postgres"])
def test_a_backplane_may_be_on_either_server(open_process, servers, backplane):
    url = str(servers.redis_url if backplane == "redis" else servers.database_url)
    a, b = (open_process("l2+l3", backplane=(backplane, url)) for _ in range(2))
    a.set("k", "old")
    hold(b, "k")
    assert a.set("k", "new")["published"] is True
    wait_for(lambda: b.get_local("k") != "old", within=SOON_S)
    assert b.get("k") == "new"


def test_a_write_leaves_other_keys_in_l1(open_process, tiers):
    a, b = open_process(tiers), open_process(tiers)
    a.set_many({"k": "old", "other": "kept"})
    a.set("tagged", "kept", tags=["u"])
    hold(b, "k", "other", "tagged")
    a.set("k", "new", tags=["t"])
    a.invalidate_tag("t")
    wait_for(lambda: b.get_local("k") is None, within=SOON_S)
    assert b.get_local_many(["other", "tagged"]) == ["kept", "kept"]


def test_the_writer_keeps_its_value_when_its_own_record_arrives(open_process, tiers):
    a = open_process(tiers)
    a.set("k", "v")
    wait_for(lambda: stats(a)["sent"] >= 1)
    assert a.get_local("k") == "v"


def test_a_load_that_is_stored_leaves_the_same_value_in_other_processes(open_process, tiers):
    a, b = open_process(tiers), open_process(tiers)
    assert a.load("k", "loaded") == "loaded"
    wait_for(lambda: b.get("k") == "loaded")
    assert b.load("k", "not loaded") == "loaded"


def test_many_writes_from_all_processes_end_with_the_same_value_everywhere(open_process, tiers):
    processes = [open_process(tiers) for _ in range(4)]
    for number in range(25):
        calls = [process.begin("set", "k", [at, number]) for at, process in enumerate(processes)]
        for call in calls:
            call.result()
        wait_for(lambda: len({str(process.get("k")) for process in processes}) == 1, within=SOON_S)
    processes[0].set("k", "last")
    wait_for(lambda: all(process.get("k") == process.get_local("k") == "last" for process in processes))


def test_the_backplane_counts_what_it_sends_and_receives(open_process, tiers):
    a, b = open_process(tiers), open_process(tiers)
    a.set("k", "old")
    hold(b, "k")
    # A record is counted as sent when it is read back.
    wait_for(lambda: stats(a)["sent"] > 0)
    before_a, before_b = stats(a), stats(b)
    for number in range(10):
        a.set("k", number)
    wait_for(lambda: stats(b)["received"] - before_b["received"] >= 10)
    wait_for(lambda: stats(a)["sent"] - before_a["sent"] >= 10)
    assert stats(a)["sent"] - before_a["sent"] == 10
    assert stats(b)["applied"] > before_b["applied"]
    assert stats(b)["lag"]["count"] > before_b["lag"]["count"]
    assert stats(b)["gaps"] == 0


def test_a_write_of_many_keys_is_not_a_record_for_each_of_them(open_process, tiers):
    a, b = open_process(tiers), open_process(tiers)
    keys = [f"k{number}" for number in range(500)]
    sent = stats(a)["sent"]
    a.set_many(dict.fromkeys(keys, 1))
    a.delete_many(keys)
    assert stats(a)["sent"] - sent < 100
    assert b.get_many(keys) == {}


def test_a_process_that_was_frozen_for_3_s_does_not_answer_with_old_values(open_process, tiers):
    a, b = open_process(tiers), open_process(tiers)
    a.set_many({"set": "old", "deleted": "old", "untouched": "kept"})
    a.set("tagged", "old", tags=["t"])
    keys = ["set", "deleted", "tagged", "untouched"]
    hold(b, *keys)
    with b.frozen_before_reads(keys, 3) as answers:
        a.set("set", "new")
        a.delete("deleted")
        a.invalidate_tag("t")
    # L1 does not answer until the process has caught up. No task of it has run before these reads.
    assert answers == [None, None, None, None]
    before = b.stats()
    wait_for(lambda: b.get_local("untouched") == "kept", within=5)
    after = b.stats()
    for tier in {"l2", "l3"} & set(tiers.split("+")):
        assert after[tier]["hits"] + after[tier]["misses"] == before[tier]["hits"] + before[tier]["misses"]
    assert b.get_local_many(["set", "deleted", "tagged"]) in ([None, None, None], ["new", None, None])
    assert b.get("set") == "new"
    assert b.get("deleted") is b.get("tagged") is None
    # Whether there was something to recover depends on whether the server has kept the connection.
    assert stats(b)["gaps"] == 0


def test_a_process_that_was_frozen_does_not_serve_old_values_to_its_loads(open_process, tiers):
    options = {"backplane_timeout": TIMEOUT_S, "stale_ttl": 60}
    a, b = open_process(tiers, **options), open_process(tiers, **options)
    a.set_many({"set": "old", "deleted": "old"})
    hold(b, "set", "deleted")
    with b.frozen(FROZEN_S):
        a.set("set", "new")
        a.delete("deleted")
        first = b.begin("load", "deleted", value="loaded", gated=False, seconds=0, error="")
        second = b.begin("load", "set", value="loaded", gated=False, seconds=0, error="")
    assert first.result() == "loaded"
    assert second.result() == "new"


def test_a_load_of_a_frozen_process_is_not_kept_over_a_write(open_process, tiers):
    options = {"backplane_timeout": TIMEOUT_S}
    a, b = open_process(tiers, **options), open_process(tiers, **options)
    load = b.begin_load("k", "old")
    with b.frozen(FROZEN_S):
        a.set("k", "new")
        finish = b.begin("finish", load.number)
    finish.result()
    load.result()
    wait_for(lambda: b.get_local("k") != "old", within=SOON_S)
    assert b.get("k") == a.get("k") == "new"


@pytest.mark.parametrize("lose", ["trimmed", "deleted", "flushed"])
def test_a_process_that_cannot_read_what_it_missed_verifies_its_entries(open_process, private, client, lose):
    options = private | {"backplane_timeout": TIMEOUT_S}
    a, b = open_process("l2", **options), open_process("l2", **options)
    a.set_many({"set": "old", "deleted": "old", "untouched": "kept"})
    keys = ["set", "deleted", "untouched"]
    hold(b, *keys)
    with b.frozen_before_reads(keys, FROZEN_S) as answers:
        a.set("set", "new")
        a.delete("deleted")
        (log,) = streams(client)
        if lose == "trimmed":
            client.xtrim(log, maxlen=0, approximate=False)
        elif lose == "deleted":
            client.delete(log)
        else:
            client.flushall()
        a.set("other", 1)
    assert answers == [None, None, None]
    wait_for(lambda: stats(b)["gaps"] >= 1, within=5)
    assert b.get_local_many(["set", "deleted"]) in ([None, None], ["new", None])
    flushed = lose == "flushed"
    assert b.get("set") == (None if flushed else "new")
    assert b.get("deleted") is None
    # It was verified against the tier, and is in L1 again.
    assert b.get("untouched") == (None if flushed else "kept")
    wait_for(lambda: flushed or b.get_local("untouched") == "kept", within=SOON_S)
    assert b.get("other") == 1


def test_a_log_that_is_deleted_hides_no_write(open_process, private, client):
    a, b = open_process("l2", **private), open_process("l2", **private)
    a.set("k", "old")
    hold(b, "k")
    client.delete(*streams(client))
    a.set("k", "new")
    wait_for(lambda: b.get_local("k") != "old", within=2)
    assert b.get("k") == "new"


def test_without_its_backplane_l1_answers_only_as_long_as_the_timeout(open_process, private_redis):
    options = {"backplane": ("redis", private_redis.url), "backplane_timeout": TIMEOUT_S}
    a, b = open_process("l2", **options), open_process("l2", **options)
    a.set_many({"k": "old", "untouched": "kept"})
    hold(b, "k", "untouched")
    private_redis.kill()
    written = a.set("k", "new")
    assert (written["l2"], written["published"]) == (True, False)
    wait_for(lambda: b.get_local_many(["k", "untouched"]) == [None, None], within=3)
    # The tier answers.
    assert b.get("k") == "new"
    assert b.get("untouched") == "kept"
    private_redis.start()
    wait_for(lambda: b.get("k") and b.get_local("k") == "new")
    wait_for(lambda: a.set("k", "newer")["published"] is True)
    wait_for(lambda: b.get_local("k") != "new", within=SOON_S)
    assert b.get("k") == "newer"


def test_a_record_that_could_not_be_published_is_published_later(open_process, private_redis):
    options = {"backplane": ("redis", private_redis.url)}
    a, b = open_process("l2", **options), open_process("l2", **options)
    a.set("k", "old")
    hold(b, "k")
    private_redis.freeze()
    assert a.set("k", "new")["published"] is False
    private_redis.thaw()
    wait_for(lambda: b.get_local("k") != "old", within=5)
    assert b.get("k") == "new"


def test_if_no_tier_answers_l1_serves_its_entries_within_their_own_ttl(open_process, private_redis):
    options = {
        "l2": {"url": private_redis.url, "deadline": 0.25},
        "deadline": 0.25,
        "backplane_timeout": TIMEOUT_S,
    }
    a, b = open_process("l2", **options), open_process("l2", **options)
    a.set("k", "v", ttl=60)
    a.set("short", "v", ttl=2)
    hold(b, "k", "short")
    private_redis.freeze()
    wait_for(lambda: b.get_local("k") is None, within=3)
    assert b.get("k") == "v"
    assert b.load("k", "loaded") == "v"
    wait_for(lambda: b.get("short") is None, within=6)
    private_redis.thaw()
    wait_for(lambda: b.get("k") == "v" and b.get_local("k") == "v")


@pytest.mark.parametrize(
    ("mine", "theirs"), [("x", "y"), ("x", "x:y"), ("x", "x*"), ("x", "X"), ("x%", "x"), ("é", "e")]
)
def test_two_namespaces_do_not_hear_each_other(open_process, namespace, tiers, mine, theirs):
    a, b = (open_process(tiers, namespace=f"{namespace}{name}") for name in (mine, theirs))
    also_b = open_process(tiers, namespace=f"{namespace}{theirs}")
    for process in (a, b):
        process.set_many({"k": "v", "cleared": "v"}, tags=["t"])
        process.set("last", "old")
    a.set("k", "new")
    a.delete("k")
    a.invalidate_tag("t")
    a.clear()
    # When this has arrived, all that was written before would have arrived as well.
    also_b.set("last", "new")
    wait_for(lambda: b.get_local("last") != "old", within=SOON_S)
    assert b.get_local_many(["k", "cleared"]) == ["v", "v"]
    assert b.get_many(["k", "cleared"]) == {"k": "v", "cleared": "v"}


def counts(process):
    """The sum of all that a process counts about its backplane, except what it has sent."""
    return sum(value for name, value in stats(process).items() if type(value) is int and name != "sent")


def test_a_foreign_writer_of_the_stream_causes_misses_and_nothing_else(open_process, private, client):
    a, b = open_process("l2", **private), open_process("l2", **private)
    keys = [f"k{number}" for number in range(50)]
    a.set_many(dict.fromkeys(keys, "v"))
    hold(b, *keys)
    (log,) = streams(client)
    (_, real), *_ = client.xrevrange(log, count=1)
    junk = [
        {b"": b""},
        {b"junk": b"junk"},
        {b"r": os.urandom(1_000)},
        dict.fromkeys(real, b""),
        dict.fromkeys(real, b"\x00"),
        {field: value[:-1] for field, value in real.items()},
        {field: value + b"\xff" * 100_000 for field, value in real.items()},
        {field: os.urandom(len(value) or 1) for field, value in real.items()},
        {field: b"\xff" * len(value) for field, value in real.items()},
        {field + b"x": value for field, value in real.items()},
    ]
    before = counts(b)
    for record in junk * 3:
        client.xadd(log, record)
    wait_for(lambda: counts(b) - before >= len(junk) * 3)
    assert set(b.get_local_many(keys)) <= {"v", None}
    assert b.get_many(keys) == dict.fromkeys(keys, "v")
    # It still hears what is written.
    hold(b, *keys)
    a.set("k0", "new")
    wait_for(lambda: b.get_local("k0") != "v", within=SOON_S)
    assert b.get("k0") == "new"


def test_a_key_of_another_type_in_the_place_of_the_stream_breaks_no_call(open_process, private, client):
    a, b = open_process("l2", **private), open_process("l2", **private)
    a.set("k", "old")
    hold(b, "k")
    (log,) = streams(client)
    client.delete(log)
    client.set(log, "junk")
    if a.set("k", "new")["l2"]:
        wait_for(lambda: b.get("k") == "new", within=3)
    assert b.load("other", "loaded") == "loaded"


def test_without_a_backplane_l1_keeps_old_values_and_the_tiers_are_right(open_process, open_watcher, tiers):
    a, b, c = open_process(tiers, backplane=None), open_process(tiers, backplane=None), open_watcher(tiers)
    a.set("k", "old")
    hold(b, "k")
    written = a.set("k", "new")
    assert written["published"] is None
    assert stats(a) is stats(b) is None
    assert c.get("k") == "new"
    assert b.get_local("k") == "old"


def test_without_a_backplane_a_process_may_be_frozen(open_process, tiers):
    a = open_process(tiers, backplane=None, backplane_timeout=TIMEOUT_S)
    a.set("k", "v")
    with a.frozen_before_reads(["k"], FROZEN_S) as answers:
        pass
    assert answers == ["v"]


def test_without_a_backplane_redis_gets_no_stream(open_process, private, client):
    a = open_process("l2", **private, backplane=None)
    a.set("k", "v", tags=["t"])
    a.invalidate_tag("t")
    a.delete("k")
    assert streams(client) == []


def test_a_cache_without_lower_tiers_has_no_backplane(open_process):
    a = open_process("")
    assert a.set("k", "v")["published"] is None
    assert stats(a) is None
    assert a.get_local("k") == "v"


def test_a_backplane_on_a_server_that_is_not_there_leaves_a_cache_without_it(open_process, private_redis, tiers):
    private_redis.kill()
    options = {"backplane": ("redis", private_redis.url), "backplane_timeout": TIMEOUT_S}
    a, b = open_process(tiers, **options), open_process(tiers, **options)
    written = a.set("k", "v")
    assert written["published"] is False
    assert [written[tier] for tier in tiers.split("+")] == [True] * len(tiers.split("+"))
    assert b.get("k") == "v"
    # It is there from now on.
    private_redis.start()
    wait_for(lambda: a.set("k", "newer")["published"] is True)
    wait_for(lambda: b.get("k") == "newer", within=3)
