"""The pool and its manager under their former names, on a real PostgreSQL and with mocks of asyncpg."""

import asyncio
import inspect
import time
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import asyncpg
import pytest

from acgsperf.compat import _asyncpg_pool, ultra_fast_connection_pool
from acgsperf.compat.ultra_fast_connection_pool import (
    CONSTITUTIONAL_HASH,
    POOL_PERFORMANCE_TARGETS,
    ConnectionMetrics,
    UltraFastConnectionPool,
    UltraFastConnectionPoolManager,
    create_ultra_fast_pool,
    get_pool_manager,
)

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


@pytest.fixture
async def manager():
    manager = UltraFastConnectionPoolManager()
    yield manager
    await manager.close_all()


def mocked(pool=None):
    """An initialized pool with a mock instead of an asyncpg pool."""
    mocked = UltraFastConnectionPool("orders", "postgresql://unused", 2, 3)
    mocked.pool = pool or AsyncMock()
    mocked.is_initialized = True
    return mocked


def test_the_constants_have_the_former_values():
    assert POOL_PERFORMANCE_TARGETS == {
        "connection_acquisition_ms": 1.0,
        "pool_utilization_target": 0.8,
        "health_check_interval_s": 30,
        "connection_lifetime_s": 3600,
        "min_pool_size": 20,
        "max_pool_size": 100,
    }
    assert CONSTITUTIONAL_HASH == "cdd01ef066bc6cf2"
    assert ultra_fast_connection_pool.asyncpg is asyncpg


def test_the_average_is_total_time_by_total_acquisitions():
    metrics = ConnectionMetrics()
    metrics.total_acquisitions, metrics.total_acquisition_time = 4, 0.02
    assert metrics.get_avg_acquisition_time_ms() == pytest.approx(5.0)


async def test_a_failed_acquisition_counts_with_its_time():
    pool = mocked()
    pool.acquisition_timeout_s = 0.02
    pool.pool.acquire = lambda: asyncio.sleep(10)
    with pytest.raises(RuntimeError, match="timeout"):
        await pool.acquire_connection()
    assert 20 <= pool.metrics.get_avg_acquisition_time_ms() < 1_000


async def test_a_closed_pool_is_unhealthy():
    pool = mocked()
    await pool.close()
    assert not pool.is_healthy
    never = UltraFastConnectionPool("orders", NOWHERE)
    await never.close()
    assert not never.is_healthy


async def test_monitoring_is_enabled_until_the_manager_is_closed(servers):
    manager = UltraFastConnectionPoolManager()
    assert manager._monitoring_enabled
    await manager.create_pool("one", servers.database_url, 1, 1)
    assert not manager._monitoring_task.done()
    await manager.close_all()
    assert not manager._monitoring_enabled
    await manager.create_pool("one", servers.database_url, 1, 1)
    assert manager._monitoring_enabled
    await manager.close_all()
    disabled = UltraFastConnectionPoolManager()
    disabled._monitoring_enabled = False
    await disabled.create_pool("one", servers.database_url, 1, 1)
    assert disabled._monitoring_task is None
    await disabled.close_all()


def test_the_signatures_are_the_former_ones():
    def defaults(function):
        return {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }

    assert list(inspect.signature(UltraFastConnectionPool).parameters)[:2] == ["pool_name", "dsn"]
    assert defaults(UltraFastConnectionPool) == {"min_size": 20, "max_size": 100, "constitutional_validator": None}
    assert defaults(create_ultra_fast_pool) == {"min_size": 20, "max_size": 100}
    assert list(inspect.signature(create_ultra_fast_pool).parameters) == ["name", "dsn", "min_size", "max_size"]
    assert not inspect.signature(UltraFastConnectionPoolManager).parameters
    for name in [
        "initialize",
        "acquire_connection",
        "release_connection",
        "health_check",
        "optimize_performance",
        "close",
    ]:
        assert inspect.iscoroutinefunction(getattr(UltraFastConnectionPool, name))


def test_a_new_pool_has_the_former_attributes():
    pool = UltraFastConnectionPool("orders", "postgresql://there", 2, 3)
    assert (pool.pool_name, pool.dsn, pool.min_size, pool.max_size) == ("orders", "postgresql://there", 2, 3)
    assert (pool.pool, pool.is_initialized, pool.is_healthy, pool.fast_path_enabled) == (None, False, True, True)
    assert len(pool.connection_cache) == 0
    assert pool.acquisition_timeout_s == 5
    assert pool.constitutional_hash == CONSTITUTIONAL_HASH
    assert pool.constitutional_validator.validate_hash(CONSTITUTIONAL_HASH)
    assert vars(pool.metrics) == dict.fromkeys(vars(ConnectionMetrics()), 0)


