"""The last weeks on the dashboard, read from a real PostgreSQL."""

import asyncio
import json
import secrets
import time

import asyncpg
import httpx
import pytest

from acgsperf import LatencyHistogram, PerformanceService, Settings
from acgsperf.dashboard import Dashboard, FleetSource
from acgsperf.dashboard.service_source import ServiceSource
from acgsperf.dashboard.trend_watch import TrendWatch
from acgsperf.errors import TrendError
from acgsperf.fleet import store_of
from acgsperf.trends import History, Hour
from acgsperf.trends.store import TrendStore

HOUR_S = 3600


@pytest.fixture
def namespace():
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
async def save_hours(servers, namespace):
    """Save hours until now, which a store would refuse. From some hour on, everything takes 50 % longer."""
    async with TrendStore(servers.database_url, namespace, timeout=30) as store:
        # The first write creates the table.
        await store.tidy()

    async def save(count, slower_from=None):
        end = int(time.time() // HOUR_S) * HOUR_S
        rows = []
        for at in range(count):
            factor = 1.5 if slower_from is not None and at >= slower_from else 1.0
            latency = LatencyHistogram()
            latency.record_many([round(1_000_000 * factor * (1 + at % 7 / 100))] * 300)
            rows.append((namespace, end - (count - at) * HOUR_S, "1", "a", 0, 0, 10, latency.encode()))
        writer = await asyncpg.connect(servers.database_url)
        try:
            await writer.executemany("INSERT INTO acgsperf_trends_v1 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", rows)
        finally:
            await writer.close()

    return save


async def test_a_fleet_shows_the_hours_and_what_became_slower(save_hours, servers, namespace):
    await save_hours(24 * 22, slower_from=24 * 18)
    store = store_of(servers.redis_url, namespace, timeout=30)
    source = FleetSource(store, trends=TrendStore(servers.database_url, namespace, timeout=30))
    first, second = await asyncio.gather(source.trends(), source.trends())
    assert first is second
    assert len(first.hours) == 24 * 22
    assert first.hours[0].p99_ms == pytest.approx(1, rel=0.02)
    assert first.hours[-1].p99_ms == pytest.approx(1.5, rel=0.1)
    assert first.hours[0].requests == pytest.approx(300 / HOUR_S, rel=0.01)
    assert first.hours[-1].at <= time.time()
    assert any(change.startswith("P99 50.") and " slower since " in change for change in first.changes)
    await source.close()
    await source.close()
    assert (await source.trends()).hours == first.hours
    await source.close()


async def test_a_service_shows_its_hours_and_looks_for_no_changes(save_hours, servers, namespace):
    await save_hours(30)
    settings = Settings(cache_namespace=namespace, database_url=servers.database_url)

    async def handler(request):
        return {"id": request["id"]}

    async with PerformanceService(settings, handler=handler) as service:
        source = ServiceSource(service)
        found = await source.trends()
        assert len(found.hours) == 30
        assert found.changes is None
        # It is not read again for 10 minutes.
        assert await source.trends() is found


async def test_hours_that_cannot_be_read_are_named_without_a_password(servers, namespace):
    broken = TrendStore("postgresql://user:secret@127.0.0.1:1/app", namespace, timeout=5)
    source = FleetSource(store_of(servers.redis_url, namespace), trends=broken)
    found = await source.trends()
    assert found.hours == ()
    assert "127.0.0.1:1" in found.missing[0]
    assert "secret" not in str(found)
    await source.close()


async def test_the_hours_of_28_days_are_shown_however_many_have_requests(servers, namespace):
    end = int(time.time() // HOUR_S) * HOUR_S
    figures = {"failed": 0, "violations": 0, "missed": 0, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0}
    starts = [end - day * 24 * HOUR_S + hour * HOUR_S for day in range(90, 0, -1) for hour in range(8)]

    class Known(TrendStore):
        async def history(self):
            return History(hours=[Hour(start=start, version=None, requests=1000, **figures) for start in starts])

    earliest = time.time() - 28 * 24 * HOUR_S
    found = await TrendWatch(Known(servers.database_url, namespace)).latest()
    assert len(found.hours) == pytest.approx(28 * 8, abs=8)
    assert found.hours[0].at > earliest
    assert found.hours[-1].at == starts[-1] + HOUR_S


async def test_the_page_asks_again_soon_after_a_failure(servers, namespace):
    """As soon as they are read again: in 10 minutes as usual, in one minute after a failure."""
    async with TrendStore(servers.database_url, namespace, timeout=60) as working:
        assert (await TrendWatch(working).latest()).next_s == 600
    closed = await TrendWatch(working).latest()
    assert "opened first" in closed.missing[0]
    assert closed.next_s == 60


async def test_hours_that_fail_unexpectedly_are_named_and_logged(servers, namespace, caplog):
    class Broken(TrendStore):
        async def history(self):
            raise RuntimeError("secret")

    found = await TrendWatch(Broken(servers.database_url, namespace)).latest()
    assert found.missing == ("the last weeks cannot be read; see the log of the service",)
    assert found.next_s == 60
    assert "the last weeks cannot be read" in caplog.text


async def test_the_page_gets_them_only_while_somebody_views_it(save_hours, servers, namespace):
    await save_hours(3)
    fleet = store_of(servers.redis_url, namespace, timeout=30)
    trends = TrendStore(servers.database_url, namespace, timeout=30)
    dashboard = Dashboard(fleet=fleet, trends=trends)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(dashboard), base_url="http://ops") as client:
        assert (await client.get("/trends")).status_code == 409
        leave = asyncio.Event()

        async def receive():
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {"type": "http", "method": "GET", "path": "/events", "root_path": "", "headers": []}
        viewing = asyncio.create_task(dashboard(scope, receive, send))
        while not dashboard.viewers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        found = await client.get("/trends")
        assert found.status_code == 200
        assert len(json.loads(found.content)["hours"]) == 3
        leave.set()
        await viewing
        with pytest.raises(TrendError, match="opened first"):
            await trends.history()


async def test_a_viewer_that_comes_while_the_last_one_leaves_sees_no_problem(save_hours, servers, namespace):
    """As when the only viewer reloads the page."""
    await save_hours(3)
    fleet = store_of(servers.database_url, namespace, timeout=60)
    dashboard = Dashboard(fleet=fleet, trends=TrendStore(servers.database_url, namespace, timeout=60))

    async def view(events, leave):
        async def send(message):
            if (body := message.get("body", b"")).startswith(b"event: "):
                events.put_nowait(body)

        async def receive():
            await leave.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/events", "root_path": "", "headers": []}
        await dashboard(scope, receive, send)

    transport = httpx.ASGITransport(dashboard)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://ops", timeout=120) as client,
        asyncio.TaskGroup() as group,
    ):
        leave = None
        for turns in range(20):
            events, leave_earlier, leave = asyncio.Queue(), leave, asyncio.Event()
            if leave_earlier is not None:
                leave_earlier.set()
            # At different moments of the end of the other viewer.
            for _ in range(turns):
                await asyncio.sleep(0)
            group.create_task(view(events, leave))
            event = await asyncio.wait_for(events.get(), 60)
            assert event.startswith(b"event: snapshot"), event
            found = await client.get("/trends")
            assert found.status_code == 200
            assert len(found.json()["hours"]) == 3
        leave.set()


async def test_without_a_database_there_are_none():
    assert await ServiceSource(cache=(), service=None, http=_Http()).trends() is None


class _Http:
    """No routes."""

    def route_histograms(self):
        return {}


def test_trends_need_a_fleet(servers):
    with pytest.raises(TypeError, match="trends needs fleet"):
        Dashboard(trends=TrendStore(servers.database_url, "app"))
