"""Tasks that acquire a second connection while they hold one."""

import asyncio
import logging

import pytest

from acgsperf import ConnectionPool, PoolTimeout


@pytest.fixture
def warnings(caplog):
    """Return the warnings about a second connection."""

    def messages():
        return [record.getMessage() for record in caplog.records if "second" in record.message]

    caplog.set_level(logging.WARNING, "acgsperf.pool")
    return messages


async def nest(pool):
    async with pool.acquire(), pool.acquire(timeout=0.05):
        pass


async def nest_by_hand(pool):
    first = await pool.acquire()
    try:
        await pool.release(await pool.acquire(timeout=0.05))
    finally:
        await pool.release(first)


async def nest_a_query(pool):
    async with pool.transaction():
        await pool.fetchval("SELECT 1")


@pytest.mark.parametrize("way", [nest, nest_by_hand, nest_a_query])
async def test_a_second_connection_of_a_task_is_reported_once_per_place(dsn, warnings, way):
    async with ConnectionPool(dsn, min_size=2, max_size=2, name="nested") as pool:
        for _ in range(3):
            await way(pool)
        [message] = warnings()
        assert message.startswith("pool 'nested': ")
        assert f"{__file__}:" in message
        assert way.__name__ in message


async def test_it_is_reported_before_the_task_waits_for_itself(dsn, warnings):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        with pytest.raises(PoolTimeout):
            await nest(pool)
        assert len(warnings()) == 1


async def test_one_connection_at_a_time_is_not_reported(dsn, warnings, admin):
    async with ConnectionPool(dsn, min_size=2, max_size=4, replicas=[dsn], reset=False) as pool:
        for _ in range(3):
            await pool.fetchval("SELECT 1")
            async with pool.acquire() as connection:
                await connection.execute("SELECT 1")

        async def hold(event):
            async with pool.acquire():
                await event.wait()

        # Several tasks, each with a connection of its own.
        event = asyncio.Event()
        tasks = [asyncio.create_task(hold(event)) for _ in range(3)]
        await asyncio.sleep(0)
        await pool.fetchval("SELECT 1")
        event.set()
        await asyncio.gather(*tasks)

        # A connection that another task releases, one that its borrower closes, and one that the server ends.
        lease = await pool.acquire()
        await asyncio.create_task(pool.release(lease))
        async with pool.acquire() as connection:
            await connection.close()
        async with pool.acquire() as connection:
            await admin.execute("SELECT pg_terminate_backend($1, 5000)", connection.get_server_pid())
        async with pool.acquire(), pool.acquire(readonly=True):
            pass
        assert warnings() == []
