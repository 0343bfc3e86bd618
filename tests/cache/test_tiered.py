"""`TieredCache` over L1, L2 and L3: reads, promotion, demotion, writes and their order."""

import asyncio
import math

import pytest
from loaders import Loader
from msgspec.structs import replace

from acgsperf import LRUCache
from acgsperf.cache import TieredCache, Written
from acgsperf.errors import CacheError
from acgsperf.tiers import Store

FALSY = [None, 0, False, "", []]


@pytest.mark.parametrize("value", FALSY, ids=repr)
async def test_a_falsy_value_is_a_hit_in_every_tier(open_cache, l2, l3, settle, value):
    writer = await open_cache(l2, l3)
    await writer.set("key", value)
    default, loader = object(), Loader("loaded")
    assert writer.get_local("key", default) == value
    assert await writer.get("key", default) == value
    assert await writer.get_or_load("key", loader) == value
    reader = await open_cache(l2, l3)
    assert await reader.get("key", default) == value
    assert await reader.get_many(["key"]) == {"key": value}
    assert await reader.get_or_load("key", loader) == value
    assert await reader.get_or_load_many(["key"], loader) == {"key": value}
    l2.lose("key")
    assert await reader.get("key", default) == value
    assert loader.calls == 0


async def test_a_loaded_value_is_stored_in_every_tier(open_cache, l2, l3, settle):
    cache = await open_cache(l2, l3, ttl=60, stale_ttl=30)
    assert await cache.get_or_load("key", Loader(), tags=["t"]) == "loaded"
    await settle()
    assert cache.get_local("key") == "loaded"
    for tier in (l2, l3):
        entry = tier["key"]
        assert (entry.value, entry.tags) == ("loaded", ("t",))
        assert (entry.fresh_until - entry.created_at, entry.kept_until - entry.fresh_until) == (60, 30)
    assert cache.stats().write_backs == 2


@pytest.mark.parametrize("ttl", [math.inf, 1e300, 1e10])
async def test_a_ttl_too_large_for_the_clock_means_no_expiration(open_cache, l2, l3, ttl):
    cache = await open_cache(l2, l3)
    assert await cache.set("key", 1, ttl) == Written(l1=True, l2=True, l3=True)
    assert (l2["key"].fresh_until, l2["key"].kept_until, l3["key"].fresh_until) == (None, None, None)
    assert cache.get_local("key") == 1


async def test_tiers_are_read_in_order_down_to_the_first_hit(open_cache, l2, l3):
    cache = await open_cache(l2, l3, promotion_threshold=100)
    await cache.get("none")
    assert (l2.asked("get"), l3.asked("get")) == ([("none",)], [("none",)])
    await (await open_cache(l2, l3)).set("key", 1)
    assert await cache.get("key") == 1
    assert l3.asked("get") == [("none",)]


async def test_an_l3_hit_is_written_back_to_l2(open_cache, l2, l3, settle):
    cache = await open_cache(l2, l3)
    await (await open_cache(None, l3)).set_many({"a": 1, "b": 2, "c": 3}, tags=["t"])
    assert await cache.get("a") == 1
    assert await cache.get_many(["b"]) == {"b": 2}
    assert await cache.get_or_load("c", Loader()) == 3
    await settle()
    assert [l2[key] for key in "abc"] == [l3[key] for key in "abc"]


async def test_a_fresh_value_in_l3_is_preferred_to_a_stale_one_in_l2(open_cache, clock, l2, l3, settle):
    cache = await open_cache(l2, l3, ttl=60, stale_ttl=60)
    await cache.set("key", "old")
    clock.advance(60)
    await (await open_cache(None, l3, ttl=60)).set("key", "new")
    reader = await open_cache(l2, l3, ttl=60, stale_ttl=60)
    assert await reader.get("key") == "new"
    await settle()
    assert l2["key"].value == "new"


async def test_the_third_hit_in_l2_promotes_a_value_to_l1(open_cache, l2):
    await (await open_cache(l2)).set("key", 1)
    cache = await open_cache(l2)
    for hits in range(1, 4):
        assert cache.get_local("key") is None
        assert await cache.get("key") == 1
        assert len(l2.asked("get")) == hits
    assert cache.get_local("key") == 1
    assert cache.stats().promotions == 1


