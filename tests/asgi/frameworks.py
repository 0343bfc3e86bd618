"""The same small application in each framework.

/items/N     "N CALLS", fresh for a minute, with an entity tag
/echo        the body of a POST
/stream      "012" in pieces, fresh for a minute
/broken      fails after its first piece, fresh for a minute
"""

import types

import django
import fastapi
import litestar
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from litestar.response import Stream
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

FRESH = {"Cache-Control": "max-age=3600"}
TAGGED = {"Cache-Control": "public, max-age=3600", "ETag": '"a,b"', "Vary": "Accept-Language"}


class Calls:
    """How often each path was called."""

    def __init__(self):
        self.counts = {}

    def count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.counts[name]


async def three():
    for i in range(3):
        yield b"%d" % i


async def half():
    yield b"half"
    raise RuntimeError("midway")


def starlette_app(calls):
    async def item(request):
        return PlainTextResponse(f"{request.path_params['number']} {calls.count('items')}", headers=TAGGED)

    async def echo(request):
        return PlainTextResponse(await request.body())

    async def stream(request):
        calls.count("stream")
        return StreamingResponse(three(), headers=FRESH)

    async def broken(request):
        calls.count("broken")
        return StreamingResponse(half(), headers=FRESH)

    routes = [Route("/items/{number}", item), Route("/echo", echo, methods=["POST"])]
    return Starlette(routes=[*routes, Route("/stream", stream), Route("/broken", broken)])


def fastapi_app(calls):
    app = fastapi.FastAPI()

    @app.get("/items/{number}")
    async def item(number: int):
        return fastapi.responses.PlainTextResponse(f"{number} {calls.count('items')}", headers=TAGGED)

    @app.post("/echo")
    async def echo(request: fastapi.Request):
        return fastapi.responses.PlainTextResponse(await request.body())

    @app.get("/stream")
    async def stream():
        calls.count("stream")
        return fastapi.responses.StreamingResponse(three(), headers=FRESH)

    @app.get("/broken")
    async def broken():
        calls.count("broken")
        return fastapi.responses.StreamingResponse(half(), headers=FRESH)

    return app


def litestar_app(calls):
    @litestar.get("/items/{number:int}", media_type="text/plain")
    async def item(request: litestar.Request) -> litestar.Response[str]:
        return litestar.Response(f"{request.path_params['number']} {calls.count('items')}", headers=TAGGED)

    @litestar.post("/echo", media_type="text/plain", status_code=200)
    async def echo(request: litestar.Request) -> bytes:
        return await request.body()

    @litestar.get("/stream")
    async def stream() -> Stream:
        calls.count("stream")
        return Stream(three(), headers=FRESH)

    @litestar.get("/broken")
    async def broken() -> Stream:
        calls.count("broken")
        return Stream(half(), headers=FRESH)

    return litestar.Litestar([item, echo, stream, broken], logging_config=None)


def django_app(calls):
    async def item(request, number):
        return HttpResponse(f"{number} {calls.count('items')}", headers=TAGGED)

    async def echo(request):
        return HttpResponse(request.body)

    async def stream(request):
        calls.count("stream")
        return StreamingHttpResponse(three(), headers=FRESH)

    async def broken(request):
        calls.count("broken")
        return StreamingHttpResponse(half(), headers=FRESH)

    urls = types.ModuleType("urls")
    urls.urlpatterns = [
        path("items/<int:number>", item),
        path("echo", echo),
        path("stream", stream),
        path("broken", broken),
    ]
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=urls, SECRET_KEY="tests", LOGGING_CONFIG=None)
        django.setup()
    settings.ROOT_URLCONF = urls
    django.urls.clear_url_caches()
    django.urls.set_urlconf(None)
    return get_asgi_application()


FRAMEWORKS = {"fastapi": fastapi_app, "starlette": starlette_app, "litestar": litestar_app, "django": django_app}


class WithCache:
    """Opens and closes a cache with the server. Not every framework has a lifespan."""

    def __init__(self, app, cache):
        self.app = app
        self.cache = cache

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        await receive()
        async with self.cache:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
