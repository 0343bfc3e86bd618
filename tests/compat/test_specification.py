"""The snippets of the former system's specification, one test per section. Only imports and addresses are added."""

import asyncio
import logging

import pytest

from acgsperf.compat import PerformanceBenchmark
from acgsperf.compat.performance_integration_service import PerformanceIntegrationService, get_performance_service
from acgsperf.compat.ultra_fast_cache import create_ultra_fast_cache
from acgsperf.compat.ultra_fast_connection_pool import create_ultra_fast_pool, get_pool_manager
from acgsperf.compat.validation import CONSTITUTIONAL_HASH, UltraFastConstitutionalValidator

logger = logging.getLogger("the service of a reader")


@pytest.fixture
def validator():
    return UltraFastConstitutionalValidator()


def test_architecture_of_the_validator(validator):
    for hash_value, good in [(CONSTITUTIONAL_HASH, True), ("0000000000000000", False), ("no hash", False)]:
        assert (hash_value in validator._known_good_hashes) is good
        assert (validator._compiled_hash_pattern.match(hash_value) is not None) is (hash_value != "no hash")
        assert validator.validate_hash(hash_value) is good


async def test_architecture_of_the_connection_pool(pool):
    assert await pool._pre_warm_connections() == 0
    connection = await asyncio.wait_for(
        pool.pool.acquire(),
        timeout=1.0,
    )
    assert await connection.fetchval("SELECT 6 * 7") == 42
    await pool.pool.release(connection)


async def test_service_configuration(fresh_process, key):
    request_data = {"id": key, "type": "api_call"}

    performance_service = PerformanceIntegrationService()
    await performance_service.initialize()

    response = await performance_service.process_request(request_data)

    assert (response["request_id"], response["performance"]["constitutional_validated"]) == (key, True)
    await performance_service.cache.clear_all()
    await performance_service.close()


async def test_basic_usage(fresh_process, capsys):
    service = await get_performance_service()

    request_data = {"id": "example", "type": "api_call"}
    response = await service.process_request(request_data)

    summary = await service.get_performance_summary()
    print(f"P99 Latency: {summary['integration_metrics']['avg_response_time_ms']:.2f}ms")

    assert (response["processed"], response["request_id"]) == (True, "example")
    assert capsys.readouterr().out == f"P99 Latency: {response['performance']['response_time_ms']:.2f}ms\n"
    await service.cache.clear_all()
    await service.close()


async def test_advanced_configuration(fresh_process, servers):
    validator = UltraFastConstitutionalValidator()
    validator._fast_path_enabled = True
    validator._batch_processing_enabled = True

    pool = await create_ultra_fast_pool(
        name="api_pool",
        dsn=servers.database_url,
        min_size=20,
        max_size=100,
    )

    cache = await create_ultra_fast_cache(
        redis_url=servers.redis_url,
        l1_max_size=100000,
    )

    assert (validator._fast_path_enabled, validator._batch_processing_enabled) == (True, True)
    assert pool.get_performance_metrics()["pool_status"]["pool_size"] == 20
    assert (cache.redis_client is not None, cache.l1_max_size) == (True, 100000)
    await cache.clear_all()
    await cache.close()
    await (await get_pool_manager()).close_all()


async def test_real_time_monitoring(service, validator, cache, pool, caplog):
    service.metrics.add_request(0.006)

    summary = await service.get_performance_summary()

    targets_met = summary["targets_met"]
    if not targets_met["response_time"]:
        logger.warning("Response time target not met")

    validator_metrics = validator.get_detailed_metrics()
    cache_metrics = cache.get_performance_metrics()
    pool_metrics = pool.get_performance_metrics()

    assert [record.getMessage() for record in caplog.records] == ["Response time target not met"]
    for metrics in [validator_metrics, cache_metrics, pool_metrics]:
        assert metrics["constitutional_hash"] == CONSTITUTIONAL_HASH
        assert {"performance_summary", "optimization_status"} <= set(metrics)


async def test_manual_optimization(service, validator, cache, pool, capsys):
    optimization_result = await service._run_optimization()
    print(f"Optimizations applied: {optimization_result}")

    validator_opt = validator.optimize_performance()
    cache_opt = await cache.optimize_performance()
    pool_opt = await pool.optimize_performance()

    assert capsys.readouterr().out == f"Optimizations applied: {optimization_result}\n"
    assert service.metrics.optimization_runs == 1
    for result in [validator_opt, cache_opt, pool_opt]:
        assert {"optimizations_applied", "recommendations", "current_metrics", "constitutional_hash"} <= set(result)


async def test_benchmarking(validator):
    benchmark = PerformanceBenchmark()
    for _ in range(1000):
        await benchmark.measure_async(
            validator.async_validate_hash(CONSTITUTIONAL_HASH),
        )
    stats = benchmark.get_statistics()

    assert stats["count"] == validator._validation_count == 1000


async def test_debug_commands(service, validator, cache, capsys):
    health = await service.get_performance_summary()
    print(f"System healthy: {health['targets_met']}")

    is_compliant = validator.validate_hash(CONSTITUTIONAL_HASH)
    print(f"Constitutional compliance: {is_compliant}")

    cache_health = await cache.health_check()
    print(f"Cache healthy: {cache_health['healthy']}")

    assert capsys.readouterr().out.splitlines() == [
        "System healthy: {'response_time': True, 'success_rate': True, 'cache_hit_rate': False}",
        "Constitutional compliance: True",
        "Cache healthy: True",
    ]
