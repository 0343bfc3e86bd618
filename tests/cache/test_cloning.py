"""`auto_clone`: callers get copies, and what they change is changed for nobody else."""

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from acgsperf import UNCHANGED, EntryOptions, Loaded, LRUCache, TieredCache


class Point(msgspec.Struct):
    x: int
    tags: list[str] = []


@dataclasses.dataclass
class Basket:
    items: list[Any]


class Opaque:
    """The lower tiers do not keep it."""

    def __init__(self):
        self.items = []


VALUES = {
    "json": (lambda: {"a": [1, {"b": 2}]}, lambda value: value["a"][1].update(b=3)),
    "list": (lambda: [1, [2]], lambda value: value[1].append(3)),
    "tuple": (lambda: ([1],), lambda value: value[0].append(2)),
    "set": (lambda: {1}, lambda value: value.add(2)),
    "keys": (lambda: {(1, "a"): [b"x"], None: []}, lambda value: value[None].append(1)),
    "object": (lambda: Basket([Opaque]), lambda value: value.items.clear()),
    "big": (lambda: [2**70], lambda value: value.clear()),
}
READS = {
    "get": lambda cache: cache.get("k"),
    "get_many": lambda cache: _only(cache.get_many(["k"])),
    "get_or_load": lambda cache: cache.get_or_load("k", _fails),
    "get_or_load_many": lambda cache: _only(cache.get_or_load_many(["k"], _fails)),
    "get_entry": lambda cache: _value(cache.get_entry("k")),
    "get_local": lambda cache: _awaited(cache.get_local("k")),
}


async def _only(found):
    return (await found)["k"]


async def _value(found):
    return (await found).value


async def _awaited(value):
    return value


async def _fails(key):
    raise AssertionError(key)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("value", VALUES)
async def test_callers_do_not_change_what_the_cache_has(open_cache, value, read):
    cache = await open_cache(auto_clone=True)
    make, change = VALUES[value]
    given = make()
    await cache.set("k", given)
    change(given)
    found = await READS[read](cache)
    assert (type(found), found) == (type(make()), make())
    change(found)
    assert await cache.get("k") == make()


async def test_by_default_callers_get_the_value_itself(open_cache):
    cache = await open_cache()
    value = [1]
    await cache.set("k", value)
    assert await cache.get("k") is value
    assert cache.get_local("k") is value


@pytest.mark.parametrize("lower", [False, True])
async def test_callers_of_one_load_get_copies_of_their_own(open_cache, l2, lower):
    cache = await open_cache(l2 if lower else None, auto_clone=True, stale_ttl=100, ttl=10)
    state = {"n": [1]}

    async def load(key):
        await asyncio.sleep(0)
        return state

    async def load_many(keys):
        return dict.fromkeys(keys, state)

    found = await asyncio.gather(*(cache.get_or_load("k", load) for _ in range(3)))
    found += [(await cache.get_or_load_many(["m"], load_many))["m"]]
    for one in found:
        assert one == {"n": [1]}
        one["n"].append(2)
    assert state == {"n": [1]}
    state["n"].append(3)
    assert [await cache.get("k"), await cache.get("m")] == [{"n": [1]}] * 2


async def test_a_loader_may_change_the_previous_value(open_cache, clock):
    cache = await open_cache(auto_clone=True, ttl=10, stale_ttl=100, soft_timeout=None)
    await cache.set("k", [1])
    clock.advance(20)

    async def load(key, previous):
        previous.value.append(2)
        if len(seen) == 1:
            raise ValueError(key)
        seen.append(previous.value)
        return UNCHANGED if len(seen) == 1 else Loaded(previous.value, ttl=5)

    seen = []
    assert await cache.get_or_load("k", load) == [1]
    clock.advance(20)
    assert await cache.get_or_load("k", load) == [1]


async def test_a_typed_value_is_cloned_as_its_type(open_cache):
    cache = await open_cache(auto_clone=True, value_type=Point)
    await cache.set("k", Point(1, ["a"]))
    first, second = await cache.get("k"), await cache.get("k")
    assert first == second == Point(1, ["a"])
    assert first is not second
    assert first.tags is not second.tags


async def test_a_decorated_function_returns_copies(open_cache):
    cache = await open_cache(auto_clone=True)

    @cache.cached()
    async def basket(number: int) -> Basket:
        return Basket([number])

    @cache.cached()
    async def opaque() -> Opaque:
        return Opaque()

    for call in (basket, basket.peek, basket.refresh, basket):
        found = await call(7)
        assert found == Basket([7])
        found.items.append(8)
    (await opaque()).items.append(1)
    assert (await opaque()).items == []


async def test_defaults_are_not_copied(open_cache):
    cache = await open_cache(auto_clone=True)
    default = [1]
    assert await cache.get("k", default) is default
    assert cache.get_local("k", default) is default
    assert await cache.get("k") is cache.get_local("k") is None
    await cache.set("n", None)
    assert await cache.get("n", default) is cache.get_local("n", default) is None
    assert await cache.get_entry("k") is None


async def test_a_value_that_cannot_be_copied_is_refused_when_it_is_stored(open_cache):
    cache = await open_cache(auto_clone=True)
    with pytest.raises(TypeError, match="generator"):
        await cache.set("k", (one for one in []))
    assert await cache.get("k") is None


async def test_hits_and_misses_are_counted_once(open_cache):
    cache, plain = await open_cache(auto_clone=True), await open_cache()
    for one in (cache, plain):
        await one.set("k", [1])
        await one.get("k")
        await one.get("m")
        one.get_local("k")
        await one.get_many(["k", "m"])
        await one.get_or_load("k", _fails)
    assert cache.stats().l1 == plain.stats().l1


async def test_times_keep_their_zone_in_l1(open_cache):
    cache = await open_cache(auto_clone=True)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    await cache.set("k", {"at": at})
    assert (await cache.get("k"))["at"] == at


def test_auto_clone_must_be_a_bool():
    with pytest.raises(TypeError, match="auto_clone must be a bool"):
        TieredCache(LRUCache(1), namespace="x", auto_clone="yes", options=EntryOptions(ttl=1))


async def test_values_of_lower_tiers_are_copied_too(open_cache, l2, clock):
    writer, reader = await open_cache(l2), await open_cache(l2, auto_clone=True, promotion_threshold=2)
    await writer.set("k", [1])
    for read in READS.values():
        found = await read(reader)
        assert found in (None, [1])
        if found is not None:
            found.append(2)
    assert l2["k"].value == [1]
