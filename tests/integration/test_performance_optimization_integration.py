"""The whole former system: service, Redis and PostgreSQL, with monitoring, optimization, and a Redis that stops."""

import asyncio
import logging
import secrets

import asyncpg
import pytest
import redis.asyncio

from acgsperf.compat.performance_integration_service import (
    INTEGRATION_PERFORMANCE_TARGETS,
    PerformanceIntegrationService,
    get_performance_service,
)
from acgsperf.compat.ultra_fast_cache import create_ultra_fast_cache
from acgsperf.compat.ultra_fast_connection_pool import create_ultra_fast_pool
from acgsperf.fingerprint import request_key
from acgsperf.workbench.embedded import embedded_servers

pytestmark = pytest.mark.usefixtures("fresh_process")


class Accounts:
    """A handler that queries PostgreSQL after a delay."""

    def __init__(self):
        self.service = None
        self.delay_s = 0.0

    async def __call__(self, request):
        await asyncio.sleep(self.delay_s)
        pool = await self.service.pool_manager.get_pool("default")
        connection = await pool.acquire_connection()
        try:
            return {"balance": await connection.fetchval("SELECT $1::int * 100", request["account"])}
        finally:
            await pool.release_connection(connection)


@pytest.fixture
def accounts():
    return Accounts()


@pytest.fixture
def tag():
    """A unique name for the requests of this test and for its sessions in PostgreSQL."""
    return f"integration-{secrets.token_hex(6)}"


@pytest.fixture
async def service(accounts, servers, tag):
    service = accounts.service = PerformanceIntegrationService(accounts)
    await service.initialize()
    separator = "&" if "?" in servers.database_url else "?"
    dsn = f"{servers.database_url}{separator}application_name={tag}"
    await create_ultra_fast_pool("default", dsn, min_size=2, max_size=4)
    yield service
    await service.cache.clear_all()
    await service.close()


@pytest.fixture
async def observer(servers):
    """A PostgreSQL session that does not belong to a pool."""
    connection = await asyncpg.connect(servers.database_url)
    yield connection
    await connection.close()


async def sessions(observer, tag):
    return await observer.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", tag)


async def until(condition):
    """Poll until the condition is true."""
    async with asyncio.timeout(10):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


async def test_a_request_uses_every_part(service, servers, tag):
    request = {"id": tag, "account": 7, "database_operation": True}
    first, second = [await service.process_request(request) for _ in range(2)]
    assert first["balance"] == second["balance"] == 700
    assert (first["performance"]["cached"], second["performance"]["cached"]) == (False, True)
    async with redis.asyncio.from_url(servers.redis_url, decode_responses=True) as client:
        assert await client.get(request_key(request)) == '{"balance": 700}'
    pool = await service.pool_manager.get_pool("default")
    # The service held one connection, and the handler acquired another.
    assert (pool.metrics.total_acquisitions, pool.metrics.peak_connections) == (2, 2)
    summary = await service.get_performance_summary()
    assert summary["cache"]["cache_statistics"]["l1_hits"] == 1
    assert summary["constitutional_validator"]["total_validations"] == 3
    assert summary["connection_pools"]["pools"]["default"]["healthy"] is True
    assert summary["targets_met"]["success_rate"] is True


async def test_concurrent_requests_share_four_connections(service, observer, tag):
    requests = [{"id": tag, "account": i} for i in range(100)]
    responses = await asyncio.gather(*map(service.process_request, requests))
    assert [response["balance"] for response in responses] == [100 * i for i in range(100)]
    pool = await service.pool_manager.get_pool("default")
    assert (pool.metrics.total_acquisitions, pool.metrics.current_connections) == (100, 0)
    assert pool.metrics.get_success_rate() == 1.0
    assert await sessions(observer, tag) == 4


async def test_optimization_fills_the_pool_and_promotes_frequent_entries(service, servers, observer, tag):
    pool = await service.pool_manager.get_pool("default")
    assert await sessions(observer, tag) == 2
    pool.min_size = 4
    for _ in range(3):
        assert await service.cache.get(tag) is None
    other = await create_ultra_fast_cache(servers.redis_url)
    await other.set(tag, "from another process")
    result = await service._run_optimization()
    assert {"promoted 1 frequent entries to L1", "pool 'default': opened 2 connections"} <= set(
        result["optimizations_applied"]
    )
    assert await sessions(observer, tag) == 4
    assert tag in service.cache.l1_cache
    await other.clear_all()
    await other.close()


