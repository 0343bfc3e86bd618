"""The tier, the pool and the backplane behind a real PgBouncer in transaction mode: each transaction may meet another
session."""

import asyncio
import getpass
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg
import pytest

from acgsperf import ConnectionPool, LatencyHistogram, LRUCache, TieredCache
from acgsperf.backplane import BackplaneState
from acgsperf.backplane.postgres import PostgresBackplane
from acgsperf.fleet import Report, store_of
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier

PORT = 6432
SESSIONS = 3
CONFIG = """\
[databases]
{database} = {target}

[pgbouncer]
pool_mode = transaction
default_pool_size = {sessions}
auth_type = any
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
logfile = {folder}/log
"""

pytestmark = pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="needs the pgbouncer executable")


@pytest.fixture
def kind():
    return "postgres"


@pytest.fixture
def bouncer(servers):
    """The DSN of a PgBouncer in front of the server that all tests share."""
    parts = urlsplit(servers.database_url)
    host = parse_qs(parts.query).get("host", [parts.hostname or "localhost"])[0]
    user = unquote(parts.username or getpass.getuser())
    database = parts.path.lstrip("/") or user
    target = f"host={host} port={parts.port or 5432} user={user}"
    if parts.password:
        target += f" password={unquote(parts.password)}"
    # Short, for a unix socket's path has about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="acgs-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        config = folder / "pgbouncer.ini"
        config.write_text(CONFIG.format(database=database, target=target, sessions=SESSIONS, port=PORT, folder=folder))
        command = ["pgbouncer", "-q", str(config)]
        if os.getuid() == 0:
            # It does not run as root; the embedded server does not either, and lets nobody else to its socket.
            command += ["-u", Path(host).owner() if host.startswith("/") else "nobody"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            give_up = time.monotonic() + 10
            while not (folder / f".s.PGSQL.{PORT}").exists():
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.005)
            yield f"postgresql://{quote(user)}@/{database}?host={quote(name)}&port={PORT}"
        finally:
            process.terminate()
            process.wait(10)


async def test_tiers_read_what_was_written_whichever_session_they_meet(bouncer, namespace, entry):
    tiers = [PostgresTier(bouncer, statement_cache_size=0, deadline=5) for _ in range(2)]
    for tier in tiers:
        await tier.open(namespace)
    for turn in range(20):
        calls = [
            tier.set(f"{turn}/{number}/{i}", entry(i, tags=("x",)))
            for i in range(5)
            for number, tier in enumerate(tiers)
        ]
        assert all(await asyncio.gather(*calls))
        reads = [tiers[1 - number].get(f"{turn}/{number}/{i}") for i in range(5) for number in range(2)]
        assert [found.value for found in await asyncio.gather(*reads)] == [i for i in range(5) for _ in range(2)]
    assert await tiers[0].delete_many(["0/0/0", "0/1/0", "none"]) == 2
    assert await tiers[1].invalidate_tag("x") == 198
    assert await tiers[0].get("1/1/1") is None
    assert await tiers[0].clear() == 0
    for tier in tiers:
        assert tier.stats().errors == {}
        assert "PostgreSQL" in (await tier.health()).detail
        await tier.close()


async def test_a_pool_lends_more_connections_than_there_are_sessions(bouncer):
    options = {"min_size": 8, "max_size": 8, "statement_cache_size": 0, "check_after": 0}
    async with ConnectionPool(bouncer, **options) as pool:

        async def ask(number):
            async with pool.acquire() as connection, connection.transaction():
                pid = await connection.fetchval("SELECT pg_backend_pid()")
                assert await connection.fetchval("SELECT $1::int", number) == number
                assert await connection.fetchval("SELECT pg_backend_pid()") == pid
                return pid

        pids = await asyncio.gather(*(ask(number) for number in range(100)))
        assert 1 <= len(set(pids)) <= SESSIONS
        stats = pool.stats()
        assert (stats.size, stats.opened, stats.in_use) == (8, 8, 0)


async def test_a_service_needs_a_setting_and_no_more(bouncer, namespace):
    settings = Settings(
        database_url=bouncer,
        db_statement_cache_size=0,
        db_pool_max_size=8,
        db_pool_min_size=8,
        cache_namespace=namespace,
    )

    async def number(request):
        async with service.pools.get("default").acquire() as connection:
            return await connection.fetchval("SELECT $1::int", request["id"])

    async with PerformanceService(settings, handler=number) as service:
        requests = [{"id": i} for i in range(100)]
        assert await service.process_many(requests) == list(range(100))
        assert (await service.health()).ok
    async with PerformanceService(settings) as service:
        assert await service.process_many(requests) == list(range(100))
        await service.cache.clear()


