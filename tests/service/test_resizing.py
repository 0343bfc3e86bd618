"""The size of L1: what the summary says about it, and how `optimize` changes it."""

import random

import msgspec
import pytest

from acgsperf import AdaptiveCache, PerformanceService, RedisTier, Settings, TieredCache, weigh_bytes
from acgsperf.service.tuning import Outcome


async def handler(request):
    return {"number": request["number"]}


async def requested(service, numbers):
    for number in numbers:
        await service.process_request({"number": number})


def loop(length, requests):
    return (number % length for number in range(requests))


def loop_and_new_numbers(length, requests):
    """Each 10th number is new: estimates need some hundred misses, whatever the hash seed of the process samples."""
    return (-number if number % 10 == 0 else number % length for number in range(requests))


def service_of(size, **bounds):
    return PerformanceService(Settings(l1_cache_size=size, **bounds), handler=handler)


def resized(service):
    return [(action.before, action.after) for action in service.optimize() if action.name == "entries of L1"]


async def test_the_summary_says_what_other_sizes_would_hit():
    async with service_of(100) as service:
        await requested(service, loop(150, 3_000))
        summary = service.get_performance_summary()
        sizing = summary.cache.sizing
        assert [found.maxsize for found in sizing.sizes] == [50, 100, 200, 400]
        assert sizing.sizes[1].lru == pytest.approx(0, abs=0.03)
        assert sizing.sizes[2].lru == pytest.approx(0.95, abs=0.03)
        entry_bytes = weigh_bytes("0" * 32, {"number": 7})
        assert sizing.entry_bytes == pytest.approx(entry_bytes, rel=0.2)
        assert sizing.point_bytes == round(sizing.point_entries * sizing.entry_bytes)
        assert msgspec.json.encode(summary.as_dict()["cache"]["l1"]["sizing"])


async def test_l1_grows_while_a_larger_one_hits_more_and_not_beyond_the_bound():
    async with service_of(100, l1_cache_size_max=350) as service:
        random_order = random.Random(1)
        await requested(service, (random_order.randrange(1_000) for _ in range(4_000)))
        (action,) = [action for action in service.optimize() if action.name == "entries of L1"]
        assert (action.before, action.after, action.outcome) == (100, 200, Outcome.KEPT)
        assert action.merit_before == pytest.approx(0.1, abs=0.03)
        assert action.merit_after == pytest.approx(0.2, abs=0.03)
        await requested(service, (random_order.randrange(1_000) for _ in range(4_000)))
        assert resized(service) == [(200, 350)]
        assert service.cache.l1_maxsize == 350
        await requested(service, (random_order.randrange(1_000) for _ in range(8_000)))
        assert resized(service) == []


async def test_l1_shrinks_while_half_of_it_hits_as_much():
    async with service_of(1_000, l1_cache_size_min=100) as service:
        await requested(service, loop_and_new_numbers(300, 6_000))
        assert resized(service) == [(1_000, 500)]
        assert service.cache.stats().l1.maxsize == 500
        await requested(service, loop(300, 6_000))
        # It has missed nothing since then, so that nothing is known of other sizes.
        assert resized(service) == []


async def test_l1_does_not_shrink_if_half_of_it_would_hit_less():
    async with service_of(400, l1_cache_size_min=100) as service:
        await requested(service, loop(300, 6_000))
        assert service.cache.stats().sizing is not None
        assert resized(service) == []


async def test_l1_does_not_shrink_beyond_the_bound():
    async with service_of(1_000, l1_cache_size_min=700) as service:
        await requested(service, loop_and_new_numbers(300, 6_000))
        assert resized(service) == [(1_000, 700)]


async def test_without_bounds_the_size_stays():
    async with service_of(100) as service:
        random_order = random.Random(1)
        await requested(service, (random_order.randrange(1_000) for _ in range(8_000)))
        assert service.cache.stats().sizing is not None
        assert resized(service) == []
        assert service.cache.l1_maxsize == 100


async def test_few_requests_decide_nothing():
    async with service_of(500, l1_cache_size_max=1_000) as service:
        await requested(service, (number % 1_400 for number in range(1_900)))
        assert resized(service) == []


async def test_only_a_cache_with_estimates_is_resized():
    cache = TieredCache(AdaptiveCache(100, policy="lru", sizing=True), namespace="test")
    async with (
        cache,
        PerformanceService(Settings(l1_cache_size=100, l1_cache_size_max=200), handler=handler, cache=cache) as service,
    ):
        await requested(service, loop(1_000, 5_000))
        assert resized(service) == []


async def test_the_values_that_prediction_holds_count(servers):
    cache = TieredCache(
        AdaptiveCache(200),
        RedisTier(servers.redis_url, deadline=5),
        namespace="test-sizing",
        prediction=True,
        deadline=10,
    )
    async with cache:
        try:
            await cache.set_many({f"key {number}": number for number in range(300)})
            for number in loop(300, 1_500):
                await cache.get(f"key {number}")
            assert cache._prefetch.reserved > 0
            assert cache.l1_maxsize == 200
            cache.resize_l1(400)
            assert cache.l1_maxsize == 400
            assert cache.stats().l1.maxsize == 400 - cache._prefetch.reserved
            with pytest.raises(ValueError, match="maxsize must be between 1 and"):
                cache.resize_l1(0)
            # L1 keeps one entry, however many values prediction holds.
            cache.resize_l1(2)
            assert cache.l1_maxsize == 2
            assert cache.stats().l1.maxsize == 1
        finally:
            await cache.clear()
    assert cache.l1_maxsize == cache.stats().l1.maxsize == 2
