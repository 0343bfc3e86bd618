"""`get_entry` says what the cache knows of a value; `touch` gives it another ttl, right between processes."""

import asyncio
import secrets

import pytest
from grouped import grouped
from memory_tier import MemoryTier

from acgsperf import EntryOptions, LRUCache, TieredCache, Written
from acgsperf.cache import CachedValue
from acgsperf.testing import MemoryServer, memory_cache
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier


@pytest.fixture
def on_servers(servers):
    namespace = f"touch-{secrets.token_hex(4)}"

    def cache(*, l2=True, l3=True, **options):
        tiers = RedisTier(servers.redis_url, deadline=5), PostgresTier(servers.database_url, deadline=5)
        return TieredCache(
            LRUCache(100),
            tiers[0] if l2 else None,
            tiers[1] if l3 else None,
            **grouped({"namespace": namespace, "deadline": 5, "ttl": 60} | options),
        )

    return cache


async def loaded(key):
    return 1


async def fails(key):
    raise OSError("down")


# get_entry


async def test_an_entry_has_its_age_its_remaining_ttl_and_its_tags(clock):
    async with memory_cache(clock) as cache:
        await cache.set("a", 1, ttl=60, tags=["t"])
        await cache.set("forever", None, ttl=None)
        clock.advance(20)
        assert await cache.get_entry("a") == CachedValue(1, 20.0, 40.0, ("t",), "l1")
        assert await cache.get_entry("forever") == CachedValue(None, 20.0, None, (), "l1")
        assert await cache.get_entry("absent") is None
        clock.advance(40)
        assert await cache.get_entry("a") is None


@pytest.mark.parametrize(("tiers", "name"), [({"l3": False}, "l2"), ({"l2": False}, "l3"), ({}, "l2")])
async def test_an_entry_says_which_tier_has_it(on_servers, tiers, name):
    async with on_servers() as here:
        await here.set("a", 1, tags=["t"])
    async with on_servers(**tiers) as there:
        found = await there.get_entry("a")
        assert (found.value, found.tags, found.tier) == (1, ("t",), name)
        assert 0 <= found.age < 30
        assert 0 < found.ttl <= 60
        # It is promoted as by `get`.
        assert [(await there.get_entry("a")).tier for _ in range(3)] == [name, name, "l1"]


async def test_if_l2_has_lost_an_entry_it_is_that_of_l3(open_cache, clock):
    l2, l3 = MemoryTier("l2", clock), MemoryTier("l3", clock)
    cache = await open_cache(l2, l3)
    await cache.set("a", 1)
    cache._parts.l1.clear()
    l2.lose("a")
    assert (await cache.get_entry("a")).tier == "l3"


@pytest.mark.parametrize("options", [{"negative_ttl": 60}, {"stale_ttl": 60, "ttl": 1}])
async def test_a_negative_and_a_stale_entry_are_not_found(clock, options):
    async def load(key):
        return None if "negative_ttl" in options else 1

    async with memory_cache(clock, **grouped(options)) as cache:
        await cache.get_or_load("a", load)
        clock.advance(2)
        assert await cache.get_entry("a") is None
        assert await cache.touch("a", 10) is None


async def test_a_due_entry_is_fresh(clock):
    async with memory_cache(clock, options=EntryOptions(ttl=100, refresh_ahead=0.5)) as cache:
        await cache.set("a", 1)
        clock.advance(60)
        assert await cache.get_entry("a") == CachedValue(1, 60.0, 40.0, (), "l1")


# touch


@pytest.mark.parametrize("ttl", [10, 1_000, None])
async def test_a_touched_value_has_the_new_ttl_and_its_old_age_in_every_tier(on_servers, ttl):
    async with on_servers() as cache:
        await cache.set("a", {"b": 1}, tags=["t"])
        assert await cache.touch("a", ttl) == Written(True, True, True, True)
        await check_entry(cache, "l1", ttl)
    for tiers, name in (({"l3": False}, "l2"), ({"l2": False}, "l3")):
        async with on_servers(**tiers) as cache:
            await check_entry(cache, name, ttl)
            await cache.invalidate_tag("t")
            assert await cache.get("a") is None


async def check_entry(cache, tier, ttl):
    found = await cache.get_entry("a")
    assert (found.value, found.tags, found.tier) == ({"b": 1}, ("t",), tier)
    assert 0 <= found.age < 5
    assert found.ttl is None if ttl is None else ttl - 5 < found.ttl <= ttl


async def test_the_ttl_of_the_cache_is_the_default(clock):
    async with memory_cache(clock, options=EntryOptions(ttl=60)) as cache:
        await cache.set("a", 1, ttl=5)
        await cache.touch("a")
        clock.advance(59)
        assert await cache.get_entry("a") == CachedValue(1, 59.0, 1.0, (), "l1")


async def test_what_is_absent_cannot_be_touched(on_servers):
    async with on_servers() as cache:
        assert await cache.touch("a", 10) is None
        assert await cache.get("a") is None


async def test_other_processes_forget_the_former_ttl(on_servers):
    async with on_servers() as here, on_servers(promotion_threshold=1) as there:
        await here.set("a", 1)
        assert await there.get("a") == 1
        assert there.get_local("a") == 1
        await here.touch("a", 10)
        while there.get_local("a") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await there.get_entry("a")).ttl <= 10
        assert here.get_local("a") == 1, "its own record does not concern it"


