"""RedisBackplane: records arrive, gaps are noticed, and a server that is not there does no harm."""

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import textwrap
import time

import pytest
import redis.asyncio

from acgsperf.backplane import BackplaneState, beside
from acgsperf.backplane import redis as backplane_redis
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.errors import TierError
from acgsperf.tiers import Entry, Store, StoreKind, Write
from acgsperf.tiers.records import Record, RecordKind, packed
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_keys import RedisKeys


def log_key(namespace):
    return RedisKeys(namespace).log


def entry(value):
    now = time.monotonic()
    return Entry(value, now, now + 60, now + 60, id=secrets.token_bytes(8), stamp=1)


@pytest.fixture
async def client(redis_url):
    async with redis.asyncio.Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture
async def victim_client(redis_victim):
    async with redis.asyncio.Redis.from_url(redis_victim.url, protocol=2) as client:
        yield client


async def readers(client):
    """The connections that follow logs."""
    return [it for it in await client.client_list() if it["cmd"] == "xread"]


async def test_a_record_arrives_at_others_and_not_at_its_writer(redis, opened, namespace, keys, until):
    one, other = redis(), redis()
    mine, theirs = await opened(one, namespace), await opened(other, namespace)
    assert await one.publish(keys("a", "b"))
    await until(lambda: theirs.records and one.stats().sent)
    assert theirs.keys == ["a", "b"]
    assert mine.records == []
    assert one.position == other.position != b""
    stats = other.stats()
    assert (stats.state, stats.received, stats.applied, stats.malformed) == (BackplaneState.FOLLOWING, 1, 1, 0)
    assert stats.lag.count == 1
    assert stats.lag.max < 5_000_000_000


async def test_namespaces_do_not_hear_each_other(redis, opened, namespace, keys, until):
    one, other, third = redis(), redis(), redis()
    await opened(one, namespace)
    theirs = await opened(other, namespace + ":b")
    theirs_too = await opened(third, namespace + ":b")
    assert await one.publish(keys("a"))
    assert await third.publish(keys("b"))
    await until(lambda: theirs.records and one.stats().sent)
    assert theirs.keys == ["b"]
    assert theirs_too.keys == []


async def test_the_lease_begins_with_the_opening_and_is_extended(redis, opened, namespace, until):
    began = time.monotonic()
    listener = await opened(redis(timeout=0.2), namespace)
    assert began < listener.until <= time.monotonic() + 0.2
    assert listener.misses == 1
    first = listener.until
    await until(lambda: listener.until > first + 0.5)
    assert listener.misses == 1


async def test_caches_of_an_event_loop_share_a_connection(redis, opened, client, namespace, keys, until):
    before = len(await readers(client))
    backplanes = [redis() for _ in range(4)]
    listeners = [await opened(it, f"{namespace}-{number % 3}") for number, it in enumerate(backplanes)]
    began = time.monotonic()
    await opened(redis(), namespace + "-late")
    # It does not wait for the end of the XREAD that is in progress.
    assert time.monotonic() - began < 0.2
    assert await backplanes[0].publish(keys("a"))
    await until(lambda: listeners[3].records)
    while not (now := await readers(client)):
        pass
    assert len(now) - before == 1
    assert (listeners[3].keys, listeners[1].keys) == (["a"], [])
    for backplane in backplanes[:3]:
        await backplane.close()
    assert len(await readers(client)) - before == 1


async def test_the_last_cache_closes_the_connection(redis, client, recorder, namespace):
    before = await client.client_list()
    backplanes = [redis(), redis()]
    for backplane in backplanes:
        await backplane.open(namespace, recorder(), b"12345678")
    for backplane in backplanes:
        await backplane.close()
        await backplane.close()
        assert backplane.stats().state is BackplaneState.OFF
    async with asyncio.timeout(5):
        while True:
            if len(await client.client_list()) <= len(before):
                break
    assert backplane_redis._readers == {}


async def test_a_cache_that_joins_later_hears_at_once(redis, opened, namespace, keys, until):
    await opened(redis(timeout=60), namespace)
    late, writer = redis(timeout=60), redis(timeout=60)
    listener = await opened(late, namespace + "b")
    await opened(writer, namespace + "b")
    assert await writer.publish(keys("a"))
    await until(lambda: listener.keys == ["a"], 2)


