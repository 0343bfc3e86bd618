"""Hits of the tiered cache, compared with what a user would call instead.

Run `pytest bench/test_cache.py` with `acgsperf[bench]`. For L1, one call is 1,000 awaited hits in one turn of the event
loop, compared with their lower bound and with the memory backends of other libraries. For L2 and L3, one call is
20,000 hits of different keys by 50 callers through `TieredCache.get`, compared with the bare clients. L1 is too small
to answer, and nothing is promoted to it. The servers run on one CPU and the callers on another.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any

import aiocache
import asyncpg
import cashews
import pytest
import redis.asyncio
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf import LRUCache
from acgsperf.cache import TieredCache
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.workbench.embedded import Servers, embedded_servers

KEYS = [f"key {i}" for i in range(1_000)]

_Calls = Callable[[], Coroutine[Any, Any, None]]


async def lru_cache() -> _Calls:
    """The lower bound of a hit: await an empty coroutine, and do the compiled lookup."""
    l1: LRUCache[str, int] = LRUCache(10_000, ttl=3600)
    l1.update((key, 1) for key in KEYS)
    look_up = l1.get

    async def empty() -> None:
        pass

    async def calls() -> None:
        for key in KEYS:
            await empty()
            look_up(key)

    return calls


async def tiered_cache() -> _Calls:
    cache = await TieredCache[int](LRUCache(10_000), namespace="bench").open()
    await cache.set_many(dict.fromkeys(KEYS, 1))
    return _hits(cache.get)


async def cashews_memory() -> _Calls:
    cache = cashews.Cache()
    cache.setup("mem://", size=10_000, check_interval=3600)
    for key in KEYS:
        await cache.set(key, 1, expire=3600)
    return _hits(cache.get)


async def aiocache_memory() -> _Calls:
    cache = aiocache.SimpleMemoryCache()
    for key in KEYS:
        await cache.set(key, 1, ttl=3600)
    return _hits(cache.get)


def _hits(get: Callable[[str], Awaitable[object]]) -> _Calls:
    async def calls() -> None:
        for key in KEYS:
            await get(key)

    return calls


CONTESTANTS = {
    "empty async def + LRUCache.get": lru_cache,
    "acgsperf TieredCache.get": tiered_cache,
    "cashews mem://": cashews_memory,
    "aiocache SimpleMemoryCache": aiocache_memory,
}


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_l1_hit(benchmark: BenchmarkFixture, contestant: str) -> None:
    benchmark.group = "await cache.get(key), L1 hit"
    benchmark.extra_info["operations"] = len(KEYS)
    with asyncio.Runner() as runner:
        calls = runner.run(CONTESTANTS[contestant]())
        loop = runner.get_loop()
        benchmark(lambda: loop.run_until_complete(calls()))


CALLERS = 50
MANY_KEYS = [f"key {i}" for i in range(20_000)]
VALUE = {"id": 7, "name": "Ada", "tags": ["a", "b", "c"], "text": "x" * 100}
_NEVER = 1_000_000

_Get = Callable[[str], Awaitable[Any]]


@contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """Run this thread, and the processes that it starts meanwhile, on one CPU, if there are several.

    Otherwise the kernel often puts client and server on the same one, and the figures vary by a third.
    """
    if not hasattr(os, "sched_setaffinity") or len(allowed := os.sched_getaffinity(0)) < 2:
        yield
        return
    os.sched_setaffinity(0, {sorted(allowed)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        with on_cpu(0):
            found = stack.enter_context(embedded_servers())
        yield found


async def tiered_cache_l2(servers: Servers, stack: AsyncExitStack) -> _Get:
    return await _filled(stack, RedisTier(str(servers.redis_url), deadline=5), None)


async def redis_py(servers: Servers, stack: AsyncExitStack) -> _Get:
    client = redis.asyncio.Redis.from_url(str(servers.redis_url), protocol=2)
    stack.push_async_callback(client.aclose)
    text = json.dumps(VALUE)
    await client.mset({f"plain {key}": text for key in MANY_KEYS})

    async def get(key: str) -> object:
        return json.loads(await client.get(f"plain {key}"))

    return get


async def tiered_cache_l3(servers: Servers, stack: AsyncExitStack) -> _Get:
    return await _filled(stack, None, PostgresTier(str(servers.database_url), deadline=5))


async def asyncpg_pool(servers: Servers, stack: AsyncExitStack) -> _Get:
    pool = await stack.enter_async_context(asyncpg.create_pool(servers.database_url))
    await pool.execute("CREATE TABLE IF NOT EXISTS bench_many (key text PRIMARY KEY, value text)")
    await pool.execute(
        "INSERT INTO bench_many SELECT unnest($1::text[]), $2 ON CONFLICT DO NOTHING", MANY_KEYS, json.dumps(VALUE)
    )
    await pool.execute("ANALYZE bench_many")

    async def get(key: str) -> object:
        return json.loads(await pool.fetchval("SELECT value FROM bench_many WHERE key = $1", key))

    return get


async def _filled(stack: AsyncExitStack, l2: RedisTier | None, l3: PostgresTier | None) -> _Get:
    cache = TieredCache[Any](
        LRUCache(10), l2, l3, namespace="bench", deadline=5, promotion_threshold=_NEVER, demotion=False
    )
    await stack.enter_async_context(cache)
    for at in range(0, len(MANY_KEYS), len(KEYS)):
        written = await cache.set_many(dict.fromkeys(MANY_KEYS[at : at + len(KEYS)], VALUE))
        assert all(one.everywhere for one in written.values())
    return cache.get


LOWER_TIERS = {
    "L2": {"acgsperf TieredCache.get": tiered_cache_l2, "redis-py get + json.loads": redis_py},
    "L3": {"acgsperf TieredCache.get": tiered_cache_l3, "asyncpg fetchval + json.loads": asyncpg_pool},
}


@pytest.mark.parametrize(
    ("tier", "contestant"), [(tier, name) for tier, names in LOWER_TIERS.items() for name in names]
)
def test_lower_tier_hit(benchmark: BenchmarkFixture, servers: Servers, tier: str, contestant: str) -> None:
    benchmark.group = f"await cache.get(key), {tier} hit, {CALLERS} callers, {len(MANY_KEYS):,} keys"
    benchmark.extra_info["operations"] = len(MANY_KEYS)
    with on_cpu(1), asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def ready() -> _Get:
            return await LOWER_TIERS[tier][contestant](servers, stack)

        get = runner.run(ready())

        async def caller(number: int) -> int:
            hits = 0
            for key in MANY_KEYS[number::CALLERS]:
                hits += await get(key) is not None
            return hits

        async def all_callers() -> None:
            # A miss is answered faster than a hit.
            assert sum(await asyncio.gather(*map(caller, range(CALLERS)))) == len(MANY_KEYS)

        async def check() -> None:
            assert await get(MANY_KEYS[0]) == VALUE

        runner.run(check())
        benchmark.pedantic(lambda: runner.run(all_callers()), rounds=10, warmup_rounds=1)
        runner.run(stack.aclose())
