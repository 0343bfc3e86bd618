"""Reports that no instance can have written, and reports of other versions."""

import time

import asyncpg
import msgspec
import pytest
import redis.asyncio

from acgsperf import LatencyHistogram
from acgsperf.fleet import store_of
from acgsperf.fleet.report import LARGEST_REPORT_BYTES, OtherFormatError, decode_report, encode_report
from acgsperf.fleet.summary import summarize
from acgsperf.tiers.redis_keys import RedisKeys

INSTANCE = "f" * 16


def as_map(report, **changes):
    """Return the report as bytes, with fields of other types than a report can have."""
    return msgspec.msgpack.encode(msgspec.to_builtins(report, builtin_types=(bytes,)) | changes)


IMPOSSIBLE = {
    "negative count": {"failed": -1},
    "huge count": {"missed": 2**60},
    "more than 64 bits": {"violations": 2**64 - 1},
    "not a number": {"seconds": float("nan")},
    "endless": {"seconds": float("inf")},
    "negative time": {"seconds": -1.0},
    "no sequence": {"sequence": 0},
    "bad lag": {"backplane_lag_ms": float("nan")},
    "bad instance": {"instance": "../../etc/passwd"},
    "terminal codes": {"name": "\x1b[2J"},
    "long name": {"name": "x" * 201},
    "many parts": {"unhealthy": ("x",) * 101},
    "bad setting": {"settings": {"l1_size": float("inf")}},
    "many settings": {"settings": {str(number): 1.0 for number in range(101)}},
    "setting with a text": {"settings": {"password": "secret"}},
    "count with a text": {"failed": "1"},
    "no histogram": {"latency": b""},
    "garbage as histogram": {"latency": b"x" * 1000},
    "histogram of 50 MB": {"latency": LatencyHistogram(1, 2**62, 5).encode()},
}


@pytest.mark.parametrize("changes", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_report_is_refused(report_of, changes):
    decode_report(as_map(report_of()))
    with pytest.raises(ValueError, match="not a report"):
        decode_report(as_map(report_of(), **changes))


def test_bytes_that_are_no_report_are_refused(report_of):
    blob = encode_report(report_of(latencies_ns=[1, 2]))
    for end in range(len(blob)):
        with pytest.raises(ValueError, match="not a report"):
            decode_report(blob[:end])
    for other in (b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", blob + b"x", b"\x80"):
        with pytest.raises(ValueError, match="not a report"):
            decode_report(other)


def test_a_large_report_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="at most 131072 bytes, got 131073"):
        decode_report(bytes(LARGEST_REPORT_BYTES + 1))


def test_a_report_of_a_later_version_with_more_fields_is_read(report_of):
    assert decode_report(as_map(report_of(), colour="blue", nested=[{"a": 1}])) == report_of()


def test_a_report_of_an_earlier_version_with_fewer_fields_is_read(report_of):
    report = report_of(name="host:1", settings={"l1_size": 5.0})
    fields = msgspec.to_builtins(report, builtin_types=(bytes,))
    for name in ("name", "settings", "arm", "revision", "alerts"):
        del fields[name]
    assert decode_report(msgspec.msgpack.encode(fields)) == report_of()


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": 2, "latency": [1, 2]}])
def test_a_report_of_another_format_is_known_as_such(report_of, changes):
    with pytest.raises(OtherFormatError, match="format of a report must be 1, got 2"):
        decode_report(as_map(report_of(), **changes))


class Writer:
    """Writes anything in the place of a report."""

    def __init__(self, url, namespace):
        self._url, self._namespace = url, namespace
        self._is_redis = not url.startswith("postgresql")

    async def write(self, instance, blob, seconds_ago=0.0):
        if self._is_redis:
            prefix = RedisKeys(self._namespace).fleet
            stamp = int((time.time() - seconds_ago) * 1e6).to_bytes(8, "big")
            async with redis.asyncio.Redis.from_url(self._url, protocol=2) as client:
                await client.set(prefix + b":report:" + instance.encode(), stamp + blob, px=600_000)
                await client.zadd(prefix, {instance: time.time() * 1000 + 600_000})
            return
        connection = await asyncpg.connect(self._url)
        now = "extract(epoch FROM clock_timestamp())"
        await connection.execute(
            f"INSERT INTO acgsperf_fleet_v1 VALUES ($1, $2, {now} - $3::float8, {now} + 600, $4)",
            *(self._namespace, instance, seconds_ago, blob),
        )
        await connection.close()


@pytest.fixture
async def writer(store, url, namespace, report_of):
    # The store creates the table.
    await store.publish(report_of(1, [1_000] * 10))
    return Writer(url, namespace)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"failed": -1}, "1 report is damaged or too large"),
        ({"latency": LatencyHistogram().encode() + b"x"}, "1 report is damaged or too large"),
        ({"name": "x" * 200_000}, "1 report is damaged or too large"),
        ({"instance": "e" * 16}, "1 report is damaged or too large"),
        ({"format": 2}, "1 report is of another version of acgsperf"),
    ],
)
async def test_a_report_that_cannot_be_used_is_named_and_harms_no_other(store, writer, report_of, changes, problem):
    await writer.write(INSTANCE, as_map(report_of(instance=INSTANCE), **changes))
    summary = await summarize(await store.found())
    assert summary.missing == (problem,)
    assert [one.instance for one in summary.instances] == [report_of(1).instance]
    assert (summary.requests, summary.latency.count) == (10, 10)


