"""The reports of a fleet in a Redis Cluster, and in a Redis that sentinels watch."""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.crc import key_slot

from acgsperf import LatencyHistogram
from acgsperf.errors import FleetError
from acgsperf.fleet import Report, store_of
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_keys import bucket_keys
from topology.cluster_servers import Cluster
from topology.sentinel_servers import Watched

REPORT = Report(
    instance="0123456789abcdef",
    sequence=1,
    seconds=1.0,
    failed=0,
    violations=0,
    missed=0,
    latency=LatencyHistogram().encode(),
)


@pytest.fixture
def cluster():
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True)))
        yield Cluster(folder, stack)


@pytest.fixture
async def watched(scratch):
    with ExitStack() as stack:
        servers = Watched(scratch, stack)
        await servers.ready()
        yield servers


async def published(store, report):
    """Publish until it succeeds, as a service does each round."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await store.publish(report)
            except FleetError:
                await asyncio.sleep(0.1)


async def test_a_fleet_in_a_cluster(cluster, namespace):
    async with store_of(cluster.url, namespace, timeout=30) as store:
        reports = [replace(REPORT, instance=f"{number:016x}") for number in range(250)]
        for report in reports:
            await store.publish(report)
        assert sorted(report.instance for report in await store.reports()) == [one.instance for one in reports]
        assert await store.replace_state(0, b"x")
        tier = RedisTier(cluster.url, deadline=30)
        await tier.open(namespace)
        await tier.clear()
        await tier.close()
        assert len(await store.reports()) == 250
        assert (await store.state())[1] == b"x"
        # Its slot moves to another node, with all reports in it.
        slot = key_slot(bucket_keys(namespace)[0].fleet)
        source = next(number for number in range(3) if slot <= (5460, 10922, 16383)[number])
        await cluster.move([slot], source, (source + 1) % 3)
        await store.publish(replace(REPORT, instance=f"{0:016x}", sequence=2))
        found = await store.reports()
        assert len(found) == 250
        assert max(report.sequence for report in found) == 2
        revision, document = await store.state()
        assert document == b"x"
        assert await store.replace_state(revision, b"y")


async def test_a_fleet_whose_primary_fails(watched, namespace):

    async with store_of(watched.url, namespace, timeout=5) as store:
        await published(store, REPORT)
        assert await store.reports() == [REPORT]
        watched.kill(0)
        await published(store, replace(REPORT, sequence=2))
        assert [report.sequence for report in await store.reports()] == [2]
