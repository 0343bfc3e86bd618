"""Lending, keeping, replacing and counting connections."""

import asyncio
import gc
import logging
import random
import re
import secrets
import subprocess
import sys
import time
import weakref
from urllib.parse import urlsplit

import asyncpg
import pytest

from acgsperf import (
    CloseReason,
    ConnectionPool,
    PoolClosed,
    PoolError,
    PoolOptimization,
    PoolSaturated,
    PoolTimeout,
    PoolUnhealthy,
)


async def test_connections_are_ready_when_open_returns_and_gone_when_close_does(dsn, admin):
    settings = {"application_name": "warm-and-gone"}
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'warm-and-gone'"
    async with ConnectionPool(dsn, min_size=3, max_size=5, server_settings=settings) as pool:
        assert pool.stats().idle == 3
        assert await admin.fetchval(count) == 3
    assert pool.stats().size == 0
    assert pool.stats().closed[CloseReason.CLOSED] == 3
    async with asyncio.timeout(5):
        while await admin.fetchval(count):
            pass


async def test_a_connection_can_be_acquired_and_released_by_hand_and_releasing_twice_is_harmless(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        connection = await pool.acquire()
        assert await connection.fetchval("SELECT 42") == 42
        assert pool.stats().in_use == 1
        await pool.release(connection)
        await pool.release(connection)
        assert pool.stats().in_use == 0
        assert pool.stats().idle == 1


async def test_a_released_connection_cannot_be_used_nor_can_a_statement_made_with_it(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            statement = await connection.prepare("SELECT 1")
        with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
            await connection.fetchval("SELECT 1")
        async with pool.acquire():
            with pytest.raises(asyncpg.InterfaceError):
                await statement.fetchval()


async def test_a_connection_from_elsewhere_is_refused(dsn, admin):
    async with (
        ConnectionPool(dsn, min_size=0, max_size=1) as pool,
        ConnectionPool(dsn, min_size=0, max_size=1) as other,
    ):
        with pytest.raises(ValueError, match="not from pool"):
            await pool.release(admin)
        async with other.acquire() as connection:
            with pytest.raises(ValueError, match="not from pool"):
                await pool.release(connection)


async def test_callers_are_served_in_the_order_in_which_they_came(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=2) as pool:
        served = []

        async def call(number):
            async with pool.acquire() as connection:
                served.append(number)
                await connection.fetchval("SELECT 1")

        await asyncio.gather(*(call(number) for number in range(50)))
        assert served == list(range(50))


async def test_the_slowest_of_two_hundred_callers_waits_at_most_twice_as_long_as_in_an_ideal_queue(dsn):
    async with ConnectionPool(dsn, min_size=10, max_size=10) as pool:
        waits = []
        round_trips = []

        async def call(work):
            start = time.monotonic()
            async with pool.acquire():
                taken = time.monotonic()
                waits.append(taken - start)
                await asyncio.sleep(work)
            round_trips.append(time.monotonic() - taken)

        await asyncio.gather(*(call(0.002) for _ in range(200)))
        # On each connection, nineteen other callers are served before the last one, each with a reset.
        assert max(waits) <= 2 * 19 * (sum(round_trips) / len(round_trips))


async def test_an_acquire_ends_within_fifty_milliseconds_of_its_timeout_under_load(dsn):
    async with ConnectionPool(dsn, min_size=2, max_size=2) as pool:
        held = [await pool.acquire() for _ in range(2)]

        async def wait(seconds):
            start = time.monotonic()
            with pytest.raises(PoolTimeout, match="2 of 2 connections in use"):
                await pool.acquire(timeout=seconds)
            return time.monotonic() - start - seconds

        late = await asyncio.gather(*(wait(0.1 + 0.001 * number) for number in range(200)))
        assert min(late) >= 0
        assert max(late) <= 0.05
        assert pool.stats().timeouts == 200
        assert pool.stats().waiting == 0
        for connection in held:
            await pool.release(connection)


async def test_a_pool_timeout_is_a_timeout_error(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.01) as pool, pool.acquire():
        with pytest.raises(TimeoutError):
            await pool.acquire()


async def test_no_more_than_max_waiting_callers_wait(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, max_waiting=2) as pool:
        async with pool.acquire():
            waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(PoolSaturated):
                await pool.acquire()
            assert pool.stats().waiting == 2
            assert pool.stats().saturations == 1
        for task in waiting:
            await pool.release(await task)


async def test_callers_that_wait_for_a_check_or_a_new_connection_do_not_count_for_max_waiting(dsn, clock):
    async def borrow(pool):
        async with pool.acquire(timeout=10) as connection:
            return await connection.fetchval("SELECT 1")

    options = {"max_size": 8, "max_waiting": 0, "clock": clock}
    async with ConnectionPool(dsn, min_size=4, **options) as pool:
        clock.advance(1.0)
        assert await asyncio.gather(*(borrow(pool) for _ in range(8))) == [1] * 8
        leases = [await pool.acquire() for _ in range(8)]
        with pytest.raises(PoolSaturated):
            await pool.acquire()
        for lease in leases:
            await pool.release(lease)
    async with ConnectionPool(dsn, min_size=0, **options) as pool:
        assert await borrow(pool) == 1


CANCELLATIONS = [1_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]


@pytest.mark.parametrize("count", CANCELLATIONS)
async def test_cancellation_at_any_point_loses_no_connection_and_leaves_no_task(dsn, count, caplog, until):
    generator = random.Random(7)
    noises = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noises.append(context))
    async with ConnectionPool(dsn, min_size=2, max_size=5, check_after=0.002) as pool:
        before = asyncio.all_tasks()

        async def borrow():
            async with pool.acquire(timeout=5) as connection:
                if generator.random() < 0.3:
                    await connection.fetchval("SELECT 1")

        async def by_hand():
            connection = await pool.acquire()
            try:
                await asyncio.sleep(0)
            finally:
                await pool.release(connection)

        for _ in range(count // 50):
            tasks = [asyncio.create_task(generator.choice((borrow, by_hand))()) for _ in range(50)]
            for task in generator.sample(tasks, 50):
                if generator.random() < 0.2:
                    await asyncio.sleep(generator.choice((0, 0, 0, 0.0005, 0.002)))
                task.cancel()
            await asyncio.wait(tasks)
            assert pool.stats().size <= 5

        await until(lambda: pool.stats().in_use == 0 and not pool.stats().connecting)
        stats = pool.stats()
        assert stats.waiting == 0
        assert 2 <= stats.size <= 5
        await until(lambda: asyncio.all_tasks() <= before)
        async with asyncio.timeout(5), pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
    gc.collect()
    assert noises == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_session_whose_statement_was_prepared_and_not_executed_holds_no_lock(dsn):
    """A caller that is cancelled at the right moment leaves such a session, and so does `prepare`."""
    table = f"t_{secrets.token_hex(4)}"
    other = await asyncpg.connect(dsn)
    await other.execute(f"CREATE TABLE {table} (); SET lock_timeout = '2s'")
    async with ConnectionPool(dsn, min_size=1, max_size=1, reset=False) as pool:
        async with pool.acquire() as connection:
            await connection.prepare(f"SELECT FROM {table}")
            # To the client, this looks like no transaction.
            assert not connection.is_in_transaction()
        await other.execute(f"DROP TABLE {table}")
        assert await pool.fetchval("SELECT 1") == 1
    await other.close()


async def test_a_connection_that_arrives_in_the_turn_of_a_cancellation_goes_to_the_next(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, reset=False) as pool:
        held = await pool.acquire()
        first, second = asyncio.ensure_future(pool.acquire()), asyncio.ensure_future(pool.acquire())
        await asyncio.sleep(0)
        # The release hands the connection to the first caller, which is cancelled before it runs.
        await pool.release(held)
        first.cancel()
        connection = await asyncio.wait_for(second, 5)
        assert first.cancelled()
        await pool.release(connection)
        assert pool.stats().in_use == 0


async def test_a_connection_that_is_lost_while_it_is_handed_over_is_not_lent(dsn, opened):
    async with ConnectionPool(dsn, min_size=1, max_size=1, reset=False, init=opened) as pool:
        held = await pool.acquire()
        waiting = asyncio.ensure_future(pool.acquire(timeout=5))
        await asyncio.sleep(0)
        # The release hands the connection to the waiting caller, which runs only in the next turn of the event loop.
        await pool.release(held)
        opened[0].terminate()
        connection = await waiting
        assert await connection.fetchval("SELECT 1") == 1
        await pool.release(connection)


async def test_a_release_that_is_cancelled_still_gives_the_connection_back(dsn, until):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        connection = await pool.acquire()
        release = asyncio.create_task(pool.release(connection))
        await asyncio.sleep(0)
        release.cancel()
        await asyncio.wait([release])
        await until(lambda: pool.stats().idle == 1)
        assert pool.stats().opened == 1


async def test_nothing_of_a_session_reaches_the_next_borrower(dsn, admin):
    await admin.execute("CREATE SEQUENCE IF NOT EXISTS pool_numbers")
    state = """
        SELECT current_setting('work_mem'), current_user,
            (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
            (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_listening_channels()),
            to_regclass('pg_temp.mine') IS NULL, pg_current_xact_id_if_assigned() IS NULL
    """
    lastval = "SELECT lastval()"
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            new = await connection.fetchrow(state)
            process = connection.get_server_pid()
            await connection.execute("SET work_mem = '77MB'; SELECT pg_advisory_lock(7); LISTEN gossip")
            await connection.execute("CREATE TEMP TABLE mine (id int)")
            assert await connection.fetchval("SELECT nextval('pool_numbers')") == await connection.fetchval(lastval)
            await connection.execute("SET ROLE pg_monitor")
            await connection.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
            assert await connection.fetchrow(state) != new
        async with pool.acquire() as connection:
            assert connection.get_server_pid() == process
            assert await connection.fetchrow(state) == new
            with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
                await connection.fetchval(lastval)


async def test_a_table_that_is_changed_breaks_no_prepared_statement(dsn, admin):
    await admin.execute("DROP TABLE IF EXISTS pool_changing; CREATE TABLE pool_changing (x int)")
    try:
        async with ConnectionPool(dsn, min_size=2, max_size=2) as pool:

            async def read_twice():
                async with pool.acquire() as one, pool.acquire() as other:
                    return [await connection.fetch("SELECT * FROM pool_changing") for connection in (one, other)]

            assert await read_twice() == [[], []]
            await admin.execute("INSERT INTO pool_changing VALUES (1); ALTER TABLE pool_changing ADD y int DEFAULT 2")
            assert await read_twice() == [[(1, 2)], [(1, 2)]]
            async with pool.acquire() as connection:
                await connection.reload_schema_state()
    finally:
        await admin.execute("DROP TABLE pool_changing")


@pytest.mark.parametrize("reset", [True, False])
async def test_a_transaction_left_open_is_rolled_back(dsn, admin, reset):
    # asyncpg reports a transaction that it does not manage to the exception handler of the event loop.
    asyncio.get_running_loop().set_exception_handler(lambda _, context: None)
    await admin.execute("DROP TABLE IF EXISTS pool_open_transaction; CREATE TABLE pool_open_transaction (id int)")
    async with ConnectionPool(dsn, min_size=1, max_size=1, reset=reset) as pool:
        async with pool.acquire() as connection:
            await connection.execute("BEGIN; INSERT INTO pool_open_transaction VALUES (1)")
        async with pool.acquire() as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT count(*) FROM pool_open_transaction") == 0
    await admin.execute("DROP TABLE pool_open_transaction")


async def test_without_a_reset_settings_stay(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, reset=False) as pool:
        async with pool.acquire() as connection:
            await connection.execute("SET work_mem = '77MB'")
        async with pool.acquire() as connection:
            assert await connection.fetchval("SHOW work_mem") == "77MB"


async def test_init_prepares_every_new_connection(dsn):
    async def init(connection):
        await connection.set_type_codec("int8", schema="pg_catalog", encoder=str, decoder=lambda text: f"<{text}>")

    async with (
        ConnectionPool(dsn, min_size=2, max_size=2, init=init) as pool,
        pool.acquire() as one,
        pool.acquire() as two,
    ):
        assert [await one.fetchval("SELECT 1::int8"), await two.fetchval("SELECT 2::int8")] == ["<1>", "<2>"]


async def test_an_init_that_fails_is_a_failed_connection(dsn):
    async def init(connection):
        await connection.execute("SELECT 1 / 0")

    with pytest.raises(PoolUnhealthy, match="division by zero"):
        await ConnectionPool(dsn, min_size=1, max_size=1, init=init).open()


async def test_an_idle_connection_is_checked_before_it_is_lent_and_a_fresh_one_is_not(dsn, clock, admin):
    options = {"check_after": 1.0, "clock": clock, "server_settings": {"application_name": "checked"}}
    last = "SELECT query FROM pg_stat_activity WHERE application_name = 'checked'"
    async with ConnectionPool(dsn, min_size=1, max_size=1, **options) as pool:
        async with pool.acquire():
            pass
        async with pool.acquire():
            assert "RESET ALL" in await admin.fetchval(last)
        clock.advance(1.0)
        async with pool.acquire():
            assert await admin.fetchval(last) == "SELECT 1"


async def test_a_connection_is_replaced_before_its_lifetime_ends_and_never_lent_after_it(dsn, clock, until):
    options = {
        "max_lifetime": 100.0,
        "max_idle": 1e9,
        "check_after": 1e9,
        "housekeeping_interval": 3600,
        "clock": clock,
    }
    async with ConnectionPool(dsn, min_size=4, max_size=4, **options) as pool:
        clock.advance(89.0)
        pool.maintain()
        assert pool.stats().closed[CloseReason.LIFETIME] == 0
        clock.advance(5.0)
        pool.maintain()
        # Jitter spreads the replacements over the last tenth. Some connections may have been replaced by now.
        clock.advance(6.0)
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        await until(lambda: pool.stats().closed[CloseReason.LIFETIME] == 4 or (pool.maintain() or False))
        await until(lambda: pool.stats().idle == 4)
        assert pool.stats().opened == 8


async def test_lifetimes_end_at_different_times_within_their_last_tenth(dsn, clock, until):
    options = {"max_lifetime": 100.0, "max_idle": 1e9, "check_after": 1e9, "housekeeping_interval": 3600}
    async with ConnectionPool(dsn, min_size=4, max_size=4, clock=clock, **options) as pool:
        clock.advance(90.0)
        replaced = []
        for _ in range(100):
            pool.maintain()
            await until(lambda: pool.stats().size == 4)
            replaced.append(pool.stats().closed[CloseReason.LIFETIME])
            clock.advance(0.1)
        assert replaced[0] == 0
        assert replaced[-1] >= 3
        assert len(set(replaced)) >= 3


async def test_an_old_connection_serves_until_its_successor_is_there(dsn, clock, until, opened):
    slow = asyncio.Event()
    slow.set()

    async def init(connection):
        await slow.wait()
        await opened(connection)

    options = {"max_lifetime": 100.0, "check_after": 1e9, "housekeeping_interval": 3600, "init": init, "clock": clock}
    async with ConnectionPool(dsn, min_size=2, max_size=4, **options) as pool:
        old = set(opened.pids())
        slow.clear()
        clock.advance(99.99)
        lent = await pool.acquire()
        for _ in range(2):
            pool.maintain()
            await asyncio.sleep(0)
        # A lent connection is replaced as well, and may be lent again until its successor is open.
        assert (pool.stats().size, pool.stats().connecting) == (2, 2)
        await pool.release(lent)
        for _ in range(3):
            async with pool.acquire(timeout=0) as connection:
                assert connection.get_server_pid() in old
        slow.set()
        await until(lambda: pool.stats().size == 4)
        pool.maintain()
        assert pool.stats().closed[CloseReason.LIFETIME] == 2
        await until(lambda: pool.stats().size == 2)
        pool.maintain()
        assert (pool.stats().size, pool.stats().connecting, pool.stats().opened) == (2, 0, 4)
        await until(lambda: old.isdisjoint(opened.pids()))


async def test_connections_count_until_they_are_closed_gracefully(victim, until, opened):
    async with ConnectionPool(victim.dsn, min_size=2, max_size=2, close_timeout=0.4, init=opened) as pool:
        victim.freeze_sessions(*opened.pids())
        pool.drain()
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.1)
        assert (pool.stats().size, pool.stats().connecting) == (0, 0)
        async with pool.acquire(timeout=5) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        victim.thaw()


async def test_housekeeping_happens_by_itself(dsn, clock, until):
    async with ConnectionPool(dsn, min_size=1, max_size=4, housekeeping_interval=0.01, clock=clock) as pool:
        await pool.warm(4)
        clock.advance(601.0)
        await until(lambda: pool.stats().size == 1)


async def test_connections_that_nobody_needs_are_closed_down_to_min_size(dsn, clock):
    async with ConnectionPool(
        dsn, min_size=1, max_size=4, max_idle=60.0, housekeeping_interval=3600, clock=clock
    ) as pool:
        await pool.warm(4)
        assert pool.stats().idle == 4
        clock.advance(59.0)
        pool.maintain()
        assert pool.stats().size == 4
        clock.advance(1.0)
        pool.maintain()
        assert pool.stats().size == 1
        assert pool.stats().closed[CloseReason.IDLE] == 3


async def test_a_connection_that_is_kept_too_long_is_reported_once_with_where_it_was_acquired(dsn, clock, caplog):
    options = {"leak_threshold": 30.0, "housekeeping_interval": 3600, "clock": clock}
    async with ConnectionPool(dsn, min_size=1, max_size=2, **options) as pool:

        async def forgetful():
            return await pool.acquire()

        connection = await forgetful()
        clock.advance(29.0)
        pool.maintain()
        assert pool.stats().leaks == 0
        clock.advance(1.0)
        pool.maintain()
        pool.maintain()
        assert pool.stats().leaks == 1
        [record] = [record for record in caplog.records if "acquired at" in record.message]
        assert f"{__file__}:" in record.message
        assert "forgetful" in record.message.splitlines()[1]
        await pool.release(connection)


async def test_a_pool_is_resized_while_it_is_used(dsn, until):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire():
            second = asyncio.ensure_future(pool.acquire())
            await asyncio.sleep(0)
            pool.resize(2, 3)
            await pool.release(await asyncio.wait_for(second, 5))
        await until(lambda: pool.stats().idle >= 2)
        one, two = await pool.acquire(), await pool.acquire()
        pool.resize(1, 1)
        assert pool.stats().size == 2
        await pool.release(one)
        await pool.release(two)
        assert pool.stats().size == 1
        with pytest.raises(ValueError, match="sizes"):
            pool.resize(2, 1)


async def test_a_lower_minimum_lowers_the_size_that_is_kept(dsn, clock):
    async with ConnectionPool(dsn, min_size=4, max_size=8, housekeeping_interval=3600, clock=clock) as pool:
        pool.resize(1, 8)
        clock.advance(601.0)
        pool.maintain()
        assert (pool.stats().size, pool.stats().target_size) == (1, 1)


async def test_draining_replaces_every_connection_including_lent_ones_when_they_come_back(dsn, until):
    async with ConnectionPool(dsn, min_size=3, max_size=3) as pool:
        connection = await pool.acquire()
        old = connection.get_server_pid()
        pool.drain()
        assert await connection.fetchval("SELECT 1") == 1
        await pool.release(connection)
        await until(lambda: pool.stats().idle == 3)
        assert pool.stats().closed[CloseReason.DRAINED] == 3
        assert pool.stats().opened == 6
        async with pool.acquire() as connection:
            assert connection.get_server_pid() != old


async def test_optimize_follows_demand_within_bounds_and_says_what_it_did(dsn, until):
    async with ConnectionPool(dsn, min_size=2, max_size=10) as pool:
        held = [await pool.acquire() for _ in range(4)]
        grown = pool.optimize()
        assert (grown.demand, grown.old_target_size, grown.target_size) == (4, 2, 5)
        assert grown.utilization == 2.0
        await until(lambda: pool.stats().size == 5)
        for connection in held:
            await pool.release(connection)
        pool.optimize()
        shrunk = pool.optimize()
        assert (shrunk.demand, shrunk.target_size, shrunk.closed) == (0, 2, 3)
        assert pool.stats().size == 2


async def test_a_check_does_not_count_as_demand_and_the_bounds_of_optimize_hold(dsn, clock):
    async with ConnectionPool(dsn, min_size=4, max_size=5, clock=clock) as pool:
        clock.advance(1.0)
        held = await asyncio.gather(*(asyncio.ensure_future(pool.acquire()) for _ in range(3)))
        done = pool.optimize()
        assert (done.demand, done.target_size) == (3, 4)
        held += await asyncio.gather(*(asyncio.ensure_future(pool.acquire()) for _ in range(2)))
        assert (pool.optimize().demand, pool.stats().target_size) == (5, 5)
        for connection in held:
            await pool.release(connection)
    assert pool.optimize() == PoolOptimization(0, 0.0, 5, 5, 0, 0)


async def test_another_event_loop_is_refused_without_effect_on_the_pool(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        lease = await pool.acquire()

        async def elsewhere():
            for call in (pool.acquire, lambda: pool.release(lease), pool.health, pool.close, lambda: pool.warm(1)):
                with pytest.raises(PoolError, match="another event loop or process"):
                    await call()
            for call in (pool.drain, lambda: pool.resize(1, 2), pool.maintain, pool.optimize):
                with pytest.raises(PoolError, match="another event loop or process"):
                    call()

        await asyncio.to_thread(asyncio.run, elsewhere())
        await pool.release(lease)
        async with pool.acquire(timeout=5) as connection:
            assert await connection.fetchval("SELECT 1") == 1


FORKED = """
import asyncio, os, sys
from acgsperf import ConnectionPool, PoolError

async def use(pool):
    async with pool.acquire(timeout=1) as connection:
        return await connection.fetchval("SELECT 1")

async def refused(pool):
    for call in (lambda: use(pool), pool.close):
        try:
            await call()
        except PoolError as error:
            assert "another event loop or process" in str(error)
        else:
            return 1
    return 0

async def main():
    async with ConnectionPool(sys.argv[1], min_size=1, max_size=1) as pool:
        await use(pool)
        child = os.fork()
        if child == 0:
            # A new loop, as in a worker: the running one belongs to the parent.
            asyncio.events._set_running_loop(None)
            os._exit(asyncio.new_event_loop().run_until_complete(refused(pool)))
        assert os.waitpid(child, 0)[1] == 0
        assert await use(pool) == 1

asyncio.run(main())
"""


def test_a_forked_process_is_refused_and_its_parent_goes_on(dsn):
    done = subprocess.run([sys.executable, "-c", FORKED, dsn], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_an_init_that_was_cancelled_from_inside_is_tried_again(dsn):
    attempts = []

    async def init(connection):
        attempts.append(connection)
        if len(attempts) <= 2:
            raise asyncio.CancelledError

    async with ConnectionPool(dsn, min_size=0, max_size=2, init=init) as pool:
        async with pool.acquire(timeout=5) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert (pool.stats().connecting, pool.stats().failed_connects) == (0, 2)


async def raise_cancelled(connection):
    raise asyncio.CancelledError


async def cancel_and_wait(connection):
    asyncio.current_task().cancel()
    await asyncio.sleep(30)


async def cancel_and_query(connection):
    asyncio.current_task().cancel()
    await connection.execute("SELECT 1")


async def cancel_twice(connection):
    asyncio.current_task().cancel()
    try:
        await asyncio.sleep(30)
    finally:
        asyncio.current_task().cancel()
        await asyncio.sleep(30)


async def cancel_and_return(connection):
    asyncio.current_task().cancel()


@pytest.mark.parametrize("init", [raise_cancelled, cancel_and_wait, cancel_and_query, cancel_twice, cancel_and_return])
@pytest.mark.parametrize("min_size", [0, 1])
async def test_an_init_that_cancels_itself_fails_at_once(dsn, init, min_size, until):
    before = asyncio.all_tasks()
    pool = ConnectionPool(dsn, min_size=min_size, max_size=2, init=init, connect_timeout=10)
    start = time.monotonic()
    if min_size:
        with pytest.raises(PoolUnhealthy, match="init cancelled its own task"):
            await pool.open()
    else:
        await pool.open()
        with pytest.raises(PoolUnhealthy, match="init cancelled its own task"):
            await pool.acquire()
    assert time.monotonic() - start < 2
    assert (pool.stats().size, pool.stats().opened) == (0, 0)
    await pool.close()
    assert asyncio.all_tasks() == before


async def test_a_pool_that_was_made_smaller_lets_callers_wait(dsn):
    async with ConnectionPool(dsn, min_size=0, max_size=4, max_waiting=1) as pool:
        leases = [await pool.acquire() for _ in range(4)]
        pool.resize(0, 1)
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.02)
        for lease in leases:
            await pool.release(lease)


async def test_callers_whose_connections_were_lost_at_once_wait_in_their_old_order(dsn, opened):
    options = {"min_size": 4, "max_size": 4, "reset": False, "init": opened}
    served = []

    async def borrow(pool, number):
        async with pool.acquire(timeout=10):
            served.append(number)

    async with ConnectionPool(dsn, **options) as pool:
        leases = [await pool.acquire() for _ in range(4)]
        callers = [asyncio.create_task(borrow(pool, number)) for number in range(6)]
        await asyncio.sleep(0.01)
        for lease in leases:
            # Without a reset, a release hands the connection over at once. All are closed before a caller runs.
            await pool.release(lease)
        for connection in list(opened):
            connection.terminate()
        await asyncio.gather(*callers)
    assert served == list(range(6))


async def test_a_context_is_entered_once_at_a_time(dsn):
    async with ConnectionPool(dsn, min_size=2, max_size=2) as pool:
        context = pool.acquire()
        async with context:
            with pytest.raises(PoolError, match="call acquire"):
                await context.__aenter__()
        async with context as connection:
            assert await connection.fetchval("SELECT 1") == 1
        leases = [await pool.acquire() for _ in range(2)]
        context = pool.acquire()
        entering = [asyncio.create_task(context.__aenter__()) for _ in range(2)]
        await asyncio.sleep(0.01)
        for lease in leases:
            await pool.release(lease)
        answers = await asyncio.gather(*entering, return_exceptions=True)
        assert isinstance(answers[1], PoolError)
        await context.__aexit__(None, None, None)
        assert pool.stats().in_use == 0


@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError])
async def test_a_caller_whose_deadline_passed_does_not_wait_for_the_reset(victim, error):
    async with ConnectionPool(victim.dsn, min_size=1, max_size=1) as pool:
        start = time.monotonic()
        context = pool.acquire()
        await context.__aenter__()
        victim.freeze()
        await context.__aexit__(error, error(), None)
        assert time.monotonic() - start < 1.0
        victim.thaw()


