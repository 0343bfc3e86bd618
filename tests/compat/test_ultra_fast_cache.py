"""The cache under its former names, on a real Redis that it shares with a process that uses the former module."""

import asyncio
import copy
import inspect
import json
import math
import pickle
import time
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import pytest
import redis.asyncio

from acgsperf.compat import ultra_fast_cache
from acgsperf.compat.ultra_fast_cache import (
    CACHE_PERFORMANCE_TARGETS,
    CONSTITUTIONAL_HASH,
    CacheEntry,
    CacheMetrics,
    UltraFastMultiTierCache,
    create_ultra_fast_cache,
    get_ultra_fast_cache,
)

VALUES = [1, 1.5, "text", "\u00fc\U0001f600", True, False, 0, "", [], {}, [1, [2, None]], {"a": {"b": [1, "2"]}}]
NOWHERE = "redis://127.0.0.1:1/0"
COUNTERS = {
    "l1_hits",
    "l1_misses",
    "l2_hits",
    "l2_misses",
    "l3_hits",
    "l3_misses",
    "promotions",
    "demotions",
    "evictions",
}


@pytest.fixture
def alone():
    """A cache without Redis, which was not initialized."""
    return UltraFastMultiTierCache(l1_max_size=3)


def counted(metrics):
    return {name: value for name, value in vars_of(metrics).items() if value and not name.startswith("total_")}


def vars_of(metrics):
    return {name: getattr(metrics, name) for name in CacheMetrics.__dataclass_fields__}


def test_the_constants_have_the_former_values():
    assert CACHE_PERFORMANCE_TARGETS == {
        "l1_access_time_ms": 0.01,
        "l2_access_time_ms": 0.1,
        "l3_access_time_ms": 1.0,
        "cache_hit_rate_target": 0.95,
        "l1_size_limit": 100000,
        "l2_ttl_default": 3600,
        "promotion_threshold": 3,
    }
    assert CONSTITUTIONAL_HASH == "cdd01ef066bc6cf2"
    assert ultra_fast_cache.redis is redis.asyncio


def test_the_signatures_are_the_former_ones():
    signature = inspect.signature(UltraFastMultiTierCache)
    assert {name: parameter.default for name, parameter in signature.parameters.items()} == {
        "redis_url": "redis://localhost:6389/0",
        "l1_max_size": 100000,
        "constitutional_validator": None,
    }
    assert str(inspect.signature(UltraFastMultiTierCache.get)).startswith("(self, key: str, data_type: str = 'default'")
    parameters = inspect.signature(UltraFastMultiTierCache.set).parameters
    assert list(parameters) == ["self", "key", "value", "ttl", "data_type"]
    assert (parameters["ttl"].default, parameters["data_type"].default) == (None, "default")
    assert list(inspect.signature(create_ultra_fast_cache).parameters) == ["redis_url", "l1_max_size"]
    for name in ["initialize", "get", "set", "delete", "clear_all", "close", "health_check", "optimize_performance"]:
        assert inspect.iscoroutinefunction(getattr(UltraFastMultiTierCache, name))
    for name in ["_set_in_l2", "_get_from_l2", "_consider_promotion"]:
        assert inspect.iscoroutinefunction(getattr(UltraFastMultiTierCache, name))


def test_a_new_cache_has_the_former_attributes():
    cache = UltraFastMultiTierCache()
    assert cache.constitutional_hash == CONSTITUTIONAL_HASH
    assert cache.constitutional_validator.validate_hash(CONSTITUTIONAL_HASH)
    assert (cache.redis_url, cache.l1_max_size) == ("redis://localhost:6389/0", 100000)
    assert cache.redis_client is None
    assert cache.prediction_enabled is True
    assert len(cache.l1_cache) == len(cache.access_patterns) == len(cache.promotion_candidates) == 0
    assert isinstance(cache.access_patterns, dict)
    assert set(vars_of(cache.metrics).values()) == {0}
    validator = Mock()
    assert UltraFastMultiTierCache(constitutional_validator=validator).constitutional_validator is validator


