"""A private Redis Cluster: primaries with replicas, at ports of this machine."""

import random
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from acgsperf.errors import AcgsperfError
from acgsperf.testing.server_processes import START_TIMEOUT_S, Check, PrivateRedis

__all__ = ["PrivateCluster", "free_ports"]

_SLOTS: Final = 16_384
_NODE_TIMEOUT_S: Final = 0.5
_POLL_S: Final = 0.02
_PORTS: Final = range(15_000, 32_000)


class PrivateCluster:
    """Primaries that have all slots, and a replica of each. Starting it takes about three seconds.

    Args:
        folder: its directory; each node gets one of its own there.
        primaries: how many primaries.
        options: further arguments of the program, for every node.
        password: of every node; empty for none.
        options_of: returns further arguments for one node, by its number.
        program: the executable; None for the usual one.

    Attributes:
        nodes: the primaries, and then their replicas, in the same order.
        ports: the port of each.
        ids: the name of each in the cluster.
    """

    def __init__(
        self,
        folder: Path,
        *,
        primaries: int = 3,
        options: Sequence[str] = (),
        password: str = "",
        options_of: Callable[[int], Sequence[str]] = lambda _: (),
        program: Path | None = None,
    ) -> None:
        self._primaries = primaries
        self._password = password
        found = free_ports(4 * primaries)
        self.ports: Final = found[: 2 * primaries]
        self.ids: list[str] = []
        self.nodes: Final[list[PrivateRedis]] = []
        common = ["--bind", "127.0.0.1", "--cluster-enabled", "yes", "--repl-diskless-sync-delay", "0"]
        common += ["--shutdown-timeout", "0"]
        common += ["--cluster-node-timeout", str(int(_NODE_TIMEOUT_S * 1000)), *options]
        if password:
            common += ["--requirepass", password, "--masterauth", password]
        for number, (port, bus_port) in enumerate(zip(self.ports, found[2 * primaries :], strict=True)):
            own = folder / f"n{number}"
            own.mkdir()
            options = ("--port", str(port), "--cluster-port", str(bus_port), *common, *options_of(number))
            self.nodes.append(PrivateRedis(own, options, program))

    @property
    def url(self) -> str:
        """Its address, which names all primaries."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports[: self._primaries])
        return f"redis+cluster://{f':{self._password}@' if self._password else ''}{hosts}"

    def start(self) -> None:
        """Start the nodes without waiting for them."""
        for node in self.nodes:
            node.start()

    def wait(self, check: Check) -> None:
        """Join the nodes. Return when all slots can be used, and the replicas are connected."""
        for node in self.nodes:
            node.wait(check)
        self.ids = [self.ask(number, "CLUSTER", "MYID") for number in range(len(self.nodes))]
        for number in range(self._primaries):
            first, last = (_SLOTS * (number + part) // self._primaries for part in (0, 1))
            self.ask(number, "CLUSTER", "ADDSLOTSRANGE", str(first), str(last - 1))
            self.ask(number, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for number in range(1, len(self.nodes)):
            self.ask(0, "CLUSTER", "MEET", "127.0.0.1", str(self.ports[number]), self._bus_port(number))
        self._wait(lambda number: all(name in self._others(number) for name in self.ids), check)
        for number in range(self._primaries, len(self.nodes)):
            self.ask(number, "CLUSTER", "REPLICATE", self.ids[number - self._primaries])
        self._wait(self._is_ready, check)

    def stop(self) -> None:
        """Stop all nodes."""
        for node in self.nodes:
            node.stop()

    def ask(self, number: int, *command: str) -> str:
        """Send a command to a node and return its reply, if that is one line or one string.

        Raises:
            AcgsperfError: if the node refuses it.
        """
        with socket.create_connection(("127.0.0.1", self.ports[number]), START_TIMEOUT_S) as connection:
            reader = connection.makefile("rb")
            commands = [("AUTH", self._password)] if self._password else []
            for one in (*commands, command):
                words = [f"${len(word.encode())}\r\n{word}\r\n" for word in one]
                connection.sendall(f"*{len(one)}\r\n{''.join(words)}".encode())
                line = reader.readline().decode().strip()
                if line.startswith("-"):
                    raise AcgsperfError(f"a node of the private cluster refuses {one[0]}: {line[1:]}")
                reply = reader.read(int(line[1:]) + 2).decode().rstrip("\r\n") if line.startswith("$") else line[1:]
        return reply

    def _bus_port(self, number: int) -> str:
        found = re.search(r"@(\d+)[^ ]* myself", self.ask(number, "CLUSTER", "NODES"))
        assert found is not None
        return found[1]

    def _others(self, number: int) -> str:
        return "\n".join(line for line in self.ask(number, "CLUSTER", "NODES").splitlines() if "handshake" not in line)

    def _is_ready(self, number: int) -> bool:
        if "cluster_state:ok" not in self.ask(number, "CLUSTER", "INFO"):
            return False
        if self._others(number).count("slave ") + self._others(number).count("slave,") < self._primaries:
            return False
        replication = self.ask(number, "INFO", "replication")
        return "master_link_status:up" in replication or "connected_slaves:1" in replication

    def _wait(self, until: Callable[[int], bool], check: Check) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        for number in range(len(self.nodes)):
            while not until(number):
                check()
                if time.monotonic() > deadline:
                    raise AcgsperfError(f"the private cluster did not start within {START_TIMEOUT_S:.0f} s")
                time.sleep(_POLL_S)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody uses at the moment.

    The system gives greater numbers to clients, so no connection takes one of these before its server listens.
    """
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            one = stack.enter_context(socket.socket())
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AcgsperfError(f"no {count} ports from {_PORTS[0]} to {_PORTS[-1]} are free")
