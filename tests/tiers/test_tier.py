"""What every tier does."""

import asyncio
import logging
import os
import pickle
import re
import secrets
import struct
import threading
import time

import pytest
from bare import bare

from acgsperf import TierError
from acgsperf._native import zstd
from acgsperf.tiers import BreakerState, Entry, Outcome, Write, server_clock
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, b"\x00\xff", 1.5, 2**63, {"a": [1, {"b": None}]}])
async def test_a_value_comes_back_with_its_type(tier, entry, value):
    assert await tier.set("k", stored := entry(value))
    found = await tier.get("k")
    assert bare(found) == bare(stored)
    assert type(found.value) is type(value)


async def test_every_field_of_an_entry_comes_back(tier):
    stored = Entry("v", 1.5, None, None, ("a", "b\x00"), negative=True)
    assert await tier.set("k", stored)
    assert bare(await tier.get("k")) == bare(stored)


async def test_an_unknown_key_is_a_miss(tier):
    assert await tier.get("nothing") is None
    assert await tier.get_many(["nothing", "else"]) == {}
    assert tier.stats().misses == 3


@pytest.mark.parametrize("key", ["", " ", "a:b", "%", "é\x00\n", "\ud800", "k" * 5_000, "x" * 200, "x" * 201])
async def test_any_text_is_a_key(tier, entry, key):
    assert await tier.set(key, entry(key.encode(errors="replace").decode()))
    assert (await tier.get(key)).value == key.encode(errors="replace").decode()
    assert await tier.delete_many([key]) == 1


async def test_an_entry_that_is_past_its_time_is_forgotten(tier, entry):
    assert await tier.set("k", entry(kept=0.05))
    await asyncio.sleep(0.06)
    assert await tier.get("k") is None
    assert not await tier.set("k", entry(kept=-1))
    assert tier.stats().refused == 1


async def test_a_tier_that_only_reads_follows_the_clock_of_the_server(tier, entry, monkeypatch):
    await tier.set("k", entry())
    # As if the server's clock had been set since.
    tier.server_clock.offset -= 3_600
    assert await tier.get("k")
    assert tier.server_clock.now() < time.time() - 3_000
    monkeypatch.setattr(server_clock, "_SAMPLE_MAX_AGE_S", 0.0)
    # Redis: a read looks at the clock at most once a second.
    tier._ask_role_at = 0.0
    assert await tier.get("k")
    assert abs(tier.server_clock.now() - time.time()) < 60


async def test_namespaces_do_not_see_each_other(make, entry, namespace):
    tiers = {name: make(deadline=5) for name in (namespace, f"{namespace}:b", f"{namespace}%3Ab", f"{namespace}*")}
    for name, tier in tiers.items():
        await tier.open(name)
        assert await tier.set_many({"x": entry(name), "b:x": entry(name), "*": entry(name)}) == {"x", "b:x", "*"}
    assert await tiers[namespace].clear() == 3
    assert await tiers[namespace].get_many(["x", "b:x", "*"]) == {}
    for name, tier in list(tiers.items())[1:]:
        assert {e.value for e in (await tier.get_many(["x", "b:x", "*"])).values()} == {name}
        assert await tier.clear() == 3
    for tier in tiers.values():
        await tier.close()


async def test_many_keys_are_stored_read_and_deleted_together(tier, entry):
    entries = {f"k{i}": entry(i) for i in range(2_500)}
    assert await tier.set_many(entries) == set(entries)
    found = await tier.get_many([*entries, "other"])
    assert {key: e.value for key, e in found.items()} == {key: e.value for key, e in entries.items()}
    assert await tier.delete_many([*entries, "other"]) == 2_500
    assert await tier.get_many(list(entries)) == {}


