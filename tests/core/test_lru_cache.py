import copy
import dataclasses
import math
import pickle
import sys
import time
import weakref
from collections.abc import MutableMapping
from fractions import Fraction

import pytest

from acgsperf import CacheStats, EvictionReason


class Log(list):
    """An `on_evict` that records its calls."""

    def __call__(self, key, value, reason):
        self.append((key, value, reason))


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def cache(caches, clock, log):
    return caches.create(3, 60.0, clock=clock, on_evict=log)


def filled(cache, keys="abc"):
    for key in keys:
        cache.set(key, key.upper())
    return cache


def test_a_stored_value_is_found(cache):
    cache.set("a", 1)
    assert cache.get("a") == 1
    assert cache["a"] == 1
    assert "a" in cache
    assert len(cache) == 1


@pytest.mark.parametrize("value", [None, 0, False, "", [], Ellipsis])
def test_a_stored_falsy_value_is_a_hit(cache, value):
    cache.set("a", value)
    assert cache.get("a", "default") is value
    assert cache.peek("a", "default") is value
    assert cache.setdefault("a", "default") is value
    assert "a" in cache
    assert cache.stats().hits == 2
    assert cache.pop("a", "default") is value


def test_a_missing_key_gives_the_default(cache):
    assert cache.get("a") is None
    assert cache.get("a", 7) == 7
    assert cache.peek("a") is None
    assert cache.peek("a", 7) == 7
    assert cache.pop("a", 7) == 7
    assert cache.pop("a", None) is None


def test_a_missing_key_without_a_default_is_a_key_error(cache):
    for action in (cache.__getitem__, cache.__delitem__, cache.pop, cache.expires_in):
        with pytest.raises(KeyError) as raised:
            action("nobody")
        assert raised.value.args == ("nobody",)
    with pytest.raises(KeyError, match="empty"):
        cache.popitem()


@pytest.mark.order_of_use
def test_the_least_recently_used_entry_makes_room(cache, log):
    filled(cache)
    cache.get("a")
    cache.set("d", "D")
    assert cache.keys() == ["c", "a", "d"]
    assert log == [("b", "B", EvictionReason.SIZE)]
    assert cache.stats().evictions == 1


@pytest.mark.order_of_use
def test_setting_and_setdefault_and_getitem_make_an_entry_the_most_recent(cache):
    filled(cache)
    cache["a"] = 1
    cache.setdefault("b", 2)
    cache["c"]
    cache.get("a")
    assert cache.keys() == ["b", "c", "a"]


def test_looking_without_touching_changes_neither_order_nor_counters(cache):
    filled(cache)
    before = cache.stats()
    assert cache.peek("a") == "A"
    assert "a" in cache
    assert "z" not in cache
    assert list(cache) == ["a", "b", "c"]
    assert cache.values() == ["A", "B", "C"]
    assert cache.items() == [("a", "A"), ("b", "B"), ("c", "C")]
    assert cache.expires_in("a") == 60.0
    assert cache.keys() == ["a", "b", "c"]
    assert cache.stats() == before


def test_an_update_keeps_the_key_that_was_stored_first(cache):
    first, second = 1, 1.0
    cache.set(first, "int")
    cache.set(second, "float")
    assert cache.items() == [(1, "float")]
    assert type(cache.keys()[0]) is int
    assert cache.stats().insertions == 1
    assert cache.stats().updates == 1


def test_an_entry_expires_exactly_at_its_time(cache, clock, log):
    cache.set("a", 1)
    clock.advance(59.999999999)
    assert cache.get("a") == 1
    clock.now = 1_060.0
    assert "a" not in cache
    assert cache.peek("a") is None
    assert log == []
    assert cache.get("a") is None
    assert log == [("a", 1, EvictionReason.EXPIRED)]
    assert len(cache) == 0
    assert cache.stats() == CacheStats(
        hits=1, misses=1, insertions=1, updates=0, evictions=0, expirations=1, size=0, maxsize=3
    )


