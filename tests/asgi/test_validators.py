"""Entity tags, dates of modification and ranges."""

import pytest

from acgsperf.asgi.ranges import UNSATISFIABLE, part_of
from acgsperf.asgi.validators import is_not_modified, is_same_representation, is_validated

FRESH = ("cache-control", "max-age=60")


@pytest.mark.parametrize(
    ("same", "etag", "asked"),
    [
        (True, '"a,b"', '"a,b"'),
        (True, '"a,b"', 'W/"x", W/"a,b" , "y"'),
        (False, '"a,b"', '"a", "b"'),
        (True, 'W/"a"', '"a"'),
        (True, '"a"', 'W/"a"'),
        (True, '"a"', "*"),
        (False, '"a"', '"A"'),
        (False, '"a"', '"ab"'),
        (True, '""', '"x", ""'),
        (True, "bare", "bare"),
        (True, "bare", '"bare"'),
        (True, "bare", "other, bare"),
        (False, '"a"', ""),
        (False, None, '"a"'),
        (True, None, "*"),
    ],
)
def test_entity_tags_are_compared_weakly(same, etag, asked):
    assert is_not_modified(asked.encode(), None, etag and etag.encode(), None, 0) is same


@pytest.mark.parametrize(
    ("same", "asked"),
    [
        (True, "Thu, 01 Jan 1970 00:16:40 GMT"),
        (True, "Thursday, 01-Jan-70 00:16:40 GMT"),
        (True, "Thu, 01 Jan 1970 00:16:41 GMT"),
        (False, "Thu, 01 Jan 1970 00:16:39 GMT"),
        (False, "1000"),
        (False, "Thu, 01 Jan 1970 00:16:40 UTC"),
    ],
)
def test_dates_of_modification_are_compared_as_dates(same, asked):
    assert is_not_modified(None, asked.encode(), None, b"Thu, 01 Jan 1970 00:16:40 GMT", 0) is same
    # Without one, the time when the response was received counts.
    assert is_not_modified(None, asked.encode(), None, None, 1_000) is same


def test_entity_tags_come_before_dates():
    date = b"Thu, 01 Jan 1970 00:16:40 GMT"
    assert not is_not_modified(b'"b"', date, b'"a"', date, 0)
    assert is_not_modified(b'"a"', b"Thu, 01 Jan 1970 00:00:00 GMT", b'"a"', date, 0)


async def test_a_stored_response_answers_if_modified_since(connect, origin, cache):
    date = "Thu, 01 Jan 1970 00:00:00 GMT"
    origin.headers = [FRESH, ("last-modified", date)]
    client = connect(origin, cache=cache)
    await client.get("/a")
    same = await client.get("/a", headers={"if-modified-since": date})
    assert (same.status_code, same.content, origin.calls) == (304, b"", 1)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=2-3", slice(2, 4)),
        ("bytes=8-", slice(8, 10)),
        ("bytes=8-99999", slice(8, 10)),
        ("bytes=-3", slice(7, 10)),
        ("bytes=-99", slice(0, 10)),
        ("BYTES= 1-2 ", slice(1, 3)),
        ("bytes=10-", UNSATISFIABLE),
        ("bytes=-0", UNSATISFIABLE),
        ("bytes=3-2", None),
        ("bytes=0-0,2-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("bytes=" + "9" * 5_000 + "-", None),
        ("", None),
    ],
)
def test_a_range_is_a_part_of_the_body(wanted, part):
    assert part_of(wanted.encode(), 10) == part


async def test_a_range_is_served_from_a_stored_whole(connect, origin, cache):
    origin.headers = [FRESH, ("etag", '"v1"'), ("content-length", "10"), ("x-a", "1")]
    origin.body = [b"0123456789"]
    client = connect(origin, cache=cache)
    await client.get("/a")
    part = await client.get("/a", headers={"range": "bytes=2-4"})
    assert (part.status_code, part.text, part.headers["x-a"]) == (206, "234", "1")
    assert (part.headers["content-range"], part.headers.get_list("content-length")) == ("bytes 2-4/10", ["3"])
    beyond = await client.get("/a", headers={"range": "bytes=10-"})
    assert (beyond.status_code, beyond.headers["content-range"], beyond.content) == (416, "bytes */10", b"")
    for headers in ({"range": "bytes=0-1,3-4"}, {"range": "bytes=0-1", "if-range": '"v0"'}):
        assert (await client.get("/a", headers=headers)).text == "0123456789"
    assert (await client.get("/a", headers={"range": "bytes=0-1", "if-range": '"v1"'})).text == "01"
    assert (await client.get("/a", headers={"range": "bytes=0-1", "if-none-match": '"v1"'})).status_code == 304
    assert (await client.head("/a", headers={"range": "bytes=0-1"})).status_code == 200
    assert origin.calls == 1


@pytest.mark.parametrize(
    "content_range",
    [None, "bytes 0-1/*", "bytes */10", "bytes 1-0/10", "bytes 0-10/10", "items 0-1/10", "bytes 0-1/" + "9" * 5_000],
)
async def test_a_range_that_cannot_be_stored_is_passed_on(connect, origin, cache, content_range):
    origin.status, origin.headers = 206, [FRESH, *([("content-range", content_range)] if content_range else [])]
    client = connect(origin, cache=cache)
    for _ in range(2):
        assert (await client.get("/a", headers={"range": "bytes=0-1"})).status_code == 206
    assert [request["range"] for request in origin.requests] == ["bytes=0-1"] * 2


