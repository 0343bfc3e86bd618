"""`acgsperf doctor` with the URL of sentinels that lead to no server: one line, and exit status 1."""

import asyncio
import os
import sys
from contextlib import ExitStack

import pytest

from topology.sentinel_servers import Watched


async def doctor(url, servers):
    """The line about Redis or the settings that `acgsperf doctor` prints, and its exit status."""
    environ = {**os.environ, "REDIS_URL": url, "DATABASE_URL": servers.database_url, "DB_POOL_MAX_SIZE": "20"}
    environ.pop("COLUMNS", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "acgsperf", "doctor"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert errors == b""
    (line,) = [line for line in output.decode().splitlines() if line.startswith("error")]
    return line, process.returncode


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+sentinel://:pass-word@/main", "/service with the host of at least one sentinel, got 'redis+sentinel"),
        ("redis+sentinel://:pass-word@127.0.0.1:1,/main", "/service with a host, and a port"),
        ("redis+sentinel://:pass-word@127.0.0.1:1", "/service with the name of the service as its path"),
        ("redis+sentry://:pass-word@127.0.0.1:1/main", "got 'redis+sentry://***'"),
    ],
)
async def test_an_address_that_cannot_be_used(servers, url, problem):
    line, status = await doctor(url, servers)
    assert line.split()[1] == "settings"
    assert problem in line
    assert "pass-word" not in line
    assert status == 1


async def test_sentinels_that_are_all_down(servers):
    async def hang(reader, writer):
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = f"redis+sentinel://:pass-word@127.0.0.1:1,127.0.0.1:2,127.0.0.1:{port}/main?sentinel_password=hidden"
    line, status = await doctor(url, servers)
    silent.close()
    assert line.split()[1] == "Redis"
    assert "REDIS_URL: cannot be reached: no sentinel names a primary of the service 'main'" in line
    for number in (1, 2, port):
        assert f"127.0.0.1:{number} does not answer" in line
    assert "pass-word" not in line
    assert "hidden" not in line
    assert status == 1


async def test_a_service_that_no_sentinel_knows_and_one_whose_primary_is_down(scratch, servers):
    with ExitStack() as stack:
        watched = Watched(scratch, stack)
        await watched.ready()
        line, status = await doctor(watched.url.replace("/main", "/other"), servers)
        assert "cannot be reached: no sentinel names a primary of the service 'other'" in line
        for sentinel in watched.sentinels:
            assert f"{sentinel} does not know it" in line
        assert status == 1
        for number in range(2):
            watched.kill(number)
        async with asyncio.timeout(20):
            while "is down" not in line:
                line, status = await doctor(watched.url, servers)
        assert f"says that 127.0.0.1:{watched.ports[0]} is down" in line
        assert status == 1
