"""Writes to slow servers: the caller is answered after one deadline, and the write continues."""

import asyncio
import secrets
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from faults import network
from faults.network import Network
from history.servers import RedisServer, redis_executable

from acgsperf import LRUCache, TieredCache
from acgsperf.cache.detached import DetachedCalls
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

DEADLINE_S = 1.0
# One reply comes in time, two after each other do not.
REPLY_S = 0.8

WRITES = {
    "set": lambda cache: cache.set("a", "new", tags=("tag",)),
    "set_many": lambda cache: cache.set_many({"a": "new"}, tags=("tag",)),
    "delete": lambda cache: cache.delete("a"),
    "expire_now": lambda cache: cache.expire_now("a"),
    "touch": lambda cache: cache.touch("a", ttl=6_000),
    "invalidate_tag": lambda cache: cache.invalidate_tag("tag"),
    "expire_tag_now": lambda cache: cache.expire_tag_now("tag"),
    "clear": lambda cache: cache.clear(),
}
AFTERWARDS = {"set": "new", "set_many": "new", "touch": "old"}


@pytest.fixture(scope="module")
def redis_server():
    with RedisServer(redis_executable()) as server:
        yield server


@pytest.fixture
async def networks(redis_server, victim, monkeypatch):
    monkeypatch.setattr(network, "_DELAY_S", REPLY_S)
    (host,) = parse_qs(urlsplit(victim.dsn).query)["host"]
    async with Network(redis_server.socket) as redis, Network(f"{host}/.s.PGSQL.5432") as postgres:
        yield redis, postgres


@pytest.fixture
async def open_cache(networks, victim):
    redis, postgres = networks
    namespace = f"test-{secrets.token_hex(4)}"
    dsn = f"postgresql://postgres:@127.0.0.1:{postgres.port}{urlsplit(victim.dsn).path}?sslmode=disable"

    def opened(**options):
        l2 = RedisTier(f"redis://127.0.0.1:{redis.port}", deadline=DEADLINE_S)
        l3 = PostgresTier(dsn, deadline=DEADLINE_S)
        return TieredCache(LRUCache(10), l2, l3, namespace=namespace, promotion_threshold=1, deadline=DEADLINE_S)

    return opened


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_to_slow_servers_takes_one_deadline(networks, open_cache, name):
    async with open_cache() as cache, open_cache() as other:
        # The connection prepares each statement once.
        for write in (WRITES["set"], WRITES[name]):
            await write(cache)
        assert (await cache.set("a", "old", ttl=60, tags=("tag",))).everywhere
        for each in networks:
            each.play("delay")
        began = time.perf_counter()
        await WRITES[name](cache)
        took = time.perf_counter() - began
        assert any(each.changed for each in networks)
        for each in networks:
            await each.heal()
        assert took < 2 * REPLY_S
        async with asyncio.timeout(10):
            while cache._writes.detached or cache.stats().unrepaired:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            # Nothing has failed, so the write took place. A touch did not: half a deadline is too short for its reads.
            while await other.get("a") != AFTERWARDS.get(name):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_write_that_takes_longer_is_not_reported_as_carried_out(networks, open_cache):
    async with open_cache() as cache:
        await cache.set("a", "old")
        for each in networks:
            each.play("delay")
        written = await cache.set("a", "new")
        assert (written.l1, written.l2, written.l3, written.published) == (True, False, False, False)
        found = await cache.set_many({"b": 1, "c": 2})
        assert not any(one.everywhere for one in found.values())


async def test_an_error_after_the_caller_was_answered_is_logged(caplog):
    calls, ended = DetachedCalls(0.01), asyncio.Event()

    async def fail():
        await asyncio.sleep(0.05)
        raise ValueError("too late")

    assert await calls.run(fail(), lambda: "late", ended.set) == "late"
    assert not ended.is_set()
    await calls.close()
    assert ended.is_set()
    assert len(calls) == 0
    (record,) = caplog.records
    assert str(record.exc_info[1]) == "too late"


async def test_each_batch_has_the_patience_of_one():
    calls = DetachedCalls(0.1)

    async def work():
        await asyncio.sleep(0.2)
        return "done"

    assert await calls.run(work(), lambda: "late", batches=1) == "late"
    assert await calls.run(work(), lambda: "late", batches=100) == "done"
    await calls.close()


async def test_of_many_calls_the_callers_wait():
    calls, gate = DetachedCalls(0.01), asyncio.Event()

    async def work():
        await gate.wait()
        return "done"

    callers = [asyncio.create_task(calls.run(work(), lambda: "late")) for _ in range(101)]
    await asyncio.wait(callers, timeout=0.1)
    assert not any(caller.done() for caller in callers)
    gate.set()
    assert set(await asyncio.gather(*callers)) == {"done"}


async def test_large_writes_to_fast_servers_are_carried_out(redis_server, victim):
    l2, l3 = RedisTier(redis_server.url, deadline=0.25), PostgresTier(victim.dsn, deadline=0.25)
    namespace = f"test-{secrets.token_hex(4)}"
    async with TieredCache(LRUCache(10), l2, l3, namespace=namespace) as cache:
        values = {f"key-{number}": "x" * 100 for number in range(20_000)}
        written = await cache.set_many(values)
        assert all(one.everywhere for one in written.values())
        assert (await cache.delete_many(values)).everywhere


async def test_a_tier_that_raises_leaves_no_value_in_l1(redis_server):
    class Broken(RedisTier):
        async def write(self, writes):
            raise RuntimeError("a fault of the tier")

    async with TieredCache(LRUCache(10), Broken(redis_server.url), namespace=secrets.token_hex(4)) as cache:
        with pytest.raises(RuntimeError, match="a fault of the tier"):
            await cache.set("a", "new")
        assert await cache.get("a") is None


async def test_an_error_in_time_is_raised_and_not_logged(caplog):
    calls = DetachedCalls(10)

    async def fail():
        raise ValueError("in time")

    with pytest.raises(ValueError, match="in time"):
        await calls.run(fail(), lambda: "late")
    assert not caplog.records


async def test_a_call_continues_after_its_caller_was_cancelled():
    calls, done = DetachedCalls(10), []

    async def work():
        await asyncio.sleep(0.02)
        done.append(1)

    caller = asyncio.create_task(calls.run(work(), lambda: None))
    await asyncio.sleep(0.005)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (len(calls), done) == (1, [])
    await calls.close()
    assert (len(calls), done) == (0, [1])
