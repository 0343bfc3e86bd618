"""A load that its caller runs is stored only if nothing has superseded it."""

import asyncio
import secrets
from contextlib import AsyncExitStack

import pytest

from acgsperf import CacheError, LRUCache, PostgresTier, RedisTier, TieredCache
from acgsperf.cache.pending import PendingLoad

INVALIDATIONS = {
    "invalidate_tag": lambda cache: cache.invalidate_tag("t"),
    "expire_tag_now": lambda cache: cache.expire_tag_now("t"),
    "clear": lambda cache: cache.clear(),
}
WRITES = INVALIDATIONS | {
    "set": lambda cache: cache.set("a", "newer"),
    "delete": lambda cache: cache.delete("a"),
    "expire_now": lambda cache: cache.expire_now("a"),
}


@pytest.fixture(params=["l2", "l3", "l2+l3"])
async def open_shared(request, servers):
    """Open caches with the same tiers, without records of each other: the tiers alone decide what is superseded."""
    namespace = "test-" + secrets.token_hex(4)
    async with asyncio.timeout(60), AsyncExitStack() as stack:

        async def opened(**options):
            l2 = RedisTier(servers.redis_url, deadline=5) if "l2" in request.param else None
            l3 = PostgresTier(servers.database_url, deadline=5) if "l3" in request.param else None
            options = {"namespace": namespace, "deadline": 5, "backplane": None} | options
            return await stack.enter_async_context(TieredCache(LRUCache(100), l2, l3, **options))

        yield opened


async def test_a_load_that_nothing_supersedes_is_stored_in_every_tier(open_shared):
    a, b = await open_shared(), await open_shared()
    pending = await PendingLoad.begin(a, ["a"], ["t"])
    assert await pending.store({"a": "value", "late": "other"}, 60) == {"a", "late"}
    assert [a.get_local(key) for key in ("a", "late")] == ["value", "other"]
    assert await b.get_many(["a", "late"]) == {"a": "value", "late": "other"}
    await b.invalidate_tag("t")
    assert await (await open_shared()).get_many(["a", "late"]) == {}


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_of_another_cache_supersedes_it(open_shared, write):
    a, b = await open_shared(), await open_shared()
    pending = await PendingLoad.begin(a, ["a"], ["t"])
    await WRITES[write](b)
    assert await pending.store({"a": "old"}, 60) == frozenset()
    assert a.get_local("a") is None
    assert await (await open_shared()).get("a") == ("newer" if write == "set" else None)


@pytest.mark.parametrize("write", INVALIDATIONS)
async def test_an_invalidation_supersedes_a_key_that_was_not_known_before_the_load(open_shared, write):
    a, b = await open_shared(), await open_shared()
    pending = await PendingLoad.begin(a, ["a"], ["t"])
    await INVALIDATIONS[write](b)
    assert await pending.store({"late": "old"}, 60) == frozenset()
    assert a.get_local("late") is None
    assert await (await open_shared()).get("late") is None


async def test_of_two_loads_the_first_is_stored(open_shared):
    a, b = await open_shared(), await open_shared()
    slow = await PendingLoad.begin(a, ["a"], ["t"])
    fast = await PendingLoad.begin(b, ["a"], ["t"])
    assert await fast.store({"a": "fast"}, 60) == {"a"}
    assert await slow.store({"a": "slow", "b": "slow"}, 60) == {"b"}
    assert await a.get("a") == "fast"


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("tiers", [0, 1])
async def test_a_write_of_the_same_cache_supersedes_it_without_the_help_of_a_tier(open_cache, l2, write, tiers):
    cache = await open_cache(*[l2][:tiers])
    for keys in (["a"], ["other"]):
        pending = await PendingLoad.begin(cache, keys, ["t"])
        await WRITES[write](cache)
        assert await pending.store({"a": "old"}, 60) == frozenset()
        assert cache.get_local("a") == ("newer" if write == "set" else None)


async def test_a_write_in_flight_supersedes_it(open_cache, l2, settle):
    cache = await open_cache(l2)
    pending = await PendingLoad.begin(cache, ["a"], ["t"])
    l2.gate.clear()
    writing = asyncio.create_task(cache.invalidate_tag("t"))
    await settle()
    assert await pending.store({"a": "old"}, 60) == frozenset()
    l2.gate.set()
    await writing
    assert await cache.get("a") is None


