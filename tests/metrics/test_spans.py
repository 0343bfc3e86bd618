"""The spans of slow operations, read through the SDK."""

import asyncio
import gc
import secrets
import subprocess
import sys
from contextlib import AsyncExitStack, suppress

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode, get_current_span

from acgsperf import (
    ConnectionPool,
    EntryOptions,
    LoadCancelledError,
    LoadError,
    LoadTimeoutError,
    LRUCache,
    PoolTimeout,
    RedisTier,
    TieredCache,
    hooks,
)
from acgsperf.metrics.opentelemetry import instrument


class Traces:
    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def take(self):
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        return list(spans)

    def names(self):
        return [span.name for span in self.take()]


class Tier:
    """What batches are compared by."""


@pytest.fixture
def traces():
    traces = Traces()
    meters = MeterProvider()
    created = instrument(meter_provider=meters, tracer_provider=traces.provider, min_span_s=0)
    yield traces
    created.close()
    meters.shutdown()
    traces.provider.shutdown()


@pytest.fixture
async def cache():
    async with TieredCache(LRUCache(10), namespace="app") as opened:
        yield opened


async def load(key):
    return 1


async def loads_ended(cache):
    await asyncio.gather(*cache._parts.loading.flights._running)


async def test_a_load_is_a_span_and_a_hit_is_none(traces, cache):
    await cache.get_or_load("a", load)
    (span,) = traces.take()
    assert span.name == "acgsperf.cache.load"
    assert dict(span.attributes) == {"acgsperf.cache.name": "app", "acgsperf.cache.keys": 1}
    assert await cache.get_or_load("a", load) == await cache.get("a") == cache.get_local("a") == 1
    assert traces.take() == []


async def test_what_a_loader_does_is_a_child_of_its_load_and_that_is_a_child_of_the_request(traces, cache):
    async def query(key):
        with traces.tracer.start_as_current_span("query"):
            return 1

    with traces.tracer.start_as_current_span("request"):
        await cache.get_or_load("a", query)
    query_span, load_span, request = traces.take()
    assert query_span.parent.span_id == load_span.context.span_id
    assert load_span.parent.span_id == request.context.span_id


async def test_a_failed_load_is_an_error(traces, cache):
    async def fail(key):
        raise KeyError(key)

    with pytest.raises(KeyError):
        await cache.get_or_load("a", fail)
    (span,) = traces.take()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "KeyError"
    # Neither the key nor the message is in the span.
    assert "'a'" not in span.to_json()


async def test_a_load_that_takes_too_long_is_an_error_for_all_that_wait_for_it(traces):
    async def hang(key):
        await asyncio.Event().wait()

    async def finish_anyway(key):
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    options = EntryOptions(hard_timeout=0.05)
    async with TieredCache(LRUCache(10), namespace="slow", options=options) as cache:
        for loader in (hang, finish_anyway):
            calls = (cache.get_or_load("a", loader) for _ in range(2))
            raised = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(error) for error in raised] == [LoadTimeoutError] * 2
            await loads_ended(cache)
            spans = traces.take()
            assert {span.name for span in spans} == {"acgsperf.cache.load", "acgsperf.cache.wait_for_load"}
            for span in spans:
                assert span.attributes["error.type"] == "LoadTimeoutError"
                assert span.status.status_code is StatusCode.ERROR
        assert cache.stats().load_errors == 2


async def cancel_itself(keys):
    raise asyncio.CancelledError


async def return_a_list(keys):
    return list(keys)


@pytest.mark.parametrize(
    ("loader", "error"), [(cancel_itself, "LoadCancelledError"), (return_a_list, "TypeError"), (list, "TypeError")]
)
async def test_each_load_that_counts_as_failed_is_an_error(traces, cache, loader, error):
    with pytest.raises((TypeError, LoadCancelledError)):
        await cache.get_or_load_many(["a"], loader)
    (span,) = traces.take()
    assert (span.attributes["error.type"], span.status.status_code) == (error, StatusCode.ERROR)
    assert cache.stats().load_errors == 1


