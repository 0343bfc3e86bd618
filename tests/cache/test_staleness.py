"""What a caller gets for an entry that is fresh, due for refresh, stale or removed."""

import asyncio
import math

import pytest
from grouped import grouped
from loaders import Loader

from acgsperf import LRUCache
from acgsperf.cache import TieredCache
from acgsperf.errors import LoadTimeoutError


async def test_a_value_is_fresh_until_its_ttl_has_passed(open_cache, clock):
    cache = await open_cache(ttl=60)
    await cache.set("key", 1)
    await cache.set("short", 1, ttl=10)
    await cache.set("forever", 1, ttl=None)
    clock.advance(10)
    assert await cache.get_many(["key", "short", "forever"]) == {"key": 1, "forever": 1}
    clock.advance(50)
    assert await cache.get_many(["key", "short", "forever"]) == {"forever": 1}
    clock.advance(1e8)
    assert cache.get_local("forever") == 1


async def test_a_stale_value_is_served_at_once_while_a_load_runs_in_the_background(open_cache, clock, settle):
    cache = await open_cache(ttl=60, stale_ttl=30)
    loader = Loader("new", gate_open=False)
    await cache.set("key", "old")
    clock.advance(60)
    assert await cache.get_or_load("key", loader) == "old"
    await settle()
    assert loader.calls == 1
    assert await cache.get_or_load("key", loader) == "old"
    loader.gate.set()
    await settle()
    assert cache.get_local("key") == "new"
    stats = cache.stats()
    assert (stats.loads, stats.refreshes, stats.stale_served) == (1, 1, 2)


async def test_a_stale_value_is_a_miss_for_get(open_cache, clock, l2):
    cache = await open_cache(l2, ttl=60, stale_ttl=30)
    await cache.set("key", "old")
    clock.advance(60)
    assert await cache.get("key") is None
    assert await cache.get("key", "nothing") == "nothing"
    assert await cache.get_many(["key"]) == {}
    assert cache.get_local("key") is None


async def test_a_value_is_not_served_after_its_stale_ttl(open_cache, clock):
    cache = await open_cache(ttl=60, stale_ttl=30)
    await cache.set("key", "old")
    clock.advance(90)
    assert await cache.get_or_load("key", Loader("new")) == "new"


async def test_a_stale_value_from_a_lower_tier_is_served_too(open_cache, clock, l2, settle):
    writer = await open_cache(l2, ttl=60, stale_ttl=30)
    await writer.set("key", "old")
    clock.advance(60)
    reader = await open_cache(l2, ttl=60, stale_ttl=30)
    assert await reader.get_or_load("key", Loader("new")) == "old"
    await settle()
    assert await reader.get_or_load("key", Loader("newer")) == "new"


async def test_after_the_soft_timeout_the_stale_value_is_served_and_the_load_continues(open_cache, clock, settle):
    cache = await open_cache(ttl=60, stale_ttl=30, soft_timeout=0.01)
    loader = Loader("new", gate_open=False)
    await cache.set("key", "old")
    clock.advance(60)
    assert await cache.get_or_load("key", loader) == "old"
    assert loader.cancelled == 0
    loader.gate.set()
    await settle()
    assert cache.get_local("key") == "new"


async def test_a_load_within_the_soft_timeout_returns_the_new_value(open_cache, clock):
    cache = await open_cache(ttl=60, stale_ttl=30, soft_timeout=10)
    await cache.set("key", "old")
    clock.advance(60)
    assert await cache.get_or_load("key", Loader("new")) == "new"


async def test_without_a_stale_value_the_soft_timeout_has_no_effect(open_cache, settle):
    cache = await open_cache(ttl=60, stale_ttl=30, soft_timeout=0)
    loader = Loader("new", gate_open=False)
    task = asyncio.create_task(cache.get_or_load("key", loader))
    await settle()
    assert not task.done()
    loader.gate.set()
    assert await task == "new"


async def test_a_background_load_continues_when_its_caller_has_left(open_cache, clock, settle):
    cache = await open_cache(ttl=60, stale_ttl=30, soft_timeout=0)
    loader = Loader("new", gate_open=False)
    await cache.set("key", "old")
    clock.advance(60)
    task = asyncio.create_task(cache.get_or_load("key", loader))
    assert await task == "old"
    await settle()
    loader.gate.set()
    await settle()
    assert (loader.cancelled, cache.get_local("key")) == (0, "new")


