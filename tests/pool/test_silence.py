"""Sessions that do not answer, on a server that works otherwise."""

import asyncio
import time

import pytest

from acgsperf import CloseReason, ConnectionPool, PoolTimeout, PoolUnhealthy


async def pid_of(connection):
    return await connection.fetchval("SELECT pg_backend_pid()")


async def pids_of(pool, n):
    """Return the process ids of the sessions of a pool's n connections."""
    leases = [await pool.acquire() for _ in range(n)]
    pids = [await pid_of(lease) for lease in leases]
    for lease in leases:
        await pool.release(lease)
    return pids


async def test_callers_get_new_connections_while_checks_are_not_answered(victim, clock):
    async with ConnectionPool(victim.dsn, min_size=1, max_size=20, clock=clock) as pool:
        await pool.warm(8)
        victim.freeze_sessions(*await pids_of(pool, 8))
        clock.advance(1)
        start = time.monotonic()
        async with pool.acquire(timeout=5) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        # The checks do not run one after the other. That would take eight times `check_timeout`.
        assert time.monotonic() - start < 1.5
        victim.thaw()


async def test_one_silent_session_does_not_make_a_pool_unhealthy(victim, clock, until):
    options = {"min_size": 4, "max_size": 5, "check_timeout": 0.5, "clock": clock}
    async with ConnectionPool(victim.dsn, **options) as pool:
        pids = await pids_of(pool, 4)
        # The connection that became idle last is checked first.
        victim.freeze_sessions(pids[-1])
        clock.advance(1)

        async def borrow():
            return await pool.acquire(timeout=2)

        callers = [asyncio.create_task(borrow()) for _ in range(3)]
        health = await pool.health()
        assert health.healthy
        for lease in await asyncio.gather(*callers):
            await pool.release(lease)
        await until(lambda: pool.stats().closed[CloseReason.CHECK_FAILED] == 1)
        assert pool.healthy
        victim.thaw()


async def test_a_pool_without_idle_connections_is_checked_with_a_new_one_if_there_is_room(victim):
    options = {"min_size": 1, "max_size": 2, "check_timeout": 0.2, "connect_timeout": 0.2}
    async with ConnectionPool(victim.dsn, **options) as pool, pool.acquire():
        assert (await pool.health()).latency_ns > 0
        async with pool.acquire():
            assert (await pool.health()).latency_ns is None
        pool.resize(1, 3)
        async with pool.acquire():
            victim.freeze()
            assert not (await pool.health()).healthy
            victim.thaw()


async def test_a_server_that_has_no_room_for_another_session_is_healthy(dsn, admin):
    await admin.execute("DROP ROLE IF EXISTS limited; CREATE ROLE limited LOGIN CONNECTION LIMIT 2")
    options = {"user": "limited", "min_size": 2, "max_size": 5, "check_timeout": 0.2, "connect_timeout": 1.0}
    async with ConnectionPool(dsn, **options) as pool, pool.acquire() as one, pool.acquire():
        waiting = asyncio.ensure_future(pool.acquire(timeout=10))
        await asyncio.sleep(0.1)
        assert (await pool.health()).healthy
        assert await one.fetchval("SELECT 1") == 1
        await pool.release(one)
        await pool.release(await waiting)
    await admin.execute("DROP ROLE limited")


async def test_a_connection_that_is_opened_slowly_does_not_make_the_pool_unhealthy(dsn):
    async def init(connection):
        await asyncio.sleep(0.3)

    options = {"min_size": 1, "max_size": 3, "check_timeout": 0.05, "init": init}
    async with ConnectionPool(dsn, **options) as pool, pool.acquire():
        assert (await pool.health()).latency_ns > 200_000_000


async def test_closing_ends_a_health_check_and_its_connection_attempt(dsn):
    begun, go_on = asyncio.Event(), asyncio.Event()
    go_on.set()

    async def init(connection):
        begun.set()
        await go_on.wait()

    before = asyncio.all_tasks()
    pool = ConnectionPool(dsn, min_size=1, max_size=2, init=init)
    await pool.open()
    async with pool.acquire():
        begun.clear()
        go_on.clear()
        asking = asyncio.create_task(pool.health())
        await begun.wait()
    await pool.close()
    go_on.set()
    assert not (await asking).healthy
    assert (pool.stats().size, pool.stats().connecting) == (0, 0)
    assert asyncio.all_tasks() == before


async def test_a_health_check_asks_a_connection_that_was_just_released(victim, clock):
    options = {"min_size": 2, "max_size": 2, "check_timeout": 0.3, "reset": False, "clock": clock}
    async with ConnectionPool(victim.dsn, **options) as pool:
        lent = await pool.acquire()
        clock.advance(1)
        victim.freeze()
        asking = asyncio.create_task(pool.health())
        await asyncio.sleep(0.1)
        await pool.release(lent)
        assert not (await asking).healthy
        victim.thaw()


