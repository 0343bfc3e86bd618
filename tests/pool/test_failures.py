"""What the pool does when the server dies, freezes, hangs up or is full."""

import asyncio
import select
import threading
import time

import asyncpg
import pytest

from acgsperf import CloseReason, ConnectionPool, PoolError, PoolTimeout, PoolUnhealthy

# What a caller may see while its server dies: the pool's own errors, and asyncpg's on the connection that it held.
# asyncpg raises its internal error if the server ends the session between preparing a statement and executing it.
TYPED = (PoolError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

TERMINATE = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1"


class Load:
    """Callers that borrow and query all the time, and the errors that they got."""

    def __init__(self, pool, callers, timeout):
        self.pool = pool
        self.timeout = timeout
        self.answers = 0
        self.errors = []
        self.slowest = 0.0
        self._going = True
        self._tasks = [asyncio.create_task(self._call()) for _ in range(callers)]

    async def _call(self):
        while self._going:
            start = time.monotonic()
            try:
                async with self.pool.acquire(timeout=self.timeout) as connection:
                    await connection.fetchval("SELECT 1")
                self.answers += 1
            except TYPED as error:
                self.errors.append(error)
                await asyncio.sleep(0.02)
            self.slowest = max(self.slowest, time.monotonic() - start)

    async def stop(self):
        self._going = False
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize("down_for", [pytest.param(0.5), pytest.param(5.0, marks=pytest.mark.soak)])
async def test_a_server_that_is_killed_and_started_again_serves_all_callers_within_two_seconds(victim, down_for, until):
    async with ConnectionPool(victim.dsn, min_size=5, max_size=10) as pool:
        load = Load(pool, callers=20, timeout=1.0)
        await until(lambda: load.answers > 100)
        await asyncio.to_thread(victim.kill)
        await until(lambda: not pool.healthy)
        with pytest.raises(PoolUnhealthy) as refused:
            await pool.acquire()
        assert isinstance(refused.value.__cause__, OSError | asyncpg.PostgresError)
        await asyncio.sleep(down_for)

        await asyncio.to_thread(victim.start)
        before, errors_before = load.answers, len(load.errors)
        await until(lambda: pool.healthy and pool.stats().size >= 5 and load.answers > before + 100, seconds=2.0)
        recovered = len(load.errors)
        await until(lambda: load.answers > before + 1_000)
        assert len(load.errors) == recovered
        assert errors_before > 0
        await load.stop()
        # A connection attempt, a reset and a query may each notice late; none may wait for the server to come back.
        assert load.slowest < 1.0 + 0.5
        assert pool.stats().in_use == 0


@pytest.mark.parametrize("reset", [True, False])
async def test_no_caller_of_a_frozen_server_waits_past_its_deadline_and_all_slots_become_free(victim, until, reset):
    async with ConnectionPool(
        victim.dsn,
        min_size=2,
        max_size=4,
        check_after=0.0,
        reset=reset,
        check_timeout=0.2,
        reset_timeout=0.2,
        connect_timeout=0.3,
        close_timeout=0.2,
        command_timeout=0.2,
    ) as pool:
        held = await pool.acquire()
        victim.freeze()
        try:
            start = time.monotonic()
            with pytest.raises(TimeoutError):
                await held.fetchval("SELECT 1")
            assert time.monotonic() - start < 0.2 + 0.1
            await pool.release(held)
            assert time.monotonic() - start < 0.2 + 0.2 + 0.15

            start = time.monotonic()
            answers = await asyncio.gather(*(pool.acquire(timeout=0.5) for _ in range(20)), return_exceptions=True)
            assert all(isinstance(answer, PoolTimeout | PoolUnhealthy) for answer in answers)
            assert time.monotonic() - start < 0.5 + 0.05
            assert not (await pool.health()).healthy
            await until(lambda: pool.stats().size == 0)
        finally:
            victim.thaw()
        await until(lambda: pool.healthy and pool.stats().idle >= 2, seconds=2.0)
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1


async def test_a_waiter_takes_whatever_comes_first_a_checked_connection_or_a_new_one(victim, clock, until):
    async with ConnectionPool(victim.dsn, min_size=1, max_size=2, check_after=1.0, clock=clock) as pool:
        victim.freeze_postmaster()
        try:
            # No new connection can be opened. The old one is checked, and answers.
            warming = asyncio.create_task(pool.warm(2))
            await until(lambda: pool.stats().connecting == 1)
            clock.advance(1.0)
            async with pool.acquire(timeout=2.0) as connection:
                assert await connection.fetchval("SELECT 1") == 1
        finally:
            victim.thaw()
        await warming


async def test_a_pool_closes_in_time_though_its_server_is_frozen(victim):
    pool = ConnectionPool(victim.dsn, min_size=2, max_size=4, close_timeout=0.2)
    await pool.open()
    victim.freeze()
    try:
        async with asyncio.timeout(1.0):
            await pool.close()
    finally:
        victim.thaw()
    assert pool.stats().size == 0


async def test_a_health_check_finds_a_frozen_server_and_the_pool_comes_back_by_itself(victim, until):
    async with ConnectionPool(victim.dsn, min_size=2, max_size=4, check_timeout=0.2, connect_timeout=0.3) as pool:
        assert (await pool.health()).latency_ns > 0
        victim.freeze()
        try:
            health = await pool.health()
            assert not health.healthy
            assert "TimeoutError" in health.error
            with pytest.raises(PoolUnhealthy):
                await pool.acquire()
        finally:
            victim.thaw()
        await until(lambda: pool.healthy, seconds=2.0)


class Elsewhere:
    """A session in a thread of its own. While it is used, the event loop of the test does not run."""

    def __init__(self, dsn):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._connection = self._run(asyncpg.connect(dsn))

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def fetchval(self, *query):
        return self._run(self._connection.fetchval(*query))

    def close(self):
        self._run(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def elsewhere(dsn):
    session = Elsewhere(dsn)
    yield session
    session.close()


def wait_until_readable(connections):
    """Return when the server has sent something to each of these connections; the event loop gets no turn."""
    for connection in connections:
        poll = select.poll()
        poll.register(connection._transport.get_extra_info("socket").fileno(), select.POLLIN)
        assert poll.poll(5_000)


async def ask(pool):
    async with pool.acquire(timeout=10) as connection:
        return await connection.fetchval("SELECT 1")


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("size", [1, 4])
async def test_no_caller_notices_that_the_server_has_ended_idle_connections(dsn, elsewhere, until, opened, size, reset):
    options = {"min_size": size, "max_size": size, "reset": reset, "server_settings": {"application_name": "doomed"}}
    async with ConnectionPool(dsn, init=opened, **options) as pool:
        for i in range(100):
            await until(lambda: pool.stats().idle == size)
            # Sessions of the last round may not have ended yet.
            assert elsewhere.fetchval(TERMINATE, "doomed") >= size
            wait_until_readable([connection for connection in opened if not connection.is_closed()])
            # From an error that nobody has read to a connection that is known to be closed.
            for _ in range(i % 5):
                await asyncio.sleep(0)
            assert await asyncio.gather(*(ask(pool) for _ in range(size + 1))) == [1] * (size + 1)
        assert pool.stats().opened >= 100 * size


async def test_a_session_that_ends_between_two_borrowers_is_no_error_for_the_second(dsn, elsewhere, until, opened):
    options = {"min_size": 1, "max_size": 1, "reset": False, "server_settings": {"application_name": "passed on"}}
    async with ConnectionPool(dsn, init=opened, **options) as pool:
        for i in range(50):
            first = await pool.acquire()
            second = asyncio.create_task(ask(pool))
            await until(lambda: pool.stats().waiting == 1)
            # Without a reset, a release hands the connection over at once. It ends before the waiting caller runs.
            await pool.release(first)
            assert elsewhere.fetchval(TERMINATE, "passed on") >= 1
            wait_until_readable([opened[-1]])
            for _ in range(i % 2):
                await asyncio.sleep(0)
            assert await second == 1
        assert pool.stats().in_use == 0


async def test_a_connection_that_got_a_notification_while_idle_is_kept(dsn, elsewhere, opened):
    async def init(connection):
        await opened(connection)
        await connection.execute("LISTEN news")

    async with ConnectionPool(dsn, min_size=1, max_size=1, reset=False, init=init) as pool:
        for turns in range(4):
            elsewhere.fetchval("SELECT pg_notify('news', '')")
            wait_until_readable(opened)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert await ask(pool) == 1
        assert pool.stats().opened == 1


async def test_a_server_that_is_full_is_a_typed_error_until_there_is_room(victim):
    others = []
    try:
        while True:
            try:
                others.append(await asyncpg.connect(victim.dsn))
            except asyncpg.TooManyConnectionsError:
                break
        with pytest.raises(PoolUnhealthy, match="TooManyConnectionsError"):
            await ConnectionPool(victim.dsn, min_size=1, max_size=4).open()
        await others.pop().close()
        async with ConnectionPool(victim.dsn, min_size=0, max_size=4) as pool:
            await until_acquired(pool)
            with pytest.raises(PoolTimeout, match="TooManyConnectionsError"):
                async with pool.acquire():
                    # The server has room for one session, which its borrower can use.
                    await pool.acquire(timeout=0.5)
            attempts = pool.stats().failed_connects
            assert 2 <= attempts <= 12
            while others:
                await others.pop().close()
            async with asyncio.timeout(2.0), pool.acquire(), pool.acquire() as second:
                assert await second.fetchval("SELECT 1") == 1
    finally:
        for other in others:
            await other.close()


async def until_acquired(pool):
    """Return when a connection can be acquired: the server takes a moment to notice that others have disconnected."""
    async with asyncio.timeout(5):
        while True:
            try:
                async with pool.acquire():
                    return
            except PoolUnhealthy:
                await asyncio.sleep(0.05)


async def test_a_lost_connection_is_replaced_when_its_borrower_returns_it(dsn, admin):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            await admin.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            with pytest.raises(TYPED):
                await connection.fetchval("SELECT pg_sleep(10)")
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert pool.stats().closed[CloseReason.LOST] == 1
