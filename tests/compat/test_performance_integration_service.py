"""The integration service under its former names, on real servers, and with mocks that replace its parts."""

import asyncio
import copy
import gc
import inspect
import json
import logging
import os
import pickle
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from unittest.mock import AsyncMock, Mock, patch

import pytest
from ids import name_of

from acgsperf.compat import performance_integration_service as module
from acgsperf.compat import ultra_fast_cache, ultra_fast_connection_pool
from acgsperf.compat.performance_integration_service import (
    CONSTITUTIONAL_HASH,
    INTEGRATION_PERFORMANCE_TARGETS,
    PerformanceIntegrationService,
    PerformanceMetrics,
    get_performance_service,
)
from acgsperf.compat.ultra_fast_cache import UltraFastMultiTierCache, create_ultra_fast_cache
from acgsperf.compat.ultra_fast_connection_pool import UltraFastConnectionPoolManager
from acgsperf.fingerprint import request_key

LOGGER = module.__name__
ANOTHER_PROCESS = """
import asyncio, json, sys
from acgsperf.compat.performance_integration_service import get_performance_service

async def main():
    service = await get_performance_service()
    print(json.dumps(await service.process_request(json.loads(sys.argv[1]))))
    await service.close()

asyncio.run(main())
"""


class Handler:
    """Returns `answer`, by default the id of the request, or raises `error`."""

    def __init__(self, answer=None, error=None):
        self.asked = 0
        self.answer = answer
        self.error = error

    async def __call__(self, request):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return {"answer": request.get("id")} if self.answer is None else self.answer


@pytest.fixture
async def open_service(servers):
    """Create services with a cache in the shared Redis and without loops. Afterwards, remove their entries."""
    caches = []

    async def opened(handler=None):
        service = PerformanceIntegrationService(handler)
        service.cache = await create_ultra_fast_cache(servers.redis_url, l1_max_size=100)
        caches.append(service.cache)
        return service

    yield opened
    for cache in caches:
        await cache.clear_all()
        await cache.close()


@pytest.fixture
async def service(open_service):
    return await open_service()


@pytest.fixture
async def manager():
    manager = UltraFastConnectionPoolManager()
    yield manager
    await manager.close_all()


@pytest.fixture
def warned(caplog):
    """Return the messages of the warnings and errors that the module logged."""
    caplog.set_level(logging.WARNING, LOGGER)
    return lambda: [record.getMessage() for record in caplog.records if record.name == LOGGER]


def without_performance(response):
    return {name: value for name, value in response.items() if name != "performance"}


def record(milliseconds):
    return {"integration": {"avg_response_time_ms": milliseconds}}


def test_the_constants_have_the_former_values():
    assert INTEGRATION_PERFORMANCE_TARGETS == {
        "p99_latency_ms": 5.0,
        "p95_latency_ms": 2.0,
        "p50_latency_ms": 1.0,
        "min_throughput_rps": 1000,
        "cache_hit_rate_target": 0.95,
        "constitutional_compliance": 1.0,
        "optimization_interval_s": 60,
        "monitoring_interval_s": 30,
    }
    assert CONSTITUTIONAL_HASH == "cdd01ef066bc6cf2"
    assert module.get_pool_manager is ultra_fast_connection_pool.get_pool_manager
    assert module.get_ultra_fast_cache is ultra_fast_cache.get_ultra_fast_cache


def test_the_signatures_are_the_former_ones():
    # `handler` is new and optional.
    assert [p.default for p in inspect.signature(PerformanceIntegrationService).parameters.values()] == [None]
    assert list(inspect.signature(PerformanceIntegrationService.process_request).parameters) == ["self", "request"]
    regression = inspect.signature(PerformanceIntegrationService._check_performance_regression)
    assert list(regression.parameters) == ["self", "current"]
    adding = inspect.signature(PerformanceMetrics.add_request).parameters
    assert list(adding) == ["self", "response_time", "success"]
    assert adding["success"].default is True
    assert not inspect.signature(get_performance_service).parameters
    assert inspect.iscoroutinefunction(get_performance_service)
    for name in [
        "initialize",
        "process_request",
        "get_performance_summary",
        "close",
        "_start_background_tasks",
        "_collect_performance_metrics",
        "_run_optimization",
        "_check_performance_regression",
        "_monitoring_loop",
        "_optimization_loop",
    ]:
        assert inspect.iscoroutinefunction(getattr(PerformanceIntegrationService, name))


def test_a_new_service_has_the_former_attributes():
    service = PerformanceIntegrationService()
    assert service.constitutional_hash == CONSTITUTIONAL_HASH
    assert service.constitutional_validator.validate_hash(CONSTITUTIONAL_HASH)
    assert (service.pool_manager, service.cache) == (None, None)
    assert service.metrics == PerformanceMetrics()
    assert (service.performance_history, service.max_history_size) == ([], 1000)
    assert (service._running, service._monitoring_task, service._optimization_task) == (False, None, None)


