"""The nodes of a Redis Cluster that a tier has connections to."""

from collections.abc import Callable, Collection
from functools import partial
from time import monotonic
from typing import Any, Final

from redis.exceptions import ResponseError

from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.base import ConnectionStats
from acgsperf.tiers.redis_connections import Credentials, Greeting, RedisConnections
from acgsperf.tiers.redis_node import Node, NodeServer, RestartedError, read_run
from acgsperf.tiers.redis_replies import UnexpectedReplyError
from acgsperf.tiers.redis_slots import RedisSlots
from acgsperf.tiers.server_calls import ServerCalls

__all__ = ["KnownNodes"]

# A failed node is tried again after this time.
_RECOVERY_S: Final = 0.25
# How long a node that nobody needs is kept. It may be the target of slots that move, which is in no map.
_UNUSED_S: Final = 60.0


class KnownNodes:
    """Opens connections to nodes, and closes those to nodes that have left.

    Args:
        slots: knows the slots.
        new_calls: returns what makes calls to a node; it gets what to call after a timeout.
        equip: gives a new node what is collected for it.
        timed_out: called if a node does not answer in time.
        restarted: called if a node was restarted. All that is known of its tokens is void.
        measured: gets a node, when it was asked for its time, when it has answered, and its time.
        credentials, max_connections, max_lifetime: as for `RedisTier`, for each node.

    Attributes:
        label: names the tier in log lines.
        connect_time: how long it took to open a connection to any node, in ns, without the nodes that are known now.
    """

    def __init__(
        self,
        slots: RedisSlots,
        *,
        new_calls: Callable[[Callable[[], None]], ServerCalls],
        equip: Callable[[Node], None],
        timed_out: Callable[[], None],
        restarted: Callable[[Node], None],
        measured: Callable[[Node, float, float, float], None],
        credentials: Credentials | None,
        max_connections: int | None,
        max_lifetime: float,
    ) -> None:
        self.label: str = "redis"
        self._slots = slots
        self._new_calls = new_calls
        self._equip = equip
        self._timed_out = timed_out
        self._restarted = restarted
        self._measured = measured
        self._credentials = credentials
        self._options: dict[str, Any] = {
            "credentials": credentials,
            "max_connections": max_connections,
            "max_lifetime": max_lifetime,
        }
        self._by_address: dict[str, Node] = {}
        self._unused_since: dict[Node, float] = {}
        # Of the nodes that were forgotten.
        self._connect_time = LatencyHistogram()
        self._failed_connects = 0

    @property
    def all(self) -> list[Node]:
        """All nodes that are known."""
        return list(self._by_address.values())

    def at(self, address: str) -> Node:
        """Return the node at an address, which is not connected yet if it is new."""
        node = self._by_address.get(address)
        if node is None:
            url = self._slots.url_of(address or "none:1")
            server = NodeServer(url, self._credentials, self._slots.tls)
            connections = RedisConnections(url, server=server, **self._options)
            connections.label = f"{self.label}, node {address or self._slots.where}"

            def timed_out() -> None:
                connections.close_idle()
                self._timed_out()

            node = self._by_address[address] = Node(address, connections, self._new_calls(timed_out))
            node.calls.breaker.recovery_s = _RECOVERY_S
            node.calls.label = connections.label
            connections.greeting = Greeting([("TIME",), ("INFO", "server")], partial(self._greeted, node))
            connections.open()
            self._equip(node)
        return node

    def forget_unused(self, needed: Collection[Node]) -> None:
        """Forget the nodes that were not needed for a minute. Nothing may be in flight to them."""
        now = monotonic()
        unused = {node: self._unused_since.get(node, now) for node in self.all if node not in needed}
        self._unused_since = unused
        for node, since in list(unused.items()):
            if now - since >= _UNUSED_S and node.is_idle:
                del unused[node]
                self._forget(node)

    def close(self) -> None:
        """Close the connections to all nodes, and forget them."""
        for node in self.all:
            self._forget(node)
            node.calls.close()
        self._unused_since.clear()

    def _forget(self, node: Node) -> None:
        del self._by_address[node.address]
        node.close()
        self._connect_time.merge(node.connections.connect_time)
        self._failed_connects += node.connections.stats().failed

    @property
    def connect_time(self) -> LatencyHistogram:
        """How long it took to open a connection to any node so far, in ns."""
        together = LatencyHistogram()
        together.merge(self._connect_time)
        for node in self.all:
            together.merge(node.connections.connect_time)
        return together

    def stats(self) -> ConnectionStats:
        """Return the open connections to all nodes, and the counts so far, also of nodes that were forgotten."""
        each = [node.connections.stats() for node in self.all]
        created = self.connect_time.snapshot()
        failed = self._failed_connects + sum(one.failed for one in each)
        return ConnectionStats(sum(one.open for one in each), created.count, failed, created)

    def _greeted(self, node: Node, sent: float, received: float, replies: list[Any]) -> bytes:
        time, info = replies
        self.measure(node, sent, received, time)
        run = read_run(info)
        if node.run and run and run != node.run:
            node.run = b""
            self._restarted(node)
            raise RestartedError(f"{node.address} was restarted")
        node.run = run or node.run
        return run

    def measure(self, node: Node, sent: float, received: float, time: Any) -> None:
        """Note the time of a node, in the reply of TIME."""
        if isinstance(time, ResponseError):
            return
        try:
            seconds, microseconds = map(int, time)
        except (TypeError, ValueError):
            raise UnexpectedReplyError(f"reply of TIME must be two numbers, got {time!r:.80}") from None
        self._measured(node, sent, received, seconds + microseconds / 1e6)
