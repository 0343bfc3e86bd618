"""A process whose name server does not answer: what the callers of pools and tiers get there.

`test_names.py` runs it, with one of these as its argument:
    resolver: the process has network and mount namespaces of its own, and its /etc/resolv.conf names 127.0.0.1.
    stand-in: `socket.getaddrinfo` is replaced, for systems on which that is not possible.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import threading
import time

from acgsperf import ConnectionPool, LRUCache, PoolTimeout, TieredCache
from acgsperf.tiers.base import Entry
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

DEADLINE_S = 0.25
# What a busy machine may add. A lookup takes 10 s.
SLACK_S = 0.75
CALLERS = 50
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def start_silent_server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    return server


def replace_lookup():
    def getaddrinfo(host, *arguments, **options):
        time.sleep(10)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    socket.getaddrinfo = getaddrinfo


async def in_time(call, deadline_s=DEADLINE_S):
    start = time.monotonic()
    outcomes = await asyncio.gather(*(call() for _ in range(CALLERS)), return_exceptions=True)
    took_s = time.monotonic() - start
    assert took_s < deadline_s + SLACK_S, f"{call} took {took_s:.3f} s"
    return outcomes


async def check_resources():
    lookups = [thread for thread in threading.enumerate() if thread.name == "acgsperf lookup"]
    assert 1 <= len(lookups) <= 8, lookups
    # The default executor of the event loop has no lookup in it.
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]


async def pools():
    pool = ConnectionPool("postgresql://user@db.example/db", min_size=1, max_size=20)
    start = time.monotonic()
    try:
        await pool.open(timeout=DEADLINE_S)
    except PoolTimeout:
        assert time.monotonic() - start < DEADLINE_S + SLACK_S
    else:
        raise AssertionError("the pool was opened")
    pool = ConnectionPool("postgresql://user@db.example,other.example/db", min_size=0, max_size=20)
    await pool.open()
    outcomes = await in_time(lambda: acquired(pool, DEADLINE_S))
    assert {type(outcome) for outcome in outcomes} == {PoolTimeout}, outcomes
    # Longer than the second attempt takes to begin.
    outcomes = await in_time(lambda: acquired(pool, 2.5), 2.5)
    assert {type(outcome) for outcome in outcomes} == {PoolTimeout}, outcomes
    await check_resources()
    await closing(pool)


async def acquired(pool, timeout):  # noqa: ASYNC109
    async with pool.acquire(timeout):
        pass


async def closing(*opened):
    start = time.monotonic()
    await asyncio.gather(*(each.close() for each in opened))
    assert time.monotonic() - start < DEADLINE_S + SLACK_S


async def tiers():
    redis = RedisTier("redis://cache.example:6379/0", deadline=DEADLINE_S)
    postgres = PostgresTier("postgresql://user@db.example/db", deadline=DEADLINE_S)
    for tier in (redis, postgres):
        start = time.monotonic()
        await tier.open("names")
        assert time.monotonic() - start < DEADLINE_S + SLACK_S
        assert await in_time(lambda tier=tier: tier.get("key")) == [None] * CALLERS
        assert (
            await in_time(
                lambda tier=tier: tier.set(
                    "key", Entry("value", created_at=time.time(), fresh_until=None, kept_until=None)
                )
            )
            == [False] * CALLERS
        )
        assert not any(health.ok for health in await in_time(tier.health))
    await check_resources()
    await closing(redis, postgres)


async def caches():
    l2 = RedisTier("redis://cache.example:6379/0", deadline=DEADLINE_S)
    l3 = PostgresTier("postgresql://user@db.example/db", deadline=DEADLINE_S)
    async with TieredCache(LRUCache(100), l2, l3, namespace="names") as cache:

        async def load(key):
            return "loaded"

        values = await in_time(lambda: cache.get_or_load("key", load))
        assert values == ["loaded"] * CALLERS, values
        assert await in_time(lambda: cache.get("other")) == [None] * CALLERS
        await check_resources()


async def main():
    await pools()
    await tiers()
    await caches()


if __name__ == "__main__":
    kept = start_silent_server() if sys.argv[1] == "resolver" else replace_lookup()
    asyncio.run(main())
    # The lookups that have no answer yet must not delay the end of the process.
    print(time.monotonic())
