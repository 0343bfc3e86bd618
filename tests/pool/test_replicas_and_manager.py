"""Several servers under one pool, and several pools under one manager."""

import asyncio
import random

import pytest

from acgsperf import ConnectionPool, PoolClosed, PoolExists, PoolManager, PoolNotFound, PoolUnhealthy

NOWHERE = "postgresql:///postgres?host=/nonexistent"


async def test_only_readers_are_sent_to_replicas(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=2, replicas=[dsn, dsn]) as pool:
        async with pool.acquire(), pool.acquire(readonly=True) as reader:
            assert await reader.fetchval("SELECT 1") == 1
            assert pool.stats().in_use == 1
            assert sum(replica.stats().in_use for replica in pool.replicas) == 1
        assert sum(replica.stats().in_use for replica in pool.replicas) == 0


async def test_readers_go_to_the_replica_with_less_to_do(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=10, replicas=[dsn, dsn]) as pool:
        readers = [await pool.acquire(readonly=True) for _ in range(10)]
        assert [replica.stats().in_use for replica in pool.replicas] == [5, 5]
        for reader in readers:
            await pool.release(reader)


async def test_readers_avoid_the_slower_replica_for_some_time(dsn, clock):
    async with ConnectionPool(dsn, min_size=2, max_size=10, replicas=[dsn, dsn], check_after=1e9, clock=clock) as pool:
        one, other = await pool.acquire(readonly=True), await pool.acquire(readonly=True)
        clock.advance(0.001)
        await pool.release(one)
        clock.advance(1.0)
        await pool.release(other)
        [fast] = [replica for replica in pool.replicas if replica.use_time.max < 1e9]
        readers = [await pool.acquire(readonly=True) for _ in range(8)]
        assert fast.stats().in_use == 8
        for reader in readers:
            clock.advance(0.001)
            await pool.release(reader)

        clock.advance(200.0)
        async with fast.acquire():
            clock.advance(0.001)
        async with pool.acquire(readonly=True):
            assert fast.stats().in_use == 0


async def test_readers_go_to_the_primary_while_no_replica_is_healthy(dsn, caplog):
    async with ConnectionPool(dsn, min_size=1, max_size=2, replicas=[NOWHERE]) as pool:
        assert not pool.replicas[0].healthy
        async with pool.acquire(readonly=True):
            assert pool.stats().in_use == 1


async def test_a_reader_gets_the_primary_if_its_replica_is_saturated(dsn):
    async with (
        ConnectionPool(dsn, min_size=1, max_size=1, max_waiting=0, replicas=[dsn]) as pool,
        pool.acquire(readonly=True),
        pool.acquire(readonly=True),
    ):
        assert (pool.replicas[0].stats().in_use, pool.stats().in_use) == (1, 1)
        assert pool.replicas[0].stats().saturations == 1


async def test_the_better_of_two_and_not_the_best_of_all_is_taken(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=9, replicas=[dsn, dsn, dsn]) as pool:
        busy = [await replica.acquire() for replica in pool.replicas[1:] for _ in range(2)]
        random.seed(7)
        for _ in range(300):
            async with pool.acquire(readonly=True):
                pass
        # The best is among two of three in two thirds of all cases.
        assert 170 <= pool.replicas[0].stats().use.count <= 230
        for lease in busy:
            await pool.release(lease)


async def test_a_leak_of_a_replica_is_reported_with_its_place(dsn, clock, caplog):
    options = {"leak_threshold": 30.0, "housekeeping_interval": 3600, "clock": clock}
    async with ConnectionPool(dsn, min_size=1, max_size=2, replicas=[dsn], **options) as pool:
        lease = await pool.acquire(readonly=True)
        clock.advance(31.0)
        pool.replicas[0].maintain()
        [record] = [record for record in caplog.records if "acquired at" in record.message]
        assert f"{__file__}:" in record.message
        await pool.release(lease)


async def test_a_replica_that_is_back_is_used_again(victim, dsn, until):
    async with ConnectionPool(dsn, min_size=1, max_size=2, replicas=[victim.dsn]) as pool:
        [replica] = pool.replicas
        await asyncio.to_thread(victim.kill)
        await until(lambda: not replica.healthy)
        async with pool.acquire(readonly=True) as reader:
            assert await reader.fetchval("SELECT 1") == 1
        await asyncio.to_thread(victim.start)
        await until(lambda: replica.healthy)
        async with pool.acquire(readonly=True) as reader:
            assert replica.stats().in_use == 1
            assert await reader.fetchval("SELECT 1") == 1


