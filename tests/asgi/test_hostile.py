"""Hostile headers and paths cost bounded time and memory, and never an error to a client."""

import secrets
import time

import pytest
from prometheus_client import CollectorRegistry

from acgsperf import LRUCache, PostgresTier, RedisTier, TieredCache
from acgsperf.asgi import fields
from acgsperf.asgi.uri import target_of
from acgsperf.asgi.validators import is_not_modified
from acgsperf.metrics.prometheus import PerformanceCollector, exposition

HUGE = 200_000
PUBLIC = (b"cache-control", b"public, max-age=60")
OF_RESPONSES = [
    [(b"vary", b", ".join(b"h%d" % i for i in range(5_000)))],
    [(b"vary", b"h%d" % i) for i in range(2_000)],
    [(b"vary", b"x" * HUGE)],
    [(b"cache-control", b", ".join(b"a%d" % i for i in range(5_000)))],
    [(b"cache-control", b"a%d" % i) for i in range(2_000)],
    [(b"cache-control", b'a="\\' * 20_000)],
    [(b"cache-control", b'max-age="' + b"\\" * HUGE)],
    [(b"cache-control", b"max-age=" + b"9" * HUGE)],
    [(b"cache-control", b"max-age=-5, stale-if-error=-1, stale-while-revalidate=99999999999999999999")],
    [(b"cache-control", b"max-age=1e9"), (b"age", b"-" + b"9" * HUGE)],
    [(b"cache-control", b"\xff\xfe=\x00, max-age=60")],
    [(b"cdn-cache-control", b'a="' + b"b" * HUGE)],
    [(b"cdn-cache-control", b"a;" * 4_000)],
    [(b"cdn-cache-control", b"a;" + b"b=" * 4_000)],
    [(b"expires", b"Fri, 31 Dec 9999 23:59:59 GMT"), (b"date", b"Sat, 01 Jan 0001 00:00:00 GMT")],
    [(b"expires", b"Fri, 31 Dec 9999 23:59:60 GMT"), (b"last-modified", b"Mon, 00 Foo -001 99:99:99 GMT")],
    [(b"expires", b"9" * HUGE)],
    [PUBLIC, (b"etag", b'"' + b"x" * 65_536 + b'"')],
    [PUBLIC, (b"etag", b'"' * 65_536)],
    [PUBLIC, (b"content-length", b"9" * HUGE)],
    [PUBLIC, (b"content-length", b"-1")],
    [PUBLIC, (b"connection", b", ".join(b"h%d" % i for i in range(5_000)))],
    [PUBLIC, (b"cache-tag", b"a," * HUGE), (b"surrogate-key", b"k " * HUGE)],
    [PUBLIC, (b"cache-tag", b"\xff" * 900), (b"surrogate-key", b"\x00")],
    [PUBLIC, (b"location", b"http://[" * 1_000), (b"content-location", b"//" * HUGE)],
]
OF_REQUESTS = [
    [(b"cache-control", b", ".join(b"a%d" % i for i in range(5_000)))],
    [(b"cache-control", b"max-age=" + b"9" * HUGE)],
    [(b"cache-control", b"max-age=-1, min-fresh=-1, max-stale=-1")],
    [(b"cache-control", b"max-stale=" + b"9" * 4_000 + b", min-fresh=" + b"9" * 4_000)],
    [(b"pragma", b"no-cache," * HUGE)],
    [(b"if-none-match", b", ".join(b'"%d"' % i for i in range(20_000)))],
    [(b"if-none-match", b'"' + b"x" * 65_536)],
    [(b"if-none-match", b'W/"' * 30_000)],
    [(b"if-modified-since", b"Fri, 31 Dec 9999 23:59:59 GMT")],
    [(b"if-modified-since", b"x" * HUGE)],
    [(b"range", b"bytes=" + b"0-0," * 50_000)],
    [(b"range", b"bytes=" + b"9" * HUGE + b"-")],
    [(b"range", b"bytes=-0")],
    [(b"if-range", b'"' * HUGE), (b"range", b"bytes=0-0")],
    [(b"host", b"a:" * 10_000)],
    [(b"host", b"\xff\x00"), (b"host", b"test")],
    [(b"cookie", b"a=b; " * 20_000), (b"x-api-key", b"\xff" * HUGE)],
    [(b"accept", b"a," * 50_000), (b"accept-language", b'"' * 50_000)],
]
PATHS = [
    b"/\xff\xfe",
    b"/%ff%fe",
    b"/%",
    b"/%zz",
    b"/" + b"../" * 5_000,
    b"/." * 600,
    b"/" + b"a" * HUGE,
    b"*",
    b"//x",
    b"",
]


class Hostile:
    """An application that answers with any bytes."""

    def __init__(self, headers, status=200):
        self.headers = headers
        self.status = status

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"fine"})


async def asked(middleware, headers=(), path=b"/a", method="GET", changed=()):
    scope = {
        "type": "http", "method": method, "scheme": "http", "path": path.decode("utf-8", "replace"), "raw_path": path,
        "query_string": b"", "headers": [(b"host", b"test"), *headers],
    }  # fmt: skip
    scope.update(changed)
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    started = time.process_time()
    await middleware(scope, receive, send)
    # It takes a hundredth of that; quadratic time would take minutes.
    assert time.process_time() - started < 1
    assert sent[0]["status"] in {200, 206, 304, 416}
    return sent


