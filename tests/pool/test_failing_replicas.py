"""A replica that answers, but whose queries fail because of the server."""

import asyncio
import logging
from contextlib import suppress

import asyncpg
import pytest

from acgsperf import ConnectionPool

# The server cannot read a file; the query is not to blame.
BROKEN = "DO $$ BEGIN RAISE 'could not read block 0' USING ERRCODE = '58030'; END $$"


@pytest.fixture
async def pool(dsn, clock):
    options = {"check_after": 1e9, "housekeeping_interval": 3600, "clock": clock, "name": "app"}
    async with ConnectionPool(dsn, min_size=1, max_size=5, replicas=[dsn, dsn], **options) as opened:
        yield opened


async def read(pool, query="SELECT 1", broken=()):
    """Run a query on behalf of a reader. On the servers in `broken`, it fails."""
    used = [member.stats().use.count for member in (pool, *pool.replicas)]
    with suppress(asyncpg.PostgresError):
        async with pool.acquire(readonly=True) as connection:
            after = [member.stats().in_use for member in (pool, *pool.replicas)]
            at = after.index(1)
            await connection.execute(BROKEN if (pool, *pool.replicas)[at] in broken else query)
    assert sum(member.stats().use.count for member in (pool, *pool.replicas)) == sum(used) + 1
    return at


async def test_readers_leave_a_replica_whose_server_fails_after_five_failures_in_a_row(pool, clock, caplog):
    broken, _ = pool.replicas
    with caplog.at_level(logging.INFO, "acgsperf.pool"):
        used = [await read(pool, broken={broken}) for _ in range(200)]
    # It fails fast, so that it looks like the better one until it is ejected.
    assert used.count(1) == 5
    assert used.count(0) == 0
    assert [member.stats().ejected for member in (pool, *pool.replicas)] == [False, True, False]
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.message == (
        "pool 'app/replica-1': 5 leases in a row failed because of the server (PostgresIOError: could not read block "
        "0); readers use other servers, except a probe after 1 s"
    )


async def test_one_reader_probes_it_and_waits_twice_as_long_each_time(pool, clock, caplog):
    broken, _ = pool.replicas
    for _ in range(100):
        await read(pool, broken={broken})
    for wait_s in (1, 2, 4, 8, 16, 30, 30):
        clock.advance(wait_s - 0.01)
        assert 1 not in [await read(pool, broken={broken}) for _ in range(50)]
        clock.advance(0.02)
        assert [await read(pool, broken={broken}) for _ in range(100)].count(1) == 1
    clock.advance(30)
    with caplog.at_level(logging.INFO, "acgsperf.pool"):
        assert 20 < [await read(pool) for _ in range(100)].count(1) < 80
    assert not broken.stats().ejected
    assert "pool 'app/replica-1': a reader has succeeded; readers use it again" in caplog.text


async def test_the_primary_serves_readers_while_all_replicas_fail(pool):
    used = [await read(pool, broken=set(pool.replicas)) for _ in range(100)]
    assert (used.count(1), used.count(2), used.count(0)) == (5, 5, 90)


@pytest.mark.parametrize(
    "query",
    ["SELECT 1/0", "SELEC", "SET statement_timeout = 1; SELECT pg_sleep(9)"],
    ids=["error", "syntax", "timeout"],
)
async def test_a_query_that_is_wrong_or_takes_too_long_does_not_count(pool, query):
    used = [await read(pool, query) for _ in range(30)]
    assert used.count(0) == 0
    assert min(used.count(1), used.count(2)) > 5


async def test_a_success_in_between_begins_the_count_again(pool):
    broken, _ = pool.replicas
    for _ in range(3):
        failures = 0
        while failures < 4:
            failures += await read(pool, broken={broken}) == 1
        while await read(pool) != 1:
            pass
    assert 1 in [await read(pool) for _ in range(50)]


async def test_cancelled_readers_do_not_count(pool):
    for _ in range(20):
        with suppress(asyncio.CancelledError):
            async with pool.acquire(readonly=True):
                raise asyncio.CancelledError
    assert all(replica._lender.available and replica._lender.ejection is None for replica in pool.replicas)
