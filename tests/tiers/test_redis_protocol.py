"""What keeps writes right between processes: two tiers of one namespace call in every wrong order."""

import asyncio
import math
import re
import secrets
import time

import pytest
from bare import bare
from msgspec.structs import replace
from redis.exceptions import NoScriptError

from acgsperf.tiers import Entry, Observation, Outcome, Store, StoreKind, Write, WriteResult, records
from acgsperf.tiers.records import Record, RecordKind
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_calls import RedisCalls, ScriptCall
from acgsperf.tiers.redis_keys import short_run
from acgsperf.tiers.redis_scripts import WRITE

WRITER = b"writer-1"
MONTH_MS = 30 * 86_400_000


@pytest.fixture
def kind():
    return "redis"


@pytest.fixture
async def pair(servers, namespace):
    """Two tiers, as two processes have them. The first one publishes records."""
    first, second = tiers = [RedisTier(servers.redis_url, deadline=5) for _ in range(2)]
    first.writer = WRITER
    for tier in tiers:
        await tier.open(namespace)
    yield first, second
    for tier in tiers:
        await tier.clear()
        await tier.close()


def _id():
    return secrets.token_bytes(8)


async def _write(tier, key, entry, stamp=None, identifier=None):
    (result,) = (await tier.write({key: Write(entry, identifier or _id(), stamp or tier.now_us())})).values()
    return result


async def _load(tier, key, entry, seen, **options):
    """Whether a load that observed `seen` is stored."""
    loaded = replace(entry, id=_id(), stamp=seen.stamp)
    return key in await tier.store({key: Store(loaded, seen, **options)})


async def _log(tier):
    """The records so far."""
    (entries,) = await tier._ask([("XRANGE", tier.keys.log, "-", "+")], list)
    return [records.unpacked(fields[1]) for _, fields in entries]


async def _last_position(tier):
    (entries,) = await tier._ask([("XREVRANGE", tier.keys.log, "+", "-", "COUNT", 1)], list)
    (info,) = await tier._ask([("INFO", "server")], list)
    return short_run(re.search(rb"run_id:(\w+)", info)[1]) + entries[0][0]


async def _swept(tier):
    """Returns when a tier has removed from memory what it has cleared."""
    while tasks := tier._calls.tasks:
        await asyncio.wait(tasks, timeout=10)


async def _lifetime(tier, *keys):
    return await tier._ask([("PTTL", key) for key in keys], list)


