"""Every reference that a cache takes is released, however an entry is removed."""

import gc
import sys
import sysconfig
import weakref

import pytest

ENTRY_BYTES = {"c": 72, "python": 300}
POLICY_BYTES = {"c": 24, "python": 400}


class Thing:
    """Hashable, weakly referable, and no constant that the interpreter keeps."""


def count(*things):
    return [sys.getrefcount(thing) for thing in things]


def failing(*arguments):
    raise LookupError


def expired_and(action):
    def act(cache, key, clock):
        clock.advance(100)
        action(cache, key)

    return act


REMOVALS = {
    "pop": lambda cache, key, clock: cache.pop(key),
    "del": lambda cache, key, clock: cache.__delitem__(key),
    "popitem": lambda cache, key, clock: cache.popitem(),
    "clear": lambda cache, key, clock: cache.clear(),
    "resize": lambda cache, key, clock: (cache.set(1, 1), cache.resize(1)),
    "evict": lambda cache, key, clock: [(cache.set(i, i), cache.get(i), cache.get(i)) for i in range(40)],
    "expire": expired_and(lambda cache, key: cache.expire()),
    "get of the expired": expired_and(lambda cache, key: cache.get(key)),
    "pop of the expired": expired_and(lambda cache, key: cache.pop(key, None)),
    "setdefault over the expired": expired_and(lambda cache, key: (cache.setdefault(key, 1), cache.clear())),
    "set over the expired": expired_and(lambda cache, key: (cache.set(key, 1), cache.clear())),
    "resize of the expired": expired_and(lambda cache, key: (cache.set(1, 1), cache.resize(1))),
    "popitem of the expired": expired_and(lambda cache, key: (cache.set(1, 1), cache.popitem())),
}


@pytest.mark.parametrize(
    "on_evict", [None, lambda key, value, reason: None, "failing"], ids=["alone", "reported", "failing"]
)
@pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)
def test_a_removed_entry_gives_its_references_back(caches, clock, monkeypatch, remove, on_evict):
    monkeypatch.setattr(sys, "unraisablehook", lambda args: None)
    cache = caches.create(4, 60, clock=clock, on_evict=failing if on_evict == "failing" else on_evict)
    key, value = Thing(), Thing()
    before = count(key, value)
    cache.set(key, value)
    assert count(key, value) == [number + 1 for number in before]
    remove(cache, key, clock)
    assert count(key, value) == before


def test_looking_takes_no_references(caches, clock):
    cache = caches.create(4, 60, clock=clock)
    key, value, other = Thing(), Thing(), Thing()
    cache.set(key, value)
    before = count(key, value, other)
    for missing in (key, other):
        cache.get(missing)
        cache.get(missing, other)
        cache.peek(missing, other)
        cache.pop(other, None)
        assert (missing in cache) is (missing is key)
        for action in (cache.expires_in, cache.__getitem__):
            try:
                action(missing)
            except KeyError:
                assert missing is other
    del missing
    cache.setdefault(key, other)
    for listing in (cache.keys, cache.values, cache.items, lambda: list(cache)):
        listing()
    if caches.kind is caches.core.RecordingCache:
        # What it has recorded refers to the keys.
        cache.take_hits()
    assert count(key, value, other) == before


def test_an_update_exchanges_the_value_and_keeps_the_key(caches):
    cache = caches.create(4)
    key, old, new = Thing(), Thing(), Thing()
    before = count(key, old, new)
    cache.set(key, old)
    cache.set(key, new)
    assert count(key, old, new) == [before[0] + 1, before[1], before[2] + 1]
    cache.set(key, new)
    assert count(key, old, new) == [before[0] + 1, before[1], before[2] + 1]


def test_an_operation_that_fails_keeps_no_reference(caches):
    class Broken(Thing):
        def __hash__(self):
            return 1

        def __eq__(self, other):
            raise LookupError

    cache = caches.create(4)
    stored, key, value = Broken(), Broken(), Thing()
    cache.set(stored, 1)
    before = count(stored, key, value)
    for action in (
        lambda: cache.set(key, value),
        lambda: cache.set(key, value, ttl=-1),
        lambda: cache.set([], value),
        lambda: cache.setdefault(key, value),
        lambda: cache.get(key, value),
        lambda: cache.get(key, value, 1),
        lambda: cache.pop(key, value),
    ):
        try:
            action()
        except (LookupError, TypeError, ValueError):
            continue
        pytest.fail("nothing was raised")
    assert count(stored, key, value) == before


@pytest.mark.parametrize("entries", [1, 8, 9, 100])
def test_a_cache_that_goes_gives_every_reference_back(caches, entries):
    cache = caches.create(50)
    things = [Thing() for _ in range(2 * entries)]
    before = count(*things)
    for i in range(entries):
        cache.set(things[i], things[entries + i])
    assert sum(count(*things)) == sum(before) + 2 * min(entries, 50)
    del cache
    assert count(*things) == before


