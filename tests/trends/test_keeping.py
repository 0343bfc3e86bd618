"""A service keeps its hours, and nothing waits for the server."""

import asyncio
import logging
from urllib.parse import urlsplit

import pytest
from fleet.instance import patient

from acgsperf import LatencyHistogram
from acgsperf.errors import SettingsError
from acgsperf.service import PerformanceService
from acgsperf.service.hours import HourKeeper
from acgsperf.settings import Settings
from acgsperf.trends.store import TrendStore
from trends.conftest import HOUR, this_hour


class Moved:
    """The time of this machine, moved by a test."""

    def __init__(self):
        self.now = float(this_hour() - 2 * HOUR)

    def __call__(self):
        return self.now


@pytest.fixture
def moved():
    return Moved()


@pytest.fixture
def patient_close(monkeypatch):
    """Let a service that closes wait for its server, although the machine is busy."""
    monkeypatch.setattr("acgsperf.service.hours.LAST_S", 60)


@pytest.fixture
def service_of(servers, namespace, moved):
    def create(**changes):
        settings = {
            "database_url": servers.database_url,
            "cache_namespace": namespace,
            "db_pool_min_size": 0,
            "monitoring_interval_s": 600,
            "service_version": "1.4.2",
        }

        async def handler(request):
            if request["id"] == "bad":
                raise RuntimeError("bad")
            return request["id"]

        service = patient(PerformanceService(Settings(**settings | changes), handler=handler))
        if service._hours is not None:
            service._hours._clock = moved
            service._hours._hour = service._hours._current_hour()
            service._hours._saved_at = moved()
            # The machine may be busy with other tests.
            service._hours.store._timeout = 60
        return service

    return create


async def saved(service):
    if service._hours._background._task is not None:
        async with asyncio.timeout(60):
            await service._hours._background._task


async def round_of(service):
    service.observe()
    await asyncio.sleep(0)
    await saved(service)


async def test_hours_are_kept_with_the_version_of_the_service(service_of, store, moved, patient_close):
    async with service_of() as service:
        for number in range(5):
            await service.process_request({"id": number})
        await service.process_request({"id": 0})
        with pytest.raises(RuntimeError):
            await service.process_request({"id": "bad"})
        moved.now += HOUR
        await round_of(service)
        await service.process_request({"id": 1})
    first, second = (await store.history()).versions
    assert (first.start, second.start) == (moved.now - HOUR, moved.now)
    assert (first.version, first.requests, first.failed, first.missed) == ("1.4.2", 7, 1, 6)
    assert (second.requests, second.failed, second.missed) == (1, 0, 0)
    assert first.p99_ms > 0


async def test_an_hour_is_saved_every_5_minutes(service_of, store, moved, patient_close):
    async with service_of() as service:
        await service.process_request({"id": 1})
        moved.now += 299
        await round_of(service)
        assert (await store.history()).hours == []
        moved.now += 1
        await round_of(service)
        assert [hour.requests for hour in (await store.history()).hours] == [1]
        await service.process_request({"id": 1})
        moved.now += 300
        await round_of(service)
        assert [hour.requests for hour in (await store.history()).hours] == [2]


async def test_an_idle_service_saves_nothing(service_of, store, moved, patient_close):
    async with service_of() as service:
        moved.now += HOUR
        await round_of(service)
    assert (await store.history()).hours == []


