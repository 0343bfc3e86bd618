"""A Redis Cluster whose slots move, and whose nodes are killed, frozen and restarted, under load."""

import asyncio
import time
from contextlib import ExitStack
from itertools import pairwise

import pytest
from redis.crc import key_slot

from acgsperf import LRUCache, TieredCache
from acgsperf.backplane import BackplaneState
from acgsperf.tiers import BreakerState
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_keys import BUCKETS, bucket_keys, bucket_of
from topology.cluster_servers import Cluster

CALLERS = 50
KEYS = [f"key {number}" for number in range(1_000)]
# Without it, every node refuses every command between the death of a primary and the election.
PARTIAL = ("--cluster-require-full-coverage", "no")
# A machine that is busy with other tests must not cause a failover.
without_failover = pytest.mark.parametrize("cluster", [("--cluster-node-timeout", "15000")], indirect=True, ids=[""])


@pytest.fixture
def cluster(scratch, request):
    with ExitStack() as stack:
        cluster = Cluster(scratch, stack, *PARTIAL, *getattr(request, "param", ()))
        yield cluster
        for number in range(6):
            if cluster.nodes[number].process.poll() is None:
                cluster.thaw(number)


def slots_of(namespace):
    """The slot of each bucket."""
    return [key_slot(own.token) for own in bucket_keys(namespace)]


def keys_at(namespace, first, last):
    """Those of KEYS whose slots are in a range."""
    slots = slots_of(namespace)
    return [key for key in KEYS if first <= slots[bucket_of(key.encode())] <= last]


async def elected(cluster, number, until):
    """Return when a replica has become a primary."""

    async def is_primary():
        return cluster.is_primary(number)

    await until(is_primary, 30)


async def all_stored(tier, entries, until):
    """Return when a tier with the usual deadline has stored entries. A machine that is busy with tests is slow."""

    async def is_stored():
        return await tier.set_many(entries) == entries.keys()

    await until(is_stored, 30)


class Load:
    """50 callers that write and read one key each. A value only grows."""

    def __init__(self, tier, entry, keys):
        self._tier, self._entry, self._keys = tier, entry, keys
        self.acknowledged = dict.fromkeys(keys, 0)
        self.stored_at = {key: [] for key in keys}
        self.wrong = []
        self.missed = []
        self._going_on = True
        self._tasks = []

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._call(key)) for key in self._keys]
        while not all(self.acknowledged.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_):
        self._going_on = False
        await asyncio.gather(*self._tasks)

    async def _call(self, key):
        value = 0
        while self._going_on:
            value += 1
            if await self._tier.set(key, self._entry(value)):
                self.acknowledged[key] = value
                self.stored_at[key].append(time.monotonic())
            found = await self._tier.get(key)
            if found is None:
                self.missed.append(key)
            elif found.value < self.acknowledged[key]:
                self.wrong.append((key, found.value, self.acknowledged[key]))
            await asyncio.sleep(0.005)


@without_failover
async def test_slots_move_under_load(cluster, namespace, entry, until):
    tier = RedisTier(cluster.url, deadline=5)
    await tier.open(namespace)
    await tier.set_many({f"still {key}": entry(key, tags=("t",)) for key in KEYS})
    async with Load(tier, entry, KEYS[:CALLERS]) as load:
        # A fifth of the first node's buckets, with everything in them.
        slots = [slot for slot in slots_of(namespace) if slot < 5_461][:5]
        await cluster.move(slots, 0, 1)
        moved_at = time.monotonic()

        async def is_stored():
            return all(times[-1] > moved_at for times in load.stored_at.values())

        assert await until(is_stored) < 5
    assert load.wrong == []
    found = await tier.get_many(KEYS[:CALLERS])
    assert {key: one.value for key, one in found.items()}.items() >= load.acknowledged.items()
    # What nobody has touched has moved as well.
    assert len(await tier.get_many([f"still {key}" for key in KEYS])) == len(KEYS)
    # A process that knows nothing of it finds all of it.
    other = RedisTier(cluster.url, deadline=5)
    await other.open(namespace)
    assert len(await other.get_many([f"still {key}" for key in KEYS])) == len(KEYS)
    await other.invalidate_tag("t")
    assert await tier.get_many([f"still {key}" for key in KEYS]) == {}
    assert tier.stats().failovers == 0
    await other.close()
    await tier.close()


@without_failover
async def test_keys_are_read_while_their_slot_moves(cluster, namespace, entry):
    tier = RedisTier(cluster.url, deadline=5)
    await tier.open(namespace)
    await tier.set_many({key: entry(key) for key in KEYS})
    slots = [slot for slot in slots_of(namespace) if slot < 5_461][:5]
    await cluster.move(slots, 0, 1, finish=False)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    assert all(await asyncio.gather(*map(tier.get, KEYS[:200])))
    # A script needs keys of which some have moved. It is not carried out, and says so.
    moving = next(key for key in KEYS if slots_of(namespace)[bucket_of(key.encode())] in slots)
    assert not await tier.set(moving, entry("new"))
    await cluster.move(slots, 0, 1)
    assert (await tier.get(moving)).value == moving
    assert await tier.set(moving, entry("new"))
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    await tier.close()


