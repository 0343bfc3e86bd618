"""What a loader may return to decide how its value is kept, what it gets of the former one, refresh and bypass."""

import asyncio
import functools
import pickle
import secrets
from unittest.mock import AsyncMock

import pytest
from grouped import grouped
from memory_tier import MemoryTier

from acgsperf import UNCHANGED, EntryOptions, Loaded, LoadError, LRUCache, Previous, TieredCache
from acgsperf.cache.annotations import codec_of_results
from acgsperf.cache.source import Source
from acgsperf.testing import MemoryServer, memory_cache
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier


def returns(*results):
    """Return a loader that returns or raises one result after the other."""
    remaining = list(results)

    async def load(key):
        result = remaining.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return load


@pytest.fixture
def on_servers(servers):
    namespace = f"results-{secrets.token_hex(4)}"

    def cache(**options):
        tiers = RedisTier(servers.redis_url, deadline=5), PostgresTier(servers.database_url, deadline=5)
        return TieredCache(LRUCache(100), *tiers, namespace=namespace, deadline=5, **grouped(options))

    return cache


async def test_a_loader_decides_the_ttl_of_its_value(clock):
    async with memory_cache(clock, options=EntryOptions(ttl=60)) as cache:
        load = returns(Loaded(1, ttl=5), Loaded(2, ttl=None), Loaded(3))
        assert await cache.get_or_load("a", load) == 1
        clock.advance(5)
        assert await cache.get("a") is None
        assert await cache.get_or_load("a", load) == 2
        clock.advance(10**9)
        assert await cache.get("a") == 2
        assert await cache.get_or_load("b", load) == 3
        clock.advance(60)
        assert await cache.get("b") is None


@pytest.mark.parametrize("many", [False, True])
async def test_a_loader_adds_tags_that_invalidate_its_value_everywhere(on_servers, many):
    async def load(key):
        return Loaded(1, tags=["of call", "late"])

    async def load_many(keys):
        return {key: await load(key) for key in keys}

    async with on_servers() as here, on_servers() as there:
        for tag in ("of call", "late"):
            if many:
                assert await here.get_or_load_many(["a"], load_many, tags=["of call"]) == {"a": 1}
            else:
                assert await here.get_or_load("a", load, tags=["of call"]) == 1
            while await there.get("a") != 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert (await there.invalidate_tag(tag)).everywhere
            assert await there.get("a") is None
            while here.get_local("a") is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert await here.get("a") is None


async def test_if_a_late_tag_is_invalidated_during_the_load_no_tier_stores_the_value(on_servers):
    async def load(key):
        assert (await there.invalidate_tag("late")).everywhere
        return Loaded(1, tags=["late"])

    async with on_servers() as here, on_servers() as there:
        assert await here.get_or_load("a", load) == 1
        await asyncio.sleep(0)
    async with on_servers() as cache:
        assert await cache.get("a") is None


@pytest.mark.parametrize("options", [{}, {"lock_ttl": 10}])
async def test_a_value_that_is_not_kept_goes_to_the_callers_of_its_load_only(clock, options):
    server = MemoryServer(clock)
    async with memory_cache(clock, server=server, **grouped(options)) as cache:
        load = returns(Loaded(1, keep=False), 2)
        assert await asyncio.gather(*(cache.get_or_load("a", load) for _ in range(3))) == [1, 1, 1]
        assert cache.get_local("a") is None
        assert len(server) == 0
        assert await cache.get_or_load("a", load) == 2


async def test_what_is_not_kept_leaves_the_former_value(clock):
    async with memory_cache(clock, options=EntryOptions(ttl=60, stale_ttl=600, soft_timeout=None)) as cache:
        await cache.set("a", 0)
        clock.advance(60)
        assert await cache.get_or_load("a", returns(Loaded(1, keep=False))) == 1
        assert await cache.get_or_load("a", returns(OSError())) == 0


async def test_a_loaded_none_may_be_negative(clock):
    async with memory_cache(clock, options=EntryOptions(negative_ttl=5)) as cache:
        assert await cache.get_or_load("a", returns(Loaded(None, tags=["t"]))) is None
        assert cache.stats().negative_entries == 1
        await cache.invalidate_tag("t")
        assert cache.stats().negative_entries == 0


