"""An L1 hit of the tiered cache, compared with its lower bound and with the memory backends of other libraries.

Run `pytest bench/test_cache.py` with `acgsperf[bench]`. One call is 1,000 awaited hits in one turn of the event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import aiocache
import cashews
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf import LRUCache
from acgsperf.cache import TieredCache

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
