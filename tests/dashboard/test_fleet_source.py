"""The dashboard of a fleet: the instances together and one by one, the trials, and what the reports lack."""

import asyncio
import json
import secrets
import subprocess
import sys

import pytest

from acgsperf import LatencyHistogram, PerformanceService, Settings
from acgsperf.dashboard import Dashboard, FleetSource
from acgsperf.dashboard.service_source import ServiceSource
from acgsperf.errors import FleetError
from acgsperf.fleet import Report, store_of
from acgsperf.fleet.trials import Agreement, Finished, Trial, TrialOutcome, encoded


@pytest.fixture
def namespace():
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture(params=["redis", "postgresql"])
def url(request, servers):
    return servers.redis_url if request.param == "redis" else servers.database_url


@pytest.fixture
async def store(url, namespace):
    async with store_of(url, namespace, timeout=30) as store:
        yield store


@pytest.fixture
async def source(url, namespace):
    source = FleetSource(store_of(url, namespace, timeout=30))
    yield source
    await source.close()


def report(number, sequence, latencies_ns=(), **changes):
    latency = LatencyHistogram()
    latency.record_many(latencies_ns)
    counts = {"seconds": 10.0 * sequence, "failed": 0, "violations": 0, "missed": 0, "name": f"host-{number}:1"}
    return Report(
        **{"instance": f"{number:016x}", "sequence": sequence, "latency": latency.encode()} | counts | changes
    )


async def test_rates_and_percentiles_are_those_between_the_last_two_reports(store, source):
    await store.publish(report(1, 1, [9_000_000] * 500))
    await store.publish(report(2, 1, [9_000_000] * 300))
    first = await source.snapshot()
    assert first.processes == 2
    assert first.requests == 800
    assert first.seconds == 0
    assert first.point.requests is None
    await store.publish(report(1, 2, [9_000_000] * 500 + [1_000_000] * 100, missed=20))
    await store.publish(report(2, 2, [9_000_000] * 300 + [2_000_000] * 50, failed=10, violations=30))
    second = await source.snapshot()
    assert second.seconds > 0
    assert second.point.requests == pytest.approx(16)
    assert second.point.errors == pytest.approx(1)
    assert second.point.violations == pytest.approx(3)
    assert second.point.hit_rate == pytest.approx(140 / 160, rel=1e-3)
    assert second.point.p50_ms == pytest.approx(1, rel=0.1)
    assert second.point.p99_ms == pytest.approx(2, rel=0.1)
    assert sum(second.point.heat) == 150
    one, two = second.instances
    assert (one.name, one.requests, one.total) == ("host-1:1", 10, 600)
    assert (two.requests, two.errors, two.p99_ms) == (6, 1, pytest.approx(2, rel=0.1))


async def test_without_a_new_report_the_charts_get_no_point(store, source):
    for sequence in (1, 2):
        await store.publish(report(1, sequence, [1_000_000] * 10 * sequence))
        await source.snapshot()
    third = await source.snapshot()
    assert third.seconds == 0
    assert third.point.requests == pytest.approx(1)


async def test_an_instance_that_was_restarted_or_lies_has_no_rates(store, source):
    await store.publish(report(1, 1, [1_000_000] * 50, missed=40))
    await source.snapshot()
    await store.publish(report(1, 2, [1_000_000] * 20))
    await store.publish(report(2, 1, [1_000_000] * 20))
    found = await source.snapshot()
    assert [one.requests for one in found.instances] == [None, None]
    assert found.point.requests is None
    assert found.seconds == 0


@pytest.mark.parametrize("seconds", [5e-324, 5e-307, 1e-9])
async def test_a_report_that_grew_too_fast_is_refused_until_the_next_good_one(store, source, seconds):
    await store.publish(report(1, 1, [1_000_000] * 50, seconds=0.0))
    await store.publish(report(2, 1, [1_000_000] * 50))
    await source.snapshot()
    await store.publish(report(1, 2, [1_000_000] * 100, seconds=seconds))
    await store.publish(report(2, 2, [1_000_000] * 150))
    for _ in range(2):
        found = await source.snapshot()
        assert found.missing == ("1 report is damaged or too large",)
        assert [one.name for one in found.instances] == ["host-2:1"]
        assert found.point.requests == 10
    await store.publish(report(1, 3, [1_000_000] * 150, seconds=10.0))
    found = await source.snapshot()
    assert found.missing == ()
    assert found.point.requests == 20


async def test_a_report_of_more_requests_than_a_process_can_answer_is_refused(store, source):
    await store.publish(report(1, 1, [1_000_000]))
    await store.publish(report(2, 1, failed=2**50))
    crowd = LatencyHistogram()
    crowd.record(1_000_000)
    for _ in range(50):
        crowd.merge(LatencyHistogram.decode(crowd.encode()))
    await store.publish(report(3, 1, latency=crowd.encode()))
    found = await source.snapshot()
    assert found.missing == ("2 reports are damaged or too large",)
    assert found.requests == 1


async def test_instances_with_problems_come_first_and_are_alerts(store, source):
    for number in range(1, 121):
        await store.publish(report(number, 1))
    await store.publish(report(120, 2, unhealthy=("l2",), alerts=("P99",)))
    found = await source.snapshot()
    assert found.processes == 120
    assert len(found.instances) == 100
    assert found.instances[0].name == "host-120:1"
    assert {(alert.kind, alert.text) for alert in found.alerts} == {
        ("unhealthy", "host-120:1: l2"),
        ("alert", "host-120:1: P99"),
    }
    since = [alert.since for alert in found.alerts]
    assert [alert.since for alert in (await source.snapshot()).alerts] == since
    await store.publish(report(120, 3))
    assert (await source.snapshot()).alerts == ()


