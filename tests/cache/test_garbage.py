"""Calls leave no reference cycles: only the garbage collector could free them, and its pauses delay all callers."""

import asyncio
import gc
import secrets
from contextlib import suppress
from functools import partial

import pytest
from grouped import grouped

from acgsperf import LRUCache, PostgresTier, RedisTier, TieredCache

CALLS = 50


async def value_of(key):
    return f"value of {key}"


async def failing(key):
    raise ValueError(key)


async def never(key):
    await asyncio.Event().wait()


async def load(cache, key):
    await cache.get_or_load(key, value_of)


async def failed_load(cache, key):
    with pytest.raises(ValueError, match=key):
        await cache.get_or_load(key, failing)


async def shared_failed_load(cache, key):
    await asyncio.gather(*(cache.get_or_load(key, failing) for _ in range(3)), return_exceptions=True)


async def cancelled_load(cache, key):
    call = asyncio.create_task(cache.get_or_load(key, never))
    await asyncio.sleep(0)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


async def read_and_write(cache, key):
    await cache.set(key, 1, tags=["tag"])
    await cache.get(key)
    await cache.get(f"no {key}")
    await cache.get_many([key, f"no {key}"])
    await cache.delete(key)
    await cache.invalidate_tag("tag")


@pytest.mark.parametrize("options", [{}, {"lock_ttl": 5}, {"stale_ttl": 60}], ids=["default", "locks", "stale"])
@pytest.mark.parametrize(
    "function", [load, failed_load, shared_failed_load, cancelled_load, read_and_write, TieredCache.cached]
)
async def test_a_call_leaves_no_reference_cycles(servers, function, options):
    namespace = f"test-{secrets.token_hex(4)}"
    tiers = RedisTier(servers.redis_url), PostgresTier(servers.database_url)
    async with TieredCache(LRUCache(1_000), *tiers, namespace=namespace, **grouped(options)) as cache:
        call = cache.cached(ttl=60)(value_of) if function is TieredCache.cached else partial(function, cache)
        await call("first")
        await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()
        try:
            for number in range(CALLS):
                await call(f"key {number}")
            await asyncio.sleep(0.05)
            # Background work may leave a few objects; a cycle in each call leaves several for each.
            assert gc.collect() < CALLS
        finally:
            gc.enable()
        await cache.clear()
