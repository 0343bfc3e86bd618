"""The modes of a run: which tiers the processes use, and what happens to processes and servers meanwhile."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import redis
from redis.crc import key_slot

from acgsperf.tiers.redis_keys import bucket_keys, bucket_of

from .history import Failover, Fault, Log, now
from .servers import FreezablePair, Pair, Postgres, Proxy, RedisServer, Shards
from .worker import Plan

__all__ = ["MODES", "Mode", "Situation"]

_FROZEN_S: Final = 3.0
# A circuit breaker opens for 1 s or more. Without a longer pause no write would ever be acknowledged.
_RECOVERY_S: Final = 2.0
# A failover, and what comes before and after it.
_FAILOVER_S: Final = 3.0
_BEFORE_FAILOVER_S: Final = 1.5
_FROZEN_PRIMARY_S: Final = 2.0
# Nobody notices the death of a primary at once.
_NOTICED_S: Final = 0.5
_SAMPLES_PER_CUT: Final = 10
# How many buckets move together, and how long half of the keys of each are in either node at most.
_MOVED_BUCKETS: Final = 5
_HALF_MOVED_S: Final = 0.2
_BALLAST_BYTES: Final = 10_000
_ROOM_BYTES: Final = 4 << 20


@dataclass(slots=True)
class Situation:
    """What a fault may do something to.

    Attributes:
        log: where the faults are recorded.
        until: when the processes stop working, on the monotonic clock.
        pids: the processes.
        redis: the server of L2, or None.
        postgres: the server of L3, or None.
        pair: the primary that fails over, and its replica, if the mode wants them.
        loses: whether no other tier has what the replica lacks.
        proxies: those between the processes and the servers, if the mode wants some.
        random: chooses.
        eviction_policy: of a Redis whose memory is limited.
        plan: of one of the processes.
    """

    log: Log
    until: int
    pids: list[int]
    redis: RedisServer | None
    postgres: Postgres | None
    pair: Pair | None
    loses: bool
    proxies: list[Proxy]
    random: random.Random
    eviction_policy: str
    plan: Plan

    def the_redis(self) -> RedisServer:
        """Return the server of L2, which the fault is about."""
        if self.redis is None:
            raise ValueError("this mode needs L2")
        return self.redis

    def the_postgres(self) -> Postgres:
        """Return the server of L3, which the fault is about."""
        if self.postgres is None:
            raise ValueError("this mode needs L3")
        return self.postgres

    def the_pair(self) -> Pair:
        """Return the primary and its replica, which the fault is about."""
        if self.pair is None:
            raise ValueError("this mode needs the tier that fails over")
        return self.pair

    async def keys_of_shard(self) -> tuple[str, ...] | None:
        """Return the keys that the primary of the pair has; None for all, because there is no cluster."""
        if not isinstance(self.pair, Shards):
            return None
        slots = await self.pair.slots()
        own = [key_slot(keys.token) in slots for keys in bucket_keys(self.plan.namespace)]
        return tuple(key for key in self.plan.key_names if own[bucket_of(key.encode())])

    async def rounds(self, length_s: float, pause_s: float = 1.0) -> AsyncIterator[None]:
        """Return before each fault of some length, as often as there is time, and leave the last second in peace."""
        while True:
            await asyncio.sleep(pause_s)
            if now() + (length_s + 1.0) * 1e9 > self.until:
                return
            yield

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Record a fault."""
        start = now()
        try:
            yield
        finally:
            self.log.add(Fault(name, start, now()))


async def freeze(situation: Situation) -> None:
    """Freeze one process at a time for 3 s."""
    async for _ in situation.rounds(_FROZEN_S):
        number = situation.random.randrange(len(situation.pids))
        with situation.fault(f"process {number} frozen"):
            os.kill(situation.pids[number], signal.SIGSTOP)
            try:
                await asyncio.sleep(_FROZEN_S)
            finally:
                os.kill(situation.pids[number], signal.SIGCONT)


async def freeze_redis(situation: Situation) -> None:
    """Freeze Redis for 1 s: what timed out meanwhile arrives late."""
    await _freeze_server(situation, situation.the_redis(), "redis frozen")


async def freeze_postgres(situation: Situation) -> None:
    """Freeze PostgreSQL for 1 s."""
    await _freeze_server(situation, situation.the_postgres(), "postgres frozen")


async def _freeze_server(situation: Situation, server: RedisServer | Postgres, name: str) -> None:
    async for _ in situation.rounds(1.0, pause_s=_RECOVERY_S):
        with situation.fault(name):
            server.freeze()
            try:
                await asyncio.sleep(1.0)
            finally:
                server.thaw()


async def restart_empty(situation: Situation) -> None:
    """Kill Redis, and start it without any data."""
    server = situation.the_redis()
    async for _ in situation.rounds(1.0, pause_s=_RECOVERY_S):
        with situation.fault("redis killed, started empty"):
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)


async def restart_from_snapshot(situation: Situation) -> None:
    """Kill Redis, and start it with the data that it had 1 s earlier."""
    server = situation.the_redis()
    async for _ in situation.rounds(2.0):
        with situation.fault("snapshot"):
            await asyncio.to_thread(server.save)
        await asyncio.sleep(1.0)
        with situation.fault("redis killed, started from the snapshot"):
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)


