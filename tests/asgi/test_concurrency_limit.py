"""The limit of requests in flight: with a model of an application under a clock, and in a real overload."""

import asyncio
import heapq
import random

import httpx
import pytest

from acgsperf import LRUCache, TieredCache
from acgsperf.asgi import ConcurrencyLimit, PerformanceMiddleware

HTTP = {"type": "http", "method": "GET", "path": "/", "headers": []}
SERVICE_S = 0.02
WORKERS = 10
CAPACITY = WORKERS / SERVICE_S


class Model:
    """An application with ten workers and a queue, on a clock of its own: what a real one does, without its noise."""

    def __init__(self, seed, **options):
        self.now = 0.0
        self._random = random.Random(seed)
        self._free_at = [0.0] * WORKERS
        self._responses = []
        self.limit = ConcurrencyLimit(self._app, clock=lambda: self.now, **options)

    async def _app(self, scope, receive, send):
        # The request leaves the queue when a worker is free.
        started = max(self.now, heapq.heappop(self._free_at))
        ended = started + self._random.uniform(0.5, 1.5) * SERVICE_S * self.slowness
        heapq.heappush(self._free_at, ended)
        waker = asyncio.Event()
        heapq.heappush(self._responses, (ended, id(waker), waker))
        await waker.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run(self, seconds, load, slowness=1.0):
        """Send requests for a time; return the latencies of those that were answered, and the share of refusals."""
        self.slowness = slowness
        took, refused, tasks = [], 0, set()

        async def request():
            nonlocal refused
            started, status = self.now, None

            async def send(message):
                nonlocal status
                status = message.get("status", status)

            await self.limit(dict(HTTP), None, send)
            if status == 200:
                took.append(self.now - started)
            else:
                refused += 1

        end, arrival = self.now + seconds, self.now
        while arrival < end:
            arrival += self._random.expovariate(load * CAPACITY)
            while self._responses and self._responses[0][0] <= arrival:
                self.now, _, waker = heapq.heappop(self._responses)
                waker.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            self.now = arrival
            tasks.add(task := asyncio.create_task(request()))
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(0)
        while self._responses:
            self.now, _, waker = heapq.heappop(self._responses)
            waker.set()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return sorted(took), refused


def p99(took):
    return took[int(0.99 * len(took))]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_three_times_the_load_hardly_changes_goodput_and_latency(seed):
    model = Model(seed)
    usual, refused = await model.run(60, 0.8)
    assert refused < 0.01 * len(usual)
    took, refused = await model.run(60, 3)
    assert len(took) / 60 > 0.85 * CAPACITY
    assert p99(took) < 3 * p99(usual)
    assert refused > len(took)
    # The overload is over.
    _, refused = await model.run(1, 0.5)
    took, refused = await model.run(10, 0.8)
    assert refused < 0.02 * len(took)


async def test_without_a_limit_the_latency_collapses():
    model = Model(1, min_limit=1_000_000, max_limit=1_000_000)
    usual, _ = await model.run(10, 0.8)
    took, refused = await model.run(10, 3)
    assert refused == 0
    assert p99(took) > 50 * p99(usual)


async def test_the_limit_adapts_to_an_application_that_became_slower_for_ever():
    model = Model(1)
    await model.run(60, 0.8)
    await model.run(120, 0.4, slowness=2)
    took, refused = await model.run(10, 0.4, slowness=2)
    assert refused < 0.02 * len(took)


async def test_a_limit_that_is_not_reached_does_not_rise():
    model = Model(1)
    await model.run(60, 0.1)
    assert model.limit.stats().limit == 20


def answering(event=None, error=None, entered=None):
    async def app(scope, receive, send):
        if entered is not None:
            entered.set()
        if event is not None:
            await event.wait()
        if error is not None:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_refused_client_learns_when_to_try_again():
    event, entered = asyncio.Event(), asyncio.Event()
    app = answering(event, entered=entered)
    limit = ConcurrencyLimit(app, min_limit=1, max_limit=1, retry_after=7, exempt=["/health"])
    async with client_of(limit) as client:
        accepted = asyncio.create_task(client.get("/"))
        await entered.wait()
        refused = await client.get("/")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
        assert refused.headers["cache-control"] == "no-store"
        health = asyncio.create_task(client.get("/health"))
        event.set()
        assert (await accepted).status_code == 200
        assert (await health).status_code == 200
        assert (await client.get("/")).status_code == 200
    stats = limit.stats()
    assert (stats.accepted, stats.refused, stats.in_flight, stats.limit) == (2, 1, 0, 1)


async def test_a_failing_application_leaves_nothing_in_flight():
    limit = ConcurrencyLimit(answering(error=RuntimeError("broken")))
    async with client_of(limit) as client:
        for _ in range(50):
            with pytest.raises(RuntimeError, match="broken"):
                await client.get("/")
    assert limit.stats().in_flight == 0


async def test_a_cancelled_request_leaves_nothing_in_flight():
    limit = ConcurrencyLimit(answering(asyncio.Event()))
    task = asyncio.create_task(limit(dict(HTTP), None, None))
    await asyncio.sleep(0)
    assert limit.stats().in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limit.stats().in_flight == 0


async def test_other_scopes_pass_through():
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope["type"])

    limit = ConcurrencyLimit(app, min_limit=1, max_limit=1)
    for kind in ("lifespan", "websocket"):
        await limit({"type": kind, "path": "/"}, None, None)
    assert scopes == ["lifespan", "websocket"]
    assert limit.stats().accepted == 0


async def test_a_refused_request_gets_a_stale_response_if_there_is_one(clock):
    event, entered = asyncio.Event(), asyncio.Event()
    event.set()

    async def app(scope, receive, send):
        entered.set()
        await event.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=10")]})
        await send({"type": "http.response.body", "body": b"stale"})

    limit = ConcurrencyLimit(app, min_limit=1, max_limit=1)
    async with TieredCache(LRUCache(10, clock=clock), namespace="limit", clock=clock) as cache:
        middleware = PerformanceMiddleware(limit, cache=cache, stale_if_error=60, clock=clock)
        async with client_of(middleware) as client:
            assert (await client.get("/")).text == "stale"
            while "age" not in (await client.get("/")).headers:
                pass
            clock.advance(20)
            event.clear()
            entered.clear()
            waiting = asyncio.create_task(client.get("/other"))
            await entered.wait()
            response = await client.get("/")
            assert (response.status_code, response.text) == (200, "stale")
            event.set()
            await waiting
    assert limit.stats().refused == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_limit": 0}, ValueError, "min_limit must be from 1 to max_limit, which is 1000, got 0"),
        ({"min_limit": 5, "max_limit": 4}, ValueError, "min_limit must be from 1 to max_limit, which is 4, got 5"),
        ({"tolerance": 0.9}, ValueError, "tolerance must be at least 1, got 0.9"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be at least 1, got nan"),
        ({"retry_after": 0}, ValueError, "retry_after must be at least 1, got 0"),
        ({"exempt": "/health"}, TypeError, "exempt must be a collection of str, got the str '/health'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ConcurrencyLimit(answering(), **options)
