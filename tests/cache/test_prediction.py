"""Prediction in a tiered cache: predicted values are fetched with other reads, and are as right as any read."""

import asyncio
import secrets

import msgspec
import pytest

from acgsperf import AdaptiveCache, EntryOptions, LRUCache, Prediction, weigh_bytes
from acgsperf.cache import TieredCache
from acgsperf.errors import CacheError
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

KEYS = [f"key {number}" for number in range(150)]


@pytest.fixture
async def open_on(servers):
    """Open caches on real servers, with an L1 of 100 entries."""
    caches = []

    async def opened(*, l1=None, l2=True, l3=False, **options):
        cache = TieredCache(
            LRUCache(100) if l1 is None else l1,
            RedisTier(servers.redis_url, deadline=5) if l2 else None,
            PostgresTier(servers.database_url, deadline=5) if l3 else None,
            **{"namespace": f"test-{secrets.token_hex(4)}", "deadline": 10, "prediction": True} | options,
        )
        caches.append(await cache.open())
        return cache

    yield opened
    for cache in caches:
        await cache.clear()
        await cache.close()


def batches_of(tier):
    """Return a list to which the keys of each batch of reads will be added."""
    batches, fetch = [], tier._reads._fetch

    async def noting(keys):
        batches.append(list(keys))
        return await fetch(keys)

    tier._reads._fetch = noting
    return batches


async def learn(cache, values=None, settle=None, **options):
    """Store values, and request the keys in a loop until the cache predicts them."""
    values = values or {key: f"value of {key}" for key in KEYS}
    await cache.set_many(values, **options)
    for _ in range(4):
        for key in values:
            cache._l1.clear()
            await cache.get(key)
            if settle is not None:
                await settle()
    assert cache.stats().prediction.active
    await end_reads(cache)


async def end_reads(cache):
    """Wait for the reads in flight."""
    for _ in range(2):
        await asyncio.gather(*(tier.get("another key") for tier in cache._parts.lower_tiers.tiers))


def forget_values(cache):
    """Drop what this process holds. What was learned stays."""
    cache._l1.clear()
    cache._prefetch._predictor.clear()


async def hold(cache, settle=None):
    """Request a key, and return when the values of the next two are held."""
    forget_values(cache)
    for key in ("key 149", "key 0"):
        await cache.get(key)
        await (end_reads(cache) if settle is None else settle())
    assert cache._prefetch._predictor.keys() == ["key 1", "key 2"]
    assert all(key in cache._prefetch._predictor for key in ("key 1", "key 2"))


async def test_predicted_keys_travel_in_the_batch_of_the_request(open_on):
    cache = await open_on()
    await learn(cache)
    forget_values(cache)
    batches = batches_of(cache._parts.lower_tiers.l2)
    assert await cache.get("key 0") == "value of key 0"
    # The caller and the predicted values have waited for the same reply.
    assert await cache.get("key 1") == "value of key 1"
    assert sorted(batches[0]) == ["key 0", "key 1", "key 2"]
    used = cache.stats().prediction.used
    assert await cache.get("key 2") == "value of key 2"
    assert cache.stats().prediction.used == used + 1


async def test_every_answer_is_right_while_most_are_predicted(open_on):
    cache = await open_on()
    await learn(cache)
    for _ in range(3):
        for key in KEYS:
            assert await cache.get(key) == f"value of {key}"
            # The client needs some time between requests, so that every value arrives in time.
            for _ in range(3):
                await asyncio.sleep(0)
    stats = cache.stats().prediction
    assert stats.used > 200
    assert stats.wasted <= 0.05 * cache.stats().l1.misses


async def test_get_or_load_and_get_many_use_predicted_values(open_on):
    async def load(key):
        raise AssertionError(key)

    cache = await open_on()
    await learn(cache)
    await hold(cache)
    used = cache.stats().prediction.used
    assert await cache.get_or_load("key 1", load) == "value of key 1"
    assert await cache.get_many(["key 2", "unknown"]) == {"key 2": "value of key 2"}
    assert cache.stats().prediction.used == used + 2
    assert cache.stats().loads == 0


