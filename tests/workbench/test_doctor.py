"""`acgsperf doctor`, with servers that work, have problems, or are absent."""

import asyncio
import time

import asyncpg
import pytest
import redis

from acgsperf.testing.server_binaries import redis_program
from acgsperf.workbench import doctor
from acgsperf.workbench.doctor import Severity, examine


async def findings(**environ):
    return {finding.subject: finding async for finding in examine(environ)}


@pytest.fixture
def environ(servers):
    return {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url, "DB_POOL_MAX_SIZE": "50"}


async def test_where_all_is_well_every_line_is_ok(environ):
    found = await findings(**environ)
    assert list(found) == ["Python", "extension", "settings", "Redis", "PostgreSQL"]
    assert {finding.severity for finding in found.values()} <= {Severity.OK, found["extension"].severity}
    assert found["extension"].severity is not Severity.ERROR
    assert "ms away" in found["Redis"].detail
    assert "ms away" in found["PostgreSQL"].detail


@pytest.mark.parametrize("error_s", [-3_600, 3_600])
async def test_a_wall_clock_that_is_wrong_is_no_problem(environ, monkeypatch, error_s):
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + error_s)
    found = await findings(**environ)
    assert found["Redis"].severity is found["PostgreSQL"].severity is Severity.OK


async def test_an_old_server_is_a_warning(environ, monkeypatch):
    monkeypatch.setattr(doctor, "OLDEST_REDIS", (99, 0))
    monkeypatch.setattr(doctor, "OLDEST_POSTGRES", 990_000)
    found = await findings(**environ)
    assert found["Redis"].severity is found["PostgreSQL"].severity is Severity.WARNING
    assert "the oldest supported version is 6.2" in found["Redis"].detail
    assert "L3 needs version 13" in found["PostgreSQL"].detail


async def test_what_the_environment_does_not_name_is_a_private_one(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    found = await findings()
    assert found["Redis"].severity is found["PostgreSQL"].severity is Severity.OK
    assert found["Redis"].detail.startswith("REDIS_URL is not set; a private one is ")


@pytest.mark.parametrize(
    ("variable", "subject", "url"),
    [
        ("REDIS_URL", "Redis", "redis://:hunter2@localhost:1/0"),
        ("REDIS_URL", "Redis", "unix:///nowhere/redis.sock?password=hunter2"),
        ("DATABASE_URL", "PostgreSQL", "postgresql://me:hunter2@localhost:1/db"),
    ],
)
async def test_a_server_that_is_stopped_is_named_and_its_password_is_not(environ, variable, subject, url):
    found = await findings(**environ | {variable: url})
    assert found[subject].severity is Severity.ERROR
    assert found[subject].detail.startswith(f"{variable}: cannot be reached: ")
    assert "hunter2" not in found[subject].detail


async def test_a_redis_that_does_not_know_auth_does_not_reveal_the_password(environ, tmp_path):
    socket = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--rename-command", "AUTH", ""]
    process = await asyncio.create_subprocess_exec(redis_program(), *options, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(10):
            while not socket.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        found = await findings(**environ | {"REDIS_URL": f"unix://me:hunter2@{socket}"})
    finally:
        process.kill()
        await process.wait()
    assert found["Redis"].detail == "REDIS_URL: cannot be reached: unknown command 'AUTH'"


async def test_a_setting_that_cannot_be_used_ends_the_examination(environ):
    found = await findings(**environ | {"L1_CACHE_SIZE": "many"})
    assert found["settings"].severity is Severity.ERROR
    assert found["settings"].detail.startswith("L1_CACHE_SIZE must be ")
    assert "Redis" not in found


async def test_a_directory_of_workers_is_looked_at(environ, tmp_path):
    found = await findings(**environ | {"WORKERS_DIRECTORY": str(tmp_path)})
    assert found["workers"].severity is Severity.OK
    assert found["workers"].detail == f"0 other processes report in {str(tmp_path)!r}"
    (tmp_path / "file").touch()
    found = await findings(**environ | {"WORKERS_DIRECTORY": f"{tmp_path}/file"})
    assert found["workers"].severity is Severity.ERROR
    assert found["workers"].detail.startswith("WORKERS_DIRECTORY must be a writable directory (")
    assert found["Redis"].severity is Severity.OK


@pytest.mark.parametrize("url", ["redis://localhost/0?foo=bar", "unix:///tmp/s?ssl_ca_certs=/x"])
async def test_an_option_that_the_client_does_not_know_is_an_error_like_another(environ, url):
    found = await findings(**environ | {"REDIS_URL": url})
    assert found["Redis"].severity is Severity.ERROR
    assert found["Redis"].detail.startswith("REDIS_URL: cannot be reached: ")
    assert found["PostgreSQL"].severity is Severity.OK


async def test_a_redis_that_will_refuse_writes_when_it_is_full_is_a_warning(environ):
    client = redis.Redis.from_url(environ["REDIS_URL"])
    client.config_set("maxmemory", 10**9)
    try:
        found = await findings(**environ)
    finally:
        client.config_set("maxmemory", 0)
        client.close()
    assert found["Redis"].severity is Severity.WARNING
    assert "noeviction" in found["Redis"].detail


async def test_a_user_who_may_not_use_streams_is_a_warning(environ):
    with redis.Redis.from_url(environ["REDIS_URL"]) as client:
        client.acl_setuser(
            "no-streams", enabled=True, nopass=True, keys="*", commands=["+@all", "-xadd", "-xread", "-xrange"]
        )
        try:
            url = environ["REDIS_URL"].replace("unix://", "unix://no-streams:x@")
            found = await findings(**environ | {"REDIS_URL": url})
            keys = client.keys("acgsperf-doctor*")
        finally:
            client.acl_deluser("no-streams")
    assert found["Redis"].severity is Severity.WARNING
    assert "XADD, XRANGE, XREAD" in found["Redis"].detail
    assert keys == []


async def test_a_pool_that_may_grow_beyond_the_server_is_a_warning(environ):
    found = await findings(**environ | {"DB_POOL_MAX_SIZE": "5000"})
    assert found["PostgreSQL"].severity is Severity.WARNING
    assert "DB_POOL_MAX_SIZE is 5000" in found["PostgreSQL"].detail


async def test_the_connections_that_the_server_reserves_are_not_there_for_a_pool(environ):
    connection = await asyncpg.connect(environ["DATABASE_URL"])
    allowed = int(await connection.fetchval("SHOW max_connections"))
    reserved = int(await connection.fetchval("SHOW superuser_reserved_connections"))
    await connection.close()
    assert reserved
    for size, severity in ((allowed, Severity.WARNING), (allowed - reserved, Severity.OK)):
        found = await findings(**environ | {"DB_POOL_MAX_SIZE": str(size)})
        assert found["PostgreSQL"].severity is severity
    found = await findings(**environ | {"DB_POOL_MAX_SIZE": str(allowed)})
    assert found["PostgreSQL"].detail.endswith(
        f"DB_POOL_MAX_SIZE is {allowed}, but the server allows {allowed - reserved} connections to its users "
        f"(max_connections {allowed}, of which it reserves {reserved})"
    )


async def test_a_read_only_database_is_a_warning(environ):
    url = environ["DATABASE_URL"]
    url += ("&" if "?" in url else "?") + "default_transaction_read_only=on"
    found = await findings(**environ | {"DATABASE_URL": url})
    assert found["PostgreSQL"].severity is Severity.WARNING
    assert "read-only" in found["PostgreSQL"].detail
