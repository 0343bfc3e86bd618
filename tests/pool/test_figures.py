"""Two times in the statistics of a pool: to open a connection, and of the caller that has waited longest."""

import asyncio

from acgsperf import ConnectionPool


async def test_the_time_to_open_a_connection_is_recorded(servers):
    async with ConnectionPool(servers.database_url, min_size=2, max_size=2) as pool:
        assert pool.create_time.count == pool.stats().create.count == pool.stats().opened == 2
        assert 0 < pool.create_time.min <= pool.create_time.max < 5e9


async def test_the_first_waiting_caller_is_the_one_that_has_waited_longest(servers, clock):
    async with ConnectionPool(servers.database_url, min_size=1, max_size=1, clock=clock) as pool:
        assert pool.stats().oldest_wait_s == 0
        async with pool.acquire():
            first = asyncio.create_task(pool.fetchval("SELECT 1"))
            await asyncio.sleep(0)
            clock.advance(3)
            second = asyncio.create_task(pool.fetchval("SELECT 2"))
            await asyncio.sleep(0)
            clock.advance(2)
            assert pool.stats().oldest_wait_s == 5
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert pool.stats().oldest_wait_s == 2
        assert await second == 2
        assert pool.stats().oldest_wait_s == 0
