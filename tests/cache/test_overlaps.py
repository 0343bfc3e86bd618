"""Operations that overlap: slow writes of L3, writes and invalidations of one process, a `close` that is cancelled."""

import asyncio
import secrets

import asyncpg
import pytest
from grouped import grouped

from acgsperf import LRUCache
from acgsperf.backplane import BackplaneState
from acgsperf.cache import TieredCache
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

SLOW_WRITES = {
    "invalidate_tag": lambda cache: cache.invalidate_tag("t"),
    "clear": lambda cache: cache.clear(),
    "expire_tag_now": lambda cache: cache.expire_tag_now("t"),
    "delete": lambda cache: cache.delete("key"),
    "expire_now": lambda cache: cache.expire_now("key"),
}
DEADLINE_S = 2.0


@pytest.fixture
def make(servers):
    namespace = f"test-{secrets.token_hex(4)}"

    def new(**options):
        l2 = RedisTier(servers.redis_url, deadline=DEADLINE_S)
        l3 = PostgresTier(servers.database_url, deadline=DEADLINE_S)
        options = {"namespace": namespace, "promotion_threshold": 1, "deadline": DEADLINE_S} | options
        return TieredCache(LRUCache(100), l2, l3, **grouped(options))

    return new


async def until(ask):
    async with asyncio.timeout(20):
        while not await ask():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def no_value(key):
    return "loaded"


@pytest.mark.parametrize("write", SLOW_WRITES)
async def test_a_write_that_l3_carries_out_late_leaves_no_old_value_in_another_l1(make, servers, write):
    busy = await asyncpg.connect(servers.database_url)
    async with make(ttl=None) as one, make(ttl=None) as other:
        await one.set("key", "old", tags=["t"])
        transaction = busy.transaction()
        await transaction.start()
        for table in one._lower_tiers.l3._tables.names[:2]:
            await busy.execute(f"SELECT 1 FROM {table} WHERE namespace = $1 FOR UPDATE", one.namespace)
        # L3 takes so long that L2 is written first.
        task = asyncio.create_task(SLOW_WRITES[write](one))
        await asyncio.sleep(0.2 * DEADLINE_S)
        assert await other.get("key") in ("old", None)
        await transaction.rollback()
        assert (await task).everywhere
        await until(lambda: asyncio.sleep(0, other.get_local("key") is None))
        assert await other.get_or_load("key", no_value, tags=["t"]) == "loaded"
    await busy.close()


@pytest.mark.parametrize("later", ["invalidate_tag", "expire_tag_now", "clear"])
async def test_a_set_that_overlaps_an_invalidation_does_not_leave_what_was_there_before_both(make, later):
    async with make() as cache, make() as other:
        await cache.set("key", "old")
        invalidate = getattr(cache, later)
        await asyncio.gather(cache.set("key", "new", tags=["t"]), invalidate() if later == "clear" else invalidate("t"))
        await until(lambda: asyncio.sleep(0, cache.stats().unrepaired == 0))
        assert await other.get("key") != "old"
        await until(lambda: is_gone(other, "key"))


async def is_gone(cache, key):
    return await cache.get(key) is None


async def test_of_two_overlapping_sets_the_later_one_is_in_both_tiers(make):
    async with make() as cache:
        for number in range(20):
            first, second = await asyncio.gather(
                cache.set("key", ["first", number]), cache.set("key", ["second", number])
            )
            assert first.everywhere
            assert second.everywhere
            for tier in (cache._lower_tiers.l2, cache._lower_tiers.l3):
                assert (await tier.get("key")).value == ["second", number]


async def test_a_stamp_of_the_future_concerns_its_own_key_only(make, servers):
    admin = await asyncpg.connect(servers.database_url)
    async with make() as cache:
        await cache.set("key", 1)
        entries = cache._lower_tiers.l3._tables.entries
        two_days_us = 2 * 86_400_000_000
        await admin.execute(
            f"UPDATE {entries} SET stamp = stamp + $2 WHERE namespace = $1", cache.namespace, two_days_us
        )
        assert (await cache.set("key", 2)).everywhere
        assert await cache.get("key") == 2
        assert cache._writes._stamps._last < cache._lower_tiers.l2.now_us() + 1_000_000
    await admin.close()


@pytest.mark.parametrize("l1_ttl", [None, 0.05])
async def test_get_serves_no_unverified_entry_if_a_tier_says_that_the_key_is_gone(open_cache, l2, l3, clock, l1_ttl):
    cache = await open_cache(l2, l3, l1_ttl=l1_ttl)
    await cache.set("key", "old")
    cache._parts.listener.extend(clock.now + 1)
    clock.advance(2)
    # L2 does not answer, and L3 does.
    l2.up = False
    l3.lose("key")
    assert await cache.get("key") is None
    assert await cache.get_many(["key"]) == {}


async def test_a_cancelled_close_ends_everything_and_the_cache_can_be_opened_again(make):
    cache = await make().open()

    async def slow(key):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)

    load = asyncio.create_task(cache.get_or_load("key", slow))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(cache.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    await asyncio.gather(closing, load, return_exceptions=True)
    assert cache.stats().backplane.state is BackplaneState.OFF
    async with cache:
        assert (await cache.set("key", 1)).everywhere