async def test_hits_of_get_many_and_get_or_load_count_for_promotion(open_cache, l2):
    await (await open_cache(l2)).set("key", 1)
    cache = await open_cache(l2)
    await cache.get_many(["key"])
    await cache.get_or_load("key", Loader())
    assert cache.get_local("key") is None
    await cache.get_or_load_many(["key"], Loader())
    assert cache.get_local("key") == 1


async def test_a_promoted_value_expires_when_the_original_does(open_cache, clock, l2):
    await (await open_cache(l2, ttl=60)).set("key", 1)
    cache = await open_cache(l2, ttl=60, promotion_threshold=1)
    clock.advance(50)
    assert await cache.get("key") == 1
    clock.advance(9)
    assert cache.get_local("key") == 1
    clock.advance(1)
    assert cache.get_local("key") is None


async def test_the_number_of_promotion_counters_is_bounded(open_cache, l2):
    await (await open_cache(l2, size=1000)).set_many({str(i): i for i in range(1000)})
    cache = await open_cache(l2, size=10)
    for _ in range(5):
        for i in range(1000):
            await cache.get(str(i))
    assert cache.stats().promotions == 0


async def test_a_fresh_entry_evicted_from_l1_is_written_to_l2_if_l2_has_lost_it(open_cache, l2, settle):
    cache = await open_cache(l2, size=2)
    for key in "ab":
        await cache.set(key, key, tags=["t"])
    original = l2["a"]
    l2.lose("a")
    await cache.set_many({"c": 1, "d": 2})
    await settle()
    assert l2["a"] is original
    assert cache.stats().demotions == 1


async def test_an_expired_entry_evicted_from_l1_is_not_written_to_l2(open_cache, clock, l2, settle):
    cache = await open_cache(l2, size=1, ttl=60)
    await cache.set("key", 1)
    l2.lose("key")
    clock.advance(60)
    await cache.set("other", 1)
    await settle()
    assert "key" not in l2
    assert cache.stats().demotions == 0


async def test_without_demotion_an_evicted_entry_is_not_written_to_l2(open_cache, l2, settle):
    cache = await open_cache(l2, size=2, demotion=False)
    other = await open_cache(l2)
    await cache.set_many({"a": 1, "b": 2})
    await other.delete("a")
    await cache.set("c", 3)
    await settle()
    assert await other.get("a") is None
    assert cache.stats().demotions == 0


async def test_a_delete_supersedes_a_demotion(open_cache, l2, settle):
    cache = await open_cache(l2, size=1)
    await cache.set("key", 1)
    l2.lose("key")
    l2.gate.clear()
    overflow = asyncio.create_task(cache.set("other", 1))
    await settle()
    removal = asyncio.create_task(cache.delete("key"))
    await settle()
    l2.gate.set()
    await asyncio.gather(overflow, removal)
    await settle()
    assert "key" not in l2
    assert cache.stats().demotions == 0


@pytest.mark.parametrize("how", ["set", "delete", "tag", "clear"])
async def test_a_write_supersedes_a_read_of_the_lower_tiers(open_cache, l2, l3, settle, how):
    await (await open_cache(l2, l3)).set("key", "old", tags=["t"])
    cache = await open_cache(l2, l3, promotion_threshold=1)
    l2.gate.clear()
    reader = asyncio.create_task(cache.get("key"))
    await settle()
    writes = {
        "set": lambda: cache.set("key", "new"),
        "delete": lambda: cache.delete("key"),
        "tag": lambda: cache.invalidate_tag("t"),
        "clear": cache.clear,
    }
    writer = asyncio.create_task(writes[how]())
    await settle()
    l2.gate.set()
    assert await reader == "old"
    await writer
    await settle()
    expected = "new" if how == "set" else None
    assert cache.get_local("key") == expected
    assert await cache.get("key") == expected
    assert await (await open_cache(l2, l3)).get("key") == expected