async def test_a_call_for_many_keys_predicts_from_the_last_one(open_on):
    cache = await open_on()
    await learn(cache)
    forget_values(cache)
    batches = batches_of(cache._parts.lower_tiers.l2)
    assert len(await cache.get_many(["key 0", "key 1", "key 2"])) == 3
    assert sorted(batches[0]) == sorted(["key 0", "key 1", "key 2", "key 3", "key 4"])


async def test_the_first_request_puts_a_predicted_value_into_l1(open_on):
    cache = await open_on(promotion_threshold=10)
    await learn(cache)
    await hold(cache)
    assert cache.get_local("key 1") is None
    assert await cache.get("key 1") == "value of key 1"
    assert cache.get_local("key 1") == "value of key 1"


@pytest.mark.parametrize("l1", [LRUCache, AdaptiveCache])
async def test_l1_is_smaller_by_what_is_held(open_on, l1):
    cache = await open_on(l1=l1(100))
    await learn(cache)
    await hold(cache)
    assert 95 <= cache.stats().l1.maxsize <= 98
    assert cache.stats().l1.size + cache.stats().prediction.held <= 100
    await cache.close()
    assert cache.stats().l1.maxsize == 100
    assert cache.stats().prediction.held == 0
    await cache.open()


WRITES = {
    "set": (lambda cache: cache.set("key 1", "new"), "new"),
    "delete": (lambda cache: cache.delete("key 1"), None),
    "expire_now": (lambda cache: cache.expire_now("key 1"), None),
    "invalidate_tag": (lambda cache: cache.invalidate_tag("tag"), None),
    "expire_tag_now": (lambda cache: cache.expire_tag_now("tag"), None),
    "clear": (lambda cache: cache.clear(), None),
}


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_supersedes_a_predicted_value(open_on, write):
    cache = await open_on()
    await learn(cache, tags=["tag"])
    await hold(cache)
    change, expected = WRITES[write]
    await change(cache)
    assert await cache.get("key 1") == expected


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_in_flight_supersedes_a_predicted_value(open_on, write):
    cache = await open_on()
    await learn(cache, tags=["tag"])
    await hold(cache)
    change, expected = WRITES[write]
    writing = asyncio.create_task(change(cache))
    await asyncio.sleep(0)
    before = cache.stats().prediction
    answer = await cache.get("key 1")
    after = cache.stats().prediction
    assert after.used + after.wasted == before.used + before.wasted + 1 or answer == expected
    await writing
    assert await cache.get("key 1") == expected


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_of_another_process_supersedes_a_predicted_value(open_on, write):
    cache = await open_on()
    await learn(cache, tags=["tag"])
    other = await open_on(namespace=cache.namespace, prediction=False)
    await hold(cache)
    change, expected = WRITES[write]
    applied = cache.stats().backplane.applied
    await change(other)
    async with asyncio.timeout(10):
        while cache.stats().backplane.applied == applied:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert await cache.get("key 1") == expected


async def request_in_order(cache, loader, rounds):
    """Request the keys in order, and wait each time until what was predicted has arrived."""
    for _ in range(rounds):
        for key in KEYS:
            assert await cache.get_or_load_many([key], loader, ttl=60) == {key: f"value of {key}"}
            await end_reads(cache)
            while (task := cache._prefetch._task or ((loads := cache._prefetch.loads) and loads._task)) is not None:
                await asyncio.wait([task])


def noting_loader(calls):
    async def load(keys):
        calls.append(sorted(keys))
        return {key: f"value of {key}" for key in keys}

    return load


@pytest.mark.parametrize("tiers", [{"l2": True}, {"l2": False, "l3": True}])
async def test_predicted_keys_that_no_tier_has_are_loaded_if_wanted(open_on, tiers):
    cache = await open_on(prediction=Prediction(loads=True), **tiers)
    calls = []
    loader = noting_loader(calls)
    await request_in_order(cache, loader, 4)
    await cache.clear()
    calls.clear()
    before = cache.stats().prediction
    await request_in_order(cache, loader, 1)
    stats = cache.stats().prediction
    # Nearly every key was loaded before its request. The last ones predict the first ones again.
    loaded = [key for keys in calls for key in keys]
    assert set(loaded) == set(KEYS)
    assert len(loaded) <= len(KEYS) + 4
    assert stats.loaded > 100
    assert stats.used - before.used > 100
    assert stats.wasted - before.wasted < 10


