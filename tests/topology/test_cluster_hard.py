"""A Redis Cluster in a bad state: slots without a node, redirections to nowhere, nodes without a name."""

import asyncio
import logging
from contextlib import ExitStack

import pytest
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from acgsperf.tiers import BreakerState, redis_known_nodes, redis_nodes
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_keys import bucket_keys, bucket_of
from acgsperf.tiers.redis_node import target_of
from topology.cluster_servers import Cluster

KEYS = [f"key {number}" for number in range(1_000)]
PARTIAL = ("--cluster-require-full-coverage", "no")
# A machine that is busy with other tests must not cause a failover.
CALM = ("--cluster-node-timeout", "15000")


@pytest.fixture
def make_cluster(scratch):
    with ExitStack() as stack:
        made = []

        def make(*options):
            made.append(Cluster(scratch, stack, *options))
            return made[0]

        yield make
        for cluster in made:
            for number in range(6):
                if cluster.nodes[number].process.poll() is None:
                    cluster.thaw(number)


def slots_of(namespace):
    return [key_slot(own.token) for own in bucket_keys(namespace)]


def slot_of(namespace, key):
    return slots_of(namespace)[bucket_of(key.encode())]


def keys_in(namespace, slots):
    return {key for key in KEYS if slot_of(namespace, key) in slots}


def addresses_of(tier):
    return {node.address for node in tier._in_cluster._cluster.nodes.all}


async def opened(cluster, namespace, **options):
    tier = RedisTier(cluster.url, **{"deadline": 30, **options})
    await tier.open(namespace)
    return tier


@pytest.mark.parametrize(
    "options",
    [
        ("hostname", "--cluster-announce-hostname", "localhost"),
        # No node tells its host: all are where they were asked, or at their IP.
        ("unknown-endpoint",),
        ("hostname",),
    ],
)
async def test_nodes_are_found_by_any_kind_of_endpoint(make_cluster, namespace, entry, options):
    cluster = make_cluster(*CALM, "--cluster-preferred-endpoint-type", *options)
    tier = await opened(cluster, namespace)
    assert len(await tier.set_many({key: entry(key) for key in KEYS})) == len(KEYS)
    moved = [slot for slot in slots_of(namespace) if slot < 5_461][:3]
    await cluster.move(moved[:2], 0, 1)
    await cluster.move(moved[2:], 0, 1, finish=False)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    health = await tier.health()
    assert health.ok
    assert health.detail.startswith("cluster of 3 primaries: ")
    await tier.close()


def test_a_redirection_without_a_host_leads_to_the_host_that_gave_it():
    class Node:
        address = "[::1]:7000"

    assert target_of(MovedError("1 :7001"), Node) == "[::1]:7001"
    assert target_of(AskError("1 ?:7001"), Node) == "[::1]:7001"
    assert target_of(MovedError("1 10.0.0.1:7001"), Node) == "10.0.0.1:7001"
    # The nodes tell more if they are asked for their slots.
    assert target_of(MovedError("1 ?:7001"), Node) == ""


async def test_slots_without_a_node_cost_their_own_keys_only(make_cluster, namespace, entry, until, caplog):
    cluster = make_cluster(*PARTIAL, *CALM)
    tier = await opened(cluster, namespace)
    await tier.set_many({key: entry() for key in KEYS})
    # Those of eight buckets.
    lost = range(2_048)
    gone = keys_in(namespace, lost)
    for number in range(6):
        cluster.ask(number, "CLUSTER", "DELSLOTSRANGE", "0", "2047")

    async def is_noticed():
        await tier.get_many(KEYS)
        return "no node has the slots of" in caplog.text

    await until(is_noticed)
    for _ in range(5):
        assert (await tier.get_many(KEYS)).keys() == set(KEYS) - gone
        found = await asyncio.gather(*map(tier.get, KEYS))
        assert {key for key, one in zip(KEYS, found, strict=True) if one} == set(KEYS) - gone
        assert await tier.set_many({key: entry() for key in KEYS}) == set(KEYS) - gone
    assert await tier.invalidate_tag("t") is None
    assert await tier.clear() is None
    health = await tier.health()
    assert not health.ok
    assert "no node of the cluster has the slots of 8 of 64 buckets" in health.detail
    # A process that starts now knows the same.
    other = await opened(cluster, namespace)
    await other.set_many({key: entry() for key in KEYS})
    assert (await other.get_many(KEYS)).keys() == set(KEYS) - gone
    await other.close()
    cluster.ask(1, "CLUSTER", "ADDSLOTSRANGE", "0", "2047")

    async def is_stored():
        return len(await tier.set_many({key: entry() for key in KEYS})) == len(KEYS)

    await until(is_stored)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    assert tier.stats().breaker is BreakerState.CLOSED
    assert caplog.text.count("no node has the slots of") == 1
    await tier.close()