def test_metrics_compute_averages_and_rates():
    metrics = ConnectionMetrics()
    assert (metrics.get_avg_acquisition_time_ms(), metrics.get_success_rate()) == (0.0, 1.0)
    metrics.total_acquisitions, metrics.successful_acquisitions, metrics.failed_acquisitions = 10, 8, 2
    metrics.total_acquisition_time = 0.016
    assert metrics.get_avg_acquisition_time_ms() == pytest.approx(1.6)
    assert metrics.get_success_rate() == 0.8


async def test_it_works_on_a_real_server(pool):
    assert (pool.is_initialized, pool.is_healthy) == (True, True)
    assert pool.get_performance_metrics()["pool_status"]["pool_size"] == 2
    for _ in range(5):
        connection = await pool.acquire_connection()
        assert await connection.fetchval("SELECT 6 * 7") == 42
        await pool.release_connection(connection)
    several = [await pool.acquire_connection() for _ in range(3)]
    assert (pool.metrics.current_connections, pool.metrics.peak_connections) == (3, 3)
    for connection in several:
        await pool.release_connection(connection)
    assert pool.metrics.current_connections == 0
    assert pool.metrics.total_acquisitions == pool.metrics.successful_acquisitions == 8
    assert 0 < pool.metrics.get_avg_acquisition_time_ms() < 1_000


async def test_the_pool_changes_no_session_setting(pool, dsn):
    plain = await asyncpg.connect(dsn)
    pooled = await pool.acquire_connection()
    settings = "SELECT name, setting FROM pg_settings WHERE name <> 'application_name' ORDER BY name"
    assert await pooled.fetch(settings) == await plain.fetch(settings)
    assert await pooled.fetchval("SHOW synchronous_commit") == "on"
    await pool.release_connection(pooled)
    await plain.close()


async def test_an_acquisition_that_times_out_fails_and_is_counted(pool):
    several = [await pool.acquire_connection() for _ in range(3)]
    pool.acquisition_timeout_s = 0.02
    with pytest.raises(RuntimeError, match=r"^Connection acquisition timeout for pool 'orders'$"):
        await pool.acquire_connection()
    assert (pool.metrics.total_acquisitions, pool.metrics.failed_acquisitions) == (4, 1)
    assert pool.metrics.get_success_rate() == 0.75
    assert pool.is_healthy
    for connection in several:
        await pool.release_connection(connection)
    await pool.release_connection(await pool.acquire_connection())


async def test_an_acquisition_may_wait_longer_than_a_millisecond(pool):
    several = [await pool.acquire_connection() for _ in range(3)]
    waiting = asyncio.create_task(pool.acquire_connection())
    await asyncio.wait([waiting], timeout=0.02)
    assert not waiting.done()
    await pool.release_connection(several.pop())
    several.append(await waiting)
    percentiles = pool.get_performance_metrics()["acquisition_percentiles"]
    assert percentiles["count"] == 4
    assert percentiles["p99_ms"] >= 15
    for connection in several:
        await pool.release_connection(connection)


async def test_a_cancelled_acquisition_loses_no_connection(pool):
    several = [await pool.acquire_connection() for _ in range(3)]
    waiting = [asyncio.create_task(pool.acquire_connection()) for _ in range(5)]
    await asyncio.sleep(0)
    releases = [pool.release_connection(connection) for connection in several]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*releases)
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*waiting, return_exceptions=True))
    several = [await pool.acquire_connection() for _ in range(3)]
    for connection in several:
        await pool.release_connection(connection)


async def test_a_pool_that_is_not_initialised_refuses_callers():
    pool = UltraFastConnectionPool("orders", NOWHERE, 1, 1)
    with pytest.raises(RuntimeError, match="not initialized"):
        await pool.acquire_connection()
    health = await pool.health_check()
    assert (health["healthy"], health["error"]) == (False, "Pool not initialized")
    assert pool.get_performance_metrics()["pool_status"]["pool_size"] == 0
    with pytest.raises(OSError, match=r"."):
        await pool.initialize()
    assert (pool.is_healthy, pool.is_initialized) == (False, False)
    await pool.release_connection(None)
    await pool.close()


async def test_an_unhealthy_pool_refuses_callers_until_a_check_succeeds(pool):
    pool.is_healthy = False
    with pytest.raises(RuntimeError, match="is unhealthy"):
        await pool.acquire_connection()
    assert pool.metrics.total_acquisitions == 0
    assert (await pool.health_check())["healthy"] is True
    await pool.release_connection(await pool.acquire_connection())