class TestExplicitWrites:
    async def test_the_greater_stamp_wins(self, pair, entry):
        first, second = pair
        assert await _write(first, "k", entry("new"), 2_000) == WriteResult(Outcome.STORED, published=True)
        assert await _write(second, "k", entry("old"), 1_000) == WriteResult(Outcome.NEWER, 2_000)
        assert await _write(second, "k", None, 2_000) == WriteResult(Outcome.NEWER, 2_000)
        assert (await second.get("k")).value == "new"
        assert (await _write(second, "k", None, 2_001)).outcome is Outcome.STORED
        assert await first.get("k") is None
        assert await _write(first, "k", entry("old"), 2_000) == WriteResult(Outcome.NEWER, 2_001, published=True)
        assert await first.get("k") is None

    @pytest.mark.parametrize("value", ["v", None])
    async def test_a_write_may_be_repeated(self, pair, entry, value):
        first, _ = pair
        identifier = _id()
        written = None if value is None else entry(value)
        for _ in range(2):
            assert (await _write(first, "k", written, 1_000, identifier)).outcome is Outcome.STORED
        found = await first.get("k")
        assert found is None if value is None else found.value == value

    async def test_what_is_read_has_the_id_and_the_stamp_of_the_write(self, pair, entry):
        first, second = pair
        await _write(first, "k", written := entry(), 1_000, b"an id 01")
        found = await second.get("k")
        assert (found.id, found.stamp) == (b"an id 01", 1_000)
        assert bare(found) == bare(written)

    @pytest.mark.parametrize("value", [object(), "x" * 2_000_000])
    async def test_an_entry_that_cannot_be_stored_removes_the_former_one(self, pair, entry, value):
        first, second = pair
        await _write(first, "k", entry())
        stamp = first.now_us()
        assert await _write(first, "k", entry(value), stamp) == WriteResult(Outcome.REMOVED, published=True)
        assert await second.get("k") is None
        assert (await second.observe(["k"]))["k"].stamp == stamp
        assert await _write(first, "other", entry(kept=-1)) == WriteResult(Outcome.REMOVED, published=True)

    async def test_results_are_those_of_each_key(self, pair, entry):
        first, _ = pair
        await _write(first, "newer", entry(), 9_000)
        writes = {f"k{i}": Write(entry(i), _id(), 1_000) for i in range(120)}
        writes |= {f"gone{i}": Write(None, _id(), 1_000) for i in range(70)}
        writes |= {"bad": Write(entry(object()), _id(), 1_000), "newer": Write(entry(), _id(), 8_000)}
        results = await first.write(writes)
        assert list(results) == list(writes)
        assert results.pop("bad").outcome is Outcome.REMOVED
        assert results.pop("newer") == WriteResult(Outcome.NEWER, 9_000, published=True)
        assert set(results.values()) == {WriteResult(Outcome.STORED, published=True)}

    async def test_stamps_of_a_tier_grow_and_follow_the_clock_of_the_server(self, pair):
        first, _ = pair
        stamps = [first.now_us() for _ in range(1_000)]
        assert stamps == sorted(set(stamps))
        ((seconds, micros),) = await first._ask([("TIME",)], list)
        assert abs(int(seconds) * 1_000_000 + int(micros) - first.now_us()) < 1_000_000
        assert stamps[-1] < first.now_us()

    @pytest.mark.parametrize(
        ("write", "error"),
        [
            (Write(None, b"short", 1), "id"),
            (Write(None, b"8 bytes.", 0), "stamp"),
            (Write(None, b"8 bytes.", 1 << 53), "stamp"),
        ],
    )
    async def test_an_id_or_stamp_that_cannot_be_stored_is_an_error(self, pair, write, error):
        with pytest.raises(ValueError, match=error):
            await pair[0].write({"k": write})

    async def test_an_older_version_of_the_package_is_no_newer_write(self, pair, entry):
        first, _ = pair
        header = b"\xacG\x01\x00" + bytes(4) + (1 << 52).to_bytes(8, "big")
        await first._ask([("SET", first.keys.entry("k"), header + b"E\x01" + bytes(40))], list)
        assert (await _write(first, "k", entry())).outcome is Outcome.STORED

    @pytest.mark.parametrize("kind", [b"E\x02", b"T", b"M"])
    async def test_a_stamp_that_no_tier_makes_is_no_newer_write(self, pair, entry, kind):
        first, _ = pair
        foreign = b"foreign!" + b"\xff" * 8 + kind
        await first._ask([("SET", first.keys.entry("k"), foreign)], list)
        seen = (await first.observe(["k"]))["k"]
        assert (seen.id, seen.stamp) == (b"foreign!", 0)
        assert (await _write(first, "k", entry())).outcome is Outcome.STORED
        assert (await first.get("k")).value == "v"


