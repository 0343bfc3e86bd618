"""Concurrent calls: when all have ended, no tier holds a value older than the last one written."""

import asyncio
import random

import pytest
from memory_tier import MemoryTier
from msgspec import structs

KEYS = ["a", "b", "c"]


class SlowTier(MemoryTier):
    """Answer after a random number of iterations of the event loop."""

    def __init__(self, name, clock, chance):
        super().__init__(name, clock)
        self.chance = chance

    async def _answer(self, kind, keys):
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)


class Origin:
    """A source of values whose version grows with each write; a load reads it at a random moment."""

    def __init__(self, chance):
        self.chance = chance
        self.versions = dict.fromkeys(KEYS, 0)

    async def load(self, key):
        for _ in range(self.chance.randrange(8)):
            await asyncio.sleep(0)
        version = self.versions[key]
        for _ in range(self.chance.randrange(8)):
            await asyncio.sleep(0)
        if self.chance.random() < 0.1:
            raise OSError("down")
        return version

    async def load_many(self, keys):
        return {key: await self.load(key) for key in keys}


async def act(cache, origin, clock, chance):
    """Make one random call."""
    key = chance.choice(KEYS)
    kind = chance.randrange(10)
    if kind == 0:
        origin.versions[key] += 1
        await cache.set(key, origin.versions[key], tags=["t"])
    elif kind == 1:
        origin.versions[key] += 1
        await cache.delete(key)
    elif kind == 2:
        for name in KEYS:
            origin.versions[name] += 1
        await (cache.invalidate_tag("t") if chance.random() < 0.5 else cache.clear())
    elif kind == 3:
        await cache.get_or_load_many(chance.sample(KEYS, 2), origin.load_many, tags=["t"])
    elif kind == 4:
        await cache.get_many(KEYS)
    elif kind == 5:
        clock.advance(chance.choice([0, 0, 5]))
    elif kind < 8:
        await cache.get(key)
    else:
        await cache.get_or_load(key, origin.load, tags=["t"])


@pytest.mark.parametrize("write", ["set", "delete", "clear", "invalidate_tag"])
@pytest.mark.parametrize("stale_ttl", [0, 60])
async def test_a_caller_after_a_write_does_not_get_what_an_earlier_read_found(
    open_cache, l2, clock, settle, write, stale_ttl
):
    await (await open_cache(l2, ttl=60)).set("a", "old", tags=["t"])
    l2.data["test", "a"] = structs.replace(l2["a"], kept_until=clock.now + 1_000)
    clock.advance(61 if stale_ttl else 40)
    cache = await open_cache(l2, ttl=60, stale_ttl=stale_ttl, soft_timeout=0, refresh_ahead=0.5)
    loaded = asyncio.Event()

    async def load(key):
        await loaded.wait()
        return "new"

    l2.gate.clear()
    before = asyncio.create_task(cache.get_or_load("a", load))
    await settle()
    changed = asyncio.create_task(
        {
            "set": lambda: cache.set("a", "newest"),
            "delete": lambda: cache.delete("a"),
            "clear": cache.clear,
            "invalidate_tag": lambda: cache.invalidate_tag("t"),
        }[write]()
    )
    await settle()
    l2.gate.set()
    await changed
    after = asyncio.create_task(cache.get_or_load("a", load))
    await settle()
    loaded.set()
    assert await after == ("newest" if write == "set" else "new")
    assert await before in {"old", await after}


@pytest.mark.parametrize("seed", range(40))
async def test_when_all_calls_have_ended_no_tier_holds_a_superseded_value(open_cache, clock, settle, seed):
    chance = random.Random(seed)
    l2, l3 = SlowTier("l2", clock, chance), SlowTier("l3", clock, chance)
    # An L1 of two entries for three keys evicts and demotes constantly.
    cache = await open_cache(
        l2, l3, size=2, ttl=60, stale_ttl=30, promotion_threshold=1, refresh_ahead=0.5, retry_after=0, negative_ttl=9
    )
    origin = Origin(chance)

    async def caller():
        for _ in range(30):
            task = asyncio.create_task(act(cache, origin, clock, chance))
            if chance.random() < 0.15:
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(caller() for _ in range(8)))
    for _ in range(5):
        await settle()
    for key in KEYS:
        held = cache.get_local(key)
        assert held in (None, origin.versions[key])
        for tier in (l2, l3):
            if key in tier:
                assert tier[key].value == origin.versions[key]
    assert not cache._lower_tiers.ordering._keys.in_flight
    assert cache.stats().loading == 0
    assert set(cache._l1._entries) >= set(cache._l1.lru.keys())
