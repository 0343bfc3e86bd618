"""Every tier, on a server that all tests share or on one that a test may freeze and kill."""

import asyncio
import os
import re
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from acgsperf.tiers import Entry
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.server import ServerTier
from acgsperf.workbench.embedded import Servers, embedded_servers

MakeTier = Callable[..., ServerTier]
KINDS = ["redis", "postgres"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, servers: Servers) -> MakeTier:
    def make_tier(**options: object) -> ServerTier:
        if kind == "redis":
            return RedisTier(str(servers.redis_url), **options)  # type: ignore[arg-type]
        return PostgresTier(str(servers.database_url), **options)  # type: ignore[arg-type]

    return make_tier


@pytest.fixture
def namespace() -> str:
    return "test-" + secrets.token_hex(4)


@pytest.fixture
async def tier(make: MakeTier, namespace: str) -> AsyncIterator[ServerTier]:
    # A machine that is busy with other tests may take its time.
    tier = make(deadline=5)
    await tier.open(namespace)
    yield tier
    await tier.clear()
    await tier.close()


@pytest.fixture
def entry() -> Callable[..., Entry]:
    def make_entry(value: object = "v", *, kept: float | None = 60, tags: tuple[str, ...] = ()) -> Entry:
        now = time.monotonic()
        return Entry(value, now, now + 10, None if kept is None else now + kept, tags)

    return make_entry


@dataclass
class PrivateServer:
    """A server of one test."""

    kind: str
    url: str
    folder: Path

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for pid in self._pids():
            # Some come and go by themselves.
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """The server, and for PostgreSQL the sessions: what has our directory for its own, or is a child of that."""
        found = [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and str(self.folder).encode() in _read(process / "cmdline")
        ]
        children = [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit()
            and (parent := re.search(rb"PPid:\s+(\d+)", _read(process / "status")))
            and int(parent[1]) in found
        ]
        return list(dict.fromkeys([*found, *children]))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def private_server(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateServer]:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with ExitStack() as stack:
        found = stack.enter_context(embedded_servers(redis=kind == "redis", postgres=kind == "postgres"))
        url = str(found.redis_url or found.database_url)
        parts = urlsplit(url)
        # The socket's directory, or PostgreSQL's, is inside the one that the server's command line names.
        folder = Path(parts.path if kind == "redis" else parse_qs(parts.query)["host"][0])
        while not folder.name.startswith("acgs-"):
            folder = folder.parent
        server = PrivateServer(kind, url, folder)
        stack.callback(server.thaw)
        yield server


async def _until_it_answers(tier: ServerTier) -> None:
    async with asyncio.timeout(20):
        while True:
            if (await tier.health()).ok:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def until_it_answers() -> Callable[[ServerTier], Awaitable[None]]:
    return _until_it_answers


@pytest.fixture
async def private_tier(private_server: PrivateServer) -> AsyncIterator[ServerTier]:
    tier = {"redis": RedisTier, "postgres": PostgresTier}[private_server.kind](private_server.url, deadline=0.25)
    await tier.open("private")
    await _until_it_answers(tier)
    yield tier
    await tier.close()
