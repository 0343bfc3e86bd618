"""A Redis with a replica, watched by three sentinels."""

import asyncio
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from redis.asyncio import Redis

from acgsperf.testing.server_processes import PrivateRedis, PrivateSentinel

SERVICE = "main"
DOWN_AFTER_S = 0.5


class Watched:
    """The servers of a service.

    Attributes:
        sentinels: `host:port` of each sentinel.
    """

    def __init__(self, folder: Path, stack: ExitStack, *options: str, sentinel_options: tuple[str, ...] = ()) -> None:
        self.ports = _free_ports(5)
        self.servers = []
        for number, port in enumerate(self.ports[:2]):
            own = folder / f"redis-{number}"
            own.mkdir()
            of_primary = ("--replicaof", "127.0.0.1", str(self.ports[0])) if number else ()
            server = PrivateRedis(own, ("--port", str(port), "--bind", "127.0.0.1", *of_primary, *options))
            stack.callback(server.stop)
            server.start()
            server.wait(lambda: None)
            self.servers.append(server)
        self._sentinels = []
        for number, port in enumerate(self.ports[2:]):
            own = folder / f"sentinel-{number}"
            own.mkdir()
            sentinel = PrivateSentinel(own, port, SERVICE, self.ports[0], 2, DOWN_AFTER_S, sentinel_options)
            stack.callback(sentinel.stop)
            sentinel.start()
            sentinel.wait(lambda: None)
            self._sentinels.append(sentinel)
        self.sentinels = [f"127.0.0.1:{port}" for port in self.ports[2:]]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(self.sentinels)}/{SERVICE}"

    def client(self, number: int) -> Redis:
        return Redis(port=self.ports[number], protocol=2)

    async def ready(self) -> None:
        """Return when the replica is connected, and the sentinels know it and each other."""
        async with asyncio.timeout(30):
            for port in self.ports[2:]:
                async with Redis(port=port, protocol=2) as sentinel:
                    while True:
                        state = (await sentinel.sentinel_masters())[SERVICE]
                        if (state["num-other-sentinels"], state["num-slaves"]) == (2, 1):
                            break
                        await asyncio.sleep(0.02)
            async with self.client(1) as replica:
                while (await replica.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    def kill(self, number: int) -> None:
        process = self.servers[number].process
        process.send_signal(signal.SIGKILL)
        process.wait()

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
        async with self.client(1) as client, asyncio.timeout(30):
            while (await client.info("replication"))["role"] != "master":  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
