"""A source for the exporters, with a real cache, pools and validator."""

import asyncio
import random
import secrets
from dataclasses import dataclass

import pytest

from acgsperf import (
    AdaptiveCache,
    ComplianceValidator,
    LatencyHistogram,
    LRUCache,
    PoolManager,
    PostgresTier,
    RedisTier,
    TieredCache,
    weigh_bytes,
)
from acgsperf.asgi import ConcurrencyLimit
from acgsperf.backplane import beside
from acgsperf.balance import Balancer
from acgsperf.tiers.records import Record, RecordKind


@dataclass
class Counts:
    failed: int = 0
    violations: int = 0
    missed: int = 0


class Source:
    """A `MetricsSource`."""

    def __init__(self, cache, pools):
        self.cache = cache
        self.pools = pools
        self.validator = ComplianceValidator()
        self.recorded = LatencyHistogram()
        self.counted = Counts()
        self.namespace = cache.namespace

    def latency(self):
        copy = LatencyHistogram()
        copy.merge(self.recorded)
        return copy

    def counts(self):
        return self.counted


async def published_by_another(cache, l2, namespace):
    """Publish a record as another process, and wait until the cache has read this record and that of its own write."""
    backplane = beside(l2)
    await backplane.open(namespace, IgnoringListener(), b"somebody")
    assert await backplane.publish(Record(RecordKind.KEYS, ((b"other", b"12345678"),)))
    await backplane.close()
    while (stats := cache.stats().backplane).sent + stats.applied < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


class IgnoringListener:
    """A listener that ignores all records."""

    def apply(self, record):
        pass

    def extend(self, until):
        pass

    def missed(self):
        pass


@pytest.fixture
async def source_without_backplane():
    async with PoolManager() as pools, TieredCache(LRUCache(10), namespace="alone") as cache:
        yield Source(cache, pools)


@pytest.fixture
def experienced(experienced_l1):
    return TieredCache(experienced_l1(20), namespace="experienced")


@pytest.fixture
def experienced_l1():
    """Makes an L1 that has seen enough requests to estimate the hit rates of policies and sizes."""

    def make(size):
        l1 = AdaptiveCache(size, maxweight=1_000_000, weigher=weigh_bytes, sizing=True)
        order = random.Random(1)
        for _ in range(20 * size):
            key = f"{order.randrange(3 * size)}"
            if l1.get(key) is None:
                l1.set(key, 1)
        return l1

    return make


@pytest.fixture
async def limit():
    """A limit that has measured the usual latency."""
    now = iter(range(1_000))

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ignore(message):
        pass

    limit = ConcurrencyLimit(application, clock=lambda: next(now))
    for _ in range(20):
        await limit({"type": "http", "path": "/", "method": "GET", "headers": []}, None, ignore)
    return limit


@pytest.fixture
def balancer():
    """A balancer whose endpoints have answered."""
    balancer = Balancer(["http://one:1", "http://two:2"])
    for _ in range(20):
        with balancer.pick():
            pass
    return balancer


@pytest.fixture
async def source(servers):
    """A service in which every kind of metric has a value."""
    tiers = RedisTier(servers.redis_url, deadline=5), PostgresTier(servers.database_url, deadline=5)
    namespace = secrets.token_hex(4)
    l1 = AdaptiveCache(20, maxweight=100_000, weigher=weigh_bytes)
    async with PoolManager() as pools, TieredCache(l1, *tiers, namespace=namespace, prediction=True) as cache:
        source = Source(cache, pools)
        pool = await pools.create("main", servers.database_url, min_size=2, max_size=3, replicas=[servers.database_url])
        async with pool.acquire(), asyncio.timeout(10):
            await cache.set("a", 1)
            await published_by_another(cache, tiers[0], namespace)
            await cache.get("a")
            await cache.get("b")
            source.validator.validate_many(["cdd01ef066bc6cf2", "0" * 16, "nonsense"])
            source.recorded.record_many([500_000, 1_000_000, 3_000_000, 60_000_000_000])
            source.counted = Counts(failed=2, violations=3, missed=1)
            source.namespace = namespace
            yield source
        await cache.clear()