async def restart_postgres(situation: Situation) -> None:
    """Kill PostgreSQL, and start it again; it has lost nothing that it acknowledged."""
    server = situation.the_postgres()
    async for _ in situation.rounds(4.0, pause_s=_RECOVERY_S):
        with situation.fault("postgres killed and started"):
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)


async def fail_over(situation: Situation, *, frozen: bool = False) -> None:
    """Kill or freeze the primary of a pair; its replica, which lags a little, takes over."""
    pair = situation.the_pair()
    async for _ in situation.rounds(_FAILOVER_S, pause_s=_BEFORE_FAILOVER_S):
        if isinstance(pair, Shards):
            pair.choose(situation.random.randrange(1_000))
        keys = await situation.keys_of_shard()
        with situation.fault("primary frozen" if frozen else "primary killed"):
            samples: list[tuple[int, int]] = []
            async with pair.position() as position:
                until = now() + situation.random.uniform(0.3, 0.7) * 1e9
                while (asked := now()) < until:
                    samples.append((asked, await position()))
                    if len(samples) % _SAMPLES_PER_CUT == 1:
                        await pair.cut_replication()
                if frozen:
                    _freezable(pair).freeze_primary()
                else:
                    await asyncio.to_thread(pair.kill_primary)
            lost = now()
            await asyncio.sleep(_NOTICED_S)
            await pair.take_over()
            received = await pair.received()
            replicated = max((asked for asked, position in samples if position <= received), default=samples[0][0])
            situation.log.add(Failover(replicated, lost, now(), situation.loses, keys))
        if frozen:
            # So long, every process finds out.
            await asyncio.sleep(_FROZEN_PRIMARY_S)
        with situation.fault("former primary is a replica"):
            await (_freezable(pair).wake() if frozen else pair.restore())


async def fail_over_while_postgres_stalls(situation: Situation) -> None:
    """Freeze PostgreSQL for 0.4 s, again and again, while the primary of Redis is killed and its replica takes over."""
    stalls = asyncio.create_task(_stall(situation.the_postgres(), situation))
    try:
        await fail_over(situation)
    finally:
        stalls.cancel()
        await asyncio.gather(stalls, return_exceptions=True)


async def _stall(server: Postgres, situation: Situation) -> None:
    while True:
        await asyncio.sleep(situation.random.uniform(0.5, 1.0))
        with situation.fault("postgres frozen"):
            server.freeze()
            try:
                await asyncio.sleep(0.4)
            finally:
                server.thaw()


def _freezable(pair: Pair) -> FreezablePair:
    assert isinstance(pair, FreezablePair)
    return pair


async def fail_over_frozen(situation: Situation) -> None:
    """Freeze the primary of a pair; when it wakes up, it has been replaced and does not know it."""
    await fail_over(situation, frozen=True)


async def reshard(situation: Situation) -> None:
    """Move some buckets from one primary of a cluster to another; for a while, half of the keys of each have moved."""
    shards = situation.the_pair()
    assert isinstance(shards, Shards)
    buckets = [key_slot(keys.token) for keys in bucket_keys(situation.plan.namespace)]
    async for _ in situation.rounds(_MOVED_BUCKETS * _HALF_MOVED_S, pause_s=0.5):
        shards.choose(situation.random.randrange(1_000))
        own = await shards.slots()
        slots = [slot for slot in buckets if slot in own]
        with situation.fault("slots moved"):
            chosen = situation.random.sample(slots, min(_MOVED_BUCKETS, len(slots)))
            await shards.pass_on(chosen, situation.random.uniform(0, _HALF_MOVED_S))


async def cut(situation: Situation) -> None:
    """Cut all connections, each in the middle of the next reply."""
    async for _ in situation.rounds(0.0, pause_s=_RECOVERY_S):
        with situation.fault("connections cut"):
            for proxy in situation.proxies:
                proxy.cut()


async def flush(situation: Situation) -> None:
    """Remove everything from Redis."""
    server = situation.the_redis()
    async for _ in situation.rounds(0.0, pause_s=0.7):
        with situation.fault("FLUSHALL"):
            await asyncio.to_thread(server.flush)


async def evict(situation: Situation) -> None:
    """Let Redis evict keys all the time."""
    await asyncio.to_thread(_configure, situation, situation.eviction_policy)
    async for _ in situation.rounds(1.0, pause_s=0.0):
        with situation.fault("keys evicted"):
            await asyncio.to_thread(_fill, situation, 1.0)


async def fill(situation: Situation) -> None:
    """Let Redis run out of memory, so that it refuses writes, for a second at a time."""
    await asyncio.to_thread(_configure, situation, "noeviction")
    async for _ in situation.rounds(1.0):
        with situation.fault("memory full"):
            await asyncio.to_thread(_fill, situation, 1.0)
            await asyncio.to_thread(_empty, situation)


def _configure(situation: Situation, policy: str) -> None:
    with situation.the_redis().client() as client:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + _ROOM_BYTES)


