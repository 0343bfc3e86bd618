"""The collector, through the client's own exposition and parser."""

import asyncio
import random
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from acgsperf import ConnectionPool, LatencyHistogram, LRUCache, PostgresTier, RedisTier, TieredCache
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.asgi.routes import _LAYOUT
from acgsperf.cache.histograms import histograms_of
from acgsperf.metrics import prometheus
from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.figures import gather
from acgsperf.metrics.prometheus import PerformanceCollector, exposition
from acgsperf.metrics.workers import WorkerFigures


def samples(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


async def test_a_registry_takes_a_service_once(source):
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(source))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PerformanceCollector(source, labels={"service": "another"}))
    registry.register(PerformanceCollector(source, namespace="another"))


async def test_a_cache_is_no_service(source):
    with pytest.raises(TypeError, match=r"source must be a service or None, got <TieredCache .*; pass it as cache="):
        PerformanceCollector(source.cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": 1}, "'int' object is not iterable"),
        ({"cache": {1: TieredCache(LRUCache(1), namespace="a")}}, "names of caches must be a str, got 1"),
        ({"cache": [1]}, "cache must be a TieredCache, or several, got 1"),
        ({"pools": ["x"]}, "pools must be a PoolManager, a ConnectionPool, or several, got 'x'"),
        ({"labels": {"a": 1}}, "labels must be a str, got a=1"),
    ],
    ids=str,
)
def test_what_is_of_the_wrong_type_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        PerformanceCollector(**options)


async def test_what_the_service_counts_is_exported(source):
    found = samples(PerformanceCollector(source))
    cache = source.namespace
    expected = {
        ("requests_total",): 4,
        ("request_errors_total",): 2,
        ("request_misses_total",): 1,
        ("compliance_violations_total",): 3,
        ("compliance_validations_total", "valid"): 1,
        ("compliance_validations_total", "mismatch"): 1,
        ("compliance_validations_total", "malformed"): 1,
        ("cache_hits_total", cache, "l1"): 1,
        ("cache_misses_total", cache, "l1"): 1,
        ("cache_misses_total", cache, "l2"): 1,
        ("cache_misses_total", cache, "l3"): 1,
        ("cache_entries", cache): 1,
        ("cache_max_entries", cache): 20,
        ("cache_stores_total", cache, "l2"): 1,
        ("cache_errors_total", "TimeoutError", cache, "l2"): 0,
        ("cache_breaker_state", cache, "closed", "l2"): 1,
        ("cache_breaker_state", cache, "l2", "open"): 0,
        ("cache_access_seconds_count", cache, "l2"): 1,
        ("backplane_state", cache, "following"): 1,
        ("backplane_state", cache, "off"): 0,
        ("backplane_sent_total", cache): 1,
        ("backplane_received_total", cache): 1,
        ("backplane_applied_total", cache): 1,
        ("backplane_gaps_total", cache): 0,
        ("backplane_malformed_total", cache): 0,
        ("backplane_queued", cache): 0,
        ("backplane_lag_seconds_count", cache): 1,
        ("pool_connections", "main"): 2,
        ("pool_used_connections", "main"): 1,
        ("pool_healthy", "main"): 1,
        ("pool_leaks_total", "main"): 0,
        ("pool_oldest_wait_seconds", "main"): 0,
        ("pool_max_connections", "main/replica-1"): 3,
        ("pool_wait_seconds_count", "main"): 1,
        ("pool_create_seconds_count", "main"): 2,
        ("request_duration_seconds_bucket", "0.0005"): 1,
        ("request_duration_seconds_bucket", "0.001"): 2,
        ("request_duration_seconds_bucket", "0.005"): 3,
        ("request_duration_seconds_bucket", "30.0"): 3,
        ("request_duration_seconds_bucket", "+Inf"): 4,
        ("request_duration_seconds_count",): 4,
    }
    shown = {(name.removeprefix("acgsperf_"), *sorted(labels)): value for (name, *labels), value in found.items()}
    assert {key: shown[key[0], *sorted(key[1:])] for key in expected} == expected
    assert found["acgsperf_request_duration_seconds_sum",] == pytest.approx(60.0045, rel=1e-3)