@pytest.fixture
async def open_behind(bouncer, namespace):
    """Open caches whose L3 is behind the PgBouncer."""
    caches = []

    async def opened(l2=None, **options):
        l3 = PostgresTier(bouncer, statement_cache_size=0, deadline=5)
        # The first hit in a lower tier puts a value into L1.
        options = {"namespace": namespace, "deadline": 10, "promotion_threshold": 1} | options
        caches.append(TieredCache(LRUCache(100), l2, l3, **options))
        return await caches[-1].open()

    yield opened
    for cache in caches:
        await cache.close()
    if caches:
        async with caches[0] as cache:
            await cache.clear()


async def held(cache, key):
    """Read a key until L1 keeps it: a record that arrives during a read supersedes that."""
    async with asyncio.timeout(10):
        while cache.get_local(key) is None:
            await cache.get_or_load(key, lambda _: asyncio.sleep(0, "loaded"), tags=["t"])


async def dropped(cache, key):
    async with asyncio.timeout(10):
        while cache.get_local(key) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_the_default_backplane_is_off_with_a_warning_and_the_cache_works(open_behind, caplog):
    one, other = await open_behind(), await open_behind()
    assert [cache.stats().backplane.state for cache in (one, other)] == [BackplaneState.OFF] * 2
    # Both share one connection.
    [warning] = [record for record in caplog.records if record.name == "acgsperf.backplane"]
    assert "the connection goes through a pooler such as PgBouncer" in warning.getMessage()
    assert "Give PostgresBackplane a DSN that leads directly to PostgreSQL" in warning.getMessage()
    assert (await one.set("key", 1, tags=["t"])).l3
    assert await other.get("key") == 1
    assert (await other.invalidate_tag("t")).l3
    assert await other.get("key") is None
    # As without a backplane, another process does not learn of it.
    assert one.get_local("key") == 1


async def test_each_process_notices_the_pgbouncer_at_once(open_behind, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "acgsperf.backplane")
    for number in range(4):
        # As in another process: the names of prepared statements begin again.
        monkeypatch.setattr(asyncpg.connection, "_uid", 0)
        cache = await open_behind()
        assert cache.stats().backplane.state is BackplaneState.OFF
        assert len([record for record in caplog.records if record.name == "acgsperf.backplane"]) == number + 1
        await cache.close()


async def test_with_redis_the_backplane_is_there_and_not_behind_the_pgbouncer(open_behind, servers, caplog):
    one, other = [await open_behind(RedisTier(servers.redis_url, deadline=5)) for _ in range(2)]
    assert (await one.set("key", 1)).everywhere
    await held(other, "key")
    assert other.get_local("key") == 1
    assert (await one.set("key", 2)).everywhere
    await dropped(other, "key")
    assert await other.get("key") == 2
    assert [record for record in caplog.records if record.name == "acgsperf.backplane"] == []


async def test_a_backplane_with_a_direct_address_works_beside_a_tier_behind_the_pgbouncer(open_behind, servers):
    one, other = [await open_behind(backplane=PostgresBackplane(servers.database_url)) for _ in range(2)]
    assert [cache.stats().backplane.state for cache in (one, other)] == [BackplaneState.FOLLOWING] * 2
    assert (await one.set("key", 1, tags=["t"])).everywhere
    for change in (lambda: one.set("key", 2, tags=["t"]), lambda: one.invalidate_tag("t"), lambda: one.delete("key")):
        await held(other, "key")
        assert (await change()).everywhere
        await dropped(other, "key")


async def test_rows_that_change_through_the_pgbouncer_are_noticed(open_behind, bouncer, servers, namespace):
    backplane = PostgresBackplane(servers.database_url)
    cache = await open_behind(backplane=backplane)
    table = "w" + namespace.replace("-", "_")
    connection = await asyncpg.connect(bouncer, statement_cache_size=0)
    await connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY)")
    try:
        assert await backplane.watch(table, ["row:{id}"])
        assert (await cache.set("one", 1, tags=["row:1"])).everywhere
        assert (await cache.set("two", 2, tags=["row:2"])).everywhere
        await connection.execute(f"INSERT INTO {table} VALUES (1)")
        await dropped(cache, "one")
        assert await cache.get("one") is None
        assert await cache.get("two") == 2
        assert await backplane.unwatch(table)
    finally:
        await connection.execute(f"DROP TABLE {table}")
        await connection.close()


async def test_the_reports_of_a_fleet(bouncer, namespace):
    report = Report(
        instance="0123456789abcdef",
        sequence=1,
        seconds=1.0,
        failed=0,
        violations=0,
        missed=0,
        latency=LatencyHistogram().encode(),
    )
    async with store_of(bouncer, namespace, statement_cache_size=0, timeout=30) as store:
        for _ in range(3):
            await store.publish(report)
            assert await store.reports() == [report]
        assert await store.replace_state(0, b"x")
        assert (await store.state())[1] == b"x"
        await store.withdraw(report.instance)
        assert await store.reports() == []
