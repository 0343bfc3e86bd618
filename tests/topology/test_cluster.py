"""L2, its locks and the backplane in a Redis Cluster whose nodes stay what they are."""

import asyncio
import re
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.crc import key_slot

from acgsperf import LRUCache, PerformanceService, Settings, TieredCache
from acgsperf.backplane import BackplaneState
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.testing.private_cluster import free_ports
from acgsperf.tiers import Outcome, Store, Write
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_keys import BUCKETS, bucket_keys
from topology.cluster_servers import Cluster

DOCS = Path(__file__).parents[2] / "docs"
KEYS = [f"key {number}" for number in range(1_000)]


@pytest.fixture(scope="module")
def cluster():
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True)))
        yield Cluster(folder, stack)


@pytest.fixture
async def tier(cluster, namespace):
    tier = RedisTier(cluster.url, deadline=5)
    await tier.open(namespace)
    yield tier
    await tier.clear()
    await tier.close()


def test_buckets_are_spread_evenly_and_each_is_in_one_slot():
    for namespace in ("app", "a:b", "{x}", "x" * 100):
        keys = bucket_keys(namespace)
        slots = [key_slot(own.token) for own in keys]
        assert [slot * BUCKETS // 16_384 for slot in slots] == list(range(BUCKETS))
        for own, slot in zip(keys, slots, strict=True):
            names = [own.entry("k"), own.entry("{other}"), own.tag("t"), own.lock("k"), *own.own]
            assert {key_slot(name) for name in names} == {slot}
    assert [own.token for own in bucket_keys("a")] != [own.token for own in bucket_keys("b")]


async def test_keys_are_read_and_written_on_all_nodes(cluster, tier, namespace, entry):
    assert await tier.set_many({key: entry(key) for key in KEYS}) == set(KEYS)
    found = await tier.get_many(KEYS)
    assert {key: one.value for key, one in found.items()} == {key: key for key in KEYS}
    found = await asyncio.gather(*map(tier.get, KEYS))
    assert [one.value for one in found] == KEYS
    for number in range(3):
        async with cluster.client(number) as client:
            of_node = [key async for key in client.scan_iter(f"{namespace}:*", count=1_000)]
            assert len(of_node) > len(KEYS) / 6
    stats = tier.stats()
    assert (stats.hits, stats.misses, stats.stores, stats.errors) == (2_000, 0, 1_000, {})
    assert await tier.delete_many([*KEYS[:10], "absent"]) == 10
    assert len(await tier.get_many(KEYS)) == 990


async def test_a_key_of_any_form_comes_back(tier, entry):
    keys = ["", "{a}b", "x" * 5_000, "\udc80", "a:b", "ü{", "}{"]
    assert await tier.set_many({key: entry(len(key)) for key in keys}) == set(keys)
    assert (await tier.get_many(keys)).keys() == set(keys)
    for key in keys:
        assert (await tier.get(key)).value == len(key)


async def test_a_write_and_a_later_read_of_the_same_turn(tier, entry):
    _, found, _, many = await asyncio.gather(
        tier.set("k", entry("new")),
        tier.get("k"),
        tier.set_many({key: entry(key) for key in KEYS[:100]}),
        tier.get_many(KEYS[:100]),
    )
    assert found.value == "new"
    assert len(many) == 100


async def test_the_greater_stamp_wins(tier, entry):
    new = Write(entry("new"), b"n" * 8, tier.now_us() + 1_000)
    old = Write(entry("old"), b"o" * 8, new.stamp - 1)
    assert (await tier.write({"k": new}))["k"].outcome is Outcome.STORED
    result = (await tier.write({"k": old}))["k"]
    assert (result.outcome, result.stamp) == (Outcome.NEWER, new.stamp)
    assert (await tier.get("k")).value == "new"


async def test_tags(tier, entry):
    await tier.set_many({key: entry(key, tags=("all", f"tag {number % 7}")) for number, key in enumerate(KEYS)})
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    assert await tier.invalidate_tag("tag 3") == 0
    found = await tier.get_many(KEYS)
    assert found.keys() == {key for number, key in enumerate(KEYS) if number % 7 != 3}
    assert (await tier.expire_tag("tag 4")).outcome is Outcome.STORED
    found = await tier.get_many(KEYS)
    # Later than the invalidation also by a clock that was measured inexactly.
    now = asyncio.get_running_loop().time()
    for key, one in found.items():
        assert (one.fresh_until <= now) == (int(key[4:]) % 7 == 4)
    await tier.invalidate_tag("all")
    assert await tier.get_many(KEYS) == {}


async def test_clear_removes_all_entries_of_its_namespace_and_frees_their_memory(cluster, tier, namespace, entry):
    other = RedisTier(cluster.url, deadline=5)
    await other.open(namespace + "x")
    await other.set("k", entry())
    await tier.set_many({key: entry() for key in KEYS})
    assert await tier.clear() == len(KEYS)
    assert await tier.get_many(KEYS) == {}
    assert await other.get("k") is not None
    await other.clear()
    await other.close()
    count = Counter()
    for number in range(3):
        async with cluster.client(number) as client:
            async for key in client.scan_iter(f"{namespace}:*", count=1_000):
                count[key.partition(b"\xff")[2]] += 1
    assert count.keys() <= {b"token", b"invalidations"}


async def test_a_store_is_refused_after_an_invalidation(tier, entry):
    """The observation before a load no longer holds."""
    seen = await tier.observe(KEYS, ["t"])
    assert len(seen) == len(KEYS)
    await tier.invalidate_tag("t")
    stores = {key: Store(replace(entry(tags=("t",)), id=new_id()), one) for key, one in seen.items()}
    assert await tier.store(stores) == frozenset()
    seen = await tier.observe(KEYS, ["t"])
    stores = {key: Store(replace(entry(tags=("t",)), id=new_id()), one) for key, one in seen.items()}
    assert await tier.store(stores) == frozenset(KEYS)
    assert len(await tier.get_many(KEYS)) == len(KEYS)


async def test_locks(tier):
    tokens = await asyncio.gather(*(tier.lock(key, 10) for key in KEYS[:100]))
    assert all(tokens)
    assert await asyncio.gather(*(tier.lock(key, 10) for key in KEYS[:100])) == [0] * 100
    released = await asyncio.gather(*(tier.unlock(*lock) for lock in zip(KEYS, tokens, strict=False)))
    assert all(released)
    again = await asyncio.gather(*(tier.lock(key, 10) for key in KEYS[:100]))
    assert all(new > old for old, new in zip(tokens, again, strict=True))
    assert not await tier.unlock(KEYS[0], tokens[0])


@pytest.mark.alone
async def test_two_caches(cluster, namespace, until):
    loads = Counter()

    async def load(key):
        loads[key] += 1
        await asyncio.sleep(0.02)
        return key

    options = {"namespace": namespace, "lock_ttl": 5}
    async with (
        TieredCache(LRUCache(2_000), RedisTier(cluster.url, deadline=5), **options) as one,
        TieredCache(LRUCache(2_000), RedisTier(cluster.url, deadline=5), **options) as two,
    ):
        for key in KEYS[:10]:
            assert await asyncio.gather(*(cache.get_or_load(key, load) for cache in (one, two))) == [key, key]
            assert loads[key] == 1
        keys = KEYS[:100]
        # A write reaches the L1 of the other.
        for cache, other in ((one, two), (two, one)):
            for number, key in enumerate(keys):
                written = await cache.set(key, number, tags=("all",))
                assert written.everywhere
                assert written.published

            async def is_heard(other=other):
                return await other.get_many(keys) == {key: number for number, key in enumerate(keys)}

            assert await until(is_heard) < 2
        for change in (one.invalidate_tag("all"), one.clear()):
            await one.set_many(dict.fromkeys(keys, "v"), tags=("all",))
            assert await two.get_many(keys) == dict.fromkeys(keys, "v")
            assert (await change).everywhere

            async def is_gone():
                return await two.get_many(keys) == {}

            assert await until(is_gone) < 2
        assert two.stats().backplane.state is BackplaneState.FOLLOWING


@pytest.mark.alone
async def test_a_backplane_alone(cluster, servers, namespace, until):
    tiers = [PostgresTier(servers.database_url, deadline=5) for _ in range(2)]
    async with (
        TieredCache(LRUCache(9), None, tiers[0], namespace=namespace, backplane=RedisBackplane(cluster.url)) as one,
        TieredCache(LRUCache(9), None, tiers[1], namespace=namespace, backplane=RedisBackplane(cluster.url)) as two,
    ):
        await one.set("k", 1)
        assert await two.get("k") == 1
        assert (await one.set("k", 2)).published

        async def is_heard():
            return await two.get("k") == 2

        assert await until(is_heard) < 2


async def test_health_tells_the_topology(cluster, tier):
    health = await tier.health()
    assert health.ok
    assert health.detail.startswith("cluster of 3 primaries: ")
    for port in cluster.ports[:3]:
        assert f"127.0.0.1:{port}, primary with 1 replica, lag at most " in health.detail


async def test_connections_to_all_nodes_are_counted(cluster, tier, entry):
    await tier.set_many({key: entry(key) for key in KEYS})
    connections = tier.stats().connections
    assert connections.open >= 3
    assert connections.opened == connections.connect.count >= connections.open
    assert connections.failed == 0
    assert connections.connect.max > 0
    assert tier.counted_connections.connect_time.snapshot().count == connections.opened


async def test_a_read_deadline_holds_for_each_node(cluster, namespace, entry):
    tier = RedisTier(cluster.url, deadline=10)
    # The cache sets it if there is an L3 to be asked as well.
    tier.read_deadline = 0.1
    await tier.open(namespace)
    try:
        await tier.set_many({key: entry(key) for key in KEYS})
        async with cluster.client(0) as node:
            await node.execute_command("CLIENT", "PAUSE", 2_000)
            async with asyncio.timeout(1.5):
                found = await asyncio.gather(*map(tier.get, KEYS))
                assert 0 < found.count(None) < len(KEYS)
            # This node answers again.
            await node.ping()
    finally:
        await tier.close()


async def test_one_node_of_the_url_is_enough(cluster, namespace, entry):
    hosts = cluster.url.rpartition("/")[2].split(",")
    for url in (f"redis+cluster://{hosts[2]}", f"redis+cluster://127.0.0.1:1,{hosts[0]}/0?max_connections=2"):
        tier = RedisTier(url, deadline=5)
        await tier.open(namespace)
        assert len(await tier.set_many({key: entry() for key in KEYS})) == len(KEYS)
        await tier.close()


async def test_the_documented_rights_suffice(cluster, entry, until):
    rights = re.findall(
        r"\+\S+", re.search(r"Rights\b.*?```text\n(.*?)```", (DOCS / "tiers.md").read_text(), re.DOTALL)[1]
    )
    more = re.search(r"With an ACL, the user also needs `(.*?)`", (DOCS / "tiers.md").read_text())[1].split()
    of_backplane = re.findall(
        r"\+\S+", re.search(r"Rights\b.*?```text\n(.*?)```", (DOCS / "backplane.md").read_text(), re.DOTALL)[1]
    )
    for number in range(6):
        async with cluster.client(number) as client:
            keys = ("resetkeys", "~n:*", "~n%*", "-@all")
            await client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *keys, *rights, *more, *of_backplane)
            await client.acl_log_reset()
    url = cluster.url.replace("//", "//app:pw@")
    async with (
        TieredCache(LRUCache(2_000), RedisTier(url, deadline=5), namespace="n", lock_ttl=5) as one,
        TieredCache(LRUCache(2_000), RedisTier(url, deadline=5), namespace="n") as two,
    ):
        written = await one.set_many(dict.fromkeys(KEYS, 1), tags=("t",))
        assert all(result.everywhere and result.published for result in written.values())

        async def is_heard():
            return len(await two.get_many(KEYS)) == len(KEYS)

        await until(is_heard)
        assert await one.get_or_load("other", lambda _: asyncio.sleep(0, "loaded")) == "loaded"
        assert (await one.invalidate_tag("t")).everywhere
        assert (await one.clear()).everywhere
    for number in range(3):
        async with cluster.client(number) as client:
            assert [it["object"] for it in await client.acl_log() if "setinfo" not in it["object"]] == []


