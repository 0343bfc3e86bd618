"""`PerformanceService`, with real servers for its lower tiers."""

import asyncio
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from acgsperf import (
    CONSTITUTIONAL_HASH,
    ComplianceError,
    EntryOptions,
    LatencyHistogram,
    LRUCache,
    PoolUnhealthy,
    ServiceError,
)
from acgsperf.cache import TieredCache
from acgsperf.errors import SettingsError
from acgsperf.fingerprint import request_key
from acgsperf.fleet import Report
from acgsperf.metrics.prometheus import PerformanceCollector
from acgsperf.metrics.worker_files import WorkerFiles
from acgsperf.pool import PoolManager
from acgsperf.service import PerformanceService
from acgsperf.service.workers import Workers
from acgsperf.settings import Settings
from acgsperf.tiers.redis import RedisTier

HASH = CONSTITUTIONAL_HASH
FORKING = """
import os, sys, time
from acgsperf import LatencyHistogram
from acgsperf.fleet import Report
from acgsperf.service.workers import Workers

workers = Workers(sys.argv[1])
for _ in range(3):
    if not os.fork():
        workers.publish(
            Report(
                instance=f"{os.getpid():016x}",
                sequence=1,
                seconds=1.0,
                failed=10,
                violations=0,
                missed=0,
                latency=LatencyHistogram().encode(),
            )
        )
        os.write(1, b"published\\n")
        time.sleep(60)
sys.stdin.read()
"""
REPORT = Report(
    instance="0123456789abcdef",
    sequence=1,
    seconds=1.0,
    failed=0,
    violations=0,
    missed=0,
    latency=LatencyHistogram().encode(),
)
NO_REPORTS = [
    replace(REPORT, failed=-5, missed=-3),
    replace(REPORT, latency=b"?"),
    replace(REPORT, latency=REPORT.latency[:-1]),
    replace(REPORT, name="x" * 200_000),
]


async def test_equal_requests_share_one_answer_with_any_tiers(open_service, handler, tiers):
    service = await open_service(tiers)
    first = await service.process_request({"id": 1, "type": "call"})
    again = await service.process_request({"type": "call", "id": 1})
    assert first == again == {"answer": 1}
    assert handler.asked == [{"id": 1, "type": "call"}]


async def test_each_request_counts_as_one_look_up_in_l1(open_service, tiers):
    service = await open_service(tiers)
    for number in (1, 1, 1, 2):
        await service.process_request({"id": number})
    l1 = service.get_performance_summary().cache.l1
    assert (l1.hits, l1.misses) == (2, 2)


async def test_another_process_finds_the_answer_in_l2(open_service, handler):
    first = await open_service("l1,l2", cache_namespace="test-shared")
    await first.process_request({"id": 1})
    await first.close()
    second = await open_service("l1,l2", cache_namespace="test-shared")
    assert await second.process_request({"id": 1}) == {"answer": 1}
    assert len(handler.asked) == 1
    assert second.get_performance_summary().hit_rate == 1


async def test_different_requests_have_different_answers(open_service, handler):
    service = await open_service()
    requests = [{"id": 1}, {"id": 1.0}, {"id": True}, {"id": "1"}, {"id": [1]}, {}, {1: "id"}, {"id": "x" * 500}]
    requests.append({"id": "x" * 500, "n": 1})
    await service.process_many(requests)
    assert handler.asked == requests


async def test_concurrent_equal_requests_call_the_handler_once(open_service, handler):
    service = await open_service()
    answers = await asyncio.gather(*(service.process_request({"id": 1}) for _ in range(100)))
    assert answers == [{"answer": 1}] * 100
    assert len(handler.asked) == 1
    summary = service.get_performance_summary()
    assert summary.requests == 100
    assert summary.hit_rate == 0


@pytest.mark.parametrize("field", ["constitutional_hash", "X-Constitutional-Hash"])
@pytest.mark.parametrize("wrong", ["", "0" * 16, HASH.upper(), HASH + " ", None, 7, [HASH]])
async def test_a_request_with_a_wrong_hash_never_reaches_the_handler(open_service, handler, field, wrong):
    service = await open_service()
    with pytest.raises(ComplianceError) as caught:
        await service.process_request({"id": 1, field: wrong})
    assert caught.value.found == wrong
    summary = service.get_performance_summary()
    assert (summary.violations, summary.requests, summary.compliance) == (1, 0, 0.0)
    assert handler.asked == []


