"""The servers of a run: a Redis that may be killed, and proxies that may cut connections."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self, runtime_checkable
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import redis

from acgsperf.workbench.embedded import embedded_servers

__all__ = [
    "FreezablePair",
    "Pair",
    "Postgres",
    "Proxy",
    "RedisServer",
    "Shards",
    "Starters",
    "proxied_dsn",
    "redis_executable",
]

_START_TIMEOUT_S: Final = 30.0
# Runs a server until its own standard input ends, so that no server survives its test, however that ends.
_GUARD: Final = '"$@" & read -r _; kill -KILL $!'


class Postgres(Protocol):
    """A PostgreSQL that may be killed: `Victim` of the tests' fixtures is one."""

    dsn: str

    def kill(self) -> None:
        """As `kill -9` of every process of the server does."""

    def start(self) -> None:
        """Return when the server accepts connections after a kill."""

    def freeze(self) -> None:
        """Stop every process of the server, until `thaw`."""

    def thaw(self) -> None:
        """Let the processes continue."""


class Pair(Protocol):
    """A primary and a replica that takes over: `Watched` and `Replicated` of the tests of topologies are some."""

    def position(self) -> AbstractAsyncContextManager[Callable[[], Awaitable[int]]]:
        """Return what asks the primary how far it is."""

    async def cut_replication(self) -> None:
        """Close the connection of the replica, which connects again."""

    def kill_primary(self) -> None:
        """As `kill -9` of every process of the primary does."""

    async def take_over(self) -> None:
        """Return when the replica has become the primary."""

    async def received(self) -> int:
        """Return how far the former primary was as the new one had received it."""

    async def restore(self) -> None:
        """Make the former primary a replica; return when the next failover is possible."""


@runtime_checkable
class FreezablePair(Pair, Protocol):
    """A pair whose primary may also be frozen: it does not know of its replacement when it wakes up."""

    def freeze_primary(self) -> None:
        """Stop the process of the primary, until `wake`."""

    async def wake(self) -> None:
        """Let the former primary accept writes for a moment, and then make it a replica."""


@runtime_checkable
class Shards(FreezablePair, Protocol):
    """A cluster: several pairs, of which one is chosen for each failover. Slots may move between them."""

    def choose(self, number: int) -> None:
        """Choose the pair that fails over next; any number will do."""

    async def slots(self) -> set[int]:
        """Return the slots of the pair that was chosen."""

    async def pass_on(self, slots: Sequence[int], pause_s: float) -> None:
        """Move slots from the pair that was chosen to the next one, with a pause after half of the keys of each."""


class Starters(NamedTuple):
    """Functions that start servers in a folder.

    Attributes:
        redis: starts a Redis with a replica and sentinels; returns them with the URL of the sentinels.
        postgres: starts a PostgreSQL with a standby; returns them with the DSN of both.
        cluster: starts a Redis Cluster; returns it with its URL.
    """

    redis: Callable[[Path, ExitStack], Awaitable[tuple[Pair, str]]]
    postgres: Callable[[Path, ExitStack], Awaitable[tuple[Pair, str]]]
    cluster: Callable[[Path, ExitStack], Awaitable[tuple[Shards, str]]]


def redis_executable() -> str:
    """Return the path of the embedded Redis server."""
    former = os.environ.pop("REDIS_URL", None)
    try:
        with (
            embedded_servers(postgres=False) as servers,
            redis.Redis.from_url(str(servers.redis_url), protocol=2) as client,
        ):
            return str(client.info("server")["executable"])
    finally:
        if former is not None:
            os.environ["REDIS_URL"] = former


class RedisServer:
    """A private Redis on a unix socket, which may be killed and started again.

    Args:
        executable: the path of the server.

    Attributes:
        socket: the path of its socket.
        url: its address.
    """

    def __init__(self, executable: str) -> None:
        self._executable = executable
        # Short, because the path of a unix socket may have about a hundred characters.
        self._folder = Path(tempfile.mkdtemp(prefix="acgs-history-"))
        self.socket = self._folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def client(self) -> "redis.Redis":
        """Return a client, which the caller closes."""
        return redis.Redis.from_url(self.url, protocol=2, socket_timeout=10)

    def start(self) -> None:
        """Start the server; return when it accepts connections."""
        server = [self._executable, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder)]
        server += ["--save", "", "--appendonly", "no"]
        self.socket.unlink(missing_ok=True)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            with suppress(redis.RedisError, OSError), self.client() as client:
                # It also answers while it loads a snapshot, but with an error.
                client.ping()
                self._pid = int(client.info("server")["process_id"])
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._executable} did not start within {_START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)

    def kill(self) -> None:
        """As `kill -9` does."""
        os.kill(self._pid, signal.SIGKILL)
        self._stop()

    def freeze(self) -> None:
        """Stop the process, until `thaw`."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process continue."""
        os.kill(self._pid, signal.SIGCONT)

    def save(self) -> None:
        """Write a snapshot, which `start` loads."""
        with self.client() as client:
            client.save()

    def flush(self) -> None:
        """Remove everything."""
        with self.client() as client:
            client.flushall()

    def _stop(self) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(10)
            self._guard = None


class Proxy:
    """Forwards connections to a unix socket, and cuts them inside a reply.

    Args:
        target: the socket of the server.
        path: the socket of the proxy.
    """

    def __init__(self, target: Path, path: Path) -> None:
        self._target = target
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()
        self._doomed: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for client in self._clients:
            client.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection in the middle of the next reply that it gets."""
        self._doomed |= self._clients

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        self._clients.add(writer)
        try:
            await asyncio.gather(self._forward(reader, server_writer), self._forward(server_reader, writer))
        finally:
            for end in (writer, server_writer):
                end.transport.abort()
            self._clients.discard(writer)
            self._doomed.discard(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if writer in self._doomed:
                    writer.write(data[: len(data) // 2])
                    break
                writer.write(data)
        writer.close()


def proxied_dsn(dsn: str, folder: Path) -> tuple[str, Path, Path]:
    """Return the DSN of a proxy in a folder, the socket of the server and the socket of the proxy."""
    parts = urlsplit(dsn)
    (host,) = parse_qs(parts.query)["host"]
    (target,) = (path for path in Path(host).glob(".s.PGSQL.*") if path.suffix != ".lock")
    query = f"host={quote(str(folder))}&port={target.suffix[1:]}"
    return urlunsplit(parts._replace(query=query)), target, folder / target.name