def test_an_entry_expires_and_counts_its_accesses():
    now = time.time()
    entry = CacheEntry("v", now, now)
    assert (entry.access_count, entry.ttl, entry.size_bytes) == (0, None, 0)
    assert entry.constitutional_hash == CONSTITUTIONAL_HASH
    assert not entry.is_expired()
    entry.touch()
    assert entry.access_count == 1
    assert entry.last_accessed >= now
    assert CacheEntry("v", now - 10, now, ttl=5).is_expired()
    assert not CacheEntry("v", now - 10, now, ttl=50).is_expired()


def test_metrics_without_a_cache_are_plain_counters():
    metrics = CacheMetrics()
    assert set(vars(metrics).values()) == {0}
    assert (metrics.get_overall_hit_rate(), metrics.get_avg_access_time_ms()) == (0.0, 0.0)
    metrics.l1_hits, metrics.l2_hits, metrics.l3_hits, metrics.l3_misses = 90, 4, 1, 5
    metrics.total_access_time, metrics.total_accesses = 0.5, 100
    assert metrics.get_overall_hit_rate() == 0.95
    assert metrics.get_avg_access_time_ms() == 5.0


@pytest.mark.parametrize(
    ("data_type", "ttl"),
    [
        ("constitutional", 86400),
        ("policy", 3600),
        ("governance", 7200),
        ("validation", 1800),
        ("session", 3600),
        ("metrics", 300),
        ("compliance", 1800),
        ("audit", 600),
        ("default", 3600),
        ("anything", 3600),
    ],
)
async def test_the_data_type_selects_the_ttl(cache, old, key, data_type, ttl):
    assert cache._get_optimal_ttl(data_type) == ttl
    assert await cache.set(key, 1, data_type=data_type) is True
    assert ttl - 5 <= old.ttl(key) <= ttl
    assert cache.l1_cache[key].ttl == ttl


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_the_former_process_reads_what_this_one_writes(cache, old, key, value):
    assert await cache.set(key, value, ttl=60)
    assert old.read(key) == value
    assert type(old.read(key)) is type(value)
    assert old.client.type(key) == "string"
    assert 55 <= old.ttl(key) <= 60
    assert await cache._set_in_l2(key, value, None)
    assert (old.read(key), old.ttl(key)) == (value, -1)


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_this_process_reads_what_the_former_one_writes(cache, old, key, value):
    old.write(key, value, 60)
    found = await cache.get(key)
    assert found == value
    assert type(found) is type(value)


async def test_the_value_in_redis_is_json_text(cache, old, key):
    await cache.set(key, {"b": [1, None], "a": "\u00fc"}, ttl=0.2)
    assert old.client.get(key) == json.dumps({"b": [1, None], "a": "\u00fc"})
    assert old.ttl(key) == 1
    old.client.set(key + "-broken", "{not json")
    assert await cache.get(key + "-broken") is None
    old.client.rpush(key + "-list", "x")
    assert await cache.get(key + "-list") is None
    assert await cache.get(key) is not None


async def test_a_value_that_is_not_json_is_stored_in_l1_only(cache, old, key):
    value = object()
    assert await cache.set(key, value) is True
    assert await cache.get(key) is value
    assert old.read(key) is None
    assert await cache._set_in_l2(key, value, 60) is False


async def test_a_stored_none_is_an_l1_hit(cache, key):
    await cache.set(key, None)
    assert await cache.get(key) is None
    assert counted(cache.metrics) == {"l1_hits": 1}


async def test_a_miss_counts_once_in_every_tier(cache, alone, key):
    assert await cache.get(key) is None
    assert counted(cache.metrics) == {"l1_misses": 1, "l2_misses": 1, "l3_misses": 1}
    assert await alone.get(key) is None
    assert counted(alone.metrics) == {"l1_misses": 1, "l3_misses": 1}
    assert (cache.metrics.total_accesses, alone.metrics.total_accesses) == (1, 1)
    assert 0 < cache.metrics.total_access_time < 5


async def test_hits_are_counted_and_timed(cache, old, key):
    await cache.set(key, 1)
    for _ in range(10):
        await cache.get(key)
    old.write(key + "-l2", 2, 60)
    await cache.get(key + "-l2")
    assert counted(cache.metrics) == {"l1_hits": 10, "l1_misses": 1, "l2_hits": 1}
    assert cache.metrics.total_accesses == 11
    assert 0 < cache.metrics.get_avg_access_time_ms() < 100
    assert cache.metrics.get_overall_hit_rate() == 1.0


