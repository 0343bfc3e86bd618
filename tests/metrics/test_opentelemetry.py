"""The instruments, read through the SDK."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.metrics import Counter, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.attributes import error_attributes, http_attributes

from acgsperf import ConnectionPool, LRUCache, PoolManager, TieredCache, hooks
from acgsperf.asgi.concurrency_limit import ConcurrencyLimitStats
from acgsperf.metrics import opentelemetry
from acgsperf.metrics.catalogue import ATTRIBUTES, METRICS
from acgsperf.metrics.opentelemetry import INSTRUMENTS, instrument


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert opentelemetry._running == []
    assert (hooks.spans, hooks.connection_times) == (None, None)


def collected(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        (metric.name, *sorted(point.attributes.values())): point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def values(reader):
    return {key: point.value for key, point in collected(reader).items() if hasattr(point, "value")}


async def test_what_the_service_counts_is_reported(source, experienced, balancer, reader, provider):
    created = instrument(source, provider, cache=experienced, balancers=balancer)
    found = values(reader)
    created.close()
    cache = source.namespace
    expected = {
        ("db.client.connection.count", "idle", "main"): 1,
        ("db.client.connection.count", "main", "used"): 1,
        ("db.client.connection.max", "main"): 3,
        ("db.client.connection.idle.min", "main/replica-1"): 2,
        ("db.client.connection.pending_requests", "main"): 0,
        ("db.client.connection.timeouts", "main"): 0,
        ("acgsperf.cache.hits", cache, "l1"): 1,
        ("acgsperf.cache.misses", cache, "l3"): 1,
        ("acgsperf.cache.breaker_state", cache, "closed", "l2"): 1,
        ("acgsperf.backplane.state", cache, "following"): 1,
        ("acgsperf.backplane.sent", cache): 1,
        ("acgsperf.backplane.applied", cache): 1,
        ("acgsperf.backplane.queued", cache): 0,
        ("acgsperf.pool.leaks", "main"): 0,
        ("acgsperf.requests",): 4,
        ("acgsperf.request.errors",): 2,
        ("acgsperf.compliance.violations",): 3,
        ("acgsperf.compliance.validations", "valid"): 1,
    }
    shown = {(name, *sorted(labels)): value for (name, *labels), value in found.items()}
    assert {key: shown[key[0], *sorted(key[1:])] for key in expected} == expected
    assert shown["acgsperf.request.duration.quantile", "0.5"] == pytest.approx(0.001, rel=1e-3)
    assert {name for name, *_ in found} == {name for name in INSTRUMENTS if not name.startswith("acgsperf.http")}


async def test_caches_and_pools_are_reported_without_a_service(source, reader, provider):
    async with TieredCache(LRUCache(5), namespace="sessions") as sessions:
        await sessions.set("a", 1)
        one = instrument(cache=sessions, meter_provider=provider)
        other = instrument(cache=source.cache, pools=source.pools, meter_provider=provider)
        found = values(reader)
        assert found["acgsperf.cache.entries", "sessions"] == found["acgsperf.cache.entries", source.namespace] == 1
        assert found["db.client.connection.max", "main"] == 3
        assert ("acgsperf.requests",) not in found
        one.close()
        assert ("acgsperf.cache.entries", "sessions") not in values(reader)
        assert ("acgsperf.cache.entries", source.namespace) in values(reader)
        other.close()


async def test_without_a_backplane_none_is_reported(source_without_backplane, reader, provider):
    created = instrument(source_without_backplane, provider)
    assert not [name for name, *_ in collected(reader) if "backplane" in name]
    created.close()


async def test_after_close_nothing_is_reported_until_instrument_is_called_again(source, reader, provider):
    created = instrument(source, provider)
    with pytest.raises(ValueError, match="the meter provider already reports this service"):
        instrument(source, provider)
    created.close()
    assert values(reader) == {}
    again = instrument(source, provider)
    created.close()
    assert values(reader)["acgsperf.requests",] == 4
    again.close()


async def test_each_collection_reads_the_current_figures(source, reader, provider):
    created = instrument(source, provider)
    assert values(reader)["acgsperf.request.errors",] == 2
    source.counted.failed = 3
    assert values(reader)["acgsperf.request.errors",] == 3
    created.close()


async def test_times_of_connections_are_histograms_of_the_conventions(source, reader, provider):
    created = instrument(source, provider)
    pool = source.pools.get("main")
    await pool.fetchval("SELECT 1")
    pool.drain()
    await pool.warm(2)
    created.close()
    await pool.fetchval("SELECT 1")
    found = collected(reader)
    for name, count in (("wait_time", 1), ("use_time", 1), ("create_time", 1)):
        point = found[f"db.client.connection.{name}", "main"]
        assert point.count == count
        assert 0 < point.sum < 10
        assert point.explicit_bounds == opentelemetry._BUCKETS_S


OTEL_PROXY = """
import asyncio
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from acgsperf import PerformanceService, Settings
from acgsperf.metrics.opentelemetry import instrument