async def test_both_hash_fields_of_a_request_are_checked(open_service):
    service = await open_service()
    await service.process_request({"constitutional_hash": HASH, "X-Constitutional-Hash": HASH})
    with pytest.raises(ComplianceError):
        await service.process_request({"constitutional_hash": HASH, "X-Constitutional-Hash": "0" * 16})


async def test_a_violation_is_refused_although_the_answer_is_cached(open_service, handler):
    service = await open_service()
    await service.process_request({"id": 1, "constitutional_hash": HASH})
    with pytest.raises(ComplianceError):
        await service.process_request({"id": 1, "constitutional_hash": "0" * 16})


async def test_during_a_rotation_both_hashes_are_accepted(open_service):
    service = await open_service(constitutional_hashes=("0123456789abcdef", HASH))
    for found in (HASH, "0123456789abcdef"):
        await service.process_request({"id": 1, "constitutional_hash": found})
    assert service.get_performance_summary().compliance == 1


async def test_an_error_of_the_handler_reaches_the_caller_and_is_not_cached(open_service, handler, tiers):
    service = await open_service(tiers)
    handler.error = LookupError("no such thing")
    for _ in range(2):
        with pytest.raises(LookupError, match="no such thing"):
            await service.process_request({"id": 1})
    handler.error = None
    assert await service.process_request({"id": 1}) == {"answer": 1}
    summary = service.get_performance_summary()
    assert (summary.requests, summary.failed, len(handler.asked)) == (3, 2, 3)
    assert summary.success_rate == pytest.approx(1 / 3)


async def test_a_cancelled_request_leaves_no_task_and_is_not_counted(open_service):
    service = await open_service()
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(request):
        begun.set()
        await never.wait()

    service.handler = hang
    before = asyncio.all_tasks()
    task = asyncio.create_task(service.process_request({"id": 1}))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert service.get_performance_summary().requests == 0


@pytest.mark.parametrize("request_", [None, 7, "text", [("id", 1)], b"{}"])
async def test_a_request_that_is_not_a_mapping_is_refused(open_service, request_):
    service = await open_service()
    with pytest.raises(TypeError, match="request must be a mapping, got"):
        await service.process_request(request_)


async def test_an_error_names_the_field_that_is_not_json_like(open_service):
    service = await open_service()
    with pytest.raises(TypeError, match=r"^\$\.ids must be a JSON-like value, got set"):
        await service.process_request({"ids": {1, 2}})


async def test_a_miss_without_a_handler_is_an_error():
    async with PerformanceService(Settings()) as service:
        with pytest.raises(ServiceError, match="no handler"):
            await service.process_request({"id": 1})


async def test_process_many_answers_in_order(open_service, handler):
    service = await open_service("l1,l2")
    requests = [{"id": number} for number in range(500)]
    assert await service.process_many(requests) == [{"answer": number} for number in range(500)]
    assert await service.process_many(requests) == [{"answer": number} for number in range(500)]
    assert len(handler.asked) == 500


async def test_process_many_raises_the_first_error_after_all_requests_are_done(open_service, handler):
    service = await open_service()
    requests = [{"id": 1}, {"constitutional_hash": "bad"}, {"id": 2}, {"id": {3}}]
    with pytest.raises(ComplianceError):
        await service.process_many(requests)
    assert handler.asked == [{"id": 1}, {"id": 2}]
    answers = await service.process_many(requests, return_exceptions=True)
    assert answers[0] == {"answer": 1}
    assert isinstance(answers[1], ComplianceError)
    assert isinstance(answers[3], TypeError)


async def test_a_cache_and_pools_that_were_passed_stay_open(handler):
    async with TieredCache(LRUCache(10), namespace="given") as cache, PoolManager() as pools:
        async with PerformanceService(Settings(), handler=handler, cache=cache, pools=pools) as service:
            await service.process_request({"id": 1})
        assert await cache.get_or_load("key", load_one) == 1
        assert pools.names() == []


async def load_one(key):
    return 1