async def test_counters_may_be_set_and_continue_from_there(cache, key):
    for name in vars_of(cache.metrics):
        setattr(cache.metrics, name, 5)
    await cache.get(key)
    await cache.set(key, 1)
    await cache.get(key)
    after = vars_of(cache.metrics)
    assert (after["l1_hits"], after["l1_misses"], after["l3_misses"], after["total_accesses"]) == (6, 6, 6, 7)
    assert 5 < after["total_access_time"] < 10
    cache.metrics.l1_hits += 10
    assert cache.metrics.l1_hits == 16
    cache.metrics = CacheMetrics()
    assert set(vars_of(cache.metrics).values()) == {0}
    await cache.get(key)
    assert (cache.metrics.l1_hits, cache.metrics.total_accesses) == (1, 1)


async def test_l1_evicts_the_least_recently_used(alone):
    for name in "abc":
        alone._set_in_l1(name, name, None)
    assert await alone.get("a") == "a"
    alone._set_in_l1("d", "d", None)
    assert "b" not in alone.l1_cache
    assert sorted(alone.l1_cache) == ["a", "c", "d"]
    assert alone.metrics.evictions == 1


def test_a_new_l1_size_takes_effect_at_the_next_store(alone):
    for name in "abc":
        alone._set_in_l1(name, name, None)
    alone.l1_max_size = 2
    assert len(alone.l1_cache) == 3
    alone._set_in_l1("d", "d", None)
    assert list(alone.l1_cache) == ["c", "d"]
    assert alone.metrics.evictions == 2
    assert alone.get_performance_metrics()["tier_performance"]["l1_max_size"] == 2
    alone.l1_max_size = 10
    for i in range(20):
        alone._set_in_l1(str(i), i, None)
    assert len(alone.l1_cache) == 10


async def test_l1_cache_is_a_mapping_of_entries(alone):
    before = time.time()
    alone._set_in_l1("k", "v", 60)
    entry = alone.l1_cache["k"]
    assert isinstance(entry, CacheEntry)
    assert (entry.value, entry.ttl, entry.access_count) == ("v", 60, 0)
    assert before <= entry.created_at <= time.time()
    assert entry.size_bytes > 0
    for _ in range(3):
        await alone.get("k")
    assert alone.l1_cache["k"].access_count == 3
    assert alone.l1_cache["k"].last_accessed >= entry.created_at
    assert alone.metrics.l1_hits == 3, "reading the mapping is not an access"
    with pytest.raises(KeyError):
        alone.l1_cache["missing"]
    now = time.time()
    alone.l1_cache["given"] = CacheEntry("g", now, now, ttl=60)
    alone.l1_cache["late"] = CacheEntry("g", now - 100, now, ttl=60)
    assert alone._get_from_l1("given") == "g"
    assert "late" not in alone.l1_cache
    del alone.l1_cache["given"]
    assert alone._get_from_l1("given") is None
    alone.l1_cache.clear()
    assert len(alone.l1_cache) == 0


async def test_an_expired_entry_is_gone(alone):
    alone._set_in_l1("k", "v", 1e-6)
    alone._set_in_l1("never", "v", 0)
    assert alone._get_from_l1("k") is None
    assert await alone.get("never") is None
    assert (alone.metrics.l1_misses, alone.metrics.total_accesses) == (2, 1)


@pytest.mark.parametrize("ttl", [0, -1])
async def test_a_ttl_of_zero_or_less_removes_the_key(cache, old, key, ttl):
    await cache.set(key, 1)
    assert await cache.set(key, 2, ttl=ttl) is True
    assert old.read(key) is None
    assert await cache.get(key) is None


async def test_delete_removes_the_key_from_every_tier_and_returns_whether_it_existed(cache, old, key):
    await cache.set(key, 1)
    assert await cache.delete(key) is True
    assert old.read(key) is None
    assert key not in cache.l1_cache
    assert await cache.delete(key) is False
    old.write(key, 1)
    assert await cache.delete(key) is True


async def test_the_third_l2_hit_promotes_the_entry(cache, old, key):
    old.write(key, "v", 60)
    for promoted in [False, False, True]:
        assert await cache.get(key) == "v"
        assert (key in cache.l1_cache) is promoted
    assert counted(cache.metrics) == {"l1_misses": 3, "l2_hits": 3, "promotions": 1}
    assert cache.l1_cache[key].ttl <= 60, "not longer than in Redis"
    assert key not in cache.promotion_candidates
    old.delete(key)
    assert await cache.get(key) == "v"