async def test_a_password(scratch, namespace, entry, caplog):
    with ExitStack() as stack:
        cluster = Cluster(scratch, stack, password="s3cret")
        tier = RedisTier(cluster.url, deadline=5)
        await tier.open(namespace)
        assert len(await tier.set_many({key: entry() for key in KEYS})) == len(KEYS)
        assert "s3cret" not in repr(tier) + (await tier.health()).detail
        await tier.close()
        tier = RedisTier(cluster.url.replace(":s3cret@", ""), deadline=5, credentials=lambda: "s3cret")
        await tier.open(namespace)
        assert len(await tier.get_many(KEYS)) == len(KEYS)
        await tier.close()
        tier = RedisTier(cluster.url.replace("s3cret", "wr0ng"), deadline=5)
        await tier.open(namespace)
        health = await tier.health()
        assert not health.ok
        assert "AuthenticationError" in health.detail
        assert "wr0ng" not in health.detail + caplog.text
        await tier.close()


async def test_the_address_of_a_single_server_as_a_cluster_is_named(start_redis, namespace, entry, caplog):
    port = free_ports(1)[0]
    start_redis("--port", str(port), "--bind", "127.0.0.1", "--requirepass", "pass-word")
    tier = RedisTier(f"redis+cluster://:pass-word@127.0.0.1:{port}", deadline=5)
    await tier.open(namespace)
    problem = f"127.0.0.1:{port} is not a node of a cluster; use redis:// for a single server"
    assert problem in caplog.text
    assert problem in (await tier.health()).detail
    assert not await tier.set("k", entry())
    assert "pass-word" not in caplog.text
    await tier.close()