async def handler(request):
    return 1

async def main():
    async with PerformanceService(Settings(), handler=handler) as one:
        created = instrument(one)
    created.close()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics.set_meter_provider(provider)
    for chosen in (None, provider):
        async with PerformanceService(Settings(), handler=handler) as two:
            created = instrument(two, chosen)
            await two.process_request({"id": 1})
            found = [m for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics]
            print(*(m.data.data_points[0].value for m in found if m.name == "acgsperf.requests"))
            created.close()

asyncio.run(main())
"""


def test_instruments_made_before_the_sdk_is_set_up_do_not_silence_later_ones():
    command = [sys.executable, "-W", "error", "-c", OTEL_PROXY]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    # The count of the first service is not lost.
    assert (done.stdout, done.stderr) == ("1\n2\n", "")


PASSED_BEFORE_SET = """
import asyncio
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from acgsperf import LRUCache, TieredCache
from acgsperf.metrics.opentelemetry import instrument

reader = InMemoryMetricReader()
provider = MeterProvider([reader])

def reported():
    data = reader.get_metrics_data()
    found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
    points = [p for m in found if m.name == "acgsperf.cache.max_entries" for p in m.data.data_points]
    return sorted(p.attributes["acgsperf.cache.name"] for p in points)

async def main(with_proxy):
    caches = [TieredCache(LRUCache(5), namespace=name) for name in "abcd"]
    created = [instrument(cache=caches[0])] if with_proxy else []
    created.append(instrument(cache=caches[1], meter_provider=provider))
    metrics.set_meter_provider(provider)
    created.append(instrument(cache=caches[2]))
    created.append(instrument(cache=caches[3], meter_provider=provider))
    print(*reported())
    created[-2].close()
    print(*reported())
    for each in created:
        each.close()
    print(*reported())