async def test_accesses_older_than_an_hour_do_not_promote(cache, old, key):
    old.write(key, "v")
    cache._update_access_patterns(key)
    cache._update_access_patterns(key)
    times = cache.promotion_candidates.peek(key)
    for i in range(len(times)):
        times[i] -= 3700
    await cache.get(key)
    assert key not in cache.l1_cache
    await cache.get(key)
    await cache.get(key)
    assert key in cache.l1_cache
    assert cache.l1_cache[key].ttl == 3600


async def test_three_recorded_accesses_promote(alone):
    await alone._consider_promotion("k", "v", "policy")
    alone._update_access_patterns("k")
    alone._update_access_patterns("k")
    await alone._consider_promotion("k", "v", "policy")
    assert "k" not in alone.l1_cache
    alone._update_access_patterns("k")
    await alone._consider_promotion("k", "v", "policy")
    assert alone.l1_cache["k"].value == "v"
    assert alone.metrics.promotions == 1


async def test_times_that_a_caller_writes_into_the_access_patterns_count_for_promotion(alone):
    now = time.time()
    alone.access_patterns["past"] = [now - 3700] * 9
    alone.access_patterns.setdefault("two", []).append(now)
    alone.access_patterns["two"].append(now)
    alone.access_patterns["three"] = [now - 3000, now - 1, now]
    alone._update_access_patterns("both")
    alone.access_patterns["both"] += [now, now]
    for key in ("unknown", "past", "two", "three", "both"):
        await alone._consider_promotion(key, "v", "policy")
    assert set(alone.l1_cache) == {"three", "both"}
    assert set(alone.promotion_candidates) == set()
    alone.access_patterns = {"other": (now, now, now), "long": [now] * 300}
    await alone._consider_promotion("other", "v")
    assert "other" in alone.l1_cache
    assert len(alone.access_patterns["long"]) == 256
    alone.access_patterns = {str(i): [now] for i in range(10_001)}
    assert len(alone.access_patterns) == 10_000


async def test_l1_hits_and_misses_do_not_count_for_promotion(alone):
    alone._set_in_l1("k", "v", 60)
    for _ in range(9):
        await alone.get("k")
    alone._l1.clear()
    for _ in range(9):
        await alone.get("k")
    await alone._consider_promotion("k", "v")
    assert "k" not in alone.l1_cache


async def test_methods_can_be_replaced_on_an_instance(alone):
    alone._get_from_l1 = Mock(return_value="of the mock")
    assert await alone.get("k") == "of the mock"
    alone._get_from_l1 = Mock(return_value=None)
    alone._get_from_l2 = AsyncMock(return_value=None)
    assert await alone.get("k") is None
    alone._get_from_l2.assert_awaited_once_with("k")
    alone._set_in_l1, alone._set_in_l2, alone._get_optimal_ttl = Mock(), AsyncMock(), Mock(return_value=7)
    await alone.set("k", 1)
    alone._set_in_l1.assert_called_once_with("k", 1, 7)
    alone._set_in_l2.assert_awaited_once_with("k", 1, 7)
    with patch.object(alone, "get", AsyncMock(return_value=5)):
        assert await alone.get("k") == 5
    assert await alone.get("k") is None


async def test_get_calls_a_method_that_a_subclass_or_a_patch_has_replaced():
    class Own(UltraFastMultiTierCache):
        def _get_from_l1(self, key):
            return f"own {key}"

    class Both(Own):
        async def get(self, key, data_type="default"):
            return "mine"

    assert [await Own().get("a"), await Both().get("a")] == ["own a", "mine"]
    with patch.object(UltraFastMultiTierCache, "_get_from_l1", return_value="patched"):
        assert await UltraFastMultiTierCache().get("a") == "patched"
    assert await UltraFastMultiTierCache().get("a") is None


async def test_a_write_during_a_read_is_not_undone_by_promotion(cache, old, key):
    old.write(key, "old")
    await cache.get(key)
    await cache.get(key)
    reader = redis.asyncio.Redis.get

    async def read_then_write(client, name):
        found = await reader(client, name)
        await cache.set(key, "new")
        return found

    with patch.object(redis.asyncio.Redis, "get", read_then_write):
        assert await cache.get(key) == "old"
    assert await cache.get(key) == "new"


