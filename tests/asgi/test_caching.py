"""The response cache keeps to RFC 9111."""

import asyncio
import secrets

import pytest
from redis.asyncio import Redis

from acgsperf import ComplianceValidator, LRUCache, PostgresTier, RedisTier, TieredCache, weigh_bytes
from acgsperf.tiers.redis_keys import RedisKeys

FRESH = [("cache-control", "max-age=60")]


@pytest.fixture
def client(connect, origin, cache):
    origin.headers = list(FRESH)
    return connect(origin, cache=cache)


async def test_a_fresh_response_is_given_again_with_its_age(client, origin, clock):
    first = await client.get("/a")
    assert "age" not in first.headers
    clock.advance(59.5)
    again = await client.get("/a")
    assert (again.text, again.headers["age"], origin.calls) == (first.text, "59", 1)


async def test_a_response_is_stale_from_the_second_that_its_time_is_over(client, clock):
    first = await client.get("/a")
    clock.advance(60)
    assert (await client.get("/a")).text != first.text


async def test_a_wall_clock_that_is_set_back_does_not_make_a_response_last_longer(connect, origin, cache, clock):
    origin.headers = list(FRESH)
    wall = [1_000_000.0]
    client = connect(origin, cache=cache, clock=lambda: wall[0])
    first = await client.get("/a")
    wall[0] -= 3_600
    clock.advance(59)
    again = await client.get("/a")
    assert (again.text, again.headers["age"]) == (first.text, "0")
    clock.advance(1)
    assert (await client.get("/a")).text != first.text


@pytest.mark.parametrize(
    ("first", "second"),
    [("/a", "/b"), ("/a?x=1", "/a?x=2"), ("/a?x=1", "/a"), ("/%61/b", "/%61%2Fb"), ("/A", "/a")],
)
async def test_different_targets_have_different_responses(client, origin, first, second):
    await client.get(first)
    await client.get(second)
    assert origin.calls == 2


async def test_different_hosts_and_schemes_have_different_responses(client, origin):
    for url in ("http://test/a", "http://other/a", "https://test/a"):
        await client.get(url)
    assert origin.calls == 3
    await client.get("http://TEST/a")
    assert origin.calls == 3


@pytest.mark.parametrize(
    ("cached", "headers"),
    [
        (False, {}),
        (True, {"cache-control": "max-age=1"}),
        (True, {"cache-control": 'MAX-AGE="5"'}),
        (True, {"cache-control": "max-age=0, s-maxage=5"}),
        (False, {"cache-control": "max-age=60, s-maxage=0"}),
        (False, {"cache-control": "max-age=60, no-store"}),
        (False, {"cache-control": "No-Cache, max-age=60"}),
        (False, {"cache-control": 'private="x-secret", max-age=60'}),
        (False, {"cache-control": "max-age=-1"}),
        (False, {"cache-control": "max-age=soon"}),
        (False, {"cache-control": "max-age"}),
        (False, {"cache-control": "max-age=0, max-age=60"}),
        (True, {"cache-control": "max-age=99999999999999999999999999"}),
        (False, {"cache-control": "public"}),
        (False, {"cache-control": "max-age=60", "set-cookie": "a=b"}),
        (False, {"cache-control": "max-age=60", "vary": "*"}),
        (False, {"cache-control": "max-age=60", "vary": "accept, *"}),
        (False, {"cache-control": "max-age=60", "age": "60"}),
        (True, {"cache-control": "max-age=60", "age": "59"}),
        (True, {"date": "Thu, 01 Jan 1970 00:16:39 GMT", "expires": "Thu, 01 Jan 1970 00:16:48 GMT"}),
        (False, {"date": "Thu, 01 Jan 1970 00:16:30 GMT", "expires": "Thu, 01 Jan 1970 00:16:39 GMT"}),
        (True, {"expires": "Thu, 01 Jan 1970 00:16:41 GMT"}),
        (False, {"expires": "Thu, 01 Jan 1970 00:16:40 GMT"}),
        (False, {"expires": "0"}),
    ],
)
async def test_a_response_says_whether_it_is_kept(client, origin, cached, headers):
    origin.headers = list(headers.items())
    await client.get("/a")
    assert (await client.get("/a")).status_code == 200
    assert (origin.calls == 1) is cached