async def test_a_trimmed_log_is_a_gap(redis, opened, client, namespace, keys, until):
    backplane, writer = redis(timeout=0.4), redis(timeout=0.4)
    listener = await opened(backplane, namespace)
    await opened(writer, namespace)
    await client.xtrim(log_key(namespace), maxlen=0, approximate=False)
    await until(lambda: listener.misses == 2)
    assert backplane.stats().gaps == 1
    await until(lambda: listener.leased)
    assert await writer.publish(keys("after"))
    await until(lambda: listener.keys == ["after"])


async def test_a_log_lives_for_30_days_after_the_last_record(redis, opened, client, namespace, keys):
    backplane = redis()
    await opened(backplane, namespace)
    thirty_days = 30 * 24 * 3600
    assert thirty_days - 60 < await client.ttl(log_key(namespace)) <= thirty_days
    await client.expire(log_key(namespace), 3600)
    assert await backplane.publish(keys("k"))
    assert thirty_days - 60 < await client.ttl(log_key(namespace)) <= thirty_days


async def test_a_deleted_log_is_a_gap(redis, opened, client, namespace, until):
    backplane = redis(timeout=0.4)
    listener = await opened(backplane, namespace)
    await client.delete(log_key(namespace))
    await until(lambda: listener.misses == 2)
    await until(lambda: backplane.stats().state is BackplaneState.FOLLOWING)


async def test_records_that_are_read_after_a_gap_are_not_taken_for_all(opened, redis_victim, victim_client, until):
    """The log is trimmed and written to again while the process does not read."""
    redis_victim.start()
    backplane = RedisBackplane(redis_victim.url, timeout=0.4)
    listener = await opened(backplane, "ns")
    key = log_key("ns")
    async with victim_client.pipeline(transaction=True) as pipe:
        pipe.xadd(key, {"r": packed(Record(RecordKind.KEYS, ((b"lost", b""),)), b"somebody", 0)})
        pipe.xtrim(key, maxlen=0, approximate=False)
        pipe.xadd(key, {"r": packed(Record(RecordKind.KEYS, ((b"kept", b""),)), b"somebody", 0)})
        await pipe.execute()
    await until(lambda: listener.misses == 2)


async def test_a_reader_that_is_far_behind_catches_up_in_steps(redis, opened, client, namespace, until):
    backplane = redis(timeout=5)
    listener = await opened(backplane, namespace)
    extensions = []
    listener.extend = lambda until: extensions.append(len(listener.records))
    async with client.pipeline(transaction=True) as pipe:
        for number in range(3_500):
            record = Record(RecordKind.KEYS, ((str(number).encode(), b""),))
            pipe.xadd(log_key(namespace), {"r": packed(record, b"somebody", 0)})
        await pipe.execute()
    await until(lambda: len(listener.records) == 3_500)
    assert listener.keys == list(map(str, range(3_500)))
    assert listener.misses == 1
    await until(lambda: 3_500 in extensions)
    # While it is behind, L1's lease is not extended.
    assert set(extensions) <= {0, 3_500}


@pytest.mark.parametrize(
    "fields",
    [
        {"r": b"\xc1"},
        {"r": b""},
        {"x": b"\x90"},
        {"r": b"\x90", "s": b"t"},
        {"r": packed(Record(RecordKind.CLEAR), b"somebody", 0).replace(b"\x01", b"\x02", 1)},
    ],
)
async def test_what_does_not_parse_is_counted_and_skipped(redis, opened, client, namespace, keys, until, fields):
    backplane, writer = redis(), redis()
    listener = await opened(backplane, namespace)
    await opened(writer, namespace)
    await client.xadd(log_key(namespace), fields)
    assert await writer.publish(keys("a"))
    await until(lambda: listener.records)
    stats = backplane.stats()
    assert (stats.malformed, stats.received, stats.applied) == (1, 2, 1)
    assert listener.misses == 1


@pytest.mark.parametrize("sent_us", [0, -5, 2**63 - 1, 1])
async def test_an_absurd_time_is_no_lag(redis, opened, client, namespace, until, sent_us):
    backplane = redis()
    listener = await opened(backplane, namespace)
    await client.xadd(log_key(namespace), {"r": packed(Record(RecordKind.CLEAR), b"somebody", sent_us)})
    await until(lambda: listener.records)
    assert backplane.stats().lag.count == 0


