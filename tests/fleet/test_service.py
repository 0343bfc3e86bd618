"""The fleet of a service: what its instances leave, and what they read of each other."""

import asyncio
import json
import logging
import os
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from acgsperf import LatencyHistogram
from acgsperf.fleet import store_of
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings
from fleet.instance import patient

INSTANCE = Path(__file__).parent / "instance.py"


async def handler(request):
    return request.get("id")


@pytest.fixture
def settings_of(url, namespace):
    """Return settings with one server and, because the machine may be busy, a long life of reports."""

    def settings(**changes):
        server = "redis_url" if url.startswith(("redis", "unix")) else "database_url"
        changes = {"cache_namespace": namespace, "db_pool_min_size": 0, "monitoring_interval_s": 600} | changes
        return Settings(**{server: url} | changes)

    return settings


@pytest.fixture
async def open_service():
    async with AsyncExitStack() as stack:

        async def opened(settings):
            return await stack.enter_async_context(patient(PerformanceService(settings, handler=handler)))

        yield opened


@pytest.fixture
def patient_close(monkeypatch):
    """Let a service that closes wait for its server, although the machine is busy."""
    monkeypatch.setattr("acgsperf.fleet.publisher.LAST_S", 60)


async def until(condition):
    """Return the first summary, or list of reports, for which a condition holds."""
    async with asyncio.timeout(60):
        while not (found := await condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


async def summary_with(service, count, requests=0):
    async def complete():
        summary = await service.fleet_summary()
        done = len(summary.instances) == count and summary.requests >= requests
        return summary if done else None

    return await until(complete)


async def test_an_instance_is_listed_as_soon_as_it_is_open_and_until_it_closes(
    settings_of, open_service, patient_close
):
    first = await open_service(settings_of())
    second = await open_service(settings_of())
    summary = await summary_with(first, 2)
    assert summary.missing == ()
    assert len({one.instance for one in summary.instances}) == 2
    await second.close()
    assert len((await first.fleet_summary()).instances) == 1


async def test_percentiles_are_those_of_all_requests_together(settings_of, open_service):
    first = await open_service(settings_of())
    second = await open_service(settings_of())
    for number in range(90):
        await first.process_request({"id": number})
    for number in range(10):
        await second.process_request({"id": -number})
    second.observe()
    summary = await summary_with(first, 2, 100)
    together = LatencyHistogram()
    together.merge(first.latency())
    together.merge(second.latency())
    assert summary.requests == 100
    assert summary.latency == together.snapshot()
    assert sorted(one.requests for one in summary.instances) == [10, 90]
    assert json.loads(json.dumps(summary.as_dict()))["latency"]["count"] == 100


async def test_a_report_says_what_is_in_force_and_contains_no_address(settings_of, open_service, url, namespace):
    service = await open_service(settings_of(l1_cache_size=123, db_pool_max_size=7))
    service.cache.refresh_ahead = 0.85

    async def published():
        service.observe()
        async with store_of(url, namespace, timeout=30) as store:
            return [one for one in await store.reports() if one.settings["refresh_ahead"] == 0.85]

    (report,) = await until(published)
    assert report.settings["l1_size"] == 123
    assert "promotion_threshold" in report.settings
    assert ("pool_target default" in report.settings) == url.startswith("postgresql")
    assert report.name.endswith(f":{os.getpid()}")
    assert report.version
    assert (report.unhealthy, report.alerts, report.revision, report.arm) == ((), (), 0, "")
    assert url not in repr(report)
    assert str(url).rpartition("/")[0] not in repr(report)


async def test_reports_have_ascending_numbers_and_an_instance_keeps_its_name(settings_of, open_service):
    service = await open_service(settings_of())
    (before,) = (await service.fleet_summary()).instances
    service.observe()
    (after,) = (await service.fleet_summary()).instances
    assert after.instance == before.instance
    assert after.sequence > before.sequence
    assert after.seconds >= before.seconds
    other = PerformanceService(settings_of(), handler=handler)
    assert (await other.fleet_summary()).instances[0].instance != before.instance


async def test_fleets_of_other_namespaces_are_not_seen(settings_of, open_service, namespace):
    service = await open_service(settings_of())
    await summary_with(await open_service(settings_of(cache_namespace=f"{namespace}:x")), 1)
    await summary_with(await open_service(settings_of(cache_namespace=f"{namespace}:x")), 2)
    assert len((await service.fleet_summary()).instances) == 1


async def test_without_a_server_the_summary_is_that_of_the_instance(open_service):
    service = await open_service(Settings())
    await service.process_request({"id": 1})
    summary = await service.fleet_summary()
    assert (len(summary.instances), summary.requests, summary.missing) == (1, 1, ())


async def test_without_a_server_it_has_the_processes_that_share_a_directory(open_service, tmp_path):
    first, second = [await open_service(Settings(workers_directory=str(tmp_path))) for _ in range(2)]
    await second.process_request({"id": 1})
    second.observe()
    first.observe()
    summary = await first.fleet_summary()
    assert (len(summary.instances), summary.requests) == (2, 1)


async def test_an_instance_that_must_not_report_leaves_nothing(settings_of, open_service, url, namespace):
    service = await open_service(settings_of(fleet_enabled=False))
    service.observe()
    assert (await service.fleet_summary()).missing == ()
    async with store_of(url, namespace, timeout=30) as store:
        assert await store.reports() == []


@pytest.mark.parametrize("url", ["redis://:secret@localhost:1", "postgresql://me:secret@localhost:1/nothing"])
async def test_a_service_without_its_server_works_and_the_summary_says_what_is_missing(settings_of, caplog):
    with caplog.at_level(logging.INFO, "acgsperf.fleet"):
        async with PerformanceService(settings_of(), handler=handler) as service:
            assert await service.process_request({"id": 7}) == 7
            for _ in range(3):
                service.observe()
                summary = await service.fleet_summary()
            (problem,) = summary.missing
            assert "cannot use the reports at localhost:1" in problem
            assert "secret" not in problem
            assert (len(summary.instances), summary.requests) == (1, 1)
            assert "backplane" in summary.instances[0].unhealthy
            await until_logged(caplog, "cannot be published")
    found = [record.message for record in caplog.records if record.name == "acgsperf.fleet"]
    assert [message for message in found if "secret" in message] == []
    assert sum("cannot be published" in message for message in found) == 1


async def until_logged(caplog, text):
    async def logged():
        return text in caplog.text

    await until(logged)


async def test_a_server_that_does_not_answer_delays_no_request_and_no_close(namespace):
    async def accept(reader, writer):
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    silent = await asyncio.start_server(accept, "localhost", 0)
    async with silent:
        url = f"redis://localhost:{silent.sockets[0].getsockname()[1]}"
        settings = Settings(redis_url=url, cache_namespace=namespace)
        async with PerformanceService(settings, handler=handler) as service:
            service.observe()
            assert await service.process_request({"id": 7}) == 7
            publishing = service._fleet._background._task
            assert not publishing.done()
        assert publishing.done()


async def test_instances_in_other_processes_come_and_go(settings_of, open_service):
    service = await open_service(settings_of())
    names = ("redis_url", "database_url", "cache_namespace", "db_pool_min_size", "monitoring_interval_s")
    settings = {name: getattr(service.settings, name) for name in names}
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(INSTANCE), json.dumps(settings), str(count)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for count in (10, 20, 30)
    ]
    try:
        async with asyncio.timeout(120):
            for process in processes:
                assert await process.stdout.readline() == b"ready\n"
        summary = await summary_with(service, 4, 60)
        assert sorted(one.requests for one in summary.instances) == [0, 10, 20, 30]
        assert {one.name.rpartition(":")[2] for one in summary.instances} == {
            str(pid) for pid in (os.getpid(), *(process.pid for process in processes))
        }
        # One ends as it should, and its report is gone. One is killed, and its report remains until it expires.
        processes[0].stdin.close()
        processes[1].kill()
        for process in processes[:2]:
            await process.wait()
        summary = await summary_with(service, 3)
        assert sorted(one.requests for one in summary.instances) == [0, 20, 30]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def test_a_round_in_another_thread_publishes_too(settings_of, open_service):
    first, second = await open_service(settings_of()), await open_service(settings_of())
    await second.process_request({"id": 1})
    await asyncio.to_thread(second.observe)
    await summary_with(first, 2, 1)
