"""L2, its locks and the backplane on a Redis that sentinels watch, through a failover."""

import asyncio
import gc
import time
from contextlib import ExitStack

import pytest

from acgsperf import LRUCache, PerformanceService, Settings, TieredCache
from acgsperf.backplane import BackplaneState
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from topology.measured import BOUND_S, sentinel_failover
from topology.sentinel_servers import Watched


@pytest.fixture
async def watched(scratch):
    with ExitStack() as stack:
        servers = Watched(scratch, stack)
        await servers.ready()
        yield servers
        for number in range(2):
            servers.thaw(number)
        for number in range(3):
            servers.thaw_sentinel(number)


async def test_a_tier_finds_its_primary(watched, namespace, entry):
    tier = RedisTier(watched.url + "?db=3", deadline=1)
    await tier.open(namespace)
    assert await tier.set("k", entry())
    assert (await tier.get("k")).value == "v"
    assert await tier.lock("k", 10)
    health = await tier.health()
    assert health.ok
    assert f"127.0.0.1:{watched.ports[0]}, primary of the service 'main'" in health.detail
    assert "primary with 1 replica" in health.detail
    async with watched.client(0) as client:
        assert (await client.info("keyspace")).keys() == {"db3"}
    await tier.close()


@pytest.mark.alone
@pytest.mark.parametrize("failure", ["kill", "freeze"])
async def test_a_failover_under_load(watched, namespace, failure):
    """The primary is lost under 50 callers: no wrong value, no error, writes within 2 s of the election."""

    async def records_arrive_again(one, two):
        for number in range(100):
            await one.set("heard", number)
            async with asyncio.timeout(5):
                while await two.get("heard") != number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    figures = await sentinel_failover(watched, namespace, failure=failure, after=records_arrive_again)
    print(figures)
    assert figures.first_write_s < BOUND_S
    assert figures.locks[0] - figures.changed_at < BOUND_S
    assert figures.wrong == []
    assert figures.errors == []


async def test_a_process_without_calls_leaves_a_primary_that_wakes_up_after_its_failover(watched, namespace, until):
    """It does not know yet that it has been replaced, and would accept writes for seconds."""
    idle = RedisTier(watched.url)
    async with (
        TieredCache(LRUCache(9), RedisTier(watched.url), namespace=namespace) as one,
        TieredCache(LRUCache(9), idle, namespace=namespace) as two,
    ):
        assert (await two.set("k", "old")).everywhere
        watched.freeze(0)
        await watched.elected()

        async def is_stored():
            return (await one.set("k", "new")).everywhere

        await until(is_stored)
        assert idle.stats().timeouts == 0

        async def follows():
            return two.stats().backplane.state is BackplaneState.FOLLOWING

        await until(follows)
        watched.thaw(0)
        assert (await two.set("own", "value")).everywhere
        assert await one.get("own") == "value"
        assert await two.get("k") == "new"
        async with watched.client(0) as former:
            assert not await former.exists(f"{namespace}:own")


async def test_what_the_new_primary_has_of_a_lost_write_is_not_served(watched, servers, namespace, until):
    """The replica has the version before the one that was acknowledged last; L3 has that one."""

    def cache():
        l3 = PostgresTier(servers.database_url, deadline=5)
        return TieredCache(LRUCache(9), RedisTier(watched.url, deadline=1), l3, namespace=namespace, deadline=5)

    async with cache() as one, cache() as two:
        assert (await one.set("k", "old")).everywhere
        assert await two.get("k") == "old"
        async with watched.client(0) as client:
            await client.wait(1, 5000)
        await watched.cut_replication()
        assert (await one.set("k", "acknowledged")).everywhere
        watched.kill(0)
        await watched.take_over()
        async with watched.client(1) as client:
            assert b"old" in await client.get(f"{namespace}:k")

        async def is_stored():
            return (await one.set("other", 1)).l2

        await until(is_stored)
        async with cache() as three:
            assert [await it.get("k") for it in (one, two, three)] == ["acknowledged"] * 3


@pytest.mark.alone
async def test_a_backplane_alone_follows_the_sentinels(watched, servers, namespace, until):
    tiers = [PostgresTier(servers.database_url, deadline=5) for _ in range(2)]
    async with (
        TieredCache(LRUCache(9), None, tiers[0], namespace=namespace, backplane=RedisBackplane(watched.url)) as one,
        TieredCache(LRUCache(9), None, tiers[1], namespace=namespace, backplane=RedisBackplane(watched.url)) as two,
    ):
        await one.set("k", 1)
        assert await two.get("k") == 1
        watched.kill(0)
        await watched.elected()

        async def is_published():
            return (await one.set("k", 2)).published

        assert await until(is_published) < 2

        async def is_heard():
            return await two.get("k") == 2

        assert await until(is_heard) < 2


