"""Starlette and FastAPI applications under uvicorn, asked by a real client."""

import asyncio
import contextlib
import secrets
import threading

import fastapi
import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from acgsperf import CONSTITUTIONAL_HASH, ComplianceValidator, LRUCache, RedisTier, TieredCache
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.metrics.prometheus import PerformanceCollector, exposition

GOOD = {"X-Constitutional-Hash": CONSTITUTIONAL_HASH}


class Calls:
    """How often the endpoints of an application ran."""

    def __init__(self):
        self.count = 0


def starlette_app(cache, calls):
    async def item(request):
        calls.count += 1
        body = f"{request.path_params['id']} {calls.count}"
        return PlainTextResponse(body, headers={"Cache-Control": "public, max-age=60", "ETag": f'"{calls.count}"'})

    async def stream(request):
        async def pieces():
            for i in range(3):
                yield b"%d" % i

        return StreamingResponse(pieces(), headers={"Cache-Control": "max-age=60"})

    async def fail(request):
        raise RuntimeError("on purpose")

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with cache:
            yield

    routes = [Route("/items/{id}", item), Route("/stream", stream), Route("/fail", fail)]
    return Starlette(routes=[*routes, Mount("/sub", routes=routes)], lifespan=lifespan)


def fastapi_app(cache, calls):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with cache:
            yield

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/items/{id}")
    async def item(id: int, response: fastapi.Response) -> dict[str, int]:  # noqa: A002
        calls.count += 1
        response.headers["Cache-Control"] = "max-age=60"
        return {"id": id, "calls": calls.count}

    return app


@pytest.fixture
def namespace():
    return "http-" + secrets.token_hex(4)


@pytest.fixture
def ended():
    """Notified when the middleware has returned from a call."""
    return threading.Condition()


@pytest.fixture
def until(ended):
    """Waits for a condition: a response is timed and stored after it was sent, so a client may get it before."""

    def wait(condition):
        with ended:
            assert ended.wait_for(condition, timeout=10)

    return wait


@pytest.fixture
def start(serve, ended):
    """A client of a served application, its middleware, and its calls."""
    with contextlib.ExitStack() as stack:

        def started(make, cache, **options):
            calls = Calls()
            registry = CollectorRegistry()
            middleware = PerformanceMiddleware(
                make(cache, calls),
                validator=ComplianceValidator(),
                cache=cache,
                metrics=exposition(registry),
                **options,
            )
            registry.register(PerformanceCollector(http=middleware))

            async def notifying(scope, receive, send):
                try:
                    await middleware(scope, receive, send)
                finally:
                    with ended:
                        ended.notify_all()

            client = stack.enter_context(httpx.Client(base_url=serve(notifying), timeout=30))
            return client, middleware, calls

        yield started


def counted(middleware):
    return {route: latency.count for route, latency in middleware.routes().items()}


def samples(page):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_starlette_is_gated_cached_and_measured(start, until, namespace):
    client, middleware, calls = start(starlette_app, TieredCache(LRUCache(100), namespace=namespace))
    first = client.get("/items/7", headers=GOOD)
    again = client.get("/items/7", headers=GOOD)
    assert (first.text, again.text, calls.count) == ("7 1", "7 1", 1)
    assert "age" not in first.headers
    assert again.headers["age"].isdecimal()
    assert client.head("/items/7").headers["content-length"] == "3"
    assert client.get("/items/7", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert client.get("/items/8", headers={"X-Constitutional-Hash": "0" * 16}).status_code == 403
    assert calls.count == 1
    assert client.get("/stream").text == client.get("/stream").text == "012"
    assert client.get("/sub/items/1").text == "1 2"
    # uvicorn closes the connection of a request that failed, perhaps when the client has just sent the next one.
    assert client.get("/fail", headers={"Connection": "close"}).status_code == 500
    assert client.get("/nowhere").status_code == 404
    expected = {"/items/{id}": 4, "/stream": 2, "/sub/items/{id}": 1, "/fail": 1, "other": 1}
    until(lambda: counted(middleware) == expected)

    page = samples(client.get("/metrics").text)
    assert page["acgsperf_http_refused_total",] == 1
    assert page["acgsperf_http_cache_requests_total", "hit"] == 4
    assert page["acgsperf_http_request_duration_seconds_count", "/items/{id}"] == 4


def test_fastapi_shares_its_responses_through_redis(start, until, namespace, servers):
    def cache():
        return TieredCache(LRUCache(100), RedisTier(servers.redis_url, deadline=5), namespace=namespace)

    first, stores, first_calls = start(fastapi_app, cache())
    second, middleware, second_calls = start(fastapi_app, cache())
    # As behind a load balancer: a response belongs to a host.
    headers = GOOD | {"Host": "app.test"}
    answer = first.get("/items/7", headers=headers)
    assert answer.json() == {"id": 7, "calls": 1}
    until(lambda: stores.counts().stored == 1)
    from_redis = second.get("/items/7", headers=headers)
    assert from_redis.content == answer.content
    assert from_redis.headers["content-type"] == answer.headers["content-type"]
    assert from_redis.headers["age"].isdecimal()
    assert (first_calls.count, second_calls.count) == (1, 0)
    until(lambda: counted(middleware) == {"/items/{id}": 1})
    assert first.get("/items/seven").status_code == 422


def test_a_client_that_leaves_midway_leaves_nothing_kept(start, until, namespace):
    def app(cache, calls):
        async def endless(request):
            calls.count += 1

            async def pieces():
                while True:
                    # Let the event loop notice that the client has disconnected.
                    await asyncio.sleep(0)
                    yield b"x" * 1_000

            return StreamingResponse(pieces(), headers={"Cache-Control": "max-age=60"})

        @contextlib.asynccontextmanager
        async def lifespan(app):
            async with cache:
                yield

        return Starlette(routes=[Route("/endless", endless)], lifespan=lifespan)

    client, middleware, calls = start(app, TieredCache(LRUCache(100), namespace=namespace), max_body_bytes=1 << 40)
    for _ in range(2):
        with client.stream("GET", "/endless") as answer:
            assert next(answer.iter_bytes(1_000)) == b"x" * 1_000
    until(lambda: counted(middleware) == {"/endless": 2})
    assert (calls.count, middleware.counts().stored) == (2, 0)