async def test_the_health_has_every_key(pool):
    health = await pool.health_check()
    assert {
        "healthy",
        "pool_name",
        "pool_size",
        "pool_min_size",
        "pool_max_size",
        "health_check_time_ms",
        "metrics",
        "constitutional_hash",
        "timestamp",
    } <= set(health)
    assert (health["healthy"], health["pool_name"]) == (True, "orders")
    assert (health["pool_size"], health["pool_min_size"], health["pool_max_size"]) == (2, 2, 3)
    assert 0 < health["health_check_time_ms"] < 5_000
    assert abs(health["timestamp"] - time.time()) < 60
    assert "error" not in health


async def test_a_pool_with_all_connections_in_use_stays_healthy(pool):
    several = [await pool.acquire_connection() for _ in range(3)]
    assert (await asyncio.wait_for(pool.health_check(), 2))["healthy"] is True
    for connection in several:
        await pool.release_connection(connection)


async def test_a_broken_connection_is_replaced(pool, dsn):
    victim = await pool.acquire_connection()
    admin = await asyncpg.connect(dsn)
    closed = asyncio.Event()
    victim.add_termination_listener(lambda connection: closed.set())
    await admin.execute("SELECT pg_terminate_backend($1)", victim.get_server_pid())
    await asyncio.wait_for(closed.wait(), 10)
    await pool.release_connection(victim)
    assert pool.metrics.current_connections == 0
    for _ in range(3):
        connection = await pool.acquire_connection()
        assert await connection.fetchval("SELECT 1") == 1
        await pool.release_connection(connection)
    await admin.close()


async def test_releasing_a_foreign_connection_is_an_error(pool, dsn):
    stranger = await asyncpg.connect(dsn)
    with pytest.raises(asyncpg.InterfaceError):
        await pool.release_connection(stranger)
    await stranger.close()


async def test_the_metrics_have_every_key(pool):
    report = pool.get_performance_metrics()
    assert report["performance_summary"] == {
        "avg_acquisition_time_ms": 0.0,
        "success_rate": 1.0,
        "total_acquisitions": 0,
        "current_connections": 0,
        "peak_connections": 0,
        "meets_acquisition_target": True,
    }
    assert report["pool_status"] == {
        "pool_size": 2,
        "min_size": 2,
        "max_size": 3,
        "is_healthy": True,
        "is_initialized": True,
    }
    assert report["optimization_status"] == {"fast_path_enabled": True, "pre_warmed": True}
    assert report["constitutional_hash"] == CONSTITUTIONAL_HASH


async def test_optimizing_opens_missing_connections(pool):
    for _ in range(2):
        await pool.pool.expire_connections()
        connection = await pool.acquire_connection()
        await pool.release_connection(connection)
    done = await pool.optimize_performance()
    assert set(done) == {"optimizations_applied", "recommendations", "current_metrics", "constitutional_hash"}
    assert done["current_metrics"]["pool_status"]["pool_size"] >= 2
    pool.metrics.peak_connections = 3
    pool.metrics.total_acquisition_time = 60.0
    pool.is_healthy = False
    assert len((await pool.optimize_performance())["recommendations"]) == 3


async def test_initializing_twice_opens_one_pool(pool):
    first = pool.pool
    await pool.initialize()
    assert pool.pool is first


@pytest.mark.parametrize("kind", [Mock, AsyncMock])
async def test_initialize_fails_if_the_validator_refuses(kind):
    validator = kind()
    validator.validate_hash.return_value = False
    pool = UltraFastConnectionPool("orders", NOWHERE, constitutional_validator=validator)
    assert pool.constitutional_validator is validator
    with pytest.raises(RuntimeError, match=r"^Constitutional compliance violation"):
        await pool.initialize()
    assert (pool.is_healthy, pool.is_initialized, pool.pool) == (False, False, None)
    validator.validate_hash.assert_called_once_with(CONSTITUTIONAL_HASH)