async def test_predicted_keys_are_not_loaded_by_default(open_on):
    cache = await open_on()
    calls = []
    await request_in_order(cache, noting_loader(calls), 4)
    await cache.clear()
    calls.clear()
    await request_in_order(cache, noting_loader(calls), 1)
    assert [keys for keys in calls if len(keys) > 1] == []
    assert cache.stats().prediction.loaded == 0


async def test_a_loader_that_fails_for_predicted_keys_harms_no_call(open_on):
    cache = await open_on(prediction=Prediction(loads=True))
    wanted = set()

    async def load(keys):
        if not wanted.issuperset(keys):
            raise ValueError("not requested")
        return {key: f"value of {key}" for key in keys}

    for _ in range(3):
        await cache.clear()
        for key in KEYS:
            wanted.add(key)
            assert await cache.get_or_load_many([key], load, ttl=60) == {key: f"value of {key}"}
            await end_reads(cache)
            while (task := cache._prefetch._task or cache._prefetch.loads._task) is not None:
                await asyncio.wait([task])
            wanted.discard(key)


async def test_with_prediction_a_value_is_promoted_at_its_first_hit(open_on):
    assert (await open_on()).promotion_threshold == 1
    assert (await open_on(prediction=False)).promotion_threshold == 3
    assert (await open_on(promotion_threshold=3)).promotion_threshold == 3
    # There is no room for a predicted value, so that this cache does not predict.
    assert (await open_on(l1=LRUCache(10))).promotion_threshold == 3


async def test_a_value_that_a_write_has_superseded_counts_as_useless(open_on):
    cache = await open_on()
    await learn(cache)
    await hold(cache)
    before = cache.stats().prediction
    await cache.set("key 1", "new")
    cache._l1.clear()
    assert await cache.get("key 1") == "new"
    after = cache.stats().prediction
    assert (after.used, after.wasted, after.late) == (before.used, before.wasted + 1, before.late)


async def test_a_value_that_was_read_during_a_write_is_not_used(open_on):
    cache = await open_on()
    await learn(cache)
    forget_values(cache)
    reading = asyncio.create_task(cache.get("key 0"))
    await asyncio.sleep(0)
    await cache.set("key 1", "new")
    await reading
    assert await cache.get("key 1") == "new"
    cache._l1.clear()
    assert await cache.get("key 1") == "new"


async def test_values_of_l3_are_fetched_and_copied_to_l2(open_on):
    cache = await open_on(l3=True)
    await learn(cache)
    await hold(cache)
    l2 = cache._parts.lower_tiers.l2
    await l2.clear()
    await hold(cache)
    assert await cache.get("key 1") == "value of key 1"
    async with asyncio.timeout(10):
        while await l2.get("key 2") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_cache_with_l3_only_predicts(open_on):
    cache = await open_on(l2=False, l3=True)
    await learn(cache)
    forget_values(cache)
    batches = batches_of(cache._parts.lower_tiers.l3)
    await cache.get("key 0")
    assert sorted(batches[0]) == ["key 0", "key 1", "key 2"]
    assert await cache.get("key 1") == "value of key 1"


async def test_what_is_in_no_tier_counts_as_useless(open_on):
    cache = await open_on()
    await learn(cache)
    forget_values(cache)
    await cache._parts.lower_tiers.l2.delete_many(["key 1"])
    cache._l1.clear()
    before = cache.stats().prediction
    await cache.get("key 0")
    assert cache.stats().prediction.wasted == before.wasted + 1
    assert await cache.get("key 1") is None


