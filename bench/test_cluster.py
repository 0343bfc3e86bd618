"""Hits of L2 in a Redis Cluster, compared with redis-py's client for clusters and with a single server.

Run `pytest bench/test_cluster.py` with `acgsperf[bench]`. One call is 50 callers that together read 20,000 keys once,
through `TieredCache.get` with an L1 too small for them. All servers are at TCP ports of this machine.
"""

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf import LRUCache, TieredCache
from acgsperf.testing.private_cluster import PrivateCluster, free_ports
from acgsperf.testing.server_processes import PrivateRedis
from acgsperf.tiers.redis import RedisTier

KEYS = [f"key {i}" for i in range(20_000)]
VALUE = {"id": 7, "name": "Ada", "tags": ["a", "b", "c"], "text": "x" * 100}
CALLERS = 50
AT_ONCE = 1_000

Get = Callable[[str], Awaitable[Any]]


@dataclass
class Addresses:
    """The URL of a single server, and that of a cluster of three primaries with replicas."""

    single: str
    cluster: str


@pytest.fixture(scope="module")
def addresses() -> Iterator[Addresses]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = PrivateCluster(folder)
        stack.callback(cluster.stop)
        cluster.start()
        (folder / "single").mkdir()
        (port,) = free_ports(1)
        single = PrivateRedis(folder / "single", ("--port", str(port), "--bind", "127.0.0.1"))
        stack.callback(single.stop)
        single.start()
        single.wait(lambda: None)
        cluster.wait(lambda: None)
        yield Addresses(f"redis://127.0.0.1:{port}", cluster.url)


async def our_cluster(addresses: Addresses, stack: AsyncExitStack) -> Get:
    return await _filled(addresses.cluster, stack)


async def our_single_server(addresses: Addresses, stack: AsyncExitStack) -> Get:
    return await _filled(addresses.single, stack)


async def redis_py(addresses: Addresses, stack: AsyncExitStack) -> Get:
    node = addresses.cluster.replace("redis+cluster://", "redis://").partition(",")[0]
    client = redis.asyncio.RedisCluster.from_url(node)
    stack.push_async_callback(client.aclose)
    for key in KEYS:
        await client.set(key, json.dumps(VALUE))

    async def get(key: str) -> object:
        return json.loads(await client.get(key))

    return get


async def _filled(url: str, stack: AsyncExitStack) -> Get:
    tier = RedisTier(url, deadline=5)
    cache: TieredCache[Any] = TieredCache(LRUCache(10), tier, namespace="bench", backplane=None, deadline=30)
    await stack.enter_async_context(cache)
    for at in range(0, len(KEYS), AT_ONCE):
        written = await cache.set_many(dict.fromkeys(KEYS[at : at + AT_ONCE], VALUE))
        assert all(one.l2 for one in written.values())
    return cache.get


@pytest.mark.parametrize("make", [our_cluster, our_single_server, redis_py])
def test_hits(
    benchmark: BenchmarkFixture, addresses: Addresses, make: Callable[[Addresses, AsyncExitStack], Awaitable[Get]]
) -> None:
    benchmark.group = f"L2 hit in a cluster, {CALLERS} callers, {len(KEYS):,} keys"
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def ready() -> Get:
            return await make(addresses, stack)

        get = runner.run(ready())

        async def all_callers() -> int:
            waiting, hits = iter(KEYS), 0

            async def caller() -> None:
                nonlocal hits
                for key in waiting:
                    found = await get(key)
                    hits += found is not None

            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            return hits

        assert runner.run(all_callers()) == len(KEYS)
        benchmark.pedantic(lambda: runner.run(all_callers()), rounds=5, warmup_rounds=1)
        runner.run(stack.aclose())
