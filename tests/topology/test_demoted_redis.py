"""A failover makes a Redis a replica, and its name leads to the new primary."""

import asyncio
import logging
import secrets
from collections import Counter

import pytest
from redis.asyncio import Redis
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

from acgsperf import LRUCache, TieredCache
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.tiers import BreakerState, Outcome, Store, StoreKind, Write
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_replies import is_of_replica


class Name:
    """A name that leads to a server, like one of DNS: a link to its socket."""

    def __init__(self, path):
        self._path = path
        self.url = f"unix://{path}"

    def point_to(self, server):
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(server.url.removeprefix("unix://"))


class Failover:
    def __init__(self, name, old, new):
        self.name, self.old, self.new = name, old, new

    async def demote(self):
        """The old server becomes a replica, which keeps its connections."""
        async with Redis.from_url(self.old.url, protocol=2) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", "1")

    async def happen(self):
        self.name.point_to(self.new)
        await self.demote()

    async def keys_on_new(self):
        async with Redis.from_url(self.new.url, protocol=2) as client:
            return await client.dbsize()


@pytest.fixture
def failover(start_redis, scratch):
    name, old, new = Name(scratch / "name"), start_redis(), start_redis()
    name.point_to(old)
    return Failover(name, old, new)


@pytest.fixture
async def tier(failover, namespace):
    tier = RedisTier(failover.name.url, deadline=5)
    tier.writer = b"12345678"
    await tier.open(namespace)
    yield tier
    await tier.close()


def _write(tier, entry):
    return Write(entry, secrets.token_bytes(8), tier.now_us())


async def _set(tier, entry):
    return await tier.set("k", entry())


async def _set_tagged(tier, entry):
    return await tier.set("k", entry(tags=("t",)))


async def _write_many(tier, entry):
    done = await tier.write({f"k{number}": _write(tier, entry()) for number in range(200)})
    return {result.outcome for result in done.values()} == {Outcome.STORED}


async def _delete(tier, entry):
    return await tier.delete_many(["former", "absent"]) is not None


async def _invalidate_tag(tier, entry):
    return await tier.invalidate_tag("t") is not None


async def _clear(tier, entry):
    return await tier.clear() is not None


async def _expire_now(tier, entry):
    done = await tier.expire_now({"absent": _write(tier, None)})
    return done["absent"].outcome is Outcome.STORED


async def _expire_tag(tier, entry):
    return (await tier.expire_tag("absent")).outcome is Outcome.STORED


async def _remove_written(tier, entry):
    return await tier.remove_written({"absent": secrets.token_bytes(8)})


async def _lock(tier, entry):
    return await tier.lock("k", 10)


async def _load(tier, entry):
    seen = (await tier.observe(["absent"]))["absent"]
    loaded = entry()
    return await tier.store({"absent": Store(loaded, seen, StoreKind.LOAD)})


WAYS = [_set, _set_tagged, _write_many, _delete, _invalidate_tag, _clear, _expire_now, _expire_tag, _remove_written]
WAYS += [_lock, _load]


@pytest.mark.parametrize("records", [True, False], ids=["with records", "without"])
@pytest.mark.parametrize("way", WAYS, ids=[way.__name__[1:] for way in WAYS])
async def test_each_write_after_a_failover_reaches_the_new_primary(failover, namespace, entry, way, records, caplog):
    caplog.set_level(logging.INFO, "acgsperf.tiers")
    tier = RedisTier(failover.name.url, deadline=5)
    tier.writer = b"12345678" if records else b""
    await tier.open(namespace)
    assert await tier.set("former", entry(tags=("t",)))
    await failover.happen()
    assert await way(tier, entry)
    assert await tier.set("later", entry())
    assert await failover.keys_on_new() > 0
    stats = tier.stats()
    assert (stats.failovers, stats.errors, stats.breaker) == (1, {}, BreakerState.CLOSED)
    health = await tier.health()
    assert health.ok, health
    assert "primary" in health.detail
    messages = [record.getMessage() for record in caplog.records]
    assert [text for text in messages if "became a replica" in text and f"redis tier {namespace!r}" in text]
    assert [text for text in messages if "is a primary again" in text]
    await tier.close()