async def test_access_times_are_recorded_by_key_and_bounded(cache, alone, old, key):
    old.write(key, 1, 60)
    before = time.time()
    for _ in range(5):
        await cache.get(key)
    await cache.get(key + "-missing")
    times = cache.access_patterns[key]
    assert len(times) == 5
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time()
    assert len(cache.access_patterns[key + "-missing"]) == 1
    cache.access_patterns["mine"] = [1.0]
    assert cache.access_patterns["mine"] == [1.0]
    alone._set_in_l1("hot", 1, None)
    for _ in range(10_000):
        await alone.get("hot")
    assert len(alone.access_patterns["hot"]) == 256
    # Of the hits since the times were last read, the latest 4,096 count.
    assert alone._l1["hot"].access_count == 4_096
    for i in range(15_000):
        alone._update_access_patterns(str(i))
    assert len(alone.access_patterns) == 10_000
    assert len(alone.promotion_candidates) == 10_000
    assert "14999" in alone.access_patterns


async def test_the_metrics_have_every_key(cache, key):
    await cache.set(key, 1)
    await cache.get(key)
    await cache.get(key + "-missing")
    report = cache.get_performance_metrics()
    assert report["performance_summary"] == {
        "overall_hit_rate": 0.5,
        "avg_access_time_ms": cache.metrics.get_avg_access_time_ms(),
        "meets_hit_rate_target": False,
        "meets_access_time_target": cache.metrics.get_avg_access_time_ms() <= 0.01,
    }
    assert report["tier_performance"] == {"l1_hit_rate": 0.5, "l2_hit_rate": 0.0, "l1_size": 2, "l1_max_size": 100}
    assert set(report["cache_statistics"]) == COUNTERS
    assert report["optimization_status"] == {
        "prediction_enabled": True,
        "tracked_patterns": 2,
        "promotion_candidates": 0,
    }
    assert report["constitutional_hash"] == CONSTITUTIONAL_HASH
    assert abs(report["timestamp"] - time.time()) < 60


def test_the_metrics_use_counters_that_were_set(alone):
    alone.metrics.l1_hits, alone.metrics.l1_misses, alone.metrics.l3_misses = 96, 4, 4
    alone.metrics.total_accesses, alone.metrics.total_access_time = 100, 0.0005
    report = alone.get_performance_metrics()
    assert report["performance_summary"] == {
        "overall_hit_rate": 0.96,
        "avg_access_time_ms": pytest.approx(0.005),
        "meets_hit_rate_target": True,
        "meets_access_time_target": True,
    }
    assert report["tier_performance"]["l1_hit_rate"] == 0.96


async def test_optimizing_promotes_frequent_and_removes_expired_entries(cache, old, key):
    old.write(key, "v", 60)
    cache.access_patterns[key] = [time.time()] * 3
    cache.access_patterns[key + "-rare"] = [time.time()] * 2
    cache.access_patterns[key + "-past"] = [time.time() - 4000] * 9
    cache.access_patterns[key + "-gone"] = [time.time()] * 9
    cache._set_in_l1(key + "-expired", 1, 1e-6)
    cache.prediction_enabled = False
    size = len(cache.l1_cache)
    done = await cache.optimize_performance()
    assert set(done) == {"optimizations_applied", "recommendations", "current_metrics", "constitutional_hash"}
    assert done["optimizations_applied"] == ["removed 1 expired entries from L1"]
    assert len(cache.l1_cache) == size - 1
    cache.prediction_enabled = True
    assert (await cache.optimize_performance())["optimizations_applied"] == ["promoted 1 frequent entries to L1"]
    assert cache.l1_cache[key].value == "v"
    assert cache.metrics.promotions == 1
    assert (await cache.optimize_performance())["optimizations_applied"] == []


async def request_in_order(cache, keys):
    """Request keys, each when what was read ahead before has arrived. Return the values."""
    values = []
    for key in keys:
        values.append(await cache.get(key))
        if cache._read_ahead._task is not None:
            await cache._read_ahead._task
    return values


