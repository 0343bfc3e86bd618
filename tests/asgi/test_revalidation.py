"""Stale responses: validated by the application, served meanwhile, or served because it failed."""

import asyncio

import pytest

ETAG = ("etag", '"v1"')
MODIFIED = ("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")


@pytest.fixture
def client(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=10"), ETAG, ("x-a", "old"), ("content-length", "8")]
    origin.validates = True
    return connect(origin, cache=cache)


@pytest.mark.parametrize(("validator", "asked"), [(ETAG, "if-none-match"), (MODIFIED, "if-modified-since")])
async def test_a_stale_response_is_validated_by_the_application(client, origin, clock, validator, asked):
    origin.headers = [("cache-control", "max-age=10"), validator]
    first = await client.get("/a")
    clock.advance(10)
    again = await client.get("/a")
    assert (again.status_code, again.text, again.headers["age"]) == (200, first.text, "0")
    assert origin.requests[1][asked] == validator[1]
    clock.advance(9)
    assert (await client.get("/a")).headers["age"] == "9"
    assert origin.calls == 2


async def test_a_304_updates_the_stored_headers_except_those_of_the_body(client, origin, clock):
    await client.get("/a")
    clock.advance(10)
    origin.headers = [
        *[("cache-control", "max-age=20"), ETAG, ("x-a", "new"), ("set-cookie2", "a"), ("content-length", "0")],
        *[("content-encoding", "br"), ("connection", "x-hop"), ("x-hop", "1")],
    ]
    for _ in range(2):
        again = await client.get("/a")
        assert (again.text, again.headers["x-a"], again.headers["content-length"]) == ("answer 1", "new", "8")
        assert again.headers.keys().isdisjoint({"content-encoding"})
    assert again.headers.keys().isdisjoint({"connection", "x-hop"})
    clock.advance(19)
    await client.get("/a")
    assert origin.calls == 2


async def test_a_304_without_a_date_does_not_keep_the_old_one(client, origin, clock):
    origin.headers.append(("date", "Thu, 01 Jan 1970 00:16:40 GMT"))
    await client.get("/a")
    clock.advance(30)
    origin.headers.pop()
    await client.get("/a")
    await client.get("/a")
    assert origin.calls == 2


async def test_another_answer_than_304_replaces_what_was_stored(client, origin, clock):
    await client.get("/a")
    clock.advance(10)
    origin.headers[1] = ("etag", '"v2"')
    assert (await client.get("/a")).text == "answer 2"
    assert (await client.get("/a")).text == "answer 2"
    assert origin.calls == 2


async def test_a_304_that_forbids_to_store_is_served_once(client, origin, clock):
    await client.get("/a")
    clock.advance(10)
    origin.headers[0] = ("cache-control", "no-store")
    assert (await client.get("/a")).text == "answer 1"
    assert (await client.get("/a")).text == "answer 3"


@pytest.mark.parametrize("cache_control", ["no-cache", "no-cache, max-age=60", 'no-cache="x-a"', "max-age=0"])
async def test_a_response_with_no_cache_is_kept_and_validated_at_every_use(client, origin, cache_control):
    origin.headers[0] = ("cache-control", cache_control)
    for _ in range(3):
        assert (await client.get("/a")).text == "answer 1"
    assert origin.calls == 3
    assert [request.get("if-none-match") for request in origin.requests] == [None, '"v1"', '"v1"']


@pytest.mark.parametrize("cache_control", ["no-cache", "max-age=0"])
async def test_a_request_can_have_it_validated(client, origin, cache_control):
    await client.get("/a")
    assert (await client.get("/a", headers={"cache-control": cache_control})).text == "answer 1"
    assert origin.requests[1]["if-none-match"] == '"v1"'


async def test_a_client_that_asks_conditionally_gets_a_304_of_its_own(client, origin, clock):
    await client.get("/a")
    clock.advance(10)
    same = await client.get("/a", headers={"if-none-match": '"v0", "v1"'})
    assert (same.status_code, same.content, origin.requests[1]["if-none-match"]) == (304, b"", '"v1"')
    clock.advance(10)
    assert (await client.get("/a", headers={"if-none-match": '"v0"'})).text == "answer 1"
    assert origin.calls == 3


async def test_a_conditional_request_that_misses_is_passed_on_without_its_condition(client, origin):
    headers = {"if-none-match": '"v1"', "if-modified-since": "Thu, 01 Jan 1970 00:16:40 GMT"}
    first = await client.get("/a", headers=headers)
    assert (first.status_code, first.content, first.headers["etag"]) == (304, b"", '"v1"')
    assert origin.requests[0].keys().isdisjoint(headers)
    assert (await client.get("/a")).text == "answer 1"
    assert (await client.get("/b", headers={"if-none-match": '"v2"'})).text == "answer 2"
    assert origin.calls == 2


async def test_a_stale_response_is_kept_for_an_hour_or_as_the_owner_says(connect, origin, cache, clock, client):
    await client.get("/a")
    clock.advance(3_609)
    await client.get("/a")
    assert "if-none-match" in origin.requests[-1]
    client = connect(origin, cache=cache, stale_ttl=0)
    await client.get("/b")
    clock.advance(10)
    await client.get("/b")
    assert "if-none-match" not in origin.requests[-1]


async def test_a_clock_that_is_set_back_does_not_make_a_kept_response_fresh(connect, origin, cache, clock):
    wall = [1_000_000.0]
    origin.headers = [("cache-control", "max-age=60"), ETAG]
    client = connect(origin, cache=cache, clock=lambda: wall[0])
    await client.get("/a")
    wall[0] -= 3_600
    await client.get("/a")
    assert origin.calls == 2


async def settled(client):
    """Wait for the revalidations in the background."""
    await client.middleware._serving.end_revalidations()


async def test_a_stale_response_is_served_while_it_is_validated(client, origin, clock):
    origin.headers[0] = ("cache-control", "max-age=10, stale-while-revalidate=5")
    await client.get("/a")
    clock.advance(14)
    go_on = asyncio.Event()
    origin.wait = go_on.wait
    for _ in range(3):
        answer = await client.get("/a")
        assert (answer.text, answer.headers["age"]) == ("answer 1", "14")
    go_on.set()
    await settled(client)
    assert (await client.get("/a")).headers["age"] == "0"
    assert origin.calls == 2


@pytest.mark.parametrize("cache_control", ["max-age=0", "max-age=10", "s-maxage=0"])
async def test_one_revalidation_of_a_response_runs_at_a_time(client, origin, clock, cache_control):
    origin.headers[0] = ("cache-control", f"{cache_control}, stale-while-revalidate=60")
    await client.get("/a")
    clock.advance(10)
    for calls in (2, 3):
        go_on = asyncio.Event()
        origin.wait = go_on.wait
        for _ in range(5):
            assert (await client.get("/a")).text == "answer 1"
            await asyncio.sleep(0)
        assert origin.calls == calls
        go_on.set()
        await settled(client)
        clock.advance(10)


async def test_a_revalidation_that_forbids_to_store_runs_once_and_removes_the_stale_response(client, origin, clock):
    origin.headers[0] = ("cache-control", "max-age=10, stale-while-revalidate=60")
    await client.get("/a")
    clock.advance(10)
    origin.validates, origin.headers[0] = False, ("cache-control", "no-store")
    go_on = asyncio.Event()
    origin.wait = go_on.wait
    for _ in range(5):
        assert (await client.get("/a")).text == "answer 1"
        await asyncio.sleep(0)
    assert origin.calls == 2
    go_on.set()
    await settled(client)
    assert (await client.get("/a")).text == "answer 3"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (410, []),
        (404, [("cache-control", "no-store")]),
        (301, [("location", "/b"), ("cache-control", "no-store")]),
        (200, [("cache-control", "private")]),
        (200, [("cache-control", "max-age=60"), ("set-cookie", "a=1")]),
    ],
)
@pytest.mark.parametrize("validator", [[], [("etag", '"v1"')]])
async def test_an_answer_that_is_not_stored_replaces_the_stale_response(
    connect, origin, cache, clock, status, headers, validator
):
    client = connect(origin, cache=cache, stale_while_revalidate=600, stale_if_error=600)
    origin.headers = [("cache-control", "max-age=10"), *validator]
    await client.get("/a")
    clock.advance(10)
    origin.status, origin.headers = status, headers
    assert (await client.get("/a")).text == "answer 1"
    await settled(client)
    answer = await client.get("/a")
    assert (answer.status_code, answer.text) == (status, "answer 3")
    origin.status = 500
    assert (await client.get("/a")).status_code == 500


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_answer_that_does_not_say_what_the_uri_is_replaces_nothing(connect, origin, cache, clock, status):
    client = connect(origin, cache=cache, stale_while_revalidate=600)
    origin.headers = [("cache-control", "max-age=10"), ("etag", '"v1"')]
    await client.get("/a")
    clock.advance(10)
    origin.status, origin.headers = status, []
    for _ in range(2):
        assert (await client.get("/a")).text == "answer 1"
        await settled(client)


