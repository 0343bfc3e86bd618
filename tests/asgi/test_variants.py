"""Responses of one URI that depend on request headers are stored together."""

import secrets

import pytest

from acgsperf import LRUCache, RedisTier, TieredCache
from acgsperf.asgi.variants import varying_on

FRESH = ("cache-control", "max-age=60")


class Negotiating:
    """An application that chooses by `Accept-Encoding`, and names in `Vary` what each choice depended on."""

    def __init__(self, gzip, identity):
        self.vary = {True: gzip, False: identity}
        self.calls = 0
        self.lifetimes = {True: 60, False: 60}

    async def __call__(self, scope, receive, send):
        self.calls += 1
        gzip = b"gzip" in dict(scope["headers"]).get(b"accept-encoding", b"")
        headers = [(b"cache-control", b"max-age=%d" % self.lifetimes[gzip])]
        headers += [(b"vary", self.vary[gzip])] if self.vary[gzip] else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"gzip" if gzip else b"identity"})


@pytest.fixture(params=["l1", "redis"])
async def any_cache(request, servers):
    l2 = RedisTier(servers.redis_url, deadline=5) if request.param == "redis" else None
    async with TieredCache(LRUCache(100), l2, namespace="vary-" + secrets.token_hex(4), deadline=5) as cache:
        yield cache
        await cache.clear()


@pytest.mark.parametrize(
    ("gzip", "identity"),
    [
        (b"accept-encoding, accept-language", b"accept-encoding"),
        (b"accept-encoding", b"accept-encoding, accept-language"),
        (b"accept-encoding", b"accept-language, accept-encoding, x-a"),
        (b"accept-encoding", None),
    ],
)
async def test_representations_that_name_other_headers_do_not_replace_each_other(connect, any_cache, gzip, identity):
    app = Negotiating(gzip, identity)
    client = connect(app, cache=any_cache)
    for _ in range(4):
        for encoding in ("gzip", "identity"):
            assert (await client.get("/", headers={"accept-encoding": encoding})).text == encoding
    assert app.calls == 2


async def test_a_variant_with_a_short_lifetime_does_not_shorten_that_of_the_others(connect, cache, clock):
    app = Negotiating(b"accept-encoding", b"accept-encoding")
    app.lifetimes[False] = 1
    client = connect(app, cache=cache)
    await client.get("/", headers={"accept-encoding": "gzip"})
    await client.get("/", headers={"accept-encoding": "identity"})
    clock.advance(2)
    await client.get("/", headers={"accept-encoding": "gzip"})
    assert app.calls == 2


async def test_of_several_responses_that_match_the_newest_is_served(connect, origin, cache, clock):
    client = connect(origin, cache=cache)
    for names in ("x-a", "x-b"):
        origin.headers = [FRESH, ("vary", names)]
        clock.advance(1)
        await client.get("/", headers={"cache-control": "no-cache"})
    assert (await client.get("/")).text == "answer 2"


@pytest.mark.parametrize(
    ("name", "one", "other", "equal"),
    [
        ("accept-language", "de, en", "EN,de", True),
        ("accept-language", "de;q=0.5, en", "en , de; q=0.5", True),
        ("accept-language", "de", "en", False),
        ("accept-language", "de;q=0.5, en", "de, en;q=0.5", False),
        ("accept-encoding", "gzip, br", "br, gzip", True),
        ("x-plain", "a, b", "a,b", True),
        ("x-plain", "a,b", "b,a", False),
        ("x-plain", "a", "A", False),
        ("x-plain", '"a, b"', '"a,b"', False),
    ],
)
async def test_values_that_mean_the_same_select_the_same_response(connect, origin, cache, name, one, other, equal):
    origin.headers = [FRESH, ("vary", name)]
    client = connect(origin, cache=cache)
    for value in (one, other):
        await client.get("/", headers={name: value})
    assert (origin.calls == 1) is equal


async def test_several_headers_select_like_one(connect, origin, cache):
    origin.headers = [FRESH, ("vary", "x-a")]
    client = connect(origin, cache=cache)
    await client.get("/", headers=[("x-a", "1"), ("x-a", "2")])
    await client.get("/", headers={"x-a": "1, 2"})
    assert origin.calls == 1


@pytest.mark.parametrize("stale", [False, True])
async def test_an_application_that_changes_the_headers_of_its_request_does_not_change_the_variant(
    connect, cache, clock, stale
):
    async def app(scope, receive, send):
        user = dict(scope["headers"]).get(b"cookie", b"nobody")
        scope["headers"][:] = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
        headers = [(b"cache-control", b"max-age=60"), (b"vary", b"cookie"), (b"etag", b'"%b"' % user)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": user})

    client = connect(app, cache=cache)
    for _ in range(1 + stale):
        clock.advance(60)
        assert (await client.get("/a", headers={"cookie": "alice"})).text == "alice"
    assert (await client.get("/a")).text == "nobody"
    assert (await client.get("/a", headers={"cookie": "alice"})).text == "alice"


async def test_a_uri_has_a_bounded_number_of_combinations(connect, origin, cache):
    client = connect(origin, cache=cache)
    for i in range(30):
        origin.headers = [FRESH, ("vary", f"x-{i}")]
        await client.get("/", headers={f"x-{j}": str(i) for j in range(30)})
    sets = (await cache.get("http:http://test/"))[1]
    assert len(sets) == 8
    await client.get("/", headers={f"x-{j}": "29" for j in range(30)})
    assert origin.calls == 30


def test_the_names_are_read_whatever_surrounds_them():
    assert varying_on([(b"Vary", b"B, a"), (b"vary", b",b ,")]) == (b"a", b"b")
    assert varying_on([]) == ()
    for value in (b"*", b"a, *", b", ".join(b"h%d" % i for i in range(17)), b"x" * 10_000):
        assert varying_on([(b"vary", value)]) is None


@pytest.mark.parametrize(("one", "other"), [("1,,2", "1,2"), (",1", "1"), (",", ""), ("a,", "a")])
async def test_empty_members_of_an_unknown_field_count(connect, origin, cache, one, other):
    origin.headers = [("cache-control", "max-age=60"), ("vary", "x-ids")]
    client = connect(origin, cache=cache)
    found = [(await client.get("/a", headers={"x-ids": ids})).text for ids in (one, other)]
    assert found == ["answer 1", "answer 2"]
