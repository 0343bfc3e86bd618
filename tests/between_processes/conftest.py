"""Fixtures: processes with a cache, and a Redis that a test may freeze and kill."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from history.servers import RedisServer, redis_executable

from acgsperf.workbench.embedded import Servers

from .process import Process, RemoteError

TIERS = ["l2", "l3", "l2+l3"]
OpenProcess = Callable[..., Process]


@pytest.fixture(params=TIERS)
def tiers(request: pytest.FixtureRequest) -> str:
    """The lower tiers of the caches."""
    return str(request.param)


@pytest.fixture
def namespace() -> str:
    return "test-" + secrets.token_hex(4)


@pytest.fixture(scope="session")
def idle_processes() -> Iterator[list[Process]]:
    """Processes without a cache, because starting one takes longer than most tests."""
    idle: list[Process] = []
    yield idle
    for process in idle:
        process.stop()


class Used:
    """The processes of a test."""

    def __init__(self, idle: list[Process]) -> None:
        self._idle = idle
        self.processes: list[Process] = []

    def close(self) -> None:
        """Close their caches."""
        while self.processes:
            process = self.processes.pop()
            try:
                process.call("close")
            except (RemoteError, TimeoutError, OSError):
                process.stop()
                raise
            if process.clock_offset_s:
                process.stop()
            else:
                self._idle.append(process)


@pytest.fixture
def used(idle_processes: list[Process]) -> Iterator[Used]:
    """The processes of this test. A fixture that stops a server closes them first."""
    used = Used(idle_processes)
    yield used
    used.close()


@pytest.fixture
def open_process(servers: Servers, namespace: str, idle_processes: list[Process], used: Used) -> OpenProcess:
    """A function that opens a cache in a process of its own, and returns the process.

    Args:
        tiers: "l2", "l3", "l2+l3" or "".
        l1_size, l1_ttl: of L1.
        l2, l3: arguments of the tiers, such as the `url` or `dsn` of another server.
        clock_offset_s: how far the wall clock of the process is wrong.
        backplane: "default", None for no backplane, or the kind and the address of one.
        options: of the cache.
    """

    def opened(
        tiers: str,
        *,
        l1_size: int = 100,
        l1_ttl: float | None = None,
        l2: dict[str, Any] | None = None,
        l3: dict[str, Any] | None = None,
        clock_offset_s: float = 0.0,
        backplane: str | tuple[str, str] | None = "default",
        **options: Any,
    ) -> Process:
        process = idle_processes.pop() if idle_processes and not clock_offset_s else Process(clock_offset_s)
        used.processes.append(process)
        # A machine that is busy with other tests may take its time. L1 gets values at their first hit in a lower tier.
        if backplane is None:
            options["backplane"] = None
        patient = {"namespace": namespace, "deadline": 5, "promotion_threshold": 1}
        process.call(
            "open",
            l1=(l1_size, l1_ttl),
            l2={"url": str(servers.redis_url), "deadline": 5} | (l2 or {}) if "l2" in tiers else None,
            l3={"dsn": str(servers.database_url), "deadline": 5} | (l3 or {}) if "l3" in tiers else None,
            backplane={"kind": backplane[0], "url": backplane[1]} if isinstance(backplane, tuple) else None,
            options=patient | options,
        )
        return process

    return opened


@pytest.fixture
def open_watcher(open_process: OpenProcess) -> OpenProcess:
    """As `open_process`, but the process never keeps in L1 what it reads: it sees what the tiers have."""

    def opened(tiers: str, **options: Any) -> Process:
        return open_process(tiers, **{"promotion_threshold": 1_000_000} | options)

    return opened


@pytest.fixture(scope="session")
def executable() -> str:
    """The path of a Redis server."""
    return redis_executable()


@pytest.fixture
def private_redis(executable: str, used: Used) -> Iterator[RedisServer]:
    """A Redis of one test, which may freeze and kill it."""
    with RedisServer(executable) as server:
        yield server
        # A killed one has been waited for.
        with suppress(ProcessLookupError):
            server.thaw()
        used.close()


@pytest.fixture
def redis_client(servers: Servers) -> Iterator["redis.Redis"]:
    """A client of the Redis that all tests share."""
    with redis.Redis.from_url(str(servers.redis_url), protocol=2, socket_timeout=10) as client:
        yield client