@pytest.mark.alone
async def test_a_sentinel_that_hangs_costs_nothing(watched, namespace, entry):
    watched.freeze_sentinel(0)
    tier = RedisTier(watched.url, deadline=1)
    began = time.monotonic()
    await tier.open(namespace)
    assert await tier.set("k", entry())
    assert time.monotonic() - began < 0.5
    await tier.close()


async def test_sentinels_that_all_hang_are_no_unexpected_error(namespace, until, caplog):
    """The deadline of the tier passes before they are given up."""

    async def hang(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    tier = RedisTier(f"redis+sentinel://127.0.0.1:{server.sockets[0].getsockname()[1]}/main", deadline=0.05)
    await tier.open(namespace)
    health = await tier.health()
    assert health.detail == "TimeoutError: no answer within 0.05 s"

    async def is_given_up():
        return not [task for task in asyncio.all_tasks() if task.get_name() == "acgsperf sentinels"]

    await until(is_given_up)
    await tier.close()
    server.close()
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_service_that_no_sentinel_knows_is_named(watched, namespace, caplog):
    url = f"redis+sentinel://user:pass-word@{','.join(watched.sentinels)}/other?sentinel_password=secret"
    tier = RedisTier(url.replace("?sentinel_password=secret", ""), deadline=1)
    await tier.open(namespace)
    (record,) = [record for record in caplog.records if "cannot reach" in record.getMessage()]
    assert "no sentinel names a primary of the service 'other'" in record.getMessage()
    assert f"{watched.sentinels[0]} does not know it" in record.getMessage()
    health = await tier.health()
    assert "other" in health.detail
    for text in (record.getMessage(), health.detail, repr(tier)):
        assert "pass-word" not in text
    assert not health.ok
    await tier.close()


async def test_passwords_are_for_the_server_or_for_the_sentinels(scratch, namespace, entry, caplog):
    with ExitStack() as stack:
        watched = Watched(
            scratch,
            stack,
            *("--requirepass", "s/erver#1", "--masterauth", "s/erver#1"),
            sentinel_options=("requirepass sent@nel", "sentinel auth-pass main s/erver#1"),
        )
        hosts = ",".join(watched.sentinels)
        url = f"redis+sentinel://:s%2Ferver%231@{hosts}/main"
        tier = RedisTier(url + "?sentinel_password=sent%40nel&db=1", deadline=5)
        await tier.open(namespace)
        assert await tier.set("k", entry())
        await tier.close()
        tier = RedisTier(url + "?sentinel_password=wr0ng", deadline=5)
        await tier.open(namespace)
        assert not await tier.set("k", entry())
        assert "wr0ng" not in caplog.text
        assert "AuthenticationError" in caplog.text
        await tier.close()


async def test_the_sentinels_that_know_of_the_latest_failover_are_believed(watched, namespace, entry, until):
    """One that was frozen during the failover still names the former primary."""
    watched.freeze_sentinel(0)
    watched.kill(0)
    await watched.elected()
    watched.thaw_sentinel(0)
    tier = RedisTier(watched.url, deadline=1)
    await tier.open(namespace)

    async def is_stored():
        return await tier.set("k", entry())

    # For a moment, the other ones know only that the former primary is down.
    assert await until(is_stored) < 5
    await tier.close()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+sentinels://h:1/main", "must start with .*redis\\+sentinel://.*, got redis\\+sentinels://"),
        ("redis+sentinel:///main", "must have the host of at least one sentinel"),
        ("redis+sentinel://u:pass-word@/main", "must have the host of at least one sentinel"),
        ("redis+sentinel://h:1,/main", "must have a host, and a port"),
        ("redis+sentinel://h:1,g:99999/main", "must have a host, and a port from 1 to 65535"),
        ("redis+sentinel://h:1,g:x/main", "must have a host, and a port"),
        ("redis+sentinel://u:pass-word@h:1", "must have the name of the service as its path"),
        ("redis+sentinel://h:1/main/2", "must have the name of the service as its path"),
        ("redis+sentinel://h:1/main?db=x", "must have a number as its db"),
        ("redis+sentinel://u:pass-word#1@h:1/main", "in a password, write / as %2F and # as %23"),
        ("redis+sentinel://h:1/main?max_connections=x", "has a max_connections that is not valid: it must be a number"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        RedisTier(url)
    assert "pass-word" not in str(caught.value)


def test_an_address_with_user_and_credentials_is_refused():
    with pytest.raises(ValueError, match="must not contain a user name or password"):
        RedisTier("redis+sentinel://u:pass-word@h:1/main", credentials=lambda: "x")


async def test_a_service_uses_sentinels(watched):
    settings = Settings(redis_url=watched.url + "?sentinel_password=hidden-one")
    assert "hidden-one" not in repr(settings)
    settings = Settings(redis_url=watched.url)

    async def handler(request):
        return {"n": 1}

    async with PerformanceService(settings, handler=handler) as service:
        assert (await service.cache.set("k", 1)).l2