async def test_the_trials_are_listed_the_latest_first(store, source):
    ended = [
        Finished(
            id=str(at),
            setting="l1_size",
            before=1000,
            value=1000 + at,
            outcome=outcome,
            change=-0.1,
            p=0.01,
            instances=4,
        )
        for at, outcome in enumerate((TrialOutcome.ADOPTED, TrialOutcome.STOPPED))
    ]
    running = Trial(id="a", setting="refresh_ahead", before=0.8, value=0.9, instances=("1", "2"), blocks=2)
    agreement = Agreement(finished=tuple(ended), trial=running, settings={"l1_size": 1000.0})
    assert await store.replace_state(0, encoded(agreement))
    found = await source.snapshot()
    assert [(trial.setting, trial.outcome) for trial in found.trials] == [
        ("refresh_ahead", "running"),
        ("l1_size", "stopped"),
        ("l1_size", "adopted"),
    ]
    assert found.trials[2].change == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "document", [b"\xff" * 100, b"\x91" * 5000, encoded({"format": 99})], ids=["no", "deep", "new"]
)
async def test_trials_that_cannot_be_read_are_named_and_hide_nothing_else(store, source, document):
    await store.publish(report(1, 1))
    assert await store.replace_state(0, document)
    found = await source.snapshot()
    assert len(found.instances) == 1
    assert found.trials == ()
    assert found.missing[0].startswith("the trials cannot be read: ")


async def test_a_report_whose_latencies_cannot_be_decoded_is_counted(store, source):
    await store.publish(report(1, 1))
    broken = report(2, 1, [1_000_000])
    await store.publish(report(2, 1, latency=broken.latency[:-4] + b"AAAA"))
    found = await source.snapshot()
    assert [one.name for one in found.instances] == ["host-1:1"]
    assert found.missing == ("1 report is damaged or too large",)


async def test_a_viewer_opens_the_store_and_the_last_one_closes_it(store, url, namespace):
    await store.publish(report(1, 1, [1_000_000]))
    fleet = store_of(url, namespace, timeout=30)
    dashboard = Dashboard(fleet=fleet, name="shop")
    with pytest.raises(FleetError, match="opened first"):
        await fleet.found()
    for _ in range(2):
        events = await events_of(dashboard, until="snapshot")
        assert events["snapshot"]["name"] == "shop"
        assert events["snapshot"]["instances"][0]["name"] == "host-1:1"
        with pytest.raises(FleetError, match="opened first"):
            await fleet.found()


async def events_of(dashboard, until):
    """View a dashboard until an event comes, and return the last event of each name."""
    events, gone = {}, asyncio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        for event in message.get("body", b"").split(b"\n\n"):
            name, _, data = event.partition(b"\ndata: ")
            if data:
                events[name.removeprefix(b"event: ").decode()] = json.loads(data)
        if until in events:
            gone.set()

    scope = {"type": "http", "method": "GET", "path": "/events", "root_path": "", "headers": []}
    await asyncio.wait_for(dashboard(scope, receive, send), 60)
    return events


async def test_a_server_that_is_not_there_is_named_without_its_password(namespace):
    dashboard = Dashboard(fleet=store_of("redis://:secret@127.0.0.1:1/0", namespace, timeout=5))
    events = await events_of(dashboard, until="problem")
    assert "127.0.0.1:1" in events["problem"]
    assert "secret" not in str(events)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fleet": "redis://"}, "fleet must be a ReportStore"), ({"token": "x" * 16}, "fleet excludes service")],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(TypeError, match=message):
        Dashboard(**{"fleet": store_of("redis://127.0.0.1:1/0", "app")} | options)


async def handler(request):
    return {"id": request["id"]}


async def test_the_page_of_a_service_shows_the_other_instances(url, store, namespace):
    kind = "database_url" if url.startswith("postgres") else "redis_url"
    settings = Settings(cache_namespace=namespace, **{kind: url})
    await store.publish(report(1, 1, unhealthy=("l3",)))
    async with PerformanceService(settings, handler=handler) as service:
        source = ServiceSource(service)
        source.start()
        async with asyncio.timeout(60):
            while len((found := await source.snapshot()).instances or ()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert found.instances[0].name == "host-1:1"
        assert found.trials == ()
        assert found.processes == 1
        source.stop()
        await source.close()
        assert (await source.snapshot()).instances is None
        await source.close()


async def test_without_a_server_a_service_has_no_fleet():
    async with PerformanceService(Settings(), handler=handler) as service:
        found = await ServiceSource(service).snapshot()
        assert found.instances is None
        assert found.missing == ()


async def test_top_shows_the_instances_of_a_fleet(store, url, namespace):
    await store.publish(report(1, 1, [1_000_000] * 10, unhealthy=("l2",)))
    command = [sys.executable, "-m", "acgsperf", "top", url, "--namespace", namespace, "--once", "--interval", "0.2"]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "host-1:1" in ended.stdout
    assert "1 process  10 requests" in ended.stdout
    assert "l2" in ended.stdout
    assert ended.stderr == ""


def test_top_names_a_fleet_server_that_is_not_there():
    command = [sys.executable, "-m", "acgsperf", "top", "redis://:secret@127.0.0.1:1/0", "--once"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert "127.0.0.1:1" in ended.stderr
    assert "secret" not in ended.stderr
    assert "Traceback" not in ended.stderr