async def test_predicted_values_have_a_byte_budget(open_on):
    cache = await open_on()
    await learn(cache, dict.fromkeys(KEYS, "x" * 40_000))
    forget_values(cache)
    batches = batches_of(cache._parts.lower_tiers.l2)
    # Two values would be larger than the budget of 64 KiB.
    await cache.get("key 0")
    assert sorted(batches[0]) == ["key 0", "key 1"]


async def test_a_value_that_exceeds_the_budget_alone_is_fetched_once(open_on):
    cache = await open_on()
    await learn(cache)
    await cache.set("key 1", "x" * 100_000)
    forget_values(cache)
    batches = batches_of(cache._parts.lower_tiers.l2)
    await cache.get("key 0")
    assert "key 1" in batches[0]
    assert "key 1" not in cache._prefetch._predictor
    cache._prefetch._typical_bytes = 100.0
    forget_values(cache)
    await cache.get("key 149")
    await cache.get("key 0")
    assert not any("key 1" in batch for batch in batches[1:])


async def test_prediction_can_be_switched_off_and_on(open_on):
    cache = await open_on()
    await learn(cache)
    await hold(cache)
    assert cache.predicts is True
    cache.predicts = False
    before = cache.stats().prediction
    for key in KEYS:
        assert await cache.get(key) == f"value of {key}"
    assert cache.stats().prediction == before
    cache.predicts = True
    await hold(cache)
    with pytest.raises(TypeError, match="predicts must be a bool, got 1"):
        cache.predicts = 1


async def test_without_prediction_there_is_none(open_on):
    cache = await open_on(prediction=False)
    assert cache.stats().prediction is None
    assert cache.predicts is False
    cache.predicts = False
    with pytest.raises(CacheError, match="cannot predict: it was made without prediction"):
        cache.predicts = True


async def test_there_is_no_prediction_without_tiers_to_ask_or_room_for_a_value(open_cache, l2):
    for cache in (await open_cache(prediction=True), await open_cache(l2, size=19, prediction=True)):
        await cache.get("key")
        assert cache.stats().prediction is None


async def test_a_weight_limits_what_is_held(open_on):
    def weigher(key, value):
        return len(value)

    cache = await open_on(l1=AdaptiveCache(maxweight=20_000, weigher=weigher))
    # 5 % of the weight are shared by at most 100 values: 10 for each.
    await learn(cache, dict.fromkeys(KEYS, "short"))
    await cache.set("key 1", "x" * 11)
    forget_values(cache)
    await cache.get("key 0")
    assert await cache.get("key 2") == "short"
    assert "key 1" not in cache._prefetch._predictor
    assert cache.stats().l1.maxweight == 20_000


async def test_a_key_of_another_type_is_not_predicted(open_on):
    class Text(str):
        __slots__ = ()

    cache = await open_on()
    await cache.set("key", 1)
    cache._l1.clear()
    assert await cache.get(Text("key")) == 1


class Point(msgspec.Struct):
    x: int


POINTS = {key: Point(number) for number, key in enumerate(KEYS)}


@pytest.mark.parametrize("l1", [{}, {"maxweight": 100_000, "weigher": lambda key, point: len(key) + point.x}])
async def test_predicted_values_have_the_declared_type(open_on, l1):
    cache = await open_on(l1=LRUCache(100, **l1), value_type=Point)
    await learn(cache, POINTS)
    used = cache.stats().prediction.used
    await hold(cache)
    batches = batches_of(cache._parts.lower_tiers.l2)
    assert await cache.get("key 1") == Point(1)
    assert not any("key 1" in batch for batch in batches)
    assert cache.get_local("key 1") == Point(1)
    assert await cache.get_many(["key 2", "unknown"]) == {"key 2": Point(2)}
    await hold(cache)
    assert await cache.get_or_load("key 1", refuse) == Point(1)
    assert await cache.get_or_load_many(["key 2"], refuse) == {"key 2": Point(2)}
    assert cache.stats().prediction.used == used + 4


async def refuse(keys):
    raise AssertionError(keys)


