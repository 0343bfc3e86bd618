"""A PostgreSQL to borrow from, and a clock."""

import asyncio

import asyncpg
import pytest


async def until(condition, seconds=10.0):
    """Return when something that the pool does in the background has happened."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture(name="until")
def _until():
    return until


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def dsn(servers):
    return servers.database_url


@pytest.fixture
async def admin(dsn):
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()