async def test_monitoring_records_metrics_and_optimization_runs(monkeypatch, tag):
    for name in ["monitoring_interval_s", "optimization_interval_s"]:
        monkeypatch.setitem(INTEGRATION_PERFORMANCE_TARGETS, name, 0.001)
    service = await get_performance_service()
    await service.process_request({"id": tag})

    async def watched():
        return len(service.performance_history) >= 3 and service.metrics.optimization_runs >= 3

    await until(watched)
    await service.cache.clear_all()
    await service.close()
    history = service.performance_history
    assert {"integration", "constitutional_validator", "cache", "connection_pools"} <= set(history[-1])
    assert history[-1]["integration"]["total_requests"] == 1
    assert history[-1]["integration"]["optimization_runs"] > 0
    assert history == sorted(history, key=lambda record: record["timestamp"])
    recorded = len(history)
    await asyncio.sleep(0.01)
    assert len(history) == recorded


async def test_a_handler_that_becomes_slow_is_a_regression(service, accounts, tag, caplog):
    caplog.set_level(logging.WARNING)

    async def interval(number):
        requests = [{"id": tag, "account": i, "interval": number} for i in range(3)]
        await asyncio.gather(*map(service.process_request, requests))
        await service._check_performance_regression(await service._collect_performance_metrics())

    # Slow enough that a busy machine does not add another half to it.
    accounts.delay_s = 0.02
    for number in range(10):
        await interval(number)
    steady = [text for text in caplog.messages if text.startswith("Performance regression detected")]
    accounts.delay_s = 0.2
    await interval(10)
    warnings = [text for text in caplog.messages if text.startswith("Performance regression detected")]
    assert len(warnings) == len(steady) + 1
    averages = [record["integration"]["avg_response_time_ms"] for record in service.performance_history]
    assert averages[-1] > 1.5 * max(averages[:-1])


async def test_the_service_continues_when_redis_stops(accounts, servers, monkeypatch, tag):
    monkeypatch.delenv("REDIS_URL")
    with embedded_servers(postgres=False) as private:
        monkeypatch.setenv("REDIS_URL", private.redis_url)
        service = accounts.service = PerformanceIntegrationService(accounts)
        await service.initialize()
        await create_ultra_fast_pool("default", servers.database_url, min_size=1, max_size=4)
        await service.process_request({"id": tag, "account": 1})
        assert (await service.cache.health_check())["l2_healthy"] is True
        async with redis.asyncio.from_url(private.redis_url) as client:
            await client.shutdown(nosave=True)
        # Entries in L1 are hits, and other requests are misses. Both are as fast as a refused connection.
        kept = await service.process_request({"id": tag, "account": 1})
        others = [await service.process_request({"id": tag, "account": i}) for i in range(2, 12)]
        again = [await service.process_request({"id": tag, "account": i}) for i in range(2, 12)]
    assert (kept["balance"], kept["performance"]["cached"]) == (100, True)
    assert [response["balance"] for response in others] == [100 * i for i in range(2, 12)]
    assert not any(response["performance"]["cached"] for response in others)
    assert all(response["performance"]["cached"] for response in again)
    assert service.metrics.get_success_rate() == 1.0
    health = await service.cache.health_check()
    assert (health["healthy"], health["l2_healthy"]) == (True, False)
    await service._run_optimization()
    assert "cache" in await service._collect_performance_metrics()
    await service.close()


async def test_close_leaves_no_connection_open(service, observer, tag):
    pools = dict(service.pool_manager.pools)
    assert await sessions(observer, tag) == 2
    await service.process_request({"id": tag, "account": 1, "database_operation": True})
    await service.cache.clear_all()
    await service.close()

    async def left():
        return await sessions(observer, tag) == 0

    await until(left)
    assert service.pool_manager.pools == {}
    assert not any(pool.is_initialized for pool in pools.values())
    assert service.cache.redis_client is None