def test_an_entry_can_have_a_ttl_of_its_own(cache, clock):
    cache.set("short", 1, 5)
    cache.set("never", 2, None)
    cache.set("usual", 3)
    assert cache.expires_in("short") == 5.0
    assert cache.expires_in("never") is None
    clock.advance(5)
    assert cache.keys() == ["never", "usual"]
    clock.advance(1e9)
    assert cache.keys() == ["never"]


def test_an_update_gives_an_entry_a_new_time(cache, clock):
    cache.set("a", 1)
    clock.advance(50)
    cache.set("a", 2)
    clock.advance(50)
    assert cache.get("a") == 2
    cache.set("a", 3, ttl=1)
    clock.advance(1)
    assert "a" not in cache


@pytest.mark.parametrize("ttl", [0.5, 1, Fraction(1, 4), 1e-9])
def test_any_positive_number_of_seconds_is_a_ttl(caches, clock, ttl):
    cache = caches.create(1, clock=clock)
    cache.set("a", 1, ttl)
    assert cache.expires_in("a") == pytest.approx(float(ttl), abs=1e-9)


@pytest.mark.parametrize("ttl", [float("inf"), 1e300, 10**400, 2**33])
def test_a_ttl_beyond_measure_is_never(caches, ttl):
    cache = caches.create(1, ttl)
    cache.set("a", 1)
    assert cache.expires_in("a") is None
    assert cache.ttl == float("inf")


def test_a_ttl_below_a_nanosecond_is_a_nanosecond(caches, clock):
    cache = caches.create(1, 1e-300, clock=clock)
    clock.now = 0.0
    cache.set("a", 1)
    assert "a" in cache
    clock.now = 1e-9
    assert "a" not in cache


def test_the_clock_is_monotonic_when_none_is_given(caches):
    cache = caches.create(2, 3600)
    cache.set("a", 1)
    cache.set("gone", 2, 1e-9)
    assert 3599 < cache.expires_in("a") <= 3600
    assert cache.get("a") == 1
    while "gone" in cache:
        pass
    assert cache.expire() == 1
    assert cache.keys() == ["a"]


def test_reads_miss_from_the_time_until_which_the_cache_answers(cache, clock, log):
    filled(cache)
    cache.answers_until = 1_001.0
    clock.now = 1_000.999999999
    assert (cache.get("a"), cache["b"], cache.setdefault("c", "other"), "a" in cache) == ("A", "B", "C", True)
    clock.now = 1_001.0
    before = cache.stats()
    assert cache.get("a") is None
    assert cache.get("a", "default") == "default"
    with pytest.raises(KeyError, match="a"):
        cache["a"]
    assert "a" not in cache
    assert cache.stats() == dataclasses.replace(before, misses=before.misses + 3)
    assert log == []
    # Every entry is still there, in its order.
    assert cache.items() == [("a", "A"), ("b", "B"), ("c", "C")]
    cache.answers_until = 1_001.5
    assert (cache.get("a"), "a" in cache) == ("A", True)
    cache.answers_until = None
    clock.now = 1_059.0
    assert cache.get("a") == "A"


def test_what_looks_after_the_entries_ignores_until_when_the_cache_answers(cache, clock):
    filled(cache)
    cache.answers_until = -math.inf
    assert cache.peek("a") == "A"
    assert cache.expires_in("a") == 60.0
    assert list(cache) == ["a", "b", "c"]
    assert cache.values() == ["A", "B", "C"]
    assert len(cache) == 3
    assert cache.expire() == 0
    assert cache.pop("b") == "B"
    assert cache.popitem() == ("a", "A")
    cache.set("c", "new")
    assert cache.stats().updates == 1
    del cache["c"]
    assert len(cache) == 0


def test_setdefault_replaces_what_the_cache_does_not_answer_with(cache, clock, log):
    filled(cache)
    cache.answers_until = clock.now
    assert cache.setdefault("a", "new") == "new"
    assert sorted(cache.items()) == [("a", "new"), ("b", "B"), ("c", "C")]
    assert log == []
    assert (cache.stats().misses, cache.stats().updates) == (1, 1)


def test_an_expired_entry_is_removed_even_if_the_cache_does_not_answer(cache, clock, log):
    cache.set("a", 1)
    cache.answers_until = 1_030.0
    clock.now = 1_060.0
    assert cache.get("a") is None
    assert log == [("a", 1, EvictionReason.EXPIRED)]
    assert (cache.stats().misses, cache.stats().expirations) == (1, 1)


