"""The files by which the processes of an application share figures: each writes its own, and reads those of the others.

A process has a random name, its token. While it lives, it holds a lock on its file `NAME.TOKEN.alive`. The system
releases the lock when the process ends for any reason.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet, finalize

from acgsperf.errors import SettingsError
from acgsperf.settings import opened_workers_directory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LocksMissingError", "WorkerFiles", "replace"]


class LocksMissingError(OSError):
    """The file system has no locks, so no process can publish."""


class WorkerFiles:
    """The files of the processes that share a directory.

    Args:
        directory: shared by all processes; created if it is missing.
        name: processes with the same name share their files.
        kind: what the files contain; their suffix.

    Attributes:
        directory: the directory.
        token: names this process; empty until it publishes, and after `close`. A forked child gets another token.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str, kind: str) -> None:
        if fcntl is None:
            problem = "a writable directory (file locks are missing on this system)"
            raise SettingsError("WORKERS_DIRECTORY", str(directory), problem)
        # Absolute, because the process may change its working directory.
        self.directory: Final = opened_workers_directory(directory).absolute()
        self.token: str = ""
        self._name = name
        self._kind = kind
        self._lock: finalize[[int], WorkerFiles] | None = None
        _all.add(self)

    @property
    def is_lost(self) -> bool:
        """Whether the files of this process were removed, so that other processes consider it ended."""
        return bool(self.token) and not self._path("alive", self.token).exists()

    def publish(self, content: bytes) -> None:
        """Replace the content of this process atomically.

        Raises:
            OSError: if the directory cannot be written, or the files are lost. See `is_lost`.
        """
        if not self.token:
            self._hold(secrets.token_hex(8))
        # A program that removes old files must not remove this one.
        os.utime(self._path("alive", self.token))
        replace(self._path(self._kind, self.token), content)

    def others(self) -> Iterator[str]:
        """Yield the tokens of the other processes that have published, also of those that have ended."""
        for path in self.directory.glob(f"{self._name}.*.{self._kind}"):
            token = path.name.removeprefix(f"{self._name}.").removesuffix(f".{self._kind}")
            if token != self.token:
                yield token

    def path(self, token: str) -> Path:
        """Return the file of a process."""
        return self._path(self._kind, token)

    def is_alive(self, token: str) -> bool:
        """Return whether a process still runs. Return True if this is not known."""
        try:
            descriptor = os.open(self._path("alive", token), os.O_RDWR)
        except OSError as error:
            return not isinstance(error, FileNotFoundError)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def remove(self, token: str) -> None:
        """Remove the files of a process that has ended."""
        for path in self.directory.glob(f"{self._name}.{token}.*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock, so that this process counts as ended. `publish` starts again under a new token."""
        self._release()
        self.token = ""

    def revive(self) -> None:
        """Count as alive again after `is_lost`, under the same token.

        Raises:
            OSError: if the directory cannot be written.
        """
        self._release()
        self._hold(self.token)

    def _hold(self, token: str) -> None:
        # It may have been removed, to let all counts start from 0.
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        alive = self._path("alive", token)
        descriptor = os.open(alive, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            # It may wait for another process that has just looked whether this one is alive.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # Without its lock, others would take this process for ended.
            os.close(descriptor)
            alive.unlink(missing_ok=True)
            raise LocksMissingError(error.errno, error.strerror) from None
        self.token, self._lock = token, finalize(self, os.close, descriptor)

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock()

    def _path(self, kind: str, token: str) -> Path:
        return self.directory / f"{self._name}.{token}.{kind}"


def replace(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically.

    Raises:
        OSError: if it cannot be written.
    """
    new = path.with_suffix(f".{os.getpid()}.new")
    try:
        new.write_bytes(content)
        new.replace(path)
    except OSError:
        # A full disk should not keep the half that was written.
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


_all: Final[WeakSet[WorkerFiles]] = WeakSet()


def _close_copies() -> None:
    """Close the copies of the parent's locks in a child process: a lock is held until its last copy is closed."""
    for files in list(_all):
        files.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
