"""One primary of a Redis Cluster, and what its replies say about it and other nodes."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import AskError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from acgsperf.tiers.base import Entry, Observation
from acgsperf.tiers.read_batches import ReadBatches
from acgsperf.tiers.redis_cluster_batches import NodeWrites
from acgsperf.tiers.redis_connections import RedisConnections
from acgsperf.tiers.redis_keys import short_run
from acgsperf.tiers.redis_parser import CheckedParser, NodeParser
from acgsperf.tiers.redis_replies import text
from acgsperf.tiers.redis_server import RedisServer
from acgsperf.tiers.redis_slots import joined
from acgsperf.tiers.server import Wanted
from acgsperf.tiers.server_calls import ServerCalls
from acgsperf.tiers.server_clock import ServerClock

if TYPE_CHECKING:
    import asyncio

__all__ = ["Node", "NodeServer", "RestartedError", "read_run", "target_of"]


class Node:
    """One primary.

    Args:
        address: its host and port; empty for the place of the buckets whose slots no node has.
        connections: to it.
        calls: makes calls to it, with its own circuit breaker.

    Attributes:
        clock: its clock.
        run: 8 bytes for its run; empty until it is known.
        reads, observations, writes: what is collected for it.
        begin_get: as in `ServerTier`.
    """

    begin_get: Callable[[str], "asyncio.Future[Entry | None] | None"]
    reads: ReadBatches[str, Entry]
    observations: ReadBatches[Wanted, Observation]
    writes: NodeWrites

    def __init__(self, address: str, connections: RedisConnections, calls: ServerCalls) -> None:
        self.address: Final = address
        self.connections: Final = connections
        self.calls: Final = calls
        self.clock: Final = ServerClock()
        self.run: bytes = b""

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for it."""
        queues = (self.reads, self.observations, self.writes, self.connections)
        return all(queue.is_idle for queue in queues)

    def close(self) -> None:
        """Close its connections, and answer what waits for it as failed."""
        self.reads.close()
        self.observations.close()
        self.writes.close()
        self.connections.close()


class NodeServer(RedisServer):
    """A node, whose answers MOVED are followed."""

    parser_class: type[CheckedParser] = NodeParser


class RestartedError(RedisConnectionError):
    """The node has another run than the one that the tokens were compared with."""


def target_of(error: AskError, node: Node) -> str:
    """Return the address in an answer MOVED or ASK of a node; empty if MOVED does not tell.

    An empty host means that of the node that answers. A node whose host name is not known is `?`. Then CLUSTER SLOTS
    tells more than MOVED, but a node that gets its first slot may be in no other answer than ASK.
    """
    host, port = error.node_addr
    if host == "?" and isinstance(error, MovedError):
        return ""
    return joined(host, port, node.address)


def read_run(info: Any) -> bytes:
    """Return 8 bytes for the run of a server, from the section `server` of INFO; empty if it does not tell."""
    if isinstance(info, ResponseError):
        return b""
    found = re.search(rb"^run_id:(\w+)", text(info), re.MULTILINE)
    return short_run(found[1]) if found else b""