def test_new_metrics_are_zero():
    metrics = PerformanceMetrics()
    named = {name: getattr(metrics, name) for name in PerformanceMetrics.__dataclass_fields__}
    assert named == {
        "total_requests": 0,
        "successful_requests": 0,
        "failed_requests": 0,
        "total_response_time": 0.0,
        "min_response_time": float("inf"),
        "max_response_time": 0.0,
        "constitutional_validations": 0,
        "cache_hits": 0,
        "cache_misses": 0,
        "db_connections_acquired": 0,
        "optimization_runs": 0,
        "last_optimization": 0.0,
    }
    assert metrics.get_avg_response_time_ms() == 0.0
    assert metrics.get_success_rate() == 1.0
    assert metrics.get_cache_hit_rate() == 0.0


def test_metrics_compute_averages_and_rates():
    metrics = PerformanceMetrics()
    metrics.add_request(0.002)
    metrics.add_request(0.001, success=True)
    metrics.add_request(0.006, False)
    assert (metrics.total_requests, metrics.successful_requests, metrics.failed_requests) == (3, 2, 1)
    assert (metrics.min_response_time, metrics.max_response_time) == (0.001, 0.006)
    assert metrics.total_response_time == pytest.approx(0.009)
    assert metrics.get_avg_response_time_ms() == pytest.approx(3.0)
    assert metrics.get_success_rate() == pytest.approx(2 / 3)
    metrics.cache_hits, metrics.cache_misses = 19, 1
    assert metrics.get_cache_hit_rate() == 0.95


def test_metrics_accept_any_response_time_and_can_be_copied():
    metrics = PerformanceMetrics()
    metrics.add_request(0.0)
    metrics.add_request(1e9)
    assert (metrics.min_response_time, metrics.max_response_time) == (0.0, 1e9)
    assert json.loads(json.dumps(vars(metrics))) == asdict(metrics)
    assert pickle.loads(pickle.dumps(metrics)) == copy.deepcopy(metrics) == metrics


@pytest.mark.parametrize("seconds", [-0.5, float("inf"), float("nan"), 1e30])
def test_a_response_time_that_no_clock_shows_is_counted(seconds):
    metrics = PerformanceMetrics()
    metrics.add_request(seconds)
    assert metrics.total_requests == metrics.latency_ns.count == 1


def test_the_metrics_of_a_service_count_on_from_what_a_caller_sets():
    metrics, plain = PerformanceIntegrationService().metrics, PerformanceMetrics()
    for each in (metrics, plain):
        each.add_request(0.5)
        each.total_requests, each.failed_requests = 7, 1.5
        each.successful_requests -= 1
        each.total_response_time += 1
        each.min_response_time, each.max_response_time = float("inf"), 0.0
        each.cache_hits += 2
        each.add_request(0.25, success=False)
    assert metrics == plain
    assert plain == metrics
    assert asdict(metrics) == asdict(plain)
    assert repr(metrics).replace("Live", "") == repr(plain)
    assert metrics.latency_ns.count == 2


def test_the_metrics_of_a_service_are_copied_as_plain_ones():
    metrics = PerformanceIntegrationService().metrics
    metrics.add_request(0.5)
    for other in (copy.copy(metrics), copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics))):
        assert other == metrics
        assert type(other) is PerformanceMetrics
        other.add_request(0.5)
        assert (other.total_requests, metrics.total_requests) == (2, 1)
    assert metrics != 7


async def test_replaced_counters_are_called(fresh_process):
    service = PerformanceIntegrationService()
    with patch.object(service.metrics, "add_request") as added:
        await service.process_request({"id": 1})
    (took,) = added.call_args.args
    assert 0 < took < 60
    assert service.metrics.total_requests == 0
    await service.process_request({"id": 1})
    assert service.metrics.total_requests == 1


async def test_initialize_uses_the_parts_of_this_process(fresh_process):
    service = PerformanceIntegrationService()
    await service.initialize()
    try:
        assert service.cache is await ultra_fast_cache.get_ultra_fast_cache()
        assert service.cache.redis_client is not None
        assert service.pool_manager is await ultra_fast_connection_pool.get_pool_manager()
        assert service._running is True
        loops = service._monitoring_task, service._optimization_task
        assert not any(task.done() for task in loops)
        await service.initialize()
        assert (service._monitoring_task, service._optimization_task) == loops
    finally:
        await service.close()
    assert all(task.cancelled() for task in loops)


async def test_concurrent_initialisation_starts_the_loops_once(monkeypatch):
    async def get_cache():
        await asyncio.sleep(0)
        return AsyncMock()

    monkeypatch.setattr(module, "get_ultra_fast_cache", get_cache)
    monkeypatch.setattr(module, "get_pool_manager", AsyncMock())
    before = asyncio.all_tasks()
    service = PerformanceIntegrationService()
    await asyncio.gather(*(service.initialize() for _ in range(3)))
    assert asyncio.all_tasks() - before == {service._monitoring_task, service._optimization_task}
    await service.close()
    assert asyncio.all_tasks() == before