async def test_caches_and_pools_are_exported_without_a_service(source):
    async with TieredCache(LRUCache(5), namespace="sessions") as sessions:
        await sessions.set("a", 1)
        pool = source.pools.get("main")
        found = samples(PerformanceCollector(cache=[source.cache, sessions], pools=pool))
        assert found["acgsperf_cache_entries", "sessions"] == found["acgsperf_cache_entries", source.namespace] == 1
        assert found["acgsperf_pool_connections", "main"] == found["acgsperf_pool_connections", "main/replica-1"] == 2
        assert not [name for name, *_ in found if name.startswith(("acgsperf_request", "acgsperf_compliance"))]
        # The pools of the service appear once, although they are also passed separately.
        both = samples(PerformanceCollector(source, cache={"mine": sessions}, pools=[source.pools, pool]))
        assert both["acgsperf_cache_entries", "mine"] == both["acgsperf_cache_entries", source.namespace] == 1
        assert both["acgsperf_pool_connections", "main"] == 2


async def test_two_caches_of_one_name_are_refused(source_without_backplane):
    twin = TieredCache(LRUCache(5), namespace="alone")
    with pytest.raises(ValueError, match="caches must have different names, got 'alone' twice"):
        PerformanceCollector(source_without_backplane, cache=twin)


async def test_the_page_is_what_the_client_writes(source):
    middleware = PerformanceMiddleware(None)
    for route in ("/a", '/quo"te', "/back\\slash", "/new\nline", "/\u00e4"):
        middleware._routes.record(route, time.perf_counter_ns())
    source.recorded.record_many([1] * 1_234_567)
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(source, http=middleware, labels={"service": "a"}))
    Counter("of_the_application", "Another metric.", registry=registry).inc()
    # Nothing happens between the two, so their values are equal, except for an age.
    content_type, page = exposition(registry)()

    def lines(page):
        return [line for line in page.splitlines() if not line.startswith(b"acgsperf_cache_policy_age_seconds{")]

    assert lines(page) == lines(generate_latest(registry))
    assert content_type == CONTENT_TYPE_LATEST


def test_bounds_are_written_as_the_client_writes_them_and_never_collide():
    bounds = [1, 1.0000001, 1.0000002, 1234567.5, 2e7]
    ours = CollectorRegistry()
    middleware = PerformanceMiddleware(None)
    middleware._routes.record("/", time.perf_counter_ns())
    ours.register(PerformanceCollector(http=middleware, buckets_s=bounds))
    theirs = CollectorRegistry()
    Histogram("a", "b", buckets=bounds, registry=theirs).observe(1)

    def written(registry):
        return re.findall(r'le="(.+?)"', generate_latest(registry).decode())

    assert written(ours) == written(theirs)
    assert len(set(written(ours))) == len(bounds) + 1


def test_a_path_that_is_no_utf_8_does_not_break_the_page():
    middleware = PerformanceMiddleware(None)
    for route in ("/caf\udce9", "/caf\\udce9", "/\ud800"):
        middleware._routes.record(route, time.perf_counter_ns())
    found = samples(PerformanceCollector(http=middleware))
    # Two of the routes have become the same text.
    assert found["acgsperf_http_request_duration_seconds_count", "/caf\\udce9"] == 2
    assert found["acgsperf_http_request_duration_seconds_count", "/\\ud800"] == 1


async def test_connections_are_counted_by_the_route_that_used_them(source):
    pool = source.pools.get("main")

    async def route(scope, receive, send):
        scope["route"] = SimpleNamespace(path="/items/{id}")
        async with pool.acquire():
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        # Some frameworks use a connection after the response.
        await asyncio.create_task(pool.fetchval("SELECT 1"))

    middleware = PerformanceMiddleware(route)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://a") as client:
        await client.get("/items/1")
        await client.get("/items/2")
    await pool.fetchval("SELECT 1")
    found = samples(PerformanceCollector(http=middleware))
    assert found["acgsperf_http_connection_uses_total", "/items/{id}", "main"] == 4
    assert found["acgsperf_http_connection_use_seconds_total", "/items/{id}", "main"] > 0


