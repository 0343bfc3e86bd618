"""FastAPI, Starlette, Litestar and Django behind the middleware, under uvicorn, and under hypercorn with HTTP/2."""

import asyncio
import contextlib
import gc
import socket
import threading

import httpx
import pytest
from conftest import served
from frameworks import FRAMEWORKS, Calls, WithCache
from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config

from acgsperf import LRUCache, TieredCache
from acgsperf.asgi import PerformanceMiddleware

# Django leaves the body of a request open if a response fails midway.
pytestmark = pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    """Let the warnings of a test be warned of in that test."""
    yield
    gc.collect()


@contextlib.contextmanager
def served_by_hypercorn(app):
    """The base URL of an application under hypercorn, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = config.accesslog = None
    config.graceful_timeout = 1
    loop, stopped, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def announcing(scope, receive, send):
        async def told(message):
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                ready.set()

        await app(scope, receive, told if scope["type"] == "lifespan" else send)

    def run():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve_hypercorn(announcing, config, shutdown_trigger=stopped.wait))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
        # hypercorn has closed the socket that it was given.
        listener.detach()
    assert not thread.is_alive()


SERVERS = {"uvicorn": served, "hypercorn": served_by_hypercorn}


@pytest.fixture(params=SERVERS)
def server(request):
    return request.param


@pytest.fixture(params=FRAMEWORKS)
def asked(request, server):
    """A client of an application in a framework, under a server; and the calls of the application."""
    calls = Calls()
    cache = TieredCache(LRUCache(100), namespace="http")
    app = WithCache(PerformanceMiddleware(FRAMEWORKS[request.param](calls), cache=cache), cache)
    http2 = server == "hypercorn"
    with SERVERS[server](app) as url, httpx.Client(base_url=url, http2=http2, http1=not http2, timeout=30) as client:
        yield client, calls.counts


def test_a_response_is_kept_and_served_with_its_age(asked, server):
    client, calls = asked
    first, again = client.get("/items/7"), client.get("/items/7")
    assert again.http_version == ("HTTP/2" if server == "hypercorn" else "HTTP/1.1")
    assert (first.text, again.text, calls["items"]) == ("7 1", "7 1", 1)
    assert "age" not in first.headers
    assert again.headers["age"].isdecimal()
    assert again.headers["content-type"] == first.headers["content-type"]
    assert client.get("/items/7", headers={"If-None-Match": '"a,b"'}).status_code == 304
    part = client.get("/items/7", headers={"Range": "bytes=0-0"})
    assert (part.status_code, part.text) == (206, "7")
    assert client.get("/items/7", headers={"Accept-Language": "de"}).text == "7 2"
    assert client.get("/items/7").text == "7 1"
    head = client.head("/items/7")
    assert (head.headers["content-length"], head.content) == ("3", b"")
    assert calls["items"] == 2


def test_a_conditional_request_that_misses_is_answered(asked):
    client, calls = asked
    assert client.get("/items/7", headers={"If-None-Match": '"a,b"'}).status_code == 304
    assert client.get("/items/7").text == "7 1"
    assert calls["items"] == 1


def test_bodies_reach_the_application(asked, server):
    client, calls = asked
    assert client.post("/echo", content=b"x" * 100_000).content == b"x" * 100_000
    if server == "uvicorn":
        # hypercorn closes the connection if an application does not read a body.
        for _ in range(2):
            client.request("GET", "/items/7", content=b"query")
        assert calls["items"] == 2


def test_a_stream_is_kept(asked):
    client, calls = asked
    assert client.get("/stream").text == client.get("/stream").text == "012"
    assert calls["stream"] == 1


def test_the_torso_of_a_failed_response_is_not_kept(asked):
    client, calls = asked
    for _ in range(2):
        with contextlib.suppress(httpx.HTTPError):
            client.get("/broken")
    assert calls["broken"] == 2