def _fill(situation: Situation, seconds: float) -> None:
    """Write keys of nobody, first as many as fit and then 200 a second."""
    with situation.the_redis().client() as client:
        many = _ROOM_BYTES // _BALLAST_BYTES
        until = time.monotonic() + seconds
        at = 0
        while time.monotonic() < until:
            with suppress(redis.ResponseError):
                # With a ttl, so that the policies for keys with one can evict it.
                client.set(f"ballast{situation.random.randrange(4 * many)}", bytes(_BALLAST_BYTES), ex=3_600)
            at += 1
            if at > many:
                time.sleep(0.005)


def _empty(situation: Situation) -> None:
    with situation.the_redis().client() as client:
        client.delete(*client.scan_iter("ballast*", count=1_000))


@dataclass(frozen=True, slots=True)
class Mode:
    """A kind of run.

    Attributes:
        description: what happens.
        fault: does it, until the processes stop; None for nothing.
        l2, l3: whether the caches have that tier.
        pair: the tier that is a primary with a replica, "l2" or "l3", or "cluster" if L2 is one; None for neither.
        proxied: whether there are proxies between the processes and the servers.
        clock_offsets_s: how far the wall clocks of the processes are wrong, one after the other.
        options: arguments of the caches.
        plan: attributes of `Plan`.
    """

    description: str
    fault: Callable[[Situation], Awaitable[None]] | None = None
    l2: bool = True
    l3: bool = True
    pair: str | None = None
    proxied: bool = False
    clock_offsets_s: tuple[float, ...] = (0.0,)
    options: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)


# Otherwise all keys would be written or removed again before a read could find what a failover has left of them.
_RARELY_WRITTEN: Final[dict[str, Any]] = {
    "keys": 300,
    "l1_size": 64,
    "weights": {"delete": 2, "invalidate_tag": 0.02, "clear": 0.0},
}
_FAILOVER: Final[dict[str, Any]] = {"plan": _RARELY_WRITTEN}

# Each bucket has some keys, so that a slot which has moved is missed.
_CLUSTER: Final[dict[str, Any]] = {"pair": "cluster", "plan": {"keys": 300, "l1_size": 64}}
_LOST_SHARD: Final[dict[str, Any]] = {**_FAILOVER, "l3": False, "pair": "cluster"}

_FROZEN: Final = {**_FAILOVER, "fault": fail_over_frozen, "l3": False, "pair": "l2"}

MODES: Final = {
    "plain": Mode("nothing fails"),
    "l2": Mode("L2 alone", l3=False),
    "l3": Mode("L3 alone", l2=False),
    "locks": Mode("loads with a lock between processes", options={"lock_ttl": 2.0}),
    "stale": Mode("stale values and refreshes", options={"stale_ttl": 2.0, "refresh_ahead": 0.5}),
    "negative": Mode("negative entries", options={"negative_ttl": 5.0}),
    "frozen": Mode("a process is frozen for 3 s", freeze),
    "frozen-redis": Mode("Redis is frozen for 1 s", freeze_redis),
    "frozen-postgres": Mode("PostgreSQL is frozen for 1 s", freeze_postgres),
    "restart-empty": Mode("Redis is killed and started empty", restart_empty),
    "restart-snapshot": Mode("Redis is killed and started from an older snapshot", restart_from_snapshot),
    "restart-postgres": Mode("PostgreSQL is killed and started", restart_postgres),
    "failover": Mode("the primary of Redis is killed; its replica takes over", fail_over, pair="l2", **_FAILOVER),
    "failover-stalls": Mode(
        "the same while PostgreSQL stalls", fail_over_while_postgres_stalls, pair="l2", **_FAILOVER
    ),
    "failover-l2": Mode("the same with L2 alone", fail_over, l3=False, pair="l2", **_FAILOVER),
    "failover-frozen": Mode("L2 alone; the primary is frozen, and wakes up after its replacement", **_FROZEN),
    "promotion": Mode(
        "the primary of PostgreSQL is killed; its standby is promoted", fail_over, pair="l3", **_FAILOVER
    ),
    "promotion-l3": Mode("the same with L3 alone", fail_over, l2=False, pair="l3", **_FAILOVER),
    "cluster": Mode("L2 is a cluster; nothing fails", **_CLUSTER),
    "cluster-failover": Mode(
        "L2 alone, a cluster; a primary is killed, its replica takes over", fail_over, **_LOST_SHARD
    ),
    "cluster-frozen": Mode(
        "L2 alone, a cluster; a primary is frozen, and wakes up after its replacement", fail_over_frozen, **_LOST_SHARD
    ),
    "cluster-reshard": Mode("L2 alone, a cluster whose slots move", reshard, l3=False, **_CLUSTER),
    "cut": Mode("connections are cut inside a reply", cut, proxied=True),
    "flushall": Mode("Redis loses everything", flush),
    "clocks": Mode("wall clocks are an hour apart", clock_offsets_s=(0.0, 3600.0, -3600.0)),
    "eviction": Mode("Redis evicts keys", evict),
    "full": Mode("Redis runs out of memory and refuses writes", fill),
}