async def test_a_load_that_no_caller_waits_for_is_cancelled_and_no_error(traces, cache):
    started = asyncio.Event()

    async def hang(key):
        started.set()
        await asyncio.Event().wait()

    calls = [asyncio.create_task(cache.get_or_load("a", hang)) for _ in range(2)]
    await started.wait()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await loads_ended(cache)
    assert cache.stats().load_errors == 0
    spans = traces.take()
    assert sorted(span.name for span in spans) == ["acgsperf.cache.load", "acgsperf.cache.wait_for_load"]
    for span in spans:
        assert (span.attributes["error.type"], span.status.status_code) == ("CancelledError", StatusCode.UNSET)


async def test_what_takes_less_than_1_ms_makes_no_span_unless_someone_needs_it(cache):
    traces, meters = Traces(), MeterProvider()
    created = instrument(meter_provider=meters, tracer_provider=traces.provider)

    async def slow(key):
        await asyncio.sleep(0.001)
        return 1

    async def query(key):
        with traces.tracer.start_as_current_span("query"):
            return 1

    async def fail(key):
        raise KeyError(key)

    # On a busy machine, one of a few may take longer.
    for number in range(20):
        await cache.get_or_load(f"{number}", load)
    assert len(traces.take()) < 20
    tier = Tier()
    for elapsed_ns in [1] * 100 + [999_999] * 3:
        hooks.spans.batch("tier.read", tier, "a", 1, elapsed_ns, None)
    assert await cache.get_or_load("a", slow) == 1
    assert traces.names() == ["acgsperf.cache.load"]
    assert await cache.get_or_load("b", query) == 1
    query_span, load_span = traces.take()
    assert query_span.parent.span_id == load_span.context.span_id
    with pytest.raises(KeyError):
        await cache.get_or_load("c", fail)
    assert traces.names() == ["acgsperf.cache.load"]
    created.close()
    meters.shutdown()
    traces.provider.shutdown()


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_task_that_a_short_loader_starts_stays_in_the_trace_of_the_request(cache, sampled):
    traces, meters = Traces(), MeterProvider()
    # No load takes that long, so no load makes a span.
    created = instrument(meter_provider=meters, tracer_provider=traces.provider, min_span_s=3600)
    unsampled = TracerProvider(sampler=ALWAYS_OFF)
    tracer = traces.tracer if sampled else unsampled.get_tracer("test")
    loaded, tasks = asyncio.Event(), []

    async def audit():
        await loaded.wait()
        get_current_span().set_attribute("audited", True)
        with traces.tracer.start_as_current_span("audit"):
            pass

    async def start(key):
        tasks.append(asyncio.create_task(audit()))
        return 1

    with tracer.start_as_current_span("request") as request:
        await cache.get_or_load("a", start)
        loaded.set()
        await asyncio.gather(*tasks)
    if sampled:
        audit_span, request_span = traces.take()
        assert audit_span.parent == request.get_span_context() == request_span.context
        assert request_span.attributes == {"audited": True}
    else:
        assert traces.take() == []
    created.close()
    for each in (meters, traces.provider, unsampled):
        each.shutdown()


@pytest.mark.parametrize("bypass", [False, True])
async def test_a_load_that_stores_nothing_is_a_span_too(traces, cache, bypass):
    async def query(key):
        with traces.tracer.start_as_current_span("query"):
            return 1

    async def query_many(keys):
        return {key: await query(key) for key in keys}

    assert await cache.get_or_load("a", query, bypass=bypass) == 1
    query_span, load_span = traces.take()
    assert (load_span.name, query_span.parent.span_id) == ("acgsperf.cache.load", load_span.context.span_id)
    assert dict(load_span.attributes) == {"acgsperf.cache.name": "app", "acgsperf.cache.keys": 1}
    await cache.get_or_load_many(["b", "c"], query_many, bypass=bypass)
    assert dict(traces.take()[-1].attributes) == {"acgsperf.cache.name": "app", "acgsperf.cache.keys": 2}


@pytest.mark.parametrize("bypass", [False, True])
async def test_a_load_that_fails_is_an_error_whether_it_stores_or_not(traces, cache, bypass):
    async def fail(key):
        raise ValueError(key)

    with pytest.raises(ValueError, match="a"):
        await cache.get_or_load("a", fail, bypass=bypass)
    (span,) = traces.take()
    assert (span.attributes["error.type"], span.status.status_code) == ("ValueError", StatusCode.ERROR)


