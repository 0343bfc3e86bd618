"""Writes that a tier refuses or does not answer: what the caller is told, and that the tiers agree in the end."""

import asyncio
import logging
import secrets
import signal
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from memory_tier import MemoryTier
from redis.asyncio import Redis

from acgsperf import LRUCache
from acgsperf.cache import TieredCache, Written, repairs
from acgsperf.testing.server_processes import PrivateRedis
from acgsperf.tiers import Outcome, WriteResult
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

DEADLINE_S = 0.4
# What the two tiers carry out while each fault lasts: L2, L3.
FAULTS = {
    "redis refuses scripts": (False, True),
    "redis is a replica": (False, True),
    "redis is frozen": (False, True),
    "postgres is read-only": (True, False),
    "postgres is frozen": (True, False),
    "both refuse": (False, False),
    "both are frozen": (False, False),
}


@pytest.fixture(scope="module")
def private_redis():
    with tempfile.TemporaryDirectory(prefix="acgs-", ignore_cleanup_errors=True) as folder:
        server = PrivateRedis(Path(folder))
        server.start()
        server.wait(lambda: None)
        yield server
        server.stop()


class Faults:
    """Makes the servers refuse or freeze, and heals them."""

    def __init__(self, redis_server, victim, admin, client):
        self._redis_server = redis_server
        self._victim = victim
        self.admin = admin
        self._client = client

    async def begin(self, name):
        if name in ("redis refuses scripts", "both refuse"):
            await self._client.execute_command("ACL", "SETUSER", "default", "-eval", "-evalsha")
        if name == "redis is a replica":
            await self._client.execute_command("REPLICAOF", "127.0.0.1", "1")
        if name in ("postgres is read-only", "both refuse"):
            await self._read_only("on")
        if name in ("redis is frozen", "both are frozen"):
            self._redis_server.process.send_signal(signal.SIGSTOP)
        if name in ("postgres is frozen", "both are frozen"):
            self._victim.freeze()

    async def end(self):
        self._redis_server.process.send_signal(signal.SIGCONT)
        self._victim.thaw()
        await self._client.execute_command("ACL", "SETUSER", "default", "+@all")
        await self._client.execute_command("REPLICAOF", "NO", "ONE")
        await self._read_only("off")

    async def _read_only(self, value):
        await self.admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        await self.admin.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(10):
            while await self.admin.fetchval("SHOW default_transaction_read_only") != value:  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@pytest.fixture
async def faults(private_redis, victim):
    admin = await asyncpg.connect(victim.dsn)
    async with Redis.from_url(private_redis.url, protocol=2) as client:
        found = Faults(private_redis, victim, admin, client)
        yield found
        await found.end()
    await admin.close()


@pytest.fixture
def namespace():
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
async def open_on(private_redis, victim, namespace, faults, monkeypatch):
    """Open caches on servers that may fail. They try a repair often."""
    monkeypatch.setattr(repairs, "_LONGEST_PAUSE_S", 0.1)
    caches = []

    async def opened(**options):
        tiers = [
            RedisTier(private_redis.url, deadline=DEADLINE_S),
            PostgresTier(victim.dsn, deadline=DEADLINE_S),
        ]
        options = {"namespace": namespace, "deadline": DEADLINE_S, "promotion_threshold": 1} | options
        cache = TieredCache(LRUCache(100), *tiers, **options)
        caches.append(await cache.open())
        await until(lambda: all_tiers_accept(cache))
        return cache

    yield opened
    await faults.end()
    for cache in caches:
        await cache.close()


async def until(ask):
    async with asyncio.timeout(20):
        while True:
            if await ask():
                return
            await asyncio.sleep(0.01)


async def all_tiers_accept(cache):
    return (await cache.set("probe", 1)).everywhere


async def store(cache, key, value, **options):
    """Store a value everywhere. A machine that is busy with other tests may not do so within the deadline."""

    async def is_stored():
        return (await cache.set(key, value, **options)).everywhere

    await until(is_stored)


async def repaired(cache):
    return cache.stats().unrepaired == 0


async def is_repaired(cache):
    """Wait until the servers answer, and nothing is left to repair."""
    await until(lambda: all_tiers_accept(cache))
    await until(lambda: repaired(cache))


async def fresh(tier, key):
    """Return the value that a tier would answer with, None for none."""
    entry = await tier.get(key)
    now = time.monotonic()
    return None if entry is None or (entry.fresh_until is not None and entry.fresh_until <= now) else entry.value


async def in_tiers(cache, key):
    return [await fresh(tier, key) for tier in cache._lower_tiers.tiers]