async def test_l1_does_not_keep_what_was_superseded_while_it_was_stored(open_cache, l2, settle):
    cache = await open_cache(l2)
    pending = await PendingLoad.begin(cache, ["a"], ["t"])
    l2.gate.clear()
    storing = asyncio.create_task(pending.store({"a": "old"}, 60))
    await settle()
    assert cache.get_local("a") is None
    writing = asyncio.create_task(cache.delete("a"))
    await settle()
    l2.gate.set()
    await storing
    await writing
    assert await cache.get("a") is None


async def test_it_supersedes_a_load_in_flight(open_cache, settle):
    cache = await open_cache()
    go_on = asyncio.Event()

    async def load(key):
        await go_on.wait()
        return "older"

    loading = asyncio.create_task(cache.get_or_load("a", load))
    await settle()
    pending = await PendingLoad.begin(cache, ["a"], [])
    assert await pending.store({"a": "value"}, 60) == {"a"}
    go_on.set()
    assert await loading == "older"
    assert cache.get_local("a") == "value"


async def test_l1_keeps_it_if_no_tier_answers():
    async with TieredCache(LRUCache(10), RedisTier("redis://127.0.0.1:1", deadline=0.05), namespace="down") as cache:
        pending = await PendingLoad.begin(cache, ["a"], ["t"])
        assert await pending.store({"a": "value"}, 60) == {"a"}
        assert await cache.get("a") == "value"


async def test_a_load_longer_than_removals_are_remembered_is_not_stored(open_shared):
    cache = await open_shared()
    pending = await PendingLoad.begin(cache, ["a"], ["t"])
    pending._expires_at -= 61
    assert await pending.store({"a": "value"}, 60) == frozenset()
    assert await cache.get("a") is None


async def test_a_cache_that_is_not_open_refuses_it(open_cache):
    with pytest.raises(CacheError, match="not open"):
        await PendingLoad.begin(TieredCache(LRUCache(10), namespace="closed"), ["a"], [])
    cache = await open_cache()
    pending = await PendingLoad.begin(cache, ["a"], [])
    await cache.close()
    with pytest.raises(CacheError, match="not open"):
        await pending.store({"a": "value"}, 60)
    with pytest.raises(TypeError, match="ttl"):
        await (await PendingLoad.begin(await open_cache(), ["a"], [])).store({"a": "value"}, "60")


async def test_tags_that_were_not_known_before_the_load_remove_the_value_later(open_shared):
    a, b = await open_shared(), await open_shared()
    pending = await PendingLoad.begin(a, ["a", "b"], ["t"])
    values = {"a": 1, "b": 2}
    assert await pending.store(values, {"a": 60, "b": None}, late_tags={"a": ["late"]}) == {"a", "b"}
    assert await b.get_many(["a", "b"]) == values
    await b.invalidate_tag("late")
    assert await (await open_shared()).get_many(["a", "b"]) == {"b": 2}


@pytest.mark.parametrize("tag", ["late", "any other"])
async def test_an_invalidation_meanwhile_supersedes_a_value_whose_tags_were_not_known(open_shared, tag):
    a, b = await open_shared(), await open_shared()
    pending = await PendingLoad.begin(a, ["a", "b"], ["t"])
    await b.invalidate_tag(tag)
    # Which tags the value would have was not known, so any of them may be the one.
    assert await pending.store({"a": 1, "b": 2}, 60, late_tags={"a": ["late"]}) == {"b"}
    assert await (await open_shared()).get_many(["a", "b"]) == {"b": 2}


async def test_each_value_has_its_own_ttl(clock):
    async with TieredCache(LRUCache(10, clock=clock), namespace="test", clock=clock) as cache:
        pending = await PendingLoad.begin(cache, ["a"], [])
        await pending.store({"a": 1, "b": 2}, {"a": 10, "b": 20})
        clock.advance(15)
        assert await cache.get_many(["a", "b"]) == {"b": 2}


@pytest.mark.parametrize("write", WRITES)
async def test_a_load_knows_of_the_writes_of_its_process(write):
    async with TieredCache(LRUCache(10), namespace="test") as cache:
        pending = await PendingLoad.begin(cache, ["a"], ["t"])
        assert pending.is_current("a")
        await WRITES[write](cache)
        assert not pending.is_current("a")