async def test_a_direct_write_exceeds_a_greater_stamp_of_another_process(tier, entry):
    ahead_s = 60
    keys = ["a", "b", "c"]
    for call in (lambda: tier.set_many({key: entry("mine") for key in keys}), lambda: tier.delete_many(keys)):
        theirs = {
            key: Write(entry("theirs"), os.urandom(8), tier.now_us() + ahead_s * 1_000_000 + number)
            for number, key in enumerate(keys)
        }
        results = await tier.write(theirs)
        assert {result.outcome for result in results.values()} == {Outcome.STORED}
        assert await call() in ({*keys}, 3)
        ahead_s *= 10
    assert await tier.get_many(keys) == {}
    # A write of a caller that gives the stamp is not repeated.
    (result,) = (await tier.write({"a": Write(entry("old"), os.urandom(8), tier.now_us())})).values()
    assert result.outcome is Outcome.NEWER


async def test_clear_forgets_more_than_fits_in_one_step(tier, entry):
    await tier.set_many({f"k{i}": entry(i) for i in range(2_500)})
    assert await tier.clear() == 2_500
    assert await tier.get("k1") is None


async def test_calls_of_one_turn_travel_together_and_each_gets_its_own(tier, entry):
    await tier.set_many({f"k{i}": entry(i) for i in range(100)})
    found = await asyncio.gather(*(tier.get(f"k{i % 120}") for i in range(240)))
    assert [e and e.value for e in found] == [i % 120 if i % 120 < 100 else None for i in range(240)]


async def test_a_read_finds_an_earlier_write_that_nobody_has_awaited(tier, entry):
    for number in range(20):
        write = asyncio.ensure_future(tier.set("k", entry(number)))
        await asyncio.sleep(0)
        assert (await tier.get("k")).value == number
        assert await write
        deletion = asyncio.ensure_future(tier.delete_many(["k"]))
        again = asyncio.ensure_future(tier.set("k", entry("again")))
        await asyncio.sleep(0)
        assert (await tier.get_many(["k"]))["k"].value == "again"
        assert await deletion == 1
        assert await again


async def test_a_cancelled_caller_takes_nobody_along(tier, entry):
    await tier.set("k", entry())
    readers = [asyncio.ensure_future(tier.get("k")) for _ in range(3)]
    writers = [asyncio.ensure_future(tier.set(f"w{i}", entry(i))) for i in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()
    writers[0].cancel()
    assert [(await reader).value for reader in readers[1:]] == ["v", "v"]
    assert [await writer for writer in writers[1:]] == [True, True]


async def test_readers_of_a_key_that_is_written_again_and_again_are_answered(tier, entry):
    async def go_on_writing(number: int) -> None:
        while True:
            await tier.set("k", entry(number))

    await tier.set("k", entry(0))
    writers = [asyncio.ensure_future(go_on_writing(number)) for number in (1, 2)]
    await asyncio.sleep(0.05)
    for _ in range(5):
        started = time.monotonic()
        assert (await tier.get("k")).value in (1, 2)
        assert time.monotonic() - started < 1
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)


async def test_what_cannot_be_stored_leaves_nothing_of_the_former_value(tier, entry):
    for refused in (entry(object()), entry("x" * 2_000_000), entry(2**70), entry(tags=("\ud800",))):
        assert await tier.set("k", entry("former"))
        assert not await tier.set("k", refused)
        assert await tier.get("k") is None


async def test_each_caller_hears_of_its_own_entries(tier, entry):
    stored, some = await asyncio.gather(
        tier.set("a", entry()), tier.set_many({"b": entry(), "a": entry(object()), "c": entry(kept=-1)})
    )
    assert (stored, some) == (True, {"b"})
    assert set(await tier.get_many(["a", "b", "c"])) == {"b"}
    assert tier.stats().refused == 2


async def test_an_entry_that_has_expired_already_removes_the_former_one(tier, entry):
    await tier.set("k", entry("former"))
    assert not await tier.set("k", entry("newer", kept=-1))
    assert await tier.get("k") is None


@pytest.mark.parametrize("tag", ["\ud800", b"x", 5])
async def test_a_tag_that_cannot_be_stored_harms_no_other_entry(tier, entry, tag):
    for _ in range(4):
        good, bad = await asyncio.gather(tier.set("good", entry()), tier.set("bad", entry(tags=(tag,))))
        assert (good, bad) == (True, False)
    assert await tier.get("good") is not None
    assert tier.stats().errors == {}


