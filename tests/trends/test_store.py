"""Hours in a real PostgreSQL: saved, merged, read and removed."""

import asyncio
import secrets
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from acgsperf import LatencyHistogram
from acgsperf.errors import TrendError
from acgsperf.trends import History, InstanceHour
from acgsperf.trends.store import TrendStore
from trends.conftest import HOUR, encoded, this_hour

LAST = this_hour() - HOUR


def hour_of(instance="a", start=None, version="1", latencies_ns=(1_000_000,), **counts):
    return InstanceHour(
        start=LAST if start is None else start,
        instance=instance,
        version=version,
        latency=encoded(latencies_ns),
        **{"failed": 0, "violations": 0, "missed": 0} | counts,
    )


def row(start, version="1", instance="a", latency=None, failed=0, violations=0, missed=0):
    latency = encoded([1_000_000] * 2) if latency is None else latency
    return start, version, instance, failed, violations, missed, latency


async def test_an_hour_has_the_sums_and_true_percentiles_of_its_instances(store):
    start = this_hour() - HOUR
    assert await store.save(hour_of("a", start, latencies_ns=[1_000_000] * 99, failed=1, missed=3))
    assert await store.save(hour_of("b", start, "2", latencies_ns=[9_000_000] * 2, violations=5))
    history = await store.history()
    (hour,) = history.hours
    assert (hour.start, hour.version) == (start, None)
    assert (hour.requests, hour.failed, hour.violations, hour.missed) == (102, 1, 5, 3)
    assert hour.p50_ms == pytest.approx(1, rel=0.002)
    assert hour.p99_ms == pytest.approx(9, rel=0.002)
    assert [(one.version, one.requests) for one in history.versions] == [("1", 100), ("2", 2)]
    assert history.damaged == 0


async def test_to_save_an_hour_again_replaces_it(store):
    start = this_hour() - HOUR
    for count in (1, 2, 3):
        await store.save(hour_of("a", start, latencies_ns=[1_000] * count, failed=count))
    (hour,) = (await store.history()).hours
    assert (hour.requests, hour.failed) == (6, 3)


async def test_the_hour_in_progress_is_not_in_the_history(store):
    await store.save(hour_of(start=this_hour()))
    # Unless it has just ended.
    assert [hour for hour in (await store.history()).hours if hour.start >= this_hour()] == []


@pytest.mark.parametrize("hours", [-5, 5, -100_000])
async def test_an_hour_far_from_the_time_of_the_server_is_refused(store, hours):
    assert not await store.save(hour_of(start=this_hour() + hours * HOUR))
    assert (await store.history()).hours == []


async def test_hours_of_other_namespaces_are_not_seen(store, servers, namespace):
    async with TrendStore(servers.database_url, f"{namespace}x", timeout=60) as other:
        await other.save(hour_of())
        assert len((await other.history()).hours) == 1
    assert (await store.history()).hours == []


async def test_old_hours_are_merged_and_their_figures_stay(store, writer):
    old, recent = this_hour() - 6 * HOUR, this_hour() - 2 * HOUR
    await writer.write(*(row(old, "1", f"i{number}", failed=1, missed=2) for number in range(250)))
    await writer.write(row(old, "2", "x"), row(recent, "1", "x"), row(recent, "1", "y"))
    before = await store.history()
    await store.tidy()
    assert [(found["hour"], found["version"], found["instance"]) for found in await writer.rows()] == [
        (old, "1", ""),
        (old, "2", ""),
        (recent, "1", "x"),
        (recent, "1", "y"),
    ]
    assert await store.history() == before
    assert before.hours[0].requests == 250 * 3 + 2


