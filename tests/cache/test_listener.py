"""What records of other processes do to L1, to reads and loads in flight, and to entries that must be verified."""

import asyncio
import math

import pytest
from loaders import Loader
from msgspec.structs import replace

from acgsperf.cache.listener import CacheListener
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.records import Record, RecordKind, of_keys, of_tag


@pytest.fixture
async def cache(open_cache, l2, l3):
    return await open_cache(l2, l3, ttl=60, stale_ttl=30, promotion_threshold=1)


def listener(cache):
    return cache._parts.listener


def written(key, identifier=None):
    (record,) = of_keys(RecordKind.KEYS, [(key, identifier or new_id())])
    return record


async def test_a_record_drops_the_key_from_l1(cache):
    await cache.set("key", "old")
    listener(cache).apply(written("key"))
    assert cache.get_local("key") is None


async def test_a_record_of_the_very_write_that_l1_holds_drops_nothing(cache):
    await cache.set("key", "value")
    listener(cache).apply(written("key", cache._l1._entries["key"].id))
    assert cache.get_local("key") == "value"


@pytest.mark.parametrize("kind", [RecordKind.TAG, RecordKind.CLEAR, RecordKind.LONG_KEYS])
async def test_a_record_of_a_tag_or_of_everything_drops_its_entries(cache, kind):
    key = "k" * 2_000 if kind is RecordKind.LONG_KEYS else "key"
    await cache.set(key, "old", tags=["t"])
    await cache.set("other", "kept")
    listener(cache).apply(of_tag(kind, "t") if kind is RecordKind.TAG else Record(kind))
    assert cache.get_local(key) is None
    assert cache.get_local("other") == (None if kind is RecordKind.CLEAR else "kept")


async def test_a_key_of_many_characters_but_few_bytes_is_not_dropped_with_the_long_ones(cache):
    await cache.set("k" * 1_024, "value")
    listener(cache).apply(Record(RecordKind.LONG_KEYS))
    assert cache.get_local("k" * 1_024) == "value"


@pytest.mark.parametrize("name", ["key", "tag"])
async def test_a_record_of_a_soft_invalidation_makes_an_entry_stale_and_keeps_it(cache, name):
    await cache.set("key", "old", tags=["t"])
    if name == "key":
        listener(cache).apply(of_keys(RecordKind.EXPIRED_KEYS, [("key", new_id())])[0])
    else:
        listener(cache).apply(of_tag(RecordKind.EXPIRED_TAG, "t"))
    assert cache.get_local("key") is None
    assert cache.stats().stale_entries == 1


@pytest.mark.parametrize(
    "record",
    [written("key"), of_tag(RecordKind.TAG, "t"), Record(RecordKind.CLEAR), None],
    ids=["key", "tag", "clear", "gap"],
)
async def test_a_load_in_flight_is_answered_and_not_kept(cache, l2, l3, settle, record):
    loader = Loader("old", gate_open=False)
    task = asyncio.create_task(cache.get_or_load("key", loader, tags=["t"]))
    await loader.began.wait()
    listener(cache).missed() if record is None else listener(cache).apply(record)
    later = asyncio.create_task(cache.get_or_load("key", Loader("new"), tags=["t"]))
    await settle()
    loader.gate.set()
    assert await task == "old"
    assert await later == "new"
    await settle()
    assert cache.get_local("key") == "new"
    assert l2["key"].value == l3["key"].value == "new"


@pytest.mark.parametrize(
    "record",
    [written("key"), of_tag(RecordKind.TAG, "t"), of_tag(RecordKind.EXPIRED_TAG, "t"), Record(RecordKind.CLEAR)],
    ids=["key", "tag", "expired tag", "clear"],
)
async def test_a_read_in_flight_is_answered_and_not_kept(cache, l2, l3, settle, record):
    await cache.set("key", "old", tags=["t"])
    cache._l1.remove("key")
    l2.lose("key")
    l3.gate.clear()
    task = asyncio.create_task(cache.get("key"))
    await settle()
    listener(cache).apply(replace(record, writer=b"process1"))
    l3.gate.set()
    assert await task == "old"
    await settle()
    assert cache.get_local("key") is None
    assert "key" not in l2


async def test_l1_does_not_answer_after_its_lease(cache, clock):
    await cache.set("key", "value")
    listener(cache).extend(clock.now + 1)
    assert cache.get_local("key") == "value"
    clock.advance(1.5)
    assert cache.get_local("key") is None
    listener(cache).extend(clock.now + 1)
    assert cache.get_local("key") == "value"


async def test_after_its_lease_the_tiers_are_asked(cache, clock, l2):
    await cache.set("key", "old")
    listener(cache).extend(clock.now + 1)
    l2.data["test", "key"] = cache._staleness.entry("new", cache.options, ())
    clock.advance(2)
    assert await cache.get("key") == "new"
    l2.lose("key")
    await cache._lower_tiers.l3.delete_many(["key"])
    assert await cache.get("key") is None
    listener(cache).extend(math.inf)
    assert cache.get_local("key") is None


async def test_after_a_gap_entries_are_verified_and_stay_if_they_are_right(cache, l2):
    await cache.set("same", 1)
    await cache.set("other", 2)
    listener(cache).missed()
    assert cache.get_local("same") is None
    l2.data["test", "other"] = cache._staleness.entry(3, cache.options, ())
    assert (await cache.get("same"), await cache.get("other")) == (1, 3)
    assert (cache.get_local("same"), cache.get_local("other")) == (1, 3)