async def test_statistics_count_what_happened(dsn):
    async with ConnectionPool(dsn, min_size=2, max_size=4) as pool:
        async with pool.acquire(), pool.acquire():
            stats = pool.stats()
            assert (stats.size, stats.idle, stats.in_use, stats.utilization) == (2, 0, 2, 0.5)
        stats = pool.stats()
        assert (stats.opened, stats.wait.count, stats.use.count) == (2, 2, 2)
        assert stats.use.max > 0
        async with pool.acquire(), pool.acquire(), pool.acquire():
            assert pool.stats().wait.max > 1_000_000 / 100


async def test_a_closed_pool_refuses_new_and_waiting_callers(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=1)
    with pytest.raises(PoolClosed, match="not open"):
        await pool.acquire()
    await pool.open()
    connection = await pool.acquire()
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    closing = asyncio.create_task(pool.close())
    with pytest.raises(PoolClosed):
        await waiting
    assert not closing.done()
    assert await connection.fetchval("SELECT 1") == 1
    await pool.release(connection)
    await closing
    await pool.close()
    with pytest.raises(PoolClosed, match="is closed"):
        await pool.acquire()


async def test_closing_waits_for_borrowers_until_its_timeout(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=1, name="impatient")
    await pool.open()
    connection = await pool.acquire()
    await pool.close(0.01)
    assert pool.stats().size == 0
    with pytest.raises(asyncpg.InterfaceError):
        await connection.fetchval("SELECT 1")
    await pool.release(connection)


