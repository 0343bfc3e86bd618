"""`EntryOptions` for a cache, a decorated function and a call. What each option does is in test_staleness.py."""

import asyncio
import copy
import dataclasses
import pickle

import pytest

from acgsperf import EntryOptions, Loaded, LoadTimeoutError, LRUCache, TieredCache, cached
from acgsperf.testing import MemoryServer, memory_cache


async def one(key):
    return 1


async def none(key):
    return None


async def fails(key):
    raise OSError("down")


async def hangs(key):
    await asyncio.Event().wait()


def test_a_cache_without_options_has_the_defaults():
    options = TieredCache(LRUCache(1), namespace="n").options
    assert dataclasses.astuple(options) == (3600, 0.0, 0, 0, None, None, None)


def test_what_a_cache_does_not_give_has_its_default():
    options = TieredCache(LRUCache(1), namespace="n", options=EntryOptions(ttl=5, stale_ttl=7)).options
    assert (options.ttl, options.stale_ttl, options.soft_timeout) == (5, 7, 0)


def test_options_show_what_was_given():
    assert repr(EntryOptions()) == "EntryOptions()"
    assert repr(EntryOptions(ttl=None, jitter=0.1)) == "EntryOptions(ttl=None, jitter=0.1)"


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EntryOptions().ttl = 1
    assert EntryOptions(ttl=1) == EntryOptions(ttl=1) != EntryOptions()
    assert len({EntryOptions(ttl=1), EntryOptions(ttl=1)}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": 0}, "ttl must be greater than 0, got 0"),
        ({"jitter": 1}, "jitter must be at least 0 and less than 1, got 1"),
        ({"jitter": None}, "jitter must be a number, got None"),
        ({"stale_ttl": -1}, "stale_ttl must be at least 0, got -1"),
        ({"stale_ttl": None}, "stale_ttl must be a number, got None"),
        ({"soft_timeout": -1}, "soft_timeout must be at least 0, got -1"),
        ({"hard_timeout": 0}, "hard_timeout must be greater than 0, got 0"),
        ({"negative_ttl": 0}, "negative_ttl must be greater than 0, got 0"),
        ({"refresh_ahead": 1}, "refresh_ahead must be greater than 0 and less than 1, got 1"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EntryOptions(**options)


async def test_options_of_another_type_are_refused(clock):
    for given in ({"ttl": 5}, 5):
        with pytest.raises(TypeError, match="options must be EntryOptions or None, got "):
            TieredCache(LRUCache(1), namespace="n", options=given)
        async with memory_cache(clock) as cache:
            with pytest.raises(TypeError, match="options must be EntryOptions or None, got "):
                await cache.get_or_load("a", one, options=given)


@pytest.mark.parametrize("store", ["set", "set_many", "get_or_load", "get_or_load_many", "cached"])
async def test_a_call_may_have_its_own_ttl_and_inherits_the_rest(clock, store):
    async def many(keys):
        return dict.fromkeys(keys, 1)

    async with memory_cache(clock, options=EntryOptions(ttl=60, stale_ttl=30, soft_timeout=None)) as cache:
        options = EntryOptions(ttl=5)
        match store:
            case "set":
                await cache.set("a", 1, options=options)
            case "set_many":
                await cache.set_many({"a": 1}, options=options)
            case "get_or_load":
                await cache.get_or_load("a", one, options=options)
            case "get_or_load_many":
                await cache.get_or_load_many(["a"], many, options=options)
            case "cached":
                await cached(cache, key=lambda key: key, options=options)(one)("a")
        assert (await cache.get_entry("a")).ttl == 5
        clock.advance(34)
        assert await cache.get("a") is None
        assert await cache.get_or_load("a", fails) == 1, "the stale_ttl is that of the cache"
        clock.advance(1)
        with pytest.raises(OSError, match="down"):
            await cache.get_or_load("a", fails)


async def test_the_ttl_of_a_call_wins_over_its_options(clock):
    async with memory_cache(clock) as cache:
        await cache.set("a", 1, ttl=7, options=EntryOptions(ttl=5))
        assert (await cache.get_entry("a")).ttl == 7
        await cached(cache, key=lambda key: key, ttl=8, options=EntryOptions(ttl=5))(one)("b")
        assert (await cache.get_entry("b")).ttl == 8


async def test_a_call_may_shorten_its_ttl_at_random(clock):
    async with memory_cache(clock) as cache:
        await cache.set_many(dict.fromkeys(map(str, range(50)), 1), options=EntryOptions(ttl=100, jitter=0.5))
        lifetimes = [(await cache.get_entry(str(number))).ttl for number in range(50)]
        assert 50 <= min(lifetimes) < 75 < max(lifetimes) <= 100


async def test_a_call_may_keep_and_accept_stale_values_where_the_cache_does_not(clock, settle):
    server = MemoryServer(clock)
    options = EntryOptions(ttl=60, stale_ttl=30, soft_timeout=None)
    async with memory_cache(clock, server=server) as here, memory_cache(clock, server=server) as there:
        await here.get_or_load("a", one, options=options)
        await settle()
        clock.advance(60)
        for cache in (here, there):
            assert await cache.get_or_load("a", fails, options=options) == 1
            clock.advance(1)
            with pytest.raises(OSError, match="down"):
                await cache.get_or_load("a", fails)
            clock.advance(1)


async def test_a_call_may_refuse_stale_values_that_the_cache_accepts(clock):
    async with memory_cache(clock, options=EntryOptions(ttl=60, stale_ttl=30, soft_timeout=None)) as cache:
        await cache.set("a", 1)
        clock.advance(60)
        with pytest.raises(OSError, match="down"):
            await cache.get_or_load("a", fails, options=EntryOptions(stale_ttl=0))
        assert await cache.get_or_load("a", fails) == 1


async def test_a_call_may_have_its_own_timeouts(clock):
    async with memory_cache(clock, options=EntryOptions(ttl=60, stale_ttl=30, soft_timeout=None)) as cache:
        with pytest.raises(LoadTimeoutError, match=r"took longer than hard_timeout \(0.01 s\)"):
            await cache.get_or_load("b", hangs, options=EntryOptions(hard_timeout=0.01))
        await cache.set("a", 1)
        clock.advance(60)
        assert await cache.get_or_load("a", hangs, options=EntryOptions(soft_timeout=0)) == 1
        await cache.delete("a")
        await cache.set("a", 1)
        clock.advance(60)
        assert await cache.get_or_load("a", hangs, options=EntryOptions(soft_timeout=0.01)) == 1


async def test_a_call_may_remember_that_there_is_no_value(clock):
    async with memory_cache(clock) as cache:
        assert await cache.get_or_load("a", none, options=EntryOptions(negative_ttl=5)) is None
        assert cache.stats().negative_entries == 1
        assert await cache.get_or_load("b", none) is None
        assert cache.stats().negative_entries == 1
        clock.advance(5)
        assert await cache.get_or_load("a", one) == 1


@pytest.mark.parametrize("own", [True, False])
async def test_a_call_may_refresh_its_value_ahead(clock, settle, own):
    options = EntryOptions(ttl=100, refresh_ahead=0.5 if own else None)
    async with memory_cache(clock, options=EntryOptions(refresh_ahead=None if own else 0.5)) as cache:
        await cache.get_or_load("a", one, options=options)
        clock.advance(60)
        await cache.get_or_load("a", one, options=options)
        await settle()
        assert cache.stats().loads == (2 if own else 1)


async def test_a_stale_value_is_not_kept_for_a_cache_without_a_stale_ttl(clock):
    async with memory_cache(clock) as cache:
        await cache.set("a", 1)
        await cache.set("forever", 1, ttl=None)
        await cache.set("own", 1, options=EntryOptions(stale_ttl=60))
        await cache.expire_now("a", "forever", "own")
        assert cache.stats().stale_entries == 1
        for key in ("a", "forever", "own"):
            with pytest.raises(OSError, match="down"):
                await cache.get_or_load(key, fails)
        assert await cache.get_or_load("own", fails, options=EntryOptions(stale_ttl=60, soft_timeout=None)) == 1


async def test_the_refresh_point_of_the_cache_is_one_of_its_options(clock):
    cache = memory_cache(clock, options=EntryOptions(refresh_ahead=0.5))
    cache.refresh_ahead = 0.8
    assert cache.options.refresh_ahead == cache.refresh_ahead == 0.8
    with pytest.raises(ValueError, match="refresh_ahead must be greater than 0 and less than 1, got 2"):
        cache.refresh_ahead = 2


async def test_single_options_of_a_cache_win_over_its_options():
    cache = TieredCache(LRUCache(10), namespace="n", options=EntryOptions(ttl=5, stale_ttl=7), ttl=60, negative_ttl=1)
    assert (cache.options.ttl, cache.options.stale_ttl, cache.options.negative_ttl) == (60, 7, 1)
    assert TieredCache(LRUCache(10), namespace="n", stale_ttl=300).options == EntryOptions(
        ttl=3600, jitter=0.0, stale_ttl=300, soft_timeout=0, hard_timeout=None, negative_ttl=None, refresh_ahead=None
    )


def test_a_single_option_that_is_not_valid_is_named():
    with pytest.raises(ValueError, match=r"^ttl must be greater than 0"):
        TieredCache(LRUCache(10), namespace="n", ttl=0)
    with pytest.raises(TypeError, match=r"^TieredCache\(\) got an unexpected keyword argument 'tll'$"):
        TieredCache(LRUCache(10), namespace="n", tll=1)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
async def test_what_is_not_given_is_not_given_in_a_copy_either(clock, duplicate):
    options, loaded = duplicate(EntryOptions(ttl=5)), duplicate(Loaded(1))
    assert (options, repr(options)) == (EntryOptions(ttl=5), "EntryOptions(ttl=5)")
    assert (loaded, loaded.ttl) == (Loaded(1), Loaded(1).ttl)

    async def load(key):
        return loaded

    async with memory_cache(clock, options=options) as cache:
        assert await cache.get_or_load("a", load) == 1
        clock.advance(5)
        assert await cache.get("a") is None


def test_an_unknown_argument_of_a_cache_is_named():
    with pytest.raises(TypeError, match=r"^TieredCache\(\) got an unexpected keyword argument 'colour'$"):
        TieredCache(LRUCache(1), namespace="test", colour="red")
