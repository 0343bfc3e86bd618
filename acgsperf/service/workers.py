"""What several processes of one service have done together: each leaves its figures in a directory that they share."""

import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from acgsperf.dispatch import LatencyHistogram
from acgsperf.errors import SettingsError
from acgsperf.settings import Settings

__all__ = ["WorkerReport", "Workers"]

_SUFFIX: Final = ".acgsperf"
# Reports that a worker may miss before it is taken for dead.
_MISSED_REPORTS: Final = 3


class WorkerReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of one process since it began.

    Attributes:
        reported_at: seconds since the epoch.
        seconds: for how long it has run.
        failed, violations, missed: as in `Counts`.
        latency: of its requests, in ns, as HdrHistogram V2.
    """

    reported_at: float
    seconds: float
    failed: int
    violations: int
    missed: int
    latency: bytes

    @property
    def is_possible(self) -> bool:
        """Whether a process can have counted this."""
        return math.isfinite(self.seconds) and min(self.seconds, self.failed, self.violations, self.missed) >= 0

    @property
    def latency_ns(self) -> LatencyHistogram:
        """Its histogram."""
        return LatencyHistogram.decode(self.latency)


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(WorkerReport).decode


class Workers:
    """The reports of all processes that share a directory on one machine.

    Args:
        directory: made if it is missing.
        patience: seconds after which one who has not reported again is taken for dead, and its report removed.

    Raises:
        SettingsError: when the directory cannot be made, or not be written.
    """

    def __init__(self, directory: str | os.PathLike[str], patience: float) -> None:
        self._directory = Path(directory)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self._directory, os.W_OK | os.X_OK):
                raise PermissionError("it cannot be written")
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise SettingsError("WORKERS_DIRECTORY", str(directory), f"a directory of ours ({problem})") from None
        self._own: Path | None = None
        self._owner = 0
        self._closed = False
        self._patience = patience

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Those that the settings name, if they do."""
        if settings.workers_directory is None:
            return None
        return cls(settings.workers_directory, _MISSED_REPORTS * settings.monitoring_interval_s)

    def publish(self, report: WorkerReport) -> None:
        """Leave a report instead of the last one; who reads meanwhile finds one or the other. Once closed, none.

        Raises:
            OSError: when the directory cannot be written.
        """
        if self._closed:
            return
        if self._own is None or self._owner != os.getpid():
            # Not before: a server may make its service, and then fork its workers.
            self._owner = os.getpid()
            self._own = self._directory / f"{self._owner}-{secrets.token_hex(8)}{_SUFFIX}"
        new = self._own.with_suffix(".new")
        new.write_bytes(_encode(report))
        new.replace(self._own)

    def others(self) -> Iterator[WorkerReport]:
        """What the other living processes have reported last; what is not a report is passed over."""
        for path in self._directory.glob(f"*{_SUFFIX}"):
            # It may go while we look, and anyone can leave a file here.
            with suppress(OSError, ValueError):
                report = _decode(path.read_bytes())
                LatencyHistogram.decode(report.latency)
                if not abs(time.time() - report.reported_at) <= self._patience:
                    path.unlink()
                elif path != self._own and report.is_possible:
                    yield report

    def close(self) -> None:
        """Take the own report away."""
        self._closed = True
        if self._own is not None and self._owner == os.getpid():
            self._own.unlink(missing_ok=True)
