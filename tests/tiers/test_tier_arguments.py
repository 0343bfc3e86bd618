"""Numbers of any size, and arguments that are not what they should be."""

import math
import sys
import time

import pytest

from acgsperf.tiers import Entry
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier


@pytest.mark.parametrize("kept", [1e10, 1e15, 2**60, sys.maxsize, 1e18, 1e30, 1.7e308, math.inf])
async def test_an_entry_may_be_kept_for_any_time(tier, kept):
    assert await tier.set("k", Entry("v", 1.5, None, kept))
    assert (await tier.get("k")).value == "v"
    assert tier.stats().errors == {}


@pytest.mark.parametrize(
    "bad",
    [
        Entry("v", math.nan, None, None),
        Entry("v", math.inf, None, None),
        Entry("v", 10**400, None, None),
        Entry("v", 1.0, math.nan, None),
        Entry("v", 1.0, 10**400, None),
        Entry("v", 1.0, None, math.nan),
        Entry("v", 1.0, None, 10**400),
        Entry("v", "now", None, None),
    ],
    ids=lambda entry: f"{entry.created_at!r:.9} {entry.fresh_until!r:.9} {entry.kept_until!r:.9}",
)
async def test_a_time_that_is_none_refuses_its_entry_alone(tier, entry, bad):
    await tier.set("bad", entry("former"))
    assert await tier.set_many({"good": entry(), "bad": bad}) == {"good"}
    assert set(await tier.get_many(["good", "bad"])) == {"good"}
    assert tier.stats().refused == 1
    assert tier.stats().errors == {}


@pytest.mark.parametrize("keys", ["user:7", "", b"user:7"])
async def test_a_text_is_no_list_of_keys(tier, entry, keys):
    await tier.set_many({key: entry() for key in "user:7"})
    for call in (tier.get_many, tier.delete_many):
        with pytest.raises(TypeError, match=r"keys must be a sequence of str, got the (str|bytes)"):
            await call(keys)
    assert len(await tier.get_many(list("user:7"))) == 6


@pytest.mark.parametrize("tag", [5, None, b"x"])
async def test_a_tag_that_is_no_text_is_refused(tier, tag):
    with pytest.raises(TypeError, match="a tag must be a str, got"):
        await tier.invalidate_tag(tag)


@pytest.mark.parametrize("ttl", [1e-9, 10**9, sys.maxsize, 1e300, math.inf])
async def test_a_lock_may_have_any_ttl(servers, namespace, ttl):
    tier = RedisTier(servers.redis_url, deadline=5)
    await tier.open(namespace)
    token = await tier.lock("k", ttl)
    assert token
    await tier.unlock("k", token)
    assert tier.stats().errors == {}
    for wrong in (0, -1, math.nan):
        with pytest.raises(ValueError, match="ttl must be greater than 0, got"):
            await tier.lock("k", wrong)
    await tier.close()


async def test_a_lock_of_any_ttl_is_none_without_a_server(tmp_path):
    tier = RedisTier(f"unix://{tmp_path}/none")
    await tier.open("n")
    assert await tier.lock("k", 10**400) is None
    await tier.close()


TIERS = [(RedisTier, "redis://localhost"), (PostgresTier, "postgresql://localhost")]


@pytest.mark.parametrize(("kind", "url"), TIERS)
@pytest.mark.parametrize("deadline", [0, -1, math.nan, 10**400, -math.inf], ids=lambda value: str(value)[:6])
def test_a_deadline_that_is_no_time_is_refused(kind, url, deadline):
    with pytest.raises(ValueError, match="deadline must be"):
        kind(url, deadline=deadline)
    with pytest.raises(TypeError, match="deadline must be"):
        kind(url, deadline="1")


@pytest.mark.parametrize("deadline", [math.inf, 1e300, sys.maxsize])
async def test_a_deadline_may_be_very_long(make, namespace, entry, deadline):
    tier = make(deadline=deadline)
    await tier.open(namespace)
    assert await tier.set("k", entry())
    assert await tier.get("k")
    started = time.monotonic()
    await tier.close()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"expiry_interval": 0}, ValueError),
        ({"expiry_interval": math.nan}, ValueError),
        ({"expiry_interval": 10**400}, ValueError),
        ({"statement_cache_size": -1}, ValueError),
        ({"statement_cache_size": "100"}, TypeError),
    ],
)
def test_an_option_of_postgresql_that_is_not_valid_is_named(options, error):
    with pytest.raises(error, match=next(iter(options))):
        PostgresTier("postgresql://", **options)