async def test_a_key_that_is_no_text_harms_no_other_caller(tier, entry):
    await tier.set("good", entry())
    for _ in range(4):
        good, *bad = await asyncio.gather(
            *(tier.get("good"), tier.get(5), tier.get_many(["k", 5]), tier.delete_many([5]), tier.set(5, entry())),
            return_exceptions=True,
        )
        assert good.value == "v"
        assert [str(error) for error in bad] == ["a key must be a str, got 5"] * 4
    assert tier.stats().errors == {}


async def test_an_entry_may_be_kept_without_an_end(tier):
    stored = Entry("v", 1.5, float("inf"), float("inf"))
    assert await tier.set("k", stored)
    found = await tier.get("k")
    # It is kept as a time of the server's clock, which is known to some milliseconds.
    assert found.created_at == pytest.approx(1.5, abs=0.5)
    assert (found.value, found.fresh_until, found.kept_until) == ("v", None, None)


@pytest.mark.parametrize(
    ("most", "error"), [(0, ValueError), (2**29 + 1, ValueError), (1e6, TypeError), (float("inf"), TypeError)]
)
def test_a_limit_of_bytes_that_makes_no_sense_is_refused(make, most, error):
    with pytest.raises(error, match="max_value_bytes"):
        make(max_value_bytes=most)


async def test_what_is_too_large_to_be_read_is_counted_as_corrupt(make, tier, entry, namespace):
    await tier.set_many({"large": entry("x" * 5_000), "small": entry()})
    reader = make(deadline=5, max_value_bytes=1_000)
    await reader.open(namespace)
    assert set(await reader.get_many(["large", "small"])) == {"small"}
    assert reader.stats().corrupt == 1
    await reader.close()


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_a_size_from_which_to_compress_that_makes_no_sense_is_refused(make, size, error):
    with pytest.raises(error, match="compress_above must be"):
        make(compress_above=size)


async def test_a_value_above_a_size_is_compressed_and_every_tier_reads_it(make, tier, entry, namespace):
    # Together they would not fit.
    values = {"large": "x" * 5_000, "small": "x" * 100, "random": secrets.token_bytes(600)}
    writer = make(deadline=5, compress_above=200, max_value_bytes=1_000)
    await writer.open(namespace)
    for tags in ((), ("t",)):
        assert await writer.set_many({key: entry(value, tags=tags) for key, value in values.items()}) == set(values)
        for reader in (writer, tier):
            found = await reader.get_many(list(values))
            assert {key: found[key].value for key in found} == values
    assert writer.stats().refused == 0
    await tier.invalidate_tag("t")
    assert await writer.get("large") is None
    await writer.close()


async def test_a_value_that_compression_does_not_make_smaller_is_stored_as_it_is(make, tier, entry, namespace):
    writer = make(deadline=5, compress_above=0)
    await writer.open(namespace)
    packed = writer._pack("k", entry(secrets.token_bytes(500)), namespace)
    assert (len(packed[0]), packed[1]) == (503, 0)
    assert writer._pack("k", entry("x" * 500), namespace)[1] == 2
    await writer.close()


def test_without_a_module_for_zstd_a_tier_that_compresses_is_refused(make, monkeypatch):
    monkeypatch.setattr(zstd, "_module", lambda: None)
    message = "compress_above needs Python 3.14 or later, or: pip install 'acgsperf[zstd]'"
    with pytest.raises(ImportError, match=re.escape(message)):
        make(compress_above=1)


async def test_a_server_that_is_away_when_the_tier_opens_is_told_of_once(kind, caplog):
    url = {"redis": "redis://:s3cr3t@localhost:1", "postgres": "postgresql://ann:s3cr3t@localhost:1/db"}[kind]
    tier = {"redis": RedisTier, "postgres": PostgresTier}[kind](url)
    await tier.open("n")
    assert await tier.get("k") is None
    await tier.close()
    (record,) = (record for record in caplog.records if record.name == "acgsperf.tiers")
    assert "cannot reach" in record.message
    assert "localhost" in record.message
    assert "s3cr3t" not in caplog.text