async def test_a_node_of_a_cluster_as_a_single_server_is_named(cluster, namespace, entry, caplog):
    url = f"redis://127.0.0.1:{cluster.ports[0]}"
    problem = f"127.0.0.1:{cluster.ports[0]} is a node of a cluster; use redis+cluster:// in its URL"
    tier = RedisTier(url, deadline=5)
    async with TieredCache(LRUCache(9), tier, namespace=namespace) as cache:
        assert not (await cache.set("k", 1)).l2
        health = await tier.health()
        assert (health.ok, problem in health.detail) == (False, True)
    warned = [record.name for record in caplog.records if "cannot reach" in record.getMessage()]
    assert all(problem in record.getMessage() for record in caplog.records)
    assert sorted(warned) == ["acgsperf.backplane", "acgsperf.tiers"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+clusters://h:1", "must start with .*redis\\+cluster://.*, got redis\\+clusters://"),
        ("redis+cluster://", "must have the host of at least one node"),
        ("redis+cluster://u:pass-word@", "must have the host of at least one node"),
        ("redis+cluster://h:1,", "must have a host, and a port"),
        ("redis+cluster://h:1,g:99999", "must have a host, and a port from 1 to 65535"),
        ("redis+cluster://u:pass-word@h:1/2", "must have no database other than 0"),
        ("redis+cluster://h:1?db=3", "must have no database other than 0"),
        ("redis+cluster://u:pass-word#1@h:1", "in a password, write / as %2F and # as %23"),
        ("redis+cluster://h:1?max_connections=x", "has a max_connections that is not valid: it must be a number"),
        ("redis+cluster://u:pass-word@h:1?sentinel_password=pass-word", "has the unknown option 'sentinel_password'"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        RedisTier(url)
    assert "pass-word" not in str(caught.value)


def test_an_address_with_user_and_credentials_is_refused():
    with pytest.raises(ValueError, match="must not contain a user name or password"):
        RedisTier("redis+cluster://u:pass-word@h:1", credentials=lambda: "x")


async def test_a_service_uses_a_cluster(cluster):
    async def handler(request):
        return {"n": 1}

    async with PerformanceService(Settings(redis_url=cluster.url), handler=handler) as service:
        assert (await service.cache.set("k", 1)).l2