async def test_the_service_opens_and_closes_the_parts_it_creates(open_service):
    service = await open_service("l1,l3")
    assert service.pools.names() == ["default"]
    async with service.pools.get("default").acquire() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    health = await service.health()
    assert health.ok
    assert health.cache.l3.ok
    await service.close()
    await service.close()
    assert service.pools.names() == []


async def test_a_service_can_be_opened_only_once(open_service):
    service = await open_service()
    with pytest.raises(ServiceError, match="opened only once"):
        await service.open()


async def test_open_fails_at_once_without_the_database_and_leaves_nothing_open():
    before = asyncio.all_tasks()
    service = PerformanceService(Settings(database_url="postgresql://nobody@localhost:1/nothing"))
    with pytest.raises(PoolUnhealthy):
        await service.open()
    await service.close()
    assert asyncio.all_tasks() == before


async def test_requests_succeed_without_redis(handler):
    async with PerformanceService(Settings(redis_url="unix:///nowhere/redis.sock"), handler=handler) as service:
        assert await service.process_request({"id": 1}) == {"answer": 1}
        assert not (await service.health()).ok


async def test_the_summary_has_true_percentiles_and_the_mean(open_service):
    service = await open_service()
    pace = iter([0.0] * 97 + [0.02] * 3)

    async def handle(request):
        await asyncio.sleep(next(pace))

    service.handler = handle
    for number in range(100):
        await service.process_request({"id": number})
    summary = service.get_performance_summary()
    assert summary.latency.count == summary.requests == 100
    assert summary.latency.p50 < summary.latency.mean < summary.latency.p99
    assert summary.latency.p99 >= 20e6
    assert not summary.targets_met["p99_latency"]
    assert summary.targets_met["compliance"]
    assert not summary.targets_met["hit_rate"]
    assert summary.targets["p99_latency"] == 5.0


async def test_a_summary_without_requests_meets_every_target(open_service):
    service = await open_service()
    summary = service.get_performance_summary()
    assert all(summary.targets_met.values())
    assert summary.requests == 0
    assert summary.workers == 1


async def test_the_summary_is_json_like(open_service, tiers):
    import json

    service = await open_service(tiers)
    await service.process_request({"id": 1})
    assert json.loads(json.dumps(service.get_performance_summary().as_dict()))["requests"] == 1


async def test_a_summary_adds_up_all_workers(open_service, tmp_path):
    first, second = [await open_service(workers_directory=str(tmp_path)) for _ in range(2)]
    for number in range(10):
        await first.process_request({"id": number})
    await second.process_request({"id": 1})
    with pytest.raises(ComplianceError):
        await second.process_request({"constitutional_hash": ""})
    second.observe()
    summary = first.get_performance_summary(workers=True)
    assert (summary.workers, summary.requests, summary.violations) == (2, 11, 1)
    assert summary.latency.count == 11
    assert first.get_performance_summary().workers == 1
    await second.close()
    assert first.get_performance_summary(workers=True).workers == 1


async def test_a_cancelled_miss_is_not_counted(open_service):
    service = await open_service()
    for _ in range(10):
        await service.process_request({"id": 1})
    begun = asyncio.Event()

    async def hang(request):
        begun.set()
        await asyncio.Event().wait()

    service.handler = hang
    task = asyncio.create_task(service.process_request({"id": 2}))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert service.get_performance_summary().hit_rate == 0.9


async def test_a_refresh_answered_by_another_process_is_not_a_miss(servers):
    options = {"namespace": f"test-{secrets.token_hex(8)}", "options": EntryOptions(ttl=0.4, refresh_ahead=0.01)}
    tiers = [RedisTier(servers.redis_url) for _ in range(2)]
    caches = [TieredCache(LRUCache(10), tier, **options) for tier in tiers]
    async with caches[0] as ours, caches[1] as theirs:
        async with PerformanceService(Settings(), handler=answer_one, cache=ours) as service:
            await service.process_request({"id": 1})
            for _ in range(5):
                await asyncio.sleep(0.01)
                await theirs.set(request_key({"id": 1}), 2, ttl=100)
                await service.process_request({"id": 1})
            assert service.counts().missed == 1
        await ours.clear()


async def answer_one(request):
    return 1