asyncio.run(main(WITH_PROXY))
"""


@pytest.mark.parametrize("with_proxy", [False, True])
def test_a_provider_may_be_passed_before_it_becomes_the_global_one(with_proxy):
    program = PASSED_BEFORE_SET.replace("WITH_PROXY", str(with_proxy))
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("a b c d\na b d\n\n" if with_proxy else "b c d\nb d\n\n", "")


async def test_a_cache_that_is_instrumented_twice_is_reported_once(reader, provider):
    cache = TieredCache(LRUCache(5), namespace="sessions")
    one, other = (instrument(cache=cache, meter_provider=provider) for _ in range(2))
    for _ in range(2):
        found = values(reader)
        assert found["acgsperf.cache.max_entries", "sessions"] == 5
        assert found["acgsperf.processes",] == 1
        one.close()
    other.close()
    assert values(reader) == {}


DELTA = dict.fromkeys((Counter, ObservableCounter), AggregationTemporality.DELTA)


async def test_no_counter_goes_back_when_an_instrumentation_of_the_same_name_is_closed():
    readers = InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)
    provider = MeterProvider(readers)

    def hits():
        return [values(reader)["acgsperf.cache.hits", "app", "l1"] for reader in readers]

    caches = [TieredCache(LRUCache(5), namespace="app") for _ in range(2)]
    created = [instrument(cache=cache, meter_provider=provider) for cache in caches]
    for cache in caches:
        async with cache:
            await cache.set("a", 1)
            for _ in range(10):
                assert cache.get_local("a") == 1
    assert hits() == [20, 20]
    async with caches[0] as cache:
        await cache.set("a", 1)
        assert cache.get_local("a") == 1
        created[0].close()
        assert hits() == [21, 1]
    created[1].close()
    assert [values(reader) for reader in readers] == [{}, {}]
    another = instrument(cache=TieredCache(LRUCache(5), namespace="app"), meter_provider=provider)
    assert hits() == [21, 0]
    another.close()
    provider.shutdown()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("again", [True, False], ids=["own provider", "provider of the parent"])
def test_no_counter_of_a_forked_child_is_negative_or_contains_the_counts_of_its_parent(again):
    def started():
        reader = InMemoryMetricReader(preferred_temporality=DELTA)
        return reader, instrument(cache=cache, meter_provider=MeterProvider([reader]))

    def hits(number):
        for _ in range(number):
            assert l1.get("a") == 1
        return values(reader)["acgsperf.cache.hits", "app", "l1"]

    l1 = LRUCache(5)
    l1.set("a", 1)
    cache = TieredCache(l1, namespace="app")
    reader, created = started()
    assert hits(10) == 10
    if (child := os.fork()) == 0:
        try:
            if again:
                created.close()
                reader, created = started()
            os._exit(0 if hits(3) == 3 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert hits(2) == 2
    created.close()


async def test_no_counter_goes_back_when_a_pool_is_closed_and_created_again(reader, provider, servers):
    async with PoolManager() as pools:
        created = instrument(pools=pools, meter_provider=provider)
        for opened in (1, 2):
            pool = await pools.create("main", servers.database_url, min_size=1, max_size=1)
            assert values(reader)["acgsperf.pool.opened_connections", "main"] == opened
            await pool.close()
            assert values(reader)["acgsperf.pool.closed_connections", "closed", "main"] == opened
        created.close()


async def test_what_a_pool_counts_while_it_is_read_in_a_thread_is_counted_once(reader, provider, servers):
    """It is closed, and so read for the last time, between the two halves of a collection."""
    pool = ConnectionPool(servers.database_url, name="main", min_size=1, max_size=2)
    reading, closed = threading.Event(), threading.Event()

    class Slow:
        def stats(self):
            reading.set()
            closed.wait(0.5)
            return ConcurrencyLimitStats(1, 0, 0, 0, None)

    await pool.open()
    created = instrument(pools=pool, limit=Slow(), meter_provider=provider)
    collecting = asyncio.create_task(asyncio.to_thread(values, reader))
    await asyncio.to_thread(reading.wait)
    async with pool.acquire(), pool.acquire():
        pass
    await pool.close()
    closed.set()
    await collecting
    assert values(reader)["acgsperf.pool.opened_connections", "main"] == 2
    created.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_an_instrumentation_can_be_closed_after_a_fork_during_a_collection(reader, provider):
    begun, forked = threading.Event(), threading.Event()

    class Slow:
        def stats(self):
            if threading.current_thread() is not threading.main_thread():
                begun.set()
                forked.wait(30)
            return ConcurrencyLimitStats(1, 0, 0, 0, None)

    created = instrument(limit=Slow(), meter_provider=provider)
    collecting = threading.Thread(target=collected, args=[reader])
    collecting.start()
    begun.wait(30)
    if (child := os.fork()) == 0:
        signal.alarm(20)
        try:
            created.close()
            os._exit(0)
        finally:
            os._exit(1)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    collecting.join(30)
    created.close()


def test_an_instrumentation_whose_source_raises_can_be_closed(reader, provider, monkeypatch):
    class Broken:
        def stats(self):
            raise RuntimeError("torn")

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    created = instrument(limit=Broken(), meter_provider=provider)
    created.close()
    assert [str(each.exc_value) for each in reported] == ["torn"]
    assert values(reader) == {}


async def test_a_reader_may_collect_in_a_thread(source, reader, provider):
    created = instrument(source, provider)
    pool, stopped = source.pools.get("main"), threading.Event()

    def collect():
        while not stopped.is_set():
            collected(reader)

    collecting = asyncio.create_task(asyncio.to_thread(collect))
    for number in range(200):
        await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(10)), source.cache.get(f"{number}"))
    stopped.set()
    await collecting
    created.close()


def test_the_names_are_those_of_the_conventions():
    named = {metric.instrument for metric in METRICS if metric.instrument.startswith("db.")}
    known = {value for key, value in vars(db_metrics).items() if key.startswith("DB_CLIENT_CONNECTION_")}
    # The pool has no such limit.
    assert named == known - {"db.client.connection.idle.max"}
    assert ATTRIBUTES["pool"] == db_attributes.DB_CLIENT_CONNECTION_POOL_NAME
    assert ATTRIBUTES["error"] == error_attributes.ERROR_TYPE
    assert ATTRIBUTES["route"] == http_attributes.HTTP_ROUTE
    states = {metric.otel_attributes[0] for metric in METRICS if metric.otel_attributes}
    key = db_attributes.DB_CLIENT_CONNECTION_STATE
    assert states == {(key, state.value) for state in db_attributes.DbClientConnectionStateValues}
