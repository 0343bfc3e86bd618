"""L2: entries in Redis, over redis-py's connections.

The tier uses RESP2: every reply belongs to the command before it, and the server never pushes anything in between.
redis-py's retries are off. A connection carries one batch at a time. If a batch does not end well, its connection is
closed, so that a late reply can never be read as the answer to something else.

The namespace and each tag have a token: random bytes in a key of their own, copied into each entry. Invalidation
removes the token, in constant time; an entry with another token is a miss. If the server evicts a token, its entries
become misses, and never old hits. Every read includes the token of the namespace. If a batch finds entries with tags,
it reads their tokens in a second round trip.

Everything that writes is a script, because it compares first: see `redis_scripts`.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ClusterCrossSlotError, ResponseError

from acgsperf._native import envelope_format as envelope
from acgsperf.dispatch import mget
from acgsperf.tiers.base import Entry, Observation, Outcome, TierStats, WriteResult
from acgsperf.tiers.redis_calls import RedisCalls, ScriptCall
from acgsperf.tiers.redis_cluster_entries import ClusterEntries
from acgsperf.tiers.redis_cluster_tier import InCluster
from acgsperf.tiers.redis_connections import MAX_LIFETIME_S, Command, Credentials, Greeting, RedisConnections
from acgsperf.tiers.redis_keys import TOKEN_TTL_MS, RedisKeys
from acgsperf.tiers.redis_locks import RedisLocks
from acgsperf.tiers.redis_replies import (
    ReplicaError,
    UnexpectedReplyError,
    blobs,
    each,
    is_of_replica,
    is_refusal,
    text,
)
from acgsperf.tiers.redis_role import Role, node_error, product_of
from acgsperf.tiers.redis_scripts import GENERATION
from acgsperf.tiers.redis_slots import ClusterServer
from acgsperf.tiers.redis_sweep import RedisSweep
from acgsperf.tiers.redis_tls import hint_of
from acgsperf.tiers.redis_tokens import Renewals, drop_invalidated
from acgsperf.tiers.redis_writes import RedisWrites
from acgsperf.tiers.server import DEADLINE_S, MAX_VALUE_BYTES, ServerTier, Unsealed, Wanted, check_tag
from acgsperf.tiers.server_calls import Attempt
from acgsperf.tiers.stats import CountedConnections
from acgsperf.tiers.tier_arguments import MOST_STAMP
from acgsperf.tiers.write_batches import WriteBatch

if TYPE_CHECKING:
    import asyncio

__all__ = ["RedisTier"]

KEYS_A_COMMAND: Final = 1_000
# If the tier only reads, it asks this often whether the server has become a replica.
_ROLE_EVERY_S: Final = 1.0


class RedisTier(ServerTier):
    """Keeps entries in a Redis server that processes share.

    Args:
        url: `redis://`, `rediss://` (certificate and host name are checked), `unix://`, or the sentinels that watch the
            server: `redis+sentinel://[user:password@]host:port,host:port/service`, or nodes of a cluster:
            `redis+cluster://[user:password@]host:port,host:port`. Both have a form with `rediss`.
        deadline: seconds after which a call returns, even if the server does not answer.
        max_value_bytes: larger envelopes are neither stored nor read.
        compress_above: the bytes above which a value is compressed by zstd, if that makes it smaller; None (default)
            for never. All tiers read compressed values. It needs Python 3.14 or `pip install 'acgsperf[zstd]'`.
        max_connections: maximum number of open connections, in a cluster to each node; callers wait for one in order.
            None for the URL's `max_connections`, or 10.
        max_lifetime: seconds after which a connection is replaced; most are replaced up to 10 % earlier.
        credentials: called for each new connection; returns, or awaits, a password, or a user name and a password. Use
            it for tokens that expire. The URL must not contain a user name or password then.

    Attributes:
        connections: to the server, in a cluster to the node with the log. `connections.clone` makes others, for what
            blocks.
        keys: the names of the keys of the namespace, once the tier is open.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it, because it may contain a password.
    """

    name = "redis"
    keys: RedisKeys
    _redis_writes: RedisWrites | ClusterEntries

    def __init__(
        self,
        url: str,
        *,
        deadline: float = DEADLINE_S,
        max_value_bytes: int = MAX_VALUE_BYTES,
        compress_above: int | None = None,
        max_connections: int | None = None,
        max_lifetime: float = MAX_LIFETIME_S,
        credentials: Credentials | None = None,
    ) -> None:
        self.connections: Final = RedisConnections(
            url, max_connections=max_connections, max_lifetime=max_lifetime, credentials=credentials
        )
        super().__init__(
            self.connections.where, deadline=deadline, max_value_bytes=max_value_bytes, compress_above=compress_above
        )
        server = self.connections.server
        self._in_cluster: InCluster | None = None
        if isinstance(server, ClusterServer):
            self._in_cluster = found = InCluster(
                server.slots,
                self._calls,
                deadline=self.deadline,
                check_use=self._check_use,
                stamps=self.server_clock,
                credentials=credentials,
                max_connections=max_connections,
                max_lifetime=max_lifetime,
            )
            self._reads, self._observations, self._writes = found.reads, found.observations, found.writes
            self._pending_writes = self._writes.pending
            self._breaker = found.breaker
            self.begin_get: Callable[[str], asyncio.Future[Entry | None] | None] = found.begin_get
        self._breaker.recovery_s = server.recovery_s
        self._calls.hint = hint_of(url)
        self._ask = self.connections.ask
        self._sweeping = False
        self._ask_role_at = 0.0

    def __repr__(self) -> str:
        return f"RedisTier({self._where!r})"

    async def invalidate_tag(self, tag: str) -> int | None:
        check_tag(tag)
        result = await self.invalidate(tag)
        # How many entries had the former token is unknown.
        return 0 if result.outcome is Outcome.STORED else None

    async def clear(self) -> int | None:
        """Delete all entries of the namespace: by its token at once, then from memory; see `Tier`."""
        result = await self._attempt(lambda attempt: self._redis_writes.invalidate(None, False, attempt))
        return await self._sweep() if result.outcome is Outcome.STORED else None

    async def lock(self, key: str, ttl: float) -> int | None:
        """See `LockingTier`. If the lock is held, the server notes that a caller waits for its release."""
        self._check_use()
        locks = self._locks if self._in_cluster is None else self._in_cluster.locks(key)
        if not locks.calls.allow(1):
            return None
        if not ttl > 0:
            raise ValueError(f"ttl must be greater than 0, got {ttl!r}")
        return await locks.lock(key, ttl)

    async def unlock(self, key: str, token: int, outcome: bytes = b"") -> bool:
        """See `LockingTier`. If a caller waits, a record of the release has the outcome."""
        self._check_use()
        locks = self._locks if self._in_cluster is None else self._in_cluster.locks(key)
        if not locks.calls.allow(1):
            return False
        return await locks.unlock(key, token, outcome)

    async def _start(self) -> None:
        self.keys = keys = RedisKeys(self._namespace)
        label = self.connections.label = f"{self.name} tier {self._namespace!r}"
        if self._in_cluster is not None:
            self._redis_writes = self._in_cluster.open(
                self._namespace, label, self.count_corrupt, self._max_value_bytes, self.retention
            )
            await self._in_cluster.find()
            return
        self._scripts = RedisCalls(self.connections, label, keys.prefix.decode()[:-1])
        self._redis_writes = RedisWrites(
            self._scripts,
            keys,
            self.server_clock,
            retention=self.retention,
            writer=self.writer,
            errors=self._calls.errors,
        )
        self._locks = RedisLocks(self._calls, self._scripts, keys, self.server_clock, self.writer)
        self._renewals = Renewals(self._calls, self._scripts, keys)
        self._sweeper = RedisSweep(self._scripts, self.connections, keys.prefix[:-1], lambda _: keys)
        generation = ScriptCall(GENERATION, [keys.token, keys.invalidations, keys.fence], [TOKEN_TTL_MS], items=0)
        self.connections.greeting = Greeting([("TIME",), generation.command(by_name=False)], self._greeted)
        self.connections.open()
        await self._ask([("PING",)], lambda replies: text(replies[0]))

    def _greeted(self, sent: float, received: float, replies: list[Any]) -> bytes:
        """Read the server's time, and return its run. A server that refuses both can still be used."""
        time, generation = replies
        if isinstance(generation, ResponseError):
            if is_of_replica(generation):
                raise ReplicaError(generation)
            if isinstance(generation, ClusterCrossSlotError):
                raise node_error(self._where)
        if not isinstance(time, ResponseError):
            try:
                seconds, microseconds = map(int, time)
            except (TypeError, ValueError):
                raise UnexpectedReplyError(f"reply of TIME must be two numbers, got {time!r:.80}") from None
            # Stamps of writes follow this clock.
            if not 0 < seconds < MOST_STAMP // 1_000_000:
                raise UnexpectedReplyError(f"reply of TIME must be seconds since the epoch, got {time!r:.80}")
            self.server_clock.measured(sent, received, seconds + microseconds / 1e6)
        return generation if isinstance(generation, bytes) else b""

    async def _ask_and_greet(self, commands: Sequence[Command], read: Callable[[list[Any]], Unsealed]) -> Unsealed:
        """Send commands, and the greeting in the same pipeline if it is due.

        A process that only reads must notice that the server's clock was set, and renews the token of the namespace. It
        must also notice that the server has become a replica, which refuses every command that writes.
        """
        self._ask_role_at = monotonic() + _ROLE_EVERY_S
        if not self.server_clock.is_due():
            check = ("PEXPIRE", self.keys.invalidations, TOKEN_TTL_MS)
            return await self._ask([*commands, check], lambda replies: read(replies[:-1]))
        greeting, sent = self.connections.greeting, 0.0
        assert greeting is not None

        def sending() -> None:
            nonlocal sent
            sent = monotonic()

        def read_all(replies: list[Any]) -> Unsealed:
            greeting.read(sent, monotonic(), replies[len(commands) :])
            return read(replies[: len(commands)])

        return await self.connections.ask([*commands, *greeting.commands], read_all, sending)

    async def _stop(self) -> None:
        if self._in_cluster is not None:
            await self._in_cluster.close()
            return
        self._locks.close()
        self.connections.close()

    def _is_refusal(self, error: Exception) -> bool:
        # In a cluster, each node has a breaker of its own. This one stays closed.
        return self._in_cluster is not None or is_refusal(error)

    @property
    def counted_connections(self) -> CountedConnections:
        return self.connections if self._in_cluster is None else self._in_cluster.counted_connections

    def stats(self) -> TierStats:
        return super().stats() if self._in_cluster is None else self._in_cluster.stats(super().stats())

    def _timed_out(self) -> None:
        self.connections.close_idle()

    async def _fetch(self, keys: Sequence[str]) -> list[Entry | None]:
        identities = envelope.identities(keys)
        # The token of the namespace is read last.
        count = len(identities) + 1
        command = None
        if count <= KEYS_A_COMMAND:
            command = mget(identities, self.keys.prefix, self.keys.token, envelope.MAX_KEY_BYTES)

        def read(replies: list[Any]) -> Unsealed:
            if len(replies) == 1:
                values = blobs(replies[0], count)
            else:
                sizes = [min(count - at, KEYS_A_COMMAND) for at in range(0, count, KEYS_A_COMMAND)]
                values = [value for reply, size in zip(replies, sizes, strict=True) for value in blobs(reply, size)]
            # Without a token, everything is a miss.
            token = (values.pop() or b"")[: envelope.TOKEN_BYTES]
            unsealed = self._unseal(values, identities, token)
            if unsealed[2] and any(map(envelope.is_of_another_key, values, identities)):
                raise UnexpectedReplyError("reply must not have the envelope of another key", unsealed)
            return unsealed

        try:
            ask = self._ask if monotonic() < self._ask_role_at else self._ask_and_greet
            unsealed = await ask(self._mgets(identities) if command is None else (command,), read)
        except ResponseError as error:
            values = await self._get_each(self._redis_keys(identities), error)
            token = (values.pop() or b"")[: envelope.TOKEN_BYTES]
            unsealed = self._unseal(values, identities, token)
        found, tagged, corrupt = unsealed
        self._corrupt += corrupt
        if tagged:
            tags = list({tag for i, _ in tagged if (entry := found[i]) for tag in entry.tags})
            drop_invalidated(found, tagged, await self._tag_tokens(tags), self.server_clock.offset)
            self._renewals.renew(found, tagged)
        return found

    def _redis_keys(self, identities: list[bytes]) -> list[bytes]:
        """Return the Redis keys of entries, and that of the namespace's token."""
        prefix = self.keys.prefix
        return [*(prefix + address for address in envelope.addresses(identities)), self.keys.token]

    def _mgets(self, identities: list[bytes]) -> list[Command]:
        keys = self._redis_keys(identities)
        return [("MGET", *keys[at : at + KEYS_A_COMMAND]) for at in range(0, len(keys), KEYS_A_COMMAND)]

    async def _tag_tokens(self, tags: Sequence[str]) -> dict[str, bytes | None]:
        keys = list(map(self.keys.tag, tags))
        try:
            tokens = await self._ask([("MGET", *keys)], lambda replies: blobs(replies[0], len(tags)))
        except ResponseError as error:
            tokens = await self._get_each(keys, error)
        return dict(zip(tags, tokens, strict=True))

    async def _get_each(self, keys: Sequence[bytes], refusal: ResponseError) -> list[bytes | None]:
        """Read keys one by one, because the server may have refused all of them because of one."""
        if not self._is_refusal(refusal):
            raise refusal
        replies = await self._ask([("GET", key) for key in keys], lambda replies: each(replies, bytes, type(None)))
        return self._calls.without_errors(replies)

    async def _observe(self, wanted: Sequence[Wanted]) -> list[Observation | None]:
        return await self._redis_writes.observe(wanted)

    async def _write(self, batch: WriteBatch) -> None:
        await self._redis_writes.carry_out(batch)

    async def _invalidate(self, tag: str | None, refused_below: bool, attempt: Attempt) -> WriteResult:
        result = await self._redis_writes.invalidate(tag, refused_below, attempt)
        if tag is None and result.outcome is Outcome.STORED and not self._sweeping:
            # Free the memory of the removed entries later. The caller does not wait for it.
            self._calls.start(self._sweep_later())
        return result

    async def _expire_tag(self, tag: str, attempt: Attempt) -> WriteResult:
        return await self._redis_writes.expire_tag(tag, attempt)

    async def _sweep_later(self) -> None:
        self._sweeping = True
        try:
            await self._sweep()
        finally:
            self._sweeping = False

    async def _sweep(self) -> int | None:
        """Remove the entries with a former token of the namespace; see `RedisSweep`."""
        if self._in_cluster is not None:
            return await self._in_cluster.sweep()
        return await self._sweeper.run(self._calls, self.connections)

    async def _describe(self) -> str:
        if self._in_cluster is not None:
            return await self._in_cluster.describe()
        info = await self._ask([("INFO", "server")], lambda replies: text(replies[0]))
        role = Role(await self._ask([("INFO", "replication")], lambda replies: text(replies[0])))
        if role.is_replica:
            raise ReplicaError(role.describe())
        return f"{product_of(info)} at {self.connections.server.now_at}, {role.describe()}"
