"""How soon a pool works again after a server or a network was silent, with the default `connect_timeout`."""

import asyncio
import socket
import threading
import time

import asyncpg
import pytest

from acgsperf import CloseReason, ConnectionPool, PoolError, PoolTimeout

RECOVERY_S = 2.0


async def first_lease(pool):
    """Return a lease, however often the pool refuses it."""
    while True:
        try:
            return await pool.acquire(timeout=1)
        except PoolTimeout:
            continue


# The first attempt ends after five connections. The seventh belongs to the next one.
@pytest.mark.parametrize("swallowed", [1, 4, 7])
async def test_a_black_hole_that_ends_is_noticed_however_many_attempts_it_has_swallowed(proxy, hole, until, swallowed):
    hole.open()
    async with ConnectionPool(proxy.dsn, min_size=0, max_size=4) as pool:
        caller = asyncio.ensure_future(pool.acquire(timeout=30))
        await until(lambda: proxy.accepted == swallowed, 15)
        hole.close()
        start = time.monotonic()
        lease = await caller
        assert time.monotonic() - start < RECOVERY_S
        assert await lease.fetchval("SELECT 1") == 1
        assert (pool.stats().opened, pool.stats().connecting) == (1, 0)
        await until(lambda: proxy.connections == 1)
        await pool.release(lease)


async def test_connections_that_a_network_has_dropped_are_replaced_soon_after_it_works_again(proxy, hole, clock, until):
    options = {"min_size": 2, "max_size": 4, "clock": clock}
    async with ConnectionPool(proxy.dsn, **options) as pool:
        hole.open()
        clock.advance(1)
        callers = [asyncio.create_task(first_lease(pool)) for _ in range(2)]
        await until(lambda: pool.stats().closed[CloseReason.CHECK_FAILED] == 2)
        hole.close()
        start = time.monotonic()
        leases = await asyncio.gather(*callers)
        assert time.monotonic() - start < RECOVERY_S
        for lease in leases:
            assert await lease.fetchval("SELECT 1") == 1
            await pool.release(lease)


async def test_all_hosts_that_were_silent_are_noticed(make_proxy, until):
    one, two = await make_proxy(), await make_proxy()
    one.silent = two.silent = True
    dsn = one.dsn.replace(one.address, f"{one.address},{two.address}")
    async with ConnectionPool(dsn, min_size=0, max_size=4) as pool:
        caller = asyncio.ensure_future(pool.acquire(timeout=30))
        await until(lambda: two.accepted == 1)
        two.reset()
        start = time.monotonic()
        lease = await caller
        assert time.monotonic() - start < RECOVERY_S
        await pool.release(lease)


async def test_a_frozen_server_that_continues_is_used_at_once_and_keeps_one_session(victim, until):
    async with ConnectionPool(victim.dsn, min_size=0, max_size=4) as pool:
        victim.freeze_postmaster()
        caller = asyncio.ensure_future(pool.acquire(timeout=30))
        await until(lambda: pool.stats().connecting == 2)
        victim.thaw()
        start = time.monotonic()
        lease = await caller
        assert time.monotonic() - start < RECOVERY_S
        assert (pool.stats().size, pool.stats().connecting) == (1, 0)
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        async with asyncio.timeout(5):
            while await lease.fetchval(sessions) != 1:
                pass
        await pool.release(lease)


async def test_a_second_attempt_needs_no_room(proxy):
    proxy.silent = True
    async with ConnectionPool(proxy.dsn, min_size=0, max_size=1) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.5)
        assert (proxy.accepted, pool.stats().connecting) == (2, 2)
    proxy.reset()
    async with ConnectionPool(proxy.dsn, min_size=1, max_size=2) as pool, pool.acquire():
        proxy.silent = True
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.5)
        assert (proxy.accepted, pool.stats().connecting) == (5, 2)


