"""One event loop after the other, and several at the same time in threads, on one namespace."""

import asyncio
import gc
import logging
import secrets
import threading
from pathlib import Path

import pytest

from acgsperf import ConnectionPool, LRUCache, TieredCache
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

THREADS = 8
RUNS = [pytest.param(10, id="short"), pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
# A lookup thread and what the first loop leaves for the following ones.
FIRST = 2


async def _use(servers, namespace, number):
    """Open everything, write and read, and close it."""
    l2, l3 = RedisTier(servers.redis_url, deadline=10), PostgresTier(servers.database_url, deadline=10)
    async with (
        ConnectionPool(servers.database_url, min_size=1, max_size=2) as pool,
        TieredCache(LRUCache(10), l2, l3, namespace=namespace, deadline=20) as cache,
    ):
        key = f"{threading.get_ident()}"
        assert (await cache.set(key, number)).everywhere
        assert await cache.get(key) == number

        async def load(key):
            return [key, number]

        assert (await cache.get_or_load("shared", load))[0] == "shared"
        assert (await cache.delete("shared")).everywhere
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT $1::int", number) == number


def _descriptors():
    gc.collect()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.mark.parametrize("runs", RUNS)
def test_one_event_loop_after_the_other_leaves_nothing(servers, runs, caplog):
    namespace = "loops-" + secrets.token_hex(4)
    left = set()
    for number in range(runs):
        asyncio.run(_use(servers, namespace, number))
        if number >= FIRST:
            left.add((threading.active_count(), _descriptors()))
    assert len(left) == 1, left
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("runs", RUNS)
def test_event_loops_in_threads_do_not_disturb_each_other(servers, runs, caplog):
    namespace = "loops-" + secrets.token_hex(4)
    asyncio.run(_use(servers, namespace, 0))
    before = threading.active_count(), _descriptors()
    errors = []

    def run():
        try:
            for number in range(-(-runs // THREADS)):
                asyncio.run(_use(servers, namespace, number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (threading.active_count(), _descriptors()) == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
