"""The common read, which `ReadPath` shortens, gives the same answers and counts as any other read."""

import asyncio
import random
import secrets
import time

import pytest
from grouped import grouped

from acgsperf import LRUCache
from acgsperf.cache import TieredCache
from acgsperf.errors import CacheError
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

KEYS = ["a", "b", "c", "d", "e"]


class ShiftedClock:
    """The monotonic clock, which a test may set ahead."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead


@pytest.fixture
async def open_on(servers):
    """Open caches with a namespace of their own, whose reads are common or never so."""
    caches = []

    async def opened(*, common, clock=time.monotonic, size=3, l3=True, **options):
        cache = TieredCache(
            LRUCache(size, clock=None if clock is time.monotonic else clock),
            RedisTier(servers.redis_url, deadline=5),
            PostgresTier(servers.database_url, deadline=5) if l3 else None,
            **grouped({"namespace": f"test-{secrets.token_hex(4)}", "deadline": 10, "clock": clock} | options),
        )
        caches.append(await cache.open())
        assert cache._read_path.enabled
        cache._read_path.enabled = common
        return cache

    yield opened
    for cache in caches:
        await cache.clear()
        await cache.close()


def counts(cache):
    """Everything that is counted, without durations and what depends on the moment of background work."""
    stats = cache.stats()
    names = ("loads", "missed", "joined", "refreshes", "stale_served", "negative_hits", "promotions", "deadlines")
    tiers = [(tier.hits, tier.misses, tier.errors, tier.corrupt) for tier in (stats.l2, stats.l3) if tier is not None]
    hits = sorted(cache._promotion.hits.items())
    return stats.l1, {name: getattr(stats, name) for name in names}, tiers, hits


def random_call(chance, expiring):
    """Return a function that makes the same call of any cache, and returns its answer."""
    key, kind, value = chance.choice(KEYS), chance.random(), chance.randrange(1_000)
    keys = [chance.choice(KEYS) for _ in range(chance.randrange(1, 6))]
    answered = chance.choice([None, value, value])

    async def load(key):
        return answered

    async def some(cache):
        return await asyncio.gather(*(cache.get(key, "missed") for key in keys))

    async def drop(cache):
        # As if L1 were new, so that the lower tiers answer.
        return cache._l1.clear()

    async def change_threshold(cache):
        cache.promotion_threshold = 1 + value % 5

    calls = {
        0.45: lambda cache: cache.get(key, "missed"),
        0.60: some,
        0.66: lambda cache: cache.get(key),
        0.72: lambda cache: cache.set(key, value, tags=["t"]),
        0.76: lambda cache: cache.set(key, None if value % 2 else value),
        0.79: lambda cache: cache.delete(key),
        0.81: lambda cache: cache.expire_now(key) if expiring else cache.get(key),
        0.82: lambda cache: cache.invalidate_tag("t"),
        0.84: change_threshold,
        0.92: lambda cache: cache.get_or_load(key, load, tags=["t"]),
        1.00: drop,
    }
    return next(call for limit, call in calls.items() if kind < limit)


async def settle(cache):
    """Wait until what was loaded and copied is stored."""
    async with asyncio.timeout(10):
        for _ in range(12):
            await asyncio.sleep(0)
        for tier, queue in zip(cache._lower_tiers.tiers, cache._lower_tiers.queues, strict=True):
            while queue._stores or queue._demotions or tier._pending_writes:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(6))
async def test_common_and_other_reads_give_the_same_answers_and_counts(open_on, seed):
    chance = random.Random(seed)
    # Every other time with the clock that the compiled path reads itself.
    clock = ShiftedClock() if seed % 2 else time.monotonic
    options = {"clock": clock, "l3": seed % 3 != 0, "ttl": 60, "stale_ttl": 30, "negative_ttl": 9}
    # Without a backplane, because its lease may end at any moment on a busy machine.
    options |= {"demotion": False, "backplane": None}
    caches = [await open_on(common=common, **options) for common in (True, False)]
    for _ in range(120):
        call = random_call(chance, expiring=seed % 2)
        answers = []
        for cache in caches:
            answers.append(await call(cache))
            await settle(cache)
        assert answers[0] == answers[1]
        assert counts(caches[0]) == counts(caches[1])
        if seed % 2:
            # More than the doubt about the server's clock.
            clock.ahead += chance.choice([0.5] * 9 + [30])
    for cache in caches:
        cache.remove_expired()
    assert caches[0].stats().stale_entries == caches[1].stats().stale_entries
    assert caches[0].stats().l2.hits > 5


@pytest.mark.parametrize("value", [None, 0, False, "", [], b"\x00"], ids=repr)
async def test_any_value_is_read(open_on, value):
    cache = await open_on(common=True)
    await cache.set("key", value)
    for _ in range(3):
        cache._l1.clear()
        assert await cache.get("key", "missed") == value
    cache._l1.clear()
    assert await cache.get("other", "missed") == "missed"


async def test_a_key_that_is_no_str_is_an_error(open_on):
    for cache in (await open_on(common=True), await open_on(common=False)):
        for key in (None, 7, b"key"):
            with pytest.raises(TypeError, match="key"):
                await cache.get(key)


async def test_a_closed_cache_reads_nothing(open_on):
    cache = await open_on(common=True)
    await cache.close()
    with pytest.raises(CacheError, match="not open"):
        await cache.get("key")
    await cache.open()
    assert await cache.get("key") is None


@pytest.mark.parametrize("common", [True, False])
async def test_a_cache_that_is_open_in_another_event_loop_says_so(open_on, common):
    cache = await open_on(common=common)

    def elsewhere():
        return asyncio.run(cache.get("key"))

    with pytest.raises(CacheError, match="open in another event loop"):
        await asyncio.to_thread(elsewhere)


async def test_cancelling_one_of_two_callers_of_a_key_does_not_disturb_the_other(open_on):
    cache = await open_on(common=True)
    await cache.set("key", 1)
    cache._l1.clear()
    one, other = (asyncio.create_task(cache.get("key")) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    assert await other == 1
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_what_a_common_read_finds_is_not_kept_over_a_write(open_on):
    cache = await open_on(common=True, promotion_threshold=1)
    await cache.set("key", "old")
    cache._l1.clear()
    read = asyncio.create_task(cache.get("key"))
    await asyncio.sleep(0)
    await cache.delete("key")
    assert await read in ("old", None)
    assert cache.get_local("key") is None
    assert await cache.get("key") is None
