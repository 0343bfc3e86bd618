"""FastAPI, Starlette, Litestar and Django behind the middleware, under uvicorn, and under hypercorn with HTTP/2."""

import contextlib
import gc
import time

import httpx
import pytest
from frameworks import FRAMEWORKS, Calls, WithCache
from http_servers import served_by_hypercorn, served_by_uvicorn

from acgsperf import LRUCache, TieredCache
from acgsperf.asgi import PerformanceMiddleware

# Django leaves the body of a request open if a response fails midway.
pytestmark = pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    """Collect the garbage of a test, so that its warnings fail that test and not a later one."""
    yield
    gc.collect()


SERVERS = {"uvicorn": served_by_uvicorn, "hypercorn": served_by_hypercorn}


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
    # Django's call goes on for a moment after its response. Only then is the response stored.
    time.sleep(0.1)
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


def test_a_response_that_fails_midway_is_not_kept(asked):
    client, calls = asked
    for _ in range(2):
        with contextlib.suppress(httpx.HTTPError):
            client.get("/broken")
    assert calls["broken"] == 2