async def test_a_tier_whose_opening_was_cancelled_can_be_opened(private_server, entry):
    tier = {"redis": RedisTier, "postgres": PostgresTier}[private_server.kind](private_server.url, deadline=5)
    private_server.freeze()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tier.open("private"), 0.1)
    private_server.thaw()
    await tier.open("private")
    assert await tier.set("k", entry())
    await tier.close()


async def test_a_tag_is_invalidated_with_every_entry_that_has_it(tier, entry):
    await tier.set_many({"a": entry(tags=("x", "y")), "b": entry(tags=("y",)), "c": entry(), "d": entry(tags=("x",))})
    assert await tier.invalidate_tag("x") is not None
    assert set(await tier.get_many(["a", "b", "c", "d"])) == {"b", "c"}
    assert await tier.set("a", entry(tags=("x",)))
    assert await tier.get("a") is not None


@pytest.mark.parametrize("value", [object(), {"a": {1j}}, 2**70, "\ud800", "x" * 2_000_000])
async def test_what_cannot_be_stored_is_refused_and_counted(tier, entry, value):
    assert not await tier.set("k", entry(value))
    assert tier.stats().refused == 1


async def test_a_value_that_holds_itself_is_refused(tier, entry):
    endless: list[object] = []
    endless.append(endless)
    assert not await tier.set("k", entry(endless))


async def test_counters_tell_what_happened(tier, entry):
    await tier.set("a", entry())
    await tier.get_many(["a", "b"])
    await tier.get("a")
    await tier.delete_many(["a", "b"])
    stats = tier.stats()
    assert (stats.hits, stats.misses, stats.stores, stats.deletes) == (2, 1, 1, 1)
    assert stats.hit_rate == pytest.approx(2 / 3)
    assert stats.latency.count == 3
    assert stats.errors == {}


async def test_connections_are_counted_also_after_the_tier_is_opened_again(make, entry, namespace):
    tier = make(deadline=5)
    for time_ in (1, 2):
        await tier.open(namespace)
        assert await tier.set("k", entry())
        found = tier.stats().connections
        assert (found.open, found.failed) == (1, 0)
        assert found.opened == found.connect.count == tier.counted_connections.connect_time.count == time_
        await tier.close()
        assert tier.stats().connections.open == 0
        assert tier.stats().connections.opened == time_


@pytest.mark.parametrize(
    "make", [lambda: RedisTier("redis://127.0.0.1:1"), lambda: PostgresTier("postgresql://127.0.0.1:1/a")]
)
async def test_connections_that_cannot_be_opened_are_counted(make):
    tier = make()
    for least in (1, 2):
        await tier.open("n")
        await tier.close()
        found = tier.stats().connections
        assert found.failed >= least
        assert (found.open, found.opened) == (0, 0)


async def test_health_names_the_server(tier):
    health = await tier.health()
    assert health.ok
    assert health.latency_ns > 0
    assert health.detail.lower().startswith((tier.name, "valkey"))


async def test_a_tier_that_is_not_open_says_so(make, entry):
    tier = make()
    for call in (tier.get("k"), tier.get_many(["k"]), tier.set("k", entry()), tier.delete_many(["k"]), tier.clear()):
        with pytest.raises(TierError, match="not open"):
            await call
    await tier.close()


async def test_a_tier_opens_again_after_it_was_closed(make, entry, namespace):
    tier = make(deadline=5)
    for _ in range(2):
        await tier.open(namespace)
        with pytest.raises(TierError, match="already open"):
            await tier.open(namespace)
        assert await tier.set("k", entry())
        await tier.close()
        await tier.close()


async def test_closing_answers_everybody_who_waits(private_server, private_tier, entry):
    private_server.freeze()
    calls = []
    for i in range(10):
        calls += [private_tier.get(f"k{i}"), private_tier.get_many([f"k{i}"]), private_tier.set("w", entry())]
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    started = time.monotonic()
    await private_tier.close()
    assert time.monotonic() - started < 1.5
    assert not any(await asyncio.wait_for(asyncio.gather(*waiting), 1))
    private_server.thaw()
    await private_tier.open("private")
    assert await private_tier.get("nothing") is None
    assert private_tier.stats().misses == 21