@pytest.mark.parametrize(
    ("cache_control", "asked", "status"),
    [
        ("no-cache, max-age=60", "", 500),
        ("no-cache", "", 500),
        ("max-age=60", "no-cache", 500),
        ("max-age=60", "max-age=0", 500),
        ("max-age=60", "max-age=2", 500),
        ("max-age=60, must-revalidate", "no-cache", 500),
        ("max-age=60, stale-if-error=60", "no-cache", 200),
    ],
)
async def test_a_response_that_needs_validation_is_not_used_after_an_error(
    client, origin, clock, cache_control, asked, status
):
    origin.headers[0] = ("cache-control", cache_control)
    await client.get("/a")
    clock.advance(5)
    origin.status, origin.validates = 500, False
    answer = await client.get("/a", headers={"cache-control": asked} if asked else {})
    assert answer.status_code == status


async def test_a_304_for_another_entity_tag_updates_nothing(client, origin, clock):
    await client.get("/a")
    clock.advance(10)
    origin.status, origin.headers, origin.validates = 304, [("etag", '"v2"'), ("cache-control", "max-age=60")], False
    answer = await client.get("/a")
    assert (answer.status_code, answer.text, answer.headers["etag"]) == (200, "answer 1", '"v1"')
    origin.status, origin.headers = 200, [("etag", '"v2"'), ("cache-control", "max-age=60")]
    answer = await client.get("/a")
    assert (answer.text, answer.headers["etag"]) == ("answer 3", '"v2"')