async def test_a_predicted_value_that_has_not_the_declared_type_is_a_miss_and_counted_once(open_on):
    cache = await open_on(value_type=Point)
    await learn(cache, POINTS)
    other = await open_on(namespace=cache.namespace, prediction=False)
    applied = cache.stats().backplane.applied
    await other.set("key 1", "no point")
    async with asyncio.timeout(10):
        while cache.stats().backplane.applied == applied:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await hold(cache)
    corrupt = cache.stats().l2.corrupt
    assert await cache.get("key 1") is None
    assert cache.stats().l2.corrupt == corrupt + 1

    async def load(key):
        return Point(7)

    # The value was useless. Useless fetches are limited to a share of the requests.
    for _ in range(100):
        cache.get_local("another key")
    await hold(cache)
    assert await cache.get_or_load("key 1", load) == Point(7)


async def test_a_predicted_value_of_a_declared_type_is_a_miss_for_a_caller_without_the_type(open_on):
    cache = await open_on()
    await learn(cache)
    other = await open_on(namespace=cache.namespace, prediction=False, value_type=Point)
    applied = cache.stats().backplane.applied
    await other.set("key 1", Point(1))
    async with asyncio.timeout(10):
        while cache.stats().backplane.applied == applied:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await hold(cache)
    assert await cache.get("key 1") is None


