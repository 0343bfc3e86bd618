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

from .history import Fault, Log, now
from .servers import Postgres, Proxy, RedisServer

__all__ = ["MODES", "Mode", "Situation"]

_FROZEN_S: Final = 3.0
# A circuit breaker opens for 1 s or more. Without a longer pause no write would ever be acknowledged.
_RECOVERY_S: Final = 2.0
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
        proxies: those between the processes and the servers, if the mode wants some.
        random: chooses.
        eviction_policy: of a Redis whose memory is limited.
    """

    log: Log
    until: int
    pids: list[int]
    redis: RedisServer | None
    postgres: Postgres | None
    proxies: list[Proxy]
    random: random.Random
    eviction_policy: str

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
        proxied: whether there are proxies between the processes and the servers.
        clock_offsets_s: how far the wall clocks of the processes are wrong, one after the other.
        options: arguments of the caches.
        settle_s: how long the caches have for what they do in the background, before they are compared at rest. A
            circuit breaker may be open for as long as the server was away.
    """

    description: str
    fault: Callable[[Situation], Awaitable[None]] | None = None
    l2: bool = True
    l3: bool = True
    proxied: bool = False
    clock_offsets_s: tuple[float, ...] = (0.0,)
    options: Mapping[str, Any] = field(default_factory=dict)
    settle_s: float = 2.0


MODES: Final = {
    "plain": Mode("nothing fails"),
    "l2": Mode("L2 alone", l3=False),
    "l3": Mode("L3 alone", l2=False),
    "locks": Mode("loads with a lock between processes", options={"lock_ttl": 2.0}),
    "stale": Mode("stale values and refreshes", options={"stale_ttl": 2.0, "refresh_ahead": 0.5}),
    "negative": Mode("negative entries", options={"negative_ttl": 5.0}),
    "frozen": Mode("a process is frozen for 3 s", freeze),
    "frozen-redis": Mode("Redis is frozen for 1 s", freeze_redis, settle_s=3.0),
    "frozen-postgres": Mode("PostgreSQL is frozen for 1 s", freeze_postgres, settle_s=3.0),
    "restart-empty": Mode("Redis is killed and started empty", restart_empty, settle_s=3.0),
    "restart-snapshot": Mode("Redis is killed and started from an older snapshot", restart_from_snapshot, settle_s=3.0),
    "restart-postgres": Mode("PostgreSQL is killed and started", restart_postgres, settle_s=5.0),
    "cut": Mode("connections are cut inside a reply", cut, proxied=True, settle_s=3.0),
    "flushall": Mode("Redis loses everything", flush),
    "clocks": Mode("wall clocks are an hour apart", clock_offsets_s=(0.0, 3600.0, -3600.0)),
    "eviction": Mode("Redis evicts keys", evict),
    "full": Mode("Redis runs out of memory and refuses writes", fill, settle_s=3.0),
}
