"""A reverse proxy behind the middleware, as a server for the suite for HTTP caches. The proxy itself does not cache.

The environment variable `ORIGIN` has the host and port of the suite's server. `HEURISTIC` has the value of that option.
"""

import asyncio
import os
from contextlib import closing

import httptools
from uvicorn.protocols.http import httptools_impl

from acgsperf import LRUCache, TieredCache
from acgsperf.asgi import PerformanceMiddleware

# What the suite's server answers if it expected a conditional request.
httptools_impl.STATUS_LINE[999] = b"HTTP/1.1 999 Unexpected\r\n"
# `Connection` of a response is passed on, because the middleware must not store the headers that it lists.
HOPS = {b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade"}
TIMEOUT_S = 30


class Answer:
    """The response of the suite's server, as the parser reports it."""

    def __init__(self):
        self.headers = []
        self.body = b""
        self.has_headers = False

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_headers_complete(self):
        self.has_headers = True

    def on_body(self, piece):
        self.body += piece


class Proxy:
    """Passes requests to the suite's server, each on a connection of its own.

    A client that is more particular would refuse a response with an unknown transfer coding.
    """

    def __init__(self, origin, cache):
        self.host, _, self.port = origin.rpartition(":")
        self.cache = cache

    async def __call__(self, scope, receive, send):
        await (self.answer if scope["type"] == "http" else self.live)(scope, receive, send)

    async def live(self, scope, receive, send):
        await receive()
        async with self.cache:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def answer(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        dropped = HOPS | {b"connection", b"content-length"}
        headers = [(name, value) for name, value in scope["headers"] if name not in dropped]
        headers += [(b"connection", b"close"), (b"content-length", b"%d" % len(body))]
        lines = [b"%b %b%b HTTP/1.1" % (scope["method"].encode(), scope["raw_path"], query)]
        lines += [b"%b: %b" % pair for pair in headers]
        async with asyncio.timeout(TIMEOUT_S):
            status, headers, body = await self.asked(b"\r\n".join([*lines, b"", body]))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def asked(self, request):
        """The status, headers and body that the suite's server answers."""
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        with closing(writer):
            writer.write(request)
            answer = Answer()
            parser = httptools.HttpResponseParser(answer)
            # Some bodies are longer than their `Content-Length` says.
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
            while piece := await reader.read(1 << 16):
                parser.feed_data(piece)
        if not answer.has_headers:
            raise ConnectionError("the suite's server closed the connection")
        status = parser.get_status_code()
        dropped = HOPS | ({b"content-length"} if status == 304 else set())
        headers = [pair for pair in answer.headers if pair[0] not in dropped and pair != (b"connection", b"close")]
        return status, headers, answer.body


cache = TieredCache(LRUCache(10_000), namespace="conformance")
heuristic = float(os.environ["HEURISTIC"]) if "HEURISTIC" in os.environ else None
app = PerformanceMiddleware(Proxy(os.environ["ORIGIN"], cache), cache=cache, heuristic=heuristic)