async def test_instances_that_tidy_at_the_same_time_lose_nothing(store, writer, servers, namespace):
    old = this_hour() - 6 * HOUR
    await writer.write(*(row(old - number // 20 * HOUR, "1", f"i{number}") for number in range(200)))
    before = await store.history()
    async with TrendStore(servers.database_url, namespace, timeout=60) as other:
        await asyncio.gather(store.tidy(), other.tidy())
        await store.tidy()
    assert await store.history() == before
    assert len(await writer.rows()) == 10


async def test_hours_older_than_90_days_are_removed(store, writer):
    now = this_hour()
    await writer.write(row(now - 91 * 24 * HOUR), row(now - 89 * 24 * HOUR))
    assert len((await store.history()).hours) == 1
    await store.tidy()
    assert [found["hour"] for found in await writer.rows()] == [now - 89 * 24 * HOUR]


POISON = LatencyHistogram()
POISON.record(1)
for _ in range(60):
    POISON.merge(LatencyHistogram.decode(POISON.encode()))


@pytest.mark.parametrize(
    "changes",
    [
        {"latency": b""},
        {"latency": b"x" * 1000},
        {"latency": bytes(200_000)},
        {"latency": LatencyHistogram(1, 2**62, 5).encode()},
        {"latency": POISON.encode()},
        {"failed": -1},
        {"failed": 2**53},
        {"violations": 2**53},
        {"missed": 2**62},
        {"missed": 4 * 10**11},
        {"instance": "", "failed": 2**53},
    ],
    ids=range(11),
)
async def test_a_damaged_row_is_counted_and_harms_no_other(store, writer, caplog, changes):
    old = this_hour() - 6 * HOUR
    await writer.write(row(old), row(old, **{"instance": "bad"} | changes))
    history = await store.history()
    assert (history.damaged, history.hours[0].requests) == (1, 2)
    await store.tidy()
    assert "1 damaged rows of an hour were removed" in caplog.text
    history = await store.history()
    assert (history.damaged, history.hours[0].requests) == (0, 2)


async def test_an_hour_with_damaged_rows_only_is_no_hour(store, writer):
    old = this_hour() - 6 * HOUR
    await writer.write(row(old, latency=b"x"))
    assert await store.history() == History(damaged=1)
    await store.tidy()
    assert await store.history() == History()
    assert await writer.rows() == []


async def test_large_sums_of_many_instances_are_merged_and_read(store, writer):
    old = this_hour() - 6 * HOUR
    await writer.write(*(row(old, instance=f"i{number}", failed=3 * 10**11) for number in range(250)))
    before = await store.history()
    assert (before.damaged, before.hours[0].failed) == (0, 250 * 3 * 10**11)
    await store.tidy()
    assert await store.history() == before


@pytest.fixture
async def other_database(servers):
    """The DSN of a database without tables."""
    name = f"test_{secrets.token_hex(8)}"
    connection = await asyncpg.connect(servers.database_url)
    await connection.execute(f"CREATE DATABASE {name}")
    parts = urlsplit(servers.database_url)
    yield urlunsplit(parts._replace(path=f"/{name}"))
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.mark.parametrize("changes", [{"latency": "text"}, {"failed": "double precision"}, {"missed": "numeric"}])
async def test_rows_of_a_table_with_other_types_are_damaged(other_database, changes):
    await create_table(other_database, changes)
    async with TrendStore(other_database, "app", timeout=60) as store:
        history = await store.history()
        assert (history.damaged, history.hours) == (1, [])


async def test_a_missing_number_is_damaged(other_database):
    await create_table(other_database, {}, failed="NULL")
    async with TrendStore(other_database, "app", timeout=60) as store:
        assert (await store.history()).damaged == 1


@pytest.mark.parametrize(
    "changes", [{"hour": "numeric"}, {"hour": "text"}, {"hour": "double precision"}, {"version": "bytea"}]
)
async def test_a_table_whose_hours_have_another_type_is_an_error(other_database, changes):
    await create_table(other_database, changes)
    async with TrendStore(other_database, "app", timeout=60) as store:
        with pytest.raises(TrendError, match="cannot use the trends at "):
            await store.history()


async def create_table(dsn, changes, **values):
    """Create the table with other types of columns, and one row."""
    types = {"namespace": "text", "hour": "bigint", "version": "text", "instance": "text"}
    types |= {"failed": "bigint", "violations": "bigint", "missed": "bigint", "latency": "bytea"}
    columns = ", ".join(f"{name} {type_}" for name, type_ in (types | changes).items())
    row = {"namespace": "'app'", "hour": f"'{LAST - HOUR}'", "version": "'1'", "instance": "'a'"}
    row |= {"failed": "0", "violations": "0", "missed": "0", "latency": "'x'"}
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE TABLE acgsperf_trends_v1 ({columns})")
    await connection.execute(f"INSERT INTO acgsperf_trends_v1 VALUES ({', '.join((row | values).values())})")
    await connection.close()


async def test_many_versions_in_an_hour_take_bounded_memory(store, writer):
    start = this_hour() - 2 * HOUR
    await writer.write(*(row(start, f"v{number:03}") for number in range(100)))
    history = await store.history()
    assert history.hours[0].requests == 200
    assert len(history.versions) == 21
    assert sum(one.requests for one in history.versions) == 200


async def test_more_rows_than_a_page_are_all_read(store, writer):
    start = this_hour() - 1_000 * HOUR
    await writer.write(*(row(start + number // 2 * HOUR, instance=f"{number % 2}") for number in range(900)))
    history = await store.history()
    assert [hour.requests for hour in history.hours] == [4] * 450
    assert [hour.start for hour in history.hours] == [start + number * HOUR for number in range(450)]


async def test_a_table_that_was_dropped_is_created_again(store, writer):
    await store.save(hour_of())
    await writer.execute("DROP TABLE acgsperf_trends_v1")
    assert (await store.history()).hours == []
    assert await store.save(hour_of())
    # Without a call that could notice it, the next write fails.
    await writer.execute("DROP TABLE acgsperf_trends_v1")
    with pytest.raises(TrendError, match="acgsperf_trends_v1"):
        await store.save(hour_of())
    assert await store.save(hour_of())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "x" * 201}, "at most 200 printable"),
        ({"version": "a\nb"}, "at most 200 printable"),
        ({"instance": ""}, "instance must not be empty"),
    ],
)
async def test_an_impossible_hour_is_refused(store, changes, message):
    with pytest.raises(ValueError, match=message):
        await store.save(hour_of(**changes))


async def test_an_hour_of_a_hostile_size_is_refused(store):
    big = InstanceHour(
        start=LAST, instance="a", version="", failed=0, violations=0, missed=0, latency=bytes((128 << 10) + 1)
    )
    with pytest.raises(ValueError, match="at most 131072 bytes, got 131073"):
        await store.save(big)


async def test_a_server_that_cannot_be_reached_is_named_without_its_password():
    async with TrendStore("postgresql://me:secret@localhost:1/nothing", "n", timeout=30) as store:
        with pytest.raises(TrendError, match="cannot use the trends at localhost:1") as caught:
            await store.history()
    assert "secret" not in str(caught.value)
    with pytest.raises(TrendError, match="must be opened first"):
        await store.history()
    with pytest.raises(ValueError, match="DSN"):
        TrendStore("mysql://me:secret@localhost", "n")


async def test_a_missing_right_is_named(servers, namespace, writer):
    connection = await asyncpg.connect(servers.database_url)
    role = f"reader_{namespace[5:]}"
    try:
        await connection.execute(f"CREATE ROLE {role}")
        async with TrendStore(servers.database_url, namespace, timeout=60) as store:
            async with store._table.connection() as own:
                await own.execute(f"SET ROLE {role}")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await own.fetch("SELECT 1 FROM acgsperf_trends_v1")
            with pytest.raises(TrendError, match="permission denied for table acgsperf_trends_v1"):
                await store.history()
    finally:
        await connection.execute(f"DROP ROLE IF EXISTS {role}")
        await connection.close()