async def test_a_report_from_the_future_is_not_used(store, writer, report_of):
    await writer.write(INSTANCE, encode_report(report_of(instance=INSTANCE)), seconds_ago=-3600)
    summary = await summarize(await store.found())
    assert summary.missing == ("1 report is from the future by the server's clock",)
    assert len(summary.instances) == 1


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("stored_at", "expires_at"), [("NaN", "NaN"), ("-Infinity", "Infinity")])
async def test_a_report_with_an_impossible_time_is_not_used(
    writer, store, url, namespace, report_of, stored_at, expires_at
):
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO acgsperf_fleet_v1 VALUES ($1, $2, $3, $4, $5)",
        *(namespace, INSTANCE, float(stored_at), float(expires_at), encode_report(report_of(instance=INSTANCE))),
    )
    await connection.close()
    summary = await summarize(await store.found())
    assert summary.missing == ("1 report is damaged or too large",)
    assert len(summary.instances) == 1


async def test_counts_that_would_not_fit_into_a_sum_are_refused(store, writer, report_of):
    poison = LatencyHistogram()
    poison.record(1)
    for _ in range(60):
        poison.merge(LatencyHistogram.decode(poison.encode()))
    await writer.write(INSTANCE, encode_report(report_of(instance=INSTANCE, latency=poison.encode())))
    summary = await summarize(await store.found())
    assert summary.missing == ("1 report is damaged or too large",)
    assert summary.requests == 10


async def test_hostile_bytes_in_redis_are_skipped(servers, namespace, report_of):
    keys = RedisKeys(namespace).fleet
    async with (
        redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client,
        store_of(servers.redis_url, namespace, timeout=30) as store,
    ):
        later = time.time() * 1000 + 600_000
        await client.zadd(keys, {"short": later, "x" * 100_000: later, "a" * 16: later, b"\xff" * 16: later})
        await client.lpush(keys + b":report:" + b"a" * 16, "no string")
        await client.set(keys + b":report:" + b"b" * 16, b"1234")
        await client.zadd(keys, {"b" * 16: later})
        await store.publish(report_of(1))
        found = await store.found()
        assert found.reports == [report_of(1)]
        assert found.unreadable == 2


async def test_an_index_of_another_type_in_redis_is_replaced_by_the_next_report(servers, namespace, report_of):
    async with (
        redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client,
        store_of(servers.redis_url, namespace, timeout=30) as store,
    ):
        await client.set(RedisKeys(namespace).fleet, "a text")
        await store.publish(report_of(1))
        assert await store.reports() == [report_of(1)]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_rows_with_long_names_in_postgresql_hide_no_instance(store, writer, report_of):
    for number in range(2, 251):
        await store.publish(report_of(number))
    # Where a page ends, and elsewhere.
    for number in (199, 240):
        await writer.write(f"{number:016x}" + "0" * 150, b"x")
    found = await store.found()
    assert len(found.reports) == 250


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("revision", [-(2**63), -1, 0, 2**53, 2**63 - 1])
async def test_a_document_with_an_impossible_revision_in_postgresql_counts_as_absent(
    store, writer, url, namespace, revision
):
    connection = await asyncpg.connect(url)
    statement = "INSERT INTO acgsperf_fleet_documents_v1 VALUES ($1, $2, $3)"
    await connection.execute(statement, namespace, revision, b"damaged")
    await connection.close()
    assert await store.state() == (0, b"")
    assert await store.replace_state(0, b"good")
    found, document = await store.state()
    assert (document, 0 < found < 2**53) == (b"good", True)
    assert not await store.replace_state(0, b"late")


@pytest.mark.parametrize("document", [b"", b"short", b"\xff" * 16, b"\x00" * 16])
async def test_a_damaged_document_in_redis_counts_as_absent(servers, namespace, document):
    key = RedisKeys(namespace).fleet + b":document"
    async with (
        redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as client,
        store_of(servers.redis_url, namespace, timeout=30) as store,
    ):
        await client.set(key, document)
        assert await store.state() == (0, b"")
        assert await store.replace_state(0, b"good")
        revision, _ = await store.state()
        await client.set(key, revision.to_bytes(8, "big") + b"somebody" + bytes(1_000_000))
        assert await store.state() == (revision, b"")
        await client.delete(key)
        await client.lpush(key, "a list")
        assert await store.state() == (0, b"")
        assert await store.replace_state(0, b"good")