@without_failover
async def test_the_log_of_the_backplane_moves(cluster, namespace, until):
    slot = key_slot(f"{namespace}:".encode() + b"\xfflog")
    source = slot * 3 // 16_384
    async with (
        TieredCache(LRUCache(9), RedisTier(cluster.url), namespace=namespace) as one,
        TieredCache(LRUCache(9), RedisTier(cluster.url), namespace=namespace) as two,
    ):
        assert (await one.set("k", 1)).published
        assert await two.get("k") == 1
        await cluster.move([slot], source, (source + 1) % 3)

        async def is_published():
            return (await one.set("k", 2)).published

        await until(is_published)

        async def is_heard():
            return two.get_local("k") == 2 or await two.get("k") == 2

        await until(is_heard)
        assert two.stats().backplane.state in (BackplaneState.FOLLOWING, BackplaneState.RECOVERING)


@pytest.mark.parametrize("failure", ["kill", "freeze"])
async def test_a_primary_is_lost_under_load(cluster, namespace, entry, until, failure):
    """Its slots are back within 2 s of the election. The others are not concerned."""
    tier = RedisTier(cluster.url)
    await tier.open(namespace)
    at_first = keys_at(namespace, 0, 5_460)
    elsewhere = keys_at(namespace, 5_461, 16_383)
    removed = at_first[20:40]
    await all_stored(tier, {key: entry("removed") for key in removed}, until)
    assert await tier.delete_many(removed) == len(removed)
    keys = at_first[:10] + elsewhere[: CALLERS - 10]
    async with Load(tier, entry, keys) as load:
        await asyncio.sleep(0.2)
        lost_at = time.monotonic()
        getattr(cluster, failure)(0)
        await elected(cluster, 3, until)
        elected_at = time.monotonic()

        async def is_stored():
            return all(load.stored_at[key][-1] > elected_at for key in at_first[:10])

        took = await until(is_stored)
        print(f"elected after {elected_at - lost_at:.2f} s, all slots written {took:.2f} s later")
        await asyncio.sleep(0.2)
    assert took < 2
    assert load.wrong == []
    # The longest time for which a key of the other nodes was not stored.
    gaps = [
        max(later - earlier for earlier, later in pairwise(times))
        for key in elsewhere[: CALLERS - 10]
        if (times := load.stored_at[key])
    ]
    assert max(gaps) < elected_at - lost_at
    assert not set(load.missed) & set(elsewhere)
    # Nothing comes back that was deleted before.
    assert await tier.get_many(removed) == {}
    assert tier.stats().failovers == 1
    assert tier.stats().breaker is BreakerState.CLOSED
    assert (await tier.health()).ok
    if failure == "freeze":
        cluster.thaw(0)
        async with Load(tier, entry, keys) as load:
            await asyncio.sleep(0.3)
        assert load.wrong == []
    await tier.close()


async def test_entries_of_a_promoted_replica_are_misses(cluster, namespace, entry, until):
    """It may lack acknowledged writes: readers do not see what came back."""
    tier = RedisTier(cluster.url)
    await tier.open(namespace)
    await all_stored(tier, {key: entry() for key in KEYS}, until)
    cluster.kill(0)
    await elected(cluster, 3, until)

    async def is_whole():
        return (await tier.health()).ok

    await until(is_whole)
    for reader in (tier, RedisTier(cluster.url, deadline=5)):
        if reader is not tier:
            await reader.open(namespace)
        assert (await reader.get_many(KEYS)).keys() == set(keys_at(namespace, 5_461, 16_383))
        await reader.close()


async def test_a_primary_that_was_restarted_is_empty(cluster, namespace, entry, until):
    tier = RedisTier(cluster.url)
    await tier.open(namespace)
    await tier.set_many({key: entry() for key in KEYS})
    cluster.kill(3)
    async with cluster.client(0) as client:
        await client.save()
    await tier.delete_many(KEYS[:500])
    cluster.kill(0)
    cluster.nodes[0].start()
    cluster.nodes[0].wait(lambda: None)

    async def is_stored():
        return len(await tier.set_many({key: entry("new") for key in KEYS[500:]})) == 500

    await until(is_stored, 20)
    assert (await tier.get_many(KEYS)).keys() == set(KEYS[500:])
    await tier.close()


async def test_a_tier_opens_while_a_node_is_down(cluster, namespace, entry, caplog, until):
    cluster.kill(3)
    cluster.kill(0)
    tier = RedisTier(cluster.url, deadline=1)
    await tier.open(namespace)
    stored = await tier.set_many({key: entry() for key in KEYS})
    assert stored == set(keys_at(namespace, 5_461, 16_383))
    assert (await tier.get_many(KEYS)).keys() == stored
    # What concerns all buckets was not done.
    assert await tier.clear() is None
    health = await tier.health()
    assert not health.ok
    assert f"127.0.0.1:{cluster.ports[0]}" in health.detail
    await tier.close()


@pytest.mark.alone
async def test_two_caches_through_a_failover(cluster, namespace, until):
    async with (
        TieredCache(LRUCache(2_000), RedisTier(cluster.url), namespace=namespace) as one,
        TieredCache(LRUCache(2_000), RedisTier(cluster.url), namespace=namespace) as two,
    ):
        node = key_slot(f"{namespace}:".encode() + b"\xfflog") * 3 // 16_384
        cluster.kill(node)
        await elected(cluster, node + 3, until)
        elected_at = time.monotonic()
        number = 0

        async def is_written():
            nonlocal number
            number += 1
            written = await one.set_many(dict.fromkeys(KEYS[:100], number))
            return all(one.everywhere and one.published for one in written.values())

        assert await until(is_written) < 2

        async def is_heard():
            return set((await two.get_many(KEYS[:100])).values()) == {number}

        await until(is_heard)
        print(f"heard {time.monotonic() - elected_at:.2f} s after the election")
        assert time.monotonic() - elected_at < 4


def test_every_bucket_has_keys():
    assert {bucket_of(key.encode()) for key in KEYS} == set(range(BUCKETS))
