"""The nodes of a Redis Cluster, as a tier uses them: which one has which bucket of a namespace.

A namespace has 64 buckets, and each of them is in one slot: see `redis_keys`. A bucket has a token, tags and locks of
its own, so that a script never needs keys of two slots. What concerns the whole namespace is done in every bucket.

A node is used for a bucket once the bucket's token was compared with the run of the node. If the slot was passed on by
a node that still runs, nothing was lost, and its entries remain. If the node is a replica that was promoted, or was
restarted, it may lack acknowledged writes: the token is replaced, and the entries are misses. Each node has a task that
compares the tokens of the buckets that it got, so that a node that hangs holds up its own buckets only.

MOVED and ASK are followed. After MOVED, or if a node does not answer, the nodes are asked for their slots. While one of
them does not answer, they are asked ten times a second, so that its replica is used as soon as it is promoted.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from redis.exceptions import ClusterDownError, MovedError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from acgsperf.tiers.base import BreakerState
from acgsperf.tiers.redis_calls import ScriptCall
from acgsperf.tiers.redis_connections import Command, Credentials
from acgsperf.tiers.redis_keys import BUCKETS, TOKEN_TTL_MS, RedisKeys, bucket_keys, run_in_token
from acgsperf.tiers.redis_known_nodes import KnownNodes
from acgsperf.tiers.redis_node import Node, RestartedError, read_run, target_of
from acgsperf.tiers.redis_role import check_primary
from acgsperf.tiers.redis_scripts import ADOPT
from acgsperf.tiers.redis_slots import RedisSlots, SlotMap, key_slot
from acgsperf.tiers.server_calls import ServerCalls
from acgsperf.tiers.server_clock import ServerClock
from acgsperf.timeouts import time_limit

__all__ = ["ClusterNodes"]

_log: Final = logging.getLogger("acgsperf.tiers")
# How often the nodes are asked while one does not answer: at first, and later.
_WATCH_S: Final = 0.1
_WATCH_LATER_S: Final = 0.5
_LATER_S: Final = 10.0
# The nodes are asked for their slots again after this time, even if all of them work: replicas come and go.
_MAP_AGE_S: Final = 60.0
# How long `find` waits for nodes that hang. The tier is used without them then.
_FIND_S: Final = 0.5
# A node that does not compare tokens within this time hangs. Callers of other nodes do not wait for it.
_HANGS_S: Final = 2.0


class ClusterNodes:
    """Finds the nodes of a cluster, and keeps connections to them.

    Args:
        slots: knows the slots.
        new_calls, equip: see `KnownNodes`.
        stamps: the clock for stamps; the one of the node with the first bucket.
        credentials, max_connections, max_lifetime: as for `RedisTier`, for each node.

    Attributes:
        keys: the keys of each bucket, once it is open.
        homes: the node of each bucket, also if it does not answer. Its address is empty if no node has the slot.
        nodes: all nodes with connections.
        failovers: how often a bucket moved to another node because its former one had failed.
    """

    def __init__(
        self,
        slots: RedisSlots,
        *,
        new_calls: Callable[[Callable[[], None]], ServerCalls],
        equip: Callable[[Node], None],
        stamps: ServerClock,
        credentials: Credentials | None,
        max_connections: int | None,
        max_lifetime: float,
    ) -> None:
        self.slots: Final = slots
        self.keys: list[RedisKeys] = []
        self.nodes: Final = KnownNodes(
            slots,
            new_calls=new_calls,
            equip=equip,
            timed_out=self.suspect,
            restarted=self._disown,
            measured=self.measured,
            credentials=credentials,
            max_connections=max_connections,
            max_lifetime=max_lifetime,
        )
        self.homes: list[Node] = []
        self.failovers: int = 0
        self.label: str = "redis"
        self._stamps = stamps
        # The node of each bucket, once the token of the bucket was compared with its run.
        self._owners: list[Node | None] = [None] * BUCKETS
        # The nodes that may have passed on a bucket, from its last owner on. None if one of them has failed: then only
        # a token of the node itself counts.
        self._givers: dict[int, set[Node] | None] = {}
        # Compares tokens, for each node that has buckets without an owner.
        self._adoptions: dict[Node, asyncio.Task[None]] = {}
        # The buckets that went to another node because one answered MOVED while its tokens were compared.
        self._forwarded: set[int] = set()
        self._slots: list[int] = []
        # The replicas of each primary, when the nodes were asked for their slots before.
        self._replicas: Mapping[str, Collection[str]] = {}
        self._asked_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def open(self, namespace: str, label: str) -> None:
        """Bind to the running event loop. No node is known yet."""
        self._loop = asyncio.get_running_loop()
        self.label = self.nodes.label = label
        self.keys = bucket_keys(namespace)
        self._slots = [key_slot(keys.token) for keys in self.keys]
        self._replicas = {}
        self._givers.clear()
        self.homes = [self.nodes.at("")] * BUCKETS
        self.slots.follow(self)

    async def find(self) -> None:
        """Find the nodes. Those that hang are used later.

        Raises:
            redis.ConnectionError: if no node tells the slots. It is tried again later.
        """
        try:
            await self._ask_slots()
            if self._adoptions:
                await asyncio.wait(self._adoptions.values(), timeout=_FIND_S)
        except BaseException:
            self.suspect()
            raise

    async def close(self) -> None:
        """Close all connections."""
        self._loop = None
        tasks = [task for task in (self._asking, self._watching, *self._adoptions.values()) if task is not None]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            self.nodes.close()
            self._owners = [None] * BUCKETS

    @property
    def in_use(self) -> list[Node]:
        """The nodes that have buckets."""
        return list(dict.fromkeys(self.homes))

    def note_map(self, _found: SlotMap) -> None:
        """See `MapFollower`: somebody else has asked for the slots."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._use_later)

    def _use_later(self) -> None:
        owners = [self.slots.map.owner(slot) for slot in self._slots]
        if self._loop is not None and owners != [node.address for node in self.homes]:
            self.suspect()

    async def refresh(self, buckets: Iterable[int] = range(BUCKETS)) -> None:
        """Ask the nodes for their slots, and return when the tokens of some buckets were compared, if they can be.

        It continues if the caller is cancelled.

        Raises:
            redis.ConnectionError: if no node tells the slots.
        """
        await self._ask_slots()
        await self._adopted(buckets)

    async def _ask_slots(self) -> None:
        if self._loop is None:
            raise RedisConnectionError("the tier was closed")
        task = self._asking
        if task is None or task.done():
            task = self._asking = self._loop.create_task(self._find_slots(), name="acgsperf cluster")
            # If it fails, perhaps no caller waits for it any more.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait([task])
        if task.cancelled():
            # By `close`. This caller was not cancelled.
            raise RedisConnectionError("the tier was closed")
        task.result()

    async def _find_slots(self) -> None:
        self._asked_at = monotonic()
        found = await self.slots.find()
        self._forwarded.clear()
        self._use([found.owner(slot) for slot in self._slots])

    async def _follow(self, moved: Mapping[int, tuple[Node, str]]) -> None:
        """Ask for the slots again, after answers MOVED: the node that gave one, and the address in it, by bucket."""
        await self._ask_slots()
        # A node that answers MOVED may know of it earlier than those that tell the slots.
        self._forward({bucket: address for bucket, (node, address) in moved.items() if self.homes[bucket] is node})
        await self._adopted(moved)

    def _forward(self, moved: Mapping[int, str]) -> None:
        wanted = [node.address for node in self.homes]
        for bucket, address in moved.items():
            wanted[bucket] = address or wanted[bucket]
        self._use(wanted)

    def _use(self, wanted: Sequence[str]) -> None:
        """Use the nodes with these addresses for the buckets, once the tokens are compared."""
        replicas, self._replicas = self._replicas, self.slots.map.replicas
        left: dict[tuple[Node, Node], int] = {}
        for bucket, address in enumerate(wanted):
            former = self.homes[bucket]
            if address == former.address:
                continue
            node = self.homes[bucket] = self.nodes.at(address)
            self._owners[bucket] = None
            if former.address:
                left[former, node] = left.get((former, node), 0) + 1
                givers = self._givers.setdefault(bucket, set())
                # A slot without a node has lost its keys. A replica that was promoted may lack some.
                if not address or address in replicas.get(former.address, ()):
                    self._givers[bucket] = None
                elif givers is not None:
                    givers.add(former)
        for (former, node), count in left.items():
            self._log_left(former, node, count, node.address in replicas.get(former.address, ()))
        for node in {former for former, _ in left} - set(self.homes):
            node.connections.close_idle()
        for node in self.in_use:
            self._adopt_soon(node)
        self._forget_unused()

    def _log_left(self, former: Node, node: Node, count: int, promoted: bool) -> None:
        if not node.address:
            _log.warning(
                "%s: no node has the slots of %d of %d buckets, which %s had; calls for their keys fail",
                *(self.label, count, BUCKETS, former.address),
            )
            return
        self.failovers += promoted
        _log.log(
            logging.WARNING if promoted else logging.INFO,
            "%s: %s took over the slots of %d of %d buckets from %s%s",
            *(self.label, node.address, count, BUCKETS, former.address),
            ", as its replica; their entries are misses now" if promoted else "",
        )

    def _forget_unused(self) -> None:
        primaries = set(self.slots.map.primaries)
        givers = set().union(*filter(None, self._givers.values()))
        needed = {node for node in self.nodes.all if node.address in primaries} | givers | {*self.homes}
        self.nodes.forget_unused(needed | {*self._adoptions})

    async def _adopted(self, buckets: Iterable[int]) -> None:
        """Return when the tokens of some buckets were compared, or cannot be."""
        # A node that answers MOVED meanwhile passes buckets on to another one, once.
        for _ in range(2):
            owners, homes, adoptions = self._owners, self.homes, self._adoptions
            waits = {adoptions[homes[one]] for one in buckets if owners[one] is None and homes[one] in adoptions}
            if not waits:
                return
            await asyncio.wait(waits)

    def _adopt_soon(self, node: Node) -> None:
        """Compare the tokens of the buckets of a node that have no owner, if there are any and nobody does it."""
        if self._loop is None or not node.address or node in self._adoptions:
            return
        if any(home is node and owner is None for home, owner in zip(self.homes, self._owners, strict=True)):
            task = self._loop.create_task(self._adopt(node), name="acgsperf cluster tokens")
            self._adoptions[node] = task
            task.add_done_callback(lambda _: self._adoptions.pop(node, None))

    async def _adopt(self, node: Node) -> None:
        """Compare the tokens of the buckets that a node has and no owner, and use the node for them."""
        tried: set[int] = set()
        while buckets := [bucket for bucket in self._without_owner(node) if bucket not in tried]:
            tried.update(buckets)
            try:
                trusted = await self._trusted(node, buckets)
                moved = await self._compare(node, trusted)
            except (RedisError, OSError, TimeoutError):
                break
            if moved := {bucket: to for bucket, to in moved.items() if to and bucket not in self._forwarded}:
                # The node that has told the slots did not know of it yet.
                self._forwarded.update(moved)
                self._forward(moved)
        if self._without_owner(node):
            self.suspect()

    def _without_owner(self, node: Node) -> list[int]:
        return [
            bucket
            for bucket, (home, owner) in enumerate(zip(self.homes, self._owners, strict=True))
            if home is node and owner is None
        ]

    async def _trusted(self, node: Node, buckets: Sequence[int]) -> dict[int, bytes]:
        """Return the runs of the nodes that may have passed buckets on to this one, by bucket.

        A node that cannot be asked now, or is a replica, is none of them. Then the entries of its buckets are misses.
        """
        commands = [("GET", self.keys[bucket].token) for bucket in buckets]
        async with time_limit(_HANGS_S):
            tokens = await self._ask_twice(node, commands)
        wanted: dict[int, bytes] = {}
        for bucket, token in zip(buckets, tokens, strict=True):
            run = run_in_token(token) if type(token) is bytes else b""
            if run not in (b"", node.run) and self._givers.get(bucket, ()) is not None:
                wanted[bucket] = run
        runs: dict[Node, bytes] = {}
        if wanted:
            primaries = set(map(self.nodes.at, self.slots.map.primaries))
            givers = {bucket: (self._givers.get(bucket) or set()) | primaries - {node} for bucket in wanted}
            runs = await self._runs(set().union(*givers.values()), set(wanted.values()))
        return {
            bucket: b" ".join(run for one, run in runs.items() if bucket in wanted and one in givers[bucket])
            for bucket in buckets
        }

    async def _runs(self, nodes: Collection[Node], wanted: Collection[bytes]) -> dict[Node, bytes]:
        """Ask nodes for their runs now, until the wanted ones are found, or none is left that does not hang."""
        found: dict[Node, bytes] = {}
        asked: dict[asyncio.Future[bytes], Node] = {asyncio.ensure_future(self._run_of(node)): node for node in nodes}
        pending: Collection[asyncio.Future[bytes]] = asked
        until = monotonic() + _HANGS_S
        try:
            while pending and not set(wanted) <= set(found.values()) and (remaining := until - monotonic()) > 0:
                done, pending = await asyncio.wait(pending, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
                found |= {asked[task]: run for task in done if (run := task.result())}
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return found

    async def _run_of(self, node: Node) -> bytes:
        with suppress(RedisError, OSError):
            replies = await self._ask_twice(node, [("INFO", "replication"), ("INFO", "server")])
            return read_run(check_primary(replies)[0])
        return b""

    async def _ask_twice(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        """Ask a node, once more if the first connection finds out that it was restarted."""
        try:
            return await node.connections.ask(commands, list)
        except RestartedError:
            return await node.connections.ask(commands, list)

    async def _compare(self, node: Node, buckets: Mapping[int, bytes]) -> dict[int, str]:
        """Compare the tokens of buckets with the run of their node. Use the node for them if it answers.

        Args:
            node: the node.
            buckets: the runs of the nodes that may have passed a bucket on, by bucket.

        Returns:
            The addresses of other nodes that have some of the buckets, as the node says.
        """
        run = node.run
        commands: list[Command] = [("TIME",)]
        for bucket, others in buckets.items():
            call = ScriptCall(ADOPT, [self.keys[bucket].token], [TOKEN_TTL_MS, others], 0)
            # The first call makes the script known.
            commands.append(call.command(by_name=len(commands) > 1))
        sent = monotonic()
        async with time_limit(_HANGS_S):
            time, *replies = await node.connections.ask(commands, list)
        self.nodes.measure(node, sent, monotonic(), time)
        moved: dict[int, str] = {}
        for bucket, reply in zip(buckets, replies, strict=True):
            if isinstance(reply, MovedError):
                moved[bucket] = target_of(reply, node)
            elif self.homes[bucket] is node and node.run == run and not isinstance(reply, ClusterDownError):
                # Without the right to a script, the tier works, and does not notice a failover. If the token is already
                # where the slot moves to, it is compared there when the slot has moved.
                self._owners[bucket] = node
                self._givers.pop(bucket, None)
        return moved

    def _disown(self, node: Node) -> None:
        """Compare the tokens of a node again, because it was restarted."""
        for bucket, owner in enumerate(self._owners):
            if owner is node:
                self._owners[bucket] = self._givers[bucket] = None

    def measured(self, node: Node, sent: float, received: float, server_time: float) -> None:
        """Note the time of a node."""
        node.clock.measured(sent, received, server_time)
        if self.homes and self.homes[0] is node:
            self._stamps.measured(sent, received, server_time)

    def check_soon(self, node: Node) -> None:
        """Once a minute, measure the clock of a node, compare and renew its tokens, and ask for the slots.

        The caller does not wait.
        """
        if node.address and node.clock.is_due():
            node.calls.start(self._check(node))

    async def _check(self, node: Node) -> None:
        buckets = [bucket for bucket, owner in enumerate(self._owners) if owner is node]
        renewals: list[Command] = [
            ("PEXPIRE", key, TOKEN_TTL_MS)
            for bucket in buckets
            for key in (self.keys[bucket].invalidations, self.keys[bucket].fence)
        ]
        await node.calls.run(lambda: self._compare(node, dict.fromkeys(buckets, b"")))
        if renewals:
            await node.calls.run(lambda: node.connections.ask(renewals, list))
        if monotonic() - self._asked_at > _MAP_AGE_S:
            # A replica is recognized when it is promoted only if it was known before.
            with suppress(RedisError, OSError):
                await self._ask_slots()

    def suspect(self) -> None:
        """Ask for the slots until all nodes answer, because one does not."""
        if self._loop is not None and (self._watching is None or self._watching.done()):
            self._watching = self._loop.create_task(self._watch(), name="acgsperf cluster watch")

    async def _watch(self) -> None:
        began = monotonic()
        while True:
            with suppress(RedisError, OSError):
                await self._ask_slots()
            tokens = {node: keys.token for node, keys in zip(self.homes, self.keys, strict=True)}
            failing = [node for node in tokens if node.calls.breaker.failures_in_a_row]
            for node in failing:
                if node.address and (node.calls.breaker.state is BreakerState.CLOSED or node.calls.breaker.allow()):
                    # The node is tried here, so that no caller waits for it. While the cluster is down, it answers PING
                    # and refuses this.
                    command = ("EXISTS", tokens[node])
                    await node.calls.run(lambda node=node, command=command: node.connections.ask([command], list))  # type: ignore[misc]
            if not failing and None not in self._owners:
                return
            await asyncio.sleep(_WATCH_S if monotonic() - began < _LATER_S else _WATCH_LATER_S)