@pytest.mark.order_of_use
def test_growing_and_shrinking_moves_references_without_taking_any(caches):
    cache = caches.create(1_000)
    things = [Thing() for _ in range(500)]
    before = count(*things)
    cache.update((thing, thing) for thing in things)
    assert count(*things) == [number + 2 for number in before]
    cache.resize(10)
    assert count(*things) == before[:490] + [number + 2 for number in before[490:]]
    cache.resize(1_000)
    cache.clear()
    assert count(*things) == before


def cycle_through_a_value(caches):
    cache = caches.create(4)
    cache.set(1, [cache])
    return cache


def cycle_through_a_key(caches):
    cache = caches.create(4)
    key = Thing()
    key.cache = cache
    cache.set(key, 1)
    return cache


def cycle_through_the_callback(caches):
    cache = caches.create(4)
    cache.on_evict = lambda key, value, reason: cache.clear()
    return cache


def cycle_through_the_clock(caches):
    holder = []
    cache = caches.create(4, 60, clock=lambda: len(holder))
    holder.append(cache)
    return cache


def cycle_of_two(caches):
    cache, other = caches.create(4), caches.create(4)
    cache.set("other", other)
    other.set("other", cache)
    return cache


@pytest.mark.parametrize(
    "make",
    [
        cycle_through_a_value,
        cycle_through_a_key,
        cycle_through_the_callback,
        cycle_through_the_clock,
        cycle_of_two,
    ],
)
def test_a_cycle_through_a_cache_is_collected(caches, make):
    cache = make(caches)
    reference = weakref.ref(cache)
    gc.collect()
    assert reference() is cache
    del cache
    gc.collect()
    assert reference() is None


def test_the_garbage_collector_sees_every_key_and_value(caches):
    cache = caches.create(100)
    things = [Thing() for _ in range(60)]
    for key, value in zip(things[:30], things[30:], strict=True):
        cache.set(key, value)
    reached, new = set(), [cache]
    while new:
        found = [item for item in gc.get_referents(*new) if id(item) not in reached and not isinstance(item, type)]
        reached.update(map(id, found))
        new = found if len(reached) < 100_000 else []
    assert reached >= set(map(id, things))


def test_a_value_may_use_a_cache_that_is_being_collected(caches):
    used = []

    class Using:
        def __init__(self, cache):
            self.cache = cache

        def __del__(self):
            self.cache.set("late", 1)
            used.append((self.cache.get("late"), len(self.cache.items()), self.cache.pop("late")))

    cache = caches.create(4)
    cache.set("using", Using(cache))
    reference = weakref.ref(cache)
    del cache
    gc.collect()
    gc.collect()
    assert used == [(1, 2, 1)]
    assert reference() is None


def test_a_hundred_thousand_entries_take_what_is_promised(caches):
    promised = ENTRY_BYTES[caches.core.IMPLEMENTATION]
    if not caches.in_order:
        promised += POLICY_BYTES[caches.core.IMPLEMENTATION]
    for maxsize in (100_000, 2**30):
        cache = caches.create(maxsize)
        for i in range(100_000):
            cache.set(i, None)
        assert sys.getsizeof(cache) <= 100_000 * promised


def test_a_timer_keeps_its_histogram_and_nothing_more(core):
    histogram = core.LatencyHistogram()
    before = count(histogram)
    timer = histogram.time()
    with timer:
        pass
    assert count(histogram) == [before[0] + 1]
    del timer
    assert count(histogram) == before


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="only CPython's allocator can be reported to fail")
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="without the GIL CPython does not survive it itself: 3.13t hangs or crashes on [None] * 200 alone",
)
def test_running_out_of_memory_is_a_memory_error_and_leaves_everything_whole(isolated):
    pytest.importorskip("_testcapi", reason="an interpreter without its own test module")
    pytest.importorskip("acgsperf._core", reason="the twin leaves memory to the interpreter")
    isolated("out_of_memory.py")


@pytest.mark.order_of_use
def test_caches_within_caches_are_freed_however_deep(isolated, caches):
    isolated("nested.py", caches.variant)


def test_every_operation_is_tried_without_memory_and_for_lost_references(isolated):
    pytest.importorskip("acgsperf._core", reason="the twin leaves memory to the interpreter")
    isolated("operations.py", "complete")


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="only CPython's allocator can be reported to fail")
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="without the GIL CPython does not survive it itself"
)
def test_every_operation_without_memory_raises_a_memory_error_and_leaves_its_object_whole(isolated):
    pytest.importorskip("_testcapi", reason="an interpreter without its own test module")
    pytest.importorskip("acgsperf._core", reason="the twin leaves memory to the interpreter")
    isolated("operations.py", "failures")


def test_no_operation_loses_references(isolated):
    pytest.importorskip("acgsperf._core", reason="the twin leaves memory to the interpreter")
    isolated("operations.py", "references")