async def test_a_load_is_a_current_span_as_others_are(traces, cache):
    async def annotate(key):
        span = get_current_span()
        assert span.is_recording()
        span.set_attribute("a", 1)
        span.set_attributes({"b": 2})
        span.add_event("c")
        span.record_exception(ValueError("d"))
        span.update_name("mine")
        span.set_status(StatusCode.OK)
        return 1

    await cache.get_or_load("a", annotate)
    (span,) = traces.take()
    assert (span.name, span.status.status_code) == ("mine", StatusCode.OK)
    assert (span.attributes["a"], span.attributes["b"]) == (1, 2)
    assert [event.name for event in span.events] == ["c", "exception"]


async def test_a_wait_for_the_load_of_another_caller_is_a_span_with_a_link_to_it(traces, cache):
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(key):
        started.set()
        await go_on.wait()
        return 1

    first = asyncio.create_task(cache.get_or_load("a", slow))
    await started.wait()
    second = asyncio.create_task(cache.get_or_load("a", slow))
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(first, second) == [1, 1]
    load_span, wait = sorted(traces.take(), key=lambda span: span.name)
    assert (load_span.name, wait.name) == ("acgsperf.cache.load", "acgsperf.cache.wait_for_load")
    assert [link.context.span_id for link in wait.links] == [load_span.context.span_id]


async def test_a_wait_for_the_loads_of_others_ends_before_the_load_of_the_caller(traces, cache):
    started, go_on, continued, finish = (asyncio.Event() for _ in range(4))

    async def others(key):
        started.set()
        await go_on.wait()
        return 1

    async def own(keys):
        await go_on.wait()
        continued.set()
        await finish.wait()
        raise KeyError(keys)

    first = asyncio.create_task(cache.get_or_load("a", others))
    await started.wait()
    second = asyncio.create_task(cache.get_or_load_many(["a", "b", "c"], own))
    await asyncio.sleep(0)
    go_on.set()
    assert await first == 1
    await continued.wait()
    wait, load_span = sorted(traces.take(), key=lambda span: span.name, reverse=True)
    finish.set()
    with pytest.raises(KeyError):
        await second
    (own_span,) = traces.take()
    assert [span.name for span in (wait, load_span, own_span)] == [
        "acgsperf.cache.wait_for_load",
        *["acgsperf.cache.load"] * 2,
    ]
    assert [link.context.span_id for link in wait.links] == [load_span.context.span_id]
    assert (wait.attributes["acgsperf.cache.keys"], wait.status.status_code) == (1, StatusCode.UNSET)


class TwoProcesses:
    """Two caches that share locks: the first loads a key, and the second waits for it."""

    def __init__(self, servers, namespace):
        self.go_on = asyncio.Event()
        self.namespace = namespace
        self._url = servers.redis_url
        self._started = asyncio.Event()

    async def __aenter__(self):
        self._opened = AsyncExitStack()
        self.one, self.other = [
            await self._opened.enter_async_context(
                TieredCache(
                    LRUCache(10),
                    RedisTier(self._url, deadline=30),
                    namespace=self.namespace,
                    lock_ttl=30,
                    deadline=30,
                )
            )
            for _ in range(2)
        ]
        return self

    async def __aexit__(self, *error):
        await self.one.clear()
        await self._opened.aclose()

    async def begin(self, first, second):
        """Return the tasks of both loads when the second one waits."""

        async def start(key):
            self._started.set()
            await self.go_on.wait()
            return await first(key)

        loading = asyncio.create_task(self.one.get_or_load("a", start))
        await self._started.wait()
        waiting = asyncio.create_task(self.other.get_or_load("a", second))
        async with asyncio.timeout(20):
            while not self.other._parts.loading._lock._waiters:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            # It registers before it asks for the lock, which the first one must still have then.
            await asyncio.sleep(0.2)
        return loading, waiting


async def fail(key):
    raise KeyError(key)