@pytest.mark.parametrize("status", [400, 404, 416])
async def test_an_error_to_a_range_does_not_answer_requests_for_the_whole(connect, origin, cache, status):
    origin.headers = [("cache-control", "max-age=60")]
    client = connect(origin, cache=cache)
    origin.status = status
    await client.get("/a", headers={"range": "bytes=900-"})
    origin.status = 200
    assert (await client.get("/a")).status_code == 200


async def test_a_range_of_a_response_that_the_client_has_is_not_sent(connect, origin, cache):
    origin.status = 206
    origin.headers = [("cache-control", "max-age=60"), ("etag", '"a"'), ("content-range", "bytes 0-7/8")]
    client = connect(origin, cache=cache)
    for _ in range(2):
        answer = await client.get("/a", headers={"range": "bytes=0-7", "if-none-match": '"a"'})
        assert (answer.status_code, answer.content) == (304, b"")


async def test_a_whole_response_to_a_range_is_kept(connect, origin, cache):
    origin.headers = [FRESH]
    client = connect(origin, cache=cache)
    await client.get("/a", headers={"range": "bytes=0-1"})
    assert (await client.get("/a")).text == "answer 1"


async def test_a_part_answers_for_what_it_has(connect, origin, cache, clock):
    origin.status, origin.headers = 206, [FRESH, ("content-range", "bytes 4-7/10"), ("etag", '"v1"')]
    origin.body = [b"4567"]
    client = connect(origin, cache=cache)
    await client.get("/a", headers={"range": "bytes=4-7"})
    for wanted, body, extent in (("4-7", "4567", "4-7"), ("5-6", "56", "5-6"), ("-4", None, None), ("7-", None, None)):
        calls = origin.calls
        part = await client.get("/a", headers={"range": f"bytes={wanted}"})
        if body is None:
            assert origin.calls == calls + 1
            await client.get("/a", headers={"range": "bytes=4-7"})
        else:
            assert (part.status_code, part.text, part.headers["content-range"]) == (206, body, f"bytes {extent}/10")
            assert (part.headers["content-length"], origin.calls) == (str(len(body)), calls)
    calls = origin.calls
    for headers in ({}, {"range": "bytes=4-7", "if-range": '"v0"'}, {"range": "bytes=4-7", "if-none-match": '"v1"'}):
        calls += 1
        await client.get("/a", headers=headers)
        assert origin.calls == calls
    await client.post("/a")
    await client.get("/a", headers={"range": "bytes=5-6"})
    clock.advance(60)
    await client.get("/a", headers={"range": "bytes=5-6"})
    assert origin.calls == calls + 3


async def test_the_last_bytes_are_found_in_a_part(connect, origin, cache):
    origin.status, origin.headers = 206, [FRESH, ("content-range", "bytes 6-9/10")]
    origin.body = [b"6789"]
    client = connect(origin, cache=cache)
    for wanted, body in (("6-", "6789"), ("-2", "89"), ("8-99", "89")):
        assert (await client.get("/a", headers={"range": f"bytes={wanted}"})).text == body
    assert origin.calls == 1


def test_if_range_needs_a_strong_validator():
    date = b"Thu, 01 Jan 1970 00:16:40 GMT"
    assert is_same_representation(b'"a"', b'"a"', None, 0)
    assert not is_same_representation(b'W/"a"', b'W/"a"', None, 0)
    assert is_same_representation(date, None, date, 1_001)
    # It may have been modified again in the same second.
    assert not is_same_representation(date, None, date, 1_000)
    assert not is_same_representation(b"Thu, 01 Jan 1970 00:16:41 GMT", None, date, 2_000)


@pytest.mark.parametrize("kept", [True, False])
async def test_a_304_of_the_cache_keeps_the_headers_that_do_not_describe_the_body(connect, origin, cache, kept):
    own = [("access-control-allow-origin", "*"), ("content-security-policy", "default-src 'self'"), ("x-a", "b")]
    described = [
        ("content-type", "text/plain"),
        ("content-language", "de"),
        ("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ]
    cookie = [] if kept else [("set-cookie", "a=1")]
    origin.headers = [
        ("cache-control", "max-age=60" if kept else "no-store"),
        ("etag", '"1"'),
        *own,
        *described,
        *cookie,
    ]
    client = connect(origin, cache=cache)
    for _ in range(2):
        answer = await client.get("/a", headers={"if-none-match": '"1"'})
        assert answer.status_code == 304
        assert [
            pair for pair in answer.headers.items() if pair[0] not in {"age", "cache-control", "etag"}
        ] == own + cookie
    assert origin.calls == 2 - kept


@pytest.mark.parametrize(
    ("stored", "received", "expected"),
    [
        (b'"a"', None, True),
        (b'"a"', b'"a"', True),
        (b'"a"', b'W/"a"', True),
        (b'"a"', b'"a", "b"', True),
        (b'"a"', b"no tag", True),
        (b'"a"', b'"b"', False),
        (b'"a"', b'"b", "c"', False),
        (b"a", b"a", True),
        (None, b'"b"', False),
        (None, None, True),
    ],
)
def test_a_304_is_about_the_response_with_its_entity_tag(stored, received, expected):
    assert is_validated(stored, received) is expected