async def test_a_clock_that_is_set_back_to_an_earlier_hour_loses_nothing(service_of, store, moved, patient_close):
    start = moved.now
    async with service_of() as service:
        for requests, seconds in ((40, 3500), (30, 120), (5, -90), (2, 100), (4, -110), (3, 110)):
            for number in range(requests):
                await service.process_request({"id": number})
            moved.now += seconds
            await round_of(service)
        await service.process_request({"id": 1})
    hours = {(hour.start - start) // HOUR: hour.requests for hour in (await store.history()).hours}
    # Requests count in the hour that the clock showed at the observation before them.
    assert hours == {0: 40 + 30 + 2 + 3, 1: 5 + 4 + 1}


async def test_a_switch_and_a_missing_database_turn_it_off(service_of):
    assert service_of(trends_enabled=False)._hours is None
    assert service_of(database_url=None)._hours is None


async def test_a_wrong_clock_is_logged_once(service_of, moved, caplog, patient_close):
    moved.now = 1_000.0
    async with service_of() as service:
        for _ in range(3):
            await service.process_request({"id": 1})
            moved.now += HOUR
            await round_of(service)
    found = [record.message for record in caplog.records if record.name == "acgsperf.trends"]
    assert len(found) == 1
    assert "check the clock of this machine" in found[0]


async def test_without_its_server_the_service_works_and_says_so_once(service_of, moved, caplog):
    dead = "postgresql://me:secret@localhost:1/nothing"
    with caplog.at_level(logging.INFO, "acgsperf.trends"):
        async with service_of(database_url=dead, fleet_enabled=False) as service:
            for number in range(8):
                assert await service.process_request({"id": number}) == number
                moved.now += HOUR
                await round_of(service)
            assert len(service._hours._unsaved) == 4
    found = [record.message for record in caplog.records if record.name == "acgsperf.trends"]
    assert len(found) == 1
    assert "cannot be saved; it tries again every 300 s: cannot use the trends at localhost:1" in found[0]
    assert "secret" not in caplog.text


async def test_what_a_dead_server_missed_is_saved_when_it_answers(service_of, store, moved, servers, namespace, caplog):
    async with service_of() as service:
        good, service._hours.store = service._hours.store, TrendStore("postgresql://localhost:1/nothing", namespace)
        await service._hours.store.open()
        await service.process_request({"id": 1})
        moved.now += HOUR
        await round_of(service)
        await service._hours.store.close()
        service._hours.store = good
        moved.now += 300
        with caplog.at_level(logging.INFO, "acgsperf.trends"):
            await round_of(service)
        assert "are saved again" in caplog.text
    assert (await store.history()).hours[0].requests == 1


async def test_without_the_right_to_delete_the_hours_are_saved(
    service_of, store, moved, servers, writer, namespace, caplog, patient_close
):
    role = f"keeper_{namespace[5:]}"
    await writer.execute(f"CREATE ROLE {role} LOGIN")
    try:
        await writer.execute(f"GRANT SELECT, INSERT, UPDATE ON acgsperf_trends_v1 TO {role}")
        parts = urlsplit(servers.database_url)
        url = parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()
        async with service_of(database_url=url, fleet_enabled=False) as service:
            for number in range(3):
                await service.process_request({"id": number})
                moved.now += HOUR if number < 2 else 300
                await round_of(service)
            await service.process_request({"id": 0})
    finally:
        await writer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    rows = [LatencyHistogram.decode(row["latency"]).count for row in await writer.rows()]
    assert rows == [1, 1, 2]
    found = [record.message for record in caplog.records if record.name == "acgsperf.trends"]
    assert len(found) == 1
    assert "old hours cannot be merged and removed; it tries again every hour: " in found[0]
    assert "permission denied for table acgsperf_trends_v1" in found[0]


async def test_a_server_that_does_not_answer_delays_close_by_a_second_at_most(service_of, caplog):
    async def accept(reader, writer):
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(accept, "localhost", 0)
    async with silent:
        url = f"postgresql://localhost:{silent.sockets[0].getsockname()[1]}/nothing"
        service = await service_of(database_url=url, fleet_enabled=False).open()
        await service.process_request({"id": 1})
        async with asyncio.timeout(60):
            await service.close()
    assert "the last minutes are not saved" in caplog.text


def test_a_url_that_cannot_be_used_is_a_settings_error(service_of):
    with pytest.raises((SettingsError, ValueError)) as caught:
        service_of(database_url="postgresql://me:secret@localhost:99999/x")
    assert "secret" not in str(caught.value)


async def test_before_open_and_after_close_nothing_is_saved(service_of, store, moved, patient_close):
    service = service_of()
    moved.now += HOUR
    service.observe()
    async with service:
        pass
    moved.now += HOUR
    service.observe()
    await service._hours.close()
    assert (await store.history()).hours == []


async def test_the_hours_of_two_instances_are_added(service_of, store, moved, patient_close):
    for _ in range(2):
        async with service_of() as service:
            await service.process_request({"id": 1})
    (hour,) = (await store.history()).hours
    assert hour.requests == 2


def test_a_keeper_needs_no_loop_to_be_created(servers, namespace):
    from acgsperf.cache import TieredCache
    from acgsperf.dispatch import LRUCache
    from acgsperf.service.traffic import Traffic

    traffic = Traffic(TieredCache(LRUCache(1), namespace="n"))
    HourKeeper(TrendStore(servers.database_url, namespace), traffic, lambda: "a").observe()