def test_without_a_clock_the_cache_answers_until_a_time_of_the_monotonic_one(caches):
    cache = caches.create(2, 3600)
    cache.set("a", 1)
    cache.set("never", 2, None)
    for later in (3600, 0.001):
        cache.answers_until = time.monotonic() + later
    while "a" in cache:
        pass
    assert time.monotonic() >= cache.answers_until
    assert (cache.get("a"), cache.get("never")) == (None, None)
    cache.answers_until = time.monotonic() + 3600
    assert (cache.get("a"), cache.get("never")) == (1, 2)


@pytest.mark.parametrize(
    ("time", "stored"),
    [(None, None), (5, 5.0), (Fraction(1, 4), 0.25), (-2.5, -2.5), (0.1, 0.1), (123_456.789, 123_456.789)]
    + [(never, None) for never in (math.inf, 1e300, 10**400, 2**33)]
    + [(past, -(2**62) / 1e9) for past in (-math.inf, -1e300, -(10**400), -(2**33))],
)
def test_any_time_may_be_the_last_at_which_a_cache_answers(caches, time, stored):
    cache = caches.create(1)
    assert cache.answers_until is None
    cache.answers_until = time
    assert repr(cache.answers_until) == repr(stored)


@pytest.mark.parametrize("time", [math.nan, "1", b"1", True, [], 1j])
def test_what_is_not_a_time_is_refused(caches, time):
    cache = caches.create(1)
    cache.answers_until = 7.0
    with pytest.raises((TypeError, ValueError), match=r"answers_until must be a (number of seconds or None|time), got"):
        cache.answers_until = time
    assert cache.answers_until == 7.0


def test_setting_an_expired_key_is_an_expiration_and_an_insertion(cache, clock, log):
    cache.set("a", 1)
    clock.advance(60)
    cache.set("a", 2)
    assert log == [("a", 1, EvictionReason.EXPIRED)]
    assert cache.get("a") == 2
    stats = cache.stats()
    assert (stats.insertions, stats.updates, stats.expirations, stats.evictions) == (2, 0, 1, 0)


@pytest.mark.order_of_use
def test_what_size_removes_after_its_time_counts_as_expired(cache, clock, log):
    cache.set("a", "A", 1)
    filled(cache, "bc")
    clock.advance(1)
    cache.set("d", "D")
    assert log == [("a", "A", EvictionReason.EXPIRED)]
    assert cache.stats().evictions == 0
    assert cache.stats().expirations == 1


def test_expire_removes_what_is_over_oldest_first(caches, clock, log):
    cache = caches.create(10, clock=clock, on_evict=log)
    for i in range(6):
        cache.set(i, i, 1 if i % 2 else 100)
    clock.advance(1)
    assert cache.expire() == 3
    assert [key for key, _, _ in log] == [1, 3, 5]
    assert {reason for _, _, reason in log} == {EvictionReason.EXPIRED}
    assert cache.keys() == [0, 2, 4]
    assert cache.expire() == 0


def test_setdefault_stores_only_what_is_missing(cache, clock):
    assert cache.setdefault("a") is None
    assert cache.setdefault("b", 1) == 1
    assert cache.setdefault("b", 2) == 1
    clock.advance(60)
    assert cache.setdefault("b", 3) == 3
    assert cache.items() == [("b", 3)]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.insertions, stats.expirations) == (1, 3, 3, 1)


def test_pop_removes_without_counting_a_hit_or_a_miss(cache, log):
    filled(cache)
    assert cache.pop("b") == "B"
    assert cache.keys() == ["a", "c"]
    assert cache.pop("b", None) is None
    assert log == []
    assert cache.stats().hits == cache.stats().misses == 0


def test_popping_an_expired_key_is_an_expiration(cache, clock, log):
    cache.set("a", 1)
    clock.advance(60)
    with pytest.raises(KeyError):
        cache.pop("a")
    assert log == [("a", 1, EvictionReason.EXPIRED)]
    assert len(cache) == 0


