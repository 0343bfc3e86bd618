"""Pools that have no room for another connection: how soon they work again after a fault, and what they open for it."""

import asyncio
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from acgsperf import CloseReason, ConnectionPool, PoolError

RECOVERY_S = 2.0
# The number of connections that a pool may have in addition to `max_size`.
MOST_MORE = 2
# A server that was frozen accepts the attempts that the pool has given up meanwhile. Such a session ends when the
# server reads from it. So a session counts only if it is older than this.
GIVEN_UP_S = 0.5
MAX_SIZES = (1, 2, 20)
# asyncpg raises its internal error if a connection breaks at certain moments.
_ERRORS = (
    PoolError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


class Callers:
    """Use all connections of a pool all the time, whatever happens."""

    def __init__(self, dsn, max_size):
        self.name = f"pool of {max_size}"
        self.max_size = max_size
        self.pool = ConnectionPool(
            dsn,
            min_size=max_size,
            max_size=max_size,
            timeout=1,
            command_timeout=0.5,
            server_settings={"application_name": self.name},
        )
        # When each of them got its last right result.
        self._last = [0.0] * max_size * 2
        self._tasks = []

    async def __aenter__(self):
        await self.pool.open()
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(len(self._last))]
        await self.work_since(time.monotonic())
        return self

    async def __aexit__(self, *error):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()

    async def _call(self, number):
        while True:
            with suppress(*_ERRORS):
                assert await self.pool.fetchval("SELECT $1::int", number) == number
                self._last[number] = time.monotonic()
            await asyncio.sleep(0.02)

    async def work_since(self, start):
        """Wait until every caller got a result; return how many seconds after `start` the first one did."""
        first_s = None
        async with asyncio.timeout(15):
            while (slowest := min(self._last)) < start:
                if first_s is None and max(self._last) >= start:
                    first_s = max(self._last) - start
                await asyncio.sleep(0.01)
        return slowest - start if first_s is None else first_s


class Sessions:
    """Counts the sessions of each application on a server, as often as the server answers."""

    def __init__(self, dsn):
        self._dsn = dsn
        self.now = {}
        self.most = {}

    async def watch(self):
        while True:
            with suppress(*_ERRORS):
                connection = await asyncpg.connect(self._dsn, timeout=30)
                try:
                    while True:
                        await self._count(connection)
                finally:
                    connection.terminate()
            await asyncio.sleep(0.01)

    async def _count(self, connection):
        counts = await connection.fetch(
            "SELECT application_name, count(*), count(*) FILTER"
            " (WHERE backend_start < clock_timestamp() - make_interval(secs => $1))"
            " FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1",
            GIVEN_UP_S,
        )
        self.now = {name: count for name, count, _ in counts}
        for name, _, lasting in counts:
            self.most[name] = max(self.most.get(name, 0), lasting)
        await asyncio.sleep(0.005)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def pools(dsn, sessions_dsn, until):
    """Open pools of all sizes with callers; check the number of their sessions, and that nothing is left of them."""
    # Start the thread of `to_thread` now, so that it is among those that were there before.
    await asyncio.to_thread(int)
    before = asyncio.all_tasks(), descriptors(), threading.active_count()
    sessions = Sessions(sessions_dsn)
    watching = asyncio.create_task(sessions.watch())
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(Callers(dsn, size)) for size in MAX_SIZES]
        yield callers
        for each in callers:
            # One more connection than `max_size` is closed as soon as it is returned.
            await until(lambda each=each: sessions.now.get(each.name, 0) <= each.max_size)
            assert sessions.most[each.name] <= each.max_size + MOST_MORE, sessions.most
            assert each.pool.stats().size <= each.max_size
    await until(lambda: not any(each.name in sessions.now for each in callers))
    watching.cancel()
    await asyncio.wait((watching,))
    await until(lambda: asyncio.all_tasks() <= before[0])
    await until(lambda: descriptors() <= before[1])
    assert threading.active_count() <= before[2]