@pytest.fixture
async def processes(servers):
    async with TwoProcesses(servers, secrets.token_hex(4)) as opened:
        yield opened


async def test_a_wait_for_the_load_of_another_process_is_a_span(traces, processes):
    tasks = await processes.begin(load, load)
    processes.go_on.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(*tasks) == [1, 1]
    (span,) = [span for span in traces.take() if span.name == "acgsperf.cache.wait_for_process"]
    assert 0 < span.end_time - span.start_time < 20e9
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {"acgsperf.cache.name": processes.namespace, "acgsperf.cache.keys": 1}


async def test_a_wait_for_a_load_that_fails_in_another_process_is_an_error(traces, processes):
    tasks = await processes.begin(fail, load)
    processes.go_on.set()
    async with asyncio.timeout(20):
        raised = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in raised] == [KeyError, LoadError]
    (span,) = [span for span in traces.take() if span.name == "acgsperf.cache.wait_for_process"]
    assert (span.attributes["error.type"], span.status.status_code) == ("LoadError", StatusCode.ERROR)


@pytest.mark.parametrize("own", [load, fail])
async def test_a_wait_for_another_process_ends_before_the_load_that_follows(traces, processes, own):
    first, second = await processes.begin(load, own)
    first.cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(second, return_exceptions=True)
    spans = {span.name: span for span in traces.take()}
    wait = spans["acgsperf.cache.wait_for_process"]
    # The second of them: the first one was cancelled.
    own_load = spans["acgsperf.cache.load"]
    assert wait.end_time <= own_load.start_time
    assert wait.status.status_code is StatusCode.UNSET


def test_a_batch_is_a_span_if_it_takes_longer_than_95_percent_of_the_others(traces):
    tier = Tier()

    def end_batch(elapsed_ns, name="tier.read", tier=tier):
        hooks.spans.batch(name, tier, "redis tier 'app'", 3, elapsed_ns, None)
        return traces.take()

    # The first 100 batches make no span.
    assert not any(end_batch(1_000_000) for _ in range(98))
    assert end_batch(10_000_000) == end_batch(1_000_000) == []
    assert end_batch(1_000_000) == []
    (span,) = end_batch(10_000_000)
    assert span.name == "acgsperf.tier.read"
    assert dict(span.attributes) == {"acgsperf.tier": "redis tier 'app'", "acgsperf.cache.keys": 3}
    assert span.end_time - span.start_time == 10_000_000
    # Writes, and the batches of another tier, are compared with each other only.
    assert end_batch(10_000_000, "tier.write") == end_batch(10_000_000, tier=Tier()) == []


def test_the_times_of_batches_are_released_with_their_tier(traces):
    tier = Tier()
    hooks.spans.batch("tier.read", tier, "redis tier 'app'", 3, 1_000_000, None)
    assert len(hooks.spans._usual) == 1
    del tier
    gc.collect()
    assert len(hooks.spans._usual) == 0


async def test_batches_are_counted_and_not_their_keys(traces, servers):
    tier = RedisTier(servers.redis_url, deadline=30)
    async with TieredCache(LRUCache(10), tier, namespace="many", deadline=30) as cache:
        real, slow = tier._reads._fetch, asyncio.Event()

        async def fetch(keys):
            if slow.is_set():
                await asyncio.sleep(0.05)
            return await real(keys)

        tier._reads._fetch = fetch
        await cache.get_many([f"{number}" for number in range(120)])
        slow.set()
        await cache.get("a")
        # This is the second batch.
        assert traces.take() == []
        slow.clear()
        for number in range(120):
            await cache.get(f"{number}")
        traces.take()
        slow.set()
        # These make most of the keys, and few of the batches.
        for _ in range(3):
            await cache.get_many([f"{number}" for number in range(500)])
            slow_spans = [span for span in traces.take() if span.end_time - span.start_time >= 50_000_000]
            assert [span.name for span in slow_spans] == ["acgsperf.tier.read"]