async def test_a_borrower_may_close_the_connection(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.close()
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert pool.stats().closed[CloseReason.LOST] == 1


async def test_a_pool_that_was_closed_is_not_kept_alive(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        pass
    reference = weakref.ref(pool)
    del pool
    # The last callbacks of its tasks run.
    await asyncio.sleep(0)
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    "form", ["postgresql://ann:s3cr3t@nowhere.invalid/db", "postgresql://ann@nowhere.invalid/db?password=s3cr3t"]
)
async def test_a_password_is_shown_nowhere(form, caplog):
    caplog.set_level(logging.DEBUG)
    pool = ConnectionPool(form, min_size=1, max_size=1)
    with pytest.raises(PoolUnhealthy) as refused:
        await pool.open()
    assert "s3cr3t" not in f"{pool!r} {pool} {refused.value} {pool.stats()} {await pool.health()} {caplog.text}"


@pytest.mark.parametrize("password", ["o", "db", "role", "postgres"])
async def test_a_short_password_is_not_revealed_by_hiding_it_in_a_message_of_the_server(dsn, password):
    path = urlsplit(dsn)._replace(path="/nowhere-to-go").geturl()
    pool = ConnectionPool(path, min_size=1, max_size=1, password=password)
    with pytest.raises(PoolUnhealthy) as refused:
        await pool.open()
    assert 'InvalidCatalogNameError: database "nowhere-to-go" does not exist' in str(refused.value)
    assert "***" not in str(refused.value)


async def test_the_text_of_an_error_that_contains_the_password_is_not_shown(dsn):
    async def init(connection):
        raise ValueError("cannot do that with s3cr3t")

    pool = ConnectionPool(dsn, min_size=1, max_size=1, password="s3cr3t", init=init)
    with pytest.raises(PoolUnhealthy, match=r"ValueError: \(not shown because it contains the password\)$"):
        await pool.open()


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("postgresql://ann:s3cr3t@localhost:1/db", "localhost:1"),
        ("postgresql://ann@localhost:1,localhost:2/db", "localhost:1, localhost:2"),
        ("postgresql://ann@[::1]:1/db", "[::1]:1"),
        ("postgresql:///db?host=/nowhere/at/all", "unix:/nowhere/at/all"),
        ("postgresql:///db?host=/nowhere/at/all&port=1", "unix:/nowhere/at/all/.s.PGSQL.1"),
        ("postgresql://%2Fnowhere/db", "unix:/nowhere"),
        ("postgresql:///db?port=1", "the default server"),
        ("postgresql://ann:1?x=s3cr3t@localhost/db", "postgresql://***"),
    ],
)
async def test_an_error_names_the_address_of_the_server(address, where, monkeypatch):
    monkeypatch.delenv("PGHOST", raising=False)
    pool = ConnectionPool(address, min_size=1, max_size=1)
    with pytest.raises(PoolUnhealthy, match=rf"^pool 'default' cannot reach {re.escape(where)}: "):
        await pool.open()


@pytest.mark.parametrize(
    "options",
    [
        {"min_size": -1},
        {"min_size": 2, "max_size": 1},
        {"min_size": 0, "max_size": 0},
        {"max_waiting": -1},
        {"timeout": 0},
        {"max_lifetime": -1},
        {"connect_timeout": float("nan")},
    ],
)
def test_options_that_are_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"must be"):
        ConnectionPool("postgresql://", **options)


def test_importing_the_package_imports_no_client_of_a_server():
    code = "import sys, acgsperf; assert not {'asyncpg', 'redis'} & sys.modules.keys(); acgsperf.ConnectionPool"
    subprocess.run([sys.executable, "-c", code], check=True)