async def test_a_manager_finds_its_pools_by_name_and_closes_them(dsn):
    async with PoolManager() as manager:
        first = await manager.create("first", dsn, min_size=1, max_size=2)
        await manager.create("second", dsn, min_size=1, max_size=2, replicas=[dsn])
        assert manager.names() == ["first", "second"]
        assert manager.get("first") is first
        with pytest.raises(PoolExists, match="first"):
            await manager.create("first", dsn)
        with pytest.raises(PoolNotFound, match="third"):
            manager.get("third")
        health = await manager.health()
        assert {name: answer.healthy for name, answer in health.items()} == dict.fromkeys(
            ["first", "second", "second/replica-1"], True
        )
        assert manager.optimize()["first"].target_size == 1
    with pytest.raises(PoolClosed):
        await first.acquire()
    with pytest.raises(PoolClosed):
        await manager.create("late", dsn)


async def test_a_name_is_free_again_when_its_pool_could_not_be_opened(dsn):
    async with PoolManager() as manager:
        with pytest.raises(PoolUnhealthy):
            await manager.create("app", NOWHERE, min_size=1)
        await manager.create("app", dsn, min_size=1)


async def test_a_name_is_in_use_while_its_pool_is_being_opened(dsn):
    async with PoolManager() as manager:
        opening = asyncio.create_task(manager.create("app", dsn, min_size=1))
        await asyncio.sleep(0)
        with pytest.raises(PoolExists):
            await manager.create("app", dsn)
        await opening


async def test_a_replica_has_a_name_that_no_other_pool_can_have(dsn):
    async with PoolManager() as manager:
        await manager.create("app", dsn, min_size=1, replicas=[dsn])
        with pytest.raises(PoolExists, match="app/replica-1"):
            await manager.create("app/replica-1", dsn, min_size=1)
        await manager.create("other/replica-1", dsn, min_size=1)
        with pytest.raises(PoolExists, match="other/replica-1"):
            await manager.create("other", dsn, min_size=1, replicas=[dsn])
        assert list(await manager.health()) == ["app", "app/replica-1", "other/replica-1"]


async def test_a_pool_that_its_user_closed_is_forgotten(dsn):
    async with PoolManager() as manager:
        pool = await manager.create("app", dsn, min_size=1)
        await pool.close()
        assert pool.closed
        assert (manager.names(), manager.optimize(), await manager.health()) == ([], {}, {})
        with pytest.raises(PoolNotFound):
            manager.get("app")
        assert not (await manager.create("app", dsn, min_size=1)).closed


@pytest.mark.parametrize("turns", range(4))
async def test_a_pool_that_opens_while_the_manager_is_closed_is_closed_too(dsn, turns):
    before = asyncio.all_tasks()
    manager = PoolManager()
    opening = asyncio.create_task(manager.create("app", dsn, min_size=0))
    for _ in range(turns):
        await asyncio.sleep(0)
    await manager.close(0)
    done = await asyncio.gather(opening, return_exceptions=True)
    assert isinstance(done[0], PoolClosed) or (turns == 3 and done[0].closed)
    assert asyncio.all_tasks() == before


async def test_one_long_lease_does_not_starve_its_replica(dsn, clock):
    async with ConnectionPool(dsn, min_size=1, max_size=20, replicas=[dsn, dsn], clock=clock) as pool:
        held, other = pool.replicas
        for replica in pool.replicas:
            async with replica.acquire():
                clock.advance(0.01)
        kept = await held.acquire()
        clock.advance(600)
        readers = [await pool.acquire(readonly=True) for _ in range(12)]
        # A replica with a long lease counts as at most four times slower.
        assert 2 <= held.stats().in_use <= 4
        assert other.stats().in_use == 13 - held.stats().in_use
        for lease in (kept, *readers):
            await pool.release(lease)


async def test_closing_a_manager_closes_what_is_being_opened(victim, until):
    manager = PoolManager()
    victim.freeze()
    opening = asyncio.create_task(manager.create("app", victim.dsn, min_size=2, max_size=2))
    await asyncio.sleep(0.1)
    await manager.close()
    with pytest.raises(PoolClosed):
        await opening
    assert manager.names() == []
    victim.thaw()


@pytest.mark.parametrize("turns", [0, 1, 3, 10])
async def test_a_close_of_the_manager_that_was_cancelled_can_be_repeated_and_leaves_nothing(dsn, turns):
    before = asyncio.all_tasks()
    manager = PoolManager()
    pools = [await manager.create(name, dsn, min_size=1, replicas=[dsn]) for name in ("one", "two")]
    async with pools[0].acquire():
        closing = asyncio.create_task(manager.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await manager.close(0)
    members = [member for pool in pools for member in (pool, *pool.replicas)]
    assert all(member.closed and member.stats().size == 0 for member in members)
    assert asyncio.all_tasks() == before


async def test_the_manager_notices_by_itself_that_a_server_does_not_answer(victim, until):
    async with PoolManager(interval=0.05) as manager:
        pool = await manager.create("app", victim.dsn, min_size=1, max_size=1, check_timeout=0.1, connect_timeout=0.2)
        victim.freeze()
        try:
            await until(lambda: not pool.healthy)
        finally:
            victim.thaw()
        await until(lambda: pool.healthy)
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