async def test_a_failed_call_to_a_tier_is_an_error_however_long_it_took(traces):
    tier = RedisTier("redis://127.0.0.1:1", deadline=30)
    async with TieredCache(LRUCache(10), tier, namespace="down") as cache:
        for call, name in ((cache.get("a"), "acgsperf.tier.read"), (cache.set("a", 1), "acgsperf.tier.write")):
            traces.take()
            await call
            span, *_ = traces.take()
            assert (span.name, span.attributes["acgsperf.tier"]) == (name, "redis tier 'down'")
            assert (span.attributes["error.type"], span.status.status_code) == ("ConnectionError", StatusCode.ERROR)


@pytest.mark.parametrize("name", ["read", "write"])
async def test_a_slow_batch_is_a_child_of_the_request(traces, servers, name):
    async with TieredCache(LRUCache(10), RedisTier(servers.redis_url, deadline=30), namespace="slow") as cache:
        (tier,) = cache._parts.lower_tiers.tiers
        for usual_ns, expected in ((1, [f"acgsperf.tier.{name}"]), (60_000_000_000, [])):
            for _ in range(2_000):
                hooks.spans.batch(f"tier.{name}", tier._calls.of_tier, "", 1, usual_ns, None)
            traces.take()
            with traces.tracer.start_as_current_span("request"):
                await (cache.get("a") if name == "read" else cache.set("a", 1))
            *spans, request = traces.take()
            assert [span.name for span in spans] == expected
            for span in spans:
                assert dict(span.attributes) == {"acgsperf.tier": "redis tier 'slow'", "acgsperf.cache.keys": 1}
                assert span.parent.span_id == request.context.span_id


async def test_an_acquire_is_a_span_if_it_waits(traces, servers):
    async with ConnectionPool(servers.database_url, min_size=1, max_size=1, name="main") as pool:
        async with pool.acquire():
            assert traces.take() == []
            waiting = asyncio.create_task(pool.fetchval("SELECT 1"))
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
        assert await waiting == 1
    failed, served = traces.take()
    assert failed.name == served.name == "acgsperf.pool.acquire"
    assert dict(served.attributes) == {"db.client.connection.pool.name": "main"}
    assert (failed.attributes["error.type"], failed.status.status_code) == ("PoolTimeout", StatusCode.ERROR)


SET_UP_LATER = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from acgsperf import LRUCache, TieredCache, hooks
from acgsperf.metrics.opentelemetry import instrument
from acgsperf.tiers.redis_keys import RedisKeys

async def load(key):
    return 1

async def main():
    async with TieredCache(LRUCache(10), namespace="app") as cache:
        created = instrument(cache=cache, min_span_s=0)
        # Spans cost nothing.
        assert hooks.spans is None
        await cache.get_or_load("a", load)
        exporter = InMemorySpanExporter()
        trace.set_tracer_provider(TracerProvider())
        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
        while hooks.spans is None:
            await asyncio.sleep(0.01)
        await cache.get_or_load("b", load)
        print(len(exporter.get_finished_spans()))
        created.close()

asyncio.run(main())
"""
WITHOUT_A_LOOP = """
import asyncio, gc
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from acgsperf import LRUCache, TieredCache, hooks
from acgsperf.metrics.opentelemetry import instrument

created = instrument(min_span_s=0)

async def load(key):
    return 1

async def before():
    async with TieredCache(LRUCache(10), namespace="app") as cache:
        await cache.get_or_load("a", load)
        # After the first call, spans cost nothing.
        assert hooks.spans is None

async def after():
    async with TieredCache(LRUCache(10), namespace="app") as cache:
        await cache.get_or_load("a", load)
        while hooks.spans is None:
            await asyncio.sleep(0.01)
        await cache.get_or_load("b", load)

loops = []
for _ in range(2):
    loops.append(asyncio.new_event_loop())
    loops[-1].run_until_complete(before())
    loops[-1].close()
    if not KEEP_LOOPS:
        loops.clear()
        gc.collect()
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
asyncio.run(after())
print(len(exporter.get_finished_spans()))
created.close()
assert hooks.spans is None
"""


@pytest.mark.parametrize(
    "program", [SET_UP_LATER, *(WITHOUT_A_LOOP.replace("KEEP_LOOPS", keep) for keep in ("True", "False"))]
)
def test_spans_begin_when_the_sdk_is_set_up(program):
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")