@pytest.mark.parametrize(
    ("cached", "status"),
    [(True, 200), (True, 301), (True, 302), (True, 404), (True, 499), (True, 500), (False, 206), (False, 304)],
)
async def test_a_response_with_a_lifetime_is_kept_whatever_its_final_status(client, origin, cached, status):
    origin.status = status
    await client.get("/a")
    assert (await client.get("/a")).status_code == status
    assert (origin.calls == 1) is cached


@pytest.mark.parametrize(
    ("cached", "status"), [(True, 200), (True, 404), (True, 410), (False, 302), (False, 403), (False, 500)]
)
async def test_the_default_lifetime_is_for_statuses_that_are_cacheable_by_default(
    connect, origin, cache, cached, status
):
    client = connect(origin, cache=cache, ttl=30)
    origin.status = status
    for _ in range(2):
        assert (await client.get("/a")).status_code == status
    assert (origin.calls == 1) is cached


@pytest.mark.parametrize(
    ("hit", "headers"),
    [
        (True, {}),
        (False, {"cache-control": "no-cache"}),
        (False, {"cache-control": "no-store"}),
        (False, {"cache-control": "max-age=0"}),
        (False, {"cache-control": "max-age=9"}),
        (True, {"cache-control": "max-age=10"}),
        (False, {"cache-control": "max-age=x"}),
        (False, {"pragma": "no-cache"}),
        (True, {"pragma": "no-cache", "cache-control": "max-age=10"}),
        (True, {"cache-control": "min-fresh=49"}),
        (False, {"cache-control": "min-fresh=50"}),
        (False, {"if-match": '"a"'}),
        (False, {"if-unmodified-since": "Thu, 01 Jan 1970 00:16:40 GMT"}),
        (False, {"authorization": "Bearer x"}),
        (True, {"cookie": "a=b"}),
    ],
)
async def test_a_request_says_whether_it_takes_what_is_kept(client, origin, clock, hit, headers):
    await client.get("/a")
    clock.advance(10)
    await client.get("/a", headers=headers)
    assert (origin.calls == 1) is hit


async def test_a_request_that_goes_past_the_cache_renews_it(client, origin):
    await client.get("/a")
    second = await client.get("/a", headers={"cache-control": "no-cache"})
    assert (await client.get("/a")).text == second.text
    await client.get("/b", headers={"cache-control": "no-store"})
    await client.get("/b")
    assert origin.calls == 4


async def test_what_needs_credentials_is_kept_when_it_is_public(client, origin):
    for _ in range(2):
        await client.get("/a", headers={"authorization": "Bearer x"})
    assert origin.calls == 2
    origin.headers = [("cache-control", "public, max-age=60")]
    for _ in range(2):
        await client.get("/b", headers={"authorization": "Bearer x"})
    assert origin.calls == 3


async def test_a_default_lifetime_is_for_strangers_alone(connect, origin, cache, clock):
    client = connect(origin, cache=cache, ttl=30)
    await client.get("/a", headers={"cookie": "session=1"})
    anonymous = await client.get("/a")
    assert (await client.get("/a")).text == anonymous.text
    assert (await client.get("/a", headers={"cookie": "session=1"})).text != anonymous.text
    assert origin.calls == 3
    clock.advance(30)
    await client.get("/a")
    assert origin.calls == 4


async def test_what_a_response_varies_on_tells_requests_apart(client, origin):
    origin.headers.append(("vary", "Accept-Language"))
    texts = {}
    for _ in range(2):
        for language in ("de", "en", None):
            headers = {} if language is None else {"accept-language": language}
            texts.setdefault(language, set()).add((await client.get("/a", headers=headers)).text)
    assert origin.calls == 3
    assert all(len(found) == 1 for found in texts.values())


