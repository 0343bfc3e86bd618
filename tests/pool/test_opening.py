"""Opening a pool whose server is not ready."""

import asyncio
import time
from urllib.parse import urlsplit

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolClosed, PoolTimeout, PoolUnhealthy


@pytest.mark.parametrize("min_size", [0, 3])
async def test_opening_with_retry_waits_for_a_server_that_is_not_started(victim, until, min_size):
    await asyncio.to_thread(victim.kill)
    pool = ConnectionPool(victim.dsn, min_size=min_size, max_size=4)
    opening = asyncio.create_task(pool.open(30, retry=True))
    try:
        await until(lambda: pool.stats().failed_connects >= 5)
        assert not opening.done()
    finally:
        await asyncio.to_thread(victim.start)
    await opening
    assert pool.stats().size >= max(min_size, 1)
    async with pool.acquire(timeout=5) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await pool.close()


@pytest.mark.parametrize("fault", ["refusing", "silent"])
async def test_opening_with_retry_waits_for_a_server_that_does_not_answer(proxy, until, fault):
    setattr(proxy, fault, True)
    pool = ConnectionPool(proxy.dsn, min_size=2, max_size=4, connect_timeout=0.2)
    opening = asyncio.create_task(pool.open(30, retry=True))
    await until(lambda: pool.stats().failed_connects >= 4)
    assert not opening.done()
    proxy.reset()
    await opening
    assert pool.stats().size == 2
    # From now on, a server that fails makes the pool unhealthy, as without retry.
    setattr(proxy, fault, True)
    proxy.hang_up()
    await until(lambda: not pool.healthy)
    await pool.close()


async def test_opening_with_retry_ends_at_its_timeout_and_names_the_last_error(proxy):
    proxy.refusing = True
    pool = ConnectionPool(proxy.dsn, min_size=1, max_size=1)
    start = time.monotonic()
    with pytest.raises(PoolTimeout, match=r"0 of 1 connections were open after 0\.5 s: \w+Error") as late:
        await pool.open(0.5, retry=True)
    assert 0.5 <= time.monotonic() - start < 1.0
    assert late.value.__cause__ is not None
    assert pool.closed


async def test_opening_with_retry_fails_at_once_if_trying_again_is_no_use(dsn):
    async def init(connection):
        await connection.execute("SELECT nonsense")

    missing = urlsplit(dsn)._replace(path="/no_such_database").geturl()
    for address, options, error in (
        (missing, {}, asyncpg.InvalidCatalogNameError),
        (dsn, {"user": "no_such_role"}, asyncpg.InvalidAuthorizationSpecificationError),
        (dsn, {"init": init}, asyncpg.UndefinedColumnError),
    ):
        pool = ConnectionPool(address, min_size=1, max_size=1, **options)
        start = time.monotonic()
        with pytest.raises(PoolUnhealthy) as refused:
            await pool.open(30, retry=True)
        assert isinstance(refused.value.__cause__, error)
        assert time.monotonic() - start < 5


async def test_closing_ends_an_opening_with_retry(proxy, until):
    proxy.refusing = True
    before = asyncio.all_tasks()
    pool = ConnectionPool(proxy.dsn, min_size=1, max_size=1)
    opening = asyncio.create_task(pool.open(30, retry=True))
    await until(lambda: pool.stats().failed_connects >= 4)
    await pool.close()
    with pytest.raises(PoolClosed):
        await opening
    await until(lambda: asyncio.all_tasks() == before)


async def test_retry_is_a_bool(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=1)
    with pytest.raises(TypeError, match="retry must be a bool"):
        await pool.open(retry="yes")
    await pool.open()
    await pool.close()