async def test_a_read_that_starts_during_a_delete_does_not_restore_the_value(open_cache, l2, l3, settle):
    cache = await open_cache(l2, l3, promotion_threshold=1)
    await (await open_cache(l2, l3)).set("key", "old")
    # L2 is down and answers at once. The deletion reaches L3 one iteration of the event loop later.
    l2.up = False
    removal = asyncio.create_task(cache.delete("key"))
    await asyncio.sleep(0)
    await cache.get("key")
    await removal
    assert cache.get_local("key") is None
    assert await cache.get("key") is None


async def test_a_read_returns_what_the_same_caller_has_set_before(open_cache, l2, l3):
    cache = await open_cache(l2, l3, size=1)
    for i in range(20):
        await cache.set("key", i)
        await cache.set("other", i)
        assert await cache.get("key") == i


async def test_set_returns_which_tiers_accepted_the_value(open_cache, l2, l3):
    cache = await open_cache(l2, l3)
    assert await cache.set("key", 1) == Written(True, True, True)
    l3.up = False
    assert await cache.set("key", 1) == Written(True, True, False)
    assert await cache.set_many({"a": 1, "b": 2}) == {key: Written(True, True, False) for key in "ab"}
    assert not (await cache.delete("a")).everywhere
    alone = await open_cache()
    assert await alone.set("key", 1) == Written(True, None, None)
    assert (await alone.set("key", 1)).everywhere
    assert await alone.delete("key") == Written(True, None, None)


async def test_set_many_and_delete_many_are_one_call_of_each_tier(open_cache, l2, l3):
    cache = await open_cache(l2, l3)
    await cache.set_many({"a": 1, "b": 2})
    await cache.delete_many(["a", "b", "a"])
    for tier in (l2, l3):
        assert tier.calls == [("set_many", ("a", "b")), ("delete_many", ("a", "b"))]
    assert await cache.get_many(["a", "b"]) == {}


async def test_invalidating_a_tag_removes_its_entries_from_every_tier(open_cache, l2, l3):
    cache = await open_cache(l2, l3)
    await cache.set("a", 1, tags=["red"])
    await cache.set("b", 2, tags=["red", "blue"])
    await cache.set("c", 3, tags=["blue"])
    await cache.set("b", 2, tags=["blue"])
    assert await cache.invalidate_tag("red") == Written(True, True, True)
    assert await cache.get_many(list("abc")) == {"b": 2, "c": 3}
    await cache.invalidate_tag("blue")
    assert await cache.get_many(list("abc")) == {}


async def test_invalidating_a_tag_removes_stale_and_promoted_entries(open_cache, clock, l2, settle):
    cache = await open_cache(l2, ttl=60, stale_ttl=60, promotion_threshold=1)
    await (await open_cache(l2, ttl=100)).set("promoted", 1, tags=["t"])
    await cache.get("promoted")
    await cache.set("stale", 1, tags=["t"])
    clock.advance(60)
    assert cache.get_local("stale") is None
    await cache.invalidate_tag("t")
    assert cache.get_local("promoted") is None
    assert await cache.get_or_load("stale", Loader("new")) == "new"
    # The caches share their tiers, and the first cache that closes closes them: let the queued writes end before.
    await settle()


async def test_tags_of_removed_entries_take_no_memory(open_cache, clock):
    cache = await open_cache(size=10, ttl=60, stale_ttl=60)
    for i in range(1000):
        await cache.set(str(i), i, tags=[f"tag {i}"])
    assert len(cache._l1._tags) == 10
    clock.advance(120)
    cache.optimize()
    assert not cache._l1._tags


async def test_a_single_str_as_tags_raises_a_type_error(open_cache):
    cache = await open_cache()
    with pytest.raises(TypeError, match="tags"):
        await cache.set("key", 1, tags="red")


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("a", "a:b"), ("a:b", "a")])
async def test_namespaces_share_nothing(open_cache, l2, one, other):
    first = await open_cache(l2, namespace=one)
    second = await open_cache(type(l2)("l2", l2.clock, l2.data), namespace=other)
    await first.set("b:key", 1)
    await first.set("key", 1)
    await second.set("key", 2)
    await first.clear()
    assert await second.get("key") == 2
    assert await second.get("b:key") is None
    assert list(l2.data) == [(other, "key")]