async def test_several_silent_attempts_have_one_second_attempt_together(proxy):
    proxy.silent = True
    async with ConnectionPool(proxy.dsn, min_size=0, max_size=10) as pool:
        outcomes = await asyncio.gather(*(pool.acquire(timeout=1.5) for _ in range(3)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {PoolTimeout}
        assert (proxy.accepted, pool.stats().connecting) == (4, 4)


async def test_if_both_attempts_are_answered_at_once_one_connection_is_kept(proxy, opened, until):
    answer = asyncio.Event()

    async def relay(data, write):
        await answer.wait()
        await write(data)

    proxy.relay = relay
    async with ConnectionPool(proxy.dsn, min_size=0, max_size=2, init=opened) as pool:
        caller = asyncio.ensure_future(pool.acquire(timeout=30))
        await until(lambda: proxy.accepted == 2)
        answer.set()
        lease = await caller
        await until(lambda: proxy.connections == 1)
        assert (len(opened), pool.stats().size, pool.stats().connecting) == (1, 1, 0)
        # The room of the other attempt is free again.
        async with pool.acquire(timeout=5):
            assert pool.stats().size == 2
        await pool.release(lease)


async def test_closing_the_pool_ends_both_attempts(proxy, until):
    proxy.silent = True
    before = asyncio.all_tasks()
    pool = ConnectionPool(proxy.dsn, min_size=0, max_size=2)
    await pool.open()
    caller = asyncio.ensure_future(pool.acquire(timeout=30))
    await until(lambda: proxy.accepted == 2)
    await pool.close()
    await asyncio.wait((caller,))
    assert caller.exception() is not None
    assert pool.stats().connecting == 0
    await until(lambda: proxy.connections == 0)
    await until(lambda: asyncio.all_tasks() <= before)


async def test_an_attempt_that_fails_ends_its_second_attempt_and_keeps_its_error(proxy, until):
    refuse = asyncio.Event()

    async def relay(data, write):
        await refuse.wait()
        proxy.hang_up()

    proxy.relay = relay
    pool = ConnectionPool(proxy.dsn, min_size=0, max_size=2)
    await pool.open()
    caller = asyncio.ensure_future(pool.acquire(timeout=10))
    await until(lambda: proxy.accepted == 2)
    refuse.set()
    await until(lambda: pool.stats().failed_connects == 1)
    assert isinstance(pool._health.last_failure, (OSError, asyncpg.PostgresConnectionError))
    proxy.reset()
    await pool.release(await caller)
    await pool.close()


async def test_an_init_that_takes_long_does_not_count_as_silence(proxy, opened):
    async def init(connection):
        await opened(connection)
        await asyncio.sleep(1.2)

    async with ConnectionPool(proxy.dsn, min_size=1, max_size=4, init=init):
        assert (len(opened), proxy.accepted) == (1, 1)


async def test_the_time_of_a_silent_attempt_is_a_part_of_the_backoff(dsn):
    loop = asyncio.get_running_loop()
    health = ConnectionPool(dsn)._health
    for silent_s, most_s in ((5.0, 0.0), (0.3, 0.5), (0.0, 0.8)):
        for _ in range(10):
            health.note_failure(TimeoutError())
        health.back_off(silent_s, then=lambda: None)
        assert health.retry.when() - loop.time() <= most_s
        health.cancel_retry()


async def outcome_of_acquire(pool):
    try:
        async with pool.acquire(timeout=0.2):
            return None
    except PoolError as error:
        return type(error)


async def test_a_pool_works_again_when_the_name_server_does(proxy, monkeypatch):
    answer, asked = threading.Event(), []
    original = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        asked.append(host)
        answer.wait(20)
        return original(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with ConnectionPool(proxy.dsn.replace("127.0.0.1", "localhost"), min_size=0, max_size=4) as pool:
        # Longer than the second attempt takes to begin.
        for _ in range(6):
            outcomes = await asyncio.gather(*(outcome_of_acquire(pool) for _ in range(20)))
            assert set(outcomes) == {PoolTimeout}
        assert asked == ["localhost"]
        answer.set()
        async with asyncio.timeout(RECOVERY_S):
            assert await pool.fetchval("SELECT 1") == 1


async def test_a_pool_whose_room_is_full_of_silent_attempts_recovers(proxy, hole, until):
    hole.open()
    async with ConnectionPool(proxy.dsn, min_size=0, max_size=4) as pool:
        callers = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(4)]
        await until(lambda: proxy.accepted == 5)
        assert pool.stats().connecting == 5
        hole.close()
        start = time.monotonic()
        assert await asyncio.gather(*callers) == [1] * 4
        assert time.monotonic() - start < RECOVERY_S
        await until(lambda: pool.stats().connecting == 3)
        await until(lambda: proxy.connections == 4)


async def test_a_slow_server_gives_all_callers_a_connection_although_there_is_no_more_room(proxy):
    def make_relay():
        answered = False

        async def relay(data, write):
            nonlocal answered
            if not answered:
                answered = True
                await asyncio.sleep(1.3)
            await write(data)

        return relay

    proxy.make_relay = make_relay
    async with ConnectionPool(proxy.dsn, min_size=0, max_size=3) as pool:
        leases = await asyncio.gather(*(pool.acquire(timeout=4.5) for _ in range(3)))
        assert (pool.stats().size, pool.stats().failed_connects) == (3, 0)
        for lease in leases:
            await pool.release(lease)
