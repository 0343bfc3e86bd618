"""A service's parts, the real ones, in the shape that the exporters read."""

import asyncio
import secrets
from dataclasses import dataclass

import pytest

from acgsperf import ComplianceValidator, LatencyHistogram, LRUCache, PoolManager, PostgresTier, RedisTier, TieredCache


@dataclass
class Counts:
    failed: int = 0
    violations: int = 0
    missed: int = 0


class Source:
    """As `MetricsSource` has it."""

    def __init__(self, cache, pools):
        self.cache = cache
        self.pools = pools
        self.validator = ComplianceValidator()
        self.recorded = LatencyHistogram()
        self.counted = Counts()

    def latency(self):
        copy = LatencyHistogram()
        copy.merge(self.recorded)
        return copy

    def counts(self):
        return self.counted


@pytest.fixture
async def source(servers):
    """A service that has done something of everything."""
    tiers = RedisTier(servers.redis_url, deadline=5), PostgresTier(servers.database_url, deadline=5)
    async with PoolManager() as pools, TieredCache(LRUCache(10), *tiers, namespace=secrets.token_hex(4)) as cache:
        source = Source(cache, pools)
        pool = await pools.create("main", servers.database_url, min_size=2, max_size=3, replicas=[servers.database_url])
        async with pool.acquire(), asyncio.timeout(10):
            await cache.set("a", 1)
            await cache.get("a")
            await cache.get("b")
            source.validator.validate_many(["cdd01ef066bc6cf2", "0" * 16, "nonsense"])
            source.recorded.record_many([500_000, 1_000_000, 3_000_000, 60_000_000_000])
            source.counted = Counts(failed=2, violations=3, missed=1)
            yield source
        await cache.clear()