def test_an_l1_of_another_cache_is_rejected():
    l1 = LRUCache(10)
    TieredCache(l1, namespace="a")
    with pytest.raises(ValueError, match="l1"):
        TieredCache(l1, namespace="b")


async def test_the_on_evict_of_l1_is_still_called():
    evicted = []
    l1 = LRUCache(1, on_evict=lambda *event: evicted.append(event))
    async with TieredCache(l1, namespace="test") as cache:
        await cache.set("a", 1)
        await cache.set("b", 2)
    assert evicted == [("a", 1, "size")]


async def test_get_many_asks_each_tier_once_for_what_is_missing(open_cache, l2, l3, settle):
    cache = await open_cache(l2, l3)
    await (await open_cache(None, l3)).set("three", 3)
    await (await open_cache(l2, None)).set("two", 2)
    await cache.set("one", 1)
    l2.calls.clear()
    l3.calls.clear()
    assert await cache.get_many(["one", "two", "three", "none", "two"]) == {"one": 1, "two": 2, "three": 3}
    assert l2.asked("get_many") == [("two", "three", "none")]
    assert l3.asked("get_many") == [("three", "none")]
    # The caches share their tiers, and the first cache that closes closes them: let the queued writes end before.
    await settle()


@pytest.mark.parametrize("hanging", ["l2", "both"])
async def test_a_hanging_tier_is_a_miss_after_the_deadline(open_cache, l2, l3, hanging):
    cache = await open_cache(l2, None if hanging == "l2" else l3, deadline=0.01)
    await cache.set("here", 1)
    l2.gate.clear()
    if hanging == "both":
        l3.gate.clear()
    assert await cache.get("key", "missed") == "missed"
    assert await cache.get_many(["key"]) == {}
    assert await cache.get_or_load("key", Loader()) == "loaded"
    assert await cache.get("here") == 1
    assert cache.stats().deadlines == 3
    l2.gate.set()
    l3.gate.set()


async def test_if_the_faster_tier_hangs_the_slower_one_is_asked_in_time(open_cache, l2, l3):
    await (await open_cache(l2, l3)).set("key", 1)
    cache = await open_cache(l2, l3, deadline=1, promotion_threshold=100)
    loader = Loader()
    l2.gate.clear()
    assert await cache.get("key") == 1
    assert await cache.get_many(["key"]) == {"key": 1}
    assert await cache.get_or_load("key", loader) == 1
    assert (loader.calls, cache.stats().deadlines, l2.asked("observe")) == (0, 0, [])
    l2.gate.set()


async def test_a_tier_that_limits_its_calls_by_itself_counts_as_a_deadline(open_cache, l2):
    l2.deadline = 0.01
    cache = await open_cache(l2, deadline=0.01)

    async def unanswered(*keys):
        await asyncio.sleep(0.02)

    l2._answer, l2.up = unanswered, False
    assert await cache.get("key", "missed") == "missed"
    assert await cache.get_many(["key"]) == {}
    assert cache.stats().deadlines == 2


async def test_a_queued_write_is_replaced_by_newer_entries_only(open_cache, l2, l3, settle, clock):
    cache = await open_cache(l2, l3)
    await (await open_cache(None, l3)).set("key", "old")
    clock.advance(1)
    queue = cache._lower_tiers.queues[0]
    queue.put("key", Store(cache._staleness.entry("new", cache.options, ())))
    assert await cache.get("key") == "old"
    await settle()
    assert l2["key"].value == "new"


async def test_using_a_cache_that_is_not_open_raises_a_cache_error(l2):
    cache = TieredCache(LRUCache(10), l2, namespace="test")
    for call in (cache.get("key"), cache.set("key", 1), cache.get_or_load("key", Loader()), cache.clear()):
        with pytest.raises(CacheError, match=r"^cache 'test' is not open;"):
            await call
    await cache.close()


