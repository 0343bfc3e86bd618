"""Rates and percentiles of an interval, the snapshot of a service, and the same from its page of metrics."""

import asyncio
import threading
import time

import pytest
from prometheus_client import CollectorRegistry

from acgsperf import LatencyHistogram, PerformanceService, Reading, Settings
from acgsperf.dashboard import PageSource
from acgsperf.dashboard.bands import BOUNDS_NS
from acgsperf.dashboard.compose import compose
from acgsperf.dashboard.interval import Buckets, Interval, Observation
from acgsperf.dashboard.service_source import ServiceSource
from acgsperf.metrics.prometheus import PerformanceCollector, exposition
from acgsperf.workbench.scrape import ScrapeError


def observation(at, figures, bounds=(10, 20)):
    return Observation(at, at, figures, bounds)


def test_a_rate_is_the_growth_of_a_counter_per_second():
    before = observation(10.0, {"requests": {(): 100}, "cache_hits": {("a", "l1"): 5, ("b", "l1"): 1}})
    now = observation(14.0, {"requests": {(): 180}, "cache_hits": {("a", "l1"): 9, ("b", "l1"): 1}})
    interval = Interval(now, before)
    assert interval.per_second("requests") == 20
    assert interval.growth("cache_hits", "a") == 4
    assert interval.growth("cache_hits") == 4
    assert interval.per_second("nothing") is None
    assert Interval(now, None).per_second("requests") is None


def test_counters_of_a_process_that_started_again_count_from_0():
    before = observation(10.0, {"requests": {(): 100}, "request_duration_seconds": {(): [5, 7, 9, 1]}})
    now = observation(11.0, {"requests": {(): 3}, "request_duration_seconds": {(): [1, 2, 3, 1]}})
    interval = Interval(now, before)
    assert interval.growth("requests") == 3
    assert interval.buckets("request_duration_seconds").counts == [1, 1, 1]


def test_percentiles_of_an_interval_are_within_2_percent_of_the_true_ones():
    histogram = LatencyHistogram()
    values = [round(1000 * 1.001**step) for step in range(9000)]
    histogram.record_many(values)
    within, total, _ = histogram.cumulative(BOUNDS_NS)
    counts = [after - before for after, before in zip([*within, total], [0, *within], strict=True)]
    buckets = Buckets(BOUNDS_NS, counts)
    for quantile in (0.5, 0.95, 0.99):
        true = sorted(values)[int(quantile * len(values))] / 1e6
        assert buckets.quantile_ms(quantile) == pytest.approx(true, rel=0.02)
    assert sum(buckets.grouped(4)) == len(values)


def test_nothing_was_measured_without_requests():
    found = compose("idle", Interval(observation(2.0, {}), observation(1.0, {})))
    assert found.point.p99_ms is None
    assert found.point.requests is None
    assert found.caches == ()


def test_at_most_20_parts_with_short_names_are_shown():
    routes = {(f"/{'x' * 500}{number}",): [0, 0, number, 0] for number in range(1000)}
    now = observation(2.0, {"http_request_duration_seconds": routes})
    found = compose("hostile", Interval(now, observation(1.0, {})))
    assert len(found.routes) == 20
    assert found.routes[0].total == 999
    assert max(len(route.name) for route in found.routes) <= 80


def test_a_page_with_very_many_series_is_read_in_a_short_time():
    """With 100,000 routes and pools, and not the time of their square."""
    names = [(f"x{number}",) for number in range(100_000)]
    figures = {
        "http_request_duration_seconds": {name: [0, 0, 1, 0] for name in names},
        "pool_connections": dict.fromkeys(names, 1),
        "pool_used_connections": dict.fromkeys(names, 1),
        "pool_wait_seconds": {name: [0, 0, 1, 0] for name in names},
    }
    began = time.thread_time()
    found = compose("hostile", Interval(observation(2.0, figures), observation(1.0, figures)))
    assert time.thread_time() - began < 5
    assert (len(found.routes), len(found.pools)) == (20, 20)


async def handler(request):
    return {}


@pytest.fixture
async def service():
    async with PerformanceService(Settings(cache_namespace="shop"), handler=handler) as opened:
        yield opened


async def work(service, count=100, keys=10):
    for number in range(count):
        await service.process_request({"id": number % keys})


async def test_the_snapshot_of_a_service(service):
    source = ServiceSource(service)
    assert (await source.snapshot()).seconds == 0
    await work(service)
    found = await source.snapshot()
    point = found.point
    assert found.name == "shop"
    assert point.requests == pytest.approx(100 / found.seconds, rel=0.01)
    assert point.hit_rate == 0.9
    assert sum(point.heat) == 100
    assert len(point.heat) == len(found.bands_ms) + 1
    assert 0 < point.p50_ms <= point.p95_ms <= point.p99_ms
    (cache,) = found.caches
    assert [tier.name for tier in cache.tiers] == ["l1"]
    assert cache.entries == 10
    assert found.targets.p99_ms == 5


