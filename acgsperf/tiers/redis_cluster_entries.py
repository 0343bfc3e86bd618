"""The entries of a namespace in a Redis Cluster: reads, writes, locks and removals, bucket by bucket."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from acgsperf._native import envelope_format as envelope
from acgsperf.dispatch import mget, unseal_many
from acgsperf.tiers.base import Entry, Observation, Outcome, WriteResult
from acgsperf.tiers.redis_calls import Job, RedisCalls, Reply, ScriptCall
from acgsperf.tiers.redis_cluster import RedisCluster
from acgsperf.tiers.redis_keys import BUCKETS, bucket_of, bucket_of_key
from acgsperf.tiers.redis_locks import RedisLocks
from acgsperf.tiers.redis_node import Node
from acgsperf.tiers.redis_replies import UnexpectedReplyError, blobs, text
from acgsperf.tiers.redis_role import Role, product_of
from acgsperf.tiers.redis_sweep import RedisSweep
from acgsperf.tiers.redis_tokens import Renewals, drop_invalidated
from acgsperf.tiers.redis_writes import RedisWrites, by_kind
from acgsperf.tiers.server import Wanted
from acgsperf.tiers.server_calls import Attempt, ServerCalls
from acgsperf.tiers.tier_arguments import MOST_STAMP
from acgsperf.tiers.write_batches import REFUSED, UNKNOWN, WriteBatch

if TYPE_CHECKING:
    from acgsperf.tiers.redis_connections import Command

__all__ = ["ClusterEntries"]

TOKEN_BYTES: Final = envelope.TOKEN_BYTES

_K = TypeVar("_K")


class ClusterEntries:
    """Carries out the calls of a tier in a cluster.

    Args:
        cluster: the nodes.
        calls: those of the tier.
        count_corrupt: counts an envelope that cannot be opened.
        max_value_bytes: larger envelopes are not read.
        retention: as for `RedisWrites`.
    """

    def __init__(
        self,
        cluster: RedisCluster,
        calls: ServerCalls,
        count_corrupt: Callable[[], None],
        *,
        max_value_bytes: int,
        retention: float,
    ) -> None:
        self._cluster = cluster
        self._calls = calls
        self._max_value_bytes = max_value_bytes
        self._count_corrupt = count_corrupt
        self._scripts = RedisCalls(cluster, cluster.label, self._prefix().decode())
        self._writes = _Writes(cluster, self._scripts, retention, calls)
        self._locks: dict[int, RedisLocks] = {}
        self._renewals: dict[int, Renewals] = {}
        self._sweep = RedisSweep(self._scripts, cluster, self._prefix(), lambda key: cluster.keys[bucket_of_key(key)])

    def _prefix(self) -> bytes:
        """Return what all keys of the namespace begin with."""
        return self._cluster.keys[0].prefix.partition(b":{")[0]

    def close(self) -> None:
        """Forget locks of unknown state."""
        for locks in self._locks.values():
            locks.close()

    async def fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        """Return the entries of keys, in order."""
        identities = envelope.identities(keys)
        # The positions of the keys of each bucket.
        groups: dict[int, list[int]] = {}
        for at, identity in enumerate(identities):
            bucket = bucket_of(identity)
            if bucket in groups:
                groups[bucket].append(at)
            else:
                groups[bucket] = [at]
        cluster = self._cluster
        all_keys, longest = cluster.keys, envelope.MAX_KEY_BYTES
        asked: list[list[bytes]] = []
        commands: list[Command] = []
        for bucket, places in groups.items():
            some = [identities[places[0]]] if len(places) == 1 else [identities[at] for at in places]
            own = all_keys[bucket]
            # The token of the bucket is read last.
            command = mget(some, own.prefix, own.token, longest)
            commands.append(("MGET", *_entry_keys(own.prefix, some), own.token) if command is None else command)
            asked.append(some)

        def check(at: int, reply: Any) -> Any:
            return reply if isinstance(reply, ResponseError) else blobs(reply, len(asked[at]) + 1)

        replies = await cluster.replies(list(groups), commands, check, patient=False)
        found: list[Entry | None] = [None] * len(keys)
        all_tagged: list[tuple[int, list[tuple[int, Sequence[bytes]]]]] = []
        now, limit, corrupt = monotonic(), self._max_value_bytes, 0
        home = None
        for (bucket, places), some, reply in zip(groups.items(), asked, replies, strict=True):
            if cluster.homes[bucket] is not home:
                home = cluster.homes[bucket]
                offset = home.clock.offset
                cluster.check_soon(home)
            if type(reply) is not list:
                own = all_keys[bucket]
                reply = await self._get_each(bucket, [*_entry_keys(own.prefix, some), own.token])
            # Without a token, everything is a miss.
            token = (reply.pop() or b"")[:TOKEN_BYTES]
            entries, tagged, wrong = unseal_many(reply, some, limit, now, offset, token)
            corrupt += wrong
            if len(places) == 1:
                found[places[0]] = entries[0]
            else:
                for place, entry in zip(places, entries, strict=True):
                    found[place] = entry
            if tagged:
                all_tagged.append((bucket, [(places[at], tokens) for at, tokens in tagged]))
        for _ in range(corrupt):
            self._count_corrupt()
        if all_tagged:
            await self._compare_tags(found, all_tagged)
        return found

    async def _compare_tags(
        self, found: list[Entry | None], all_tagged: Sequence[tuple[int, list[tuple[int, Sequence[bytes]]]]]
    ) -> None:
        """Drop the entries of which a tag was invalidated."""
        buckets = [bucket for bucket, _ in all_tagged]
        tags = [
            list({tag for at, _ in tagged if (entry := found[at]) for tag in entry.tags}) for _, tagged in all_tagged
        ]
        keys = [list(map(self._cluster.keys[bucket].tag, some)) for bucket, some in zip(buckets, tags, strict=True)]

        def check(at: int, reply: Any) -> Any:
            return reply if isinstance(reply, ResponseError) else blobs(reply, len(keys[at]))

        commands = [("MGET", *some) for some in keys]
        replies = await self._cluster.replies(buckets, commands, check, patient=False)
        for (bucket, tagged), names, some, reply in zip(all_tagged, tags, keys, replies, strict=True):
            values = await self._get_each(bucket, some) if isinstance(reply, ResponseError) else reply
            offset = self._cluster.homes[bucket].clock.offset
            drop_invalidated(found, tagged, dict(zip(names, values, strict=True)), offset)
            renewals = self._renewals.get(bucket)
            if renewals is None:
                renewals = self._renewals[bucket] = Renewals(self._calls, self._scripts, self._cluster.keys[bucket])
            renewals.renew(found, tagged)

    async def _get_each(self, bucket: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read keys one by one: some of them have moved to another node, or the server refuses some."""

        def check(_at: int, reply: Any) -> Any:
            if not isinstance(reply, ResponseError | bytes | None):
                raise UnexpectedReplyError(f"reply must be a string, got {type(reply).__name__}")
            return reply

        replies = await self._cluster.replies([bucket] * len(keys), [("GET", key) for key in keys], check)
        return self._calls.without_errors(replies)

    async def observe(self, wanted: Sequence[Wanted]) -> list[Observation | None]:
        """See `RedisWrites.observe`."""
        return await self._writes.observe(wanted)

    async def carry_out(self, batch: WriteBatch) -> None:
        """See `RedisWrites.carry_out`."""
        await self._writes.carry_out(batch)

    async def invalidate(self, tag: str | None, refused_below: bool, attempt: Attempt) -> WriteResult:
        """Remove the token of a tag, or that of the namespace, in every bucket."""
        return await self._on_every_node(lambda some: self._writes.invalidate_in(some, tag, refused_below, attempt))

    async def expire_tag(self, tag: str, attempt: Attempt) -> WriteResult:
        """Store the time before which the entries of a tag are stale, in every bucket."""
        return await self._on_every_node(lambda some: self._writes.expire_tag_in(some, tag, attempt))

    async def _on_every_node(self, write: Callable[[Sequence[int]], Awaitable[WriteResult]]) -> WriteResult:
        """Return the result for all nodes: UNKNOWN if one did not answer, REFUSED if one has refused it."""

        async def ask(node: Node, buckets: Sequence[int]) -> WriteResult:
            if not node.calls.allow(1):
                return REFUSED
            result = await node.calls.run(lambda: write(buckets))
            return UNKNOWN if result is None else result

        results = await asyncio.gather(*(ask(node, buckets) for node, buckets in self._by_node(range(BUCKETS))))
        for worst in (Outcome.UNKNOWN, Outcome.REFUSED):
            if any(result.outcome is worst for result in results):
                return UNKNOWN if worst is Outcome.UNKNOWN else REFUSED
        return WriteResult(Outcome.STORED)

    def _by_node(self, buckets: Iterable[int]) -> list[tuple[Node, list[int]]]:
        groups: dict[Node, list[int]] = {}
        for bucket in buckets:
            groups.setdefault(self._cluster.homes[bucket], []).append(bucket)
        return list(groups.items())

    def locks(self, key: str) -> RedisLocks:
        """Return the locks of the bucket of a key."""
        bucket = bucket_of(envelope.identity(key))
        home = self._cluster.homes[bucket]
        locks = self._locks.get(bucket)
        if locks is None:
            # The log is in another slot, so that a release is not in it. Those that wait ask again.
            keys = self._cluster.keys[bucket]
            locks = self._locks[bucket] = RedisLocks(home.calls, self._scripts, keys, home.clock, b"")
        locks.calls = home.calls
        return locks

    async def sweep(self) -> int | None:
        """Remove the entries with a former token, as `RedisTier` does, on every node."""
        nodes = self._cluster.in_use
        if not all(node.address for node in nodes):
            return None
        counts = await asyncio.gather(*(self._sweep.run(node.calls, node.connections) for node in nodes))
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    async def describe(self) -> str:
        """Ask every primary for its role, and return the topology in words."""
        cluster = self._cluster
        await cluster.refresh()
        nodes = [node for node in cluster.in_use if node.address]

        async def ask(node: Node) -> str:
            asked = [("INFO", "server"), ("INFO", "replication")]
            info, replication = await node.connections.ask(asked, lambda replies: list(map(text, replies)))
            node.calls.breaker.succeeded()
            return f"{product_of(info)} at {node.address}, {Role(replication).describe()}"

        answers = await asyncio.gather(*map(ask, nodes), return_exceptions=True)
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, Exception):
                    raise answer
                raise type(answer)(f"{node.address} of {len(nodes)} primaries of the cluster: {answer}") from answer
        if missing := sum(not node.address for node in cluster.homes):
            raise RedisConnectionError(f"no node of the cluster has the slots of {missing} of {BUCKETS} buckets")
        return f"cluster of {len(nodes)} primaries: {'; '.join(map(str, answers))}"


