"""What all tests share: a clock, servers (private unless REDIS_URL and DATABASE_URL name others), and one to kill."""

import asyncio
import gc
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen  # noqa: TC003
from typing import Final, Self

import pytest

from acgsperf.testing.server_processes import PrivatePostgres
from acgsperf.workbench.embedded import Servers, embedded_servers

# A shell lets its background jobs ignore SIGINT, and so do the commands that they start and that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave what the former tests have left in memory out of garbage collections.

    The collected tests, the reports of thousands of tests, and the garbage of a test with 10,000 callers would take up
    to 0.4 s for each collection, and delay callers. An application can do the same when it has started. What a pause
    costs a caller has tests of its own.
    """
    gc.collect()
    gc.freeze()


# The modules that take the longest, in that order.
LONGEST = [
    "history/test_modes.py",
    "test_installing.py",
    "test_cli.py",
    "workbench/test_replay_processes.py",
    "faults/test_replies.py",
    "test_docs.py",
    "core/test_leaks.py",
    "testing/test_embedded.py",
    "pool/test_full_pools.py",
    "core/test_interruptions.py",
    "cache/test_servers.py",
    "between_processes/test_slow_loads.py",
    "faults/test_week.py",
    "core/test_memory.py",
    "model/test_model.py",
    "core/test_lru_model.py",
    "tiers/test_sizes.py",
    "between_processes/test_backplane.py",
    "topology/test_cluster_hard.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes the longest, so that no parallel process is left with it at the end."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


class Clock:
    """A clock that moves only when a test advances it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Victim:
    """A private PostgreSQL that a test may freeze, kill and start again."""

    def __init__(self, folder: Path) -> None:
        self._server = PrivatePostgres(folder)
        self.dsn = self._server.url
        self._server.start(lambda: None)

    @property
    def _process(self) -> "Popen[bytes]":
        assert self._server.process is not None
        return self._server.process

    def _signal(self, number: int) -> None:
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in [pid, *map(int, children)]:
            # Some end by themselves.
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self) -> None:
        """As `kill -9` of every process of the server does."""
        self._signal(signal.SIGKILL)
        self._process.wait(10)

    def start(self) -> None:
        """Return when the server accepts connections after a kill."""
        self._server.start(lambda: None)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def freeze_postmaster(self) -> None:
        """No new connections are accepted; existing ones continue."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def freeze_sessions(self, *pids: int) -> None:
        """These sessions do not answer any more; the server accepts new connections."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        # A test that has failed may have left it frozen, or dead.
        with suppress(OSError):
            self.thaw()
        self._server.stop()


class Stopwatch:
    """How late callers were answered, and for how much of that time the machine kept this thread from running.

    Time in which this thread computed does not count as such.
    """

    TICK_S: Final = 0.001
    # Timers and schedulers need that much anyway.
    STALL_S: Final = 0.002

    def __init__(self) -> None:
        self.slowest = self.stalled = 0.0
        self._callers: list[asyncio.Task[object]] = []

    def start(self, call: Coroutine[object, object, object]) -> None:
        self._callers.append(asyncio.create_task(self._time(call)))

    async def finish(self) -> list[object]:
        """The answers, in the order in which their calls were started."""
        return await asyncio.gather(*self._callers)

    async def _time(self, call: Coroutine[object, object, object]) -> object:
        began = time.perf_counter()
        answer = await call
        self.slowest = max(self.slowest, time.perf_counter() - began)
        return answer

    async def __aenter__(self) -> Self:
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            began, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(self.TICK_S)
            late = time.perf_counter() - began - (time.thread_time() - computed) - self.TICK_S
            self.stalled += late if late > self.STALL_S else 0.0


def processes_using(folder: Path) -> list[bytes]:
    """The command lines of the live processes that name a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if os.fsencode(folder) in command:
                found.append(command)
    return found


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for private servers, which run as another user if the tests run as root.

    In `tmp_path` they could lose access: pytest closes its directory to other users whenever another run starts.
    """
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def check_nothing_left() -> Callable[[Path], None]:
    """Fail if a folder still has directories of private servers, or processes that use them."""

    def check(folder: Path) -> None:
        assert list(folder.glob("acgs-*")) == []
        assert processes_using(folder) == []

    return check


@pytest.fixture
async def stopwatch() -> AsyncIterator[Stopwatch]:
    async with Stopwatch() as running:
        yield running


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with embedded_servers() as running:
        yield running


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with tempfile.TemporaryDirectory(prefix="acgs-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Victim(Path(folder))
        yield server
        server.stop()


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch, servers: Servers) -> None:
    """As if this process's cache, pools and service had not been created yet under their former names."""
    monkeypatch.setenv("REDIS_URL", str(servers.redis_url))
    # By name, because the core's tests run where the clients are not installed.
    monkeypatch.setattr("acgsperf.compat.ultra_fast_cache._cache.instance", None)
    monkeypatch.setattr("acgsperf.compat.ultra_fast_connection_pool._manager.instance", None)
    monkeypatch.setattr("acgsperf.compat.performance_integration_service._service.instance", None)


@pytest.fixture
async def service(fresh_process: None) -> AsyncIterator[object]:
    """The service of this process under its former names; its entries are removed at the end."""
    from acgsperf.compat.performance_integration_service import get_performance_service

    service = await get_performance_service()
    yield service
    await service.cache.clear_all()
    await service.close()
