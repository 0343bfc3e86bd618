"""Servers, and what stands before them, that accept connections and close them."""

import asyncio

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolError, PoolUnhealthy

# What callers may get: errors of the pool, and of asyncpg on a connection that was lent.
TYPED = (PoolError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
READY = b"Z\0\0\0\5I"


class HangUp:
    """Closes a connection after some replies, a number of turns of the event loop later."""

    def __init__(self, replies, turns=0):
        self._replies = replies
        self._turns = turns

    async def __call__(self, data, write):
        await write(data)
        if data.endswith(READY):
            self._replies -= 1
            if self._replies <= 0:
                for _ in range(self._turns):
                    await asyncio.sleep(0)
                raise ConnectionResetError


# The end of the start of a session is the first reply. What replies to `SELECT 1` is the second.
HANG_UPS = [(1, 0), (1, 50), (2, 0), (3, 0)]


@pytest.fixture(params=HANG_UPS, ids=str)
def hanging_up(request, proxy):
    """A proxy that hangs up; each connection gets a relay of its own."""
    proxy.make_relay = lambda: HangUp(*request.param)
    return proxy


async def until_unhealthy(pool, until):
    """Open a pool, and acquire a connection when the pool has found out that its server closes it."""
    await pool.open()
    await until(lambda: not pool.healthy, 5)
    await pool.acquire()


@pytest.mark.parametrize("turns", [0, 50])
@pytest.mark.parametrize("min_size", [1, 4])
async def test_a_pool_is_unhealthy_if_its_server_closes_new_connections(proxy, until, min_size, turns):
    proxy.make_relay = lambda: HangUp(1, turns)
    pool = ConnectionPool(proxy.dsn, min_size=min_size, max_size=4)
    with pytest.raises(PoolUnhealthy, match="closed"):
        await until_unhealthy(pool, until)
    await pool.close(0)


@pytest.mark.parametrize("min_size", [1, 4])
async def test_a_pool_does_not_reconnect_faster_and_faster_and_recovers(proxy, until, min_size):
    async with ConnectionPool(proxy.dsn, min_size=min_size, max_size=4) as pool:
        proxy.make_relay = lambda: HangUp(1)
        before = proxy.accepted
        proxy.hang_up()
        await until(lambda: not pool.healthy)
        assert proxy.accepted - before <= 3 + min_size
        # Those that were in flight when the first one failed.
        await until(lambda: pool.stats().connecting == 0)
        loop = asyncio.get_running_loop()
        start, before = loop.time(), proxy.accepted
        await until(lambda: proxy.accepted >= before + 3)
        assert loop.time() - start >= 0.3

        proxy.reset()
        await until(lambda: pool.healthy and pool.stats().idle >= min_size, 2.0)
        async with pool.acquire(timeout=1) as connection:
            assert await connection.fetchval("SELECT 1") == 1


async def test_callers_of_a_server_that_hangs_up_get_typed_errors_and_few_connections_are_tried(hanging_up):
    async def ask():
        async with pool.acquire(timeout=1) as connection:
            return await connection.fetchval("SELECT 1")

    pool = ConnectionPool(hanging_up.dsn, min_size=0, max_size=4)
    await pool.open()
    try:
        loop = asyncio.get_running_loop()
        start = loop.time()
        answers = [
            a for _ in range(10) for a in await asyncio.gather(*(ask() for _ in range(4)), return_exceptions=True)
        ]
        assert all(answer == 1 or isinstance(answer, TYPED) for answer in answers)
        assert hanging_up.accepted <= answers.count(1) + 12 + 20 * (loop.time() - start)
    finally:
        await pool.close(0)


async def test_a_borrower_that_closes_its_connection_is_no_failure_of_the_server(dsn):
    async with ConnectionPool(dsn, min_size=0, max_size=1) as pool:
        for close in ("close", "terminate") * 3:
            async with pool.acquire(timeout=5) as connection:
                done = getattr(connection, close)()
                if done is not None:
                    await done
        assert (pool.stats().failed_connects, pool.healthy) == (0, True)