async def test_a_decorated_function_may_return_loaded(clock):
    async with memory_cache(clock) as cache:

        @cache.cached(key=str)
        async def function(number: int) -> int | Loaded[int]:
            return Loaded(number, ttl=5)

        assert await function(1) == 1
        clock.advance(5)
        assert await function.peek(1) is None
    assert codec_of_results(function.__wrapped__).declared is int


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ttl": -1}, ValueError, "ttl must be greater than 0, got -1"),
        ({"ttl": "1"}, TypeError, "ttl must be "),
        ({"tags": "a"}, TypeError, "tags must be a sequence of str"),
        ({"tags": ["\ud800"]}, ValueError, "tags must not contain lone surrogates"),
        ({"tags": None}, TypeError, "tags must be a sequence of str, got None"),
        ({"keep": "no"}, TypeError, "keep must be a bool"),
        ({"value": Loaded(1)}, TypeError, "value must not be a Loaded, got Loaded"),
    ],
)
def test_the_decisions_of_a_loader_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        Loaded(**{"value": 1} | options)


async def test_an_object_of_a_subclass_of_loaded_decides_too(clock):
    class ForFiveSeconds(Loaded):
        def __init__(self, value):
            super().__init__(value, ttl=5)

    async with memory_cache(clock) as cache:
        assert await cache.get_or_load("a", returns(ForFiveSeconds(1))) == 1
        clock.advance(5)
        assert await cache.get("a") is None

        async def function() -> ForFiveSeconds:
            return ForFiveSeconds(2)

        assert await cache.cached()(function)() == 2
    assert codec_of_results(function) is None


# The previous value


async def test_a_loader_with_a_second_parameter_gets_what_it_replaces(clock):
    seen = []

    async def load(key, previous):
        seen.append(previous)
        return len(seen)

    async with memory_cache(clock, options=EntryOptions(ttl=60, stale_ttl=600, soft_timeout=None)) as cache:
        assert await cache.get_or_load("a", load) == 1
        clock.advance(90)
        assert await cache.get_or_load("a", load) == 2
        clock.advance(10)
        assert await cache.get_or_load("a", load, refresh=True) == 3
        await cache.delete("a")
        assert await cache.get_or_load("a", load) == 4
        assert await cache.get_or_load("a", load, bypass=True) == 5
    assert seen == [None, Previous(1, 90), Previous(2, 10), None, None]


@pytest.mark.parametrize("refresh", [False, True])
async def test_the_previous_value_may_come_from_a_lower_tier(clock, refresh):
    server = MemoryServer(clock)
    options = {"server": server, "ttl": 60, "stale_ttl": 600, "soft_timeout": None}
    async with memory_cache(clock, **grouped(options)) as one, memory_cache(clock, **grouped(options)) as two:
        await one.set_many({"a": 1, "b": 2})
        clock.advance(7 if refresh else 70)

        async def load(keys, previous):
            assert previous == {"a": Previous(1, clock.now - 1_000.0), "b": Previous(2, clock.now - 1_000.0)}
            return {"a": UNCHANGED, "b": 3}

        assert await two.get_or_load_many(["a", "b", "c"], load, refresh=refresh) == {"a": 1, "b": 3, "c": None}


async def test_a_due_value_is_the_previous_one_of_its_refresh(clock, settle):
    seen = []

    async def load(key, previous):
        seen.append(previous)
        return UNCHANGED

    async with memory_cache(clock, options=EntryOptions(ttl=100, refresh_ahead=0.5)) as cache:
        await cache.set("a", 1)
        clock.advance(60)
        assert await cache.get_or_load("a", load) == 1
        await settle()
        clock.advance(45)
        assert await cache.get("a") == 1, "the load has given it a new ttl"
    assert seen == [Previous(1, 60)]


async def test_an_unchanged_value_keeps_its_tags_and_gets_a_new_ttl(on_servers):
    async with on_servers(ttl=0.001, stale_ttl=60, soft_timeout=None) as here:
        await here.set("a", 1, tags=["x"])
        await asyncio.sleep(0.002)
        assert await here.get_or_load("a", returns(UNCHANGED), ttl=60, tags=["y"]) == 1
    for tag in ("y", "x"):
        async with on_servers() as there:
            assert await there.get("a") == 1
            await there.invalidate_tag(tag)
            assert await there.get("a") is None
            await there.get_or_load("a", returns(Loaded(1, tags=["x"])))