@pytest.mark.parametrize(
    "answer",
    [
        ReadOnlyError("You can't write against a read only replica."),
        # Redis 6, from a script.
        ResponseError(
            "Error running script (call to f_1c): @user_script:9: @user_script: 9: -READONLY You can't write against a"
            " read only replica."
        ),
        MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    ],
)
def test_what_only_a_replica_answers_is_known(answer):
    assert is_of_replica(answer)
    assert not is_of_replica(ResponseError("OOM command not allowed when used memory > 'maxmemory'."))


async def test_a_lock_that_the_replica_has_is_not_held_by_another(failover, tier):
    token = await tier.lock("k", 10)
    await failover.happen()
    assert await tier.lock("k", 10) > token
    assert not await tier.unlock("k", token)


@pytest.mark.alone
async def test_a_tier_that_only_reads_leaves_a_replica(failover, tier, entry, until):
    assert await tier.set("k", entry("old"))
    await failover.happen()

    async def is_left():
        return await tier.get("k") is None

    assert await until(is_left) < 2
    assert tier.stats().failovers == 1


@pytest.mark.alone
async def test_a_replica_without_a_primary_is_not_used_until_there_is_one(failover, tier, entry, until):
    assert await tier.set("k", entry("old"))
    await failover.demote()
    for _ in range(3):
        assert not await tier.set("k", entry("new"))
    # What a replica has may be out of date.
    assert await tier.get("k") is None
    stats = tier.stats()
    assert (stats.failovers, stats.breaker) == (1, BreakerState.OPEN)
    assert stats.errors == Counter(ReplicaError=3)
    health = await tier.health()
    assert not health.ok
    assert "replica" in health.detail
    failover.name.point_to(failover.new)

    async def is_stored():
        return await tier.set("k", entry("new"))

    assert await until(is_stored) < 2
    assert (await tier.health()).ok


async def test_calls_in_flight_on_the_replica_are_repeated_on_the_primary(failover, tier, entry):
    keys = [f"k{number}" for number in range(50)]
    assert len(await tier.set_many({key: entry() for key in keys})) == 50
    reads = 0

    async def read(key):
        nonlocal reads
        for _ in range(100):
            await tier.get(key)
            reads += 1

    readers = [asyncio.create_task(read(key)) for key in keys]
    await asyncio.sleep(0.02)
    await failover.happen()
    assert await tier.set("k0", entry("new"))
    assert (await tier.get("k0")).value == "new"
    await asyncio.gather(*readers)
    assert tier.stats().errors == {}


class Listener:
    def __init__(self):
        self.records = []

    def apply(self, record):
        self.records.append(record)

    def extend(self, until):
        pass

    def missed(self):
        pass


@pytest.mark.alone
async def test_a_backplane_follows_its_name_to_the_new_primary(failover, servers, namespace, until):
    caches = [
        await TieredCache(
            LRUCache(100),
            None,
            PostgresTier(servers.database_url, deadline=5),
            namespace=namespace,
            backplane=RedisBackplane(failover.name.url),
        ).open()
        for _ in range(2)
    ]
    one, two = caches
    await one.set("k", 1)
    assert await two.get("k") == 1
    await failover.happen()

    async def is_published():
        return (await one.set("k", 2)).published

    assert await until(is_published) < 2

    async def is_heard():
        await one.set("k", 3)
        return await two.get("k") == 3

    assert await until(is_heard) < 2
    assert await failover.keys_on_new() > 0
    for cache in caches:
        await cache.close()


async def test_a_cache_after_a_failover_writes_everywhere(failover, servers, namespace):
    tiers = RedisTier(failover.name.url, deadline=5), PostgresTier(servers.database_url, deadline=5)
    async with TieredCache(LRUCache(9), *tiers, namespace=namespace) as cache:
        assert (await cache.set("k", 1, tags=["t"])).everywhere
        await failover.happen()
        assert (await cache.set("k", 2, tags=["t"])).everywhere
        assert await cache.get("k") == 2
        assert (await cache.invalidate_tag("t")).everywhere
        assert await cache.get("k") is None
        assert (await cache.clear()).everywhere