class TestLoads:
    async def test_a_load_is_stored_with_the_stamp_that_was_observed(self, pair, entry):
        first, second = pair
        await _write(first, "k", None, 5_000)
        seen = (await first.observe(["k"]))["k"]
        assert seen.stamp == 5_000
        assert await _load(first, "k", entry(), seen)
        assert (await second.get("k")).stamp == 5_000

    async def test_nothing_is_observed_as_a_marker_that_all_agree_on(self, pair, entry):
        first, second = pair
        seen = (await first.observe(["k"]))["k"]
        assert len(seen.id) == 8
        assert seen.stamp == 0
        assert (await second.observe(["k"]))["k"].id == seen.id
        assert await first.get("k") is None
        assert await _load(first, "k", entry("first"), seen)
        # It is no longer there.
        assert not await _load(second, "k", entry("second"), seen)
        assert (await second.get("k")).value == "first"

    @pytest.mark.parametrize("what", ["set", "delete", "set and delete", "expire", "undo"])
    @pytest.mark.parametrize("before", ["nothing", "entry", "tombstone"])
    async def test_a_slow_load_is_not_stored_over_a_write(self, pair, entry, before, what):
        first, second = pair
        if before != "nothing":
            await _write(first, "k", entry() if before == "entry" else None)
        seen = (await first.observe(["k"]))["k"]
        # Both tiers estimate the server's clock, and the estimate of the second one may be earlier.
        later = second.now_us() + 1_000_000
        if "set" in what:
            await _write(second, "k", entry("new"), later)
        if "delete" in what:
            await _write(second, "k", None, later + 1)
        if what == "expire":
            await second.expire_now({"k": Write(None, _id(), later)})
        if what == "undo":
            await second.remove_written({"k": seen.id})
        assert not await _load(first, "k", entry("slow"), seen)
        found = await first.get("k")
        assert found is None or found.value != "slow"

    async def test_a_slow_load_is_not_stored_if_the_server_has_evicted_what_was_observed(self, pair, entry):
        first, _ = pair
        seen = (await first.observe(["k"]))["k"]
        await first._ask([("DEL", first.keys.entry("k"))], list)
        assert not await _load(first, "k", entry(), seen)

    @pytest.mark.parametrize("what", ["invalidate", "expire", "clear", "evict"])
    async def test_a_slow_load_is_not_stored_over_what_happened_to_its_tag(self, pair, entry, what):
        first, second = pair
        seen = (await first.observe(["k"], ["a", "b"]))["k"]
        assert len(seen.tokens) == 3
        match what:
            case "invalidate":
                await second.invalidate("b")
            case "expire":
                await second.expire_tag("b")
            case "clear":
                await second.invalidate(None)
            case "evict":
                await first._ask([("DEL", first.keys.tag("b"))], list)
        assert not await _load(first, "k", entry(tags=("a", "b")), seen)
        # After a clearing, a sweep removes the tokens of all tags.
        async with asyncio.timeout(5):
            while second._sweeping:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        seen = (await first.observe(["k"], ["a", "b"]))["k"]
        assert await _load(first, "k", entry(tags=("a", "b")), seen)
        assert (await second.get("k")).tags == ("a", "b")

    async def test_a_slow_load_whose_tags_were_unknown_is_not_stored_over_any_invalidation(self, pair, entry):
        first, second = pair
        seen = (await first.observe(["k", "l"]))["k"]
        other = (await first.observe(["l"]))["l"]
        await second.invalidate("any")
        assert not await _load(first, "k", entry(tags=("a",)), seen)
        # Without tags, it does not matter.
        assert await _load(first, "l", entry(), other)
        seen = (await first.observe(["k"]))["k"]
        assert await _load(first, "k", entry(tags=("a",)), seen)
        assert (await second.get("k")).tags == ("a",)

    async def test_a_load_that_takes_too_long_is_not_stored(self, pair, entry):
        first, _ = pair
        seen = (await first.observe(["k"]))["k"]
        assert seen.expires_at == pytest.approx(time.monotonic() + 60, abs=5)
        assert not await _load(first, "k", entry(), replace(seen, expires_at=time.monotonic()))
        # The server checks it as well: the call may have waited.
        late = replace(seen, expires_at=time.monotonic() + 0.001)
        first.server_clock.offset -= 1
        assert not await _load(first, "k", entry(), late)
        first.server_clock.offset += 1
        assert await _load(first, "k", entry(), seen)

    async def test_a_tier_that_was_not_observed_stores_nothing(self, pair, entry):
        first, _ = pair
        await _write(first, "k", entry(), 1_000, b"8 bytes.")
        for seen in (Observation(b"", 0, math.inf), Observation(b"8 bytes.", 1_000, math.inf)):
            assert not await _load(first, "k", entry("new"), seen)
        position = await _last_position(first)
        await first._ask([("DEL", first.keys.entry("k"))], list)
        assert not await first.store({"k": Store(replace(entry(), id=_id()), None, StoreKind.LOAD, position)})

    async def test_what_is_loaded_and_cannot_be_stored_removes_what_was_observed(self, pair, entry):
        first, second = pair
        await _write(first, "k", entry("former"))
        seen = (await first.observe(["k"]))["k"]
        assert not await _load(first, "k", entry(object()), seen)
        assert await second.get("k") is None
        assert first.stats().refused == 1
        await _write(second, "k", entry("newer"))
        assert not await _load(first, "k", entry(object()), seen)
        assert (await second.get("k")).value == "newer"

    async def test_concurrent_observations_share_a_round_trip(self, pair):
        first, _ = pair
        before = await _commands(first, "evalsha")
        found = await asyncio.gather(*(first.observe([f"k{i}"], ["t"] if i % 2 else []) for i in range(40)))
        assert [len(seen[f"k{i}"].tokens) for i, seen in enumerate(found)] == [1, 2] * 20
        assert await _commands(first, "evalsha") - before == 1

    async def test_a_miss_is_looked_up_and_observed(self, pair, entry):
        first, _ = pair
        stale = replace(entry("stale"), fresh_until=time.monotonic())
        await first.set_many({"fresh": entry(), "stale": stale})
        found, seen = await first.look_up(["fresh", "stale", "absent"], ["t"])
        assert set(found) == {"fresh", "stale"}
        assert set(seen) == {"stale", "absent"}
        assert seen["stale"].id == found["stale"].id

    async def test_an_observation_sees_an_earlier_write_that_nobody_has_awaited(self, pair, entry):
        first, _ = pair
        write = asyncio.ensure_future(_write(first, "k", entry(), identifier=b"8 bytes."))
        await asyncio.sleep(0)
        assert (await first.observe(["k"]))["k"].id == b"8 bytes."
        await write


