"""The keys of each tag: added and removed as often as L1 does it, and nothing is left behind."""

import random

import pytest
from loaders import Loader

from acgsperf.cache.tag_index import TagIndex
from acgsperf.tiers import Entry


def tagged(*tags):
    return Entry("value", 0.0, None, None, tags)


@pytest.fixture
def index():
    return TagIndex()


def test_a_tag_has_the_keys_of_its_entries(index):
    index.add("a", tagged("t", "u"))
    index.add("b", tagged("t"))
    index.add("c", tagged())
    assert (sorted(index.keys("t")), index.keys("u"), index.keys("other")) == (["a", "b"], ["a"], [])
    assert len(index) == 2


def test_a_key_is_removed_from_the_tags_of_its_entry(index):
    index.add("a", tagged("t", "u"))
    index.add("b", tagged("t"))
    index.discard("a", tagged("t", "u"))
    assert (index.keys("t"), len(index)) == (["b"], 1)
    index.discard("b", tagged("t"))
    assert len(index) == 0


def test_removing_what_is_not_there_changes_nothing(index):
    index.add("a", tagged("t"))
    index.discard("a", None)
    index.discard("b", tagged("t"))
    index.discard("a", tagged("other"))
    assert index.keys("t") == ["a"]


def test_the_keys_may_be_removed_while_they_are_visited(index):
    for key in "abc":
        index.add(key, tagged("t", "t"))
    for key in index.keys("t"):
        index.discard(key, tagged("t", "t"))
    assert len(index) == 0


def test_clearing_removes_every_tag(index):
    index.add("a", tagged("t"))
    index.clear()
    assert (index.keys("t"), len(index)) == ([], 0)


@pytest.mark.parametrize("seed", range(8))
async def test_the_index_of_l1_has_exactly_what_l1_has(open_cache, l2, clock, settle, seed):
    chance = random.Random(seed)
    cache = await open_cache(
        l2 if seed % 2 else None,
        size=4,
        ttl=20,
        stale_ttl=10,
        negative_ttl=5,
        negative_maxsize=2,
        promotion_threshold=1,
    )
    l1 = cache._l1

    async def load(key):
        return chance.choice([None, 1, 2])

    for _ in range(300):
        key, tags = str(chance.randrange(8)), chance.sample("tuv", chance.randrange(3))
        await chance.choice(
            [
                lambda key=key, tags=tags: cache.set(key, 1, tags=tags),
                lambda key=key, tags=tags: cache.get_or_load(key, load, tags=tags),
                lambda key=key: cache.get(key),
                lambda key=key: cache.delete(key),
                lambda key=key: cache.expire_now(key),
                lambda: cache.invalidate_tag(chance.choice("tuv")),
                lambda: cache.expire_tag_now(chance.choice("tuv")),
            ]
        )()
        if chance.random() < 0.05:
            cache._parts.listener.missed()
        if chance.random() < 0.1:
            clock.advance(chance.choice([1, 6, 12]))
        await settle()
        if chance.random() < 0.3:
            cache.remove_expired()
            held = [
                *l1._entries.items(),
                *((key, found[0]) for key, found in l1._stale_store.items()),
                *l1._negatives.items(),
                *l1._unverified.items(),
            ]
            for tag in "tuv":
                assert set(l1._tags.keys(tag)) == {key for key, entry in held if tag in entry.tags}
    await cache.clear()
    assert len(l1._tags) == 0


async def test_negative_entries_that_are_evicted_or_expire_leave_the_index(open_cache, clock):
    cache = await open_cache(negative_ttl=5, negative_maxsize=3)
    nothing = Loader(None)
    for number in range(20):
        await cache.get_or_load(f"key {number}", nothing, tags=["t"])
    assert len(cache._l1._tags.keys("t")) == 3
    clock.advance(6)
    cache.remove_expired()
    assert len(cache._l1._tags) == 0


async def test_an_unverified_entry_that_is_replaced_leaves_the_index(open_cache, l2):
    cache = await open_cache(l2)
    await cache.set("key", 1, tags=["t"])
    cache._parts.listener.missed()
    await cache.set("key", 2, tags=["u"])
    assert (cache._l1._tags.keys("t"), cache._l1._tags.keys("u")) == ([], ["key"])


async def test_many_gaps_do_not_keep_more_unverified_entries_than_l1_has_room_for(open_cache, l2):
    cache = await open_cache(l2, size=3)
    for gap in range(5):
        for number in range(3):
            await cache.set(f"key {gap} {number}", 1, tags=["t"])
        cache._parts.listener.missed()
    assert sorted(cache._l1._unverified) == [f"key 4 {number}" for number in range(3)]
    assert sorted(cache._l1._tags.keys("t")) == sorted(cache._l1._unverified)