async def test_an_answer_without_vary_replaces_the_stale_variant(client, origin, clock):
    origin.headers.append(("vary", "accept"))
    await client.get("/a", headers={"accept": "a"})
    clock.advance(10)
    origin.headers, origin.validates = [("cache-control", "max-age=60")], False
    for _ in range(2):
        assert (await client.get("/a", headers={"accept": "a"})).text == "answer 2"


async def test_a_304_that_adds_vary_selects_by_it(client, origin, clock):
    await client.get("/a", headers={"accept": "a"})
    clock.advance(10)
    origin.headers.append(("vary", "accept"))
    assert (await client.get("/a", headers={"accept": "a"})).text == "answer 1"
    origin.validates = False
    assert (await client.get("/a", headers={"accept": "b"})).text == "answer 3"
    assert (await client.get("/a", headers={"accept": "a"})).text == "answer 1"


async def test_a_304_that_withdraws_public_removes_the_response_of_others(client, origin):
    origin.headers[0] = ("cache-control", "public, max-age=60")
    await client.get("/a")
    origin.headers[0] = ("cache-control", "max-age=60")
    one = {"authorization": "one", "cache-control": "no-cache"}
    assert (await client.get("/a", headers=one)).text == "answer 1"
    origin.validates = False
    assert (await client.get("/a", headers={"authorization": "two"})).text == "answer 3"


