"""For how long a response is fresh, and how old it is: RFC 9111, 4.2."""

import os
import time

import pytest

from acgsperf.asgi.fields import directives, http_date, seconds

FRESH = [("cache-control", "max-age=60")]


@pytest.fixture
def client(connect, origin, cache):
    origin.headers = list(FRESH)
    return connect(origin, cache=cache)


async def test_the_age_of_a_response_starts_at_its_request(client, origin, clock):
    async def slowly():
        clock.advance(40)

    origin.wait = slowly
    await client.get("/a")
    clock.advance(19)
    assert (await client.get("/a")).headers["age"] == "59"
    clock.advance(1)
    await client.get("/a")
    assert origin.calls == 2


async def test_a_response_that_is_stale_when_it_ends_is_not_kept(client, origin, clock):
    async def slowly():
        clock.advance(60)

    origin.wait = slowly
    await client.get("/a")
    assert client.middleware.counts().stored == 0


@pytest.mark.parametrize(
    ("age", "headers"),
    [
        ("0", {}),
        ("30", {"age": "30"}),
        ("40", {"date": "Thu, 01 Jan 1970 00:16:00 GMT"}),
        ("50", {"date": "Thu, 01 Jan 1970 00:16:00 GMT", "age": "50"}),
        ("40", {"date": "Thu, 01 Jan 1970 00:16:00 GMT", "age": "30"}),
        ("0", {"date": "yesterday"}),
        ("0", {"date": "Thu, 01 Jan 1970 00:20:00 GMT"}),
        ("0", {"date": "Fri, 31 Dec 9999 23:59:59 GMT"}),
        (None, {"age": "60"}),
        (None, {"age": "-1"}),
        (None, {"age": "1.0"}),
        (None, {"age": "0, 0"}),
        (None, {"age": "old"}),
        (None, {"age": "9" * 10_000}),
        (None, {"date": "Thu, 01 Jan 1970 00:15:00 GMT"}),
    ],
)
async def test_date_and_age_of_the_response_count(client, origin, age, headers):
    origin.headers = FRESH + list(headers.items())
    await client.get("/a")
    assert (await client.get("/a")).headers.get("age", None if age is None else "0") == (age or headers.get("age"))
    assert origin.calls == (1 if age is not None else 2)


@pytest.fixture
def zone():
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    "date",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "sun, 06 nov 1994 08:49:37 gmt",
        " Sun, 06 Nov 1994 08:49:37 GMT ",
    ],
)
def test_an_http_date_is_utc_in_each_of_its_forms(zone, date):
    assert http_date(date.encode()) == 784111777


@pytest.mark.parametrize(
    "date",
    [
        "",
        "0",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT" * 1_000,
        "\u0661",
    ],
)
def test_what_is_not_an_http_date_has_no_time(date):
    assert http_date(date.encode()) is None


def test_a_year_of_two_digits_is_not_far_in_the_future():
    year = time.gmtime().tm_year
    for years in (-40, 0, 49):
        assert (
            time.gmtime(http_date(b"Sunday, 06-Nov-%02d 08:49:37 GMT" % ((year + years) % 100))).tm_year == year + years
        )
    assert time.gmtime(http_date(b"Sunday, 06-Nov-%02d 08:49:37 GMT" % ((year + 51) % 100))).tm_year == year - 49


async def test_two_expires_headers_are_not_valid(client, origin):
    origin.headers = [("expires", "Thu, 01 Jan 1970 01:00:00 GMT")] * 2
    for _ in range(2):
        await client.get("/a")
    assert origin.calls == 2


@pytest.mark.parametrize(
    ("lifetime", "modified"), [(200, "Thu, 01 Jan 1970 00:00:00 GMT"), (None, "Thu, 01 Jan 1970 01:00:00 GMT")]
)
async def test_heuristic_freshness_is_an_option(connect, origin, cache, clock, lifetime, modified):
    origin.headers = [("last-modified", modified)]
    await connect(origin, cache=cache).get("/a")
    client = connect(origin, cache=cache, heuristic=0.2)
    await client.get("/a")
    await client.get("/a")
    assert origin.calls == (2 if lifetime else 3)
    clock.advance(lifetime or 0)
    await client.get("/a")
    assert origin.calls == (3 if lifetime else 4)


async def test_heuristic_freshness_is_at_most_a_day(connect, origin, cache, clock):
    clock.advance(10**9)
    origin.headers = [("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")]
    client = connect(origin, cache=cache, heuristic=0.1)
    await client.get("/a")
    clock.advance(86_399)
    await client.get("/a")
    assert origin.calls == 1
    clock.advance(1)
    await client.get("/a")
    assert origin.calls == 2


@pytest.mark.parametrize(
    ("cached", "targeted", "cache_control"),
    [
        (True, "max-age=60", "no-store"),
        (True, "max-age=60", "max-age=0"),
        (False, "max-age=0", "max-age=60"),
        (False, "no-store", "max-age=60"),
        (False, "private, max-age=60", "max-age=60"),
        (True, "max-age=60, no-store=?0", "no-store"),
        (True, "max-age=60;a=b, x=(", "max-age=60"),
        (False, "max-age=60;a=b, x=(", "no-store"),
        (False, "MAX-AGE=60", "no-store"),
        (False, 'max-age="60"', "no-store"),
        (True, "", "max-age=60"),
    ],
)
async def test_a_field_for_caches_like_this_one_replaces_cache_control(client, origin, cached, targeted, cache_control):
    origin.headers = [("cdn-cache-control", targeted), ("cache-control", cache_control)]
    for _ in range(2):
        await client.get("/a")
    assert (origin.calls == 1) is cached


@pytest.mark.parametrize(
    ("cached", "status", "cache_control"),
    [
        (True, 200, "max-age=60, must-understand"),
        (True, 200, "max-age=60, must-understand, no-store"),
        (False, 599, "max-age=60, must-understand"),
        (False, 599, "max-age=60, no-store"),
        (True, 599, "max-age=60"),
    ],
)
async def test_a_status_has_to_be_understood_if_the_response_says_so(client, origin, cached, status, cache_control):
    origin.status, origin.headers = status, [("cache-control", cache_control)]
    for _ in range(2):
        await client.get("/a")
    assert (origin.calls == 1) is cached


def test_directives_are_read_whatever_surrounds_them():
    assert directives(rb'a, B="x, no-store", c= 1 ,,d =1, "e", f="\"", a=2, g="open, h') == {
        "a": None, "b": "x, no-store", "c": "", "d": "", '"e"': None, "f": '"', "g": '"open, h',
    }  # fmt: skip
    assert directives(None) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("007", 7), ("\u0667", None), ("1.5", None), ("", None), (None, None), ("9" * 5_000, 2**31),
     ("0" * 5_000 + "7", 7), ("-1", None), (" 1", None)],
)  # fmt: skip
def test_seconds_are_decimal_digits(text, expected):
    assert seconds(text) == expected