async def test_a_service_whose_open_failed_cannot_be_opened_again():
    service = PerformanceService(Settings(database_url="postgresql://nobody@localhost:1/nothing"))
    with pytest.raises(PoolUnhealthy):
        await service.open()
    with pytest.raises(ServiceError, match="create a new one"):
        await service.open()


async def test_close_closes_everything_if_the_report_cannot_be_removed(open_service, tmp_path):
    directory = tmp_path / "workers"
    service = await open_service("l1,l3", workers_directory=str(directory))
    service.observe()
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    directory.write_text("no directory")
    await service.close()
    assert service.pools.names() == []


async def test_a_closed_service_publishes_no_report(open_service, tmp_path):
    service = await open_service(workers_directory=str(tmp_path))
    await service.close()
    service.observe()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["no directory", "no directory/workers", "\0"])
def test_an_unusable_workers_directory_is_a_settings_error(tmp_path, where):
    (tmp_path / "no directory").touch()
    with pytest.raises(SettingsError, match="WORKERS_DIRECTORY must be a writable directory"):
        PerformanceService(Settings(workers_directory=f"{tmp_path}/{where}"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"redis_url": "redis://:secret@host"}}, "settings must be Settings or None, got dict$"),
        ({"handler": 5}, "handler must be callable"),
        ({"cache": "redis://:secret@host"}, "cache must be a TieredCache or None, got str$"),
        ({"pools": 5}, "pools must be a PoolManager or None, got int"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        PerformanceService(**{"settings": Settings()} | arguments)


async def test_a_handler_that_is_not_a_coroutine_function_is_a_type_error():
    async with PerformanceService(Settings(), handler=dict) as service:
        with pytest.raises(TypeError, match="handler must be a coroutine function, got one that returned dict"):
            await service.process_request({"id": 1})


@pytest.mark.parametrize("url", ["redis://localhost/0?foo=bar", "unix:///tmp/s?ssl_ca_certs=/x&password=hunter2"])
def test_an_unknown_option_in_the_redis_url_is_a_settings_error(url):
    with pytest.raises(SettingsError, match="REDIS_URL must be a URL that redis-py accepts") as refused:
        PerformanceService(Settings(redis_url=url))
    assert "hunter2" not in str(refused.value)


@pytest.mark.alone
async def test_thousands_of_requests_in_one_call_miss_no_deadline(open_service):
    service = await open_service("l1,l2,l3")
    answers = await service.process_many({"id": i} for i in range(6_000))
    assert [answer["answer"] for answer in answers] == list(range(6_000))
    stats = service.cache.stats()
    assert (stats.deadlines, stats.l2.errors, stats.l3.errors) == (0, {}, {})


async def test_process_many_processes_nothing_if_its_iterable_fails(open_service, handler):
    def broken():
        yield {"id": 1}
        raise KeyError("torn")

    service = await open_service()
    with pytest.raises(KeyError, match="torn"):
        await service.process_many(broken())
    assert handler.asked == []


async def test_callbacks_of_close_come_after_the_pools_were_closed(servers):
    service = await PerformanceService(Settings(database_url=servers.database_url, db_pool_min_size=1)).open()
    pool, seen = service.pools.get("default"), []
    service.on_close(lambda: seen.append((pool.closed, pool.stats().size)))
    await service.close()
    await service.close()
    assert seen == [(True, 0)]


def test_a_service_must_be_closed_in_its_own_event_loop():
    service = PerformanceService(Settings())
    with asyncio.Runner() as one, asyncio.Runner() as other:
        one.run(service.open())
        with pytest.raises(ServiceError, match="in the event loop in which it was opened"):
            other.run(service.close())
        one.run(service.close())


def test_each_forked_worker_publishes_its_own_report(tmp_path):
    # In a new process, because this one may have threads, and a process with threads must not fork.
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as parent:
        try:
            assert [parent.stdout.readline() for _ in range(3)] == [b"published\n"] * 3
            assert [other.failed for other in Workers(tmp_path).others()] == [10, 10, 10]
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
    # They end soon, without closing their workers.
    deadline = time.monotonic() + 30
    while list(Workers(tmp_path).others()):
        assert time.monotonic() < deadline
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x91" * 100_000, *map(msgspec.msgpack.encode, NO_REPORTS)])
async def test_a_file_that_is_not_a_valid_report_is_skipped(open_service, tmp_path, garbage):
    service = await open_service(workers_directory=str(tmp_path))
    stranger = WorkerFiles(tmp_path, "service", "report")
    stranger.publish(garbage)
    assert service.get_performance_summary(workers=True).workers == 1


async def test_a_worker_that_hangs_is_not_dead(open_service, tmp_path):
    service = await open_service(workers_directory=str(tmp_path))
    hanging = await open_service(workers_directory=str(tmp_path))
    hanging.observe()
    (report,) = tmp_path.glob("*.report")
    os.utime(report, (0, 0))
    assert service.get_performance_summary(workers=True).workers == 2


async def test_adding_workers_without_a_directory_is_an_error(open_service):
    service = await open_service()
    with pytest.raises(ServiceError, match="workers_directory"):
        service.get_performance_summary(workers=True)


async def test_observe_reads_the_interval_and_starts_a_new_one(open_service, handler):
    service = await open_service()
    for number in (1, 1, 2):
        await service.process_request({"id": number})
    handler.error = LookupError()
    with pytest.raises(LookupError):
        await service.process_request({"id": 3})
    with pytest.raises(ComplianceError):
        await service.process_request({"constitutional_hash": ""})
    reading = service.observe()
    assert (reading.requests, reading.errors, reading.violations) == (4, 1, 1)
    assert reading.hit_rate == 0.25
    assert reading.p50_ms > 0
    idle = service.observe()
    assert (idle.requests, idle.errors, idle.violations) == (0, 0, 0)
    assert idle.p50_ms is idle.hit_rate is None
    assert service.get_performance_summary().requests == 4


async def test_an_open_service_observes_and_optimises_by_itself(open_service, caplog):
    service = await open_service(monitoring_interval_s=0.01, optimization_interval_s=0.01)
    async with asyncio.timeout(5):
        while len(service.monitor.history) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
async def test_a_round_that_fails_does_not_end_monitoring(handler, caplog, kind):
    class Failing(PerformanceService):
        rounds = 0

        def observe(self):
            self.rounds += 1
            if self.rounds == 1:
                raise kind("not this round")
            return super().observe()

    async with Failing(Settings(monitoring_interval_s=0.01), handler=handler) as service, asyncio.timeout(5):
        while not service.monitor.history:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "service: observe failed; it runs again in 0.01 s" in caplog.text


async def test_the_prometheus_exporter_reads_a_service(open_service):
    service = await open_service("l1,l2,l3")
    await service.process_many([{"id": 1}, {"id": 2}])
    await service.process_request({"id": 1})
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(service))
    assert registry.get_sample_value("acgsperf_requests_total") == 3
    assert registry.get_sample_value("acgsperf_request_misses_total") == 2