@pytest.mark.parametrize("how", ["path", "tag"])
async def test_a_response_that_was_purged_during_its_validation_is_not_used_after_an_error(
    connect, origin, cache, clock, how
):
    client = connect(origin, cache=cache, stale_if_error=60)
    origin.headers = [("cache-control", "max-age=10"), ("etag", '"v1"'), ("cache-tag", "a")]
    await client.get("/a")
    clock.advance(10)
    go_on = asyncio.Event()
    origin.wait, origin.status = go_on.wait, 503
    origin.called.clear()
    asking = asyncio.create_task(client.get("/a"))
    await origin.called.wait()
    await client.middleware.purge(**{how: "/a" if how == "path" else "a"})
    go_on.set()
    assert (await asking).status_code == 503


async def test_a_validated_response_does_not_wait_for_a_background_task(connect, origin, cache, clock):
    async def app(scope, receive, send):
        await origin(scope, receive, send)
        await task_may_end.wait()

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.body":
            bodies.append(message["body"])
            sent.set()

    task_may_end, sent, bodies = asyncio.Event(), asyncio.Event(), []
    task_may_end.set()
    origin.headers, origin.validates = [("cache-control", "max-age=10"), ETAG], True
    client = connect(app, cache=cache)
    await client.get("/a")
    clock.advance(10)
    task_may_end.clear()
    scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/a", "raw_path": b"/a", "query_string": b""}
    task = asyncio.create_task(client.middleware({**scope, "headers": [(b"host", b"test")]}, receive, send))
    async with asyncio.timeout(10):
        await sent.wait()
    assert (bodies, task.done()) == ([b"answer 1"], False)
    task_may_end.set()
    await task


async def test_a_revalidation_stores_a_new_response(client, origin, clock):
    origin.headers[0] = ("cache-control", "max-age=10, stale-while-revalidate=5")
    await client.get("/a")
    clock.advance(10)
    origin.headers[1] = ("etag", '"v2"')
    stale = await client.get("/a", headers={"range": "bytes=0-2", "if-none-match": '"v0"'})
    assert (stale.status_code, stale.text) == (206, "ans")
    await settled(client)
    assert "range" not in origin.requests[1]
    assert (await client.get("/a")).text == "answer 2"
    assert origin.calls == 2


async def test_a_revalidation_that_fails_is_logged_and_tried_again(client, origin, clock, caplog):
    origin.headers[0] = ("cache-control", "max-age=10, stale-while-revalidate=5")
    origin.validates = False
    await client.get("/a")
    clock.advance(10)
    origin.failure, origin.body = RuntimeError("on purpose"), [b"half", b"whole"]
    for attempt in (2, 3):
        assert (await client.get("/a")).text == "answer 1"
        await settled(client)
        assert origin.calls == attempt
    assert "the revalidation of http:http://test/a failed" in caplog.text


@pytest.mark.parametrize(
    "cache_control",
    [
        "max-age=10",
        "max-age=10, stale-while-revalidate=4",
        "max-age=10, stale-while-revalidate=60, must-revalidate",
        "max-age=10, stale-while-revalidate=60, proxy-revalidate",
        "max-age=10, stale-while-revalidate=60, no-cache",
        "max-age=10, stale-while-revalidate=x",
    ],
)
async def test_a_stale_response_is_not_served_if_it_does_not_allow_it(client, origin, clock, cache_control):
    origin.headers[0] = ("cache-control", cache_control)
    await client.get("/a")
    clock.advance(14)
    assert (await client.get("/a")).headers["age"] == "0"
    assert origin.calls == 2