@pytest.mark.alone
async def test_a_cluster_that_is_down_is_left_alone_until_it_is_up(make_cluster, namespace, entry, until, caplog):
    cluster = make_cluster()
    tier = await opened(cluster, namespace, deadline=0.5)
    await until(lambda: _stores(tier, entry))
    for number in (5, 2):
        cluster.kill(number)

    async def is_down():
        return await tier.set_many({key: entry() for key in KEYS}) == set()

    await until(is_down)
    caplog.set_level(logging.INFO, "acgsperf.tiers")
    for _ in range(60):
        await tier.get_many(KEYS[:50])
        await asyncio.sleep(0.05)
    opened_again = [record for record in caplog.records if "circuit" in record.getMessage()]
    # Once for each node.
    assert len(opened_again) <= 6, [record.getMessage() for record in opened_again]
    assert tier.stats().breaker is not BreakerState.CLOSED
    for number in (2, 5):
        cluster.nodes[number].start()
        cluster.nodes[number].wait(lambda: None)

    async def is_up():
        return all("cluster_state:ok" in cluster.ask(number, "CLUSTER", "INFO") for number in (0, 1, 2, 5))

    await until(is_up, 30)
    assert await until(lambda: _stores(tier, entry), 20) < 2
    await tier.close()


async def _stores(tier, entry):
    return len(await tier.set_many({key: entry() for key in KEYS})) == len(KEYS)


async def test_a_slot_that_moves_to_a_dead_node_costs_no_other_key(make_cluster, namespace, entry):
    cluster = make_cluster(*PARTIAL, *CALM)
    tier = await opened(cluster, namespace)
    slot = next(slot for slot in slots_of(namespace) if slot < 5_461)
    moving = sorted(keys_in(namespace, {slot}))
    others = sorted(key for key in KEYS if slot_of(namespace, key) < 5_461 and key not in moving)
    await tier.set_many({key: entry() for key in [*others, *moving[1:]]})
    async with cluster.client(0) as giving:
        await giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.ids[1])
    cluster.kill(4)
    cluster.kill(1)
    for _ in range(10):
        found = await asyncio.gather(*map(tier.get, [*moving, *others[:50]]))
        assert [one is not None for one in found] == [False] + [True] * (len(found) - 1)
        assert (await tier.get_many([*moving, *others])).keys() == {*moving[1:], *others}
        # Its lock is nowhere.
        assert await tier.lock(moving[0], 1) is None
        assert await tier.set_many({key: entry() for key in [moving[0], *others[:50]]}) == {*others[:50]}
    node = tier._in_cluster._cluster.homes[bucket_of(moving[0].encode())]
    assert node.calls.breaker.state is BreakerState.CLOSED
    assert node.calls.breaker.failures_in_a_row == 0
    await tier.close()


async def _knows_replicas(cluster):
    for number in range(3):
        async with cluster.client(number) as client:
            if not all(len(shard) > 3 for shard in await client.execute_command("CLUSTER", "SLOTS")):
                return False
    return True


@pytest.mark.alone
async def test_a_replica_that_is_promoted_by_hand(make_cluster, namespace, entry, until, monkeypatch):
    cluster = make_cluster("--cluster-node-timeout", "3000")
    tier = await opened(cluster, namespace)
    await tier.set_many({key: entry() for key in KEYS})
    await tier.delete_many(KEYS[:500])
    # The nodes tell of a replica only when they have heard from it.
    await until(lambda: _knows_replicas(cluster), 30)
    # A tier that was opened before learns of it within a minute.
    monkeypatch.setattr(redis_nodes, "_MAP_AGE_S", 0.0)
    nodes = tier._in_cluster._cluster
    for node in nodes.in_use:
        node.clock._asked_at = 0.0
    await tier.get_many(KEYS)
    await until(lambda: asyncio.sleep(0, all(nodes.slots.map.replicas.values())))
    going_on, wrong, written = True, [], dict.fromkeys(KEYS[500:550], 0)

    async def call(key):
        while going_on:
            if await tier.set(key, entry(written[key] + 1)):
                written[key] += 1
            found = await tier.get(key)
            if found is not None and found.value != "v" and found.value < written[key]:
                wrong.append((key, found.value, written[key]))
            await asyncio.sleep(0.005)

    callers = [asyncio.create_task(call(key)) for key in written]
    cluster.ask(3, "CLUSTER", "FAILOVER")
    await until(lambda: asyncio.to_thread(cluster.is_primary, 3), 20)
    before = dict(written)
    # The first answer may come from the former primary.
    assert await until(lambda: asyncio.sleep(0, all(written[key] > before[key] + 1 for key in written))) < 2
    going_on = False
    await asyncio.gather(*callers)
    assert wrong == []
    assert await tier.get_many(KEYS[:500]) == {}
    assert tier.stats().failovers == 1
    assert (await tier.health()).ok
    await tier.close()


