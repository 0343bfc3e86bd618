"""A listener that notes what it is told, backplanes on real servers, and a Redis to kill and start again."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from acgsperf.backplane import Backplane
from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.testing.server_processes import PrivateRedis
from acgsperf.tiers.records import Record, RecordKind, texts
from acgsperf.workbench.embedded import Servers


class Recorder:
    """A listener that keeps everything."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.times: list[float] = []
        self.until = 0.0
        self.misses = 0
        self.fail: Exception | None = None

    def apply(self, record: Record) -> None:
        self.records.append(record)
        self.times.append(time.monotonic())
        if self.fail is not None:
            raise self.fail

    def extend(self, until: float) -> None:
        self.until = until

    def missed(self) -> None:
        self.misses += 1

    @property
    def keys(self) -> list[str]:
        """The keys of all records of keys."""
        return [key for record in self.records if record.kind is RecordKind.KEYS for key, _ in texts(record.items)]

    @property
    def leased(self) -> bool:
        return time.monotonic() < self.until


async def _until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Waits until a condition holds."""
    return _until


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def namespace() -> str:
    return "test-" + secrets.token_hex(4)


@pytest.fixture
def keys() -> Callable[..., Record]:
    """Makes a record of keys."""
    return lambda *names: Record(RecordKind.KEYS, tuple((name.encode(), b"12345678") for name in names))


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Awaitable[Recorder]]]:
    """Opens backplanes; returns what the cache of each is told."""
    backplanes: list[Backplane] = []

    async def open_backplane(backplane: Backplane, namespace: str, writer: bytes | None = None) -> Recorder:
        listener = Recorder()
        backplanes.append(backplane)
        await backplane.open(namespace, listener, writer or secrets.token_bytes(8))
        return listener

    yield open_backplane
    for backplane in backplanes:
        await backplane.close()


@pytest.fixture
def redis_url(servers: Servers) -> str:
    return str(servers.redis_url)


@pytest.fixture
def redis(redis_url: str) -> Callable[..., RedisBackplane]:
    return lambda **options: RedisBackplane(redis_url, **options)


class RedisVictim:
    """A private Redis that a test may freeze, kill and start again, empty."""

    def __init__(self, folder: Path) -> None:
        self._server = PrivateRedis(folder)
        self.url = self._server.url
        self._socket = folder / "redis.sock"

    def start(self) -> None:
        self._server.start()
        self._server.wait(lambda: None)

    def _signal(self, number: int) -> None:
        assert self._server.process is not None
        os.kill(self._server.process.pid, number)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._server.process is not None
        self._server.process.wait(10)
        self._server.process = None
        # A killed server leaves it.
        with suppress(FileNotFoundError):
            self._socket.unlink()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._server.process is not None:
            self.thaw()
        self._server.stop()


@pytest.fixture
def redis_victim(scratch: Path) -> Iterator[RedisVictim]:
    server = RedisVictim(scratch)
    yield server
    server.stop()


@pytest.fixture
def dsn(servers):
    return str(servers.database_url)


@pytest.fixture
async def connection(dsn):
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def table(connection):
    name = f"c_{secrets.token_hex(4)}"
    yield name
    for suffix in ("", "_tags", "_log"):
        await connection.execute(f"DROP TABLE IF EXISTS {name}_v2{suffix}")


@pytest.fixture
def postgres(dsn, table):
    return lambda **options: PostgresBackplane(dsn, **{"table": table, **options})