async def test_the_sizes_of_l1_are_those_of_the_statistics():
    async with PerformanceService(Settings(l1_cache_size=100), handler=handler) as service:
        await work(service, 2000, 300)
        (cache,) = (await ServiceSource(service).snapshot()).caches
        expected = service.cache.stats().sizing
    assert [size.maxsize for size in cache.sizing.sizes] == [size.maxsize for size in expected.sizes]
    assert [size.adaptive for size in cache.sizing.sizes] == pytest.approx(
        [size.adaptive for size in expected.sizes], abs=1e-4
    )
    assert cache.sizing.point_entries == expected.point_entries
    assert cache.sizing.requests == expected.requests


async def test_a_forecast_says_when(service):
    source = ServiceSource(service)
    now = service.traffic.clock()
    for number in range(80):
        p99 = 2 + 0.04 * number
        service.monitor.observe(
            Reading(at=now + 30 * (number - 70), requests=1000, p50_ms=0.1, p95_ms=0.2, p99_ms=p99, hit_rate=0.99)
        )
        if service.monitor.active:
            break
    (alert,) = (await source.snapshot()).alerts
    assert alert.kind == "forecast"
    assert alert.text.startswith("P99 passes 5 ms ")
    assert [point.p99_ms for point in source.history()][:2] == [2, 2.04]


async def test_an_alert_about_a_pool_and_one_about_the_hit_rate(service):
    source = ServiceSource(service)
    for number in range(12):
        service.monitor.observe(
            Reading(at=float(number), requests=1000, hit_rate=0.5, unhealthy_pools=("orders",) if number else ())
        )
    texts = {alert.text for alert in (await source.snapshot()).alerts}
    assert texts == {"Pool orders is unhealthy", "Hit rate: 50.00%, target 95.00%"}


async def test_a_page_of_metrics_gives_the_same_figures(service, monkeypatch):
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(service))
    page = exposition(registry)
    source, remote = ServiceSource(service), PageSource("http://localhost/metrics")
    monkeypatch.setattr(remote, "_fetch", lambda url, timeout: page()[1].decode())
    await work(service, 10)
    await source.snapshot()
    remote.compare(remote.observe())
    await work(service)
    near, far = await source.snapshot(), remote.compare(remote.observe())
    assert far.requests == near.requests == 110
    assert far.caches[0].entries == near.caches[0].entries
    assert far.point.hit_rate == near.point.hit_rate
    assert sum(far.point.heat) == 100
    assert far.point.requests == pytest.approx(100 / far.seconds, rel=0.01)
    assert far.alerts is None
    assert far.hot_keys is None


STRANGE = """# TYPE acgsperf_request_duration_seconds histogram
acgsperf_requests_total 1
"""


@pytest.mark.parametrize(
    "page",
    [
        "<html>",
        "other_total 1\n",
        "acgsperf_requests_total NaN\n",
        STRANGE + 'acgsperf_request_duration_seconds_bucket{le="x"} 1\n',
        STRANGE + "acgsperf_request_duration_seconds_bucket 1\n",
        STRANGE + 'acgsperf_cache_entries{cache="a"} 1\nacgsperf_cache_sizing_entries{cache="a",factor="x"} 1\n',
    ],
)
def test_a_page_that_is_not_one_of_metrics_is_refused(page, monkeypatch):
    source = PageSource("http://localhost/metrics")
    monkeypatch.setattr(source, "_fetch", lambda url, timeout: page)
    with pytest.raises(ScrapeError):
        source.compare(source.observe())


async def test_a_page_with_an_impossible_value_is_refused(monkeypatch):
    source = PageSource("http://localhost/metrics")
    page = "acgsperf_requests_total 5.0\nacgsperf_request_errors_total 1e308\n"
    monkeypatch.setattr(source, "_fetch", lambda url, timeout: page)
    with pytest.raises(ScrapeError, match="request_errors"):
        await source.snapshot()


async def test_the_first_figures_of_a_page_are_not_those_of_the_time_without_viewers(monkeypatch):
    source = PageSource("http://localhost/metrics")
    monkeypatch.setattr(source, "_fetch", lambda url, timeout: "acgsperf_requests_total 5.0\n")
    source.start()
    seconds = [(await source.snapshot()).seconds for _ in range(2)]
    assert seconds[0] == 0 < seconds[1]
    source.stop()
    source.start()
    assert (await source.snapshot()).seconds == 0


async def test_a_page_that_arrives_after_the_last_viewer_is_not_kept(monkeypatch):
    source = PageSource("http://localhost/metrics")
    asked, answered = threading.Event(), threading.Event()

    def fetch(url, timeout):
        asked.set()
        assert answered.wait(60)
        return "acgsperf_requests_total 5.0\n"

    monkeypatch.setattr(source, "_fetch", fetch)
    source.start()
    taking = asyncio.create_task(source.snapshot())
    await asyncio.to_thread(asked.wait, 60)
    taking.cancel()
    await asyncio.wait([taking])
    source.stop()
    source.start()
    answered.set()
    assert (await source.snapshot()).seconds == 0