async def test_keys_that_follow_each_other_are_read_ahead(cache, old, key):
    keys = [f"{key}-{number}" for number in range(100)]
    for number, one in enumerate(keys):
        old.write(one, number, 60)
    for _ in range(3):
        assert await request_in_order(cache, keys) == list(range(100))
    stats = cache._read_ahead.stats()
    assert stats.used > 60
    assert cache.metrics.l2_hits == 300
    assert cache.metrics.l1_misses == 300
    assert cache.metrics.promotions == 100


async def test_a_value_that_was_read_ahead_is_not_used_after_a_write(cache, old, key):
    keys = [f"{key}-{number}" for number in range(100)]
    for number, one in enumerate(keys):
        old.write(one, number, 60)
    await request_in_order(cache, [*keys, *keys, *keys[:50]])
    assert keys[50] in cache._read_ahead._predictor
    await cache.delete(keys[50])
    assert await cache.get(keys[50]) is None
    assert cache._read_ahead.stats().wasted == 1


async def test_nothing_is_read_ahead_without_prediction(cache, old, key):
    cache.prediction_enabled = False
    keys = [f"{key}-{number}" for number in range(100)]
    for number, one in enumerate(keys):
        old.write(one, number, 60)
    for _ in range(3):
        await request_in_order(cache, keys)
    assert cache._read_ahead.stats().issued == 0
    assert cache.metrics.l2_hits == 300


async def test_optimizing_promotes_only_as_many_entries_as_fit(cache, old, key):
    for i in range(5):
        old.write(f"{key}-{i}", i, 60)
        cache.access_patterns[f"{key}-{i}"] = [time.time()] * 3
    cache.l1_max_size = 3
    cache._set_in_l1(key, 1, None)
    await cache.optimize_performance()
    assert len(cache.l1_cache) == 3
    assert key in cache.l1_cache
    assert cache.metrics.evictions == 0


async def test_clear_all_keeps_the_keys_of_others(cache, old, key):
    old.write(key + "-theirs", 1)
    await cache.set(key, 1)
    await cache._set_in_l2(key + "-forever", 2, None)
    await cache.get(key + "-theirs")
    assert await cache.clear_all()
    assert len(cache.l1_cache) == len(cache.access_patterns) == len(cache.promotion_candidates) == 0
    assert (old.read(key), old.read(key + "-forever"), old.read(key + "-theirs")) == (None, None, 1)
    assert await cache.get(key) is None
    assert await cache.clear_all()


async def test_clear_all_removes_more_keys_than_fit_in_one_command(cache, old, key):
    for wave in range(0, 1_200, 20):
        assert all(await asyncio.gather(*(cache._set_in_l2(f"{key}-{wave + i}", i, 60) for i in range(20))))
    assert len(list(old.client.scan_iter(f"{key}*", count=10_000))) == 1_200
    assert await cache.clear_all()
    assert list(old.client.scan_iter(f"{key}*")) == []


@pytest.mark.alone
async def test_more_callers_than_connections_all_get_their_values(cache, key):
    assert all(await asyncio.gather(*(cache._set_in_l2(f"{key}-{i}", i, 60) for i in range(300))))
    assert await asyncio.gather(*(cache._get_from_l2(f"{key}-{i}") for i in range(300))) == list(range(300))


@pytest.mark.parametrize("write", ["set", "delete"])
async def test_a_read_superseded_by_a_write_promotes_nothing(cache, old, key, write):
    for _ in range(20):
        old.write(key, "old")
        change = cache.set(key, "new") if write == "set" else cache.delete(key)
        await asyncio.gather(*(cache.get(key) for _ in range(4)), change, *(cache.get(key) for _ in range(4)))
        assert await cache.get(key) == ("new" if write == "set" else None)
        await cache.delete(key)


async def test_storing_a_value_that_is_not_json_removes_the_previous_one_from_redis(cache, old, key):
    await cache.set(key, 1)
    await cache.set(key, {1, 2})
    assert await cache.get(key) == {1, 2}
    assert old.read(key) is None


async def test_a_key_that_cannot_be_sent_does_not_open_the_circuit(cache, old, key):
    for _ in range(5):
        assert await cache.get("\ud800") is None
        assert await cache._get_from_l2(None) is None
    old.write(key, "good")
    assert await cache.get(key) == "good"


async def test_a_refused_command_does_not_open_the_circuit(cache, old, key, caplog):
    old.client.lpush(f"{key}-list", 1)
    for _ in range(5):
        assert await cache.get(f"{key}-list") is None
    assert "WRONGTYPE" in caplog.text
    old.write(key, "good")
    assert await cache.get(key) == "good"


