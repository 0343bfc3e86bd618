"""The performance targets of the former system, for each part under its former name, on real servers.

The limits come from the specification. Other work on the machine makes a measurement longer, never shorter, so the best
of a few rounds counts.
"""

import itertools
import secrets

import pytest
import redis.asyncio

from acgsperf.compat import PerformanceBenchmark
from acgsperf.compat.performance_integration_service import INTEGRATION_PERFORMANCE_TARGETS
from acgsperf.compat.ultra_fast_cache import CACHE_PERFORMANCE_TARGETS, create_ultra_fast_cache
from acgsperf.compat.ultra_fast_connection_pool import POOL_PERFORMANCE_TARGETS, UltraFastConnectionPool
from acgsperf.compat.validation import CONSTITUTIONAL_HASH, PERFORMANCE_TARGETS, UltraFastConstitutionalValidator

pytestmark = pytest.mark.alone

ROUNDS = 3
CALLS = 1_000
# An access is a round trip plus decoding. If the round trip alone takes as long as the target, this is the limit.
L2_PER_ROUND_TRIP = 2.0
# A miss reads and writes Redis, and uses a connection of the pool, which is reset after that.
MISS_PER_ROUND_TRIP = 6.0


@pytest.fixture
def validator():
    return UltraFastConstitutionalValidator()


@pytest.fixture
async def pool(servers):
    pool = UltraFastConnectionPool("api_pool", servers.database_url, min_size=2, max_size=4)
    await pool.initialize()
    yield pool
    await pool.close()


@pytest.fixture
async def caches(servers):
    """Two caches: one stores values, and the other finds them in Redis."""
    caches = [await create_ultra_fast_cache(servers.redis_url) for _ in range(2)]
    yield caches
    for cache in caches:
        await cache.clear_all()
        await cache.close()


def best(statistics):
    """Return the lowest value of each figure."""
    return {name: min(figures[name] for figures in statistics) for name in statistics[0]}


async def best_of_rounds(measure):
    statistics = []
    for _ in range(ROUNDS):
        benchmark = PerformanceBenchmark()
        await measure(benchmark)
        statistics.append(benchmark.get_statistics())
    return best(statistics)


async def test_a_validation_meets_its_target(validator):
    async def validate(benchmark):
        for _ in range(CALLS):
            assert benchmark.measure(validator.validate_hash, CONSTITUTIONAL_HASH)

    assert (await best_of_rounds(validate))["p99_ms"] < PERFORMANCE_TARGETS["validation_latency_ms"]


async def test_an_async_validation_meets_its_target(validator):
    async def validate(benchmark):
        for _ in range(CALLS):
            assert await benchmark.measure_async(validator.async_validate_hash(CONSTITUTIONAL_HASH))

    assert (await best_of_rounds(validate))["p99_ms"] < PERFORMANCE_TARGETS["validation_latency_ms"]


async def test_a_refused_validation_meets_its_target(validator):
    numbers = itertools.count()

    async def validate(benchmark):
        for _ in range(CALLS):
            assert not benchmark.measure(validator.validate_hash, f"{next(numbers):016x}")

    assert (await best_of_rounds(validate))["p99_ms"] < PERFORMANCE_TARGETS["validation_latency_ms"]


async def test_each_validation_of_a_batch_meets_its_target(validator):
    async def validate(benchmark):
        for _ in range(50):
            assert all(await benchmark.measure_async(validator.batch_validate_hashes([CONSTITUTIONAL_HASH] * 100)))

    assert (await best_of_rounds(validate))["p95_ms"] / 100 < PERFORMANCE_TARGETS["validation_latency_ms"]
    assert validator._batch_validations == 50 * ROUNDS


async def test_validations_are_hits_on_the_fast_path(validator):
    for i in range(CALLS):
        validator.validate_hash(CONSTITUTIONAL_HASH if i % 20 else "0000000000000000")
    summary = validator.get_detailed_metrics()["performance_summary"]
    assert summary["cache_hit_rate"] > PERFORMANCE_TARGETS["min_cache_hit_rate"]
    assert summary["fast_path_rate"] > 0.9
    assert summary["meets_validation_target"]


async def test_an_l1_access_meets_its_target(caches):
    cache = caches[0]
    keys = [f"l1-{secrets.token_hex(6)}" for _ in range(100)]
    for key in keys:
        await cache.set(key, {"allow": True}, data_type="policy")

    async def access(benchmark):
        for key in itertools.islice(itertools.cycle(keys), CALLS):
            assert await benchmark.measure_async(cache.get(key)) == {"allow": True}

    assert (await best_of_rounds(access))["p95_ms"] < CACHE_PERFORMANCE_TARGETS["l1_access_time_ms"]
    assert cache.metrics.l1_hits == ROUNDS * CALLS
    assert cache.get_performance_metrics()["performance_summary"]["meets_access_time_target"]