async def test_a_cache_can_be_reopened_and_closed_twice(l2):
    cache = TieredCache(LRUCache(10), l2, namespace="test")
    for _ in range(2):
        async with cache:
            with pytest.raises(CacheError, match=r"^cache 'test' is already open$"):
                await cache.open()
            await cache.set("key", 1)
            assert cache.get_local("key") == await cache.get("key") == 1
        await cache.close()


async def test_a_closed_cache_raises_also_for_what_l1_holds():
    cache = TieredCache(LRUCache(10), namespace="test")

    @cache.cached(key=lambda: "key")
    async def function():
        return 1

    async with cache:
        await cache.set_many({"key": 1, "none": None})
    for call in (
        lambda: cache.get("key"),
        lambda: cache.get("none"),
        lambda: cache.get_many(["key"]),
        lambda: cache.get_or_load("key", Loader(1)),
        lambda: cache.get_or_load_many(["key"], many({"key": 1})),
        function,
        function.peek,
    ):
        with pytest.raises(CacheError, match=r"^cache 'test' is not open;"):
            await call()
    assert cache.get_local("key", "nothing") == "nothing"
    async with cache:
        assert await cache.get_many(["key", "none"]) == {"key": 1, "none": None}
        assert cache.get_local("key") == 1


async def test_from_the_beginning_of_its_close_a_cache_raises_for_what_l1_holds(l2):
    cache = TieredCache(LRUCache(10), l2, namespace="test")
    await cache.open()
    await cache.set("key", 1)
    raised = []

    async def close():
        with pytest.raises(CacheError, match=r"^cache 'test' is not open;") as error:
            await cache.get("key")
        raised.append(error)

    l2.close = close
    await cache.close()
    assert raised


async def test_a_none_in_l1_is_verified_as_other_values_are(open_cache, l2, clock):
    cache = await open_cache(l2)
    await cache.set("key", None)
    l2.data["test", "key"] = replace(l2["key"], value="new")
    cache._parts.l1.answer_until(clock() - 1)
    assert await cache.get("key", "nothing") == "new"


async def test_every_call_rejects_invalid_keys_and_tags(open_cache, l2, l3):
    cache = await open_cache(l2, l3)
    for call in (
        lambda: cache.get(5),
        lambda: cache.get_many(["good", 5]),
        lambda: cache.set(5, 1),
        lambda: cache.delete(5),
        lambda: cache.delete_many(["good", b"key"]),
        lambda: cache.expire_now("good", 5),
        lambda: cache.get_or_load(5, None),
    ):
        with pytest.raises(TypeError, match=r"key must be a str, got (5|b'key')"):
            await call()
    for keys in ("user:7", b"user:7"):
        for call in (
            lambda keys=keys: cache.get_many(keys),
            lambda keys=keys: cache.delete_many(keys),
            lambda keys=keys: cache.get_or_load_many(keys, None),
        ):
            with pytest.raises(TypeError, match=r"keys must be an iterable of str, got the (str|bytes) b?'user:7'"):
                await call()
    for tags in (["a", b"x"], "text"):
        with pytest.raises(TypeError, match="tags must be a sequence of str"):
            await cache.set("key", 1, tags=tags)
    with pytest.raises(ValueError, match=r"must not contain lone surrogates, got '\\ud800'"):
        await cache.set("key", 1, tags=["\ud800"])
    with pytest.raises(TypeError, match="tags must be"):
        await cache.invalidate_tag(5)


async def test_repr_shows_the_namespace_the_state_and_the_tiers(open_cache, l2):
    cache = await open_cache(l2, size=7)
    await cache.set("key", 1)
    assert repr(cache) == f"<TieredCache 'test', open, L1 with 1 of 7 entries, {l2!r}>"
    assert "not open" in repr(TieredCache(LRUCache(1), namespace="n"))


async def test_the_error_for_a_loader_that_returns_no_awaitable_says_what_it_returned(open_cache):
    cache = await open_cache()
    with pytest.raises(TypeError, match="loader must be a coroutine function, but it returned int"):
        await cache.get_or_load("key", lambda key: 1)


