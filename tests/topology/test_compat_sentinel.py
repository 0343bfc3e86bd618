"""The cache under its former names on a Redis that sentinels watch."""

import json
from contextlib import ExitStack

import pytest

from acgsperf.compat.ultra_fast_cache import create_ultra_fast_cache, get_ultra_fast_cache
from topology.sentinel_servers import Watched


@pytest.fixture
async def watched(scratch):
    with ExitStack() as stack:
        servers = Watched(scratch, stack)
        await servers.ready()
        yield servers
        servers.thaw(0)


async def _stored(watched, number, key):
    async with watched.client(number) as client:
        found = await client.get(key)
        return None if found is None else json.loads(found)


@pytest.mark.parametrize("failure", ["kill", "freeze"])
async def test_the_cache_follows_a_failover(watched, until, failure, caplog):
    cache = await create_ultra_fast_cache(watched.url)
    assert await cache.set("k", 1)
    assert await _stored(watched, 0, "k") == 1
    getattr(watched, failure)(0)
    await watched.elected()
    number = 1

    async def is_stored():
        nonlocal number
        number += 1
        # The cache answers whatever its Redis does.
        assert await cache.get("k") == number - 1
        await cache.set("k", number)
        return await _stored(watched, 1, "k") == number

    await until(is_stored)
    watched.thaw(0)
    for number in range(20):
        await cache.set(f"own-{number}", number)
        assert await _stored(watched, 1, f"own-{number}") == number
    await cache.close()


async def test_the_cache_of_the_process_knows_the_url_of_sentinels(watched, fresh_process, monkeypatch):
    monkeypatch.setenv("REDIS_URL", watched.url + "?db=2")
    cache = await get_ultra_fast_cache()
    assert await cache.set("k", 1)
    cache.l1_cache.clear()
    assert await cache.get("k") == 1
    async with watched.client(0) as client:
        assert "db2" in await client.info("keyspace")
    await cache.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda url: url.replace("/main", "/other"), "no sentinel names a primary of the service 'other'"),
        (lambda url: "redis+sentinel://:pass-word@/main", "must have the host of at least one sentinel"),
        (lambda url: "redis+sentinels://:pass-word@h:1/main", "got redis+sentinels://"),
        (
            lambda url: "redis+other://:pass-word@h:1",
            "must be the URL of a single server, of its sentinels or of a cluster, got redis+oth",
        ),
    ],
)
async def test_a_url_that_leads_nowhere_is_one_warning(watched, change, problem, caplog):
    cache = await create_ultra_fast_cache(change(watched.url))
    (record,) = caplog.records
    assert problem in record.getMessage()
    assert "the cache uses L1 only" in record.getMessage()
    assert "pass-word" not in record.getMessage()
    assert cache.redis_client is None
    await cache.set("k", 1)
    assert await cache.get("k") == 1
    await cache.close()
