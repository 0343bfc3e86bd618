"""Samples of the keys that are read, and the sketch that finds the hot ones."""

import asyncio
import random
from collections import Counter

import pytest

from acgsperf import LRUCache, PerformanceService, Settings, TieredCache
from acgsperf.cache.read_sample import ReadSample
from acgsperf.dashboard.hot_keys import HotKeys, SpaceSaving


@pytest.fixture
async def cache():
    async with TieredCache(LRUCache(1000), namespace="keys") as opened:
        yield opened


async def test_a_sample_has_the_keys_of_the_next_reads(cache):
    sample = ReadSample(cache)
    await cache.set("a", 1)
    await cache.get("before")
    assert sample.take(4) == []
    assert await cache.get("a") == 1
    assert await cache.get("b", 7) == 7
    assert cache.get_local("a") == 1
    assert cache.get_local("c", 3) == 3
    assert await cache.get("too many") is None
    assert sample.end() == ["a", "b", "a", "c"]


async def test_without_a_sample_the_cache_has_its_own_functions(cache):
    original = cache.get_local
    sample = ReadSample(cache)
    sample.take(2)
    assert cache.get_local is not original
    for key in "abc":
        await cache.get(key)
    # The last key has put them back.
    assert cache.get_local is original
    assert cache._get_local == original
    sample.take(2)
    sample.end()
    assert cache.get_local is original


@pytest.mark.parametrize("first_ends_first", [True, False])
async def test_several_samples_of_a_cache_get_all_keys_and_leave_its_own_functions(cache, first_ends_first):
    original = cache.get_local
    samples = [ReadSample(cache), ReadSample(cache)]
    for number in range(2000):
        for sample in samples if number % 2 else reversed(samples):
            sample.take(4)
    await cache.set("a", 1)
    assert await cache.get("a") == 1
    found = [sample.end() for sample in (samples if first_ends_first else reversed(samples))]
    assert found == [["a"], ["a"]]
    assert cache.get_local is original
    assert cache._get_local == original


async def test_a_reader_copied_during_a_sample_works_after_it(cache):
    class Reader:
        def __init__(self):
            self._get_local = cache.get_local

    original, first = cache.get_local, ReadSample(cache)
    first.take(4)
    reader = Reader()
    second = ReadSample(cache, reader)
    second.take(4)
    assert reader._get_local("a", 1) == 1
    assert first.end() == []
    assert second.end() == ["a"]
    assert reader._get_local is original
    assert cache.get_local is original


class Unusual(str):
    """A valid key with a method that fails."""

    def encode(self, *arguments, **options):
        raise RuntimeError("no")


@pytest.mark.parametrize("show_keys", [True, False])
async def test_reads_with_keys_of_a_wrong_type_are_not_sampled_and_disturb_nothing(cache, show_keys):
    hot = HotKeys("keys", cache, show_keys=show_keys, uniform=lambda low, high: 0)
    hot.start()
    for _ in range(10):
        for key in (None, 5, b"x", ["x"], {}):
            with pytest.raises(TypeError):
                await cache.get(key)
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while len(found := hot.top(5)) < 2:
            for key in (Unusual("unusual"), "\udcff"):
                cache.get_local(key)
            await asyncio.sleep(0)
    hot.stop()
    assert len(found) == 2
    if show_keys:
        assert {key.key for key in found} == {"unusual", "\\udcff"}


async def test_a_loader_and_a_decorated_function_are_sampled(cache):
    sample = ReadSample(cache)
    sample.take(10)

    async def load(key):
        return key

    assert await cache.get_or_load("loaded", load) == "loaded"

    @cache.cached()
    async def square(number):
        return number * number

    assert await square(3) == 9
    keys = sample.end()
    assert keys[0] == "loaded"
    assert len(keys) == 2


async def test_the_requests_of_a_service_are_sampled():
    async def handler(request):
        return {}

    async with PerformanceService(Settings(), handler=handler) as service:
        sample = ReadSample(service.cache, service)
        sample.take(10)
        for number in (1, 2, 1):
            await service.process_request({"id": number})
        keys = sample.end()
        original = service._get_local
        assert original is service.cache.get_local
    assert len(keys) == 3
    assert keys[0] == keys[2]


def test_the_sketch_finds_the_most_frequent_of_many_keys():
    chance = random.Random(7)
    keys = [f"k{int(chance.paretovariate(0.9))}" for _ in range(20_000)]
    sketch = SpaceSaving(128)
    sketch.add(keys)
    true = Counter(keys)
    top = sketch.top(10)
    assert {key for key, _, _ in top} == {key for key, _ in true.most_common(10)}
    for key, count, error in top:
        assert count - error <= true[key] <= count


def test_what_was_hot_long_ago_is_forgotten():
    sketch = SpaceSaving(4)
    sketch.add(["old"] * 100)
    for _ in range(6):
        sketch.fade(0.5)
        sketch.add(["new"] * 10)
    assert sketch.top(1)[0][0] == "new"


async def hottest(cache, hot, key):
    """Read a key until it is among the hot ones, and return the share of each of them."""
    async with asyncio.timeout(60):
        while key not in (found := {one.key: one.share for one in hot.top(5)}):
            cache.get_local(key)
            await asyncio.sleep(0)
    return found


async def test_few_reads_are_forgotten_after_a_minute_as_well(cache):
    now = 0.0
    hot = HotKeys("keys", cache, show_keys=True, uniform=lambda low, high: 0, clock=lambda: now)
    hot.start()
    await hottest(cache, hot, "old")
    # The loop may have been busy for so long.
    now = 120.0
    assert list(await hottest(cache, hot, "new")) == ["new"]
    hot.stop()


async def test_a_new_viewer_sees_no_keys_of_the_time_of_the_last_one(cache):
    hot = HotKeys("keys", cache, show_keys=True, uniform=lambda low, high: 0, clock=lambda: 0.0)
    hot.start()
    await hottest(cache, hot, "old")
    hot.stop()
    hot.start()
    assert await hottest(cache, hot, "new") == {"new": 1.0}
    hot.stop()


async def test_keys_are_digests_unless_asked_for(cache):
    shown = {}
    for show_keys in (False, True):
        hot = HotKeys("keys", cache, show_keys=show_keys, uniform=lambda low, high: 0)
        hot.start()
        while not (found := hot.top(5)):
            await asyncio.sleep(0)
            await cache.get("user:7:password\n")
        hot.stop()
        shown[show_keys] = found[0].key
    assert shown[True] == "user:7:password\\n"
    assert len(shown[False]) == 16
    other = HotKeys("keys", cache, show_keys=False)
    assert other._shown("user:7:password\n") != shown[False]