async def test_headers_that_the_owner_names_tell_requests_apart(connect, origin, cache):
    origin.headers = list(FRESH)
    client = connect(origin, cache=cache, vary=["X-Tenant", "X-Plan"])
    for headers in ({"x-tenant": "a"}, {"x-tenant": "b"}, {"x-plan": "a"}, {"x-tenant": "a"}):
        await client.get("/a", headers=headers)
    assert origin.calls == 3


async def test_head_is_answered_from_a_kept_get_and_keeps_nothing_itself(client, origin):
    await client.head("/a")
    first = await client.get("/a")
    head = await client.head("/a")
    assert (head.content, head.headers["age"], origin.calls) == (b"", "0", 2)
    assert first.content


async def test_only_a_response_that_may_be_stored_is_prepared_in_the_tiers(connect, origin, servers):
    origin.headers = list(FRESH)
    namespace = "http-" + secrets.token_hex(4)
    async with TieredCache(LRUCache(10), RedisTier(servers.redis_url, deadline=5), namespace=namespace) as cache:
        client = connect(origin, cache=cache)
        await client.head("/a")
        own = RedisKeys(namespace).own
        async with Redis.from_url(servers.redis_url, protocol=2) as redis:
            assert set(await redis.keys(f"{namespace}:*")) <= own
            await client.get("/a")
            assert len(set(await redis.keys(f"{namespace}:*")) - own) == 1
        await cache.clear()


async def test_an_unchanged_response_is_not_sent_again(client, origin):
    origin.headers += [("etag", '"v1"'), ("content-type", "text/plain")]
    await client.get("/a")
    for tags in ('"v1"', 'W/"v1"', '"v0", "v1"', "*"):
        unchanged = await client.get("/a", headers={"if-none-match": tags})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == '"v1"'
        assert "content-type" not in unchanged.headers
    assert (await client.get("/a", headers={"if-none-match": '"v2"'})).status_code == 200
    assert origin.calls == 1


async def test_only_a_success_can_be_unchanged(client, origin):
    origin.status = 404
    origin.headers.append(("etag", '"v1"'))
    await client.get("/a")
    assert (await client.get("/a", headers={"if-none-match": '"v1"'})).status_code == 404
    assert origin.calls == 1


