"""`AdaptiveCache(sizing=True)`: what `stats().sizing` expects of other sizes, compared with caches of these sizes."""

import json
import random

import msgspec
import pytest
from conftest import IMPLEMENTATIONS, imported


def requested(cache, keys):
    """Request every key, and store those that the cache misses."""
    get, store = cache.get, cache.set
    for key in keys:
        if get(key) is None:
            store(key, True)
    return cache


def popular(keys, requests, seed=1):
    """Request a few keys often, and most of them rarely."""
    weights = [1 / (number + 1) ** 0.9 for number in range(keys)]
    return random.Random(seed).choices(range(keys), weights, k=requests)


def loop(length, requests):
    return [number % length for number in range(requests)]


def triples(requests):
    """Request each key three times in short order, and never again."""
    return [number // 6 * 2 + number % 2 for number in range(requests)]


def changing(requests, seed=1):
    """Use other keys every 4,000 requests, in the order of a loop or at random."""
    chooser = random.Random(seed)
    return [
        start + (number % 700 if start % 8_000 else chooser.randrange(400))
        for start in range(0, requests, 4_000)
        for number in range(4_000)
    ]


TRACES = {
    "popular": (popular(8_000, 40_000), 500),
    "popular keys in a large cache": (popular(20_000, 60_000), 3_000),
    "a loop larger than the cache": (loop(900, 40_000), 500),
    "a loop that fits": (loop(900, 60_000), 1_000),
    "a loop that just fits twice the size": (loop(1_010, 40_000), 512),
    "a loop that is just too large": (loop(2_060, 60_000), 512),
    "more entries than a sample": (popular(200_000, 200_000), 10_000),
    "everything fits": (popular(800, 60_000), 1_000),
    "scan": (triples(30_000), 400),
    "phases": (changing(40_000), 300),
    "few entries": (popular(1_000, 20_000), 60),
}


@pytest.mark.skipif("c" not in IMPLEMENTATIONS, reason="the twin takes minutes")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", TRACES)
def test_the_estimates_are_within_three_points_of_a_cache_of_that_size(name, seed):
    """The hashes of texts are random. Those of numbers are not: a sample of consecutive numbers is even."""
    core = imported("core", "c")
    numbers, size = TRACES[name]
    keys = [f"key {number}" for number in numbers]
    sizing = requested(core.AdaptiveCache(size, seed=seed, sizing=True), keys).stats().sizing
    assert [found.factor for found in sizing.sizes] == [0.5, 1, 2, 4]
    for found in sizing.sizes:
        assert found.maxsize == found.factor * size
        lru = requested(core.LRUCache(found.maxsize), keys).stats().hit_rate
        adaptive = requested(core.AdaptiveCache(found.maxsize, seed=9), keys).stats().hit_rate
        assert found.lru == pytest.approx(lru, abs=0.03)
        assert found.adaptive == pytest.approx(adaptive, abs=0.03)


@pytest.mark.skipif(len(IMPLEMENTATIONS) < 2, reason="there is one implementation")
@pytest.mark.parametrize("name", ["few entries", "scan"])
def test_both_implementations_expect_the_same(name):
    keys, size = TRACES[name]
    one, other = (
        requested(imported("core", kind).AdaptiveCache(size, seed=1, sizing=True), keys[:8_000]).stats().sizing
        for kind in IMPLEMENTATIONS
    )
    assert one.requests == other.requests
    for found, expected in zip(one.sizes, other.sizes, strict=True):
        assert found.lru == pytest.approx(expected.lru, abs=0.01)
        assert found.adaptive == pytest.approx(expected.adaptive, abs=0.01)


@pytest.fixture
def cache(core):
    return requested(core.AdaptiveCache(100, seed=1, sizing=True), popular(2_000, 8_000))


def test_it_says_what_one_more_point_costs(core, cache):
    sizing = cache.stats().sizing
    assert sizing.requests == 8_000
    once, twice = sizing.sizes[1], sizing.sizes[2]
    assert once.adaptive == pytest.approx(cache.stats().hit_rate)
    assert sizing.point_entries == round(1 / (twice.adaptive - once.adaptive))
    assert sizing.point_bytes is sizing.entry_bytes is None

    weighing = core.AdaptiveCache(100, seed=1, sizing=True, weigher=lambda key, value: 50, maxweight=10_000)
    sizing = requested(weighing, popular(2_000, 8_000)).stats().sizing
    assert sizing.entry_bytes == 50
    assert sizing.point_bytes == 50 * sizing.point_entries


def test_more_entries_do_not_help_if_all_keys_fit(core):
    sizing = requested(core.AdaptiveCache(200, sizing=True), loop(100, 3_000)).stats().sizing
    assert sizing.point_entries is None
    assert sizing.sizes[1].adaptive == sizing.sizes[3].adaptive == pytest.approx(2_900 / 3_000)


def test_it_can_be_printed_as_json(cache):
    assert json.loads(msgspec.json.encode(cache.stats()))["sizing"]["sizes"][3]["maxsize"] == 400


@pytest.mark.parametrize("options", [{}, {"sizing": True, "policy": "lru"}, {"sizing": True, "policy": "s3fifo"}])
def test_there_are_no_estimates_without_the_option_or_with_a_fixed_policy(core, options):
    assert requested(core.AdaptiveCache(100, **options), popular(2_000, 4_000)).stats().sizing is None
    assert core.LRUCache(100).stats().sizing is None


def test_there_are_no_estimates_before_the_first_misses(core):
    cache = core.AdaptiveCache(100, sizing=True)
    assert cache.stats().sizing is None
    assert requested(cache, range(20)).stats().sizing is None


def test_sizing_is_a_bool(core):
    with pytest.raises(TypeError, match="sizing must be a bool, got 1"):
        core.AdaptiveCache(100, sizing=1)


def test_a_reset_forgets_the_requests_before_it(cache):
    cache.reset_stats()
    assert cache.stats().sizing is None
    sizing = requested(cache, loop(150, 6_000)).stats().sizing
    assert sizing.requests == 6_000
    assert sizing.sizes[1].lru == pytest.approx(0, abs=0.03)
    assert sizing.sizes[2].lru == pytest.approx(5_850 / 6_000, abs=0.03)


def test_another_size_starts_again(core, cache):
    cache.resize(200)
    assert cache.stats().sizing is None
    keys = popular(2_000, 6_000, seed=2)
    sizing = requested(cache, keys).stats().sizing
    assert sizing.requests == 6_000
    assert [found.maxsize for found in sizing.sizes] == [100, 200, 400, 800]
    assert sizing.sizes[2].lru == pytest.approx(requested(core.LRUCache(400), keys).stats().hit_rate, abs=0.05)


def test_a_small_change_of_the_size_changes_nothing(cache):
    cache.resize(95)
    assert cache.stats().sizing.requests == 8_000


def test_a_limit_in_bytes_has_estimates_as_soon_as_it_is_reached(core):
    cache = core.AdaptiveCache(maxweight=5_000, weigher=lambda key, value: 50, seed=1, sizing=True)
    keys = popular(2_000, 8_000)
    sizing = requested(cache, keys).stats().sizing
    assert [found.maxsize for found in sizing.sizes] == [50, 100, 200, 400]
    assert sizing.sizes[2].lru == pytest.approx(requested(core.LRUCache(200), keys).stats().hit_rate, abs=0.03)


@pytest.mark.skipif("c" not in IMPLEMENTATIONS, reason="the twin takes more")
def test_it_takes_at_most_256_kilobytes():
    core = imported("core", "c")
    for size in (100, 1_000, 100_000):
        without, cache = (requested(core.AdaptiveCache(size, sizing=sizing), range(40)) for sizing in (False, True))
        assert 0 < cache.__sizeof__() - without.__sizeof__() <= 256_000