async def test_a_health_check_counts_neither_as_demand_nor_as_a_timeout(victim, clock):
    options = {"min_size": 1, "max_size": 4, "check_timeout": 0.1, "connect_timeout": 0.2, "clock": clock}
    async with ConnectionPool(victim.dsn, **options) as pool:
        clock.advance(1)
        assert (await pool.health()).healthy
        assert pool.optimize().demand == 0
        victim.freeze()
        assert "no answer within 0.1 s" in (await pool.health()).error
        assert (pool.stats().timeouts, pool.stats().waiting) == (0, 0)
        victim.thaw()


async def test_an_unhealthy_pool_comes_back_though_a_borrower_keeps_its_connection(victim, until):
    options = {"min_size": 1, "max_size": 5, "check_timeout": 0.2, "connect_timeout": 0.2}
    async with ConnectionPool(victim.dsn, **options) as pool:
        kept = await pool.acquire()
        await pool.warm(2)
        victim.freeze()
        assert not (await pool.health()).healthy
        with pytest.raises(PoolUnhealthy):
            await pool.acquire()
        victim.thaw()
        await until(lambda: pool.healthy, 3)
        assert await kept.fetchval("SELECT 1") == 1
        await pool.release(kept)


@pytest.mark.parametrize("reset", [True, False])
async def test_a_transaction_that_began_though_its_begin_was_cancelled_is_rolled_back(victim, reset):
    options = {"min_size": 1, "max_size": 1, "reset": reset, "check_after": 0.0}
    async with ConnectionPool(victim.dsn, **options) as pool:
        lease = await pool.acquire()
        victim.freeze_sessions(pid := await pid_of(lease))
        begin = asyncio.create_task(lease.execute("BEGIN"))
        await asyncio.sleep(0.05)
        begin.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begin
        release = asyncio.create_task(pool.release(lease))
        await asyncio.sleep(0.05)
        victim.thaw()
        await release
        for _ in range(3):
            async with pool.acquire(timeout=2) as connection:
                assert not connection.is_in_transaction()
                assert await pid_of(connection) == pid


async def test_a_release_is_not_cancelled_by_closing_the_pool(victim):
    pool = ConnectionPool(victim.dsn, min_size=1, max_size=1)
    await pool.open()
    lease = await pool.acquire()
    victim.freeze()
    release = asyncio.create_task(pool.release(lease))
    await asyncio.sleep(0.05)
    await pool.close(0.05)
    await release
    victim.thaw()


async def test_opening_waits_for_a_silent_replica_until_its_timeout(victim, dsn):
    victim.freeze()
    pool = ConnectionPool(dsn, min_size=1, max_size=1, replicas=[victim.dsn])
    start = time.monotonic()
    await pool.open(timeout=0.5)
    assert time.monotonic() - start < 1.5
    assert not pool.replicas[0].healthy
    await pool.close()
    victim.thaw()


async def test_a_reader_whose_replica_is_silent_gets_the_primary_in_time(victim, dsn, clock):
    options = {"min_size": 1, "max_size": 1, "clock": clock}
    async with ConnectionPool(dsn, replicas=[victim.dsn], **options) as pool:
        victim.freeze()
        clock.advance(1)
        async with pool.acquire(timeout=1, readonly=True) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert (pool.replicas[0].stats().timeouts, pool.stats().timeouts) == (1, 0)
        victim.thaw()


async def test_a_replica_whose_connections_do_not_come_back_is_avoided(dsn, clock):
    options = {"min_size": 0, "max_size": 20, "clock": clock}
    async with ConnectionPool(dsn, replicas=[dsn, dsn], **options) as pool:
        hung, busy = pool.replicas
        for replica in pool.replicas:
            async with replica.acquire():
                clock.advance(0.01)
        kept = [await hung.acquire() for _ in range(2)]
        for seconds in (1, 10, 60, 600):
            clock.advance(seconds)
            for _ in range(5):
                async with pool.acquire(readonly=True) as connection:
                    assert connection not in kept
                    clock.advance(0.02)
        assert (hung.stats().in_use, hung.stats().use.count, busy.stats().use.count) == (2, 1, 21)
        for lease in kept:
            await hung.release(lease)


async def test_a_timeout_names_the_seconds_that_the_caller_asked_for(victim, clock):
    async with ConnectionPool(victim.dsn, min_size=1, max_size=1, clock=clock) as pool, pool.acquire():
        with pytest.raises(PoolTimeout, match=r"no connection within 0\.02 s"):
            await pool.acquire(timeout=0.02)
