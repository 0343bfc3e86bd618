"""The cache under its former names on a Redis Cluster."""

import json
from contextlib import ExitStack

import pytest

from acgsperf.compat.ultra_fast_cache import create_ultra_fast_cache, get_ultra_fast_cache
from acgsperf.tiers.redis_slots import key_slot
from topology.cluster_servers import Cluster

KEYS = [f"key {number}" for number in range(100)]


@pytest.fixture
def cluster(scratch):
    with ExitStack() as stack:
        cluster = Cluster(scratch, stack, "--cluster-require-full-coverage", "no")
        yield cluster
        for number in range(6):
            if cluster.nodes[number].process.poll() is None:
                cluster.thaw(number)


async def stored(cluster, key, numbers=(0, 1, 2)):
    """What the nodes have under the bare key."""
    found = []
    for number in numbers:
        async with cluster.client(number) as client:
            if key.encode() in [one async for one in client.scan_iter(count=1_000)]:
                found.append(json.loads(await client.get(key)))
    return found


async def test_keys_are_stored_on_all_nodes(cluster, fresh_process, monkeypatch):
    monkeypatch.setenv("REDIS_URL", cluster.url)
    cache = await get_ultra_fast_cache()
    for number, key in enumerate(KEYS):
        assert await cache.set(key, number, None if number % 2 else 60)
    cache.l1_cache.clear()
    assert [await cache.get(key) for key in KEYS] == list(range(len(KEYS)))
    for number in range(3):
        async with cluster.client(number) as client:
            assert await client.dbsize() > len(KEYS) / 6
    assert await stored(cluster, KEYS[7]) == [7]
    assert (await cache.health_check())["l2_healthy"]
    assert await cache.delete(KEYS[7])
    assert not await cache.delete(KEYS[7])
    assert await cache.clear_all()
    for number in range(3):
        async with cluster.client(number) as client:
            assert await client.dbsize() == 0
    await cache.close()


async def test_the_cache_follows_slots_that_move(cluster):
    cache = await create_ultra_fast_cache(cluster.url)
    for number, key in enumerate(KEYS):
        await cache.set(key, number)
    slots = sorted({key_slot(key.encode()) for key in KEYS if key_slot(key.encode()) < 5_461})
    await cluster.move(slots[:3], 0, 1)
    # These keys are at the target already, and those that follow are not stored anywhere.
    await cluster.move(slots[3:6], 0, 1, finish=False)
    cache.l1_cache.clear()
    assert [await cache.get(key) for key in KEYS] == list(range(len(KEYS)))
    for key in KEYS:
        assert await cache.delete(key)
    assert await cache.get(KEYS[0]) is None
    await cache.close()


@pytest.mark.parametrize("failure", ["kill", "freeze"])
async def test_the_cache_follows_a_failover(cluster, until, failure):
    cache = await create_ultra_fast_cache(cluster.url)
    key = next(key for key in KEYS if key_slot(key.encode()) < 5_461)
    other = next(key for key in KEYS if key_slot(key.encode()) > 10_922)
    await cache.set(key, 1)
    getattr(cluster, failure)(0)
    await cache.set(other, 1)
    number = 1

    async def is_stored():
        nonlocal number
        number += 1
        # The cache answers whatever its Redis does.
        assert await cache.get(key) == number - 1
        await cache.set(key, number)
        return cluster.is_primary(3) and await stored(cluster, key, [3]) == [number]

    await until(is_stored, 30)
    cluster.thaw(0) if failure == "freeze" else None
    for number in range(20):
        await cache.set(key, number)
        assert await stored(cluster, key, [3]) == [number]
    await cache.close()


async def test_a_cluster_is_used_while_one_of_its_nodes_is_down(cluster):
    cluster.kill(3)
    cluster.kill(0)
    cache = await create_ultra_fast_cache(cluster.url)
    other = next(key for key in KEYS if key_slot(key.encode()) > 10_922)
    assert await cache.set(other, 1)
    assert await stored(cluster, other, [2]) == [1]
    assert not (await cache.health_check())["l2_healthy"]
    await cache.close()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "redis+cluster://:pass-word@127.0.0.1:1",
            "no node of the cluster tells its slots: 127.0.0.1:1 does not answer",
        ),
        ("redis+cluster://:pass-word@", "must have the host of at least one node"),
        ("redis+cluster://:pass-word@h:1/3", "must have no database other than 0"),
    ],
)
async def test_a_url_that_leads_nowhere_is_one_warning(url, problem, caplog):
    cache = await create_ultra_fast_cache(url)
    (record,) = caplog.records
    assert problem in record.getMessage()
    assert "the cache uses L1 only" in record.getMessage()
    assert "pass-word" not in record.getMessage()
    assert cache.redis_client is None
    await cache.close()