@pytest.mark.parametrize("headers", OF_RESPONSES, ids=lambda headers: str(headers)[:40])
@pytest.mark.parametrize("options", [{}, {"heuristic": 0.1, "ttl": 60, "stale_if_error": 60}], ids=["plain", "options"])
async def test_hostile_headers_of_a_response(connect, cache, clock, headers, options):
    middleware = connect(Hostile(headers), cache=cache, **options).middleware
    for _ in range(3):
        await asked(middleware)
        clock.advance(40)
    await asked(middleware, method="POST")
    await asked(middleware)


@pytest.mark.parametrize("asking", OF_REQUESTS, ids=lambda headers: str(headers)[:40])
@pytest.mark.parametrize("vary", [b"accept, accept-language, cookie", b"x-api-key", b""])
async def test_hostile_headers_of_a_request(connect, cache, clock, asking, vary):
    middleware = connect(Hostile([PUBLIC, (b"etag", b'"1"'), (b"vary", vary)]), cache=cache).middleware
    for _ in range(3):
        await asked(middleware, asking)
        clock.advance(40)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path)[:20])
async def test_hostile_paths(connect, cache, path):
    middleware = connect(Hostile([PUBLIC, (b"location", path)]), cache=cache).middleware
    for method in ("GET", "POST", "GET", "GET", "HEAD"):
        await asked(middleware, path=path, method=method)


async def test_a_path_without_raw_bytes_is_quoted(connect, origin, cache):
    scope = {"scheme": "http", "path": "/\udcff?ä", "headers": []}
    assert target_of(scope).uri == "http:http:///%FF%3F%C3%A4"


@pytest.fixture(params=["l2", "l3"])
async def tiered(request, servers):
    """A cache with a lower tier."""
    tier = RedisTier(servers.redis_url, deadline=5) if request.param == "l2" else None
    l3 = PostgresTier(servers.database_url, deadline=5) if request.param == "l3" else None
    async with TieredCache(LRUCache(9), tier, l3, namespace="hostile-" + secrets.token_hex(4), deadline=5) as opened:
        yield opened
        await opened.clear()


@pytest.mark.parametrize(
    ("changed", "headers"),
    [
        ({"path": "/\udcff\ud800", "raw_path": None}, []),
        ({"raw_path": b"/\x00\xff", "query_string": b"\x00\xff"}, []),
        ({"headers": [(b"host", b"\x00\xff")]}, []),
        ({"headers": [(b"a\x00", b"\x00\xff")]}, [(b"vary", b"a\x00"), (b"x", b"\xff\x00")]),
        ({}, [(b"surrogate-key", b"\x00 \xff"), (b"cache-tag", b"\x00,\xff")]),
    ],
    ids=["path", "bytes", "host", "vary", "tags"],
)  # fmt: skip
async def test_lower_tiers_store_hostile_responses(connect, tiered, changed, headers):
    middleware = connect(Hostile([PUBLIC, *headers]), cache=tiered).middleware
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(http=middleware))
    for _ in range(2):
        await asked(middleware, changed=changed)
    assert (middleware.counts().hits, middleware.counts().stored) == (1, 1)
    assert b"acgsperf_http" in exposition(registry)()[1]


async def test_bodies_of_any_kind_of_bytes_are_kept(connect, cache):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [PUBLIC]})
        await send({"type": "http.response.body", "body": bytearray(b"a"), "more_body": True})
        await send({"type": "http.response.body", "body": memoryview(b"b"), "more_body": True})
        await send({"type": "http.response.body"})

    middleware = connect(app, cache=cache).middleware
    await asked(middleware)
    assert (await asked(middleware))[1]["body"] == b"ab"


def test_what_is_remembered_is_bounded():
    for i in range(10_000):
        fields.directives(b"max-age=%d" % i)
        fields.http_date(b"Sun, 06 Nov 1994 08:49:%02d GMT" % i)
    assert fields._known_directives.cache_info().currsize <= 1_024
    assert fields._http_date.cache_info().currsize <= 1_024
    large = b"max-age=1," + b"a" * 300
    before = fields._known_directives.cache_info().currsize
    assert fields.directives(large)["max-age"] == "1"
    assert fields._known_directives.cache_info().currsize == before


def test_a_tag_of_64_kb_is_compared():
    tag = b'"' + b"x" * 65_536 + b'"'
    assert is_not_modified(b'"a", ' + tag, None, tag, None, 0)


async def test_a_header_that_comes_100_000_times_takes_linear_time(connect, origin, cache):
    """Joined one by one, the values would take 5,000 times as long."""
    origin.headers = [("cache-control", "max-age=60")]
    client = connect(origin, cache=cache)
    middleware = client.middleware

    def seconds(times):
        scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/a", "raw_path": b"/a"}
        scope |= {"query_string": b"", "headers": [(b"host", b"test")] + [(b"cookie", b"abcdefgh")] * times}
        began = time.thread_time()
        middleware._responses.request(scope)
        return time.thread_time() - began

    assert min(seconds(100_000) for _ in range(3)) < 0.5


async def test_a_long_range_is_not_stored_with_its_part(connect, origin, cache):
    origin.status = 206
    origin.headers = [("cache-control", "max-age=60"), ("content-range", "bytes 0-0/10")]
    origin.body = [b"0"]
    client = connect(origin, cache=cache)
    await client.get("/a", headers={"range": f"bytes={' ' * 10_000}0-0"})
    cell = await cache.get("http:http://test/a part")
    assert cell[0].part.asked == b""
