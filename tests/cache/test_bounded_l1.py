"""L1 may be an `AdaptiveCache`, and its bound may be a weight."""

import pytest
from grouped import grouped

from acgsperf import AdaptiveCache, LRUCache, TieredCache


@pytest.fixture(params=[LRUCache, AdaptiveCache])
def kind(request):
    return request.param


@pytest.fixture
def open_with(clock):
    def opened(l1, l2=None, **options):
        return TieredCache(l1, l2, namespace="test", clock=clock, **grouped(options))

    return opened


def length(key, value):
    return len(value)


async def test_an_adaptive_l1_answers_and_evicts(open_with, clock, l2):
    async with open_with(AdaptiveCache(10, clock=clock), l2) as cache:
        for number in range(30):
            await cache.set(f"key {number}", number)
        assert [await cache.get(f"key {number}") for number in range(30)] == list(range(30))
        assert cache.stats().l1.size == 10
        assert cache.stats().l1.policy.setting == "frequency"


async def test_an_entry_that_expires_in_an_adaptive_l1_stays_servable(open_with, clock):
    async with open_with(AdaptiveCache(10, clock=clock), ttl=10, stale_ttl=60, soft_timeout=None) as cache:
        await cache.set("key", "value")
        clock.advance(11)

        async def failing(key):
            raise LookupError

        assert await cache.get_or_load("key", failing) == "value"


async def test_a_value_that_is_too_heavy_is_in_the_lower_tiers_only(open_with, clock, l2, kind):
    l1 = kind(maxweight=100, weigher=length, clock=clock)
    async with open_with(l1, l2) as cache:
        await cache.set("key", "x" * 25)
        assert cache.get_local("key") == "x" * 25
        await cache.set("key", "x" * 26)
        assert cache.get_local("key") is None
        assert await cache.get("key") == "x" * 26
        assert l1.stats().rejections >= 1
        assert len(l1) == 0


async def test_stale_values_are_bounded_by_the_same_weight(open_with, clock, kind):
    l1 = kind(maxweight=100, weigher=length, clock=clock)
    async with open_with(l1, ttl=10, stale_ttl=600) as cache:
        for number in range(20):
            await cache.set(f"key {number}", "x" * 20)
            clock.advance(11)
            assert await cache.get(f"key {number}") is None
        assert cache.stats().stale_entries == 5


async def test_a_cache_says_how_many_entries_l1_has_without_a_limit_that_it_does_not_have(open_with, clock, kind):
    async with open_with(kind(maxweight=100, weigher=length, clock=clock)) as cache:
        await cache.set("key", "value")
        assert "L1 with 1 entries" in repr(cache)
