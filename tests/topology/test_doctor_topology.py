"""`acgsperf doctor` tells the topology, the roles and the lag, and what is wrong with them."""

from contextlib import ExitStack

import pytest
from redis.asyncio import Redis

from acgsperf.workbench.doctor import Severity, examine
from topology.cluster_servers import Cluster
from topology.postgres_servers import dsn_of
from topology.sentinel_servers import Watched


async def _finding(subject, **environ):
    found = {finding.subject: finding async for finding in examine({"DB_POOL_MAX_SIZE": "20", **environ})}
    return found.get(subject) or found["settings"]


async def test_a_service_with_sentinels(scratch, servers):
    with ExitStack() as stack:
        watched = Watched(scratch, stack)
        await watched.ready()
        environ = {"REDIS_URL": watched.url, "DATABASE_URL": servers.database_url}
        found = await _finding("Redis", **environ)
        assert found.severity is Severity.OK
        assert "primary with 1 replica, lag at most" in found.detail
        assert f"127.0.0.1:{watched.ports[0]} is the primary of the service 'main' of 3 sentinels" in found.detail
        found = await _finding("Redis", **environ | {"REDIS_URL": watched.url.replace("/main", "/other")})
        assert found.severity is Severity.ERROR
        assert "no sentinel names a primary of the service 'other'" in found.detail
        hosts = [*watched.sentinels[:2], "127.0.0.1:1"]
        found = await _finding("Redis", **environ | {"REDIS_URL": f"redis+sentinel://:hidden@{','.join(hosts)}/main"})
        assert "hidden" not in found.detail
        found = await _finding("Redis", **environ | {"REDIS_URL": f"redis+sentinel://{','.join(hosts)}/main"})
        assert found.severity is Severity.WARNING
        assert "127.0.0.1:1 does not answer" in found.detail


async def test_a_cluster(scratch, servers):
    with ExitStack() as stack:
        cluster = Cluster(scratch, stack, "--cluster-require-full-coverage", "no")
        environ = {"REDIS_URL": cluster.url, "DATABASE_URL": servers.database_url}
        found = await _finding("Redis", **environ)
        assert found.severity is Severity.OK
        assert "cluster of 3 primaries: " in found.detail
        for port in cluster.ports[:3]:
            assert f"127.0.0.1:{port}: primary with 1 replica, lag at most " in found.detail
        for number in (3, 0):
            cluster.kill(number)
        found = await _finding("Redis", **environ)
        assert found.severity is Severity.WARNING
        assert f"127.0.0.1:{cluster.ports[0]} cannot be reached" in found.detail


async def test_a_replica_is_a_warning(start_redis, servers):
    server = start_redis()
    async with Redis.from_url(server.url, protocol=2) as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
    found = await _finding("Redis", REDIS_URL=server.url, DATABASE_URL=servers.database_url)
    assert found.severity is Severity.WARNING
    assert "replica, not connected to its primary; it is a replica, so L2 does not use it" in found.detail


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+sentinels://:pass-word@h:1/main", "got 'redis+sentinels://***'"),
        ("redis+sentinel://:pass-word@/main", "/service with the host of at least one sentinel, got"),
    ],
)
async def test_an_address_that_cannot_be_used_is_an_error(url, problem):
    found = await _finding("settings", REDIS_URL=url)
    assert found.severity is Severity.ERROR
    assert "pass-word" not in found.detail
    assert problem in found.detail


async def test_the_servers_of_a_dsn(replicated, servers):
    environ = {"REDIS_URL": servers.redis_url}
    one, two = replicated.folders
    found = await _finding("PostgreSQL", **environ, DATABASE_URL=dsn_of(two, one))
    assert found.severity is Severity.OK
    assert f"{two}: standby, lag 0.0 s; {one}: primary with 1 standby, lag at most " in found.detail
    found = await _finding("PostgreSQL", **environ, DATABASE_URL=dsn_of(two))
    assert found.severity is Severity.WARNING
    assert "standby, lag 0.0 s; it is a standby, so L3 does not use it" in found.detail
    found = await _finding("PostgreSQL", **environ, DATABASE_URL=dsn_of(one, one / "nowhere"))
    assert found.severity is Severity.WARNING
    assert f"{one / 'nowhere'}: cannot be reached" in found.detail
    found = await _finding("PostgreSQL", **environ, DATABASE_URL=dsn_of(two, one / "nowhere"))
    assert "none of the servers is a primary" in found.detail