@pytest.mark.parametrize("kind", [Mock, AsyncMock])
async def test_a_patched_create_pool_is_used(kind):
    made = AsyncMock()
    with patch("acgsperf.compat.ultra_fast_connection_pool.asyncpg.create_pool", kind(return_value=made)) as create:
        pool = UltraFastConnectionPool("orders", "postgresql://there", 2, 3)
        await pool.initialize()
    assert pool.pool is made
    assert create.call_args.args == ("postgresql://there",)
    assert (create.call_args.kwargs["min_size"], create.call_args.kwargs["max_size"]) == (2, 3)
    connection = await pool.acquire_connection()
    assert connection is made.acquire.return_value
    await pool.release_connection(connection)
    made.release.assert_awaited_once_with(connection)
    assert (await pool.health_check())["healthy"] is True
    assert isinstance(pool.get_performance_metrics()["pool_status"]["pool_size"], int)
    await pool.optimize_performance()
    await pool.close()
    made.close.assert_awaited_once_with()
    assert (pool.pool, pool.is_initialized) == (None, False)


@pytest.mark.parametrize("kind", [Mock, AsyncMock])
async def test_a_patched_asyncpg_is_used(kind):
    with patch("acgsperf.compat.ultra_fast_connection_pool.asyncpg", kind()) as module:
        module.create_pool.return_value = AsyncMock()
        pool = UltraFastConnectionPool("orders", "postgresql://there", 2, 3)
        await pool.initialize()
        await pool.release_connection(await pool.acquire_connection())
        await pool.optimize_performance()
        module.create_pool.side_effect = ConnectionError("refused")
        other = UltraFastConnectionPool("other", "postgresql://there")
        with pytest.raises(ConnectionError, match="refused"):
            await other.initialize()
        assert other.is_healthy is False


async def test_mocked_failures_are_counted():
    pool = mocked()
    pool.pool.acquire.side_effect = TimeoutError()
    with pytest.raises(RuntimeError, match="Connection acquisition timeout for pool 'orders'"):
        await pool.acquire_connection()
    pool.pool.acquire.side_effect = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        await pool.acquire_connection()
    assert (pool.metrics.total_acquisitions, pool.metrics.failed_acquisitions) == (2, 2)
    health = await pool.health_check()
    assert (health["healthy"], health["error"], health["health_check_failures"]) == (False, "gone", 1)
    assert pool.is_healthy is False
    assert pool.metrics.health_check_failures == 1


async def test_a_release_that_fails_is_counted_as_recycled():
    pool = mocked()
    connection = await pool.acquire_connection()
    pool.pool.release.side_effect = OSError("reset failed")
    await pool.release_connection(connection)
    assert (pool.metrics.current_connections, pool.metrics.connection_recycling_count) == (0, 1)


async def test_a_pool_that_does_not_close_gracefully_is_terminated():
    pool = mocked(MagicMock())
    pool.pool.close.side_effect = OSError("gone")
    inner = pool.pool
    await pool.close()
    inner.terminate.assert_called_once_with()


async def test_the_size_of_a_mocked_pool_is_used_if_it_has_one():
    pool = mocked()
    pool.pool.get_size = Mock(return_value=7)
    assert pool.get_performance_metrics()["pool_status"]["pool_size"] == 7


async def test_a_manager_holds_pools_by_name(manager, dsn):
    assert manager.constitutional_hash == CONSTITUTIONAL_HASH
    assert manager.pools == {}
    assert manager._monitoring_task is None
    pool = await manager.create_pool("orders", dsn, 1, 2)
    assert manager._monitoring_task is not None
    assert await manager.get_pool("orders") is pool is manager.pools["orders"]
    with pytest.raises(ValueError, match="'orders' already exists"):
        await manager.create_pool("orders", dsn)
    with pytest.raises(ValueError, match="'none' not found"):
        await manager.get_pool("none")
    with pytest.raises(OSError, match=r"."):
        await manager.create_pool("broken", NOWHERE, 1, 1)
    users = await manager.create_pool("users", dsn, min_size=1, max_size=2)
    real, users.pool = users.pool, AsyncMock(acquire=AsyncMock(side_effect=OSError("gone")))
    health = await manager.health_check_all()
    assert (health["overall_healthy"], health["total_pools"], health["healthy_pools"]) == (False, 2, 1)
    assert (health["pools"]["orders"]["healthy"], health["pools"]["users"]["healthy"]) == (True, False)
    users.pool = real
    optimized = await manager.optimize_all_pools()
    assert set(optimized["pool_optimizations"]) == {"orders", "users"}
    task = manager._monitoring_task
    await manager.close_all()
    assert task.cancelled()
    assert manager.pools == {}


async def test_of_two_concurrent_pools_with_one_name_one_is_created(manager, dsn):
    made = await asyncio.gather(*(manager.create_pool("orders", dsn, 1, 1) for _ in range(2)), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in made) == ["UltraFastConnectionPool", "ValueError"]