async def test_verified_entries_need_no_hits_to_come_back(open_cache, l2):
    cache = await open_cache(l2, promotion_threshold=10)
    await cache.set("key", 1)
    listener(cache).missed()
    assert await cache.get("key") == 1
    assert cache.get_local("key") == 1


async def test_a_gap_demotes_nothing(open_cache, l2, settle):
    cache = await open_cache(l2)
    await cache.set("key", "old")
    l2.lose("key")
    listener(cache).missed()
    await settle()
    assert "key" not in l2


async def test_the_ttl_of_l1_limits_every_answer_that_asks_no_tier(open_cache, l2, clock, settle):
    cache = await open_cache(l2, ttl=100, stale_ttl=300, soft_timeout=0, l1_ttl=0.2)
    await cache.set("key", "old")
    l2.data["test", "key"] = cache._staleness.entry("new", cache.options, ())
    clock.advance(0.3)
    assert await cache.get_or_load("key", Loader("loaded")) == "new"
    clock.advance(0.3)
    l2.lose("key")
    assert await cache.get_or_load("key", Loader("loaded")) == "loaded"


async def test_a_load_of_a_long_key_that_another_process_writes_is_not_kept(cache, settle):
    key = "k" * 2_000
    loader = Loader("old", gate_open=False)
    task = asyncio.create_task(cache.get_or_load(key, loader))
    await loader.began.wait()
    listener(cache).apply(Record(RecordKind.LONG_KEYS))
    loader.gate.set()
    assert await task == "old"
    await settle()
    assert cache.get_local(key) is None


async def test_a_key_of_few_characters_but_many_bytes_is_dropped_with_the_long_ones(cache):
    await cache.set("\U0001f600" * 300, "value")
    listener(cache).apply(Record(RecordKind.LONG_KEYS))
    assert cache.get_local("\U0001f600" * 300) is None


REPORTED = pytest.mark.parametrize(
    "record", [of_tag(RecordKind.TAG, "t"), Record(RecordKind.CLEAR)], ids=["tag", "clear"]
)


@REPORTED
async def test_what_the_database_reports_is_carried_out_in_the_tiers_too(cache, l2, l3, record):
    await cache.set("key", "old", tags=["t"])
    listener(cache).apply(replace(record, writer=b"process1"))
    await listener(cache).close()
    assert await l2.get("key") is not None
    # Without a writer, it comes from a trigger.
    listener(cache).apply(record)
    await listener(cache).close()
    assert await l2.get("key") is None
    assert await l3.get("key") is None


@REPORTED
async def test_what_the_tiers_still_have_while_they_carry_it_out_is_not_kept(cache, l2, l3, settle, record):
    await cache.set("key", "old", tags=["t"])
    await cache.set("other", "value")
    loader = Loader("old", gate_open=False)
    l3.gate.clear()
    listener(cache).apply(record)
    await settle()
    assert await cache.get("key") == "old"
    assert cache.get_local("key") == "old"
    load = asyncio.create_task(cache.get_or_load("loaded", loader, tags=["t"]))
    await settle()
    l2.gate.clear()
    l3.gate.set()
    await loader.began.wait()
    l2.gate.set()
    await listener(cache).close()
    assert cache.get_local("key") is None
    assert cache.get_local("other") == (None if record.kind is RecordKind.CLEAR else "value")
    loader.gate.set()
    assert await load == "old"
    await settle()
    assert cache.get_local("loaded") is None
    assert "loaded" not in l2
    assert not listener(cache)._tasks


@REPORTED
async def test_what_a_tier_does_not_carry_out_is_repeated(cache, l3, record):
    await cache.set("key", "old", tags=["t"])
    l3.up = False
    listener(cache).apply(record)
    await listener(cache).close()
    assert "key" in l3
    l3.up = True
    async with asyncio.timeout(5):
        while "key" in l3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_released_lock_is_passed_on_with_its_outcome(cache):
    heard = []
    parts = cache._parts.listener
    shared = parts._l1, parts._lower_tiers, parts._loading, parts._repairs
    released = Record(RecordKind.UNLOCKED, ((b"key", b"failed"), (b"other", b"")))
    await cache.set("key", "value")
    CacheListener(*shared, lambda *outcome: heard.append(outcome)).apply(released)
    assert heard == [("key", b"failed"), ("other", b"")]
    CacheListener(*shared, lambda *outcome: heard.append(outcome)).apply(Record(RecordKind.HELLO, released.items))
    CacheListener(*shared, None).apply(released)
    assert len(heard) == 2
    assert cache.get_local("key") == "value"


class Queue:
    """Entries that wait to be stored; notes what it is told."""

    def __init__(self):
        self.told = []

    def supersede(self, key):
        self.told.append(key)

    def supersede_tag(self, tag):
        self.told.append(("tag", tag))

    def supersede_all(self):
        self.told.append("all")


async def test_entries_that_wait_to_be_stored_are_superseded_too(cache, monkeypatch):
    queue = Queue()
    monkeypatch.setattr(cache._lower_tiers, "queues", (*cache._lower_tiers.queues, queue))
    for record in (written("key"), of_tag(RecordKind.EXPIRED_TAG, "t"), Record(RecordKind.LONG_KEYS)):
        listener(cache).apply(replace(record, writer=b"process1"))
    listener(cache).missed()
    assert queue.told == ["key", ("tag", "t"), "all", "all"]