async def test_a_silent_redis_is_a_miss_after_the_deadline(cache, old, key):
    old.write(key, "late")
    old.client.execute_command("CLIENT", "PAUSE", 700, "ALL")
    started = time.monotonic()
    assert await cache.get(key) is None
    assert 0.2 < time.monotonic() - started < 0.6
    # The cache recovers by itself, and no caller gets the reply to another command.
    assert old.read(key) == "late"
    assert await cache.get(key) == "late"


async def test_initialize_waits_two_seconds_for_a_silent_redis(key):
    async def say_nothing(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        cache = UltraFastMultiTierCache(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        started = time.monotonic()
        await cache.initialize()
        assert 1.5 < time.monotonic() - started < 3
        assert cache.redis_client is None
        assert await cache.set(key, 1)
        assert await cache.get(key) == 1
        await cache.close()


@pytest.mark.parametrize(("ttl", "seconds"), [(0.2, 1), (1.0, 1), (1.2, 2), (59.9, 60)])
async def test_the_ttl_in_redis_is_rounded_up_to_whole_seconds(cache, old, key, ttl, seconds):
    assert await cache.set(key, 1, ttl=ttl)
    assert seconds - 1 <= old.ttl(key) <= seconds
    assert old.client.pttl(key) > 1000 * seconds - 500


async def test_clear_all_removes_a_key_whose_write_was_cancelled(cache, old, key):
    writing = asyncio.create_task(cache._set_in_l2(key, 1, 60))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    old.write(key, 1, 60)
    assert await cache.clear_all()
    assert old.read(key) is None


async def test_delete_returns_false_if_redis_does_not_answer(key):
    cache = UltraFastMultiTierCache(NOWHERE)
    cache.redis_client = redis.asyncio.from_url(NOWHERE)
    await cache.set(key, 1)
    assert await cache.delete(key) is False
    await cache.close()


async def test_an_infinite_ttl_never_expires_and_nan_is_refused(cache, old, key):
    assert await cache.set(key, 1, ttl=math.inf) is True
    assert old.ttl(key) == -1
    with pytest.raises(ValueError, match="ttl must be a number of seconds, got nan"):
        await cache.set(key, 2, ttl=math.nan)
    assert await cache.get(key) == 1


async def test_a_copy_of_the_metrics_does_not_change(cache, key):
    assert await cache.set(key, 1)
    for copied in (copy.copy, copy.deepcopy, lambda metrics: pickle.loads(pickle.dumps(metrics))):
        before = copied(cache.metrics)
        assert type(before) is CacheMetrics
        assert before == cache.metrics
        await cache.get(key)
        assert (cache.metrics.l1_hits - before.l1_hits, before == cache.metrics) == (1, False)


async def test_initialising_again_closes_the_former_client(cache):
    former = cache.redis_client
    await cache.initialize()
    assert cache.redis_client is not former
    assert all(not connection.is_connected for connection in former.connection_pool._available_connections)


async def test_initialize_stores_the_constitutional_entry_for_a_day(servers, old):
    cache = await create_ultra_fast_cache(servers.redis_url, l1_max_size=10)
    entry = f"constitutional_hash:{CONSTITUTIONAL_HASH}"
    assert 86395 <= old.ttl(entry) <= 86400
    assert await cache.get(entry) is True
    assert cache.l1_max_size == 10
    await cache.close()


async def test_without_redis_the_cache_uses_l1_only(key, caplog):
    cache = await create_ultra_fast_cache(NOWHERE)
    assert cache.redis_client is None
    assert "is not reachable; the cache uses L1 only" in caplog.text
    assert await cache.set(key, 1) is True
    assert await cache.get(key) == 1
    assert await cache._set_in_l2(key, 1, 60) is False
    assert await cache._get_from_l2(key) is None
    health = await cache.health_check()
    assert (health["healthy"], health["l2_healthy"], health["redis_connected"]) == (True, False, False)
    assert "start Redis" in str((await cache.optimize_performance())["recommendations"])
    assert await cache.delete(key)
    assert await cache.clear_all()
    await cache.close()


async def test_a_failing_redis_is_a_miss_and_opens_the_circuit(key, caplog):
    cache = UltraFastMultiTierCache()
    cache.redis_client = client = redis.asyncio.from_url(NOWHERE)
    assert await cache.set(key, 1) is True
    assert await cache.get(key) == 1
    for _ in range(10):
        assert await cache.get(key + "-missing") is None
    assert cache.metrics.l2_misses == 10
    assert caplog.text.count("circuit opened") == 1
    health = await cache.health_check()
    assert (health["healthy"], health["l1_healthy"], health["l2_healthy"], health["redis_connected"]) == (
        True,
        True,
        False,
        True,
    )
    await client.aclose()


async def test_a_failed_clear_all_can_be_repeated(cache, old, key):
    await cache.set(key, 1)
    living, cache.redis_client = cache.redis_client, redis.asyncio.from_url(NOWHERE)
    assert await cache.clear_all() is False
    await cache.redis_client.aclose()
    cache.redis_client = living
    assert old.read(key) == 1
    assert await cache.clear_all() is True
    assert old.read(key) is None


async def test_the_health_has_every_key(cache):
    health = await cache.health_check()
    assert set(health) == {
        "healthy",
        "l1_healthy",
        "l2_healthy",
        "redis_connected",
        "metrics",
        "constitutional_hash",
        "timestamp",
    }
    assert all(health[name] is True for name in ["healthy", "l1_healthy", "l2_healthy", "redis_connected"])


async def test_close_empties_l1_and_closes_the_client(servers, key):
    cache = await create_ultra_fast_cache(servers.redis_url)
    await cache.set(key, 1)
    await cache.close()
    assert cache.redis_client is None
    assert len(cache.l1_cache) == 0
    await cache.close()


@pytest.mark.parametrize("kind", [Mock, AsyncMock])
async def test_a_patched_redis_module_is_used(kind):
    client = AsyncMock()
    client.get.return_value = b'{"a": 1}'
    with patch("acgsperf.compat.ultra_fast_cache.redis", kind()) as module:
        module.from_url.return_value = client
        cache = await create_ultra_fast_cache("redis://elsewhere/0")
        assert module.from_url.call_args.args == ("redis://elsewhere/0",)
        assert cache.redis_client is client
        client.ping.assert_awaited_once_with()
        assert await cache.get("k") == {"a": 1}
        await cache.close()
    client.close.assert_awaited_once_with()
    assert cache.redis_client is None


async def test_if_from_url_fails_the_cache_uses_l1_only():
    with patch("acgsperf.compat.ultra_fast_cache.redis.from_url", side_effect=Exception("no")):
        assert (await create_ultra_fast_cache()).redis_client is None


async def test_a_mock_may_replace_the_client(alone):
    alone.redis_client = client = AsyncMock()
    await alone.set("k", {"a": 1}, ttl=60)
    client.setex.assert_awaited_once_with("k", 60, '{"a": 1}')
    await alone._set_in_l2("k", [1])
    client.set.assert_awaited_once_with("k", "[1]")
    client.get.return_value = '"found"'
    assert await alone.get("other") == "found"
    client.get.assert_awaited_once_with("other")
    for _ in range(2):
        await alone.get("other")
    assert alone.l1_cache["other"].ttl == 3600
    assert await alone.delete("k") is True
    client.delete.assert_awaited_once_with("k")
    client.get.return_value = None
    assert await alone.get("k") is None
    client.get.side_effect = ConnectionError("gone")
    assert await alone.get("k") is None
    client.ping.side_effect = ConnectionError("gone")
    assert (await alone.health_check())["l2_healthy"] is False
    await alone.clear_all()
    client.flushdb.assert_not_called()
    await alone.close()
    client.close.assert_awaited_once_with()


async def test_a_synchronous_client_may_replace_the_client(alone):
    alone.redis_client = client = MagicMock()
    client.get.return_value = "[1]"
    assert await alone.get("k") == [1]
    assert await alone.set("k", 2)
    await alone.close()


async def test_patched_helpers_are_called(alone):
    with patch.object(alone, "_get_from_l2", AsyncMock(return_value="from L2")):
        assert await alone.get("k") == "from L2"


async def test_a_process_has_one_cache(fresh_process):
    caches = await asyncio.gather(*(get_ultra_fast_cache() for _ in range(5)))
    assert len(set(map(id, caches))) == 1
    assert caches[0].redis_client is not None
    await caches[0].close()