@pytest.mark.parametrize("tiers", ["l1,l2", "l1,l3"])
async def test_the_summary_and_the_metrics_page_show_the_backplane(open_service, tiers):
    namespace = f"test-{secrets.token_hex(8)}"
    service, other = [await open_service(tiers, cache_namespace=namespace) for _ in range(2)]
    await other.cache.set("a", 1)
    async with asyncio.timeout(10):
        while not (found := service.get_performance_summary().cache.backplane).applied:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert found.state.value == "following"
    assert found.lag.count >= 1
    shown = service.get_performance_summary().as_dict()["cache"]["backplane"]
    assert shown["state"] == "following"
    assert shown["applied"] >= 1
    assert shown["lag"]["count"] >= 1
    json.dumps(shown)

    registry = CollectorRegistry()
    registry.register(PerformanceCollector(service))
    cache = {"cache": namespace}
    assert registry.get_sample_value("acgsperf_backplane_state", {**cache, "state": "following"}) == 1
    assert registry.get_sample_value("acgsperf_backplane_applied_total", cache) >= 1
    assert registry.get_sample_value("acgsperf_backplane_lag_seconds_count", cache) >= 1


async def test_a_service_without_servers_has_no_backplane(open_service):
    summary = (await open_service()).get_performance_summary()
    assert summary.cache.backplane is None
    assert summary.as_dict()["cache"]["backplane"] is None
