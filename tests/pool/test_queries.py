"""The methods of a pool that run one query."""

import asyncio
from contextlib import suppress

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolTimeout


@pytest.fixture
async def pool(dsn, until):
    async with ConnectionPool(dsn, min_size=1, max_size=2, replicas=[dsn]) as opened:
        await opened.execute("CREATE TABLE IF NOT EXISTS pool_queries (n int PRIMARY KEY, word text)")
        await opened.execute("TRUNCATE pool_queries")
        yield opened
        # After a query that was cancelled, the connection comes back when its session has been reset.
        await until(lambda: (opened.stats().in_use, opened.replicas[0].stats().in_use) == (0, 0))


async def test_each_query_borrows_a_connection_and_returns_it(pool):
    assert await pool.execute("INSERT INTO pool_queries VALUES ($1, $2)", 1, "one") == "INSERT 0 1"
    await pool.executemany("INSERT INTO pool_queries VALUES ($1, $2)", [(2, "two"), (3, "three")])
    rows = await pool.fetch("SELECT * FROM pool_queries WHERE n > $1 ORDER BY n", 1)
    assert [tuple(row) for row in rows] == [(2, "two"), (3, "three")]
    assert tuple(await pool.fetchrow("SELECT * FROM pool_queries WHERE n = $1", 1)) == (1, "one")
    assert await pool.fetchval("SELECT * FROM pool_queries WHERE n = $1", 1) == 1
    assert await pool.fetchval("SELECT * FROM pool_queries WHERE n = $1", 1, column=1) == "one"
    assert await pool.fetchrow("SELECT 1 WHERE false") is None
    assert await pool.fetchval("SELECT 1 WHERE false") is None
    assert pool.stats().use.count == 10


@pytest.mark.parametrize("method", ["fetch", "fetchrow", "fetchval"])
async def test_a_replica_serves_queries_that_only_read(pool, method):
    used, replica_used = pool.stats().use.count, pool.replicas[0].stats().use.count
    await getattr(pool, method)("SELECT 1", readonly=True)
    assert (pool.stats().use.count, pool.replicas[0].stats().use.count) == (used, replica_used + 1)


@pytest.mark.parametrize("method", ["fetch", "fetchrow", "fetchval", "execute"])
async def test_a_query_has_a_timeout_and_the_connection_comes_back(pool, method):
    with pytest.raises(TimeoutError):
        await getattr(pool, method)("SELECT pg_sleep(60)", timeout=0.05)
    assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("method", ["fetch", "fetchrow", "fetchval", "execute"])
async def test_an_error_of_the_server_reaches_the_caller(pool, method):
    with pytest.raises(asyncpg.DivisionByZeroError):
        await getattr(pool, method)("SELECT 1 / 0")


async def test_a_query_waits_for_a_connection_as_acquire_does(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.05) as pool, pool.acquire():
        with pytest.raises(PoolTimeout):
            await asyncio.create_task(pool.fetchval("SELECT 1"))


async def test_a_transaction_is_committed_or_rolled_back(pool):
    async with pool.transaction() as connection:
        await connection.execute("INSERT INTO pool_queries VALUES (1, 'kept')")
    with suppress(ZeroDivisionError):
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO pool_queries VALUES (2, 'dropped')")
            raise ZeroDivisionError
    assert [row["word"] for row in await pool.fetch("SELECT word FROM pool_queries")] == ["kept"]


async def test_a_transaction_that_is_cancelled_is_rolled_back(pool):
    begun = asyncio.Event()

    async def insert():
        async with pool.transaction() as connection:
            await connection.execute("INSERT INTO pool_queries VALUES (3, 'cancelled')")
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(insert())
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await pool.fetchval("SELECT count(*) FROM pool_queries") == 0


async def test_a_transaction_has_the_options_of_asyncpg_and_may_run_on_a_replica(pool):
    async with pool.transaction(isolation="serializable", readonly=True, deferrable=True) as connection:
        names = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
        values = [await connection.fetchval("SELECT current_setting($1)", name) for name in names]
        assert values == ["serializable", "on", "on"]
        assert pool.replicas[0].stats().in_use == 1
