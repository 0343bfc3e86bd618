"""Acquire and release, with one caller and with many, compared with the pools of other libraries.

Run `pytest -s bench/test_pools.py`. Every pool resets the session on release, which is a round trip to the server and
most of the time. psycopg_pool resets after `release` returned: one caller does not notice that, but 200 callers do.
For the ratios, the contestants take turns and their medians are compared: the clock of a shared machine drifts, but a
ratio stays.
"""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

import asyncpg
import pytest
from psycopg_pool import AsyncConnectionPool

from acgsperf import ConnectionPool
from acgsperf.workbench.embedded import embedded_servers

ROUNDS = 20
CALLS = 200
CONTESTANTS = ["acgsperf", "asyncpg.Pool", "psycopg_pool"]


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def pools(loop):
    async def open_all(stack, dsn):
        async def reset(connection):
            # The same statements as asyncpg.
            await connection.execute("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL")

        sizes = {"min_size": 5, "max_size": 10}
        psycopg = AsyncConnectionPool(dsn, **sizes, open=False, reset=reset, kwargs={"autocommit": True})
        return {
            "acgsperf": await stack.enter_async_context(ConnectionPool(dsn, **sizes)),
            "asyncpg.Pool": await stack.enter_async_context(asyncpg.create_pool(dsn, **sizes)),
            "psycopg_pool": await stack.enter_async_context(psycopg),
        }

    with embedded_servers(redis=False) as servers:
        stack = AsyncExitStack()
        opened = loop.run(open_all(stack, servers.database_url))
        yield opened
        loop.run(stack.aclose())


def borrow(pool):
    return pool.connection() if isinstance(pool, AsyncConnectionPool) else pool.acquire()


async def calls(pool, count):
    for _ in range(count):
        async with borrow(pool):
            pass


@pytest.mark.benchmark(group="acquire + release, one caller")
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_acquire_and_release(benchmark, loop, pools, contestant):
    pool = pools[contestant]
    loop.run(calls(pool, 100))
    benchmark.pedantic(lambda: loop.run(calls(pool, CALLS)), rounds=ROUNDS)


@pytest.mark.benchmark(group="200 callers over 10 connections, 2 ms of work each")
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_contention(benchmark, loop, pools, contestant):
    pool = pools[contestant]
    slowest = []

    async def crowd():
        waits = []

        async def call():
            start = time.perf_counter()
            async with borrow(pool):
                waits.append(time.perf_counter() - start)
                await asyncio.sleep(0.002)

        await asyncio.gather(*(call() for _ in range(200)))
        slowest.append(max(waits))

    benchmark.pedantic(lambda: loop.run(crowd()), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["slowest_wait_ms"] = statistics.median(slowest) * 1e3
    print(f"{contestant}: slowest wait {statistics.median(slowest) * 1e3:.1f} ms, an ideal queue 38 ms")


def test_the_medians_of_turns(loop, pools):
    """Print the ratio to `asyncpg.Pool`, with alternating turns; run with `-s`."""
    times = {name: [] for name in CONTESTANTS}

    async def turns():
        for _ in range(ROUNDS):
            for name in CONTESTANTS:
                for _ in range(CALLS):
                    start = time.perf_counter_ns()
                    async with borrow(pools[name]):
                        pass
                    times[name].append(time.perf_counter_ns() - start)

    loop.run(turns())
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name}: P50 {median / 1e3:.1f} us, {median / medians['asyncpg.Pool']:.2f} x asyncpg.Pool")
