"""The tier and the pool behind a real PgBouncer in transaction mode: each transaction may meet another session."""

import asyncio
import getpass
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from acgsperf import ConnectionPool
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings
from acgsperf.tiers.postgres import PostgresTier

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
