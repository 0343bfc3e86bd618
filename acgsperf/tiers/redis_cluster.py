"""Sends commands to the nodes of a Redis Cluster, each to the node that has its keys."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, TypeVar

from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.base import ConnectionStats
from acgsperf.tiers.redis_connections import Command
from acgsperf.tiers.redis_keys import bucket_of_key
from acgsperf.tiers.redis_node import Node, RestartedError, target_of
from acgsperf.tiers.redis_nodes import ClusterNodes

__all__ = ["RedisCluster"]

# While a slot moves, a command for keys of which some have moved is repeated after this time, and for how long. The
# other commands of the same call wait for it.
_TRY_AGAIN_S: Final = 0.01
_PATIENCE_S: Final = 0.1
_MOST_ROUNDS: Final = 8
_REDIRECTIONS: Final = frozenset({MovedError, AskError, TryAgainError, ClusterDownError})
_SCRIPTS: Final = frozenset({"EVALSHA", "EVAL"})

_T = TypeVar("_T")


class RedisCluster(ClusterNodes):
    """Sends commands to the nodes of a cluster. It may take the place of `RedisConnections`."""

    @property
    def connect_time(self) -> LatencyHistogram:
        """How long it took to open a connection to any node so far, in ns."""
        return self.nodes.connect_time

    def stats(self) -> ConnectionStats:
        """Return the open connections to all nodes, and the counts so far."""
        return self.nodes.stats()

    async def ask(
        self,
        commands: Sequence[Command],
        read: Callable[[list[Any]], _T],
        before_sending: Callable[[], None] | None = None,
    ) -> _T:
        """As `RedisConnections.ask`. Each command goes to the node of its first key."""
        buckets = [_bucket(command) for command in commands]
        return read(await self.replies(buckets, commands, before_sending=before_sending))

    async def replies(
        self,
        buckets: Sequence[int],
        commands: Sequence[Command],
        check: Callable[[int, Any], Any] | None = None,
        before_sending: Callable[[], None] | None = None,
        *,
        patient: bool = True,
    ) -> list[Any]:
        """Send commands, one pipeline to each node, and return their replies in order; errors are among them.

        Args:
            buckets: the bucket of each command.
            commands: the commands.
            check: gets the position of a command and its reply, and returns the reply or raises
                `UnexpectedReplyError`.
            before_sending: called before a server may see any of the commands.
            patient: whether a command that has keys of which some have moved is repeated for a while. After that, the
                error is its reply.

        Raises:
            redis.RedisError, OSError: if a node cannot be reached. The others have got their commands.
        """
        todo: Sequence[int] = range(len(commands))
        groups: Mapping[Node, Sequence[int]] = await self._by_node(buckets, todo)
        found: list[Any] = await self._sent(groups, commands, check, before_sending)
        if len(found) == 1 and type(found[0]) is list and _REDIRECTIONS.isdisjoint(map(type, found[0])):
            # Usually, one node has all of it, and no slot moves.
            whole: list[Any] = found[0]
            return whole
        replies: list[Any] = [None] * len(commands)
        rounds, give_up_at = 0, monotonic() + _PATIENCE_S * patient
        while True:
            patient = monotonic() < give_up_at
            failed: BaseException | None = None
            again: list[int] = []
            moved: dict[int, tuple[Node, str]] = {}
            asked: dict[Node, list[int]] = {}
            for (node, some), part in zip(groups.items(), found, strict=True):
                if isinstance(part, RestartedError):
                    again += some
                    moved.update((buckets[at], (node, "")) for at in some)
                    continue
                if isinstance(part, BaseException):
                    failed = part
                    continue
                for at, reply in zip(some, part, strict=True):
                    replies[at] = reply
                    if isinstance(reply, MovedError):
                        moved[buckets[at]] = node, target_of(reply, node)
                        again.append(at)
                    elif isinstance(reply, AskError):
                        asked.setdefault(self.nodes.at(target_of(reply, node)), []).append(at)
                    elif isinstance(reply, TryAgainError) and patient:
                        again.append(at)
                    elif isinstance(reply, ClusterDownError):
                        # No node has the slot.
                        self.suspect()
            if failed is not None:
                raise failed
            for at, reply in await self._ask_targets(asked, commands, check, before_sending) if asked else ():
                replies[at] = reply
                # The target may have passed the slot on, or given up importing it.
                if isinstance(reply, AskError | TryAgainError) and patient:
                    again.append(at)
            if not again:
                return replies
            todo = again
            if moved:
                rounds += 1
                if rounds > _MOST_ROUNDS:
                    raise RedisConnectionError(f"the nodes of the cluster disagree about {len(moved)} slots")
                await self._follow(moved)
            if rounds != 1 or not moved:
                # Without MOVED, a slot moves. After the first MOVED, nodes tell each other which one has it.
                await asyncio.sleep(_TRY_AGAIN_S)
            groups = await self._by_node(buckets, todo)
            found = await self._sent(groups, commands, check, before_sending)

    async def _sent(
        self,
        groups: Mapping[Node, Sequence[int]],
        commands: Sequence[Command],
        check: Callable[[int, Any], Any] | None,
        before_sending: Callable[[], None] | None,
    ) -> list[Any]:
        """Send each node its commands, and return its replies, or the error for each node."""
        parts = [self._at(node, some, commands, check, before_sending) for node, some in groups.items()]
        if len(parts) == 1:
            return [await parts[0]]
        found: list[Any] = await asyncio.gather(*parts, return_exceptions=True)
        return found

    async def _by_node(self, buckets: Sequence[int], todo: Sequence[int]) -> Mapping[Node, Sequence[int]]:
        """Return the positions of the commands for each node."""
        owners = {self._owners[buckets[at]] for at in todo}
        if len(owners) == 1 and (owner := owners.pop()) is not None:
            return {owner: todo}
        if missing := self._missing(buckets, todo):
            # Perhaps their tokens are being compared.
            await self._adopted(missing)
            if self._missing(buckets, todo):
                await self.refresh(missing)
        groups: dict[Node, list[int]] = {}
        for at in todo:
            node = self._owners[buckets[at]]
            if node is None:
                self.suspect()
                raise self._no_owner(buckets[at])
            groups.setdefault(node, []).append(at)
        return groups

    def _missing(self, buckets: Sequence[int], todo: Sequence[int]) -> set[int]:
        return {buckets[at] for at in todo if self._owners[buckets[at]] is None}

    def _no_owner(self, bucket: int) -> RedisConnectionError:
        slot, where = f"slot {self._slots[bucket]}", self.homes[bucket].address
        if where:
            return RedisConnectionError(f"{where} does not answer for the {slot} of the {self.slots.where}")
        return RedisConnectionError(f"no node has the {slot} of the {self.slots.where}")

    async def _at(
        self,
        node: Node,
        some: Sequence[int],
        commands: Sequence[Command],
        check: Callable[[int, Any], Any] | None,
        before_sending: Callable[[], None] | None,
    ) -> "list[Any] | RestartedError":
        def read(replies: list[Any]) -> list[Any]:
            return replies if check is None else list(map(check, some, replies))

        try:
            return await node.connections.ask([commands[at] for at in some], read, before_sending)
        except RestartedError as error:
            return error
        except BaseException:
            if self._loop is not None:
                self.suspect()
            raise

    async def _ask_targets(
        self,
        asked: Mapping[Node, Sequence[int]],
        commands: Sequence[Command],
        check: Callable[[int, Any], Any] | None,
        before_sending: Callable[[], None] | None,
    ) -> list[tuple[int, Any]]:
        """Send commands to the nodes that their slots move to, for keys that are there already.

        Returns:
            The reply to each command. It is the answer ASK if the target cannot be reached: the source works, and so do
            its other keys.
        """
        found = await asyncio.gather(
            *(self._ask_target(node, some, commands, before_sending) for node, some in asked.items())
        )
        parts = zip(asked.values(), found, strict=True)
        pairs = [pair for some, part in parts for pair in zip(some, part, strict=True)]
        return [(at, reply if check is None else check(at, reply)) for at, reply in pairs]

    async def _ask_target(
        self, node: Node, some: Sequence[int], commands: Sequence[Command], before_sending: Callable[[], None] | None
    ) -> Sequence[Any]:
        is_sent = False

        def sending() -> None:
            nonlocal is_sent
            is_sent = True
            if before_sending is not None:
                before_sending()

        unreachable = [AskError(f"0 {node.address}")] * len(some)
        breaker = node.calls.breaker
        if not breaker.allow():
            return unreachable
        together = [command for at in some for command in (("ASKING",), commands[at])]
        try:
            replies = await node.connections.ask(together, lambda replies: replies[1::2], sending)
        except BaseException as error:
            breaker.failed()
            if is_sent or not isinstance(error, RedisError | OSError):
                raise
            return unreachable
        breaker.succeeded()
        return replies


def _bucket(command: Command) -> int:
    """Return the bucket of the first key of a command, which is not packed."""
    assert not isinstance(command, bytes)
    return bucket_of_key(command[3 if command[0] in _SCRIPTS else 1])
