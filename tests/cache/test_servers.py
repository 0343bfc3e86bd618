"""The cache with a real Redis and PostgreSQL, which the tests freeze, kill and restart."""

import asyncio
import logging
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg
import pytest
from grouped import grouped
from loaders import Loader
from redis.asyncio import Redis

from acgsperf import LRUCache
from acgsperf.cache import TieredCache, Written
from acgsperf.testing.server_binaries import redis_program
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.workbench.replay import replay
from acgsperf.workbench.traces import zipf_trace


@pytest.fixture
def namespace():
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
async def open_on(servers, namespace):
    """Open caches on the servers that all tests share."""
    caches = []

    async def opened(*, size=1_000, redis_url=None, deadline=10, tier_deadline=5, **options):
        # Long deadlines, because the machine may be busy; tests of the deadline pass shorter ones.
        cache = TieredCache(
            LRUCache(size),
            RedisTier(redis_url or servers.redis_url, deadline=tier_deadline),
            PostgresTier(servers.database_url, deadline=5),
            **grouped({"namespace": namespace, "deadline": deadline} | options),
        )
        caches.append(await cache.open())
        return cache

    yield opened
    for cache in caches:
        # If the test has closed the cache, reopen it to clear it.
        await cache.close()
        async with cache:
            await cache.clear()


async def until(ask):
    async with asyncio.timeout(20):
        while True:
            if await ask():
                return
            await asyncio.sleep(0.02)


async def all_tiers_accept(cache):
    return (await cache.set("probe", 1)).everywhere