async def test_tags_may_be_any_iterable(open_cache):
    cache = await open_cache()
    await cache.set_many({"a": 1, "b": 2}, tags=(tag for tag in ["t"]))
    await cache.get_or_load("c", Loader(3), tags=(tag for tag in ["t"]))
    await cache.invalidate_tag("t")
    assert await cache.get_many(list("abc")) == {}


async def test_a_stale_value_can_be_kept_forever(open_cache, l2, clock):
    cache = await open_cache(l2, ttl=1, stale_ttl=float("inf"), soft_timeout=None)
    assert (await cache.set("key", "kept")).l2
    clock.advance(1e9)
    assert await cache.get_or_load("key", Loader(error=OSError())) == "kept"


def test_using_a_cache_in_another_event_loop_raises_a_cache_error():
    cache = TieredCache(LRUCache(10), namespace="test")
    with asyncio.Runner() as first:
        first.run(cache.open())

        async def elsewhere():
            with pytest.raises(CacheError, match="another event loop"):
                await cache.get("key")

        # A second loop in the same thread, while the first does not run.
        with asyncio.Runner() as second:
            second.run(elsewhere())
        first.run(cache.close())


async def test_if_a_tier_does_not_open_those_already_open_are_closed(l2, l3):
    async def refuse(namespace):
        raise RuntimeError("no")

    l3.open = refuse
    cache = TieredCache(LRUCache(10), l2, l3, namespace="test")
    with pytest.raises(RuntimeError, match="no"):
        await cache.open()
    assert l2.namespace is None


async def test_closing_writes_the_queued_entries(open_cache, l2, l3):
    cache = await open_cache(l2, l3)
    await cache.get_or_load_many([str(i) for i in range(1500)], many({str(i): i for i in range(1500)}))
    await cache.close()
    assert len(l2.data) == len(l3.data) == 1500


async def test_the_write_behind_queue_is_bounded_and_counts_dropped_entries(open_cache, l2):
    cache = await open_cache(l2, size=20_000)
    keys = [str(i) for i in range(12_000)]
    await cache.get_or_load_many(keys, many(dict.fromkeys(keys, 1)))
    await cache.close()
    assert len(l2.data) == 10_000
    assert cache.stats().dropped == 2_000


async def test_health_reports_each_server(open_cache, l2, l3):
    cache = await open_cache(l2, l3)
    assert (await cache.health()).ok
    l3.up = False
    health = await cache.health()
    assert (health.ok, health.l2.ok, health.l3.ok) == (False, True, False)
    assert (await (await open_cache()).health()).ok


async def test_optimize_removes_expired_entries_and_reports_it(open_cache, clock):
    cache = await open_cache(ttl=60, negative_ttl=5)
    await cache.set_many({"a": 1, "b": 2})
    await cache.get_or_load("none", Loader(None))
    assert cache.optimize() == ()
    clock.advance(60)
    assert cache.optimize() == ("removed 3 expired entries",)
    assert cache.stats().l1.size == 0


def many(values):
    async def loader(keys):
        return {key: values[key] for key in keys if key in values}

    return loader


class Recorder:
    def __init__(self, values, *, gate=None):
        self.values = values
        self.gate = gate
        self.asked = []

    async def __call__(self, keys):
        self.asked.append(list(keys))
        if self.gate is not None:
            await self.gate.wait()
        return {key: self.values[key] for key in keys if key in self.values}


async def test_get_or_load_many_calls_the_loader_once_for_the_missing_keys(open_cache, l2, l3, settle):
    cache = await open_cache(l2, l3)
    await (await open_cache(l2, None)).set("b", "two")
    await cache.set("a", "one")
    loader = Recorder({"c": 3, "d": 4})
    assert list((await cache.get_or_load_many(["d", "a", "b", "c", "d"], loader)).items()) == [
        ("d", 4),
        ("a", "one"),
        ("b", "two"),
        ("c", 3),
    ]
    assert loader.asked == [["d", "c"]]
    assert cache.get_local("c") == 3
    assert cache.stats().loads == 1
    # The caches share their tiers, and the first cache that closes closes them: let the queued writes end before.
    await settle()