@pytest.mark.order_of_use
def test_popitem_gives_the_oldest_fresh_entry(cache, clock, log):
    cache.set("a", "A", 1)
    filled(cache, "bc")
    clock.advance(1)
    assert cache.popitem() == ("b", "B")
    assert cache.popitem() == ("c", "C")
    assert log == [("a", "A", EvictionReason.EXPIRED)]
    with pytest.raises(KeyError):
        cache.popitem()


def test_deleting_and_clearing_tell_nobody(cache, clock, log):
    filled(cache)
    del cache["b"]
    clock.advance(60)
    del cache["a"]
    cache.clear()
    assert len(cache) == 0
    assert log == []
    assert cache.stats().insertions == 3
    filled(cache)
    assert cache.keys() == ["a", "b", "c"]


def test_update_takes_mappings_and_pairs(cache):
    cache.update({"a": 1})
    cache.update([("b", 2)])
    cache.update(("c", 3) for _ in range(1))
    cache.update()
    assert cache.items() == [("a", 1), ("b", 2), ("c", 3)]


@pytest.mark.order_of_use
def test_resize_evicts_the_least_recently_used(cache, log):
    filled(cache)
    cache.resize(1)
    assert cache.maxsize == 1
    assert cache.items() == [("c", "C")]
    assert [key for key, _, _ in log] == ["a", "b"]
    cache.resize(5)
    filled(cache, "defgh")
    assert cache.keys() == list("defgh")


@pytest.mark.order_of_use
def test_reversed_gives_the_most_recently_used_first(cache):
    filled(cache)
    cache.get("a")
    assert list(reversed(cache)) == ["a", "c", "b"]


def test_a_clock_that_returns_text_is_refused(caches):
    cache = caches.create(1, clock=lambda: "1.5")
    with pytest.raises(TypeError, match="must be real number, not str"):
        cache.set("a", 1)


def test_iterating_goes_over_a_snapshot(cache):
    filled(cache)
    seen = []
    for key in cache:
        seen.append(key)
        cache.clear()
    assert seen == ["a", "b", "c"]


def test_snapshots_are_lists_of_the_callers_own(cache):
    filled(cache)
    cache.keys().clear()
    cache.items().clear()
    assert len(cache) == 3


def test_counters_can_be_reset(cache):
    filled(cache)
    cache.get("a")
    cache.get("z")
    assert cache.stats().hit_rate == 0.5
    cache.reset_stats()
    assert cache.stats() == CacheStats(0, 0, 0, 0, 0, 0, 3, 3)
    assert cache.stats().hit_rate == 0.0


def test_the_callback_may_be_replaced(cache, log):
    other = Log()
    filled(cache)
    cache.on_evict = other
    cache.set("d", 1)
    cache.on_evict = None
    cache.set("e", 1)
    assert log == []
    assert len(other) == 1
    with pytest.raises(TypeError, match="on_evict must be callable or None, got 3"):
        cache.on_evict = 3
    assert cache.on_evict is None


def test_the_callback_sees_the_new_entry_and_not_the_old(caches):
    seen = []
    cache = caches.create(2, on_evict=lambda key, value, reason: seen.append((key, cache.keys())))
    for key in "abc":
        cache.set(key, 1)
    assert seen == [("a", ["b", "c"])]


def test_what_a_callback_raises_goes_to_the_unraisable_hook(caches, monkeypatch):
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_value))

    def refuse(key, value, reason):
        raise ValueError(key)

    cache = caches.create(1, on_evict=refuse)
    cache.set("a", 1)
    cache.set("b", 2)
    assert cache.items() == [("b", 2)]
    assert [str(error) for error in raised] == ["a"]


@pytest.mark.parametrize("maxsize", [0, -1, 2**30 + 1, 10**30])
def test_a_size_out_of_range_is_a_value_error(caches, cache, maxsize):
    message = f"maxsize must be between 1 and 1073741824, got {maxsize}"
    with pytest.raises(ValueError, match=message):
        caches.create(maxsize)
    filled(cache)
    with pytest.raises(ValueError, match=message):
        cache.resize(maxsize)
    assert cache.maxsize == 3
    assert len(cache) == 3