async def test_initialize_fails_if_the_validator_refuses():
    service = PerformanceIntegrationService()
    service.constitutional_validator = Mock()
    service.constitutional_validator.validate_hash.return_value = False
    with pytest.raises(RuntimeError, match="Constitutional compliance violation"):
        await service.initialize()
    service.constitutional_validator.validate_hash.assert_called_once_with(CONSTITUTIONAL_HASH)
    assert (service._running, service.cache, service.pool_manager) == (False, None, None)
    assert service._monitoring_task is service._optimization_task is None


async def test_initialize_looks_up_the_parts_at_call_time():
    service, cache, manager = PerformanceIntegrationService(), AsyncMock(), AsyncMock()
    with (
        patch(f"{LOGGER}.get_pool_manager", AsyncMock(return_value=manager)) as get_manager,
        patch(f"{LOGGER}.get_ultra_fast_cache", AsyncMock(return_value=cache)) as get_cache,
        patch.object(service, "_start_background_tasks", AsyncMock()) as start,
    ):
        await service.initialize()
    assert (service.cache, service.pool_manager, service._running) == (cache, manager, True)
    for called in [get_manager, get_cache, start]:
        called.assert_awaited_once_with()
    await service.close()


async def test_a_miss_then_a_hit(service, key):
    request = {"id": key, "type": "api_call"}
    began = time.time()
    first = await service.process_request(request)
    assert (first["processed"], first["constitutional_hash"], first["request_id"]) == (True, CONSTITUTIONAL_HASH, key)
    assert began <= first["timestamp"] <= time.time()
    second = await service.process_request({"type": "api_call", "id": key})
    assert without_performance(second) == without_performance(first)
    for response, cached in [(first, False), (second, True)]:
        performance = response["performance"]
        assert set(performance) == {"response_time_ms", "cached", "constitutional_validated"}
        assert (performance["cached"], performance["constitutional_validated"]) == (cached, True)
        assert 0 < performance["response_time_ms"] < 5_000
    metrics = service.metrics
    assert (metrics.total_requests, metrics.successful_requests, metrics.failed_requests) == (2, 2, 0)
    assert (metrics.cache_hits, metrics.cache_misses, metrics.constitutional_validations) == (1, 1, 2)
    assert metrics.db_connections_acquired == 0
    assert metrics.min_response_time <= metrics.max_response_time < metrics.total_response_time


async def test_a_replaced_get_of_the_cache_is_called(fresh_process):
    service, request = PerformanceIntegrationService(), {"id": "a"}
    service.cache = ultra_fast_cache.UltraFastMultiTierCache()
    await service.process_request(request)
    assert (await service.process_request(request))["performance"]["cached"] is True
    counted = service.cache.metrics
    assert (counted.l1_hits, counted.l1_misses, counted.l3_misses, counted.total_accesses) == (1, 1, 1, 2)
    replacement = AsyncMock(return_value={"from": "a mock"})
    with patch.object(ultra_fast_cache.UltraFastMultiTierCache, "get", replacement):
        assert (await service.process_request(request))["from"] == "a mock"
    assert "from" not in await service.process_request(request)
    with patch.object(service.cache, "get", replacement):
        assert (await service.process_request(request))["from"] == "a mock"
    assert "from" not in await service.process_request(request)
    service.cache._get_from_l1 = Mock(return_value={"from": "L1"})
    assert (await service.process_request(request))["from"] == "L1"

    class Own(ultra_fast_cache.UltraFastMultiTierCache):
        async def get(self, key, data_type="default"):
            return {"from": "a subclass"}

    service.cache = Own()
    assert (await service.process_request(request))["from"] == "a subclass"


async def test_a_request_without_an_id_gets_the_id_unknown(service, key):
    assert (await service.process_request({"type": key}))["request_id"] == "unknown"


async def test_different_requests_have_different_answers(service, key):
    await service.process_request({"id": key, "user": 1})
    for other in [{"id": key, "user": 2}, {"id": key, "user": "1"}, {"id": key, "user": 1, "more": None}]:
        assert not (await service.process_request(other))["performance"]["cached"]


async def test_a_response_is_cached_for_300_s(service, old, key):
    request = {"id": key}
    response = await service.process_request(request)
    assert 295 <= old.ttl(request_key(request)) <= 300
    assert old.read(request_key(request)) == without_performance(response)
    assert service.cache.l1_cache[request_key(request)].ttl == 300


async def test_another_service_hits_the_cached_response(open_service, key):
    one, other = await open_service(), await open_service(Handler())
    first = await one.process_request({"id": key})
    second = await other.process_request({"id": key})
    assert without_performance(second) == without_performance(first)
    assert second["performance"]["cached"] is True
    assert (other.handler.asked, other.metrics.cache_hits, other.cache.metrics.l2_hits) == (0, 1, 1)