async def test_predicted_values_of_a_declared_type_are_copied_from_l3_to_l2(open_on):
    cache = await open_on(l3=True, value_type=Point)
    await learn(cache, POINTS)
    await hold(cache)
    l2 = cache._parts.lower_tiers.l2
    await l2.clear()
    await hold(cache)
    assert await cache.get("key 1") == Point(1)
    async with asyncio.timeout(10):
        while (entry := await l2.get("key 2")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await cache._parts.lower_tiers.l3.clear()
    forget_values(cache)
    assert entry.tags == ()
    assert await cache.get("key 2") == Point(2)


@pytest.mark.parametrize("weigher", [weigh_bytes, lambda key, value: 1])
async def test_a_decorated_function_returns_predicted_results_with_its_annotated_type(open_on, weigher):
    cache = await open_on(l1=LRUCache(100, maxweight=1_000_000, weigher=weigher))
    calls = []

    @cache.cached(key=lambda number: f"point {number}")
    async def point(number: int) -> Point:
        calls.append(number)
        return Point(number)

    for _ in range(4):
        for number in range(150):
            cache._l1.clear()
            assert await point(number) == Point(number)
    assert cache.stats().prediction.active
    assert calls == [*range(150)]
    for ask in (point, point.peek):
        await end_reads(cache)
        forget_values(cache)
        for number in (149, 0):
            assert await ask(number) == Point(number)
            await end_reads(cache)
        batches = batches_of(cache._parts.lower_tiers.l2)
        assert await ask(1) == Point(1)
        # A weigher of the user's own may not know what the tiers have.
        assert any("point 1" in batch for batch in batches) is (weigher is not weigh_bytes)
        assert await ask(2) == Point(2)
    assert calls == [*range(150)]


# With a clock that the test advances


async def test_any_tier_can_be_asked(open_cache, l2, l3, settle):
    cache = await open_cache(l2, l3, prediction=True)
    await learn(cache, settle=settle)
    await hold(cache, settle)
    used = cache.stats().prediction.used
    assert await cache.get("key 1") == "value of key 1"
    assert cache.stats().prediction.used == used + 1
    l2.lose(*KEYS)
    await hold(cache, settle)
    assert await cache.get("key 2") == "value of key 2"


async def test_a_value_is_not_used_after_its_time(open_cache, l2, clock, settle):
    cache = await open_cache(l2, prediction=True, ttl=60)
    await learn(cache, settle=settle)
    await hold(cache, settle)
    clock.advance(60)
    assert await cache.get("key 1") is None


async def test_a_value_is_verified_after_the_ttl_of_l1(open_cache, l2, clock, settle):
    cache = await open_cache(l2, prediction=True, ttl=600, l1_ttl=10, promotion_threshold=1)
    await learn(cache, settle=settle)
    await hold(cache, settle)
    clock.advance(8)
    assert await cache.get("key 1") == "value of key 1"
    clock.advance(1)
    assert cache.get_local("key 1") == "value of key 1"
    # The ttl has begun when the value arrived, not when it was requested.
    clock.advance(1)
    assert cache.get_local("key 1") is None
    l2.calls.clear()
    assert await cache.get("key 2") == "value of key 2"
    assert ("get", ("key 2",)) in l2.calls


async def test_a_gap_or_silence_of_the_backplane_supersedes_predicted_values(open_cache, l2, settle, clock):
    cache = await open_cache(l2, prediction=True)
    await learn(cache, settle=settle)
    await hold(cache, settle)
    cache._parts.listener.missed()
    l2.calls.clear()
    assert await cache.get("key 1") == "value of key 1"
    assert ("get", ("key 1",)) in l2.calls
    await settle()
    await hold(cache, settle)
    cache._l1.answer_until(clock() - 1)
    l2.calls.clear()
    assert await cache.get("key 2") == "value of key 2"
    assert ("get", ("key 2",)) in l2.calls
    cache._l1.answer_until(float("inf"))


async def test_the_options_of_the_call_decide_whether_a_predicted_value_is_due_for_refresh(
    open_cache, l2, clock, settle
):
    cache = await open_cache(l2, prediction=True, ttl=100)
    await learn(cache, settle=settle)
    started = asyncio.Event()

    async def load(key):
        started.set()
        return "new"

    await hold(cache, settle)
    clock.advance(60)
    assert await cache.get_or_load("key 1", load, options=EntryOptions(refresh_ahead=0.9)) == "value of key 1"
    await settle()
    assert not started.is_set()
    assert await cache.get_or_load("key 2", load, options=EntryOptions(refresh_ahead=0.5)) == "value of key 2"
    await settle()
    assert started.is_set()
    assert await cache.get("key 2") == "new"
    started.clear()
    clock.advance(35)
    assert await cache.get_or_load("key 1", load, options=EntryOptions(refresh_ahead=0.9)) == "value of key 1"
    await settle()
    assert started.is_set()


async def test_closing_ends_the_reads_of_predicted_keys(open_cache, l2, settle):
    cache = await open_cache(l2, prediction=True)
    await learn(cache, settle=settle)
    forget_values(cache)
    l2.gate.clear()
    reading = asyncio.create_task(cache.get("key 0"))
    await settle()
    closing = asyncio.create_task(cache.close())
    await settle()
    l2.gate.set()
    await closing
    assert await reading == "value of key 0"
    assert cache.stats().prediction.held == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be between 1 and 8, got 0"),
        ({"table_size": 1}, ValueError, "table_size must be between 64 and 16777216, got 1"),
        ({"share": 0}, ValueError, "share must be greater than 0 and at most 0.5, got 0"),
        ({"share": 0.6}, ValueError, "share must be greater than 0 and at most 0.5, got 0.6"),
        ({"share": "1"}, TypeError, "share must be a number, got '1'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Prediction(**options)


def test_prediction_is_a_bool_or_options(l2):
    with pytest.raises(TypeError, match="prediction must be a bool or a Prediction, got int"):
        TieredCache(LRUCache(100), l2, namespace="test", prediction=1)
    cache = TieredCache(LRUCache(100), l2, namespace="test", prediction=Prediction(depth=1, table_size=64, share=0.5))
    assert cache._prefetch._predictor.size == 50
    assert cache._prefetch._predictor.depth == 1


async def test_optimize_leaves_the_promotion_threshold_at_one_while_the_cache_predicts(open_on):
    cache = await open_on()

    def thresholds():
        for round_ in range(4):
            for number in range(1_000):
                cache._l1.lru.set(f"{round_} {number}", None)
                # The hit rate rises.
                cache._l1.lru.get(f"{round_} {number}" if number < 100 * round_ else "missing")
            cache.optimize()
            yield cache.promotion_threshold

    assert set(thresholds()) == {1}
    cache.predicts = False
    assert max(thresholds()) > 1
