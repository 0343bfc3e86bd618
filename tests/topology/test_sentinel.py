"""L2, its locks and the backplane on a Redis that sentinels watch, through a failover."""

import asyncio
import time
from contextlib import ExitStack

import pytest

from acgsperf import LRUCache, PerformanceService, Settings, TieredCache
from acgsperf.backplane import BackplaneState
from acgsperf.backplane.redis import RedisBackplane
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from topology.sentinel_servers import Watched

CALLERS = 50


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


@pytest.mark.parametrize("failure", ["kill", "freeze"])
async def test_a_failover_under_load(watched, servers, namespace, failure):
    """The primary is lost under 50 callers: no wrong value, no error, writes within 2 s of the election."""
    truth, going_on, wrong, errors = {}, True, [], []

    async def load(key):
        return truth[key]

    l2 = RedisTier(watched.url)
    async with (
        TieredCache(LRUCache(20), l2, namespace=namespace) as one,
        TieredCache(LRUCache(20), RedisTier(watched.url), namespace=namespace) as two,
    ):
        keys = [f"k{number}" for number in range(CALLERS)]
        for key in keys:
            truth[key] = 0
            # A machine that is busy with other tests may take its time.
            async with asyncio.timeout(10):
                while not (await one.set(key, 0)).l2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        stored = []
        locked = []

        async def call(number):
            key = keys[number]
            while going_on:
                try:
                    truth[key] += 1
                    written = truth[key]
                    if (await one.set(key, written)).everywhere:
                        stored.append(time.monotonic())
                        # What the other process has of the key has arrived before this.
                        found = await one.get(key)
                        if found is not None and found < written:
                            wrong.append((key, found, written))
                    # A loader answers with the truth, whatever the servers do.
                    if await one.get_or_load(f"loaded-{key}", lambda _: load(key)) > truth[key]:
                        wrong.append(key)
                    await two.get(key)
                except Exception as error:
                    errors.append(repr(error))
                await asyncio.sleep(0.005)

        async def lock():
            while going_on:
                if await l2.lock("lock", 0.5):
                    locked.append(time.monotonic())
                await asyncio.sleep(0.05)

        callers = [asyncio.create_task(call(number)) for number in range(CALLERS)]
        locker = asyncio.create_task(lock())
        await asyncio.sleep(1)
        assert stored
        began = time.monotonic()
        getattr(watched, failure)(0)
        await watched.elected()
        elected = time.monotonic()
        async with asyncio.timeout(10):
            while stored[-1] < elected or locked[-1] < elected:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        took = next(at for at in stored if at > elected) - elected
        locked_after = next(at for at in locked if at > elected) - elected
        print(f"elected after {elected - began:.2f} s, writes {took:.2f} s later, locks {locked_after:.2f} s later")
        await asyncio.sleep(1)
        going_on = False
        await asyncio.gather(*callers, locker)
        assert took < 2
        assert locked_after < 2
        assert wrong == []
        assert errors == []
        # Records arrive again.
        for number in range(100):
            await one.set("heard", number)
            async with asyncio.timeout(5):
                while await two.get("heard") != number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        assert str(watched.ports[1]) in (await l2.health()).detail
        watched.thaw(0)


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


async def test_a_sentinel_that_hangs_costs_nothing(watched, namespace, entry):
    watched.freeze_sentinel(0)
    tier = RedisTier(watched.url, deadline=1)
    began = time.monotonic()
    await tier.open(namespace)
    assert await tier.set("k", entry())
    assert time.monotonic() - began < 0.5
    await tier.close()


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
