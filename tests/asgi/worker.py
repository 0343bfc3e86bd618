"""A worker: an application behind the middleware, in a process of its own. It prints its port.

The workers of a test share a file, which stands for their database.

    /open        POST opens a new cache with the options in the body, and makes a new middleware
    /close       POST closes the cache
    /price       GET returns the content of the file. With `X-Hold` it waits for `/release` after it has read the file.
                 With `?vary` the response depends on `Accept`. POST replaces the content.
    /held        returns when a request waits
    /release     lets it go on
    /clear       POST clears the cache
    /local       how many responses L1 has
"""

import asyncio
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from acgsperf import LRUCache, PostgresTier, RedisTier, TieredCache
from acgsperf.asgi import PerformanceMiddleware


class Worker:
    """What a test has opened."""

    async def open(self, request):
        options = await request.json()
        self._file = Path(options["file"])
        self.held, self.released = asyncio.Event(), asyncio.Event()
        self.l1 = LRUCache(100)
        self.cache = TieredCache(
            self.l1,
            RedisTier(options["redis_url"], deadline=5) if options["redis_url"] else None,
            PostgresTier(options["dsn"], deadline=5) if options["dsn"] else None,
            namespace=options["namespace"],
            # A response is in L1 after one hit in a lower tier.
            promotion_threshold=1,
            deadline=5,
        )
        await self.cache.open()
        routes = [
            Route("/price", self.price, methods=["GET", "POST"]),
            Route("/held", self.wait_until_held),
            Route("/release", self.release),
            Route("/clear", self.clear, methods=["POST"]),
            Route("/local", self.local),
        ]
        self.middleware = PerformanceMiddleware(Starlette(routes=routes), cache=self.cache)
        return PlainTextResponse("")

    @property
    def file_content(self):
        return self._file.read_bytes()

    @file_content.setter
    def file_content(self, content):
        self._file.write_bytes(content)

    async def close(self, request):
        await self.cache.close()
        return PlainTextResponse("")

    async def price(self, request):
        if request.method == "POST":
            self.file_content = await request.body()
            return PlainTextResponse("")
        content = self.file_content
        if "x-hold" in request.headers:
            self.held.set()
            await self.released.wait()
        vary = {"Vary": "Accept"} if "vary" in request.query_params else {}
        return PlainTextResponse(content, headers={"Cache-Control": "max-age=60"} | vary)

    async def wait_until_held(self, request):
        await self.held.wait()
        return PlainTextResponse("")

    async def release(self, request):
        self.released.set()
        return PlainTextResponse("")

    async def clear(self, request):
        await self.cache.clear()
        return PlainTextResponse("")

    async def local(self, request):
        return PlainTextResponse(str(len(self.l1)))


worker = Worker()
control = Starlette(routes=[Route(f"/{name}", getattr(worker, name), methods=["POST"]) for name in ("open", "close")])


async def app(scope, receive, send):
    await (control if scope["path"] in {"/open", "/close"} else worker.middleware)(scope, receive, send)


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


if __name__ == "__main__":
    # A client may wait for the other worker longer than the 5 s after which uvicorn closes an idle connection.
    Server(uvicorn.Config(app, port=0, log_level="critical", ws="none", lifespan="off", timeout_keep_alive=60)).run()
