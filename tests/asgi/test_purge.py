"""Responses are removed from code, by path and by tag, in every worker."""

import asyncio
import contextlib
import secrets

import httpx
import pytest

from acgsperf import CacheError, LRUCache, RedisTier, TieredCache
from acgsperf.backplane.redis import RedisBackplane

FRESH = ("cache-control", "max-age=60")


@pytest.fixture
def client(connect, origin, cache):
    origin.headers = [FRESH]
    return connect(origin, cache=cache)


async def test_a_path_is_purged_with_all_its_queries_hosts_and_variants(client, origin):
    origin.headers.append(("vary", "accept"))
    urls = ["http://test/~a", "http://test/%7Ea?q=1", "https://other/~a"]
    for url in [*urls, "http://test/~a/b"]:
        await client.get(url)
    await client.get(urls[0], headers={"accept": "text/html"})
    written = await client.middleware.purge(path="/~a")
    assert written.l2 is written.l3 is None
    for url in urls:
        await client.get(url)
    await client.get(urls[0], headers={"accept": "text/html"})
    assert origin.calls == 9
    await client.get("http://test/~a/b")
    assert origin.calls == 9


@pytest.mark.parametrize(
    ("header", "value", "tags"),
    [
        ("cache-tag", "a, b c,d", ["a", "b c", "d"]),
        ("surrogate-key", "a b  c", ["a", "b", "c"]),
        ("cache-tag", "ä, 日本", ["ä", "日本"]),
    ],
)
async def test_responses_are_purged_by_their_tags(client, origin, header, value, tags):
    origin.headers.append((header, value))
    await client.get("/a")
    origin.headers = [FRESH, (header, "other")]
    await client.get("/b")
    calls = 2
    for tag in [*tags, "none"]:
        await client.middleware.purge(tag=tag)
        origin.headers = [FRESH, (header, value)]
        await client.get("/a")
        await client.get("/b")
        calls += tag != "none"
        assert origin.calls == calls


async def test_a_tag_purges_one_variant_and_leaves_the_others(client, origin):
    for language in ("de", "en"):
        origin.headers = [FRESH, ("vary", "accept-language"), ("cache-tag", language)]
        await client.get("/a", headers={"accept-language": language})
    await client.middleware.purge(tag="de")
    for language, calls in (("en", 2), ("de", 3)):
        await client.get("/a", headers={"accept-language": language})
        assert origin.calls == calls


@contextlib.asynccontextmanager
async def computing(origin, client):
    """The application computes a response to a client during this context."""
    go_on = asyncio.Event()
    origin.wait = go_on.wait
    origin.called.clear()
    slow = asyncio.create_task(client.get("/a"))
    await origin.called.wait()
    yield
    go_on.set()
    await slow


@pytest.mark.parametrize("purged", [{"tag": "price"}, {"path": "/a"}])
async def test_a_response_that_was_computed_before_the_purge_is_not_kept(client, origin, purged):
    origin.headers.append(("cache-tag", "price"))
    async with computing(origin, client):
        await client.middleware.purge(**purged)
    assert client.middleware.counts().stored == 0


@pytest.fixture
async def workers(servers):
    """Two caches with the same namespace, as in two processes."""
    namespace = "purge-" + secrets.token_hex(4)
    caches = [
        TieredCache(LRUCache(100), RedisTier(servers.redis_url, deadline=5), namespace=namespace, deadline=5,
                    promotion_threshold=1)
        for _ in range(2)
    ]  # fmt: skip
    async with caches[0], caches[1]:
        yield caches
        await caches[0].clear()


@pytest.mark.parametrize("purged", [{"tag": "price"}, {"path": "/a"}])
async def test_a_purge_reaches_every_worker(connect, origin, workers, purged):
    origin.headers = [FRESH, ("cache-tag", "price")]
    first, second = (connect(origin, cache=cache) for cache in workers)
    for client in (first, second, second):
        await client.get("/a")
    assert origin.calls == 1
    assert (await first.middleware.purge(**purged)).l2
    async with asyncio.timeout(10):
        while (await second.get("/a")).text == "answer 1":
            pass
    assert (await first.get("/a")).text == "answer 2"


@pytest.fixture
async def on_backplane(servers):
    """Two caches without lower tiers, as in two processes, which hear each other by a backplane."""
    namespace = "purge-" + secrets.token_hex(4)
    caches = [
        TieredCache(LRUCache(100), namespace=namespace, backplane=RedisBackplane(servers.redis_url)) for _ in range(2)
    ]
    async with caches[0], caches[1]:
        yield caches


@pytest.mark.parametrize(
    "remove",
    [
        lambda client: client.middleware.purge(tag="price"),
        lambda client: client.middleware.purge(path="/a"),
        lambda client: client.delete("/a"),
        lambda client: client.post("/b"),
    ],
    ids=["tag", "path", "DELETE", "Location"],
)
async def test_the_backplane_alone_carries_it(connect, origin, on_backplane, remove):
    origin.headers = [FRESH, ("cache-tag", "price"), ("location", "/a")]
    first, second = (connect(origin, cache=cache) for cache in on_backplane)
    for client in (first, second, second):
        await client.get("/a")
    assert origin.calls == 2
    await remove(first)
    async with asyncio.timeout(10):
        while (await second.get("/a")).text == "answer 2":
            pass


async def test_a_purge_in_another_worker_supersedes_what_is_computed(connect, origin, workers):
    origin.headers = [FRESH, ("cache-tag", "price")]
    first, second = (connect(origin, cache=cache) for cache in workers)
    async with computing(origin, first):
        await second.middleware.purge(tag="price")
    assert first.middleware.counts().stored == 0
    assert (await second.get("/a")).text == "answer 2"


async def test_a_purge_needs_a_cache_and_either_a_path_or_a_tag(connect, origin, client):
    with pytest.raises(CacheError, match="no cache to purge"):
        await connect(origin).middleware.purge(path="/a")
    for arguments in ({}, {"path": "/a", "tag": "a"}):
        with pytest.raises(TypeError, match="purge needs either a path or a tag"):
            await client.middleware.purge(**arguments)


@pytest.mark.parametrize("raw", [b"caf\xe9", "café".encode()])
async def test_a_tag_is_purged_in_both_encodings_of_a_header(connect, cache, raw):
    """Starlette sends headers in Latin-1, others send UTF-8."""

    async def app(scope, receive, send):
        calls.append(scope)
        headers = [(b"cache-control", b"max-age=60"), (b"cache-tag", raw)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    calls = []
    client = connect(app, cache=cache)
    await client.get("/a")
    await client.middleware.purge(tag="café")
    await client.get("/a")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        (b"/me%40x.org", "/me@x.org"),
        (b"/a%2Cb%3Ac%2Bd", "/a,b:c+d"),
        (b"/a%2Fb", "/a/b"),
        (b"/a|b{c}[d]^", "/a|b{c}[d]^"),
        (b"/100%25", "/100%"),
        (b"/%FF", "/\udcff"),
    ],
)
@pytest.mark.parametrize("has_raw", [True, False])
async def test_a_path_is_purged_encoded_and_decoded(connect, origin, cache, raw, decoded, has_raw):
    async def app(scope, receive, send):
        await middleware({**scope, "path": decoded, "raw_path": raw if has_raw else None}, receive, send)

    origin.headers = [FRESH]
    middleware = connect(origin, cache=cache).middleware
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with client:
        for calls, path in enumerate((decoded, raw.decode()), 1):
            await client.get("/")
            assert origin.calls == calls
            await middleware.purge(path=path)
        await client.get("/")
    assert origin.calls == 3
