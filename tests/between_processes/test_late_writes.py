"""A write that a server carries out too late does no harm."""

import asyncio

import asyncpg
import pytest

from .link import Link
from .process import wait_for

NEWER = {
    "set": (lambda b, key: b.begin("set", key, "newer"), "newer"),
    "delete": (lambda b, key: b.begin("delete", key), None),
}
MANY = {f"k{number}": "late" for number in range(100)}
LAST = "k99"


@pytest.fixture(params=NEWER)
def newer(request):
    return NEWER[request.param]


@pytest.fixture
def postgres(victim):
    """A PostgreSQL that a test may freeze."""
    yield victim
    victim.thaw()


@pytest.fixture
def link(private_redis, used):
    """A proxy between a process and its Redis, which a test may freeze: what was sent arrives later."""
    link = Link(private_redis)
    yield link
    used.close()
    link.stop()


def sessions(dsn):
    """The processes of the sessions of a PostgreSQL."""

    async def ask():
        connection = await asyncpg.connect(dsn)
        statement = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        rows = await connection.fetch(statement)
        await connection.close()
        return {row["pid"] for row in rows}

    return asyncio.run(ask())


def let_send(process):
    """Return when a process has sent what it was told to send."""
    for _ in range(10):
        process.get_local("no such key")


def test_redis_does_not_carry_out_a_set_that_arrives_late_over_a_newer_write(
    open_process, open_watcher, private_redis, link, newer
):
    begin, expected = newer
    url = {"url": private_redis.url}
    a = open_process("l2", l2={"url": link.url, "deadline": 0.25})
    b, c = open_process("l2", l2=url), open_watcher("l2", l2=url)
    assert a.set("k", "old")["l2"]
    assert b.get("k") == "old"
    with link.frozen():
        assert a.set("k", "late")["l2"] is False
        assert begin(b, "k").result()["l2"] is True
    assert c.watch("k", 0.3) == [expected]
    wait_for(lambda: a.get("k") == expected)


def test_postgres_does_not_carry_out_a_set_that_timed_out_over_a_newer_write(
    open_process, open_watcher, postgres, newer
):
    begin, expected = newer
    dsn = {"dsn": postgres.dsn}
    a = open_process("l3", l3={**dsn, "deadline": 0.25})
    assert a.set(LAST, "old")["l3"]
    sessions_of_a = sessions(postgres.dsn)
    b, c = open_process("l3", l3=dsn), open_watcher("l3", l3=dsn)
    assert b.get(LAST) == "old"
    # Only these sessions, so that the newer write is acknowledged before the late one continues.
    postgres.freeze_sessions(*sessions_of_a)
    assert a.set(LAST, "late")["l3"] is False
    assert begin(b, LAST).result()["l3"] is True
    postgres.thaw()
    assert c.watch(LAST, 0.3) == [expected]
    wait_for(lambda: a.get(LAST) == expected)


def test_a_frozen_postgres_does_not_carry_out_a_set_that_timed_out_over_a_newer_write(
    open_process, open_watcher, postgres, newer
):
    begin, expected = newer
    dsn = {"dsn": postgres.dsn}
    a = open_process("l3", l3={**dsn, "deadline": 0.25})
    b, c = open_process("l3", l3=dsn), open_watcher("l3", l3=dsn)
    assert a.set_many(dict.fromkeys(MANY, "old"))[LAST]["l3"]
    assert b.get(LAST) == "old"
    postgres.freeze()
    assert a.set_many(MANY)[LAST]["l3"] is False
    write = begin(b, LAST)
    let_send(b)
    postgres.thaw()
    assert write.result()["l3"] is True
    assert c.watch(LAST, 0.3) == [expected]


@pytest.fixture(params=["redis", "postgres"])
def frozen_tier(request):
    """A server that may be frozen, the name of its tier, and the arguments of the processes that use it."""
    if request.param == "redis":
        server = request.getfixturevalue("private_redis")
        return server, "l2", {"l2": {"url": server.url, "deadline": 5}}
    server = request.getfixturevalue("postgres")
    return server, "l3", {"l3": {"dsn": server.dsn, "deadline": 5}}


def test_a_set_whose_ttl_ends_before_it_arrives_leaves_nothing(open_process, open_watcher, frozen_tier):
    server, tier, options = frozen_tier
    a, c = open_process(tier, **options), open_watcher(tier, **options)
    a.set("k", "old", ttl=60)
    server.freeze()
    # The second waits for the first.
    a.begin("set", "other", 1)
    let_send(a)
    write = a.begin("set", "k", "short", ttl=0.1)
    # Its ttl has ended.
    wait_for(lambda: a.get_local("k") is None)
    server.thaw()
    write.result()
    assert c.watch("k", 0.3) == [None]
    assert a.get("k") is None


def test_a_set_whose_ttl_has_ended_when_it_is_sent_leaves_nothing(open_process, open_watcher, tiers):
    a, c = open_process(tiers), open_watcher(tiers)
    a.set_many({"k": "old", "l": "old"})
    a.set("k", "short", ttl=1e-9)
    a.set_many({"l": "short"}, ttl=1e-9)
    assert c.watch("k", 0.1) == [None]
    assert c.watch("l", 0.1) == [None]
    assert a.get("k") is None


def test_a_set_that_is_reported_as_failed_has_failed_when_it_is_reported(open_process, open_watcher, frozen_tier):
    server, tier, options = frozen_tier
    a, c = open_process(tier, **{tier: options[tier] | {"deadline": 0.25}}), open_watcher(tier, **options)
    a.set("k", "old")
    server.freeze()
    assert a.set("k", "late")[tier] is False
    server.thaw()
    # It may repair the tier, by removing the old value, and does not store the late one.
    assert set(c.watch("k", 0.5)) <= {"old", None}
    # The writer's own L1 keeps a value only if every tier took it.
    assert a.get_local("k") != "late"


def test_what_only_one_tier_took_is_repaired_when_the_other_answers_again(open_process, open_watcher, private_redis):
    url = {"url": private_redis.url}
    a = open_process("l2+l3", l2={**url, "deadline": 0.25})
    c = open_watcher("l2+l3", l2=url)
    a.set("k", "old")
    private_redis.freeze()
    written = a.set("k", "new")
    private_redis.thaw()
    assert (written["l2"], written["l3"]) == (False, True)
    # L2 has the old value until it is told.
    wait_for(lambda: c.get("k") == "new")
    assert c.watch("k", 0.3) == ["new"]
