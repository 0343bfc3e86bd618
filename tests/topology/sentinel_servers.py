"""A Redis with a replica, watched by three sentinels."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.asyncio import Redis

from acgsperf.testing.private_cluster import free_ports
from acgsperf.testing.server_processes import PrivateRedis, PrivateSentinel

SERVICE = "main"


class TLS(NamedTuple):
    """What servers need to speak TLS, and nothing else.

    Attributes:
        program: a `redis-server` that was built with it.
        authority: the file with the certificate of the authority.
        certificate: the file with a certificate for 127.0.0.1.
        key: the file with its key.
    """

    program: Path
    authority: Path
    certificate: Path
    key: Path

    def options(self) -> list[tuple[str, str]]:
        return [
            ("tls-cert-file", str(self.certificate)),
            ("tls-key-file", str(self.key)),
            ("tls-ca-cert-file", str(self.authority)),
            ("tls-auth-clients", "no"),
            ("tls-replication", "yes"),
        ]


def tls_program() -> Path:
    """A `redis-server` of this machine that was built with TLS."""
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("this machine has no redis-server")
    done = subprocess.run([found, "--port", "0", "--tls-replication", "maybe"], capture_output=True, check=False)
    if b"argument must be" not in done.stdout + done.stderr:
        pytest.skip("redis-server is built without TLS")
    return Path(found)


DOWN_AFTER_S = 0.5


class Watched:
    """The servers of a service: number 0 is the primary at first, number 1 its replica.

    Attributes:
        sentinels: `host:port` of each sentinel.
        primary: the number of the primary, as `elected` has last seen it.
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        *options: str,
        down_after_s: float = DOWN_AFTER_S,
        sentinel_options: tuple[str, ...] = (),
        tls: TLS | None = None,
    ) -> None:
        self._tls = tls
        self.ports = free_ports(5)
        self.servers: list[PrivateRedis] = []
        self.primary = 0
        self._folders = [folder / f"redis-{number}" for number in range(2)]
        self._options = options
        for number in range(2):
            self._folders[number].mkdir()
            stack.callback(lambda number=number: self.servers[number].stop())
            self.servers.append(self._started(number))
        self._sentinels = []
        for number, port in enumerate(self.ports[2:]):
            own = folder / f"sentinel-{number}"
            own.mkdir()
            lines = [*sentinel_options]
            if tls is not None:
                lines += ["port 0", f"tls-port {port}", *map(" ".join, tls.options())]
            program = tls and tls.program
            sentinel = PrivateSentinel(own, port, SERVICE, self.ports[0], 2, down_after_s, lines, program)
            stack.callback(sentinel.stop)
            sentinel.start()
            sentinel.wait(lambda: None)
            self._sentinels.append(sentinel)
        self.sentinels = [f"127.0.0.1:{port}" for port in self.ports[2:]]

    @property
    def url(self) -> str:
        if self._tls is not None:
            return f"rediss+sentinel://{','.join(self.sentinels)}/{SERVICE}?ssl_ca_certs={self._tls.authority}"
        return f"redis+sentinel://{','.join(self.sentinels)}/{SERVICE}"

    def _started(self, number: int) -> PrivateRedis:
        of_primary = () if number == self.primary else ("--replicaof", "127.0.0.1", str(self.ports[self.primary]))
        kind = "--port" if self._tls is None else "--tls-port"
        # A primary would wait 5 s for further replicas before it synchronizes one.
        own = [kind, str(self.ports[number]), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"]
        for name, value in self._tls.options() if self._tls is not None else ():
            own += [f"--{name}", value]
        options = (*own, *of_primary, *self._options)
        server = PrivateRedis(self._folders[number], options, self._tls and self._tls.program)
        server.start()
        server.wait(lambda: None)
        return server

    def client(self, number: int) -> Redis:
        return self._client_at(self.ports[number])

    def _client_at(self, port: int) -> Redis:
        options = {"ssl": True, "ssl_ca_certs": str(self._tls.authority)} if self._tls is not None else {}
        return Redis(host="127.0.0.1", port=port, protocol=2, **options)

    async def ready(self) -> None:
        """Return when the replica is connected, and the sentinels know it, its primary and each other."""
        async with asyncio.timeout(60):
            for port in self.ports[2:]:
                async with self._client_at(port) as sentinel:
                    while True:
                        state = (await sentinel.sentinel_masters())[SERVICE]
                        known = state["num-other-sentinels"], state["num-slaves"], state["port"]
                        if known == (2, 1, self.ports[self.primary]):
                            break
                        await asyncio.sleep(0.02)
            async with self.client(1 - self.primary) as replica:
                while (await replica.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    def kill(self, number: int) -> None:
        process = self.servers[number].process
        process.send_signal(signal.SIGKILL)
        process.wait()

    def kill_primary(self) -> None:
        self.kill(self.primary)

    def freeze_primary(self) -> None:
        self.freeze(self.primary)

    async def wake(self) -> None:
        """Let the former primary run as one for a moment, and then make it a replica."""
        number = 1 - self.primary
        self.thaw(number)
        # The sentinels would wait longer.
        await asyncio.sleep(1)
        async with self.client(number) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", str(self.ports[self.primary]))
        await self.ready()

    def restart(self, number: int) -> None:
        """Start one that was killed, without data and as a replica of the primary."""
        (self._folders[number] / "redis.sock").unlink(missing_ok=True)
        self.servers[number] = self._started(number)

    async def restore(self) -> None:
        """Start the former primary as a replica; return when the next failover is possible."""
        await asyncio.to_thread(self.restart, 1 - self.primary)
        await self.ready()

    @asynccontextmanager
    async def position(self) -> AsyncIterator[Callable[[], Awaitable[int]]]:
        """What tells how far the primary is: the number of bytes that it has sent, or will send, to its replica."""
        async with self.client(self.primary) as client:

            async def ask() -> int:
                return int((await client.info("replication"))["master_repl_offset"])

            yield ask

    async def received(self) -> int:
        """How far the former primary was as this primary had received it, when it was elected."""
        async with self.client(self.primary) as client:
            return int((await client.info("replication"))["second_repl_offset"]) - 1

    async def cut_replication(self) -> None:
        """Let the replica receive nothing more, until `take_over`."""
        # Otherwise it would connect again at once.
        self.freeze(1 - self.primary)
        async with self.client(self.primary) as client:
            await client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def freeze(self, number: int) -> None:
        self.servers[number].process.send_signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        self.servers[number].process.send_signal(signal.SIGCONT)

    def freeze_sentinel(self, number: int) -> None:
        self._sentinels[number].process.send_signal(signal.SIGSTOP)

    def thaw_sentinel(self, number: int) -> None:
        self._sentinels[number].process.send_signal(signal.SIGCONT)

    async def elected(self) -> None:
        """Return when the replica has become the primary."""
        async with self.client(1 - self.primary) as client, asyncio.timeout(30):
            while (await client.info("replication"))["role"] != "master":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        self.primary = 1 - self.primary

    async def take_over(self) -> None:
        """Let the sentinels replace the primary at once, and return when they have."""
        self.thaw(1 - self.primary)
        async with self._client_at(self.ports[2]) as sentinel:
            await sentinel.sentinel_failover(SERVICE)
        await self.elected()


async def start_watched(folder: Path, stack: ExitStack) -> tuple[Watched, str]:
    """Start the servers and their sentinels; return them with their URL.

    A failover begins when `take_over` asks for it, and not already if the machine is busy. Nor is it given up then.
    """
    options = f"sentinel failover-timeout {SERVICE} 20000"
    watched = Watched(folder, stack, down_after_s=30, sentinel_options=(options,))
    await watched.ready()
    return watched, watched.url