class _Writes(RedisWrites):
    """Writes of all buckets together; each call of a script is for one of them.

    Args:
        cluster: the nodes.
        scripts: calls the scripts.
        retention: as for `RedisWrites`.
        calls: those of the tier.
    """

    def __init__(self, cluster: RedisCluster, scripts: RedisCalls, retention: float, calls: ServerCalls) -> None:
        options: dict[str, Any] = {"retention": retention, "writer": b"", "errors": calls.errors}
        super().__init__(scripts, cluster.keys[0], cluster.homes[0].clock, **options)
        self._cluster = cluster
        self._of = [RedisWrites(scripts, keys, cluster.homes[0].clock, **options) for keys in cluster.keys]

    def _bucket(self, bucket: int) -> RedisWrites:
        """Return what builds the calls for a bucket, by the clock of its node."""
        writes = self._of[bucket]
        writes.clock = self._cluster.homes[bucket].clock
        return writes

    async def carry_out(self, batch: WriteBatch) -> None:
        parts = [
            (self._bucket(bucket), by_kind(items))
            for bucket, items in _by_bucket(batch.operations.items(), _key_of).items()
        ]
        await self._run(batch, [build for writes, items in parts for build in writes.builds(batch, items)])
        await self._remove_refused(batch, [build for writes, items in parts for build in writes.removals(batch, items)])

    def _measure(self, sent: float, received: float, job: Job | None, reply: Reply) -> None:
        if job is not None and isinstance(reply, list) and 0 < abs(reply[0]) < MOST_STAMP:
            node = self._cluster.homes[bucket_of(envelope.identity(job[1][0][0]))]
            self._cluster.measured(node, sent, received, abs(reply[0]) / 1e6)

    async def observe(self, wanted: Sequence[Wanted]) -> list[Observation | None]:
        groups = _by_bucket(wanted, _key_of)
        return await self._observed(
            wanted, [(self._bucket(bucket).observe_call, some) for bucket, some in groups.items()]
        )

    async def invalidate_in(
        self, buckets: Sequence[int], tag: str | None, refused_below: bool, attempt: Attempt
    ) -> WriteResult:
        """Remove a token in some buckets."""
        return await self._run_in(buckets, lambda writes: writes.invalidate_call(tag, refused_below), attempt)

    async def expire_tag_in(self, buckets: Sequence[int], tag: str, attempt: Attempt) -> WriteResult:
        """Store the time before which entries of a tag are stale in some buckets."""
        return await self._run_in(buckets, lambda writes: writes.expire_tag_call(tag), attempt)

    async def _run_in(
        self, buckets: Sequence[int], build: Callable[[RedisWrites], Any], attempt: Attempt
    ) -> WriteResult:
        for _ in range(2):
            sent = monotonic()
            calls = []
            for bucket in buckets:
                writes = self._bucket(bucket)
                script, keys, arguments = build(writes)
                calls.append(ScriptCall(script, keys, [writes.deadline_us(attempt), *arguments], 2))
            late = []
            refused = False
            replies = await self._scripts.run(calls, attempt.mark_sent)
            received = monotonic()
            for bucket, reply in zip(buckets, replies, strict=True):
                if isinstance(reply, ResponseError):
                    self._errors[type(reply).__name__] += 1
                    refused = True
                elif len(reply) == 1:
                    late.append(bucket)
                    self._cluster.measured(self._cluster.homes[bucket], sent, received, abs(reply[0]) / 1e6)
            if refused:
                return REFUSED
            if not late:
                return WriteResult(Outcome.STORED)
            if attempt.remaining() <= 0:
                break
            buckets = late
        return REFUSED


def _key_of(item: tuple[str, Any]) -> str:
    return item[0]


def _by_bucket(items: Iterable[_K], key_of: Callable[[_K], str]) -> dict[int, list[_K]]:
    groups: dict[int, list[_K]] = {}
    for item in items:
        groups.setdefault(bucket_of(envelope.identity(key_of(item))), []).append(item)
    return groups


def _entry_keys(prefix: bytes, identities: list[bytes]) -> list[bytes]:
    return [prefix + address for address in envelope.addresses(identities)]