async def _commands(tier, name):
    (info,) = await tier._ask([("INFO", "commandstats")], list)
    for line in info.decode().splitlines():
        if line.startswith(f"cmdstat_{name}:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


class TestCopies:
    async def test_a_copy_keeps_its_id_and_stamp(self, pair, entry):
        first, second = pair
        seen = (await first.observe(["k"]))["k"]
        row = replace(entry(tags=("t",)), id=b"of a row", stamp=77)
        assert await first.store({"k": Store(row, seen, StoreKind.COPY)}) == {"k"}
        found = await second.get("k")
        assert (found.id, found.stamp, found.tags) == (b"of a row", 77, ("t",))

    @pytest.mark.parametrize("what", ["set", "delete", "invalidate", "other tag", "clear", "evict the count"])
    async def test_a_copy_is_not_stored_after_a_write(self, pair, entry, what):
        first, second = pair
        seen = (await first.observe(["k"]))["k"]
        match what:
            case "set":
                await _write(second, "k", entry("new"))
            case "delete":
                await _write(second, "k", None)
            case "invalidate":
                await second.invalidate("t")
            case "other tag":
                await second.invalidate("other")
            case "clear":
                await second.invalidate(None)
            case "evict the count":
                await first._ask([("DEL", first.keys.invalidations)], list)
                await second.observe(["another"])
        row = replace(entry("row", tags=("t",)), id=_id(), stamp=1)
        assert await first.store({"k": Store(row, seen, StoreKind.COPY)}) == frozenset()
        found = await first.get("k")
        assert found is None or found.value == "new"

    @pytest.mark.parametrize("tag", ["t", None])
    async def test_no_copy_is_stored_of_what_the_slower_tier_refused_to_invalidate(self, pair, entry, tag):
        first, second = pair
        await _write(first, "k", entry("former", tags=("t",)))
        assert (await second.invalidate(tag, refused_below=True)).outcome is Outcome.STORED
        assert await first.get("k") is None
        await _swept(second)
        seen = (await first.observe(["k"], ["t"]))["k"]
        assert len(seen.tokens[1 if tag else 0]) % 2 == 1
        row = replace(entry("row", tags=("t",)), id=_id(), stamp=seen.stamp)
        assert not await first.store({"k": Store(row, seen, StoreKind.COPY)})
        # A load is newer than the invalidation.
        assert await _load(first, "k", entry("loaded", tags=("t",)), seen)
        assert (await second.get("k")).value == "loaded"
        # The repair ends it.
        assert (await second.invalidate(tag)).outcome is Outcome.STORED
        assert await first.get("k") is None
        await _swept(second)
        seen = (await first.observe(["k"]))["k"]
        assert await first.store({"k": Store(row, seen, StoreKind.COPY)})


class TestDemotions:
    async def test_a_demotion_is_stored_if_the_key_is_absent_and_the_log_has_not_gone_on(self, pair, entry):
        first, second = pair
        await _write(first, "other", entry())
        position = await _last_position(first)
        evicted = replace(entry("evicted", tags=("t",)), id=b"8 bytes.", stamp=5)
        demotion = Store(evicted, None, StoreKind.DEMOTION, position)
        assert await second.store({"k": demotion}) == {"k"}
        found = await first.get("k")
        assert (found.value, found.id, found.stamp) == ("evicted", b"8 bytes.", 5)
        assert not await second.store({"k": demotion})

    @pytest.mark.parametrize("evicted", [False, True])
    async def test_a_deleted_entry_is_not_demoted(self, pair, entry, evicted):
        first, second = pair
        await _write(first, "other", None)
        position = await _last_position(first)
        await _write(first, "k", None)
        if evicted:
            await first._ask([("DEL", first.keys.entry("k"))], list)
        demotion = Store(replace(entry(), id=_id()), None, StoreKind.DEMOTION, position)
        assert not await second.store({"k": demotion})
        assert await first.get("k") is None

    async def test_an_entry_that_was_evicted_in_another_run_of_the_server_is_not_demoted(self, pair, entry):
        first, second = pair
        await _write(first, "other", entry())
        position = await _last_position(first)
        evicted = replace(entry(), id=_id())
        assert not await second.store({"k": Store(evicted, None, StoreKind.DEMOTION, b"a run id" + position[8:])})
        assert not await second.store({"k": Store(evicted, None, StoreKind.DEMOTION, position[8:])})
        assert await second.store({"k": Store(evicted, None, StoreKind.DEMOTION, position)})

    async def test_nothing_is_demoted_without_a_position(self, pair, entry):
        _, second = pair
        assert not await second.store({"k": Store(replace(entry(), id=_id()), None, StoreKind.DEMOTION)})


class TestSoftInvalidation:
    async def test_an_entry_is_stale_from_now_on_and_kept(self, pair, entry):
        first, second = pair
        await first.set_many({"k": entry(), "other": entry(), "ever": Entry("v", 1.0, None, None)})
        lifetimes = await _lifetime(first, *map(first.keys.entry, ("k", "ever")))
        stamp = first.now_us()
        results = await first.expire_now({key: Write(None, b"8 bytes.", stamp) for key in ("k", "ever", "absent")})
        assert set(results.values()) == {WriteResult(Outcome.STORED, published=True)}
        now = time.monotonic()
        for key in ("k", "ever"):
            found = await second.get(key)
            assert found.value == "v"
            assert (found.id, found.stamp) == (b"8 bytes.", stamp)
            assert now - 5 < found.fresh_until <= now + 0.01
        assert (await second.get("other")).fresh_until > now
        after = await _lifetime(first, *map(first.keys.entry, ("k", "ever")))
        assert lifetimes[0] - 5_000 < after[0] <= lifetimes[0]
        assert after[1] == lifetimes[1] == -1
        assert await second.get("absent") is None

    async def test_a_newer_entry_stays_fresh(self, pair, entry):
        first, _ = pair
        await _write(first, "k", entry(), 9_000)
        (result,) = (await first.expire_now({"k": Write(None, _id(), 8_000)})).values()
        assert result.outcome is Outcome.NEWER
        assert (await first.get("k")).fresh_until > time.monotonic()

    async def test_what_is_stale_already_does_not_become_younger(self, pair, entry):
        first, _ = pair
        stale_at = time.monotonic() - 5
        await _write(first, "k", replace(entry(), fresh_until=stale_at))
        await first.expire_now({"k": Write(None, _id(), first.now_us())})
        assert (await first.get("k")).fresh_until == pytest.approx(stale_at, abs=0.1)

    async def test_a_tombstone_stays_a_tombstone(self, pair, entry):
        first, _ = pair
        await _write(first, "k", None, 1_000)
        await first.expire_now({"k": Write(None, _id(), 2_000)})
        assert await first.get("k") is None
        assert await _write(first, "k", entry(), 1_500) == WriteResult(Outcome.NEWER, 2_000, published=True)

    async def test_entries_with_a_tag_are_stale_and_later_ones_are_fresh(self, pair, entry):
        first, second = pair
        await first.set_many({"a": entry(tags=("s", "t")), "b": entry(tags=("s",))})
        assert await first.expire_tag("t") == WriteResult(Outcome.STORED, published=True)
        now = time.monotonic()
        assert (await second.get("a")).fresh_until <= now + 0.01
        assert (await second.get("b")).fresh_until > now
        await asyncio.sleep(0.01)
        await first.set("c", replace(entry(tags=("t",)), created_at=time.monotonic()))
        assert (await second.get("c")).fresh_until > now
        assert (await second.get("a")).fresh_until <= now + 0.01
        assert (await first.expire_tag("unknown")).outcome is Outcome.STORED
        assert await first._ask([("EXISTS", first.keys.tag("unknown"))], list) == [0]


class TestUndo:
    async def test_a_write_is_undone_by_its_id(self, pair, entry):
        first, second = pair
        await _write(first, "k", entry("unsure"), 1_000, b"unsure 1")
        await _write(first, "other", entry("sure"), 1_000, b"sure one")
        assert await second.remove_written({"k": b"unsure 1", "other": b"unsure 2", "absent": b"unsure 3"})
        assert set(await first.get_many(["k", "other", "absent"])) == {"other"}
        # The tombstone keeps an older write away.
        assert (await _write(first, "k", entry(), 1_000)).outcome is Outcome.NEWER

    async def test_its_record_does_not_name_what_was_removed(self, pair, entry):
        first, _ = pair
        await _write(first, "k", entry(), identifier=b"unsure 1")
        await first.remove_written({"k": b"unsure 1"})
        (key, identifier), *_ = (await _log(first))[-1].items
        assert key == b"k"
        assert identifier != b"unsure 1"


class TestRecords:
    async def test_each_write_tells_the_others(self, pair, entry):
        first, second = pair
        ids = [b"%08d" % i for i in range(120)]
        await first.write({f"k{i}": Write(entry(), ids[i], 1_000) for i in range(120)})
        assert await _write(first, "k0", None, 2_000, b"deletion")
        await first.expire_now({"k1": Write(None, b"expiring", 2_000)})
        await first.invalidate("tag")
        await first.expire_tag("soft")
        await first.invalidate(None)
        await _write(first, "x" * 2_000, entry())
        # It has no writer.
        await _write(second, "k", entry())
        found = await _log(first)
        assert {record.writer for record in found} == {WRITER}
        now = first.now_us()
        assert all(now - 10_000_000 < record.sent_us <= now for record in found)
        assert [(record.kind, record.items) for record in found] == [
            # One, although the keys need several calls.
            (RecordKind.KEYS, tuple((b"k%d" % i, ids[i]) for i in range(120))),
            (RecordKind.KEYS, ((b"k0", b"deletion"),)),
            (RecordKind.EXPIRED_KEYS, ((b"k1", b"expiring"),)),
            (RecordKind.TAG, ((b"tag", b""),)),
            (RecordKind.EXPIRED_TAG, ((b"soft", b""),)),
            (RecordKind.CLEAR, ()),
            (RecordKind.LONG_KEYS, ()),
        ]

    @pytest.mark.parametrize("what", ["set", "delete", "expire"])
    @pytest.mark.parametrize("count", [1, 50, 51, 1_000])
    async def test_a_batch_publishes_one_record(self, pair, entry, what, count):
        first, _ = pair
        writes = {f"k{i}": Write(entry() if what == "set" else None, _id(), 2_000) for i in range(count)}
        await _write(first, "k0", None, 9_000)
        written = await (first.expire_now(writes) if what == "expire" else first.write(writes))
        assert written.pop("k0") == WriteResult(Outcome.NEWER, 9_000, published=True)
        assert set(written.values()) <= {WriteResult(Outcome.STORED, published=True)}
        _, record = await _log(first)
        assert record.items == tuple((key.encode(), write.id) for key, write in writes.items())

    async def test_a_batch_that_was_late_publishes_one_record_when_it_is_carried_out(self, pair, entry):
        first, _ = pair
        first.server_clock.offset -= 3_600
        writes = {f"k{i}": Write(entry(), _id(), 2_000) for i in range(120)}
        assert set((await first.write(writes)).values()) == {WriteResult(Outcome.STORED, published=True)}
        (record,) = await _log(first)
        assert len(record.items) == 120

    async def test_what_could_not_be_published_is_not_reported_as_published(self, pair, entry):
        """The last call of a batch, which has the record, comes after the deadline, and again after it."""
        first, _ = pair
        writes = first._redis_writes
        deadline_us, calls = writes.deadline_us, iter(range(10))
        writes.deadline_us = lambda attempt: deadline_us(attempt) if next(calls) < 2 else 0
        results = await first.write({f"k{i}": Write(entry(), _id(), 2_000) for i in range(120)})
        assert {results[f"k{i}"] for i in range(100)} == {WriteResult(Outcome.STORED)}
        assert {results[f"k{i}"] for i in range(100, 120)} == {WriteResult(Outcome.REFUSED)}
        assert await _log(first) == []

    async def test_a_script_that_another_client_sends_meanwhile_is_not_carried_out_before_the_others(self):
        """The last call of a batch has the record: nobody may get it before all writes were carried out."""
        sent = []

        class Connections:
            async def ask(self, commands, read, before_sending=None):
                sent.append([command[-1] for command in commands])
                first = [NoScriptError("unknown"), [-1, -1]]
                return read(first if len(sent) == 1 else [[-1, -1]] * len(commands))

        calls = RedisCalls(Connections(), "label", "prefix")
        replies = await calls.run([ScriptCall(WRITE, [], [number], 2) for number in (1, 2)])
        assert sent == [[1, 2], [1, 2]]
        assert replies == [[-1, -1]] * 2

    async def test_loads_are_not_told(self, pair, entry):
        first, _ = pair
        seen = (await first.observe(["k"]))["k"]
        assert await _load(first, "k", entry(), seen)
        assert await _log(first) == []

    async def test_the_log_is_bounded(self, pair):
        first, _ = pair
        record = records.packed(Record(RecordKind.HELLO), WRITER, 0)
        await first._ask([("XADD", first.keys.log, "*", "r", record)] * 12_000, lambda replies: None)
        await _write(first, "k", None)
        assert (await first._ask([("XLEN", first.keys.log)], list))[0] < 10_500
        # Records of many keys are large.
        keys = [f"{i}".rjust(1_000, "k") for i in range(1_000)]
        await first.write(dict.fromkeys(keys, Write(None, _id(), first.now_us())))
        assert (await first._ask([("XLEN", first.keys.log)], list))[0] < 150


class TestLifetimes:
    async def test_a_tombstone_and_a_marker_live_for_the_retention(self, pair):
        first, _ = pair
        await _write(first, "tombstone", None)
        await first.observe(["marker"])
        for lifetime in await _lifetime(first, *map(first.keys.entry, ("tombstone", "marker"))):
            assert 55_000 < lifetime <= 60_000

    async def test_the_retention_can_be_set(self, servers, namespace):
        tier = RedisTier(servers.redis_url, deadline=5)
        tier.retention = 90.0
        await tier.open(namespace)
        await _write(tier, "k", None)
        (lifetime,) = await _lifetime(tier, tier.keys.entry("k"))
        assert 85_000 < lifetime <= 90_000
        await tier.clear()
        await tier.close()

    async def test_a_token_lives_as_long_as_its_longest_entry_and_the_retention(self, pair, entry):
        first, _ = pair
        tag = first.keys.tag("t")
        await first.observe(["k"], ["t"])
        for kept, expected in ((1, 61), (100, 160), (10, 160), (30, 160)):
            await first.set("k", entry(kept=kept, tags=("t",)))
            (lifetime,) = await _lifetime(first, tag)
            assert (expected - 5) * 1000 < lifetime <= expected * 1000
        seen = (await first.observe(["l"], ["t"]))["l"]
        assert await _load(first, "l", entry(kept=200, tags=("t",)), seen)
        (lifetime,) = await _lifetime(first, tag)
        assert 255_000 < lifetime <= 260_000
        for loads in (False, True):
            await first._ask([("PEXPIRE", tag, 60_000)], list)
            seen, lasting = (await first.observe(["l"], ["t"]))["l"], entry(kept=None, tags=("t",))
            assert await (_load(first, "l", lasting, seen) if loads else first.set("k", lasting))
            (lifetime,) = await _lifetime(first, tag)
            assert MONTH_MS - 60_000 < lifetime <= MONTH_MS

    async def test_the_tokens_of_an_entry_without_an_expiration_are_renewed_by_reading_it(self, pair, entry):
        first, second = pair
        await first.set_many({"k": entry(kept=None, tags=("t", "u")), "short": entry(tags=("v",))})
        tokens = [*map(first.keys.tag, "tuv"), first.keys.token]
        await first._ask([("PEXPIRE", token, 600_000) for token in tokens], list)
        second.server_clock._asked_at -= 61
        assert await second.get_many(["k", "short"])
        await asyncio.gather(*second._calls.tasks)
        t, u, v, namespace = await _lifetime(first, *tokens)
        assert min(t, u, namespace) > MONTH_MS - 60_000
        assert v <= 600_000
        # Once a day.
        await first._ask([("PEXPIRE", token, 600_000) for token in tokens], list)
        assert await second.get_many(["k", "short"])
        await asyncio.gather(*second._calls.tasks)
        assert max(await _lifetime(first, *tokens)) <= 600_000
        # A token that is not renewed ends with a miss, and a new one does not revive the entry.
        await first._ask([("PEXPIRE", first.keys.tag("u"), 1)], list)
        await asyncio.sleep(0.01)
        assert await second.get("k") is None
        await first.set("other", entry(tags=("u",)))
        assert await second.get("k") is None

    async def test_no_key_but_an_entry_stays_for_ever(self, pair, entry):
        first, second = pair
        await first.set("k", entry(kept=None, tags=("t",)))
        await _load(second, "l", entry(kept=None, tags=("u",)), (await second.observe(["l"], ["u"]))["l"])
        await first.expire_tag("t")
        await first.unlock("k", await first.lock("k", 5))
        await second.invalidate("u", refused_below=True)
        await first.set("k", entry(kept=None, tags=("t",)))
        _, keys = (await first._ask([("SCAN", 0, "MATCH", first.keys.prefix[:-1] + b"*", "COUNT", 1_000_000)], list))[0]
        lifetimes = dict(zip(keys, await _lifetime(first, *keys), strict=True))
        assert {key for key, left in lifetimes.items() if left < 0} == {first.keys.entry("k"), first.keys.entry("l")}
        assert first.keys.fence in lifetimes

    async def test_a_token_of_a_load_lives_for_the_retention(self, pair):
        first, _ = pair
        await first.observe(["k"], ["t"])
        (lifetime,) = await _lifetime(first, first.keys.tag("t"))
        assert 55_000 < lifetime <= 60_000

    async def test_an_observation_outlives_the_load(self, pair, entry):
        first, _ = pair
        await first._ask([("PEXPIRE", first.keys.tag("t"), 10)], list)
        await first.observe(["k"], ["t"])
        await first._ask([("PEXPIRE", key, 10) for key in (first.keys.tag("t"), first.keys.entry("k"))], list)
        await first.observe(["k"], ["t"])
        for lifetime in await _lifetime(first, first.keys.tag("t"), first.keys.entry("k")):
            assert lifetime > 55_000

    async def test_an_invalidation_leaves_nothing(self, pair, entry):
        first, _ = pair
        await first.set("k", entry(tags=("t",)))
        for tag in ["t", *map(str, range(500))]:
            assert await first.invalidate_tag(tag) == 0
        _, keys = (await first._ask([("SCAN", 0, "MATCH", first.keys.tags + b"*", "COUNT", 1_000_000)], list))[0]
        assert keys == []

    async def test_the_token_of_the_namespace_lives_as_long_as_its_entries(self, pair, entry):
        first, _ = pair
        await first.set("k", entry())
        (lifetime,) = await _lifetime(first, first.keys.token)
        assert 29 * 86_400_000 < lifetime <= 30 * 86_400_000
        await first.set("k", entry(kept=100 * 86_400))
        (lifetime,) = await _lifetime(first, first.keys.token)
        assert lifetime > 99 * 86_400_000
        await first._ask([("PEXPIRE", first.keys.token, 60_000)], list)
        await first.set("k", entry(kept=None))
        (lifetime,) = await _lifetime(first, first.keys.token)
        # The next connection, or the next minute, renews it.
        assert lifetime <= 60_000
        assert await first.get("k") is not None


class TestClearing:
    async def test_everything_is_a_miss_at_once(self, pair, entry):
        first, second = pair
        await first.set_many({f"k{i}": entry(i, tags=("t",)) for i in range(300)})
        assert await second.invalidate(None) == WriteResult(Outcome.STORED)
        assert await first.get_many([f"k{i}" for i in range(300)]) == {}
        await first.set("new", entry())
        # It removes the entries from memory as well, and nothing that was written later.
        await _swept(second)
        (left,) = await second._ask([("KEYS", first.keys.prefix + b"*")], list)
        assert set(left) - first.keys.own == {first.keys.entry("new")}
        # The log and the tokens have the prefix of entries, and stay.
        assert {first.keys.log, first.keys.token} < set(left)
        assert (await second.get("new")).value == "v"

    async def test_tombstones_and_markers_stay(self, pair, entry):
        first, second = pair
        await _write(first, "deleted", None, 5_000)
        seen = (await first.observe(["loading"]))["loading"]
        await first.set("k", entry(tags=("t",)))
        assert await second.clear() == 1
        await first.set("new", entry())
        assert await second._sweep() == 0
        assert await _write(first, "deleted", entry(), 4_000) == WriteResult(Outcome.NEWER, 5_000, published=True)
        assert (await second.observe(["loading"]))["loading"].id == seen.id
        assert await first._ask([("EXISTS", first.keys.tag("t"))], list) == [0]

    async def test_without_the_token_everything_is_a_miss(self, pair, entry):
        first, _ = pair
        await first.set("k", entry())
        await first._ask([("DEL", first.keys.token)], list)
        assert await first.get("k") is None
        await first.set("other", entry())
        assert set(await first.get_many(["k", "other"])) == {"other"}


class TestLocks:
    async def test_the_release_of_a_lock_is_told_if_somebody_waits(self, pair):
        first, second = pair
        token = await first.lock("k", 60)
        assert await second.lock("k", 60) == 0
        assert await second.lock("k", 60) == 0
        assert await first.unlock("k", token, b"outcome")
        (record,) = await _log(first)
        assert (record.kind, record.items, record.writer) == (RecordKind.UNLOCKED, ((b"k", b"outcome"),), WRITER)

    async def test_otherwise_it_is_not(self, pair):
        first, second = pair
        assert await first.unlock("k", await first.lock("k", 60))
        token = await first.lock("x" * 2_000, 60)
        assert await second.lock("x" * 2_000, 60) == 0
        assert await first.unlock("x" * 2_000, token)
        assert await _log(first) == []

    async def test_a_waiter_does_not_prolong_a_lock(self, pair):
        first, second = pair
        await first.lock("k", 60)
        await second.lock("k", 600)
        (lifetime,) = await _lifetime(first, first.keys.lock("k"))
        assert lifetime <= 60_000
