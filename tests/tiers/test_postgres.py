"""What is PostgreSQL's own."""

import asyncio
import secrets
import time

import asyncpg
import pytest

from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.postgres_schema import lock_of


@pytest.fixture
def kind():
    return "postgres"


@pytest.fixture
async def connection(servers):
    connection = await asyncpg.connect(servers.database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def table(connection):
    name = "cache_" + secrets.token_hex(4)
    yield name
    await connection.execute(f"DROP TABLE IF EXISTS {name}_v2, {name}_v2_tags, {name}_v2_log")


async def test_tiers_that_open_at_once_make_one_table(make, table, entry):
    tiers = [make(table=table, deadline=10) for _ in range(5)]
    await asyncio.gather(*(tier.open("n") for tier in tiers))
    assert await tiers[0].set("k", entry())
    for tier in tiers:
        assert await tier.get("k") is not None
        assert tier.stats().errors == {}
        await tier.close()


async def test_it_works_without_prepared_statements(make, namespace, entry):
    tier = make(statement_cache_size=0, deadline=5)
    await tier.open(namespace)
    assert await tier.set("k", entry(tags=("x",)))
    assert await tier.get("k") is not None
    assert await tier.invalidate_tag("x") == 1
    await tier.close()


async def test_a_table_of_another_schema_is_left_alone(make, table, connection, entry):
    await connection.execute(
        f"CREATE TABLE {table}_v2 (a int); COMMENT ON TABLE {table}_v2 IS 'acgsperf cache, schema 99'"
    )
    tier = make(table=table, deadline=5)
    await tier.open("n")
    assert not await tier.set("k", entry())
    assert "schema 99" in (await tier.health()).detail
    await tier.close()


async def test_a_tag_counts_what_it_removed(tier, entry):
    await tier.set_many({f"k{i}": entry(i, tags=("x",)) for i in range(1_500)} | {"other": entry(tags=("y",))})
    assert await tier.invalidate_tag("x") == 1_500
    assert await tier.invalidate_tag("x") == 0
    assert await tier.get("other") is not None


async def test_expired_rows_are_deleted_behind(make, namespace, table, connection, entry):
    tier = make(table=table, expiry_interval=0.01, deadline=5)
    tier.retention = 0.1
    await tier.open(namespace)
    await tier.set_many({"gone": entry(kept=0.5), "stays": entry(), "ever": entry(kept=None)})
    until = time.monotonic() + 10
    while await connection.fetchval(f"SELECT count(*) FROM {table}_v2") > 2:
        assert time.monotonic() < until
    assert set(await tier.get_many(["gone", "stays", "ever"])) == {"stays", "ever"}
    await tier.close()


async def test_a_write_is_there_for_others_once_it_is_acknowledged(tier, namespace, connection, entry):
    assert await tier.set("k", entry())
    assert await connection.fetchval("SELECT count(*) FROM acgsperf_cache_v2 WHERE namespace = $1", namespace) == 1


async def test_sessions_that_ended_while_idle_cost_no_miss(tier, connection, entry):
    await tier.set("k", entry())
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    await asyncio.sleep(0)
    assert await tier.get("k") is not None


@pytest.mark.parametrize("name", ["", "a b", "a;drop", "A", "x" * 51, "1a"])
def test_a_table_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="table must be"):
        PostgresTier("postgresql://", table=name)


def test_a_tier_does_not_show_its_password():
    assert "secret" not in repr(PostgresTier("postgresql://user:secret@host/db"))
    with pytest.raises(ValueError, match="DSN") as caught:
        PostgresTier("postgresql://user:secret@[host/db")
    assert "secret" not in str(caught.value)


async def test_a_tier_whose_opening_was_cut_short_connects_later(servers, namespace, entry):
    tier = PostgresTier(servers.database_url)
    opening = asyncio.create_task(tier.open(namespace))
    await asyncio.sleep(0)
    # The loop is busy with something else for longer than the deadline.
    time.sleep(0.3)  # noqa: ASYNC251
    await opening
    async with asyncio.timeout(10):
        while not await tier.set("key", entry(1)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await tier.get("key")).value == 1
    await tier.clear()
    await tier.close()


async def test_a_write_that_is_held_up_when_the_server_freezes_ends_with_the_deadline(
    private_server, private_tier, until_it_answers, entry
):
    assert await private_tier.set("k", entry())
    other = await asyncpg.connect(private_server.url)
    await other.execute("BEGIN; SELECT * FROM acgsperf_cache_v2 FOR UPDATE")
    started = time.monotonic()
    held_up = asyncio.ensure_future(private_tier.set("k", entry("new")))
    await asyncio.sleep(0.1)
    private_server.freeze()
    assert not await held_up
    assert time.monotonic() - started < 0.3
    assert not await private_tier.set("later", entry())
    assert time.monotonic() - started < 0.6
    private_server.thaw()
    other.terminate()
    await until_it_answers(private_tier)
    assert await private_tier.set("later", entry())


