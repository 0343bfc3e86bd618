"""A reverse proxy behind the middleware, as a server for the suite for HTTP caches. The proxy itself does not cache.

The environment variable `ORIGIN` has the URL of the suite's server.
"""

import os
from contextlib import aclosing

import httpx
from uvicorn.protocols.http import httptools_impl

from acgsperf import LRUCache, TieredCache
from acgsperf.asgi import PerformanceMiddleware

# What the suite's server answers if it expected a conditional request.
httptools_impl.STATUS_LINE[999] = b"HTTP/1.1 999 Unexpected\r\n"
# `Connection` of a response is passed on, because the middleware must not store the headers that it lists.
HOPS = {b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"host"}
ADDED_BY_HTTPX = ("accept", "accept-encoding", "user-agent", "connection")


class Proxy:
    """Passes requests to the suite's server."""

    def __init__(self, origin, cache):
        self.origin = origin
        self.cache = cache

    async def __call__(self, scope, receive, send):
        await (self.answer if scope["type"] == "http" else self.live)(scope, receive, send)

    async def live(self, scope, receive, send):
        await receive()
        # The suite's server closes idle connections after 5 s.
        limits = httpx.Limits(max_connections=200, keepalive_expiry=2)
        async with httpx.AsyncClient(timeout=30, limits=limits) as self.client, self.cache:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def answer(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        url = self.origin + (scope["raw_path"] + query).decode("latin-1")
        # The name of one test ends with white space, which httpx refuses.
        headers = [(name, value.strip()) for name, value in scope["headers"] if name not in HOPS | {b"connection"}]
        request = self.client.build_request(scope["method"], url, headers=headers, content=body or None)
        for name in ADDED_BY_HTTPX:
            if name.encode() not in {given for given, _ in headers}:
                request.headers.pop(name, None)
        response = await self.client.send(request, stream=True)
        async with aclosing(response):
            dropped = HOPS | ({b"content-length"} if response.status_code == 304 else set())
            raw = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in dropped]
            await send({"type": "http.response.start", "status": response.status_code, "headers": raw})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


cache = TieredCache(LRUCache(10_000), namespace="conformance")
heuristic = float(os.environ["HEURISTIC"]) if "HEURISTIC" in os.environ else None
app = PerformanceMiddleware(Proxy(os.environ["ORIGIN"], cache), cache=cache, heuristic=heuristic)