@pytest.mark.parametrize("bypass", [False, True])
async def test_unchanged_without_a_previous_value_is_an_error(clock, bypass):
    async with memory_cache(clock) as cache:
        with pytest.raises(LoadError, match="loader returned UNCHANGED for 'a', but there is no previous value"):
            await cache.get_or_load("a", returns(UNCHANGED), bypass=bypass)


async def one(key):
    pass


async def two(key, previous):
    pass


class Loaders:
    async def one(self, key):
        pass

    async def two(self, key, previous):
        pass

    async def __call__(self, key, previous):
        pass


@pytest.mark.parametrize(
    ("loader", "takes"),
    [
        (one, False),
        (two, True),
        (lambda key, session=None: one(key), False),
        (lambda key, *rest: one(key), False),
        (lambda key, *, option: one(key), False),
        (lambda key, previous, option=None: one(key), True),
        (Loaders().one, False),
        (Loaders().two, True),
        (Loaders(), True),
        (functools.partial(two, "key"), False),
        (functools.partial(Loaders.two, None), True),
        (AsyncMock(), False),
        (dict, False),
    ],
)
def test_the_parameters_of_a_loader_decide_whether_it_gets_the_previous_value(loader, takes):
    assert Source(loader, None, ()).takes_previous is takes
    assert Source.of_one("key", loader, None, (), None).takes_previous is takes


def test_unchanged_is_one_object():
    assert pickle.loads(pickle.dumps(UNCHANGED)) is UNCHANGED
    assert repr(UNCHANGED) == "UNCHANGED"


# Per call


async def test_refresh_loads_although_there_is_a_fresh_value(open_cache, clock):
    tier = MemoryTier("l2", clock)
    cache = await open_cache(tier)
    await cache.set_many({"a": 1, "b": 1})
    assert await cache.get_or_load("a", returns(2), refresh=True) == 2
    assert await cache.get("a") == 2
    assert await cache.get_or_load_many(
        ["a", "b"], lambda keys: returns(dict.fromkeys(keys, 3))(None), refresh=True
    ) == {
        "a": 3,
        "b": 3,
    }
    assert await cache.get_many(["a", "b"]) == {"a": 3, "b": 3}


async def test_if_a_refresh_fails_the_former_value_stays(clock):
    async with memory_cache(clock) as cache:
        await cache.set("a", 1)
        with pytest.raises(OSError, match="down"):
            await cache.get_or_load("a", returns(OSError("down")), refresh=True)
        assert await cache.get("a") == 1


async def test_bypass_neither_reads_nor_stores(clock):
    server = MemoryServer(clock)
    async with memory_cache(clock, server=server, options=EntryOptions(negative_ttl=5)) as cache:
        await cache.set("a", 1)
        calls = server.calls.total()
        assert await cache.get_or_load("a", returns(Loaded(2)), bypass=True) == 2
        assert await cache.get_or_load("a", returns(None), bypass=True) is None
        assert await cache.get_or_load_many(["a", "b"], lambda keys: returns({"a": 3})(None), bypass=True) == {
            "a": 3,
            "b": None,
        }
        assert server.calls.total() == calls
        assert await cache.get("a") == 1
        assert cache.stats().loads == 3
        with pytest.raises(OSError, match="down"):
            await cache.get_or_load("a", returns(OSError("down")), bypass=True)
        with pytest.raises(TypeError, match="must be a coroutine function"):
            await cache.get_or_load("a", lambda key: 1, bypass=True)
        assert (cache.stats().loads, cache.stats().load_errors) == (5, 2)


async def test_the_callers_of_a_bypass_do_not_share_a_load(clock):
    async with memory_cache(clock) as cache:
        load = returns(1, 2)
        calls = (cache.get_or_load("a", load, bypass=True) for _ in range(2))
        assert sorted(await asyncio.gather(*calls)) == [1, 2]