async def test_headers_may_be_any_iterable(connect, cache):
    async def lazy(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": iter([(b"cache-control", b"max-age=60")])})
        await send({"type": "http.response.body", "body": b""})

    client = connect(lazy, cache=cache)
    first, again = await client.get("/a"), await client.get("/a")
    assert first.headers["cache-control"] == again.headers["cache-control"] == "max-age=60"
    assert client.middleware.counts().hits == 1


async def test_an_unsafe_request_that_succeeds_forgets_all_variants(client, origin):
    origin.headers.append(("vary", "accept"))
    for accept in ("a", "b"):
        await client.get("/a", headers={"accept": accept})
    await client.get("/b")
    origin.status = 500
    await client.post("/a")
    origin.status = 200
    await client.get("/a", headers={"accept": "a"})
    assert origin.calls == 4
    await client.put("/a")
    for accept in ("a", "b"):
        await client.get("/a", headers={"accept": accept})
    await client.get("/b")
    assert origin.calls == 7


async def test_a_body_over_the_limit_passes_and_is_not_kept(connect, origin, cache):
    origin.headers = list(FRESH)
    client = connect(origin, cache=cache, max_body_bytes=10)
    for body, calls in (([b"x" * 5, b"y" * 5], 1), ([b"x" * 5, b"y" * 6], 3)):
        origin.body = body
        for _ in range(2):
            assert (await client.get(f"/{calls}")).content == b"".join(body)
        assert origin.calls == calls


@pytest.mark.parametrize("size", [0, 1_000, 20_000])
async def test_the_weight_of_a_response_includes_its_body_and_headers(connect, origin, size):
    origin.headers, origin.body = [*FRESH, ("x-large", "x" * 3_000)], [b"x" * size]
    l1 = LRUCache(maxweight=1_000_000, weigher=weigh_bytes)
    async with TieredCache(l1, namespace="http") as cache:
        client = connect(origin, cache=cache)
        for i in range(100):
            await client.get(f"/{i}")
        stats = cache.stats().l1
        per_entry = stats.weight / stats.size
    assert size + 3_000 < per_entry < size + 6_000
    assert stats.weight <= 1_000_000


async def test_an_answer_from_before_a_change_is_not_kept(connect, cache):
    asked, go_on, price = asyncio.Event(), asyncio.Event(), "old"

    async def app(scope, receive, send):
        nonlocal price
        answer = price.encode()
        if scope["method"] == "POST":
            price = "new"
        elif not asked.is_set():
            asked.set()
            await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    client = connect(app, cache=cache, ttl=60)
    slow = asyncio.create_task(client.get("/a"))
    await asked.wait()
    await client.post("/a")
    go_on.set()
    assert (await slow).text == "old"
    assert [(await client.get("/a")).text for _ in range(2)] == ["new", "new"]
    assert client.middleware.counts().hits == 1


async def test_a_change_that_is_committed_after_the_response_invalidates_what_was_read_in_between(connect, cache):
    """The dependencies of FastAPI commit so late."""

    async def app(scope, receive, send):
        nonlocal price
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": price.encode()})
        if scope["method"] == "POST":
            answered.set()
            await may_commit.wait()
            price = "new"

    price, answered, may_commit = "old", asyncio.Event(), asyncio.Event()
    client = connect(app, cache=cache, ttl=60)
    posting = asyncio.create_task(client.post("/a"))
    await answered.wait()
    assert (await client.get("/a")).text == "old"
    may_commit.set()
    await posting
    assert (await client.get("/a")).text == "new"


async def test_a_body_of_another_length_than_was_said_is_not_kept(client, origin):
    origin.headers.append(("content-length", "100"))
    for _ in range(2):
        await client.get("/a")
    assert origin.calls == 2


async def test_an_application_that_fails_midway_keeps_nothing(client, origin):
    origin.body = [b"half", b"whole"]
    origin.failure = RuntimeError("midway")
    with pytest.raises(RuntimeError, match="midway"):
        await client.get("/a")
    origin.failure = None
    assert (await client.get("/a")).text == "halfwhole"
    assert (await client.get("/a")).text == "halfwhole"
    assert origin.calls == 2


@pytest.mark.parametrize("last", [b"", b"whole"])
async def test_an_application_that_fails_after_its_last_part_keeps_nothing(connect, cache, last):
    calls = 0

    async def failing(scope, receive, send):
        nonlocal calls
        calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await send({"type": "http.response.body", "body": last, "more_body": False})
        raise RuntimeError("too late")

    client = connect(failing, cache=cache)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="too late"):
            await client.get("/a")
    assert (calls, client.middleware.counts().stored) == (2, 0)