async def test_another_event_loop_is_refused(tier):
    def elsewhere() -> None:
        asyncio.run(tier.get("k"))

    with pytest.raises(TierError, match="another event loop"):
        await asyncio.to_thread(elsewhere)


async def test_another_event_loop_is_refused_while_a_batch_is_under_way(tier, entry):
    await tier.set("k", entry())
    own = asyncio.ensure_future(tier.get("k"))
    await asyncio.sleep(0)
    failures = []

    def elsewhere() -> None:
        try:
            asyncio.run(tier.get("k"))
        except TierError as error:
            failures.append(str(error))

    # The loop waits, so that the batch is still there.
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(failures) == 1
    assert "another event loop" in failures[0]
    assert (await own).value == "v"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("under_way", [False, True])
async def test_a_forked_child_is_refused(tier, under_way):
    own = asyncio.ensure_future(tier.get("k"))
    if under_way:
        await asyncio.sleep(0)
    else:
        await own
    pid = os.fork()
    if not pid:
        # Nothing of the parent's may run or be flushed here.
        outcome = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.run(tier.get("k"))
        except TierError:
            outcome = 0
        finally:
            os._exit(outcome)
    assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]) == 0
    assert await own is None
    assert await tier.get("k") is None


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\ud800"])
async def test_a_namespace_that_cannot_be_used_is_refused(make, name):
    with pytest.raises(ValueError, match="namespace"):
        await make().open(name)


async def test_a_frozen_server_is_a_miss_within_the_deadline_and_no_late_reply_is_taken(
    private_server, private_tier, until_it_answers, entry
):
    tier = private_tier
    await tier.set_many({f"k{i}": entry(i) for i in range(50)})
    private_server.freeze()
    started = time.monotonic()
    assert await asyncio.gather(*(tier.get(f"k{i}") for i in range(10))) == [None] * 10
    assert not await tier.set("w", entry())
    assert time.monotonic() - started < 1.5
    assert tier.stats().timeouts >= 2
    private_server.thaw()
    await until_it_answers(tier)
    for i in range(10, 50):
        assert (await tier.get(f"k{i}")).value == i


async def test_a_frozen_server_keeps_no_caller_50_ms_beyond_the_deadline(
    private_server, private_tier, entry, stopwatch
):
    private_server.freeze()
    # Until the first are answered, the others come: they join batches, wait for a free place or for a write.
    for i in range(100):
        stopwatch.start(private_tier.set(f"w{i}", entry()))
        stopwatch.start(private_tier.get(f"k{i}"))
        stopwatch.start(private_tier.get_many([f"k{i}", f"l{i}"]))
        stopwatch.start(private_tier.delete_many([f"d{i}"]))
        await asyncio.sleep(0.002)
        stopwatch.start(private_tier.get(f"w{i}"))
        stopwatch.start(private_tier.get_many([f"w{i}", f"w{i // 2}"]))
    assert not any(await stopwatch.finish())
    assert private_tier.stats().timeouts > 0
    # What was cut short between a write and its read is counted with its batch.
    await private_tier.close()
    assert private_tier.stats().misses == 600
    assert stopwatch.slowest < 0.25 + 0.05 + stopwatch.stalled


async def test_what_was_removed_is_not_corrupt(tier, entry):
    await tier.set_many({"deleted": entry(), "tagged": entry(tags=("t",))})
    await tier.delete_many(["deleted"])
    await tier.invalidate_tag("t")
    for key in ("deleted", "tagged", "never"):
        assert await tier.get(key) is None
        assert (await tier.look_up([key]))[0] == {}
        assert (await tier.look_up([key]))[0] == {}
    assert tier.stats().corrupt == 0