async def test_another_process_hits_the_cached_response(service, servers, key):
    request = {"id": key, "type": "api_call"}
    first = await service.process_request(request)
    # A different salt for `hash` than in this process.
    environment = os.environ | {"REDIS_URL": servers.redis_url, "PYTHONHASHSEED": "7"}
    done = subprocess.run(  # noqa: ASYNC221 - nothing else waits
        [sys.executable, "-W", "error", "-c", ANOTHER_PROCESS, json.dumps(request)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    second = json.loads(done.stdout)
    assert without_performance(second) == without_performance(first)
    assert second["performance"]["cached"] is True


@pytest.mark.parametrize("kind", [Mock, AsyncMock])
async def test_a_refused_request_does_not_reach_the_handler(kind, open_service, key):
    service = await open_service(Handler())
    service.constitutional_validator = kind()
    service.constitutional_validator.validate_hash.return_value = False
    with pytest.raises(ValueError, match="Constitutional compliance violation"):
        await service.process_request({"id": key})
    metrics = service.metrics
    assert (metrics.total_requests, metrics.successful_requests, metrics.failed_requests) == (1, 0, 1)
    assert (metrics.constitutional_validations, metrics.cache_misses, service.handler.asked) == (1, 0, 0)
    service.constitutional_validator.validate_hash.return_value = True
    assert (await service.process_request({"id": key}))["answer"] == key


@pytest.mark.parametrize("wrong", ["0000000000000000", "", None, 7, [CONSTITUTIONAL_HASH]])
async def test_a_request_with_a_wrong_hash_is_refused(service, key, wrong):
    with pytest.raises(ValueError, match="Constitutional compliance violation"):
        await service.process_request({"id": key, "constitutional_hash": wrong})
    assert (service.metrics.failed_requests, service.metrics.constitutional_validations) == (1, 1)
    response = await service.process_request({"id": key, "constitutional_hash": CONSTITUTIONAL_HASH})
    assert response["performance"]["constitutional_validated"] is True


async def test_a_connection_of_the_default_pool_is_held_while_the_handler_runs(open_service, manager, dsn, key):
    in_use = []

    async def handler(request):
        in_use.append(pool.metrics.current_connections)
        return {}

    service = await open_service(handler)
    service.pool_manager = manager
    pool = await manager.create_pool("default", dsn, 1, 1)
    for i in range(2):
        await service.process_request({"id": key, "n": i, "database_operation": True})
    await service.process_request({"id": key, "n": 0, "database_operation": True})
    await service.process_request({"id": key, "database_operation": False})
    await service.process_request({"id": key})
    # The third request was a hit, and the last two have no `database_operation`.
    assert in_use == [1, 1, 0, 0]
    assert service.metrics.db_connections_acquired == pool.metrics.successful_acquisitions == 2
    assert pool.metrics.current_connections == 0


async def test_without_a_default_pool_a_request_succeeds(service, manager, dsn, key, warned):
    await service.process_request({"id": key, "n": 0, "database_operation": True})
    service.pool_manager = manager
    await manager.create_pool("other", dsn, 1, 1)
    response = await service.process_request({"id": key, "n": 1, "database_operation": True})
    assert response["processed"] is True
    assert (service.metrics.db_connections_acquired, service.metrics.successful_requests) == (0, 2)
    assert warned() == []


async def test_without_a_database_a_request_succeeds_and_a_warning_is_logged(service, manager, victim, key, warned):
    service.pool_manager = manager
    pool = await manager.create_pool("default", victim.dsn, 1, 1)
    connection, lost = await pool.acquire_connection(), asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    victim.kill()
    try:
        async with asyncio.timeout(10):
            await lost.wait()
        await pool.release_connection(connection)
        response = await service.process_request({"id": key, "database_operation": True})
        assert response["processed"] is True
        assert (service.metrics.successful_requests, service.metrics.db_connections_acquired) == (1, 0)
        (line,) = warned()
        assert line.startswith("pool 'default': no connection; the request continues without one: ")
    finally:
        victim.start()
    await service.process_request({"id": key, "again": True, "database_operation": True})
    assert service.metrics.db_connections_acquired == 1


async def test_a_request_succeeds_if_the_database_stops_while_the_handler_runs(open_service, manager, victim, key):
    async def handler(request):
        victim.kill()
        return {"answer": 42}

    service = await open_service(handler)
    service.pool_manager = manager
    pool = await manager.create_pool("default", victim.dsn, 1, 1)
    try:
        assert (await service.process_request({"id": key, "database_operation": True}))["answer"] == 42
    finally:
        victim.start()
    assert pool.metrics.current_connections == 0


async def test_a_connection_that_cannot_be_released_is_logged(open_service, key, warned):
    service = await open_service()
    pool = AsyncMock()
    pool.release_connection.side_effect = OSError("torn")
    service.pool_manager = AsyncMock(get_pool=AsyncMock(return_value=pool))
    assert (await service.process_request({"id": key, "database_operation": True}))["processed"] is True
    service.pool_manager.get_pool.assert_awaited_once_with("default")
    pool.release_connection.assert_awaited_once_with(pool.acquire_connection.return_value)
    assert warned() == ["pool 'default': connection could not be released: torn"]


async def test_a_connection_is_released_if_the_handler_raises(open_service, manager, dsn, key):
    service = await open_service(Handler(error=LookupError("none")))
    service.pool_manager = manager
    pool = await manager.create_pool("default", dsn, 1, 1)
    for _ in range(2):
        with pytest.raises(LookupError, match="none"):
            await service.process_request({"id": key, "database_operation": True})
    assert (pool.metrics.successful_acquisitions, pool.metrics.current_connections) == (2, 0)


async def test_a_connection_is_released_if_the_request_is_cancelled(open_service, manager, dsn, key):
    working = asyncio.Event()

    async def handler(request):
        working.set()
        await asyncio.Event().wait()

    service = await open_service(handler)
    service.pool_manager = manager
    pool = await manager.create_pool("default", dsn, 1, 1)
    processing = asyncio.create_task(service.process_request({"id": key, "database_operation": True}))
    await working.wait()
    assert pool.metrics.current_connections == 1
    processing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await processing
    assert (service.metrics.total_requests, service.metrics.failed_requests) == (1, 1)
    assert pool.metrics.current_connections == 0
    await pool.release_connection(await pool.acquire_connection())


async def test_a_cached_response_never_has_performance(open_service, old, key):
    answer = {"answer": 42, "nested": {"list": [1]}}
    service = await open_service(Handler(answer))
    request = {"id": key}
    responses = [await service.process_request(request) for _ in range(3)]
    assert [response["performance"]["cached"] for response in responses] == [False, True, True]
    for response in responses:
        response["answer"] = "changed by a caller"
    expected = {"answer": 42, "nested": {"list": [1]}}
    assert answer == service.cache.l1_cache[request_key(request)].value == old.read(request_key(request)) == expected
    assert without_performance(await service.process_request(request)) == expected


async def test_an_error_of_the_handler_reaches_the_caller_and_is_not_cached(open_service, key):
    handler = Handler(error=ZeroDivisionError("by nothing"))
    service = await open_service(handler)
    with pytest.raises(ZeroDivisionError, match="by nothing"):
        await service.process_request({"id": key})
    assert (service.metrics.failed_requests, service.metrics.successful_requests) == (1, 0)
    handler.error = None
    response = await service.process_request({"id": key})
    assert (response["answer"], response["performance"]["cached"], handler.asked) == (key, False, 2)


@pytest.mark.parametrize("answer", [[1], "text", 7, False])
async def test_a_handler_must_return_a_dict(open_service, key, answer):
    service = await open_service(Handler(answer))
    with pytest.raises(TypeError, match=f"handler must return a dict, got {type(answer).__name__}"):
        await service.process_request({"id": key})
    assert service.metrics.failed_requests == 1
    assert request_key({"id": key}) not in service.cache.l1_cache


@pytest.mark.parametrize("odd", [object(), {1, 2}, b"bytes", float("nan"), "\ud800"], ids=name_of)
async def test_a_request_that_is_not_json_like_is_answered_and_not_cached(open_service, key, odd):
    service = await open_service(Handler())
    for asked in [1, 2]:
        response = await service.process_request({"id": key, "odd": odd})
        assert (response["answer"], response["performance"]["cached"]) == (key, False)
        assert service.handler.asked == asked
    assert (service.metrics.cache_misses, service.metrics.successful_requests) == (2, 2)
    assert all(name.startswith("constitutional_hash:") for name in service.cache.l1_cache)


@pytest.mark.parametrize("foreign", [[1, 2], "text", 7, True, None])
async def test_a_cached_value_that_is_not_a_dict_is_a_miss(service, old, key, foreign):
    request = {"id": key}
    old.write(request_key(request), foreign, 60)
    response = await service.process_request(request)
    assert (response["request_id"], response["performance"]["cached"]) == (key, False)
    assert old.read(request_key(request)) == without_performance(response)


async def test_without_a_cache_every_request_is_a_miss():
    service = PerformanceIntegrationService(Handler())
    for _ in range(2):
        assert not (await service.process_request({"id": 1}))["performance"]["cached"]
    assert (service.handler.asked, service.metrics.cache_misses) == (2, 2)


async def test_a_mock_may_replace_the_cache():
    service = PerformanceIntegrationService()
    service.cache = AsyncMock()
    service.cache.get.return_value = None
    response = await service.process_request({"id": "example"})
    service.cache.get.assert_awaited_once()
    stored = service.cache.set.await_args
    assert stored.args == (service.cache.get.await_args.args[0], without_performance(response))
    assert stored.kwargs == {"ttl": 300}
    kept = service.cache.get.return_value = {"processed": True, "kept": 1}
    response = await service.process_request({"id": "example"})
    assert (response["kept"], response["performance"]["cached"]) == (1, True)
    assert kept == {"processed": True, "kept": 1}
    service.cache.set.assert_awaited_once()


async def test_the_summary_has_every_key(service, manager, dsn, key):
    service.pool_manager = manager
    await manager.create_pool("default", dsn, 1, 1)
    await service.process_request({"id": key})
    await service.process_request({"id": key})
    summary = await service.get_performance_summary()
    assert set(summary["integration_metrics"]) == {
        "total_requests",
        "success_rate",
        "avg_response_time_ms",
        "cache_hit_rate",
        "constitutional_validations",
        "optimization_runs",
    }
    assert summary["integration_metrics"]["total_requests"] == 2
    assert summary["integration_metrics"]["cache_hit_rate"] == 0.5
    assert summary["performance_targets"] == INTEGRATION_PERFORMANCE_TARGETS
    assert summary["performance_targets"] is not INTEGRATION_PERFORMANCE_TARGETS
    assert set(summary["targets_met"]) == {"response_time", "success_rate", "cache_hit_rate"}
    assert summary["constitutional_hash"] == CONSTITUTIONAL_HASH
    assert time.time() - 10 < summary["timestamp"] <= time.time()
    assert summary["constitutional_validator"]["total_validations"] == 2
    assert summary["cache"]["cache_statistics"]["l1_hits"] == 1
    assert (summary["connection_pools"]["overall_healthy"], summary["connection_pools"]["total_pools"]) == (True, 1)
    percentiles = summary["response_time_percentiles"]
    assert percentiles["count"] == 2
    assert 0 < percentiles["p50_ms"] <= percentiles["p95_ms"] <= percentiles["p99_ms"]
    json.dumps(summary)


async def test_the_summary_omits_missing_parts():
    service = PerformanceIntegrationService()
    service.constitutional_validator = None
    summary = await service.get_performance_summary()
    assert not {"constitutional_validator", "cache", "connection_pools"} & set(summary)
    assert summary["targets_met"] == {"response_time": True, "success_rate": True, "cache_hit_rate": False}
    assert summary["response_time_percentiles"]["count"] == 0


@pytest.mark.parametrize(
    ("counters", "met"),
    [
        ({"total_response_time": 0.5, "cache_hits": 95, "cache_misses": 5}, (True, True, True)),
        ({"total_response_time": 0.501}, (False, True, False)),
        ({"successful_requests": 95, "failed_requests": 5}, (True, True, False)),
        ({"successful_requests": 94, "failed_requests": 6}, (True, False, False)),
        ({"cache_hits": 94, "cache_misses": 6}, (True, True, False)),
    ],
)
async def test_the_summary_uses_counters_that_were_set(counters, met):
    service = PerformanceIntegrationService()
    service.metrics.total_requests = service.metrics.successful_requests = 100
    for name, value in counters.items():
        setattr(service.metrics, name, value)
    assert tuple((await service.get_performance_summary())["targets_met"].values()) == met


async def test_one_slow_percent_misses_the_target_although_the_average_meets_it():
    service = PerformanceIntegrationService()
    for i in range(100):
        service.metrics.add_request(0.02 if i < 2 else 0.001)
    assert service.metrics.get_avg_response_time_ms() < 2
    summary = await service.get_performance_summary()
    assert summary["response_time_percentiles"]["p99_ms"] == pytest.approx(20, rel=0.01)
    assert summary["targets_met"]["response_time"] is False


async def test_mocks_may_replace_every_part():
    service = PerformanceIntegrationService()
    service.cache, service.pool_manager, service.constitutional_validator = AsyncMock(), AsyncMock(), Mock()
    service.cache.get_performance_metrics = Mock(return_value={"cache": 1})
    service.pool_manager.health_check_all.return_value = {"pools": 2}
    service.constitutional_validator.get_performance_summary.return_value = {"validator": 3}
    service.cache.optimize_performance.return_value = {"optimizations_applied": ["cache"]}
    service.pool_manager.optimize_all_pools.return_value = {
        "pool_optimizations": {"default": {"optimizations_applied": ["opened 2 connections"]}}
    }
    summary = await service.get_performance_summary()
    assert (summary["cache"], summary["connection_pools"]) == ({"cache": 1}, {"pools": 2})
    assert summary["constitutional_validator"] == {"validator": 3}
    record = await service._collect_performance_metrics()
    assert (record["cache"], record["connection_pools"]) == ({"cache": 1}, {"pools": 2})
    result = await service._run_optimization()
    assert result["optimizations_applied"] == ["cache", "pool 'default': opened 2 connections"]


async def test_a_record_has_the_counters_and_the_parts(service, manager, key):
    service.pool_manager = manager
    await service.process_request({"id": key})
    record = await service._collect_performance_metrics()
    assert service.performance_history == [record]
    assert set(record) == {
        "timestamp",
        "constitutional_hash",
        "integration",
        "constitutional_validator",
        "cache",
        "connection_pools",
    }
    assert record["constitutional_hash"] == CONSTITUTIONAL_HASH
    summary = await service.get_performance_summary()
    assert record["integration"] == summary["integration_metrics"]


async def test_a_record_has_the_average_of_its_interval():
    service = PerformanceIntegrationService()
    averages = []
    for milliseconds in [1, 1, 9, None]:
        for _ in range(100 if milliseconds is not None else 0):
            service.metrics.add_request(milliseconds / 1e3)
        averages.append((await service._collect_performance_metrics())["integration"]["avg_response_time_ms"])
    # Without requests in the interval, the average is that of all requests.
    assert averages == pytest.approx([1, 1, 9, 11 / 3])
    service.metrics = PerformanceMetrics()
    service.metrics.add_request(0.002)
    record = await service._collect_performance_metrics()
    assert record["integration"]["avg_response_time_ms"] == pytest.approx(2)


@pytest.mark.parametrize("size", [0, 1, 3])
async def test_the_history_is_trimmed_to_its_size(size):
    service = PerformanceIntegrationService()
    service.max_history_size = size
    service.performance_history = [record(i) for i in range(5)]
    latest = [await service._collect_performance_metrics() for _ in range(2)]
    assert len(service.performance_history) == size
    assert service.performance_history == [record(4), *latest][max(0, 3 - size) :]


async def test_every_part_is_optimized(service, manager, dsn):
    service.pool_manager = manager
    await manager.create_pool("default", dsn, 1, 1)
    service.cache._set_in_l1("gone", 1, 1e-9)
    result = await service._run_optimization()
    assert "removed 1 expired entries from L1" in result["optimizations_applied"]
    assert {"constitutional_validator", "cache", "connection_pools", "constitutional_hash", "timestamp"} < set(result)
    assert set(result["connection_pools"]["pool_optimizations"]) == {"default"}
    assert service.metrics.optimization_runs == 1
    assert time.time() - 10 < service.metrics.last_optimization <= time.time()
    await service._run_optimization()
    assert (await service.get_performance_summary())["integration_metrics"]["optimization_runs"] == 2


async def test_the_other_parts_are_optimized_if_one_fails(service, manager, warned):
    service.pool_manager = manager
    with patch.object(service.cache, "optimize_performance", AsyncMock(side_effect=OSError("torn"))):
        result = await service._run_optimization()
    assert {"constitutional_validator", "connection_pools"} <= set(result)
    assert "cache" not in result
    assert service.metrics.optimization_runs == 1
    assert warned() == ["service: optimization of cache failed; the other parts are optimized"]


async def test_optimization_without_parts_applies_nothing():
    service = PerformanceIntegrationService()
    service.constitutional_validator = None
    assert (await service._run_optimization())["optimizations_applied"] == []
    assert service.metrics.optimization_runs == 1


@pytest.mark.parametrize(
    ("history", "now", "warns"),
    [
        ([2.0] * 10, 3.1, True),
        ([2.0] * 9, 3.1, False),
        ([2.0] * 10, 2.9, False),
        # Slower than before, and still within the target.
        ([1.0] * 10, 1.9, False),
        ([1.0] * 10, 2.1, True),
        # Only the latest ten records count.
        ([90.0] * 50 + [1.0] * 10, 9.0, True),
        ([1.0] * 50 + [90.0] * 10, 9.0, False),
        ([], 100.0, False),
        ([0.0] * 10, 2.1, True),
    ],
)
async def test_a_regression_is_logged_as_a_warning(history, now, warns, warned):
    service = PerformanceIntegrationService()
    service.performance_history = [record(milliseconds) for milliseconds in history]
    await service._check_performance_regression(record(now))
    assert [line.startswith("Performance regression detected") for line in warned()] == [True] * warns


async def test_a_record_is_not_compared_with_itself(warned):
    service = PerformanceIntegrationService()
    current = record(15.2)
    service.performance_history = [*(record(10.0) for _ in range(9)), current]
    # If the record itself counted, the average would be 10.52.
    await service._check_performance_regression(current)
    assert warned() == ["Performance regression detected: average 15.200 ms, before 10.000 ms"]


async def test_the_same_record_may_be_in_the_history_many_times(warned):
    service = PerformanceIntegrationService()
    service.performance_history = [record(10.0)] * 10
    await service._check_performance_regression(service.performance_history[-1])
    assert warned() == []


async def test_a_record_without_a_response_time_is_accepted():
    service = PerformanceIntegrationService()
    service.performance_history = [{}] * 10
    await service._check_performance_regression({"integration": {}})


async def test_monitoring_continues_after_a_failed_round(monkeypatch, warned):
    monkeypatch.setitem(INTEGRATION_PERFORMANCE_TARGETS, "monitoring_interval_s", 0.001)
    service, checked = PerformanceIntegrationService(), asyncio.Event()
    service.constitutional_validator = Mock()
    service.constitutional_validator.get_performance_summary.side_effect = [OSError("torn"), {}, {}]
    rounds = []

    async def check(current):
        rounds.append(current)
        if len(rounds) == 2:
            service._running = False
            checked.set()

    service._check_performance_regression = check
    service._running = True
    async with asyncio.timeout(10):
        await service._monitoring_loop()
    assert checked.is_set()
    assert service.performance_history == rounds
    assert warned() == ["service: monitoring failed; it runs again in 0.001 s"]


async def test_optimization_continues_after_a_failed_round(monkeypatch, warned):
    monkeypatch.setitem(INTEGRATION_PERFORMANCE_TARGETS, "optimization_interval_s", 0.001)
    service, run = PerformanceIntegrationService(), PerformanceIntegrationService._run_optimization
    rounds = []

    async def optimize():
        rounds.append(1)
        if len(rounds) == 1:
            raise OSError("torn")
        service._running = len(rounds) < 3
        return await run(service)

    service._run_optimization = optimize
    service._running = True
    async with asyncio.timeout(10):
        await service._optimization_loop()
    assert (len(rounds), service.metrics.optimization_runs) == (3, 2)
    assert warned() == ["service: optimization failed; it runs again in 0.001 s"]


async def test_both_loops_run_by_themselves(fresh_process, monkeypatch):
    for name in ["monitoring_interval_s", "optimization_interval_s"]:
        monkeypatch.setitem(INTEGRATION_PERFORMANCE_TARGETS, name, 0.001)
    service, monitored, optimized = PerformanceIntegrationService(), asyncio.Event(), asyncio.Event()
    service._check_performance_regression = AsyncMock(side_effect=lambda _: monitored.set())
    service._run_optimization = AsyncMock(side_effect=optimized.set)
    await service.initialize()
    async with asyncio.timeout(10):
        await monitored.wait()
        await optimized.wait()
    assert service.performance_history
    await service.close()
    assert service._monitoring_task.done()
    assert service._optimization_task.done()


async def test_close_closes_the_parts_and_may_be_repeated(fresh_process, dsn):
    service = PerformanceIntegrationService()
    await service.initialize()
    pool = await service.pool_manager.create_pool("default", dsn, 1, 1)
    tasks = service._monitoring_task, service._optimization_task
    for _ in range(2):
        await service.close()
        assert service._running is False
        assert all(task.done() for task in tasks)
        assert service.cache.redis_client is None
        assert (service.pool_manager.pools, pool.is_initialized) == ({}, False)


async def test_close_closes_the_cache_and_then_the_pools():
    service, parts = PerformanceIntegrationService(), Mock()
    service.cache, service.pool_manager = AsyncMock(), AsyncMock()
    parts.attach_mock(service.cache.close, "cache")
    parts.attach_mock(service.pool_manager.close_all, "pools")
    await service.close()
    service.cache.close.assert_awaited_once_with()
    service.pool_manager.close_all.assert_awaited_once_with()
    assert [call[0] for call in parts.mock_calls] == ["cache", "pools"]
    service.cache.close.side_effect = OSError("torn")
    with pytest.raises(OSError, match="torn"):
        await service.close()
    assert service.pool_manager.close_all.await_count == 2


async def test_a_service_that_was_never_initialised_can_be_closed():
    await PerformanceIntegrationService().close()


async def test_a_process_has_one_initialised_service(fresh_process):
    services = await asyncio.gather(*(get_performance_service() for _ in range(5)))
    (service,) = {id(service): service for service in services}.values()
    assert service._running is True
    assert isinstance(service.cache, UltraFastMultiTierCache)
    await service.close()
    again = await get_performance_service()
    assert again._running is True
    assert again.cache.redis_client is not None
    assert not again._monitoring_task.done()
    await again.close()


def test_a_process_may_use_one_event_loop_after_another_with_or_without_closing_the_service(fresh_process):
    async def serve(closed):
        services = await asyncio.gather(*(get_performance_service() for _ in range(5)))
        await services[0].process_request({"id": "loops"})
        assert (await services[0].cache.health_check())["l2_healthy"]
        assert not services[0]._monitoring_task.done()
        await services[0].cache.clear_all()
        if closed:
            await services[0].close()

    with warnings.catch_warnings():
        # Objects left open raise a ResourceWarning.
        warnings.simplefilter("ignore", ResourceWarning)
        for closed in (True, False, True):
            asyncio.run(serve(closed))
        gc.collect()


async def test_get_performance_service_can_be_called_again_after_a_failure(fresh_process):
    with (
        patch.object(module, "get_ultra_fast_cache", AsyncMock(side_effect=OSError("torn"))),
        pytest.raises(OSError, match="torn"),
    ):
        await get_performance_service()
    service = await get_performance_service()
    assert service._running is True
    await service.close()
