"""A load that takes longer than the tiers remember writes: its value is returned, and kept nowhere."""

import asyncio
import secrets
import time

import pytest
from grouped import grouped
from loaders import Loader

from acgsperf import LRUCache
from acgsperf.cache import TieredCache, staleness
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

RETENTION_S = 0.3


@pytest.fixture(params=["l2", "l3", "l2+l3"])
def tiers(request):
    return request.param


@pytest.fixture
async def open_on(servers, monkeypatch):
    """Open caches of one namespace, whose tiers remember writes only for a moment."""
    monkeypatch.setattr(staleness, "RETENTION_S", RETENTION_S)
    namespace = f"test-{secrets.token_hex(4)}"
    caches = []

    async def opened(tiers, **options):
        l2 = RedisTier(servers.redis_url, deadline=5) if "l2" in tiers else None
        l3 = PostgresTier(servers.database_url, deadline=5) if "l3" in tiers else None
        cache = TieredCache(LRUCache(100), l2, l3, namespace=namespace, deadline=10, **grouped(options))
        caches.append(await cache.open())
        return cache

    yield opened
    for cache in caches:
        await cache.clear()
        await cache.close()


async def in_tiers(cache, key):
    """Return the values in the tiers once what is queued has been stored."""
    async with asyncio.timeout(10):
        while any(queue._stores for queue in cache._lower_tiers.queues):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    found = [await tier.get(key) for tier in cache._lower_tiers.tiers]
    return [None if entry is None else entry.value for entry in found]


async def outlive(began):
    await asyncio.sleep(began + RETENTION_S * 1.1 - time.monotonic())


async def load_many(cache, loader):
    async def load(keys):
        return {key: await loader(key) for key in keys}

    return (await cache.get_or_load_many(["key", "other"], load))["key"]


CALLS = {
    "one": (lambda cache, loader: cache.get_or_load("key", loader), {}),
    "many": (load_many, {}),
    "locked": (lambda cache, loader: cache.get_or_load("key", loader), {"lock_ttl": 30}),
}


@pytest.mark.parametrize("call", CALLS)
async def test_the_value_of_a_load_that_takes_too_long_is_returned_and_not_kept(open_on, tiers, call):
    load, options = CALLS[call]
    # Only Redis has locks.
    options = options if "l2" in tiers else {}
    cache = await open_on(tiers, **options)
    loader = Loader(gate_open=False)
    task = asyncio.create_task(load(cache, loader))
    await loader.began.wait()
    await outlive(time.monotonic())
    loader.gate.set()
    assert await task == "loaded"
    assert cache.get_local("key") is None
    assert set(await in_tiers(cache, "key")) == {None}
    # The next load is kept.
    assert await cache.get_or_load("key", Loader("again")) == "again"
    assert cache.get_local("key") == "again"
    assert set(await in_tiers(cache, "key")) == {"again"}


async def test_a_deletion_that_the_tiers_have_forgotten_is_not_undone(open_on, tiers):
    cache, other = await open_on(tiers, backplane=None), await open_on(tiers, backplane=None)
    loader = Loader("old", gate_open=False)
    task = asyncio.create_task(cache.get_or_load("key", loader))
    await loader.began.wait()
    began = time.monotonic()
    assert (await other.delete("key")).everywhere
    await outlive(began)
    loader.gate.set()
    assert await task == "old"
    assert (cache.get_local("key"), await cache.get("key"), await other.get("key")) == (None, None, None)


async def test_a_refresh_that_takes_too_long_leaves_what_was_there(open_on, tiers):
    cache = await open_on(tiers, stale_ttl=60)
    await cache.set("key", "stale")
    await cache.expire_now("key")
    loader = Loader("too late", gate_open=False)
    assert await cache.get_or_load("key", loader) == "stale"
    await loader.began.wait()
    await outlive(time.monotonic())
    loader.gate.set()
    async with asyncio.timeout(10):
        while cache.stats().loading:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert cache.get_local("key") is None
    assert set(await in_tiers(cache, "key")) == {"stale"}
    assert await cache.get_or_load("key", Loader("in time")) == "stale"


async def test_a_load_that_is_fast_enough_is_kept(open_on, tiers):
    cache = await open_on(tiers)
    assert await cache.get_or_load("key", Loader()) == "loaded"
    assert cache.get_local("key") == "loaded"
    assert set(await in_tiers(cache, "key")) == {"loaded"}


async def test_tiers_remember_writes_for_twice_the_hard_timeout(open_on):
    cache = await open_on("l2+l3", hard_timeout=45)
    assert [tier.retention for tier in cache._lower_tiers.tiers] == [90, 90]


async def test_without_a_server_any_load_is_kept(open_cache, l2, monkeypatch, settle):
    monkeypatch.setattr(staleness, "RETENTION_S", 0.001)
    for cache in (await open_cache(), await open_cache(l2)):
        loader = Loader(gate_open=False)
        task = asyncio.create_task(cache.get_or_load("key", loader))
        await loader.began.wait()
        await asyncio.sleep(0.005)
        loader.gate.set()
        assert await task == "loaded"
        assert cache.get_local("key") == "loaded"
    await settle()
    assert l2["key"].value == "loaded"
