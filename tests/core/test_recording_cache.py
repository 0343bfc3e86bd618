"""RecordingCache: which hits it records, and what stays of them."""

import copy
import gc
import sys
import weakref

import pytest

RECORDED = 4_096


@pytest.fixture
def cache(core):
    return core.RecordingCache(5_000)


class Key:
    """A key that runs an action when it is deleted."""

    def __init__(self, action=None):
        self.action = action

    def __del__(self):
        if self.action is not None:
            self.action()


def hit(cache, key, times=1):
    """Hit a key that is removed afterwards."""
    cache[key] = 1
    for _ in range(times):
        assert cache[key] == 1
    del cache[key]


def test_every_hit_that_counts_is_recorded_in_order(cache):
    cache.update({"a": 1, "b": None})
    assert (cache["b"], cache.get("a"), cache["b"], cache.setdefault("a", 7)) == (None, 1, None, 1)
    assert cache.take_hits() == ["b", "a", "b", "a"]
    assert cache.stats().hits == 4


def test_taken_hits_are_forgotten(cache):
    cache["a"] = 1
    assert cache.take_hits() == []
    cache.get("a")
    assert cache.take_hits() == ["a"]
    assert cache.take_hits() == []


def test_nothing_else_is_recorded(core):
    now = 0.0
    cache = core.RecordingCache(5, 10, clock=lambda: now)
    cache.update({"a": 1, "expires": 2})
    cache.peek("a"), "a" in cache, cache.expires_in("a"), cache.items(), cache.get("missing")
    cache.setdefault("new", 1)
    with pytest.raises(KeyError, match="missing"):
        cache["missing"]
    cache.answers_until = 5
    now = 6.0
    assert cache.get("a") is None
    cache.answers_until = None
    now = 10.0
    assert cache.get("expires") is None
    assert cache.pop("a", None) is None
    assert cache.take_hits() == []


def test_the_latest_4096_hits_are_recorded(cache):
    cache.update((i, i) for i in range(5_000))
    for i in range(5_000):
        assert cache[i] == i
    assert cache.take_hits() == list(range(5_000 - RECORDED, 5_000))
    for i in range(10):
        cache.get(i)
    assert cache.take_hits() == list(range(10))


def test_a_full_record_starts_again_after_it_was_taken(cache):
    cache["a"] = 1
    for _ in range(3):
        for _ in range(RECORDED):
            cache.get("a")
        assert len(cache.take_hits()) == RECORDED
    cache.get("a")
    assert cache.take_hits() == ["a"]


def test_hits_stay_recorded_when_their_entries_are_removed(cache):
    cache.update({"a": 1, "b": 2, "c": 3})
    cache.get("a"), cache.get("b"), cache.get("c")
    del cache["a"]
    cache.resize(1)
    cache.clear()
    cache.reset_stats()
    assert cache.take_hits() == ["a", "b", "c"]


def test_the_key_of_the_entry_is_recorded_and_not_the_equal_one_of_the_caller(cache):
    stored, asked = "".join(["k", "1"]), "".join(["k", "1"])
    cache[stored] = 1
    assert cache[asked] == 1
    (recorded,) = cache.take_hits()
    assert recorded is stored


def test_a_cache_cannot_be_copied(cache):
    cache["a"] = 1
    cache.get("a")
    for copying in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot pickle 'RecordingCache' object"):
            copying(cache)
    assert cache.take_hits() == ["a"]


def test_a_file_of_an_lru_cache_can_be_loaded(core, tmp_path):
    saved, loaded = core.LRUCache(5), core.RecordingCache(5)
    saved["a"] = 1
    saved.save(tmp_path / "file")
    loaded.load(tmp_path / "file")
    assert loaded["a"] == 1
    assert loaded.take_hits() == ["a"]


def test_the_record_takes_32_kib_at_most(core):
    cache, plain = core.RecordingCache(5), core.LRUCache(5)
    cache["a"] = plain["a"] = 1
    for _ in range(2 * RECORDED):
        cache.get("a")
    assert 8 * RECORDED <= sys.getsizeof(cache) - sys.getsizeof(plain) <= 10 * RECORDED


def test_a_recorded_key_that_refers_to_the_cache_is_collected_with_it(core):
    cache = core.RecordingCache(5)
    key = Key()
    key.cache = cache
    hit(cache, key)
    references = weakref.ref(cache), weakref.ref(key)
    del cache, key
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_recorded_key_lives_until_it_is_taken_or_superseded(cache):
    deleted = []
    hit(cache, Key(lambda: deleted.append("taken")))
    assert deleted == []
    cache.take_hits()
    assert deleted == ["taken"]
    hit(cache, Key(lambda: deleted.append("superseded")))
    hit(cache, "a", RECORDED - 1)
    assert deleted == ["taken"]
    hit(cache, "a")
    assert deleted == ["taken", "superseded"]
    hit(cache, Key(lambda: deleted.append("gone")))
    del cache


def test_keys_are_released_with_the_cache(core):
    deleted = []
    cache = core.RecordingCache(5)
    for _ in range(3):
        hit(cache, Key(lambda: deleted.append(1)), 2)
    del cache
    gc.collect()
    assert deleted == [1, 1, 1]


USES = {
    "get": lambda cache: cache.get("a"),
    "take": lambda cache: cache.take_hits(),
    "clear": lambda cache: cache.clear(),
    "hits": lambda cache: hit(cache, "b", RECORDED + 5),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("way", ["read", "get", "setdefault", "take"])
def test_a_recorded_key_may_use_the_cache_when_it_is_deleted(core, use, way):
    cache = core.RecordingCache(5)
    value = object()
    used = []

    def act():
        used.append(use(cache))

    # The oldest one is dropped first.
    hit(cache, Key(act))
    hit(cache, "a", RECORDED - 1)
    cache["a"] = value
    found = {
        "read": lambda: cache["a"],
        "get": lambda: cache.get("a"),
        "setdefault": lambda: cache.setdefault("a"),
        "take": lambda: cache.take_hits() and value,
    }[way]()
    assert found is value
    gc.collect()
    assert len(used) == 1
    # The record is whole afterwards.
    cache.take_hits()
    cache["a"] = value
    assert cache["a"] is value
    assert cache.take_hits() == ["a"]


def test_a_recorded_key_may_use_a_cache_that_is_being_deleted(core):
    cache = core.RecordingCache(5)
    reference = weakref.ref(cache)
    used = []

    def act():
        living = reference()
        if living is not None:
            living["late"] = 1
            used.append((living["late"], living.take_hits()[-1:]))

    for _ in range(3):
        hit(cache, Key(act))
    del cache
    gc.collect()
    assert reference() is None
    assert all(found == (1, ["late"]) for found in used)


def test_a_recorded_key_may_use_the_cache_while_both_are_collected(core):
    cache = core.RecordingCache(5)
    used = []

    class Using(Key):
        def __del__(self):
            self.cache["late"] = 1
            used.append((self.cache["late"], self.cache.take_hits()[-1]))

    key = Using()
    key.cache = cache
    hit(cache, key)
    reference = weakref.ref(cache)
    del cache, key
    gc.collect()
    gc.collect()
    assert used == [(1, "late")]
    assert reference() is None
