"""Fixtures: a namespace and a store on a real PostgreSQL, and synthetic weeks."""

import math
import random
import secrets
import time

import asyncpg
import pytest

from acgsperf import LatencyHistogram
from acgsperf.trends.store import TrendStore

HOUR = 3600


@pytest.fixture
def namespace():
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
async def store(servers, namespace):
    async with TrendStore(servers.database_url, namespace, timeout=60) as opened:
        yield opened


class Writer:
    """Writes rows of any age, which the store would refuse, and reads what is stored."""

    def __init__(self, connection, namespace):
        self._connection, self._namespace = connection, namespace

    async def write(self, *rows):
        """Each row: hour, version, instance, failed, violations, missed, latency."""
        await self._connection.executemany(
            "INSERT INTO acgsperf_trends_v1 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            [(self._namespace, *row) for row in rows],
        )

    async def rows(self):
        return await self._connection.fetch(
            "SELECT hour, version, instance, failed, violations, missed, latency FROM acgsperf_trends_v1"
            " WHERE namespace = $1 ORDER BY hour, version, instance",
            self._namespace,
        )

    async def execute(self, statement):
        await self._connection.execute(statement)


@pytest.fixture
async def writer(servers, namespace, store):
    await store.history()
    connection = await asyncpg.connect(servers.database_url)
    # The first write creates the table.
    await store.tidy()
    yield Writer(connection, namespace)
    await connection.close()


def encoded(latencies_ns):
    latency = LatencyHistogram()
    latency.record_many(latencies_ns)
    return latency.encode()


def levels(seed, weeks=4, *, slower=0.0, slower_hours=24):
    """Yield the logarithm of the level of each hour: a daily season, a Monday peak, noise of hours and of days.

    One hour in 100 is an incident. The last hours are slower by a share.
    """
    source = random.Random(seed)
    noise = of_day = 0.0
    for hour in range(weeks * 168):
        if hour % 24 == 0:
            of_day = source.gauss(0, 0.01)
        noise = 0.3 * noise + source.gauss(0, 0.02)
        peak = 0.7 if hour % 168 in range(9, 12) else 0.0
        incident = source.uniform(0.3, 1.5) if source.random() < 0.01 else 0.0
        shift = math.log1p(slower) if hour >= weeks * 168 - slower_hours else 0.0
        yield 0.4 * math.sin(hour * math.pi / 12) + peak + of_day + noise + incident + shift


def this_hour():
    return int(time.time()) // HOUR * HOUR
