"""A tiered cache saves L1 before a restart; the next process loads it, and stays coherent with the lower tiers."""

import datetime
import enum
import secrets

import msgspec
import pytest

from acgsperf import AdaptiveCache, LoadResult, LRUCache, SaveResult, SnapshotError
from acgsperf._native import snapshot
from acgsperf.cache import TieredCache
from acgsperf.errors import CacheError
from acgsperf.tiers.redis import RedisTier


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.warm"


async def fill(cache, count=10):
    await cache.set_many({f"key {number}": {"number": number} for number in range(count)}, tags=["all"])


async def nothing(keys, tags=()):
    return {}


async def test_without_tiers_the_entries_answer_at_once(open_cache, path, clock, monkeypatch):
    before = await open_cache(ttl=60)
    await fill(before)
    await before.get("key 3")
    now = 1_000.0
    monkeypatch.setattr(snapshot.time, "time", lambda: now)
    assert await before.save(path) == SaveResult(10, 0)
    now += 20
    after = await open_cache(ttl=60)
    assert await after.load(path) == LoadResult(10, 0, 0)
    assert after._l1.lru.items() == before._l1.lru.items()
    clock.advance(39)
    assert await after.get("key 3") == {"number": 3}
    clock.advance(2)
    assert await after.get("key 3") is None


async def test_loaded_entries_have_their_tags(open_cache, path):
    before = await open_cache()
    await fill(before)
    await before.save(path)
    after = await open_cache()
    await after.load(path)
    await after.invalidate_tag("all")
    assert await after.get_many([f"key {number}" for number in range(10)]) == {}


async def test_what_was_removed_before_the_load_stays_removed(open_cache, path):
    before = await open_cache()
    await fill(before)
    await before.save(path)
    after = await open_cache()
    await after.delete("key 1")
    await after.set("key 2", "new")
    assert await after.load(path) == LoadResult(8, 0, 2)
    assert await after.get_many(["key 1", "key 2", "key 3"]) == {"key 2": "new", "key 3": {"number": 3}}
    await after.clear()
    assert (await after.load(path)).entries == 0


async def test_with_tiers_an_entry_is_verified_before_l1_answers(open_cache, path, l2, clock):
    before = await open_cache(l2)
    await fill(before)
    await before.save(path)
    # Another process writes while this one restarts.
    other = await open_cache(l2)
    await other.set("key 1", "of another process")
    await other.delete("key 2")
    after = await open_cache(l2)
    assert await after.load(path) == LoadResult(9, 0, 1)
    assert after._l1.lru.keys() == [key for key in before._l1.lru if key != "key 2"]
    assert after.get_local("key 1") == "of another process"
    assert after.get_local("key 3") == {"number": 3}
    assert await after.get("key 2") is None


async def test_no_entry_answers_while_it_is_not_verified(open_cache, path, l2, settle):
    before = await open_cache(l2)
    await fill(before)
    await before.save(path)
    after = await open_cache(l2)
    seen = []
    get_many = l2.get_many

    async def looking(keys):
        seen.extend(after.get_local(key) for key in keys)
        return await get_many(keys)

    l2.get_many = looking
    await after.load(path)
    assert seen == [None] * 10


async def test_if_no_tier_answers_the_entries_of_the_file_are_served(open_cache, path, l2, monkeypatch):
    before = await open_cache(l2)
    await fill(before)
    await before.save(path)
    after = await open_cache(l2)
    monkeypatch.setattr(type(l2), "is_answering", property(lambda tier: tier.up))
    with monkeypatch.context() as down:
        down.setattr(l2, "up", False)
        down.setattr(l2, "observe", nothing)
        assert (await after.load(path)).entries == 0
        assert after.get_local("key 1") is None
        assert await after.get("key 1") == {"number": 1}
    l2.lose("key 1")
    assert await after.get("key 1") is None


async def test_a_full_l1_stops_reading(open_cache, path, l2):
    before = await open_cache(l2, size=2_000)
    await fill(before, 2_000)
    await before.save(path)
    after = await open_cache(l2, size=300)
    l2.calls.clear()
    assert await after.load(path) == LoadResult(300, 0, 1_700)
    assert after._l1.lru.keys() == before._l1.lru.keys()[-300:]
    assert sum(len(keys) for kind, keys in l2.calls if kind == "get_many") == 300


async def test_a_file_of_another_cache_is_refused(open_cache, path, clock):
    before = await open_cache()
    await fill(before)
    await before.save(path)
    other = await open_cache(namespace="other")
    with pytest.raises(SnapshotError, match="expected namespace 'other', got 'test'"):
        await other.load(path)
    async with TieredCache(AdaptiveCache(5, clock=clock), namespace="test", clock=clock) as adaptive:
        with pytest.raises(SnapshotError, match=r"AdaptiveCache \(adaptive\), got a TieredCache with LRUCache"):
            await adaptive.load(path)
        assert len(adaptive._l1.lru) == 0
    with pytest.raises(SnapshotError, match="expected the entries of LRUCache, got a TieredCache"):
        LRUCache(5).load(path, namespace="test")