@pytest.mark.parametrize("maxsize", [None, 1.5, "1", True])
def test_a_size_that_is_no_integer_is_a_type_error(caches, cache, maxsize):
    message = f"maxsize must be an integer, got {maxsize!r}"
    with pytest.raises(TypeError, match=message):
        caches.create(maxsize)
    with pytest.raises(TypeError, match=message):
        cache.resize(maxsize)
    assert cache.maxsize == 3


@pytest.mark.parametrize(
    ("ttl", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (-(10**400), ValueError),
        ("1", TypeError),
        (b"1", TypeError),
        (True, TypeError),
        ([], TypeError),
        (1j, TypeError),
    ],
)
def test_a_bad_ttl_is_refused_and_changes_nothing(caches, cache, ttl, error):
    with pytest.raises(error, match=r"ttl must be (a number of seconds or None|greater than 0), got"):
        caches.create(1, ttl)
    filled(cache)
    before = cache.stats()
    for key in ("a", "new"):
        with pytest.raises(error, match=r"ttl must be (a number of seconds or None|greater than 0), got"):
            cache.set(key, 1, ttl)
    assert cache.items() == [("a", "A"), ("b", "B"), ("c", "C")]
    assert cache.stats() == before


def test_a_clock_that_is_none_is_refused(caches):
    with pytest.raises(TypeError, match="clock must be callable or None, got 5"):
        caches.create(1, clock=5)


@pytest.mark.parametrize("now", [float("nan"), float("inf"), -5e9, 5e9])
def test_a_clock_that_tells_nonsense_is_refused_and_changes_nothing(cache, clock, now):
    filled(cache)
    before = cache.stats()
    clock.now = now
    for action in (
        lambda: cache.get("a"),
        lambda: cache.set("z", 1),
        lambda: cache.pop("a"),
        lambda: cache.keys(),
        lambda: cache.resize(1),
        cache.expire,
        cache.popitem,
    ):
        with pytest.raises(ValueError, match="clock must return seconds within 4e9 of zero"):
            action()
    clock.now = 1_000.0
    assert cache.stats() == before
    assert cache.keys() == ["a", "b", "c"]


def test_what_the_clock_raises_passes_through(caches):
    def broken():
        raise LookupError("no time")

    cache = caches.create(1, clock=broken)
    with pytest.raises(LookupError, match="no time"):
        cache.set("a", 1)
    with pytest.raises(LookupError, match="no time"):
        cache.get("a")
    assert len(cache) == 0
    assert cache.stats() == CacheStats(0, 0, 0, 0, 0, 0, 0, 1)


def test_an_unhashable_key_is_refused_by_every_operation(cache):
    filled(cache)
    before = cache.stats()
    for action in (
        lambda: cache.get([]),
        lambda: cache.peek([]),
        lambda: cache.set([], 1),
        lambda: cache.setdefault([], 1),
        lambda: cache.pop([]),
        lambda: cache.pop([], None),
        lambda: cache.expires_in([]),
        lambda: cache[[]],
        lambda: cache.__setitem__([], 1),
        lambda: cache.__delitem__([]),
        lambda: [] in cache,
    ):
        with pytest.raises(TypeError, match="unhashable type: 'list'"):
            action()
    assert cache.stats() == before


def test_get_takes_one_key_and_one_default_by_position(cache):
    for arguments in ((), (1, 2, 3)):
        with pytest.raises(TypeError):
            cache.get(*arguments)
    with pytest.raises(TypeError):
        cache.get("a", default=1)


def test_keys_of_every_hashable_type_live_side_by_side(caches):
    keys = ["a", b"a", 1, 2.5, (1, "a"), None, frozenset({1}), Ellipsis, "ä", "€", "🜁", 2**70, -1, -2]
    cache = caches.create(100)
    for i, key in enumerate(keys):
        cache.set(key, i)
    assert [cache.get(key) for key in keys] == list(range(len(keys)))