@pytest.mark.alone
async def test_a_pause_of_the_process_is_no_failure_of_the_server(make, namespace, entry):
    tier = make(deadline=0.3)
    await tier.open(namespace)
    assert await tier.set("key", entry("value"))
    calls = [
        lambda: tier.get("key"),
        lambda: tier.get_many(["key", "other"]),
        lambda: tier.observe(["other"]),
        lambda: tier.look_up(["key", "other"]),
    ]
    # Reads only: a write that is sent after its deadline must be refused.
    for call in calls:
        # On a busy machine, a server may really need more than the 20 ms that it has after the pause.
        for _ in range(3):
            failed = tier.stats().errors
            # As a garbage collector or a busy machine does, until after the deadline.
            asyncio.get_running_loop().call_later(0.0005, time.sleep, 0.4)
            await call()
            if tier.stats().errors == failed:
                break
        else:
            pytest.fail(f"each pause was counted as a failure: {failed}")
    await tier.clear()
    await tier.close()


async def test_a_server_that_goes_on_failing_is_left_alone_and_logged_once(
    private_server, private_tier, until_it_answers, caplog
):
    caplog.set_level(logging.INFO, "acgsperf.tiers")
    private_server.freeze()
    for _ in range(3):
        assert await private_tier.get("k") is None
    assert private_tier.stats().breaker is BreakerState.OPEN
    started = time.monotonic()
    for _ in range(100):
        assert await private_tier.get("k") is None
    assert time.monotonic() - started < 0.2
    assert private_tier.stats().skipped >= 100
    private_server.thaw()
    await until_it_answers(private_tier)
    assert private_tier.stats().breaker is BreakerState.CLOSED
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def _envelope(*fields, rest=b"", version=2):
    """An envelope of a key of one byte, with fields of the kind that must come after its version."""
    return struct.pack(">8sQ", b"i" * 8, 1) + struct.pack("<BBHIdddIIHH", ord("E"), version, *fields) + rest


@pytest.mark.parametrize(
    ("garbage", "corrupt"),
    [
        (b"", 1),
        (b"x", 1),
        (b"[" * 17, 1),
        (pickle.dumps({"a": "another program"}), 0),
        (b"\xacG\x01\x00" + struct.pack("<dddIII", 1, 2, 3, 1, 0, 1) + b"k\x01", 0),
        (_envelope(0, 0, 1, 2, 3, 512 << 20, 0, 0, 0, rest=b"k"), 1),
        (_envelope(0, 0, 1, 2, 3, 1, 512 << 20, 0, 0, rest=b"k"), 1),
        (_envelope(0, 0, 1, 2, 3, 1, 0, 65_535, 0, rest=b"k"), 1),
        (_envelope(0, 0, 1, float("inf"), float("inf"), 1, 0, 0, 0, rest=b"j\x01"), 1),
        (_envelope(0, 0, 1, float("nan"), float("inf"), 1, 0, 0, 0, rest=b"k\x01"), 1),
        (_envelope(0, 0, 1, float("inf"), float("inf"), 1, 0, 0, 0, rest=b"k\x01", version=3), 0),
        (_envelope(8, 0, 1, float("inf"), float("inf"), 1, 0, 0, 0, rest=b"k\x01"), 0),
    ],
    ids=["nothing", "short", "json", "pickle", "v1", "key", "tags", "tokens", "other key", "NaN", "v3", "flag"],
)
async def test_garbage_is_a_miss_and_counted(tier, servers, namespace, entry, garbage, corrupt):
    await tier.set("k", entry())
    if tier.name == "redis":
        await tier._ask([("SET", tier.keys.prefix + b"k", garbage)], list)
    else:
        async with tier._connection() as connection:
            await connection.execute("UPDATE acgsperf_cache_v2 SET value = $2 WHERE namespace = $1", namespace, garbage)
    assert await tier.get("k") is None
    assert tier.stats().corrupt == corrupt
    assert await tier.observe(["k"])
    assert await tier.set("k", entry("new"))
    assert (await tier.get("k")).value == "new"


async def test_a_server_that_is_down_is_no_error(kind, tmp_path, entry):
    tier = (
        RedisTier(f"unix://{tmp_path}/none")
        if kind == "redis"
        else PostgresTier(f"postgresql://u:secret@/db?host={tmp_path}")
    )
    await tier.open("n")
    assert await tier.get("k") is None
    assert not await tier.set("k", entry())
    assert await tier.delete_many(["k"]) is None
    assert await tier.clear() is None
    assert not (await tier.health()).ok
    assert "secret" not in repr(tier)
    await tier.close()