async def test_after_a_failed_load_the_stale_value_is_served(open_cache, clock):
    cache = await open_cache(ttl=60, stale_ttl=30, soft_timeout=None)
    await cache.set("key", "old")
    clock.advance(60)
    assert await cache.get_or_load("key", Loader(error=OSError("down"))) == "old"
    stats = cache.stats()
    assert (stats.load_errors, stats.stale_served) == (1, 1)


async def test_after_the_hard_timeout_the_stale_value_is_served(open_cache, clock):
    cache = await open_cache(ttl=60, stale_ttl=30, soft_timeout=None, hard_timeout=0.01)
    await cache.set("key", "old")
    clock.advance(60)
    assert await cache.get_or_load("key", Loader(gate_open=False)) == "old"
    clock.advance(30)
    with pytest.raises(LoadTimeoutError):
        await cache.get_or_load("key", Loader(gate_open=False))


async def test_with_a_stale_value_a_failed_load_is_not_retried_before_retry_after(open_cache, clock, settle):
    cache = await open_cache(ttl=60, stale_ttl=30, retry_after=5)
    failing = Loader(error=OSError("down"))
    await cache.set("key", "old")
    clock.advance(60)
    for _ in range(3):
        assert await cache.get_or_load("key", failing) == "old"
        await settle()
    assert failing.calls == 1
    clock.advance(5)
    assert await cache.get_or_load("key", Loader("new")) == "old"
    await settle()
    assert cache.get_local("key") == "new"


async def test_without_a_stale_value_a_failed_load_is_retried_at_once(open_cache):
    cache = await open_cache(retry_after=5)
    failing = Loader(error=OSError("down"))
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            await cache.get_or_load("key", failing)
    assert failing.calls == 3


async def test_past_the_refresh_point_a_hit_starts_a_load_in_the_background(open_cache, clock, settle):
    cache = await open_cache(ttl=100, refresh_ahead=0.8)
    loader = Loader("new", gate_open=False)
    await cache.set("key", "old")
    clock.advance(79)
    assert await cache.get_or_load("key", loader) == "old"
    await settle()
    assert loader.calls == 0
    clock.advance(1)
    for _ in range(3):
        assert await cache.get_or_load("key", loader) == "old"
        await settle()
    assert loader.calls == 1
    assert await cache.get("key") == "old"
    assert await cache.get_many(["key"]) == {"key": "old"}
    loader.gate.set()
    await settle()
    assert cache.get_local("key") == "new"
    clock.advance(79)
    assert cache.get_local("key") == "new"
    assert cache.stats().refreshes == 1
    assert cache.stats().stale_served == 0


async def test_a_failed_refresh_is_not_retried_before_retry_after(open_cache, clock, settle):
    cache = await open_cache(ttl=100, refresh_ahead=0.8, retry_after=5)
    await cache.set("key", "old")
    clock.advance(80)
    failing = Loader(error=OSError("down"))
    for _ in range(3):
        assert await cache.get_or_load("key", failing) == "old"
        await settle()
    assert failing.calls == 1
    clock.advance(5)
    assert await cache.get_or_load("key", Loader("new")) == "old"
    await settle()
    assert cache.get_local("key") == "new"


async def test_a_background_load_uses_what_another_process_has_loaded_since(open_cache, clock, l2, settle):
    cache = await open_cache(l2, ttl=60, stale_ttl=30)
    other = await open_cache(l2, ttl=60, stale_ttl=30)
    await cache.set("key", "old")
    clock.advance(60)
    await other.set("key", "theirs")
    loader = Loader("mine")
    assert await cache.get_or_load("key", loader) == "old"
    await settle()
    assert (cache.get_local("key"), loader.calls) == ("theirs", 0)


async def test_jitter_shortens_a_ttl_by_at_most_its_share(open_cache, l2):
    cache = await open_cache(l2, ttl=100, jitter=0.2)
    await cache.set_many({str(i): i for i in range(200)})
    lives = {l2[str(i)].fresh_until - l2[str(i)].created_at for i in range(200)}
    assert all(80 <= life <= 100 for life in lives)
    assert len(lives) > 100


