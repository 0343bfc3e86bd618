"""Servers whose roles change: what a failover does to them."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from acgsperf.testing.server_processes import PrivateRedis
from acgsperf.tiers import Entry
from topology.postgres_servers import Replicated

MakeRedis = Callable[..., PrivateRedis]


@pytest.fixture
def namespace() -> str:
    return "test-" + secrets.token_hex(4)


@pytest.fixture
def entry() -> Callable[..., Entry]:
    def make_entry(value: object = "v", *, tags: tuple[str, ...] = ()) -> Entry:
        now = time.monotonic()
        return Entry(value, now, now + 10, now + 60, tags)

    return make_entry


@pytest.fixture
def start_redis(scratch: Path) -> Iterator[MakeRedis]:
    """Start a private Redis with some options; it is stopped at the end."""
    with ExitStack() as stack:
        count = 0

        def start(*options: str) -> PrivateRedis:
            nonlocal count
            count += 1
            folder = scratch / str(count)
            folder.mkdir()
            server = PrivateRedis(folder, options)
            stack.callback(server.stop)
            server.start()
            server.wait(lambda: None)
            return server

        yield start


async def _until(ask: Callable[[], Awaitable[object]], seconds: float = 10) -> float:
    """Repeat a question until the answer is true; return how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not await ask():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return time.monotonic() - began


@pytest.fixture
def until() -> Callable[..., Awaitable[float]]:
    return _until


@pytest.fixture(scope="module")
def replicated() -> Iterator[Replicated]:
    """A PostgreSQL with a streaming standby, which stay what they are."""
    yield from _replicated()


@pytest.fixture
def promotable() -> Iterator[Replicated]:
    """A PostgreSQL with a streaming standby, of one test."""
    yield from _replicated()


def _replicated() -> Iterator[Replicated]:
    with ExitStack() as stack:
        # As `scratch`, which belongs to one test.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        servers = Replicated(folder)
        stack.callback(servers.stop)
        servers.start()
        yield servers