async def test_a_manager_without_pools_is_healthy(manager):
    health = await manager.health_check_all()
    assert (health["overall_healthy"], health["pools"], health["total_pools"]) == (True, {}, 0)


async def test_monitoring_continues_after_a_failed_check(manager, dsn, monkeypatch):
    monkeypatch.setitem(POOL_PERFORMANCE_TARGETS, "health_check_interval_s", 0.01)
    asked = asyncio.Event()
    answers = iter([RuntimeError("once"), None])

    async def check():
        error = next(answers, None)
        if error:
            raise error
        asked.set()

    monkeypatch.setattr(manager, "health_check_all", check)
    await manager.create_pool("orders", dsn, 1, 1)
    await asyncio.wait_for(asked.wait(), 10)


async def test_a_process_has_one_manager(monkeypatch, dsn):
    monkeypatch.setattr(ultra_fast_connection_pool._manager, "instance", None)
    manager = await get_pool_manager()
    assert manager is await get_pool_manager()
    pool = await create_ultra_fast_pool(name="api_pool", dsn=dsn, min_size=1, max_size=2)
    assert await manager.get_pool("api_pool") is pool
    await manager.close_all()


async def test_close_waits_for_borrowers(dsn):
    pool = UltraFastConnectionPool("orders", dsn, 1, 2)
    await pool.initialize()
    connection = await pool.acquire_connection()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0.05)
    with pytest.raises(RuntimeError, match="not initialized"):
        await pool.acquire_connection()
    started = time.monotonic()
    await pool.release_connection(connection)
    await closing
    assert time.monotonic() - started < 2
    assert (pool.pool, pool.metrics.current_connections) == (None, 0)


async def test_concurrent_initialisation_creates_one_pool(dsn):
    pool = UltraFastConnectionPool("orders", dsn, 2, 2)
    with patch.object(asyncpg, "create_pool", wraps=asyncpg.create_pool) as create:
        await asyncio.gather(*(pool.initialize() for _ in range(3)))
    create.assert_called_once()
    await pool.close()


async def test_a_check_that_waits_for_borrowers_keeps_the_pool_healthy(pool, monkeypatch):
    monkeypatch.setattr(_asyncpg_pool, "HEALTH_TIMEOUT_S", 0.1)
    lent = [await pool.acquire_connection() for _ in range(3)]
    # This happens if callers release twice, or use the asyncpg pool directly.
    pool.metrics.current_connections = 0
    assert (await pool.health_check())["healthy"] is True
    for connection in lent:
        await pool.release_connection(connection)
        await pool.release_connection(connection)
    assert pool.metrics.current_connections == 0
    assert (await pool.health_check())["healthy"] is True


@pytest.mark.parametrize("healthy", [True, False])
async def test_a_check_whose_connection_borrowers_take_first_does_not_change_the_health(healthy):
    pool = mocked()

    def acquire():
        pool.metrics.current_connections = pool.max_size
        raise TimeoutError

    pool.pool.acquire.side_effect = acquire
    pool.is_healthy = healthy
    assert (await pool.health_check())["healthy"] is healthy
    assert (pool.is_healthy, pool.metrics.health_check_failures) == (healthy, 0)


async def test_a_release_does_not_wait_for_a_silent_server(victim, monkeypatch):
    monkeypatch.setattr(_asyncpg_pool, "RELEASE_TIMEOUT_S", 0.1)
    pool = UltraFastConnectionPool("orders", victim.dsn, 1, 1)
    await pool.initialize()
    connection = await pool.acquire_connection()
    victim.freeze()
    started = time.monotonic()
    await pool.release_connection(connection)
    assert time.monotonic() - started < 2
    assert (pool.metrics.connection_recycling_count, pool.metrics.current_connections) == (1, 0)
    victim.thaw()
    again = await pool.acquire_connection()
    assert await again.fetchval("SELECT 1") == 1
    await pool.release_connection(again)
    await pool.close()


async def test_a_connection_handed_to_the_next_borrower_is_counted_once(pool):
    async def borrow():
        connection = await pool.acquire_connection()
        await connection.execute("SELECT pg_sleep(0.002)")
        await pool.release_connection(connection)

    await asyncio.gather(*(borrow() for _ in range(30)))
    assert (pool.metrics.peak_connections, pool.metrics.current_connections) == (3, 0)
    foreign = await asyncpg.connect(pool.dsn)
    held = await pool.acquire_connection()
    with pytest.raises(asyncpg.InterfaceError):
        await pool.release_connection(foreign)
    assert pool.metrics.current_connections == 1
    await pool.release_connection(held)
    await foreign.close()