async def test_a_key_that_is_no_stream_is_replaced_and_other_namespaces_work_on(
    redis, opened, client, namespace, keys, until, caplog
):
    await client.set(log_key(namespace + "x"), "foreign")
    backplanes = [redis(timeout=0.4) for _ in range(3)]
    hurt = await opened(backplanes[0], namespace + "x")
    listener = await opened(backplanes[1], namespace)
    await opened(backplanes[2], namespace)
    assert await backplanes[2].publish(keys("a"))
    await until(lambda: listener.records)
    assert backplanes[0].stats().state is BackplaneState.FOLLOWING
    # A stream that is replaced with something else later.
    await client.set(log_key(namespace + "x"), "foreign")
    await until(lambda: hurt.misses == 2)
    assert backplanes[0].stats().gaps == 1
    assert await backplanes[2].publish(keys("b"))
    await until(lambda: listener.keys == ["a", "b"])
    await until(lambda: hurt.leased)
    assert [it for it in caplog.records if it.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("forbidden", ["xadd", "xread", "xrevrange"])
async def test_missing_rights_are_named_once(opened, redis_victim, victim_client, until, caplog, forbidden):
    redis_victim.start()
    await victim_client.acl_setuser(
        "app", enabled=True, passwords="+secret", keys="*", commands=["+@all", f"-{forbidden}"]
    )
    url = redis_victim.url.replace("unix://", "unix://app:secret@")
    backplane = RedisBackplane(url, timeout=0.2)
    listener = await opened(backplane, "ns")
    await until(lambda: any("+xread" in it.getMessage() for it in caplog.records))
    assert "secret" not in caplog.text
    await until(lambda: backplane.stats().state is BackplaneState.OFF)
    assert not await backplane.publish(Record(RecordKind.CLEAR)) or forbidden != "xadd"
    await victim_client.acl_setuser("app", commands=["+@all"])
    await until(lambda: listener.leased and backplane.stats().state is BackplaneState.FOLLOWING)
    assert len([it for it in caplog.records if it.levelno == logging.WARNING]) == 1


async def test_without_the_rights_to_ask_for_the_server_a_reconnect_is_a_gap(
    opened, redis_victim, victim_client, until
):
    redis_victim.start()
    await victim_client.acl_setuser(
        "app", enabled=True, nopass=True, keys="*", commands=["+xadd", "+xread", "+xrevrange"]
    )
    backplane = RedisBackplane(redis_victim.url.replace("unix://", "unix://app:x@"), timeout=0.4)
    listener = await opened(backplane, "ns")
    assert listener.leased
    await victim_client.client_kill_filter(_type="normal")
    await until(lambda: listener.misses == 2)


async def test_what_was_missed_is_read_after_a_lost_connection(opened, redis_victim, victim_client, keys, until):
    redis_victim.start()
    backplane, writer = (
        RedisBackplane(redis_victim.url),
        RedisBackplane(redis_victim.url, credentials=lambda: ("default", "x")),
    )
    listener = await opened(backplane, "ns")
    record = packed(keys("a"), b"somebody", 0)
    async with victim_client.pipeline(transaction=True) as pipe:
        pipe.client_kill_filter(_type="normal")
        pipe.xadd(log_key("ns"), {"r": record})
        await pipe.execute()
    del writer
    await until(lambda: listener.records)
    assert listener.misses == 1
    stats = backplane.stats()
    assert (stats.recovered, stats.gaps) == (1, 0)
    await victim_client.xadd(log_key("ns"), {"r": record})
    await until(lambda: len(listener.records) == 2)
    assert backplane.stats().recovered == 1


async def test_the_lease_outlives_a_lost_connection(opened, redis_victim, victim_client, until):
    redis_victim.start()
    listener = await opened(RedisBackplane(redis_victim.url), "ns")
    for _ in range(5):
        await victim_client.client_kill_filter(_type="normal")
        before = listener.until
        while listener.until == before:
            assert listener.leased
            await asyncio.sleep(0.001)


async def test_a_server_that_is_restarted_has_forgotten_the_log(opened, redis_victim, until, caplog):
    redis_victim.start()
    backplane = RedisBackplane(redis_victim.url, timeout=0.4)
    listener = await opened(backplane, "ns")
    redis_victim.kill()
    await until(lambda: backplane.stats().state is BackplaneState.RECOVERING)
    await until(lambda: not listener.leased)
    redis_victim.start()
    await until(lambda: listener.leased)
    assert (listener.misses, backplane.stats().gaps) == (2, 1)
    assert len([it for it in caplog.records if it.levelno == logging.WARNING]) == 1


async def test_a_server_restarted_from_a_snapshot_is_a_gap_even_if_it_has_the_position(
    opened, redis_victim, victim_client, until
):
    redis_victim.start()
    backplane = RedisBackplane(redis_victim.url, timeout=0.4)
    listener = await opened(backplane, "ns")
    position = backplane.position
    await victim_client.save()
    redis_victim.kill()
    redis_victim.start()
    await until(lambda: listener.leased and listener.misses == 2)
    assert (await victim_client.xrange(log_key("ns")))[0][0] == position[8:]


async def test_nothing_is_demoted_to_a_server_that_was_restarted_since(opened, redis_victim, victim_client):
    """The snapshot has the last position of the log that the process knows, and the log may have had later records."""
    redis_victim.start()
    tier = RedisTier(redis_victim.url, deadline=5)
    await tier.open("ns")
    assert await tier.set("other", entry("v"))
    backplane = RedisBackplane.beside(tier)
    await opened(backplane, "ns")
    position = backplane.position
    await backplane.close()
    assert await tier.store({"k": Store(entry("removed"), None, StoreKind.DEMOTION, position)})
    assert await tier.delete_many(["k"])
    await victim_client.delete(tier.keys.entry("k"))
    await victim_client.save()
    redis_victim.kill()
    redis_victim.start()
    assert await tier.set("other", entry("v"))
    assert not await tier.store({"k": Store(entry("removed"), None, StoreKind.DEMOTION, position)})
    await tier.close()


async def test_an_older_dump_that_is_loaded_without_a_restart_revives_nothing(
    opened, redis_victim, victim_client, until, caplog
):
    redis_victim.start()
    tier = RedisTier(redis_victim.url, deadline=5)
    tier.writer = b"writer-1"
    await tier.open("ns")
    for key in ("removed", "kept"):
        await tier.write({key: Write(entry(key), secrets.token_bytes(8), tier.now_us())})
    dump = {key: await victim_client.dump(key) for key in await victim_client.keys()}
    backplane = RedisBackplane.beside(tier)
    listener = await opened(backplane, "ns")
    removal = Write(None, secrets.token_bytes(8), tier.now_us())
    await tier.write({"removed": removal})
    await until(lambda: listener.keys)
    reads = []
    # The first read that the cache can make to verify an entry.
    listener.missed = lambda: reads.append(asyncio.ensure_future(tier.get("removed")))
    async with victim_client.pipeline(transaction=True) as pipe:
        # As DEBUG RELOAD NOSAVE does.
        pipe.flushall()
        for key, value in dump.items():
            pipe.restore(key, 0, value)
        # The log of another process goes on.
        pipe.xadd(log_key("ns"), {"r": packed(Record(RecordKind.HELLO), b"somebody", 0)})
        await pipe.execute()
    await until(lambda: reads)
    assert await asyncio.gather(*reads) == [None]
    assert await tier.get("kept") is None
    assert [it.message for it in caplog.records if it.levelno == logging.WARNING] == [
        "redis backplane 'ns': the server has loaded an older dump; all entries in it are misses now"
    ]
    await tier.close()


async def test_a_frozen_server_ends_the_lease_in_time(opened, redis_victim, until):
    redis_victim.start()
    backplane = RedisBackplane(redis_victim.url, timeout=0.4)
    listener = await opened(backplane, "ns")
    frozen_at = time.monotonic()
    redis_victim.freeze()
    await until(lambda: not listener.leased)
    assert listener.until <= frozen_at + 0.4 + 0.1
    redis_victim.thaw()
    await until(lambda: listener.leased)
    assert listener.misses == 1


async def test_a_server_that_is_not_there_is_one_warning(opened, redis_victim, keys, until, caplog):
    backplane = RedisBackplane(redis_victim.url, timeout=0.2)
    began = time.monotonic()
    listener = await opened(backplane, "ns")
    other = await opened(RedisBackplane(redis_victim.url, timeout=0.2), "other")
    assert time.monotonic() - began < 2
    assert (listener.until, listener.misses, backplane.position) == (0, 0, b"")
    assert backplane.stats().state is BackplaneState.CONNECTING
    assert not await backplane.publish(keys("a"))
    assert not await backplane.publish(keys("b"))
    assert backplane.stats().queued == 2
    redis_victim.start()
    await until(lambda: listener.leased and other.leased)
    assert (listener.misses, other.misses) == (1, 1)
    await until(lambda: not backplane.stats().queued)
    assert len([it for it in caplog.records if it.levelno == logging.WARNING]) == 1


async def test_publications_that_failed_arrive_in_order_later(opened, redis_victim, keys, until):
    redis_victim.start()
    backplane = RedisBackplane(redis_victim.url, timeout=0.3)
    listener = await opened(backplane, "ns")
    redis_victim.freeze()
    futures = [backplane.publish(keys(str(number))) for number in range(250)]
    began = time.monotonic()
    assert await asyncio.gather(*futures) == [False] * 250
    assert time.monotonic() - began < 1
    redis_victim.thaw()
    reader = await opened(RedisBackplane(redis_victim.url, timeout=0.3), "ns")
    await until(lambda: not backplane.stats().queued)
    assert await backplane.publish(keys("last"))
    await until(lambda: "last" in reader.keys)
    numbers = [int(key) for key in reader.keys[:-1]]
    # Those that timed out may have been carried out as well, and come twice.
    assert numbers[-150:] == list(range(100, 250))
    assert listener.records == []


async def test_an_exception_of_the_cache_does_not_stop_the_others(redis, opened, namespace, keys, until, caplog):
    broken, fine = redis(), redis()
    listener, other = await opened(broken, namespace), await opened(fine, namespace)
    writer = redis()
    await opened(writer, namespace)
    listener.fail = ValueError("a bug")
    assert await writer.publish(keys("a"))
    await until(lambda: other.records)
    assert listener.misses == 2
    assert "could not apply" in caplog.text


async def test_use_that_is_not_allowed(redis, recorder, namespace, keys):
    backplane = redis()
    with pytest.raises(TierError, match="is not open"):
        backplane.publish(keys("a"))
    with pytest.raises(ValueError, match="writer must be 8 bytes"):
        await backplane.open(namespace, recorder(), b"1")
    with pytest.raises(ValueError, match="timeout must be greater than 0"):
        redis(timeout=0)
    await backplane.open(namespace, recorder(), b"12345678")
    with pytest.raises(TierError, match="already open"):
        await backplane.open(namespace, recorder(), b"12345678")

    async def elsewhere():
        with pytest.raises(TierError, match="another event loop"):
            backplane.publish(keys("a"))

    await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    await backplane.close()


async def test_event_loops_in_threads_have_readers_of_their_own(redis, opened, namespace, recorder, keys, until):
    listener = await opened(redis(), namespace)

    async def write():
        backplane = redis()
        await backplane.open(namespace, recorder(), secrets.token_bytes(8))
        assert await backplane.publish(keys("a"))
        await backplane.close()

    await asyncio.gather(*(asyncio.to_thread(lambda: asyncio.run(write())) for _ in range(4)))
    await until(lambda: listener.keys == ["a"] * 4)


async def test_a_cancelled_opening_leaves_nothing(opened, redis_victim, recorder):
    redis_victim.start()
    redis_victim.freeze()
    backplane = RedisBackplane(redis_victim.url, timeout=60)
    task = asyncio.create_task(backplane.open("ns", recorder(), b"12345678"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backplane_redis._readers == {}
    assert backplane.stats().state is BackplaneState.OFF


async def test_a_backplane_beside_a_tier_uses_its_server(opened, redis_url, namespace, keys, until):
    one, other = beside(RedisTier(redis_url)), RedisBackplane(redis_url)
    listener = await opened(one, namespace)
    await opened(other, namespace)
    assert len(backplane_redis._readers) == 1
    assert await other.publish(keys("a"))
    await until(lambda: listener.records)
    assert beside(None) is None


WORKER = textwrap.dedent("""
    import asyncio, json, sys, time
    from acgsperf.backplane.redis import RedisBackplane
    from acgsperf.tiers.records import texts

    class Listener:
        until = 0.0
        misses = 0
        def apply(self, record):
            print(json.dumps(["record", [key for key, _ in texts(record.items)], time.monotonic()]), flush=True)
        def extend(self, until):
            if self.until and until > self.until + 1:
                print(json.dumps(["lease", self.until, until]), flush=True)
            self.until = until
        def missed(self):
            print(json.dumps(["missed"]), flush=True)

    async def main(url, namespace):
        backplane = RedisBackplane(url, timeout=0.5)
        await backplane.open(namespace, Listener(), b"a worker")
        print(json.dumps(["ready"]), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(json.dumps(["recovered", backplane.stats().recovered]), flush=True)
        await backplane.close()

    asyncio.run(main(*sys.argv[1:]))
""")


class Worker:
    def __init__(self, process):
        self.process = process

    async def line(self):
        async with asyncio.timeout(20):
            return json.loads(await self.process.stdout.readline())


@pytest.fixture
async def worker(redis_url, namespace):
    """Another process that follows the log."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, redis_url, namespace), stdin=pipe, stdout=pipe
    )
    worker = Worker(process)
    assert await worker.line() == ["missed"]
    assert await worker.line() == ["ready"]
    yield worker
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_a_record_arrives_in_another_process_within_milliseconds(redis, opened, namespace, keys, worker):
    backplane = redis()
    await opened(backplane, namespace)
    lags = []
    for number in range(50):
        began = time.monotonic()
        assert await backplane.publish(keys(str(number)))
        kind, names, at = await worker.line()
        assert (kind, names) == ("record", [str(number)])
        lags.append(at - began)
    # The machine may be busy.
    assert min(lags) < 0.02


async def test_a_process_that_was_stopped_reads_what_it_missed(redis, opened, namespace, keys, until, worker):
    backplane = redis()
    await opened(backplane, namespace)
    os.kill(worker.process.pid, signal.SIGSTOP)
    for number in range(20):
        assert await backplane.publish(keys(str(number)))
    stopped_until = time.monotonic() + 1.5
    await until(lambda: time.monotonic() > stopped_until)
    os.kill(worker.process.pid, signal.SIGCONT)
    for number in range(20):
        assert (await worker.line())[:2] == ["record", [str(number)]]
    kind, lease, extended = await worker.line()
    # The lease was over during the pause.
    assert kind == "lease"
    assert lease < stopped_until < extended
    worker.process.stdin.close()
    assert (await worker.line())[0] == "recovered"


async def test_another_record_at_the_position_of_the_last_one_is_a_gap(redis, opened, client, namespace, keys, until):
    """A log that is removed and begun anew within a millisecond may have the same positions."""
    one, other = redis(), redis()
    await opened(one, namespace)
    theirs = await opened(other, namespace)
    assert await one.publish(keys("a"))
    await until(lambda: "a" in theirs.keys)
    misses = theirs.misses
    ((position, _),) = await client.xrevrange(log_key(namespace), count=1)
    async with client.pipeline(transaction=True) as pipe:
        pipe.delete(log_key(namespace))
        pipe.xadd(log_key(namespace), {b"r": packed(Record(RecordKind.HELLO), b"somebody", 0)}, id=position)
        await pipe.execute()
    await until(lambda: theirs.misses > misses)
    await until(lambda: theirs.leased)
    assert await one.publish(keys("b"))
    await until(lambda: "b" in theirs.keys)


@pytest.mark.parametrize("what", ["last position", "another type"])
async def test_a_log_that_cannot_be_added_to_is_replaced(redis, opened, client, namespace, keys, until, what):
    async def spoil():
        if what == "last position":
            await client.xadd(log_key(namespace), {"r": b"foreign"}, id=f"{(1 << 64) - 1}-{(1 << 64) - 1}")
        else:
            await client.delete(log_key(namespace))
            await client.rpush(log_key(namespace), "a")

    await spoil()
    one, other = redis(), redis()
    await opened(one, namespace)
    theirs = await opened(other, namespace)
    assert one.stats().state is other.stats().state is BackplaneState.FOLLOWING
    misses = theirs.misses
    await spoil()
    assert await one.publish(keys("a"))
    # Either the record arrives, or there is a gap and everything is verified.
    await until(lambda: theirs.keys or theirs.misses > misses)
    await until(lambda: other.stats().state is BackplaneState.FOLLOWING and theirs.leased)
    assert await one.publish(keys("b"))
    await until(lambda: "b" in theirs.keys)
