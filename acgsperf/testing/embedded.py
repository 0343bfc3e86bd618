"""A private Redis and PostgreSQL for trying out, tests and benchmarks: real servers on unix sockets."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acgsperf.addresses import checked_dsn, checked_redis_url
from acgsperf.interrupts import Held
from acgsperf.testing.private_cluster import PrivateCluster
from acgsperf.testing.server_processes import (
    LONGEST_SOCKET,
    POSTGRES_PID,
    REDIS_PID,
    PrivatePostgres,
    PrivateRedis,
    is_open,
)

__all__ = ["ServerUrls", "Servers", "embedded_servers"]

# The longest path of a unix socket that every system accepts, in bytes.
_LONGEST_PATH: Final = 103
# Waits until its standard input ends, stops what still runs, and removes the folder. It removes twice, because a child
# of an interrupted start may write there for a moment more.
_GUARD: Final = f"""
cd "$1" || exit
read -r _
read -r pid <{REDIS_PID} && kill -TERM "$pid"
for file in n*/{REDIS_PID}; do read -r pid <"$file" && kill -TERM "$pid"; done
read -r pid <{POSTGRES_PID} && kill -QUIT "$pid"
cd / || exit
rm -rf "$1"
sleep 1
rm -rf "$1"
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """The addresses of the servers; None for one that was not requested."""

    redis_url: str | None
    database_url: str | None


@dataclass(frozen=True, slots=True)
class ServerUrls:
    """The addresses of a Redis and a PostgreSQL: what the fixture `acgsperf_servers` has.

    Attributes:
        redis_url: for `RedisTier` and others.
        database_url: for `PostgresTier`, `ConnectionPool` and others.
    """

    redis_url: str
    database_url: str


@contextmanager
def embedded_servers(*, redis: bool = True, postgres: bool = True, cluster: bool = False) -> Iterator[Servers]:
    """Provide a Redis and a PostgreSQL in a `with` block. Starting both takes about a second.

    A server that `REDIS_URL` or `DATABASE_URL` names is used as it is. The others are private: they live in a temporary
    directory, listen on unix sockets only, and are stopped and removed however the block or the process ends. The first
    Ctrl-C ends the block. Others do not interrupt the clean-up.

    Args:
        redis: whether to provide a Redis.
        postgres: whether to provide a PostgreSQL.
        cluster: whether a private Redis is a cluster of three primaries, each with a replica. It listens on ports of
            this machine, and takes three seconds more to start.

    Raises:
        AcgsperfError: when the program of a server is not installed, or the server does not start within 30 s.
        ValueError: when one of the variables does not hold a valid address.
    """
    redis_url = _from_environment("REDIS_URL", checked_redis_url) if redis else None
    database_url = _from_environment("DATABASE_URL", checked_dsn) if postgres else None
    if bool(redis_url) >= redis and bool(database_url) >= postgres:
        yield Servers(redis_url, database_url)
        return
    with ExitStack() as block:
        cleanup = ExitStack()
        # Before anything is started: an exception between a start and the next line must find the clean-up registered.
        block.callback(_close, cleanup)
        with Held() as signals:
            folder = _new_folder()
            _guard(folder, cleanup)
            cleanup.callback(_remove, folder)
            private_postgres = PrivatePostgres(folder)
            private_redis = PrivateCluster(folder) if cluster and redis and not redis_url else PrivateRedis(folder)
            # Redis gets ready while PostgreSQL starts.
            if redis and not redis_url:
                cleanup.callback(private_redis.stop)
                private_redis.start()
            if postgres and not database_url:
                cleanup.callback(private_postgres.stop)
                private_postgres.start(signals.check)
                database_url = private_postgres.url
            if redis and not redis_url:
                private_redis.wait(signals.check)
                redis_url = private_redis.url
        yield Servers(redis_url, database_url)


def _from_environment(variable: str, check: Callable[[str, str], str]) -> str | None:
    url = os.environ.get(variable)
    return check(variable, url) if url else None


def _close(cleanup: ExitStack) -> None:
    with Held():
        cleanup.close()


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="acgs-"))
    too_long = len(os.fsencode(folder / LONGEST_SOCKET)) > _LONGEST_PATH
    # Started by root, PostgreSQL runs as another user, who has to reach the folder.
    if too_long or (os.geteuid() == 0 and not all(map(is_open, folder.parents))):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="acgs-", dir="/tmp"))
    return folder


def _guard(folder: Path, cleanup: ExitStack) -> None:
    """Start a shell that stops the servers if this process is killed and cannot do it."""
    reader, writer = os.pipe()
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(folder)],
        stdin=reader,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(reader)
    # The pipe is closed when this process ends, whatever ends it.
    cleanup.callback(os.close, writer)
    cleanup.callback(guard.wait)
    cleanup.callback(guard.kill)


def _remove(folder: Path) -> None:
    # A child of an interrupted start may still write there for a moment.
    deadline = time.monotonic() + 5
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.005)