async def test_a_node_joins_and_leaves(make_cluster, namespace, entry, until, monkeypatch):
    monkeypatch.setattr(redis_known_nodes, "_UNUSED_S", 0.05)
    cluster = make_cluster(*CALM, "--cluster-allow-replica-migration", "no")
    tier = await opened(cluster, namespace)
    await tier.set_many({key: entry() for key in KEYS})
    others = range(5)
    former = cluster.ids[5]
    cluster.ask(5, "CLUSTER", "RESET", "HARD")
    for number in others:
        cluster.ask(number, "CLUSTER", "FORGET", former)
    cluster.ids[5] = cluster.ask(5, "CLUSTER", "MYID")
    cluster.ask(0, "CLUSTER", "MEET", "127.0.0.1", str(cluster.ports[5]), cluster._bus_port(5))

    async def is_known():
        known = all(cluster.ids[5] in cluster._others(number) for number in others)
        return known and "cluster_state:ok" in cluster.ask(5, "CLUSTER", "INFO")

    await until(is_known)
    moved = [slot for slot in slots_of(namespace) if slot < 5_461][:4]
    await cluster.move(moved, 0, 5)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    assert await tier.set_many({key: entry() for key in KEYS}) == set(KEYS)
    joined = f"127.0.0.1:{cluster.ports[5]}"
    assert joined in addresses_of(tier)
    assert (await tier.health()).detail.startswith("cluster of 4 primaries: ")
    await cluster.move(moved, 5, 0)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    before = tier.stats().connections
    for number in others:
        cluster.ask(number, "CLUSTER", "FORGET", cluster.ids[5])
    cluster.kill(5)

    async def is_forgotten():
        await tier.health()
        return joined not in addresses_of(tier)

    await until(is_forgotten)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    slots = tier._in_cluster._cluster.slots
    assert joined not in slots._servers
    after = tier.stats().connections
    assert after.opened == after.connect.count >= before.opened
    assert tier.stats().failovers == 0
    await tier.close()
    # Nor do the counts restart with the tier.
    await tier.open(namespace)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    assert tier.stats().connections.opened > after.opened
    assert tier.stats().connections.open >= 3
    await tier.close()


async def test_locks_and_tags_move_with_their_slot(make_cluster, namespace, entry):
    cluster = make_cluster(*CALM)
    one, two = await opened(cluster, namespace), await opened(cluster, namespace)
    slots = [slot for slot in slots_of(namespace) if slot < 5_461][:4]
    keys = sorted(keys_in(namespace, slots))[:40]
    tokens = {key: await one.lock(key, 60) for key in keys}
    assert all(tokens.values())
    await one.set_many({key: entry(tags=("a", "b")) for key in keys})
    await cluster.move(slots, 0, 1)
    assert [await two.lock(key, 60) for key in keys] == [0] * len(keys)
    assert len(await two.get_many(keys)) == len(keys)
    await two.invalidate_tag("a")
    assert await one.get_many(keys) == {}
    assert all([await one.unlock(key, token) for key, token in tokens.items()])
    again = {key: await two.lock(key, 60) for key in keys}
    assert all(again[key] > tokens[key] for key in keys)
    await two.set_many({key: entry(tags=("b",)) for key in keys})
    await cluster.move(slots, 1, 2)
    assert len(await one.get_many(keys)) == len(keys)
    await one.invalidate_tag("b")
    assert await two.get_many(keys) == {}
    assert all([await two.unlock(key, token) for key, token in again.items()])
    await one.close()
    await two.close()


async def test_entries_of_moved_slots_remain_hits_if_the_former_node_is_slow(make_cluster, namespace, entry):
    cluster = make_cluster(*CALM)
    tier = await opened(cluster, namespace)
    await tier.set_many({key: entry() for key in KEYS})
    slots = [slot for slot in slots_of(namespace) if slot < 5_461][:5]
    await cluster.move(slots, 0, 1)
    async with cluster.client(0) as node:
        await node.execute_command("CLIENT", "PAUSE", 1_000)
        # The token of each slot names the run of the node that had it. It is asked whether it still runs.
        other = await opened(cluster, namespace)
        assert len(await other.get_many(KEYS)) == len(KEYS)
        await other.close()
        await node.ping()
    await tier.close()


async def test_a_node_that_hangs_does_not_delay_the_others(make_cluster, namespace, entry):
    cluster = make_cluster(*PARTIAL, *CALM)
    tier = await opened(cluster, namespace)
    await tier.set_many({key: entry() for key in KEYS})
    slots = [slot for slot in slots_of(namespace) if slot < 5_461][:5]
    keys = sorted(keys_in(namespace, slots))
    hung = next(key for key in KEYS if slot_of(namespace, key) > 10_922)
    cluster.freeze(2)
    waiting = asyncio.create_task(tier.set(hung, entry()))
    await cluster.move(slots, 0, 1)
    assert len(await tier.get_many(keys)) == len(keys)
    assert await tier.set_many({key: entry() for key in keys}) == set(keys)
    assert not waiting.done()
    cluster.thaw(2)
    assert await waiting
    await tier.close()