async def test_connections_of_a_load_that_outlives_its_request_are_counted_by_its_route(source):
    pool = source.pools.get("main")
    requested = asyncio.Event()

    async def load(key):
        await requested.wait()
        return await pool.fetchval("SELECT 1")

    async def route(scope, receive, send):
        scope["route"] = SimpleNamespace(path="/items/{id}")
        loading.append(asyncio.create_task(load("a")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    loading = []
    middleware = PerformanceMiddleware(route)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://a") as client:
        await client.get("/items/1")
        await client.get("/items/2")
    assert middleware.connection_uses() == {}
    requested.set()
    await asyncio.gather(*loading)
    ((key, (number, used_ns)),) = middleware.connection_uses().items()
    assert (key, number) == (("/items/{id}", "main"), 2)
    assert used_ns > 0


async def test_what_a_limit_and_balancers_know_is_exported(limit, balancer):
    found = samples(PerformanceCollector(limit=limit, balancers=[balancer]))
    assert found["acgsperf_http_limit",] == limit.stats().limit
    assert found["acgsperf_http_limit_accepted_total",] == 20
    assert found["acgsperf_http_limit_refused_total",] == 0
    assert found["acgsperf_http_limit_usual_latency_seconds",] == limit.stats().usual_latency_s
    assert sum(found["acgsperf_balancer_picks_total", address] for address in balancer.endpoints) == 20
    assert found["acgsperf_balancer_ejected", "http://one:1"] == 0
    assert found["acgsperf_balancer_probes_total",] == 0


def test_balancers_have_the_right_type():
    with pytest.raises(TypeError, match="balancers must be a Balancer, or several, got 'one'"):
        PerformanceCollector(balancers=["one"])


def test_what_other_sizes_would_hit_is_exported(experienced):
    found = samples(PerformanceCollector(cache=experienced))
    sizing = experienced.stats().sizing
    for size in sizing.sizes:
        factor = f"{size.factor:g}"
        assert found["acgsperf_cache_sizing_entries", factor, "experienced"] == size.maxsize
        assert found["acgsperf_cache_sizing_hit_rate", factor, "experienced", "lru"] == size.lru
        assert found["acgsperf_cache_sizing_hit_rate", factor, "adaptive", "experienced"] == size.adaptive
    assert found["acgsperf_cache_sizing_point_entries", "experienced"] == sizing.point_entries
    assert found["acgsperf_cache_sizing_point_bytes", "experienced"] == sizing.point_bytes
    assert found["acgsperf_cache_entry_bytes", "experienced"] == sizing.entry_bytes


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
async def test_promtool_accepts_every_page(source, experienced, limit, balancer):
    middleware = PerformanceMiddleware(None)
    middleware._routes.record("/", time.perf_counter_ns())
    middleware._routes.note_connections("/", {"main": (1, 500)})
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(source, cache=experienced, http=middleware, limit=limit, balancers=balancer))
    _, page = exposition(registry)()
    for metric in METRICS:
        assert f"# TYPE acgsperf_{metric.exported_name} {metric.kind}\n" in page.decode()
    assert checked_by_promtool(page) == (0, b"")


NASTY = [
    "new\nline",
    'quo"te',
    "back\\slash",
    "\\n",
    "\r\n",
    "nul\0",
    "tab\t",
    "\u2028",
    "\ud800",
    "caf\udce9",
    "{} #",
    "",
    "\x85",
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
@pytest.mark.parametrize("text", NASTY, ids=ascii)
async def test_promtool_accepts_any_text_in_a_label(source_without_backplane, tmp_path, text):
    middleware = PerformanceMiddleware(None)
    middleware._routes.record(text, time.perf_counter_ns())
    middleware._routes.note_connections(text, {text: (1, 500)})
    parts = {
        "cache": {text: source_without_backplane.cache},
        "pools": ConnectionPool("postgresql://a/b", name=text),
        "http": middleware,
        "labels": {"service": text},
    }
    # With a directory, each label was also written to a file and read from it.
    collector = PerformanceCollector(**parts, workers_directory=tmp_path)
    name, bounds = prometheus._name_of_files("acgsperf", {"service": text}), collector._bounds_ns
    other = WorkerFigures(tmp_path, name, bounds)
    other.publish(gather(collector._sources.read(), bounds))
    registry = CollectorRegistry()
    registry.register(collector)
    _, page = exposition(registry)()
    assert page == generate_latest(registry)
    assert checked_by_promtool(page) == (0, b"")
    written = text.encode(errors="backslashreplace").decode()
    for metric, label in (("cache_max_entries", "cache"), ("pool_max_connections", "pool")):
        (sample,) = next(found for found in collector.collect() if found.name == f"acgsperf_{metric}").samples
        assert (sample.labels[label], sample.labels["service"]) == (written, written)
    assert sample.value == 200
    other.close()
    collector.close()


def checked_by_promtool(page):
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(
        command, check=False, input=page, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    return done.returncode, done.stdout


def latencies(layout, count=5_000):
    histogram = LatencyHistogram(**layout)
    histogram.record_many(int(random.Random(count).lognormvariate(15, 1.5)) for _ in range(count))
    return histogram


def test_a_page_of_100_routes_5_caches_and_5_pools_takes_less_than_20_ms():
    middleware = PerformanceMiddleware(None)
    middleware._routes._latencies = {f"/api/{n}": latencies(_LAYOUT) for n in range(100)}
    caches = [
        TieredCache(LRUCache(10), RedisTier("redis://a"), PostgresTier("postgresql://a/b"), namespace=f"c{n}")
        for n in range(5)
    ]
    pools = [ConnectionPool("postgresql://a/b", name=f"p{n}") for n in range(5)]
    for histogram in [
        *(histogram for cache in caches for histogram in histograms_of(cache)),
        *(histogram for pool in pools for histogram in (pool.wait_time, pool.use_time, pool.create_time)),
    ]:
        histogram.merge(latencies({}))
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(cache=caches, pools=pools, http=middleware))
    render = exposition(registry)
    render()
    taken = []
    for _ in range(30):
        # The CPU time of this thread: other processes may use the machine.
        began = time.thread_time()
        render()
        taken.append(time.thread_time() - began)
    assert min(taken) < 0.02


async def test_without_a_backplane_none_is_exported(source_without_backplane):
    assert not [name for name, *_ in samples(PerformanceCollector(source_without_backplane)) if "backplane" in name]


async def test_names_and_constant_labels_are_the_users(source):
    collector = PerformanceCollector(source, namespace="mine", labels={"service": "a"}, buckets_s=[0.001])
    families = list(collector.collect())
    assert all(family.name.startswith("mine_") for family in families)
    assert all(sample.labels["service"] == "a" for family in families for sample in family.samples)


@pytest.mark.parametrize(
    "options",
    [
        {"namespace": "a-b"},
        {"labels": {"__a": "b"}},
        {"buckets_s": [2, 1]},
        {"buckets_s": [0.0, 1]},
        {"buckets_s": [1, 1]},
        {"buckets_s": [1, 1 + 1e-10]},
        {"buckets_s": [1, float("inf")]},
        {"labels": {"le": "b"}},
        {"labels": {"pool": "b"}},
    ],
    ids=str,
)
def test_what_prometheus_would_not_take_is_refused(options):
    with pytest.raises(ValueError, match="must "):
        PerformanceCollector(**options)


@pytest.mark.parametrize(
    ("module", "blocked", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "opentelemetry")],
)
def test_a_missing_extra_says_how_to_install_it(module, blocked, extra):
    code = f"import sys; sys.modules[{blocked!r}] = None; import acgsperf.metrics.{module}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr.rstrip().endswith(f"is not installed: pip install 'acgsperf[{extra}]'")