@pytest.mark.parametrize("change", ["set", "delete", "invalidate_tag", "clear", "load"])
@pytest.mark.parametrize("moment", ["observe", "get", "store"])
@pytest.mark.parametrize("tiers", [{}, {"l3": False}, {"l2": False}], ids=["both", "L2", "L3"])
async def test_a_touch_undoes_nothing_that_happens_meanwhile(on_servers, tiers, moment, change):
    async with on_servers(**tiers) as here, on_servers(**tiers) as there:
        await here.set("a", 1, tags=["t"])
        tier = here._lower_tiers.tiers[-1]
        before = getattr(tier, moment)

        async def changed(*arguments):
            setattr(tier, moment, before)
            match change:
                case "set":
                    await there.set("a", 2)
                case "delete":
                    await there.delete("a")
                case "invalidate_tag":
                    await there.invalidate_tag("t")
                case "clear":
                    await there.clear()
                case "load":
                    await there.delete("a")
                    await there.get_or_load("a", loaded_two)
                    await there._lower_tiers.end_stores()
                    for queue in there._lower_tiers.queues:
                        queue.open()
            return await before(*arguments)

        setattr(tier, moment, changed)
        await here.touch("a", 1_000)
    value = 2 if change in ("set", "load") else None
    async with on_servers(**tiers) as later:
        assert await later.get("a") == value


async def loaded_two(key):
    return 2


async def test_l1_does_not_keep_what_a_concurrent_write_has_replaced(on_servers):
    async with on_servers() as here, on_servers() as there:
        await here.set("a", 1)
        written, _ = await asyncio.gather(here.touch("a", 1_000), there.set("a", 2))
        assert written is not None
        while await here.get("a") != 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await there.get("a") == 2


async def test_if_l1_has_a_former_value_the_present_one_is_touched(clock):
    server = MemoryServer(clock)
    async with memory_cache(clock, server=server) as here, memory_cache(clock, server=server) as there:
        await here.set("a", 1)
        # Without a backplane, the L1 of this process does not get to know of it.
        await there.set("a", 2, tags=["t"])
        assert await here.touch("a", 5) == Written(True, True, None, None)
        assert await here.get_entry("a") == CachedValue(2, 0.0, 5.0, ("t",), "l1")


async def test_without_lower_tiers_l1_is_touched(clock):
    async with TieredCache(
        LRUCache(10, clock=clock), namespace="alone", clock=clock, options=EntryOptions(ttl=60)
    ) as cache:
        await cache.set("a", 1)
        assert await cache.touch("a", 5) == Written(True, None, None, None)
        clock.advance(5)
        assert await cache.get("a") is None


async def test_a_result_of_one_instance_is_touched_in_l1_only(clock):
    class Shop:
        async def price(self):
            return 1

    async with memory_cache(clock, options=EntryOptions(ttl=60)) as cache:
        Shop.cached = cache.cached()(Shop.price)
        shop = Shop()
        await shop.cached()
        written = await cache.touch(shop.cached.key(), 5)
        assert written == Written(True, False, None, None)
        clock.advance(5)
        assert await shop.cached.peek() is None


async def test_a_tier_that_is_down_is_reported_and_l1_keeps_the_former_ttl(clock):
    server = MemoryServer(clock)
    async with memory_cache(clock, server=server, options=EntryOptions(ttl=60)) as cache:
        await cache.set("a", 1)
        server.up = False
        assert await cache.touch("a", 1_000) == Written(False, False, None, None)
        assert (await cache.get_entry("a")).ttl == 60
        server.up = True
        assert (await cache.touch("a", 1_000)).l2


async def test_a_load_in_flight_does_not_replace_a_touched_value(clock, settle):
    gate = asyncio.Event()

    async def load(key):
        await gate.wait()
        return 2

    async with memory_cache(clock, options=EntryOptions(ttl=60)) as cache:
        await cache.set("a", 1)
        load_task = asyncio.create_task(cache.get_or_load("a", load, refresh=True))
        await settle()
        assert (await cache.touch("a", 10)).everywhere
        gate.set()
        assert await load_task == 2
        assert await cache.get("a") == 1


async def test_a_value_of_a_declared_type_is_touched(on_servers):
    async with on_servers(value_type=set[int]) as here:
        await here.set("a", {1})
        assert (await here.touch("a", 1_000)).everywhere
    async with on_servers(value_type=set[int]) as there:
        assert await there.get("a") == {1}


async def test_a_tier_that_compares_nothing_is_touched(open_cache, clock):
    tier = MemoryTier("l2", clock)
    cache = await open_cache(tier, ttl=60)
    await cache.set("a", 1)
    assert await cache.touch("a", 5) == Written(True, True, None, None)
    assert tier["a"].fresh_until == clock.now + 5


@pytest.mark.parametrize(("ttl", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
async def test_the_ttl_is_checked(clock, ttl, error):
    async with memory_cache(clock) as cache:
        with pytest.raises(error, match="ttl must be"):
            await cache.touch("a", ttl)