@pytest.mark.parametrize("count", [100, 400])
def test_keys_that_share_a_hash_are_told_apart(caches, count):
    class Same:
        def __init__(self, name):
            self.name = name

        def __hash__(self):
            return 7

        def __eq__(self, other):
            return self.name == other.name

    cache = caches.create(count)
    for i in range(count):
        cache.set(Same(i), i)
    for i in range(0, count, 2):
        del cache[Same(i)]
    assert [cache.get(Same(i)) for i in range(count)] == [i if i % 2 else None for i in range(count)]


def test_a_str_subclass_with_an_equality_of_its_own_is_asked(caches):
    class Loud(str):
        __slots__ = ()

        def __eq__(self, other):
            return str(self).upper() == str(other).upper()

        __hash__ = str.__hash__

    cache = caches.create(10)
    cache.set(Loud("a"), 1)
    assert cache.get("a") == 1


def test_an_equality_that_raises_passes_through_and_changes_nothing(caches):
    class Broken:
        def __hash__(self):
            return 1

        def __eq__(self, other):
            raise LookupError("cannot compare")

    cache = caches.create(10)
    cache.set(Broken(), 1)
    for action in (cache.get, cache.pop, cache.peek, cache.__delitem__, lambda key: cache.set(key, 2)):
        with pytest.raises(LookupError, match="cannot compare"):
            action(Broken())
    assert cache.values() == [1]


@pytest.mark.order_of_use
def test_many_entries_come_and_go(caches):
    cache = caches.create(1_000)
    for i in range(10_000):
        cache.set(f"key:{i}", i)
        if i % 3 == 0:
            cache.pop(f"key:{i - 500}", None)
    keys = cache.keys()
    assert len(keys) == len(cache) <= 1_000
    assert all(cache.get(key) == int(key[4:]) for key in keys)
    assert keys == sorted(keys, key=lambda key: int(key[4:]))


def test_it_is_a_mutable_mapping_without_being_equal_to_a_dict(caches):
    cache = filled(caches.create(3))
    assert isinstance(cache, MutableMapping)
    assert dict(cache.items()) == {"a": "A", "b": "B", "c": "C"}
    assert dict(cache) == {"a": "A", "b": "B", "c": "C"}
    assert cache != {"a": "A", "b": "B", "c": "C"}
    assert cache != filled(caches.create(3))
    assert hash(cache) == hash(cache)
    match cache:
        case {"a": found}:
            assert found == "A"
        case _:
            pytest.fail("a mapping pattern did not match")


def test_it_says_what_it_is(caches):
    cache = caches.create(10, 60)
    cache.set(1, 2)
    assert repr(cache) == f"<{caches.kind.__name__} size=1 maxsize=10 ttl=60.0>"
    assert repr(caches.create(10)) == f"<{caches.kind.__name__} size=0 maxsize=10 ttl=None>"
    assert cache.ttl == 60.0
    assert str(caches.kind[str, int]).endswith(f"{caches.kind.__name__}[str, int]")


@pytest.mark.parametrize("name", ["maxsize", "ttl", "anything"])
def test_its_attributes_cannot_be_set(caches, name):
    cache = caches.create(10, 60)
    with pytest.raises(AttributeError):
        setattr(cache, name, 20)
    assert (cache.maxsize, cache.ttl) == (10, 60.0)


def test_it_cannot_be_pickled_copied_or_derived_from(caches):
    cache = caches.create(1)
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=f"cannot pickle '{caches.kind.__name__}' object"):
            action(cache)
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (caches.kind,), {})


def test_it_can_be_referred_to_weakly(caches):
    cache = caches.create(1)
    reference = weakref.ref(cache)
    assert reference() is cache
    del cache
    assert reference() is None


def test_its_size_in_memory_grows_with_its_entries(caches):
    cache = caches.create(100_000)
    empty = sys.getsizeof(cache)
    for i in range(1_000):
        cache.set(i, i)
    assert sys.getsizeof(cache) > empty + 1_000 * 32


def test_an_empty_cache_takes_little_however_large_it_may_grow(caches):
    # The ring of a `RecordingCache` has room for 4,096 hits from the beginning.
    ring = 8 * 4_096 if caches.kind.__name__ == "RecordingCache" else 0
    assert sys.getsizeof(caches.create(2**30)) < 1_000 + ring