async def test_values_that_cannot_be_carried_are_counted(open_cache, path):
    cache = await open_cache()
    await cache.set("a", object())
    await cache.set("b", 1)
    assert await cache.save(path) == SaveResult(1, 1)


class Point(msgspec.Struct):
    x: int
    at: datetime.date = datetime.date(2026, 1, 1)


class Square(msgspec.Struct):
    side: str


class Colour(enum.StrEnum):
    RED = "red"


async def test_without_tiers_values_come_back_with_their_declared_type(open_cache, path):
    before = await open_cache(value_type=Point)
    await before.set_many({f"key {number}": Point(number) for number in range(10)})
    await before.set("other", "no point")
    assert await before.save(path) == SaveResult(10, 1)
    after = await open_cache(value_type=Point)
    assert await after.load(path) == LoadResult(10, 0, 0)
    assert after.get_local("key 7") == Point(7)
    changed = await open_cache(value_type=Square)
    assert await changed.load(path) == LoadResult(0, 0, 10)
    untyped = await open_cache()
    with pytest.raises(SnapshotError, match="got a TieredCache with LRUCache and a value_type"):
        await untyped.load(path)


@pytest.mark.parametrize("l1_ttl", [None, 60])
async def test_values_of_a_declared_type_are_verified_by_the_tiers(servers, path, l1_ttl):
    namespace = f"test-{secrets.token_hex(4)}"

    def created():
        l1, l2 = LRUCache(100, l1_ttl), RedisTier(servers.redis_url, deadline=5)
        return TieredCache(l1, l2, namespace=namespace, deadline=10, value_type=Point)

    async with created() as other:
        async with created() as before:
            await before.set_many({f"key {number}": Point(number) for number in range(5)})
            assert await before.save(path) == SaveResult(5, 0)
        await other.set("key 1", Point(100))
        async with created() as after:
            assert await after.load(path) == LoadResult(5, 0, 0)
            assert after.get_local("key 0") == Point(0)
            assert after.get_local("key 1") == Point(100)
            await after.clear()


async def test_if_no_tier_answers_the_values_of_the_file_have_their_declared_type(open_cache, path, l2, monkeypatch):
    before = await open_cache(l2, value_type=Point)
    await before.set("key 1", Point(1))
    await before.save(path)
    after = await open_cache(l2, value_type=Point)
    monkeypatch.setattr(type(l2), "is_answering", property(lambda tier: tier.up))
    with monkeypatch.context() as down:
        down.setattr(l2, "up", False)
        down.setattr(l2, "observe", nothing)
        await after.load(path)
        assert await after.get("key 1") == Point(1)


async def test_results_of_a_type_that_only_a_function_declares_are_left_out(open_cache, path):
    def functions(cache):
        @cache.cached(key=lambda: "colour")
        async def colour() -> Colour:
            return Colour.RED

        @cache.cached(key=lambda: "numbers")
        async def numbers() -> list[int]:
            return [1, 2]

        return colour, numbers

    before = await open_cache()
    for function in functions(before):
        await function()
    assert await before.save(path) == SaveResult(1, 1)
    after = await open_cache()
    assert await after.load(path) == LoadResult(1, 0, 0)
    colour, numbers = functions(after)
    assert after.get_local("numbers") == await numbers()
    assert await colour() is Colour.RED


async def test_a_cache_that_is_not_open_is_refused(path):
    cache = TieredCache(LRUCache(5), namespace="test")
    for call in (cache.save, cache.load):
        with pytest.raises(CacheError, match="is not open"):
            await call(path)


async def test_prediction_continues(servers, path):
    namespace = f"test-{secrets.token_hex(4)}"
    keys = [f"key {number}" for number in range(150)]

    def created():
        l2 = RedisTier(servers.redis_url, deadline=5)
        return TieredCache(LRUCache(100), l2, namespace=namespace, deadline=10, prediction=True)

    async with created() as before:
        await before.set_many(dict.fromkeys(keys, "value"))
        for _ in range(4):
            for key in keys:
                before._l1.clear()
                await before.get(key)
        assert before.stats().prediction.active
        await before.save(path)
    async with created() as after:
        await after.load(path)
        after._l1.clear()
        assert after.stats().prediction.active
        for key in keys * 2:
            await after.get(key)
        assert after.stats().prediction.used > 0
        await after.clear()


async def test_a_real_tier_confirms_the_entries_of_a_restarted_process(servers, path):
    namespace = f"test-{secrets.token_hex(4)}"

    def created():
        return TieredCache(
            AdaptiveCache(100), RedisTier(servers.redis_url, deadline=5), namespace=namespace, deadline=10
        )

    async with created() as other:
        async with created() as before:
            await fill(before)
            await before.save(path)
        await other.set("key 1", "of another process")
        await other.delete("key 2")
        async with created() as after:
            await after.delete("key 3")
            assert await after.load(path) == LoadResult(8, 0, 2)
            found = [after.get_local(f"key {number}") for number in range(5)]
            assert found == [{"number": 0}, "of another process", None, None, {"number": 4}]
            await after.clear()