@pytest.mark.parametrize(
    "messages",
    [
        [(b"q", False)],
        [(b"", True), (b"q", False)],
        [(b"q", True), (b"", False)],
        [(b"", True), (b"", True), (b"q", True), (b"q", False)],
    ],
)
@pytest.mark.parametrize("headers", [[], [(b"content-length", b"0")], [(b"transfer-encoding", b"chunked")]])
async def test_a_request_with_a_body_bypasses_the_cache_whatever_its_headers_say(connect, cache, messages, headers):
    bodies = []

    async def echo(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": body})

    middleware = connect(echo, cache=cache).middleware

    async def ask(messages):
        pending = [{"type": "http.request", "body": body, "more_body": more} for body, more in messages]

        async def receive():
            return pending.pop(0)

        await middleware(scope_of() | {"headers": [(b"host", b"test"), *headers]}, receive, discard)

    whole = b"".join(body for body, _ in messages)
    await ask([(b"", True), (b"", False)])
    for _ in range(2):
        await ask(messages)
    assert bodies == [b"", whole, whole]
    await ask([(b"", False)])
    assert len(bodies) == 3


@pytest.mark.parametrize(("status", "length"), [(200, "9"), (404, "9"), (204, None)])
async def test_a_stored_response_has_a_length(client, origin, status, length):
    origin.status, origin.body = status, [b""] if status == 204 else [b"one", b"two", b"six"]
    first, again = await client.get("/a"), await client.get("/a")
    assert "content-length" not in first.headers
    assert (again.headers.get("content-length"), origin.calls) == (length, 1)


async def test_connection_headers_are_not_kept(client, origin):
    origin.headers += [("connection", "X-Hop"), ("x-hop", "1"), ("keep-alive", "5"), ("x-end", "1")]
    await client.get("/a")
    again = await client.get("/a")
    assert again.headers.keys().isdisjoint({"connection", "x-hop", "keep-alive"})
    assert again.headers["x-end"] == "1"


def scope_of(path="/a"):
    return {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"test")],
    }


def then(receive):
    """A `receive` that returns a request without a body, and then what another one returns."""
    requested = False

    async def received():
        nonlocal requested
        if requested:
            return await receive()
        requested = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return received


async def never():
    await asyncio.Event().wait()


async def discard(message):
    pass


async def test_a_change_of_an_answer_does_not_change_the_stored_response(connect, origin, cache):
    origin.headers = list(FRESH)
    middleware = connect(origin, cache=cache).middleware
    seen = []

    async def adding(message):
        if message["type"] == "http.response.start":
            message["headers"].append((b"x-outside", b"1"))
            seen.append(message["headers"])
            message["status"] = 500

    for _ in range(4):
        await middleware(scope_of(), then(never), adding)
    assert [[name for name, _ in headers].count(b"x-outside") for headers in seen] == [1] * 4
    assert origin.calls == 1


async def test_middlewares_that_share_a_cache_add_their_own_headers(connect, origin, cache):
    origin.headers = list(FRESH)
    plain, gated = connect(origin, cache=cache), connect(origin, cache=cache, validator=ComplianceValidator())
    for _ in range(3):
        assert "x-constitutional-hash" not in (await plain.get("/a")).headers
        assert len((await gated.get("/a")).headers.get_list("x-constitutional-hash")) == 1
    assert origin.calls == 1


