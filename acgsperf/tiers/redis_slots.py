"""The slots of a Redis Cluster: which node has which, and connections to the node that has one of them.

A cluster has 16,384 slots. A key belongs to the slot that its CRC16 says, or that of its hash tag, the text in braces.
Each slot has one primary. A client asks any node for all of them (CLUSTER SLOTS), and again if one answers MOVED.

All known nodes are asked at the same time, so that one that does not answer costs little. If they disagree, the
answer with the highest epoch counts: it grows with each failover, and when a slot has moved.
"""

import asyncio
import re
import threading
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
from weakref import WeakSet, WeakValueDictionary

from redis.asyncio.connection import AbstractConnection
from redis.cluster import parse_cluster_slots
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from acgsperf.names import resolve
from acgsperf.tiers.redis_connection import OwnConnection
from acgsperf.tiers.redis_replies import array, text
from acgsperf.tiers.redis_server import Credentials, RedisServer
from acgsperf.tiers.redis_tls import SharedContext, hint_of
from acgsperf.timeouts import time_limit

__all__ = [
    "CLUSTER_SCHEMES",
    "SLOTS",
    "ClusterServer",
    "RedisSlots",
    "Shard",
    "SlotMap",
    "joined",
    "key_slot",
    "slots_of",
]

SLOTS: Final = 16_384
CLUSTER_SCHEMES: Final = ("redis+cluster", "rediss+cluster")
_PORT: Final = 6379
# How long to wait for the answer of a node.
_TIMEOUT_S: Final = 1.0
# How long to wait for the other nodes after the first answer.
_OTHERS_S: Final = 0.05
# How long an answer is used for further connections of the backplane.
_FRESH_S: Final = 0.5

# All users of a cluster share its slots, also in several threads.
_lock: Final = threading.Lock()
_known: "Final[WeakValueDictionary[tuple[str, int], RedisSlots]]" = WeakValueDictionary()


class Shard(NamedTuple):
    """A range of slots, the address of its primary, and those of the replicas."""

    first: int
    last: int
    primary: str
    replicas: tuple[str, ...]


class SlotMap(NamedTuple):
    """Which node has which slots, as one node says at one time.

    Attributes:
        epoch: the greatest configuration epoch that the node knows; -1 if it is cut off from most of the cluster.
        shards: ranges of slots.
    """

    epoch: int = -1
    shards: tuple[Shard, ...] = ()

    def owner(self, slot: int) -> str:
        """Return the address of the primary of a slot; empty if no node has it."""
        return next((shard.primary for shard in self.shards if shard.first <= slot <= shard.last), "")

    @property
    def primaries(self) -> list[str]:
        """The addresses of all primaries."""
        return list(dict.fromkeys(shard.primary for shard in self.shards))

    @property
    def replicas(self) -> dict[str, set[str]]:
        """The addresses of the replicas of each primary."""
        found: dict[str, set[str]] = {}
        for shard in self.shards:
            found.setdefault(shard.primary, set()).update(shard.replicas)
        return found


class MapFollower(Protocol):
    """Receives each new map of the slots. Its method may be called in any thread."""

    def note_map(self, found: SlotMap) -> None:
        """Use another map from now on."""


