"""Hits of the Redis and PostgreSQL tiers, compared with the bare clients and with other libraries.

Run `pytest bench/test_tiers.py` with `acgsperf[bench]`. One call is 50 callers that each read their own key 20 times,
or one caller that reads one key 1,000 times.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiocache
import asyncpg
import cashews
import pytest
import redis.asyncio
from aiocache.serializers import JsonSerializer
from cashews.backends.redis import Redis
from cashews.picklers import PicklerType
from cashews.wrapper.backend_settings import register_backend
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf.tiers import Entry
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.server import ServerTier
from acgsperf.workbench.embedded import Servers, embedded_servers

KEYS = [f"key {i}" for i in range(50)]
VALUE = {"id": 7, "name": "Ada", "tags": ["a", "b", "c"], "text": "x" * 100}
CALLS = 1_000

# The other libraries call deprecated functions and leave connections open, which we cannot fix.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Get = Callable[[str], Awaitable[Any]]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with embedded_servers() as found:
        yield found


async def redis_tier(servers: Servers, stack: AsyncExitStack) -> Get:
    return await _filled(RedisTier(str(servers.redis_url), deadline=5), stack)


async def redis_py(servers: Servers, stack: AsyncExitStack) -> Get:
    client = redis.asyncio.Redis.from_url(str(servers.redis_url), protocol=2)
    stack.push_async_callback(client.aclose)
    for key in KEYS:
        await client.set(key, json.dumps(VALUE))

    async def get(key: str) -> object:
        return json.loads(await client.get(key))

    return get


async def cashews_redis(servers: Servers, stack: AsyncExitStack) -> Get:
    # cashews supports unix sockets, but not the `unix://` scheme of redis-py.
    register_backend("unix", Redis, pass_uri=True, pickler=PicklerType.DEFAULT)
    cache = cashews.Cache()
    cache.setup(str(servers.redis_url))
    stack.push_async_callback(cache.close)
    for key in KEYS:
        await cache.set(f"cashews {key}", VALUE, expire=3600)
    return lambda key: cache.get(f"cashews {key}")


async def aiocache_redis(servers: Servers, stack: AsyncExitStack) -> Get:
    client = redis.asyncio.Redis.from_url(str(servers.redis_url), protocol=2)
    stack.push_async_callback(client.aclose)
    cache = aiocache.RedisCache(serializer=JsonSerializer(), namespace="aiocache")
    # aiocache connects by host and port only, but the server may use a unix socket.
    cache.client = client
    for key in KEYS:
        await cache.set(key, VALUE)
    return cache.get  # type: ignore[no-any-return]


async def postgres_tier(servers: Servers, stack: AsyncExitStack) -> Get:
    return await _filled(PostgresTier(str(servers.database_url), deadline=5), stack)


async def asyncpg_pool(servers: Servers, stack: AsyncExitStack) -> Get:
    pool = await stack.enter_async_context(asyncpg.create_pool(servers.database_url))
    await pool.execute("CREATE TABLE IF NOT EXISTS bench_plain (key text PRIMARY KEY, value text)")
    rows = [(key, json.dumps(VALUE)) for key in KEYS]
    await pool.executemany("INSERT INTO bench_plain VALUES ($1, $2) ON CONFLICT DO NOTHING", rows)

    async def get(key: str) -> object:
        return json.loads(await pool.fetchval("SELECT value FROM bench_plain WHERE key = $1", key))

    return get


async def _filled(tier: ServerTier, stack: AsyncExitStack) -> Get:
    await tier.open("bench")
    stack.push_async_callback(tier.close)
    now = time.time()
    await tier.set_many({key: Entry(VALUE, now, now + 3600, now + 3600) for key in KEYS})
    return tier.get


L2 = {
    "RedisTier": redis_tier,
    "redis-py get + json": redis_py,
    "cashews": cashews_redis,
    "aiocache": aiocache_redis,
}
L3 = {"PostgresTier": postgres_tier, "asyncpg pool fetchval + json": asyncpg_pool}
CASES = [(f"{tier} hit", name, make) for tier, makers in (("L2", L2), ("L3", L3)) for name, make in makers.items()]


@pytest.mark.parametrize("callers", [1, 50])
@pytest.mark.parametrize(("group", "name", "make"), CASES, ids=[name for _, name, _ in CASES])
def test_hits(
    benchmark: BenchmarkFixture,
    servers: Servers,
    group: str,
    name: str,
    make: Callable[[Servers, AsyncExitStack], Awaitable[Get]],
    callers: int,
) -> None:
    benchmark.group = (
        f"{group}, {callers} callers, {CALLS} calls" if callers > 1 else f"{group}, 1 caller, {CALLS} calls"
    )
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def ready() -> Get:
            return await make(servers, stack)

        get = runner.run(ready())

        async def caller(key: str) -> None:
            for _ in range(CALLS // callers):
                await get(key)

        async def all_callers() -> None:
            await asyncio.gather(*(caller(key) for key in KEYS[:callers]))

        async def check() -> None:
            assert await get(KEYS[0]) is not None

        runner.run(check())
        benchmark.pedantic(lambda: runner.run(all_callers()), rounds=20, warmup_rounds=2)
        runner.run(stack.aclose())
