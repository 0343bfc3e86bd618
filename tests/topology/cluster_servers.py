"""A Redis Cluster of one test, or of several: three primaries with a replica each."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

from redis.asyncio import Redis

from acgsperf.testing.private_cluster import PrivateCluster, free_ports

from .sentinel_servers import TLS

KEYS_A_CALL = 50


class Cluster(PrivateCluster):
    """Its nodes 0 to 2 are primaries at first, 3 to 5 their replicas.

    With `tls`, each node has a second port, for TLS, and nodes talk to each other over TLS only.
    """

    def __init__(
        self, folder: Path, stack: ExitStack, *options: str, password: str = "", tls: TLS | None = None
    ) -> None:
        self.tls_ports = free_ports(6) if tls is not None else []

        def options_of(number: int) -> list[str]:
            if tls is None:
                return []
            own = [("tls-port", str(self.tls_ports[number])), ("tls-cluster", "yes"), *tls.options()]
            return [word for name, value in own for word in (f"--{name}", value)]

        super().__init__(folder, options=options, password=password, options_of=options_of, program=tls and tls.program)
        stack.callback(self.stop)
        self.start()
        self.wait(lambda: None)

    def client(self, number: int) -> Redis:
        return Redis(port=self.ports[number], protocol=2, password=self._password or None)

    def kill(self, number: int) -> None:
        process = self.nodes[number].process
        process.send_signal(signal.SIGKILL)
        process.wait()

    def freeze(self, number: int) -> None:
        self.nodes[number].process.send_signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        self.nodes[number].process.send_signal(signal.SIGCONT)

    def is_primary(self, number: int) -> bool:
        return "role:master" in self.ask(number, "INFO", "replication")

    async def move(
        self, slots: Iterable[int], source: int, target: int, *, finish: bool = True, pause_s: float = 0.0
    ) -> None:
        """Move slots from a primary to another one, as `redis-cli --cluster reshard` does.

        Without `finish`, half of the keys of each slot have moved at the end, and the slots still belong to the source.
        With a pause, that is so for a while.
        """
        async with self.client(source) as giving, self.client(target) as taking:
            for slot in slots:
                await taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
                await giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])
                if not finish or pause_s:
                    count = await giving.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) // 2
                    await self._migrate(giving, slot, count, target)
                    await asyncio.sleep(pause_s)
                if not finish:
                    continue
                while await self._migrate(giving, slot, KEYS_A_CALL, target):
                    pass
                for client in (taking, giving):
                    await client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])

    async def _migrate(self, giving: Redis, slot: int, count: int, target: int) -> bool:
        keys = await giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            command = ["MIGRATE", "127.0.0.1", (self.tls_ports or self.ports)[target], "", 0, 5000]
            await giving.execute_command(*command, "KEYS", *keys)
        return bool(keys)


class Shards(Cluster):
    """Three pairs of nodes whose primaries fail over, one after the other, and pass on slots.

    Attributes:
        primary: the number of the primary of the pair that was chosen.
    """

    def __init__(self, folder: Path, stack: ExitStack, *options: str) -> None:
        super().__init__(folder, stack, *options)
        self._primaries_now = list(range(3))
        self._chosen = 0
        stack.callback(self._thaw_all)

    @property
    def primary(self) -> int:
        return self._primaries_now[self._chosen]

    @property
    def _replica(self) -> int:
        return (self.primary + 3) % 6

    def choose(self, number: int) -> None:
        self._chosen = number % 3

    async def slots(self) -> set[int]:
        found: set[int] = set()
        async with self.client(self.primary) as client:
            for first, last, node, *_ in await client.execute_command("CLUSTER", "SLOTS"):
                if node[1] == self.ports[self.primary]:
                    found |= set(range(first, last + 1))
        return found

    async def pass_on(self, slots: Sequence[int], pause_s: float) -> None:
        await self.move(slots, self.primary, self._primaries_now[(self._chosen + 1) % 3], pause_s=pause_s)

    @asynccontextmanager
    async def position(self) -> AsyncIterator[Callable[[], Awaitable[int]]]:
        """What tells how far the primary is: the number of bytes that it has sent, or will send, to its replica."""
        async with self.client(self.primary) as client:

            async def ask() -> int:
                return int((await client.info("replication"))["master_repl_offset"])

            yield ask

    async def cut_replication(self) -> None:
        """Let the replica receive nothing more, until `take_over`."""
        # Otherwise it would connect again at once.
        self.freeze(self._replica)
        async with self.client(self.primary) as client:
            await client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def kill_primary(self) -> None:
        self.kill(self.primary)

    def freeze_primary(self) -> None:
        self.freeze(self.primary)

    async def take_over(self) -> None:
        """Let the other primaries elect the replica at once, and return when they have."""
        self.thaw(self._replica)
        ask_at = 0.0
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(self.is_primary, self._replica):
                if monotonic() > ask_at:
                    await asyncio.to_thread(self.ask, self._replica, "CLUSTER", "FAILOVER", "FORCE")
                    # An election that fails ends within 5 s.
                    ask_at = monotonic() + 6
                await asyncio.sleep(0.005)
        self._primaries_now[self._chosen] = self._replica

    async def received(self) -> int:
        """How far the former primary was as this primary had received it, when it was elected."""
        async with self.client(self.primary) as client:
            return int((await client.info("replication"))["second_repl_offset"]) - 1

    async def restore(self) -> None:
        """Start the former primary, which becomes a replica; return when the next failover is possible."""
        await asyncio.to_thread(self.nodes[self._replica].start)
        await self._ready()

    async def wake(self) -> None:
        """Let the former primary continue, until it finds out that it has been replaced."""
        self.thaw(self._replica)
        await self._ready()

    async def _ready(self) -> None:
        await asyncio.to_thread(self.nodes[self._replica].wait, lambda: None)
        async with asyncio.timeout(30):
            while await asyncio.to_thread(self.is_primary, self._replica):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.to_thread(self._wait, self._is_ready, lambda: None)

    def _thaw_all(self) -> None:
        for number, node in enumerate(self.nodes):
            if node.process is not None and node.process.poll() is None:
                self.thaw(number)


async def start_shards(folder: Path, stack: ExitStack) -> tuple[Shards, str]:
    """Start a cluster; return it with its URL. A primary that fails costs its own slots only.

    A failover begins when `take_over` asks for it, and not already if the machine is busy.
    """
    options = "--cluster-require-full-coverage", "no", "--cluster-node-timeout", "15000"
    shards = await asyncio.to_thread(Shards, folder, stack, *options)
    return shards, shards.url
