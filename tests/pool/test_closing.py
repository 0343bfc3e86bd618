"""Closing a pool while queries run."""

import asyncio
import gc
import time
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolError
from acgsperf.pool.tasks import BackgroundTasks, set_ended

TYPED = (PoolError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncio.CancelledError)
NAME = "closing"
SETTINGS = {"application_name": NAME}
RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'PgSleep'"
TERMINATE = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1"
SLEEP = "SELECT pg_sleep(60)"


class ApplicationError(Exception):
    """What ends the block of a pool in these tests."""


async def fetch(connection):
    await connection.fetchval(SLEEP)


async def execute_in_transaction(connection):
    async with connection.transaction():
        await connection.execute(SLEEP)


async def execute_many(connection):
    await connection.executemany("SELECT pg_sleep($1)", [(60,), (60,)])


async def iterate(connection):
    async with connection.transaction():
        async for _ in connection.cursor(SLEEP):
            pass


async def copy(connection):
    async def ignore(data):
        pass

    await connection.copy_from_query(SLEEP, output=ignore)


WAYS = [fetch, execute_in_transaction, execute_many, iterate, copy]


@pytest.fixture
async def noises():
    """What the event loop reports, 'never retrieved' messages among it."""
    found = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context["message"]))
    return found


@pytest.fixture
async def running(admin):
    """Return when so many queries of the pool run on the server."""

    async def wait(count):
        async with asyncio.timeout(5):
            while await admin.fetchval(RUNNING, NAME) != count:
                pass

    yield wait
    await admin.execute(TERMINATE, NAME)


async def use(pool, way, readonly=False):
    async with pool.acquire(readonly=readonly) as connection:
        await way(connection)


def open_descriptors():
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def collect(noises):
    for _ in range(5):
        await asyncio.sleep(0)
        gc.collect()
    assert noises == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("readonly", [False, True])
async def test_closing_cancels_the_queries_on_the_server(dsn, running, noises, way, readonly):
    options = {"min_size": 1, "max_size": 2, "server_settings": SETTINGS, "replicas": [dsn]}
    pool = ConnectionPool(dsn, **options)
    await pool.open()
    tasks = [asyncio.create_task(use(pool, way, readonly)) for _ in range(2)]
    await running(2)
    start = time.monotonic()
    await pool.close(0.01)
    assert time.monotonic() - start < 1.0
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, TYPED) for answer in answers)
    await running(0)
    del answers, tasks
    await collect(noises)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_leaving_with_an_error_after_cancelled_queries_leaves_nothing(dsn, running, noises, way, reset, turns):
    options = {"min_size": 2, "max_size": 2, "reset": reset, "server_settings": SETTINGS}
    before = asyncio.all_tasks()
    with suppress(ApplicationError):
        async with ConnectionPool(dsn, **options) as pool:
            tasks = [asyncio.create_task(use(pool, way)) for _ in range(2)]
            await running(2)
            for task in tasks:
                task.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            raise ApplicationError
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, TYPED) for answer in answers)
    await running(0)
    del answers, tasks, task
    assert asyncio.all_tasks() == before
    await collect(noises)


@pytest.mark.parametrize("reset", [False, True])
async def test_leaving_after_queries_that_timed_out_leaves_nothing(dsn, running, noises, reset):
    options = {"min_size": 1, "max_size": 1, "reset": reset, "server_settings": SETTINGS, "command_timeout": 0.05}
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with ConnectionPool(dsn, **options) as pool:
            await use(pool, fetch)
    await running(0)
    assert asyncio.all_tasks() == before
    await collect(noises)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_frozen_server_delays_closing_no_longer_than_close_timeout(victim, noises, reset):
    pool = ConnectionPool(victim.dsn, min_size=2, max_size=2, reset=reset, close_timeout=0.2)
    await pool.open()
    tasks = [asyncio.create_task(use(pool, fetch)) for _ in range(2)]
    await asyncio.sleep(0.05)
    victim.freeze()
    try:
        tasks[0].cancel()
        start = time.monotonic()
        await pool.close(0)
        assert time.monotonic() - start < 1.0
        assert pool.stats().size == 0
    finally:
        victim.thaw()
    await asyncio.gather(*tasks, return_exceptions=True)
    del tasks
    await collect(noises)


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_a_close_that_was_cancelled_can_be_repeated_and_leaves_nothing(dsn, running, noises, turns):
    before, descriptors = asyncio.all_tasks(), open_descriptors()
    pool = ConnectionPool(dsn, min_size=2, max_size=2, server_settings=SETTINGS, replicas=[dsn])
    await pool.open()
    task = asyncio.create_task(use(pool, fetch))
    await running(1)
    closing = asyncio.create_task(pool.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await pool.close(0)
    assert (pool.stats().size, pool.replicas[0].stats().size) == (0, 0)
    await asyncio.gather(task, return_exceptions=True)
    del task, closing
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert open_descriptors() <= descriptors
    await collect(noises)


async def test_a_release_ends_though_its_reset_was_cancelled_before_it_began():
    tasks, ended = BackgroundTasks(), asyncio.get_running_loop().create_future()

    async def reset():
        ended.set_result(None)

    tasks.start(reset(), ended=ended)
    await tasks.cancel_all()
    async with asyncio.timeout(1):
        await ended


async def test_a_caller_that_no_longer_waits_for_a_reset_does_not_disturb_it():
    tasks, ended = BackgroundTasks(), asyncio.get_running_loop().create_future()
    go_on = asyncio.Event()

    async def reset():
        await go_on.wait()
        set_ended(ended)

    task = tasks.start(reset(), ended=ended)
    waiting = asyncio.ensure_future(asyncio.wait_for(ended, 0.01))
    with pytest.raises(TimeoutError):
        await waiting
    go_on.set()
    await task
    assert task.exception() is None
