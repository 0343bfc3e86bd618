"""Which requests a stored response may answer, depending on cookies and credentials."""

import pytest

ALICE, BOB = {"x-api-key": "alice"}, {"x-api-key": "bob"}


async def answers(client, *requests, path="/a"):
    return [(await client.get(path, headers=headers)).text for headers in requests]


@pytest.mark.parametrize("header", ["X-API-Key", "X-Auth-Token", "X-Amz-Security-Token", "Remote-User", "DPoP"])
async def test_a_key_or_token_is_a_credential(connect, origin, cache, header):
    client = connect(origin, cache=cache, ttl=60)
    requests = [{header: "alice"}, {header: "bob"}, {}, {header: "alice"}]
    assert len(set(await answers(client, *requests))) == 4


async def test_a_response_with_a_lifetime_is_not_for_everybody(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60")]
    client = connect(origin, cache=cache)
    assert len(set(await answers(client, ALICE, BOB, {}, ALICE))) == 4


@pytest.mark.parametrize("directive", ["public", "s-maxage=60", "must-revalidate"])
async def test_a_response_for_everybody_says_so(connect, origin, cache, directive):
    origin.headers = [("cache-control", f"max-age=60, {directive}")]
    client = connect(origin, cache=cache)
    assert len(set(await answers(client, ALICE, BOB, {}, {"authorization": "x"}))) == 1


async def test_a_response_that_varies_on_a_credential_is_kept_for_each_of_its_values(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60"), ("vary", "X-API-Key")]
    client = connect(origin, cache=cache)
    first = await answers(client, ALICE, BOB, {})
    assert len(set(first)) == 3
    assert await answers(client, ALICE, BOB, {}) == first


async def test_the_value_of_a_credential_is_compared_byte_by_byte(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60"), ("vary", "X-API-Key, Cookie")]
    requests = [{"x-api-key": "a,b"}, {"x-api-key": "a, b"}, {"cookie": "a,b"}, {"cookie": "a, b"}]
    assert len(set(await answers(connect(origin, cache=cache), *requests))) == 4


async def test_authorization_needs_more_than_vary(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60"), ("vary", "authorization")]
    client = connect(origin, cache=cache)
    assert len(set(await answers(client, {"authorization": "a"}, {"authorization": "a"}))) == 2


async def test_the_credentials_are_an_option(connect, origin, cache):
    origin.headers = [("cache-control", "max-age=60")]
    client = connect(origin, cache=cache, credentials=["X-Badge"])
    assert len(set(await answers(client, {"x-badge": "a"}, {"x-badge": "b"}))) == 2
    assert len(set(await answers(client, ALICE, BOB))) == 1


async def test_the_default_lifetime_is_for_each_cookie_if_the_response_varies_on_it(connect, origin, cache):
    origin.headers = [("vary", "cookie")]
    client = connect(origin, cache=cache, ttl=60)
    first = await answers(client, {"cookie": "a"}, {"cookie": "b"})
    assert len(set(first)) == 2
    assert await answers(client, {"cookie": "a"}, {"cookie": "b"}) == first


@pytest.mark.parametrize("cache_control", ["public", "must-revalidate", "public, must-revalidate", ""])
@pytest.mark.parametrize("options", [{"ttl": 60}, {"heuristic": 0.1}])
@pytest.mark.parametrize("header", ["cookie", "authorization", "x-api-key"])
async def test_a_lifetime_by_default_is_for_strangers_only(connect, origin, cache, cache_control, options, header):
    origin.headers = [("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT"), ("cache-control", cache_control)]
    client = connect(origin, cache=cache, **options)
    assert len(set(await answers(client, {header: "alice"}, {header: "bob"}, {}))) == 3