async def test_get_or_load_many_waits_for_keys_that_other_callers_are_loading(open_cache, settle):
    cache = await open_cache()
    single = Loader("single", gate_open=False)
    first = asyncio.create_task(cache.get_or_load("a", single))
    await settle()
    gate = asyncio.Event()
    loader = Recorder({"b": 2, "c": 3}, gate=gate)
    second = asyncio.create_task(cache.get_or_load_many(list("abc"), loader))
    await settle()
    third = asyncio.create_task(cache.get_or_load("c", single))
    await settle()
    gate.set()
    single.gate.set()
    assert await first == "single"
    assert await second == {"a": "single", "b": 2, "c": 3}
    assert await third == 3
    assert (loader.asked, single.calls) == ([["b", "c"]], 1)


async def test_cancelling_get_or_load_many_does_not_affect_other_callers(open_cache, settle):
    cache = await open_cache()
    gate = asyncio.Event()
    loader = Recorder({"a": 1, "b": 2}, gate=gate)
    first = asyncio.create_task(cache.get_or_load_many(list("ab"), loader))
    await settle()
    other = asyncio.create_task(cache.get_or_load("b", Loader("other")))
    await settle()
    first.cancel()
    await settle()
    gate.set()
    assert await other == 2
    assert first.cancelled()


async def test_keys_that_the_loader_of_many_does_not_return_are_none_and_not_cached(open_cache):
    cache = await open_cache()
    loader = Recorder({"a": 1})
    for _ in range(2):
        assert await cache.get_or_load_many(list("ab"), loader) == {"a": 1, "b": None}
    assert loader.asked == [["a", "b"], ["b"]]


async def test_with_a_negative_ttl_keys_that_the_loader_of_many_does_not_return_are_remembered(open_cache):
    cache = await open_cache(negative_ttl=5)
    loader = Recorder({"a": 1})
    for _ in range(2):
        assert await cache.get_or_load_many(list("ab"), loader) == {"a": 1, "b": None}
    assert loader.asked == [["a", "b"]]


async def test_an_error_of_the_loader_of_many_is_raised_unless_every_key_has_a_stale_value(open_cache, clock):
    cache = await open_cache(ttl=60, stale_ttl=60, soft_timeout=None)
    await cache.set_many({"a": 1, "b": 2})
    clock.advance(60)
    assert await cache.get_or_load_many(list("ab"), Loader(error=OSError("down"))) == {"a": 1, "b": 2}
    with pytest.raises(OSError, match="down"):
        await cache.get_or_load_many(list("abc"), Loader(error=OSError("down")))


async def test_get_or_load_many_returns_stale_values_together_with_loaded_ones(open_cache, clock, settle):
    cache = await open_cache(ttl=60, stale_ttl=60)
    await cache.set("a", "old")
    clock.advance(60)
    loader = Recorder({"a": "new", "b": 2})
    assert await cache.get_or_load_many(list("ab"), loader) == {"a": "old", "b": 2}
    await settle()
    assert (cache.get_local("a"), loader.asked) == ("new", [["a", "b"]])


async def test_a_loader_of_many_that_returns_no_mapping_raises_a_type_error(open_cache):
    cache = await open_cache()
    with pytest.raises(TypeError, match="mapping"):
        await cache.get_or_load_many(list("ab"), Loader(["a", "b"]))


async def test_a_key_that_cannot_be_hashed_raises_a_type_error(open_cache):
    cache = await open_cache()
    for call in (cache.delete(["a"]), cache.delete_many([["a"]]), cache.expire_now("b", ["a"])):
        with pytest.raises(TypeError, match=r"key must be a str, got \['a'\]"):
            await call


async def test_a_key_that_is_no_str_raises_a_type_error(open_cache):
    cache = await open_cache()
    for call in (cache.set(b"key", 1), cache.get_or_load(1, Loader()), cache.get_or_load_many([1], Loader())):
        with pytest.raises(TypeError, match="key must be a str"):
            await call