async def test_an_l2_access_meets_its_target(caches, servers):
    storing, cache = caches
    accesses, round_trips = [], []
    async with redis.asyncio.from_url(servers.redis_url) as bare:
        for _ in range(ROUNDS):
            keys = [f"l2-{secrets.token_hex(6)}" for _ in range(200)]
            access, round_trip = PerformanceBenchmark(), PerformanceBenchmark()
            for key in keys:
                await storing.set(key, {"allow": True}, data_type="policy")
            # In turns, so that other work on the machine slows both.
            for key in keys:
                assert await round_trip.measure_async(bare.get(key)) == b'{"allow": true}'
                assert await access.measure_async(cache.get(key)) == {"allow": True}
            accesses.append(access.get_statistics())
            round_trips.append(round_trip.get_statistics())
    assert cache.metrics.l2_hits == ROUNDS * 200
    limit_ms = max(CACHE_PERFORMANCE_TARGETS["l2_access_time_ms"], L2_PER_ROUND_TRIP * best(round_trips)["median_ms"])
    assert best(accesses)["median_ms"] < limit_ms


async def test_popular_keys_meet_the_hit_rate_target(caches):
    storing, cache = caches
    keys = [f"hits-{secrets.token_hex(6)}" for _ in range(20)]
    for key in keys:
        await storing.set(key, 1)
    for key in keys * 50:
        assert await cache.get(key) == 1
    assert await cache.get(keys[0] + "-missing") is None
    assert cache.metrics.get_overall_hit_rate() > CACHE_PERFORMANCE_TARGETS["cache_hit_rate_target"]
    # The third access promotes.
    assert (cache.metrics.promotions, cache.metrics.l2_hits, cache.metrics.l1_hits) == (20, 60, 940)


async def test_an_acquisition_meets_its_target(pool):
    async def acquire(benchmark):
        for _ in range(300):
            connection = await benchmark.measure_async(pool.acquire_connection())
            await pool.release_connection(connection)

    assert (await best_of_rounds(acquire))["p95_ms"] < POOL_PERFORMANCE_TARGETS["connection_acquisition_ms"]
    assert pool.get_performance_metrics()["performance_summary"]["success_rate"] == 1.0
    assert pool.get_performance_metrics()["performance_summary"]["meets_acquisition_target"]


async def test_a_request_meets_the_targets(service):
    async def process(benchmark):
        # One request in 40 is new.
        new = [f"performance-{secrets.token_hex(6)}" for _ in range(25)]
        for i in range(CALLS):
            request = {"id": new[i % 25], "type": "api_call"}
            response = await benchmark.measure_async(service.process_request(request))
            assert response["performance"]["constitutional_validated"]

    figures = await best_of_rounds(process)
    for name, target in [("p99_ms", "p99_latency_ms"), ("p95_ms", "p95_latency_ms"), ("median_ms", "p50_latency_ms")]:
        assert figures[name] < INTEGRATION_PERFORMANCE_TARGETS[target], name
    summary = await service.get_performance_summary()
    assert summary["integration_metrics"]["constitutional_validations"] == ROUNDS * CALLS
    assert summary["targets_met"] == {"response_time": True, "success_rate": True, "cache_hit_rate": True}


async def test_a_request_that_misses_meets_the_latency_targets(service, servers):
    pool = await service.pool_manager.create_pool("default", servers.database_url, 2, 4)
    misses, round_trips = [], []
    async with redis.asyncio.from_url(servers.redis_url) as bare:
        for _ in range(ROUNDS):
            miss, round_trip = PerformanceBenchmark(), PerformanceBenchmark()
            for _ in range(200):
                request = {"id": f"performance-{secrets.token_hex(6)}", "database_operation": True}
                # In turns, so that other work on the machine slows both.
                assert await round_trip.measure_async(bare.get(request["id"])) is None
                response = await miss.measure_async(service.process_request(request))
                assert not response["performance"]["cached"]
            misses.append(miss.get_statistics())
            round_trips.append(round_trip.get_statistics())
    figures, slowdown = best(misses), MISS_PER_ROUND_TRIP * best(round_trips)["median_ms"]
    # All requests are misses. The targets expect at most 1 miss in 20 requests.
    assert figures["p95_ms"] < max(INTEGRATION_PERFORMANCE_TARGETS["p99_latency_ms"], slowdown)
    assert figures["median_ms"] < max(INTEGRATION_PERFORMANCE_TARGETS["p50_latency_ms"], slowdown)
    assert service.metrics.db_connections_acquired == pool.metrics.successful_acquisitions == ROUNDS * 200