async def test_opening_ends_with_the_deadline_when_the_server_freezes_in_the_middle(private_server, private_tier):
    other = await asyncpg.connect(private_server.url)
    await other.execute("SELECT pg_advisory_lock($1)", lock_of("held_up"))
    tier = PostgresTier(private_server.url, table="held_up", deadline=0.25)
    started = time.monotonic()
    opening = asyncio.ensure_future(tier.open("n"))
    await asyncio.sleep(0.15)
    private_server.freeze()
    await opening
    assert time.monotonic() - started < 0.35
    private_server.thaw()
    other.terminate()
    await tier.close()


async def test_processes_that_write_and_delete_crosswise_do_not_wait_for_each_other(make, namespace, entry):
    one, other = make(deadline=5), make(deadline=5)
    for tier in (one, other):
        await tier.open(namespace)
    for _ in range(20):
        await one.set_many({"a": entry(), "b": entry()})
        # Of two writes of a key the one with the greater stamp wins, so that the other may not be carried out.
        await asyncio.gather(
            one.set("b", entry()), one.delete_many(["a"]), other.set("a", entry()), other.delete_many(["b"])
        )
    for tier in (one, other):
        assert tier.stats().errors == {}
        await tier.close()


async def test_a_table_that_was_dropped_is_made_again(make, table, connection, namespace, entry):
    tier = make(table=table, deadline=5)
    await tier.open(namespace)
    assert await tier.set("k", entry())
    await connection.execute(f"DROP TABLE {table}_v2")
    assert await tier.get("k") is None
    assert await tier.set("k", entry("new"))
    assert (await tier.get("k")).value == "new"
    await tier.close()


@pytest.mark.parametrize("cached_statements", [0, 100])
async def test_many_keys_of_a_small_table_are_found_in_time(
    make, table, connection, namespace, entry, cached_statements
):
    tier = make(table=table, statement_cache_size=cached_statements)
    await tier.open(namespace)
    entries = {f"key {i}": entry(i) for i in range(1_000)}
    for at in range(0, 1_000, 200):
        await tier.set_many(dict(list(entries.items())[at : at + 200]))
    await connection.execute(f"ANALYZE {table}_v2")
    # A plan that reads the array for each row takes half a second.
    for _ in range(7):
        assert len(await tier.get_many([f"key {i}" for i in range(3_000)])) == 1_000
    assert tier.stats().errors == {}
    await tier.close()


@pytest.mark.parametrize(
    ("deadline", "parameter", "expected"),
    [(0.25, "application_name=a", 1), (3, "application_name=a", 3), (3, "connect_timeout=7", 7)],
)
async def test_a_silent_server_is_tried_again_after_a_second_or_the_deadline(
    servers, table, deadline, parameter, expected
):
    dsn = servers.database_url
    tier = PostgresTier(f"{dsn}{'&' if '?' in dsn else '?'}{parameter}", table=table, deadline=deadline)
    await tier.open("n")
    assert tier._connections.pool.options.connect_timeout == expected
    await tier.close()


@pytest.mark.parametrize(
    ("dsn", "server"),
    [
        ("postgresql://ann:s3cr3t@db:5433/app", "db:5433, database app"),
        ("postgresql://ann:s3cr3t@one:1,two:2/app", "one:1, two:2, database app"),
        ("postgresql:///app%20one?host=/run/pg", "unix:/run/pg, database app one"),
        ("postgresql://%2Frun%2Fpg?database=app&password=s3cr3t", "unix:/run/pg, database app"),
        ("postgresql://db", "db"),
        ("postgresql:///app", "the default server, database app"),
        ("postgresql:///?service=prod", "service prod"),
        ("postgresql://ann:s3@cr3t@db/app", "postgresql://***"),
        ("postgresql://ann:1?x=s3cr3t@db/app", "postgresql://***"),
    ],
)
def test_a_tier_and_a_backplane_name_their_server_and_their_database(dsn, server, monkeypatch):
    monkeypatch.delenv("PGHOST", raising=False)
    assert repr(PostgresTier(dsn, table="t")) == f"PostgresTier({server!r}, table='t')"
    assert repr(PostgresBackplane(dsn, table="t")) == f"PostgresBackplane({server!r}, table='t')"


def test_a_tier_names_the_server_that_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("PGHOST", "/run/pg")
    monkeypatch.setenv("PGPORT", "5433")
    assert repr(PostgresTier("postgresql:///app", table="t")) == (
        "PostgresTier('unix:/run/pg/.s.PGSQL.5433, database app', table='t')"
    )
