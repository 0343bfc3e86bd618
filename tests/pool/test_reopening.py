"""Opening a pool again after it was closed, also in another event loop."""

import asyncio

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolClosed, PoolError, PoolManager, PoolTimeout, PoolUnhealthy

SLEEP = "SELECT pg_sleep(60)"


def test_a_pool_can_be_used_in_one_event_loop_after_the_other(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=2, replicas=[dsn], max_replica_lag=5, housekeeping_interval=0.01)

    async def use():
        async with pool:
            assert not pool.closed
            await pool.warm(2)
            # A task that waits for a connection while two others have them.
            answers = await asyncio.gather(*(pool.fetchval("SELECT 1 FROM pg_sleep(0.02)") for _ in range(4)))
            async with pool.acquire(readonly=True) as connection:
                return [*answers, await connection.fetchval("SELECT 2")]

    for times in (1, 2, 3):
        assert asyncio.run(use()) == [1, 1, 1, 1, 2]
        assert pool.closed
        assert all(replica.closed for replica in pool.replicas)
        assert 0 < pool.replicas[0].stats().opened <= 2 * times


async def test_the_counters_go_on_and_the_state_is_new(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=3)
    for times in (1, 2):
        async with pool:
            connections = [await pool.acquire() for _ in range(3)]
            with pytest.raises(PoolTimeout):
                await pool.acquire(0.01)
            for connection in connections:
                await pool.release(connection)
            stats = pool.stats()
            assert (stats.size, stats.in_use, stats.connecting, stats.target_size) == (3, 0, 0, 1)
            assert (stats.opened, stats.timeouts, stats.wait.count) == (3 * times, times, 3 * times)
            assert pool.optimize().demand == 4
            assert pool.stats().target_size == 3
        stats = pool.stats()
        assert (stats.size, stats.closed["closed"]) == (0, 3 * times)
    # The demand of the former time says nothing about the next one.
    async with pool:
        assert (pool.stats().target_size, pool.optimize().demand) == (1, 0)


async def test_a_pool_that_could_not_be_opened_can_be_opened_when_the_server_answers(proxy):
    pool = ConnectionPool(proxy.dsn, min_size=2, max_size=2)
    proxy.refusing = True
    for _ in range(2):
        with pytest.raises(PoolUnhealthy):
            await pool.open()
        assert pool.closed
    proxy.reset()
    async with pool:
        assert (pool.healthy, pool.stats().size) == (True, 2)
        assert await pool.fetchval("SELECT 1") == 1
        assert (await pool.health()).healthy


async def test_an_open_pool_cannot_be_opened_again(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, name="orders") as pool:
        with pytest.raises(PoolError, match=r"^pool 'orders' is already open$"):
            await pool.open()
        assert await pool.fetchval("SELECT 1") == 1


async def test_a_pool_cannot_be_opened_while_it_is_closed(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=1, name="orders")
    await pool.open()
    connection = await pool.acquire()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    with pytest.raises(PoolError, match=r"^pool 'orders' is being closed; wait for close\(\) before open\(\)$"):
        await pool.open()
    await pool.release(connection)
    await closing
    async with pool:
        assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_a_pool_whose_close_was_cancelled_can_be_opened_when_its_connections_are_closed(dsn, turns, until):
    before = asyncio.all_tasks()
    pool = ConnectionPool(dsn, min_size=2, max_size=2)
    await pool.open()
    task = asyncio.create_task(pool.fetchval(SLEEP))
    await until(lambda: pool.stats().in_use == 1)
    closing = asyncio.create_task(pool.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    if turns == 0:
        # It had not begun.
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close(0)
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: asyncio.all_tasks() == before)
    async with pool:
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats().size == 2


async def test_a_lease_of_the_former_time_is_of_no_effect(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=1)
    await pool.open()
    former = await pool.acquire()
    await pool.close(0)
    async with pool:
        current = await pool.acquire()
        await pool.release(former)
        assert pool.stats().in_use == 1
        with pytest.raises(asyncpg.InterfaceError):
            await former.fetchval("SELECT 1")
        assert await current.fetchval("SELECT 1") == 1
        await pool.release(current)


def test_a_closed_pool_says_that_it_is_closed_in_any_event_loop(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=1, name="orders")

    async def use():
        async with pool:
            pass

    async def misuse():
        with pytest.raises(PoolClosed, match=r"^pool 'orders' is closed$"):
            await pool.acquire()
        await pool.close()

    asyncio.run(use())
    asyncio.run(misuse())


def test_a_manager_can_be_used_in_one_event_loop_after_the_other(dsn):
    manager = PoolManager(interval=0.01)

    async def use():
        async with manager:
            assert manager.names() == []
            pool = await manager.create("orders", dsn, min_size=1, max_size=1)
            assert (await manager.health())["orders"].healthy
            return await pool.fetchval("SELECT 1")

    async def misuse():
        with pytest.raises(PoolClosed, match=r"^the pool manager is closed$"):
            await manager.create("orders", dsn)

    for _ in range(2):
        assert asyncio.run(use()) == 1
        asyncio.run(misuse())