class PrivateRedis:
    """A Redis that a test can freeze, kill and restart at the same address."""

    def __init__(self, folder):
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process = None
        self.start()

    def start(self):
        self.socket.unlink(missing_ok=True)
        executable = redis_program()
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen([str(executable), *options], stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 20
        while not self.socket.exists():
            assert time.monotonic() < give_up
            time.sleep(0.005)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def private_redis():
    # A short path, because the path of a Unix socket has at most about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="acgs-"))
    server = PrivateRedis(folder)
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.mark.parametrize("value", [None, 0, False, "", [], {"a": [1, 2.5, "ä"]}, b"\x00\xff"], ids=repr)
async def test_a_value_set_by_one_process_is_read_by_another(open_on, value):
    one, other = await open_on(), await open_on()
    assert await one.set("key", value, tags=["t"]) == Written(True, True, True, published=True)
    assert await other.get("key", "missing") == value
    assert await other.get_many(["key"]) == {"key": value}
    assert await other.get_or_load("key", Loader()) == value
    assert other.get_local("key", "missing") == value
    await other.invalidate_tag("t")
    assert await other.get("key", "missing") == "missing"


async def test_values_that_redis_has_lost_are_restored_from_postgres(open_on, servers):
    one, other = await open_on(), await open_on()
    await one.set_many({str(i): i for i in range(100)})
    async with Redis.from_url(servers.redis_url) as redis:
        assert await redis.unlink(*(f"{one.namespace}:{i}" for i in range(100))) == 100
    assert await other.get_many([str(i) for i in range(100)]) == {str(i): i for i in range(100)}
    await other.close()
    assert len(await one._lower_tiers.l2.get_many([str(i) for i in range(100)])) == 100


async def test_entries_evicted_from_l1_are_written_to_a_redis_that_lost_them(open_on, servers):
    cache = await open_on(size=10)
    await cache.set_many({str(i): i for i in range(10)})
    async with Redis.from_url(servers.redis_url) as redis:
        assert await redis.unlink(f"{cache.namespace}:0", f"{cache.namespace}:1") == 2

    async def load(keys):
        return dict.fromkeys(keys, "loaded")

    await cache.get_or_load_many([f"more {i}" for i in range(10)], load)
    await until(lambda: asyncio.sleep(0, cache.stats().demotions == 2))
    assert (await cache._lower_tiers.l2.get("0")).value == 0


@pytest.mark.alone
async def test_ten_thousand_concurrent_callers_share_one_load_on_real_servers(open_on):
    cache = await open_on()
    loader = Loader([1, 2])
    assert await asyncio.gather(*(cache.get_or_load("key", loader) for _ in range(10_000))) == [[1, 2]] * 10_000
    assert loader.calls == 1


async def test_processes_that_share_a_redis_lock_load_once(open_on):
    caches = [await open_on(lock_ttl=30) for _ in range(4)]
    loader = Loader(gate_open=False)
    tasks = [asyncio.create_task(cache.get_or_load("key", loader)) for cache in caches]
    await loader.began.wait()
    await asyncio.sleep(0.1)
    loader.gate.set()
    assert await asyncio.gather(*tasks) == ["loaded"] * 4
    assert loader.calls == 1


@pytest.mark.parametrize("ahead", [86_400, -86_400, 0])
async def test_the_zero_of_a_clock_changes_no_lifetime(open_on, ahead):
    wrong = await open_on(clock=lambda: time.time() + ahead, ttl=1)
    right = await open_on(ttl=1)
    await wrong.set("a", 1)
    await right.set("b", 1)
    assert await right.get("a") == await wrong.get("b") == 1
    await asyncio.sleep(1.1)
    for cache in (right, wrong):
        assert await cache.get_many(["a", "b"]) == {}


async def test_clear_does_not_touch_a_namespace_with_the_same_prefix(open_on, namespace):
    outer, inner = await open_on(), await open_on(namespace=f"{namespace}:b")
    await outer.set("b:key", 1)
    await inner.set("key", 2)
    assert await outer.clear() == Written(True, True, True, published=True)
    assert await inner.get("key") == 2
    assert await outer.get("b:key") is None


async def test_while_redis_is_frozen_reads_are_misses_and_l1_still_serves(open_on, private_redis):
    cache = await open_on(redis_url=private_redis.url, deadline=0.1, tier_deadline=0.25)
    await cache.set("here", 1)
    private_redis.freeze()
    # A busy machine may take longer than the deadline, but far less than this.
    async with asyncio.timeout(5):
        assert await asyncio.gather(*(cache.get(f"key {i}", "missed") for i in range(100))) == ["missed"] * 100
        assert await cache.get_or_load("key", Loader()) == "loaded"
        assert await cache.get("here") == 1
    # L2 has half of the deadline, so that L3 is asked in time.
    assert cache.stats().l2.timeouts > 0
    private_redis.thaw()


@pytest.mark.parametrize(
    ("call", "tier_deadline", "options"),
    [
        ("get", 2, {}),
        ("get", 10, {}),
        ("get_many", 2, {}),
        ("get_entry", 2, {}),
        ("get_or_load", 2, {}),
        ("get_or_load", 2, {"lock_ttl": 10}),
    ],
)
async def test_while_redis_is_frozen_postgres_answers_within_the_deadline(
    open_on, private_redis, call, tier_deadline, options
):
    servers = {"redis_url": private_redis.url, "deadline": 2, "tier_deadline": tier_deadline}
    writer, cache = await open_on(**servers), await open_on(**servers, **options)
    assert (await writer.set("key", 1)).everywhere
    private_redis.freeze()
    loader = Loader()
    try:
        # The first call: no circuit is open yet.
        if call == "get":
            assert await cache.get("key") == 1
        elif call == "get_many":
            assert await cache.get_many(["key", "other"]) == {"key": 1}
        elif call == "get_entry":
            assert (await cache.get_entry("key")).tier == "l3"
        else:
            assert await cache.get_or_load("key", loader) == 1
    finally:
        private_redis.thaw()
    assert loader.calls == 0
    assert cache.stats().deadlines == 0
    await until(lambda: all_tiers_accept(writer))


@pytest.mark.parametrize("frozen", ["redis", "postgres", "both"])
async def test_frozen_servers_delay_no_caller_by_more_than_the_deadline_and_50_ms(
    private_redis, victim, namespace, stopwatch, frozen
):
    servers = {"redis": [private_redis], "postgres": [victim], "both": [private_redis, victim]}[frozen]
    tiers = RedisTier(private_redis.url, deadline=0.25), PostgresTier(victim.dsn, deadline=0.25)
    async with TieredCache(LRUCache(1_000), *tiers, namespace=namespace, deadline=0.25) as cache:
        await until(lambda: all_tiers_accept(cache))
        await cache.set("here", 1)
        for server in servers:
            server.freeze()
        slowest_hit = 0.0
        try:
            # So few that a slow machine computes for less than the 50 ms.
            for i in range(40):
                stopwatch.start(cache.get(f"k{i}", "missed"))
                stopwatch.start(cache.get_many([f"k{i}", f"m{i}"]))
                stopwatch.start(cache.get_or_load(f"l{i}", Loader()))
                stopwatch.start(cache.set(f"w{i}", i))
                stopwatch.start(cache.delete(f"d{i}"))
                await asyncio.sleep(0.002)
                began = time.perf_counter()
                assert await cache.get("here") == 1
                slowest_hit = max(slowest_hit, time.perf_counter() - began)
            answers = await stopwatch.finish()
        finally:
            for server in servers:
                server.thaw()
        assert answers[0::5] == ["missed"] * 40
        assert answers[2::5] == ["loaded"] * 40
        assert not any(written.everywhere for written in answers[3:50:5])
        # The time in which the process had to wait for a processor is known only now.
        assert slowest_hit < 0.05 + stopwatch.stalled
        assert stopwatch.slowest < 0.25 + 0.05 + stopwatch.stalled
        await cache.clear()


@pytest.mark.parametrize("when", ["before the read", "before the lock", "during the load"])
@pytest.mark.parametrize("frozen", ["redis", "postgres", "both"])
async def test_a_load_with_a_lock_waits_for_one_deadline_of_frozen_servers(
    private_redis, victim, namespace, stopwatch, frozen, when
):
    servers = {"redis": [private_redis], "postgres": [victim], "both": [private_redis, victim]}[frozen]
    tiers = RedisTier(private_redis.url, deadline=0.5), PostgresTier(victim.dsn, deadline=0.5)
    cache = TieredCache(LRUCache(1_000), *tiers, namespace=namespace, deadline=0.5, lock_ttl=10)

    def freeze(moment):
        if moment == when:
            for server in servers:
                server.freeze()

    lock = tiers[0].lock

    async def lock_later(*args):
        freeze("before the lock")
        return await lock(*args)

    async def load(key):
        freeze("during the load")
        return "loaded"

    tiers[0].lock = lock_later
    async with cache:
        await until(lambda: all_tiers_accept(cache))
        try:
            freeze("before the read")
            stopwatch.start(cache.get_or_load("k", load))
            assert await stopwatch.finish() == ["loaded"]
        finally:
            for server in servers:
                server.thaw()
        assert stopwatch.slowest < 0.9 + stopwatch.stalled
        await until(lambda: all_tiers_accept(cache))
        await cache.clear()


async def test_no_request_is_lost_when_redis_is_killed_and_restarted(open_on, private_redis):
    cache = await open_on(redis_url=private_redis.url, size=10, deadline=5, tier_deadline=0.25)
    answered = 0

    async def load(key):
        return f"value of {key}"

    async def caller(number):
        nonlocal answered
        for i in range(300):
            key = str((number * 7 + i) % 100)
            assert await cache.get_or_load(key, load) == f"value of {key}"
            answered += 1
            if number == 0 and i == 100:
                private_redis.kill()
            if number == 0 and i == 200:
                private_redis.start()

    await asyncio.gather(*(caller(number) for number in range(10)))
    assert answered == 3_000
    await until(lambda: all_tiers_accept(cache))


async def test_a_cache_opens_while_redis_is_down_and_uses_it_once_it_is_up(open_on, private_redis):
    private_redis.kill()
    cache = await open_on(redis_url=private_redis.url, tier_deadline=0.25)
    assert (await cache.set("key", 1)).l2 is False
    assert not (await cache.health()).ok
    private_redis.start()
    await until(lambda: all_tiers_accept(cache))
    assert (await cache.health()).ok


async def test_a_replay_loses_no_request_when_redis_is_killed_and_restarted(servers, private_redis):
    done = 0

    def advanced(more):
        nonlocal done
        before, done = done, done + more
        if before < 5_000 <= done:
            private_redis.kill()
        if before < 15_000 <= done:
            private_redis.start()

    trace = zipf_trace(30_000, distinct=3_000)
    report = await replay(
        trace, servers.database_url, redis_url=private_redis.url, l3=True, l1_size=300, advanced=advanced
    )
    assert (report.requests, done) == (30_000, 30_000)
    assert "failed calls" in next(row.achieved for row in report.rows if row.metric == "L2 tier")


async def test_a_replay_loses_no_request_when_postgres_is_killed_and_restarted(servers, victim, caplog):
    # PostgreSQL holds L3 and the origin. While it is down, L1 and Redis serve what they have; other requests wait.
    caplog.set_level(logging.INFO, "acgsperf.tiers")
    done = 0
    outage = None

    def levels():
        return [record.levelname for record in caplog.records if record.name == "acgsperf.tiers"]

    async def outage_of_postgres():
        await asyncio.to_thread(victim.kill)
        # The circuit breaker of L3 has opened.
        await until(lambda: asyncio.sleep(0, levels() == ["WARNING"]))
        await asyncio.to_thread(victim.start)

    def advanced(more):
        nonlocal done, outage
        done += more
        if done >= 5_000 and outage is None:
            outage = asyncio.create_task(outage_of_postgres())
        if outage is not None and outage.done() and levels()[-1:] == ["WARNING"]:
            # Slow the replay down, so that requests remain when the circuit breaker tries L3 again.
            time.sleep(0.02)

    trace = zipf_trace(30_000, distinct=15_000)
    report = await replay(
        trace, victim.dsn, redis_url=servers.redis_url, l3=True, l1_size=300, concurrency=32, advanced=advanced
    )
    await outage
    assert (report.requests, done) == (30_000, 30_000)
    assert "failed calls" in next(row.achieved for row in report.rows if row.metric == "L3 tier")
    # The circuit breaker has closed again. It may have closed and opened once more while PostgreSQL was starting.
    assert levels() in (["WARNING", "INFO"], ["WARNING", "INFO"] * 2)
    rest = await asyncpg.connect(victim.dsn)
    try:
        assert await rest.fetchval("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'acgsperf_replay%'") == 0
    finally:
        await rest.close()