class RedisSlots:
    """Finds out which node of a cluster has which slots.

    Args:
        url: `redis+cluster://[user:password@]host:port,host:port` or `rediss+cluster://`, checked.
        credentials: as for `RedisServer`.

    Attributes:
        where: the nodes of the URL, for messages.
        map: what was found last.
        tls: what the connections to all nodes share if they speak TLS.
        max_connections: the `max_connections` of the URL; None if it has none.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it.
    """

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        parts = urlsplit(url)
        user_info, at, hosts = parts.netloc.rpartition("@")
        options = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "db"]
        query = f"?{urlencode(options)}" if options else ""
        self._parts = parts.scheme.removesuffix("+cluster"), user_info + at, query
        self._credentials = credentials
        self._hosts: Final = list(dict.fromkeys(map(_address, hosts.split(","))))
        self.where: Final = f"cluster {', '.join(self._hosts)}"
        self.tls: Final = SharedContext()
        # Checks the options.
        self.max_connections: Final = RedisServer(self.url_of(self._hosts[0]), credentials, self.tls).max_connections
        self.map: SlotMap = SlotMap()
        self._found_at = -_FRESH_S
        self._servers: dict[str, RedisServer] = {}
        self._followers: WeakSet[MapFollower] = WeakSet()
        # The question in flight of each event loop. It ends by itself, at most after the timeouts above.
        self._in_flight: dict[asyncio.AbstractEventLoop, asyncio.Task[SlotMap]] = {}

    def url_of(self, address: str) -> str:
        """Return the URL of a node, with its password."""
        scheme, user_info, query = self._parts
        return f"{scheme}://{user_info}{address}/0{query}"

    def follow(self, follower: MapFollower) -> None:
        """Tell a follower of each new map."""
        self._followers.add(follower)

    def forget(self) -> None:
        """Ask the nodes again next time."""
        self._found_at = -_FRESH_S

    async def current(self) -> SlotMap:
        """Return the map that was found last, or ask if that was long ago."""
        return self.map if monotonic() - self._found_at <= _FRESH_S else await self.find()

    async def find(self) -> SlotMap:
        """Ask the nodes for the map. The question continues if the caller is cancelled: others may use the answer.

        Raises:
            redis.ConnectionError: if none of them knows it.
        """
        loop = asyncio.get_running_loop()
        task = self._in_flight.get(loop)
        if task is None:
            task = self._in_flight[loop] = loop.create_task(self._find(), name="acgsperf slots")
            task.add_done_callback(lambda _: self._in_flight.pop(loop, None))
            # If it fails, perhaps no caller waits for it any more.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)

    async def _find(self) -> SlotMap:
        addresses = dict.fromkeys([*self.map.primaries, *self._hosts])
        asked = [asyncio.ensure_future(self.ask(address)) for address in addresses]
        found: list[SlotMap] = []
        problems: list[str] = []
        try:
            pending, until = set(asked), None
            while pending:
                done, pending = await asyncio.wait(pending, timeout=until, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for answer in (task.result() for task in asked if task in done):
                    if isinstance(answer, SlotMap):
                        found.append(answer)
                    else:
                        problems.append(answer)
                until = _OTHERS_S if found else None
        finally:
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
        if not found:
            # A replica or a node without slots knows the others as well.
            raise RedisConnectionError(f"no node of the cluster tells its slots: {'; '.join(problems)}")
        epoch = max(one.epoch for one in found)
        latest = [one for one in found if one.epoch == epoch]
        # Nodes that do not tell their host have the one at which they were asked. It must not change each time.
        self.map = self.map if self.map in latest else latest[0]
        self._found_at = monotonic()
        self._servers = {address: server for address, server in self._servers.items() if address in addresses}
        for follower in tuple(self._followers):
            follower.note_map(self.map)
        return self.map

    async def ask(self, address: str) -> SlotMap | str:
        """Ask one node for the map. Return what is wrong with it if it does not tell. It does not raise."""
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = RedisServer(self.url_of(address), self._credentials, self.tls)
        connection = OwnConnection(server)
        try:
            async with time_limit(_TIMEOUT_S):
                slots, info = await connection.ask([("CLUSTER", "SLOTS"), ("CLUSTER", "INFO")], list)
                return _read(slots, info, address)
        except ResponseError as error:
            if "cluster support disabled" in str(error):
                return f"{address} is not a node of a cluster; use redis:// for a single server"
            return f"{address} refuses to tell the slots ({error})"
        except TimeoutError:
            return f"{address} does not answer within {_TIMEOUT_S:g} s{hint_of(self._parts[0])}"
        except (RedisError, OSError, ValueError, IndexError, TypeError) as error:
            return f"{address} does not answer ({type(error).__name__}: {error})"
        finally:
            connection.close()


def slots_of(url: str, credentials: Credentials | None = None) -> RedisSlots:
    """Return what knows the slots of the cluster of a URL; all that use the same URL share it."""
    # Two callables that are equal are not always hashable.
    known = url, id(credentials) if credentials is not None else 0
    with _lock:
        slots = _known.get(known)
        if slots is None:
            # It keeps the callable, so that no other one gets its id.
            slots = _known[known] = RedisSlots(url, credentials)
    return slots


class ClusterServer(RedisServer):
    """The node of a cluster that has a slot.

    Args:
        url: `redis+cluster://` or `rediss+cluster://`, checked.
        credentials: as for `RedisServer`.

    Attributes:
        slots: knows the slots of the cluster.
        slot: the slot.
    """

    # Any attempt may find another node.
    recovery_s: float = 0.25

    def __init__(self, url: str, credentials: Credentials | None = None) -> None:
        self.slots: Final = slots_of(url, credentials)
        self.slot: int = 0
        self._address = ""
        # The map names the host and the port.
        super().__init__(self.slots.url_of("node:1"), credentials, self.slots.tls)
        self.where: str = self.slots.where
        self.slots.follow(self)

    @property
    def now_at(self) -> str:
        return f"{self._address} of the {self.where}" if self._address else self.where

    def forget(self) -> None:
        self.slots.forget()

    async def locate(self, connection: AbstractConnection) -> None:
        address = (await self.slots.current()).owner(self.slot)
        if not address:
            raise RedisConnectionError(f"no node of the cluster has the slot {self.slot}")
        self._address = address
        host, _, port = address.rpartition(":")
        connection.host, connection.port = host.strip("[]"), int(port)  # type: ignore[attr-defined]
        await resolve(host.strip("[]"))

    def note_map(self, found: SlotMap) -> None:
        """See `MapFollower`: connections to a node that has lost the slot are closed."""
        address = found.owner(self.slot)
        if address and self._address and address != self._address:
            self._address = address
            self.note_moved()


def _address(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, str(_PORT)
    return f"{unquote(name)}:{port}"


def _read(slots: Any, info: Any, asked: str) -> SlotMap:
    """Return the map in the replies of CLUSTER SLOTS and CLUSTER INFO."""
    shards = []
    found = parse_cluster_slots([[*one[:2], *map(_with_host, one[2:])] for one in array(slots)])
    for (first, last), nodes in found.items():
        addresses = [joined(node[0], node[1], asked) for node in (nodes["primary"], *nodes["replicas"])]
        shards.append(Shard(first, last, addresses[0], tuple(addresses[1:])))
    if not shards:
        raise ValueError("it has no slots, and knows no other node")
    state = re.search(rb"^cluster_state:ok", text(info), re.MULTILINE)
    epoch = re.search(rb"^cluster_current_epoch:(\d+)", info, re.MULTILINE)
    return SlotMap(int(epoch[1]) if state and epoch else -1, tuple(shards))


def _with_host(node: Any) -> Any:
    """Return a node in the reply of CLUSTER SLOTS, with its IP in place of a host name that is not known."""
    if node[0] == b"?" and len(node) > 3:
        metadata = dict(zip(node[3][::2], node[3][1::2], strict=False))
        return [metadata.get(b"ip", b"?"), *node[1:]]
    return node


def joined(host: Any, port: Any, asked: str) -> str:
    """Return the address of a node.

    Args:
        host: its host as a node tells it. If it is empty or `?`, it is the host of the node that tells it.
        port: its port.
        asked: the address of the node that tells it.
    """
    name = str(host) if host not in ("", "?", None) else asked.rpartition(":")[0].strip("[]")
    return f"[{name}]:{int(port)}" if ":" in name else f"{name}:{int(port)}"
