"""Caches that are bounded by the weight of their entries, and the weigher in bytes."""

import json
import sys

import pytest
from conftest import IMPLEMENTATIONS, INSTRUMENTED, MODULES, imported
from hypothesis import given
from hypothesis import strategies as st

from acgsperf import EvictionReason

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


def length(key, value):
    return len(value)


@pytest.fixture(params=IMPLEMENTATIONS)
def weigh(request):
    return imported("weigh", request.param).weigh_bytes


def test_the_weights_of_all_entries_stay_within_the_limit(caches):
    cache = caches.create(maxweight=100, weigher=length)
    for i in range(200):
        cache.set(i, "x" * (i % 24 + 1))
        stats = cache.stats()
        assert stats.weight == sum(map(len, cache.values())) <= 100
    assert stats.maxweight == cache.maxweight == 100
    assert stats.evictions > 100
    assert cache.weigher is length


@pytest.mark.order_of_use
def test_a_heavy_value_evicts_as_many_old_ones_as_needed(caches):
    log = []
    cache = caches.create(maxweight=40, weigher=length, on_evict=lambda *evicted: log.append(evicted))
    for key in "abcdefgh":
        cache.set(key, "xxxxx")
    cache.get("a")
    cache.set("i", "x" * 10)
    assert cache.keys() == ["d", "e", "f", "g", "h", "a", "i"]
    assert log == [("b", "xxxxx", EvictionReason.SIZE), ("c", "xxxxx", EvictionReason.SIZE)]


def test_a_value_heavier_than_a_quarter_of_the_limit_is_not_stored(caches):
    cache = caches.create(maxweight=40, weigher=length)
    cache.set("a", "x" * 10)
    cache.set("b", "x" * 11)
    assert cache.keys() == ["a"]
    assert cache.stats().rejections == 1
    cache.set("a", "x" * 11)
    assert cache.keys() == []
    assert cache.setdefault("c", "x" * 11) == "x" * 11
    assert len(cache) == 0
    assert (cache.stats().rejections, cache.stats().weight, cache.stats().evictions) == (3, 0, 0)


def test_an_update_changes_the_weight_and_may_evict_others(caches):
    cache = caches.create(maxweight=40, weigher=length)
    for key in "abcd":
        cache.set(key, "x" * 9)
    cache.set("a", "x")
    assert cache.stats().weight == 28
    cache.set("a", "x" * 10)
    assert cache.stats().weight == 37
    for key in "abcd":
        cache.set(key, "x" * 10)
    assert cache.stats().weight == 40
    assert cache.stats().evictions == 0
    cache.resize(maxweight=44)
    cache.set("e", "xxxx")
    cache.set("e", "x" * 10)
    assert cache.get("e") == "x" * 10
    assert cache.stats().weight == 40
    assert cache.stats().evictions == 1


def test_both_limits_hold_at_once(caches):
    cache = caches.create(5, maxweight=40, weigher=length)
    for i in range(20):
        cache.set(i, "x")
    assert len(cache) == 5
    for i in range(20):
        cache.set(i, "x" * 10)
    assert cache.stats().weight <= 40
    assert len(cache) == 4


def test_resize_changes_either_limit(caches):
    cache = caches.create(maxweight=100, weigher=length)
    for i in range(20):
        cache.set(i, "xxxxx")
    cache.resize(maxweight=50)
    assert (cache.maxweight, cache.stats().weight, len(cache)) == (50, 50, 10)
    cache.resize(4)
    assert (cache.maxsize, cache.maxweight, cache.stats().weight, len(cache)) == (4, 50, 20, 4)
    cache.resize(100, maxweight=200)
    for i in range(50):
        cache.set(i, "xxxxx")
    assert (len(cache), cache.stats().weight) == (40, 200)


def test_every_removal_gives_its_weight_back(caches, clock):
    cache = caches.create(ttl=60, maxweight=100, weigher=length, clock=clock)
    for key in "abcdef":
        cache.set(key, "xxxxx")
    cache.pop("a")
    del cache["b"]
    cache.popitem()
    assert cache.stats().weight == 15
    clock.advance(60)
    cache.get(cache.setdefault("d", "x"))
    assert cache.expire() >= 1
    assert cache.stats().weight == sum(map(len, cache.values()))
    cache.clear()
    assert cache.stats().weight == 0


def test_a_weigher_may_use_the_cache(caches):
    def clearing(key, value):
        if key == 7:
            cache.clear()
        return 1

    cache = caches.create(maxweight=10, weigher=clearing)
    for i in range(9):
        cache.set(i, i)
    assert sorted(cache.keys()) == [7, 8]


def test_without_weights_there_are_none(caches):
    cache = caches.create(3)
    assert (cache.maxweight, cache.weigher, cache.stats().weight, cache.stats().maxweight) == (None, None, None, None)
    assert cache.maxsize == 3
    assert caches.create(maxweight=3, weigher=length).maxsize == 2**30


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "maxsize must be an integer, got None; it can be left out if maxweight is given"),
        ({"maxweight": 10}, TypeError, "maxweight needs a weigher"),
        ({"maxweight": 0, "weigher": length}, ValueError, "maxweight must be between 1 and .*, got 0"),
        ({"maxweight": 1.5, "weigher": length}, TypeError, "maxweight must be an integer, got 1.5"),
        ({"maxweight": 10, "weigher": 3}, TypeError, "weigher must be callable or None, got 3"),
    ],
)
def test_a_bad_limit_is_refused(caches, arguments, error, message):
    with pytest.raises(error, match=message):
        caches.create(**arguments)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (0, ValueError, "weigher must return an integer from 1 to 2\\*\\*62, got 0"),
        (2**62 + 1, ValueError, "weigher must return an integer from 1 to"),
        (1.5, TypeError, "weigher must return an integer, got 1.5"),
    ],
)
def test_a_bad_weight_is_refused_and_changes_nothing(caches, weight, error, message):
    cache = caches.create(maxweight=10, weigher=lambda key, value: value)
    cache.set("a", 1)
    for action in (lambda: cache.set("a", weight), lambda: cache.setdefault("a", weight)):
        with pytest.raises(error, match=message):
            action()
    with pytest.raises(error, match=message):
        cache["a"] = weight
    assert cache.items() == [("a", 1)]


@given(value=JSON)
def test_both_implementations_weigh_the_same(value):
    weights = {imported("weigh", name).weigh_bytes("key", value) for name in IMPLEMENTATIONS}
    assert len(weights) == 1


def test_a_value_weighs_about_what_it_takes(weigh):
    nothing = weigh("", None)
    assert weigh("", "x" * 1_000) - nothing == pytest.approx(sys.getsizeof("x" * 1_000), abs=32)
    assert weigh("", [0.5 + i for i in range(100)]) - nothing == pytest.approx(100 * (8 + 32), rel=0.05)
    assert weigh("", {"a": [1, 2], "b": None}) < weigh("", {"a": ["xx", "yy"], "b": "zz"})


def test_nesting_and_cycles_have_an_end(weigh):
    value = []
    value.append(value)
    assert weigh("", value) > 0
    deep = json.loads("[" * 500 + "]" * 500)
    assert weigh("", deep) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the size of the process is read from /proc")
@pytest.mark.skipif("c" not in IMPLEMENTATIONS, reason="an entry of the twin takes more than one of the compiled cache")
@pytest.mark.skipif(INSTRUMENTED, reason="the allocator of a sanitizer adds to each block")
@pytest.mark.parametrize("kind", ["records", "texts", "numbers", "orders"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_process_grows_by_the_weight(isolated, implementation, kind):
    isolated("growth.py", MODULES["weigh"][implementation], kind)