CALLS = {
    "set": lambda cache: cache.set("set", "new"),
    "set_many": lambda cache: cache.set_many({"set_many": "new", "and": "new"}),
    "delete": lambda cache: cache.delete("delete"),
    "expire_now": lambda cache: cache.expire_now("expire_now"),
    "invalidate_tag": lambda cache: cache.invalidate_tag("invalidate_tag"),
    "expire_tag_now": lambda cache: cache.expire_tag_now("expire_tag_now"),
}
KEYS = [*CALLS, "and"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_write_that_fails_is_reported_and_the_tiers_agree_in_the_end(
    open_on, faults, namespace, stopwatch, fault
):
    cache, reader, cleared = await open_on(), await open_on(), await open_on(namespace=f"{namespace}-cleared")
    for key in KEYS:
        await store(cache, key, "old", tags=[key])
    await store(cleared, "clear", "old")
    for key in KEYS:
        await until(lambda key=key: is_answered(reader, key, "old"))
    await is_repaired(cache)

    l2, l3 = FAULTS[fault]
    await faults.begin(fault)
    for name in CALLS:
        stopwatch.start(CALLS[name](cache))
    stopwatch.start(cleared.clear())
    # L1 has changed before the servers answer.
    await asyncio.sleep(0)
    answers = dict(zip([*CALLS, "clear"], await stopwatch.finish(), strict=True))
    assert stopwatch.slowest < DEADLINE_S + 0.1 + stopwatch.stalled
    # Redis has the backplane.
    expected = Written(True, l2, l3, published=l2)
    assert answers.pop("set_many") == {"set_many": expected, "and": expected}
    assert answers == dict.fromkeys(answers, expected)
    assert [cache.get_local(key) for key in KEYS] == [None] * len(KEYS)
    assert cleared.get_local("clear") is None
    assert cleared.stats().unrepaired == 1
    # If no tier did anything, there is nothing to repair but what is invalidated. A frozen one may have done it.
    assert cache.stats().unrepaired == (2 if fault == "both refuse" else len(KEYS))

    await faults.end()
    await is_repaired(cache)
    await is_repaired(cleared)
    for key in KEYS:
        found = await in_tiers(cache, key)
        if l2 or l3:
            # A tier that has missed the write has neither the old value nor another one than the other tier.
            assert "old" not in found, key
            assert "new" not in found or key.startswith(("set", "and")), key
        elif key in ("invalidate_tag", "expire_tag_now"):
            assert found == [None, None]
        else:
            assert found == ["old", "old"], key
    assert await in_tiers(cleared, "clear") == [None, None]
    # So do other processes.
    for key in KEYS:
        answer = await cache.get(key)
        await until(lambda key=key, answer=answer: is_answered(reader, key, answer))


async def is_answered(cache, key, answer):
    return await cache.get(key) == answer


async def test_a_set_that_redis_has_no_memory_for_leaves_nothing_old(open_on, private_redis):
    cache = await open_on()
    await store(cache, "key", "old")
    async with Redis.from_url(private_redis.url, protocol=2) as client:
        await client.config_set("maxmemory", 1)
        try:
            written = await cache.set("key", "new")
            assert (written.l2, written.l3) == (False, True)
            assert cache.get_local("key") is None
            assert await in_tiers(cache, "key") == [None, "new"]
            # A removal needs no memory.
            assert await cache.delete("key") == Written(True, True, True, published=True)
            assert await in_tiers(cache, "key") == [None, None]
        finally:
            await client.config_set("maxmemory", 0)
    await is_repaired(cache)


async def test_a_slow_postgres_and_a_frozen_redis_take_one_deadline_and_not_two(open_on, faults, victim, stopwatch):
    cache = await open_on()
    await store(cache, "key", "old")
    blocker = await asyncpg.connect(victim.dsn)
    try:
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("SELECT * FROM acgsperf_cache_v2 FOR UPDATE")
        await faults.begin("redis is frozen")
        stopwatch.start(cache.set("key", "new"))
        await asyncio.sleep(DEADLINE_S / 3)
        await transaction.rollback()
        (written,) = await stopwatch.finish()
    finally:
        await blocker.close()
    assert (written.l2, written.l3) == (False, True)
    assert stopwatch.slowest < DEADLINE_S + 0.1 + stopwatch.stalled
    await faults.end()
    await is_repaired(cache)
    assert await in_tiers(cache, "key") == [None, "new"]


@pytest.mark.parametrize("fault", ["redis is frozen", "postgres is frozen"])
async def test_a_write_whose_caller_was_cancelled_is_repaired_as_well(open_on, faults, fault):
    cache = await open_on()
    await store(cache, "set", "old")
    await store(cache, "delete", "old")
    await faults.begin(fault)
    tasks = [asyncio.create_task(CALLS[name](cache)) for name in ("set", "delete")]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 2
    await until(lambda: asyncio.sleep(0, not cache._writes.detached))
    assert cache.stats().unrepaired == 2
    assert (cache.get_local("set"), cache.get_local("delete")) == (None, None)
    await faults.end()
    await is_repaired(cache)
    assert "old" not in await in_tiers(cache, "set")
    assert await in_tiers(cache, "delete") == [None, None]


async def test_a_later_write_that_succeeds_is_not_undone_by_the_repair(open_on, faults):
    cache = await open_on()
    await faults.begin("redis refuses scripts")
    assert (await cache.set("key", "failed")).l2 is False
    await faults.end()
    # It may come before the repair.
    assert (await cache.set("key", "good")).everywhere
    await is_repaired(cache)
    assert await in_tiers(cache, "key") == ["good", "good"]
    assert cache.get_local("key") == "good"


async def test_a_repair_that_finds_something_newer_in_l3_removes_what_l2_has(open_on, faults, private_redis, namespace):
    """The clock of one process is ahead, and Redis has lost what that process wrote."""
    ahead, cache = await open_on(), await open_on()
    # Far ahead: a busy machine may need seconds until the write below.
    ahead._writes._stamps._last = ahead._lower_tiers.l2.now_us() + 60_000_000
    await store(ahead, "key", "by stamp the newest")
    async with Redis.from_url(private_redis.url, protocol=2) as client:
        await client.delete(*[key async for key in client.scan_iter(f"*{namespace}*")])
    await faults.begin("postgres is read-only")
    assert await cache.set("key", "in L2 alone") == Written(True, True, False, published=True)
    await faults.end()
    await is_repaired(cache)
    assert "in L2 alone" not in await in_tiers(cache, "key")
    assert await cache.get("key") == await ahead.get("key") == "by stamp the newest"


async def test_a_stamp_that_no_process_has_written_stops_neither_writes_nor_repairs(open_on, faults, namespace):
    cache = await open_on()
    for key in ("key", "other"):
        await store(cache, key, "old")
    await faults.admin.execute("UPDATE acgsperf_cache_v2 SET stamp = $1 WHERE namespace = $2", 1 << 60, namespace)
    await store(cache, "other", "new")
    await faults.begin("postgres is read-only")
    assert await cache.set("key", "in L2 alone") == Written(True, True, False, published=True)
    await faults.end()
    await is_repaired(cache)
    assert await in_tiers(cache, "key") == ["in L2 alone", None]


async def test_a_repair_during_later_writes_leaves_them_in_l1(open_on, faults):
    cache = await open_on()
    keys = [f"key {number}" for number in range(50)]
    await faults.begin("redis refuses scripts")
    await cache.set_many(dict.fromkeys(keys, "failed"))
    assert cache.stats().unrepaired == 50
    await faults.end()
    unrepaired = True
    while unrepaired:
        unrepaired = cache.stats().unrepaired
        assert all(written.everywhere for written in await asyncio.gather(*(cache.set(key, "good") for key in keys)))
        assert [cache.get_local(key) for key in keys] == ["good"] * 50


async def test_a_repair_removes_from_l1_what_a_later_write_has_not_written_everywhere(open_on, faults):
    cache = await open_on()
    await faults.begin("redis refuses scripts")
    assert not (await cache.set("key", "failed")).l2
    assert not (await cache.set("key", "failed as well")).l2
    assert await cache.get("key") == "failed as well"
    await faults.end()
    await is_repaired(cache)
    assert cache.get_local("key") is None


async def test_more_failed_writes_than_fit_end_in_a_cleared_cache(open_on, faults, monkeypatch, caplog):
    monkeypatch.setattr(repairs, "_MAX_QUEUED", 3)
    cache = await open_on()
    await store(cache, "other", "value")
    await faults.begin("redis refuses scripts")
    for number in range(6):
        await cache.set(f"key {number}", number)
    assert cache.stats().unrepaired == 1
    (warning,) = (record.getMessage() for record in caplog.records if record.name == "acgsperf.cache")
    expected = "more than 3 failed writes wait for a repair; all tiers will be cleared when they answer"
    assert warning == f"cache {cache.namespace!r}: {expected}"
    await faults.end()
    await until(lambda: repaired(cache))
    for key in ["other", *(f"key {number}" for number in range(6))]:
        assert await in_tiers(cache, key) == [None, None]


async def test_closing_with_failed_writes_that_are_not_repaired_warns_once(open_on, faults, caplog):
    cache = await open_on()
    await store(cache, "b", "old")
    await faults.begin("redis refuses scripts")
    await cache.set("a", 1)
    await cache.delete("b")
    await cache.invalidate_tag("t")
    caplog.clear()
    await cache.close()
    # Closing again does nothing.
    await cache.close()
    (warning,) = (record for record in caplog.records if record.name == "acgsperf.cache")
    assert warning.levelno == logging.WARNING
    expected = "closed with 3 failed writes not repaired; a tier may return older values until they expire"
    assert warning.getMessage() == f"cache {cache.namespace!r}: {expected}"
    # A cache that is opened again goes on.
    await faults.end()
    await cache.open()
    await is_repaired(cache)
    assert await in_tiers(cache, "b") == [None, None]


async def test_closing_without_failed_writes_does_not_warn(open_on, caplog):
    cache = await open_on()
    await store(cache, "key", 1)
    await cache.close()
    assert not [record for record in caplog.records if record.name == "acgsperf.cache"]


class HoldingTier(MemoryTier):
    """Answer calls of one kind only when the test says so."""

    held = None

    def __init__(self, name, clock):
        super().__init__(name, clock)
        self.release = asyncio.Event()

    async def _answer(self, kind, keys):
        if kind == self.held:
            self.held = None
            await self.release.wait()
        await super()._answer(kind, keys)


@asynccontextmanager
async def repair_in_l2(cache, l2, l3, kind, settle):
    """A context in which the repair of a failed call has done L3, and waits for L2."""
    l2.held = kind
    l3.up = True
    await until(lambda: asyncio.sleep(0, l2.held is None))
    yield
    l2.up = l3.up = True
    l2.release.set()
    await until(lambda: repaired(cache))
    await settle()


@pytest.fixture
async def held(open_cache, clock, l3, monkeypatch):
    monkeypatch.setattr(repairs, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(repairs, "_LONGEST_PAUSE_S", 0.001)
    l2 = HoldingTier("l2", clock)
    return await open_cache(l2, l3, backplane=None), l2


async def test_an_invalidation_that_fails_during_the_repair_of_an_earlier_one_is_repaired(held, l3, settle):
    cache, l2 = held
    l3.up = False
    await cache.invalidate_tag("t")
    async with repair_in_l2(cache, l2, l3, "invalidate_tag", settle):
        await cache.set("key", "old", tags=["t"])
        l3.up = l2.up = False
        written = await cache.invalidate_tag("t")
        assert (written.l2, written.l3) == (False, False)
    assert "key" not in l3
    assert "key" not in l2


async def test_a_write_that_fails_during_the_repair_of_a_clear_is_repaired(held, l3, settle):
    cache, l2 = held
    l3.up = False
    await cache.clear()
    async with repair_in_l2(cache, l2, l3, "clear", settle):
        await cache.set("key", "old")
        l3.up = False
        written = await cache.delete("key")
        assert (written.l2, written.l3) == (True, False)
    assert "key" not in l3
    assert "key" not in l2


async def test_a_removal_that_fails_during_its_repair_is_repaired(held, l3, settle):
    cache, l2 = held
    await cache.set("key", "old")
    l3.up = False
    await cache.delete("key")
    async with repair_in_l2(cache, l2, l3, "delete_many", settle):
        await cache.set("key", "newer")
        l3.up = False
        assert (await cache.delete("key")).l3 is False
    assert "key" not in l3
    assert "key" not in l2


class NewerTier(MemoryTier):
    """Has something newer than any write, because the clock of another process is ahead."""

    async def write(self, writes):
        self.calls.append(("write", tuple(writes)))
        return {key: WriteResult(Outcome.NEWER, write.stamp + 1) for key, write in writes.items()}


@pytest.mark.parametrize("newer", ["l2", "l3"])
async def test_a_write_that_loses_every_time_is_done_in_no_tier(open_cache, clock, l2, l3, newer):
    tiers = {"l2": l2, "l3": l3} | {newer: NewerTier(newer, clock)}
    cache = await open_cache(tiers["l2"], tiers["l3"], backplane=None)
    written = await cache.set("key", "value")
    # Where L3 has something newer, L2 must not have the older value.
    assert written == Written(True, False, newer == "l2")
    assert cache.get_local("key") is None
    assert ("key" in l2) is False
    assert await cache.delete("key") == Written(True, False, newer == "l2")
