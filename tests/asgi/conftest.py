"""Applications behind the middleware: called directly with a clock that a test moves, and served by uvicorn."""

import asyncio
from contextlib import ExitStack

import httpx
import pytest
from http_servers import served_by_uvicorn

from acgsperf import LRUCache, TieredCache
from acgsperf.asgi import PerformanceMiddleware


class Origin:
    """An application that answers with what a test has put into it, and counts its calls.

    `requests` has the headers of its requests. With `validates`, it answers 304 if its `ETag` or `Last-Modified` is the
    one that the request has. `called` is set by each call. `wait` is awaited before the response.
    """

    def __init__(self):
        self.calls = 0
        self.called = asyncio.Event()
        self.requests = []
        self.validates = False
        self.wait = None
        self.status = 200
        self.headers = []
        self.body = None
        self.failure = None

    async def __call__(self, scope, receive, send):
        self.calls += 1
        self.called.set()
        asked, own = dict(scope["headers"]), dict(self.headers)
        self.requests.append({name.decode(): value.decode("latin-1") for name, value in scope["headers"]})
        headers = [(name.encode(), value.encode()) for name, value in self.headers]
        if self.wait is not None:
            await self.wait()
        if self.validates and (
            own.get("etag", "").encode() == asked.get(b"if-none-match")
            or own.get("last-modified", "").encode() == asked.get(b"if-modified-since")
        ):
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        pieces = self.body or [b"answer %d" % self.calls]
        for piece in pieces[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self.failure is not None:
            raise self.failure
        await send({"type": "http.response.body", "body": pieces[-1]})


@pytest.fixture
def origin():
    return Origin()


@pytest.fixture
async def cache(clock):
    async with TieredCache(LRUCache(100, clock=clock), namespace="http", clock=clock) as opened:
        yield opened


@pytest.fixture
async def connect(clock):
    """Clients of an application behind the middleware, in this event loop."""
    clients = []

    def connected(app, **options):
        middleware = PerformanceMiddleware(app, **{"clock": clock} | options)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://test")
        client.middleware = middleware
        clients.append(client)
        return client

    yield connected
    for client in clients:
        await client.aclose()


@pytest.fixture
def serve():
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(served_by_uvicorn(app))