async def test_the_age_of_frequent_answers_grows_until_they_are_stale(client, origin, clock):
    await client.get("/a")
    ages = []
    for _ in range(240):
        ages.append((await client.get("/a")).headers.get("age"))
        clock.advance(0.25)
    assert ages == [str(quarter // 4) for quarter in range(240)]
    assert "age" not in (await client.get("/a")).headers
    assert origin.calls == 2


@pytest.mark.parametrize("absent", ["scheme", "raw_path", "query_string"])
async def test_optional_parts_of_a_scope_may_be_absent(connect, origin, cache, absent):
    origin.headers = list(FRESH)
    middleware = connect(origin, cache=cache).middleware
    for path in ("/a", "/b"):
        for value in ({}, {absent: None} if absent == "raw_path" else {}):
            for _ in range(3):
                scope = {key: part for key, part in scope_of(path).items() if key != absent} | value
                await middleware(scope, then(never), discard)
    assert origin.calls == 2


async def test_a_client_that_has_gone_keeps_nothing(connect, cache):
    async def listening(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        assert [(await receive())["type"] for _ in range(2)] == ["http.request", "http.disconnect"]
        await send({"type": "http.response.body", "body": b"cut"})

    async def gone():
        return {"type": "http.disconnect"}

    middleware = connect(listening, cache=cache).middleware
    await middleware(scope_of(), then(gone), discard)
    assert middleware.counts().stored == 0


@pytest.mark.parametrize("validated", [False, True])
async def test_a_cache_that_closes_before_a_response_is_stored_does_not_fail_its_request(
    connect, origin, clock, validated
):
    async with TieredCache(LRUCache(100, clock=clock), namespace="http", clock=clock) as cache:

        async def app(scope, receive, send):
            if origin.calls == validated:
                await cache.close()
            await origin(scope, receive, send)

        origin.headers, origin.validates = [*FRESH, ("etag", '"v1"')], True
        client = connect(app, cache=cache)
        for _ in range(1 + validated):
            assert (await client.get("/a")).text == "answer 1"
            clock.advance(60)
    assert client.middleware.counts().stored == validated


async def test_a_cache_may_close_at_any_turn_while_a_response_is_stored(connect, origin, servers):
    async def close_after(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        await cache.close()

    async def app(scope, receive, send):
        await origin(scope, receive, send)
        closing.append(asyncio.create_task(close_after(next(turns))))

    origin.headers, closing, turns = [*FRESH, ("vary", "accept")], [], iter(range(0, 40, 2))
    for _ in range(20):
        tiers = RedisTier(servers.redis_url, deadline=5), PostgresTier(servers.database_url, deadline=5)
        cache = TieredCache(LRUCache(9), *tiers, namespace="closing-" + secrets.token_hex(4))
        await cache.open()
        assert (await connect(app, cache=cache).get("/a")).status_code == 200
        await closing.pop()


async def test_a_send_that_fails_keeps_nothing(connect, origin, cache):
    async def broken(message):
        if message["type"] == "http.response.body":
            raise OSError("gone")

    origin.headers = list(FRESH)
    middleware = connect(origin, cache=cache).middleware
    with pytest.raises(OSError, match="gone"):
        await middleware(scope_of(), then(never), broken)
    assert middleware.counts().stored == 0


async def test_what_is_streamed_goes_out_piece_by_piece(connect, cache):
    seen = asyncio.Queue()
    go_on = asyncio.Event()

    async def streaming(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    middleware = connect(streaming, cache=cache).middleware
    task = asyncio.create_task(middleware(scope_of(), then(never), seen.put))
    assert (await seen.get())["type"] == "http.response.start"
    assert (await seen.get())["body"] == b"one"
    go_on.set()
    await task
    assert (await seen.get())["body"] == b"two"
    assert middleware.counts().stored == 1


async def test_a_body_that_does_not_pass_by_is_not_kept(connect, cache):
    async def sends_a_file(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.pathsend", "path": "/a"})
        await send({"type": "http.response.body", "body": b""})

    middleware = connect(sends_a_file, cache=cache).middleware
    await middleware(scope_of(), then(never), discard)
    assert middleware.counts().stored == 0


async def test_a_target_of_any_length_is_answered_and_a_long_one_not_kept(client, origin):
    for _ in range(2):
        assert (await client.get("/" + "a" * 3_000)).status_code == 200
    assert origin.calls == 2
    assert client.middleware.counts().bypassed == 2


@pytest.mark.parametrize("value", [7, "text", [1, 2, 3], {"a": 1}, [2] * 9, [1] * 9])
async def test_what_another_has_stored_under_a_key_is_a_miss(client, origin, cache, value):
    await cache.set("http:http://test/a", value)
    assert (await client.get("/a")).text == "answer 1"
    assert (await client.get("/a")).text == "answer 1"
    assert origin.calls == 1


async def test_the_counts_tell_hits_misses_and_what_passed_by(client):
    await client.get("/a")
    await client.get("/a")
    await client.post("/a")
    counts = client.middleware.counts()
    assert (counts.hits, counts.misses, counts.bypassed, counts.stored) == (1, 1, 1, 1)
