"""A PostgreSQL server for the tests of the pool, a clock, and a record of the connections that a pool opens."""

import asyncio

import asyncpg
import pytest


async def until(condition, seconds=10.0):
    """Return when the condition is true; the pool works in the background meanwhile."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Clock:
    """A clock that a test advances."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class Opened(list):
    """The connections that a pool has opened: pass it as `init`."""

    async def __call__(self, connection):
        self.append(connection)

    def pids(self):
        """The server's processes of the connections that are open."""
        return [connection.get_server_pid() for connection in self if not connection.is_closed()]


@pytest.fixture
def opened():
    return Opened()


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