@pytest.mark.parametrize(
    ("served", "cache_control"),
    [
        (True, "max-age=10"),
        (True, "s-maxage=10, stale-while-revalidate=60, stale-if-error=60"),
        (False, "s-maxage=10"),
        (False, "max-age=10, must-revalidate"),
        (False, "max-age=10, stale-while-revalidate=0, stale-if-error=0"),
    ],
)
async def test_the_owner_can_allow_it_for_responses_that_do_not_say_it(
    connect, origin, cache, clock, served, cache_control
):
    origin.headers = [("cache-control", cache_control)]
    client = connect(origin, cache=cache, stale_while_revalidate=60, stale_if_error=60)
    await client.get("/a")
    clock.advance(30)
    assert ((await client.get("/a")).text == "answer 1") is served
    await settled(client)


async def raises():
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("failure", [500, 502, 503, 504, "raises"])
async def test_a_stale_response_is_served_if_the_application_fails(client, origin, clock, failure, caplog):
    origin.headers[0] = ("cache-control", "max-age=10, stale-if-error=20")
    await client.get("/a")
    clock.advance(29)
    origin.validates = False
    origin.status, origin.wait = (200, raises) if failure == "raises" else (failure, None)
    answer = await client.get("/a")
    assert (answer.status_code, answer.text, answer.headers["age"]) == (200, "answer 1", "29")
    assert "serving the stale response" in caplog.text
    clock.advance(1)
    if failure == "raises":
        with pytest.raises(RuntimeError, match="on purpose"):
            await client.get("/a")
    else:
        assert (await client.get("/a")).status_code == failure


@pytest.mark.parametrize("status", [400, 404, 501])
async def test_another_status_is_an_answer(client, origin, clock, status):
    origin.headers[0] = ("cache-control", "max-age=10, stale-if-error=20")
    await client.get("/a")
    clock.advance(10)
    origin.validates, origin.status = False, status
    assert (await client.get("/a")).status_code == status


async def test_a_failure_midway_cannot_be_hidden(client, origin, clock):
    origin.headers[0] = ("cache-control", "max-age=10, stale-if-error=20")
    origin.validates = False
    await client.get("/a")
    clock.advance(10)
    origin.headers.pop()
    origin.failure, origin.body = RuntimeError("midway"), [b"half", b"whole"]
    with pytest.raises(RuntimeError, match="midway"):
        await client.get("/a")


async def test_a_request_can_accept_a_stale_response(client, origin, clock):
    await client.get("/a")
    clock.advance(14)
    assert (await client.get("/a", headers={"cache-control": "max-stale=5"})).headers["age"] == "14"
    assert (await client.get("/a", headers={"cache-control": "max-stale"})).headers["age"] == "14"
    assert (await client.get("/a", headers={"cache-control": "max-stale=4"})).headers["age"] == "0"
    assert origin.calls == 2


async def test_only_if_cached_does_not_reach_the_application(client, origin):
    assert (await client.get("/a", headers={"cache-control": "only-if-cached"})).status_code == 504
    await client.get("/a")
    assert (await client.get("/a", headers={"cache-control": "only-if-cached"})).status_code == 200
    assert origin.calls == 1


async def test_the_shutdown_waits_for_revalidations(origin, connect, cache, clock):
    done = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await origin(scope, receive, send)
        else:
            await receive()
            done.append((origin.calls, client.middleware.counts().stored))

    origin.headers = [("cache-control", "max-age=1, stale-while-revalidate=9")]
    client = connect(app, cache=cache)
    await client.get("/a")
    clock.advance(1)

    go_on = asyncio.Event()
    origin.wait = go_on.wait
    await client.get("/a")

    async def shutdown():
        go_on.set()
        return {"type": "lifespan.shutdown"}

    await client.middleware({"type": "lifespan"}, shutdown, None)
    assert done == [(2, 2)]
    assert (await client.get("/a")).headers["age"] == "0"