async def test_a_ttl_of_l1_limits_how_long_the_lower_tiers_are_not_asked(open_cache, clock, l2):
    cache = await open_cache(l2, l1_ttl=10, ttl=100, promotion_threshold=1)
    await cache.set("key", "old")
    l2.data["test", "key"] = type(l2["key"])("theirs", clock(), clock() + 100, clock() + 100)
    clock.advance(9)
    assert await cache.get("key") == "old"
    clock.advance(1)
    assert await cache.get_or_load("key", Loader()) == "theirs"


async def test_a_key_without_a_value_is_remembered_for_the_negative_ttl(open_cache, clock):
    cache = await open_cache(negative_ttl=5)
    nothing = Loader(None)
    for _ in range(3):
        assert await cache.get_or_load("key", nothing) is None
    assert nothing.calls == 1
    assert await cache.get("key", "default") == "default"
    assert cache.stats().negative_hits == 3
    clock.advance(5)
    assert await cache.get_or_load("key", Loader("now")) == "now"


async def test_negative_entries_are_shared_with_other_processes(open_cache, l2, settle):
    cache = await open_cache(l2, negative_ttl=5)
    assert await cache.get_or_load("key", Loader(None)) is None
    await settle()
    other = await open_cache(l2, negative_ttl=5)
    loader = Loader("value")
    assert await other.get_or_load("key", loader) is None
    assert await other.get("key", "default") == "default"
    assert loader.calls == 0


async def test_a_set_replaces_a_negative_entry(open_cache):
    cache = await open_cache(negative_ttl=5)
    await cache.get_or_load("key", Loader(None))
    await cache.set("key", None)
    assert await cache.get("key", "default") is None
    await cache.delete("key")
    await cache.get_or_load("key", Loader(None))
    await cache.delete("key")
    assert await cache.get_or_load("key", Loader("now")) == "now"


async def test_negative_entries_are_bounded_and_evict_no_value(open_cache, l2, settle):
    cache = await open_cache(l2, size=10, negative_ttl=5, negative_maxsize=20)
    await cache.set_many({str(i): i for i in range(10)})
    for i in range(100):
        await cache.get_or_load(f"none {i}", Loader(None))
    await settle()
    assert cache.stats().negative_entries == 20
    assert sum(entry.negative for entry in l2.data.values()) <= 20
    assert [cache.get_local(str(i)) for i in range(10)] == list(range(10))


async def test_without_a_negative_ttl_none_is_a_value(open_cache, clock):
    cache = await open_cache(ttl=60)
    nothing = Loader(None)
    assert await cache.get_or_load("key", nothing) is None
    assert await cache.get("key", "default") is None
    clock.advance(59)
    assert await cache.get_or_load("key", nothing) is None
    assert nothing.calls == 1


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("ttl", 0, ValueError),
        ("ttl", "60", TypeError),
        ("ttl", math.nan, ValueError),
        ("stale_ttl", -1, ValueError),
        ("stale_ttl", 10**400, ValueError),
        ("retry_after", 10**400, ValueError),
        ("soft_timeout", 10**400, ValueError),
        ("hard_timeout", 10**400, ValueError),
        ("soft_timeout", -1, ValueError),
        ("hard_timeout", 0, ValueError),
        ("refresh_ahead", 1, ValueError),
        ("jitter", 1, ValueError),
        ("negative_ttl", 0, ValueError),
        ("negative_maxsize", 0, ValueError),
        ("promotion_threshold", 0, ValueError),
        ("promotion_threshold", 1.5, TypeError),
        ("deadline", 0, ValueError),
        ("retry_after", True, TypeError),
    ],
    ids=lambda value: str(value)[:12],
)
def test_the_error_for_an_option_out_of_range_names_it(option, value, error):
    with pytest.raises(error, match=f"^{option} must be"):
        TieredCache(LRUCache(1), namespace="test", **grouped({option: value}))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({},), {}, "l1 must be an LRUCache or an AdaptiveCache, got dict"),
        ((LRUCache(1), "redis://localhost"), {}, "l2 must be a Tier or None, got str"),
        ((LRUCache(1), None, 5), {}, "l3 must be a Tier or None, got int"),
        ((LRUCache(1),), {"namespace": None}, "namespace must be a str"),
        ((LRUCache(1),), {"namespace": ""}, "namespace must be 1 to 100"),
    ],
)
def test_the_error_for_an_invalid_l1_tier_or_namespace_names_it(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TieredCache(*arguments, **{"namespace": "test"} | options)
