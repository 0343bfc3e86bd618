"""A Redis Cluster that speaks TLS: `rediss+cluster://`.

The embedded server is built without TLS, so that these tests need a `redis-server` of the machine.
"""

from contextlib import ExitStack

import pytest
import trustme

from acgsperf.compat.ultra_fast_cache import create_ultra_fast_cache
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_keys import bucket_keys
from acgsperf.tiers.redis_slots import key_slot
from topology.cluster_servers import Cluster
from topology.sentinel_servers import TLS, tls_program

KEYS = [f"key {number}" for number in range(300)]
_DEADLINE_S = 30


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls(scratch, authority):
    files = scratch / "authority.pem", scratch / "certificate.pem", scratch / "key.pem"
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(files[0])
    certificate.cert_chain_pems[0].write_to_path(files[1])
    certificate.private_key_pem.write_to_path(files[2])
    return TLS(tls_program(), *files)


@pytest.fixture
def cluster(scratch, tls):
    with ExitStack() as stack:
        # A machine that is busy with other tests must not cause a failover.
        yield Cluster(scratch, stack, "--cluster-node-timeout", "3000", tls=tls)


@pytest.fixture
def url(cluster, tls):
    hosts = ",".join(f"127.0.0.1:{port}" for port in cluster.tls_ports[:3])
    return f"rediss+cluster://{hosts}?ssl_ca_certs={tls.authority}"


async def health_of(url, namespace, entry):
    tier = RedisTier(url, deadline=_DEADLINE_S)
    await tier.open(namespace)
    stored = await tier.set("k", entry())
    health = await tier.health()
    await tier.close()
    assert health.ok is stored
    return stored, health.detail


async def test_nodes_speak_tls_while_slots_move_and_through_a_failover(cluster, url, namespace, entry, until):
    tier = RedisTier(url, deadline=_DEADLINE_S)
    await tier.open(namespace)
    assert await tier.set_many({key: entry(key) for key in KEYS}) == set(KEYS)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    # The nodes tell a client that speaks TLS the ports for TLS.
    health = await tier.health()
    for port in cluster.tls_ports[:3]:
        assert f"127.0.0.1:{port}, primary with 1 replica" in health.detail
    moved = [slot for slot in map(key_slot, (own.token for own in bucket_keys(namespace))) if slot < 5_461][:3]
    await cluster.move(moved, 0, 1)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    cluster.kill(0)

    async def is_stored():
        return len(await tier.set_many({key: entry("new") for key in KEYS})) == len(KEYS)

    await until(is_stored, 60)
    assert len(await tier.get_many(KEYS)) == len(KEYS)
    assert tier.stats().failovers == 1
    await tier.close()


async def test_the_former_cache_speaks_tls(url, until):
    cache = await create_ultra_fast_cache(url)
    for number, key in enumerate(KEYS[:50]):
        await cache.set(key, number)
    cache.l1_cache.clear()
    found = [await cache.get(key) for key in KEYS[:50]]
    assert [one for one in found if one is not None] != []
    assert all(one in (None, number) for number, one in enumerate(found))
    await cache.close()


async def test_nodes_that_cannot_be_trusted_are_refused(cluster, url, namespace, entry):
    for change, problem in (
        (url.partition("?")[0], "certificate verify failed"),
        (url.replace("127.0.0.1", "localhost"), "certificate is not valid for 'localhost'"),
        (url.partition("?")[0].replace("rediss", "redis"), "does not answer"),
        (
            url.replace(str(cluster.tls_ports[0]), str(cluster.ports[0])).partition(",")[0]
            + "?"
            + url.partition("?")[2],
            "this may be a server that does not speak TLS",
        ),
    ):
        stored, detail = await health_of(change, namespace, entry)
        assert not stored
        assert problem in detail