async def recovery_s(callers):
    start = time.monotonic()
    seconds = await asyncio.gather(*(each.work_since(start) for each in callers))
    return {each.max_size: round(s, 2) for each, s in zip(callers, seconds, strict=True)}


@pytest.mark.parametrize("frozen_s", [3, 10])
async def test_a_frozen_server_that_continues_is_used_soon(victim, until, frozen_s):
    async with pools(victim.dsn, victim.dsn, until) as callers:
        victim.freeze()
        await asyncio.sleep(frozen_s)
        victim.thaw()
        seconds = await recovery_s(callers)
        assert max(seconds.values()) < RECOVERY_S, seconds


async def test_a_server_that_was_killed_and_started_again_is_used_soon(victim, until):
    async with pools(victim.dsn, victim.dsn, until) as callers:
        victim.kill()
        await asyncio.sleep(1)
        await asyncio.to_thread(victim.start)
        seconds = await recovery_s(callers)
        assert max(seconds.values()) < RECOVERY_S, seconds


@pytest.mark.parametrize("open_s", [0.3, 3, 10])
async def test_a_server_that_a_network_hid_is_used_soon(dsn, proxy, hole, until, open_s):
    async with pools(proxy.dsn, dsn, until) as callers:
        hole.open()
        await asyncio.sleep(open_s)
        hole.close()
        seconds = await recovery_s(callers)
        assert max(seconds.values()) < RECOVERY_S, seconds


async def check(pool, clock):
    clock.advance(1)
    with suppress(PoolError):
        await pool.acquire(timeout=0.01)


async def reset(pool, clock):
    lease = await pool.acquire()
    with suppress(TimeoutError):
        await lease.execute("SELECT 1", timeout=0.01)
    asyncio.get_running_loop().create_task(pool.release(lease))


async def close(pool, clock):
    pool.drain()


async def attempt(pool, clock):
    await (await pool.acquire()).close()
    with suppress(PoolError):
        await pool.acquire(timeout=0.01)


async def ask(pool, clock):
    asyncio.get_running_loop().create_task(pool.health())


@pytest.mark.parametrize("begin", [check, reset, close, attempt, ask])
@pytest.mark.parametrize("max_size", MAX_SIZES)
async def test_what_was_lost_in_a_network_does_not_delay_callers(proxy, hole, clock, until, begin, max_size):
    options = {"check_timeout": 5, "reset_timeout": 5, "close_timeout": 5, "connect_timeout": 5, "clock": clock}
    async with ConnectionPool(proxy.dsn, min_size=1, max_size=max_size, **options) as pool:
        hole.open()
        await begin(pool, clock)
        caller = asyncio.create_task(pool.fetchval("SELECT 1"))
        # If the pool makes another attempt, the hole swallows it as well.
        await asyncio.sleep(0.3)
        hole.close()
        start = time.monotonic()
        assert await caller == 1
        assert time.monotonic() - start < RECOVERY_S
        await until(lambda: pool.stats().connecting == 0)
        assert proxy.connections <= max_size + MOST_MORE
    await until(lambda: proxy.connections == 0)


async def test_a_connection_that_answers_late_is_closed_if_it_was_replaced(victim, clock, until):
    async with ConnectionPool(victim.dsn, min_size=1, max_size=1, check_timeout=5, clock=clock) as pool:
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        victim.freeze_sessions(pid)
        clock.advance(1)
        async with pool.acquire(timeout=1) as lease:
            assert await lease.fetchval("SELECT pg_backend_pid()") != pid
            assert pool.stats().size == 2
            victim.thaw()
            await until(lambda: pool.stats().size == 1)
            assert pool.stats().closed[CloseReason.SHRUNK] == 1
            assert await lease.fetchval("SELECT 1") == 1
        assert pool.stats().opened == 2
