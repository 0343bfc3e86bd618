"""Adds up the figures of several processes of one service: each process writes a report into a shared directory."""

import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import msgspec

from acgsperf.dispatch import LatencyHistogram
from acgsperf.settings import Settings, opened_workers_directory

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["WorkerReport", "Workers"]

_SUFFIX: Final = ".acgsperf"
# A worker that misses this many reports counts as dead.
_MISSED_REPORTS: Final = 3


class WorkerReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of one process since it started.

    Attributes:
        reported_at: seconds since the epoch.
        seconds: how long the process has run.
        failed, violations, missed: as in `Counts`.
        latency: of its requests, in ns, encoded as HdrHistogram V2.
    """

    reported_at: float
    seconds: float
    failed: int
    violations: int
    missed: int
    latency: bytes

    @property
    def is_valid(self) -> bool:
        """Whether a real process can have these figures: all are finite and at least 0."""
        return math.isfinite(self.seconds) and min(self.seconds, self.failed, self.violations, self.missed) >= 0

    @property
    def latency_ns(self) -> LatencyHistogram:
        """The decoded latency histogram."""
        return LatencyHistogram.decode(self.latency)


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(WorkerReport).decode


class Workers:
    """Publishes the report of this process, and reads the reports of the other processes on this machine.

    Args:
        directory: shared by all processes; created if it is missing.
        max_age_s: a process whose report is older counts as dead, and its report is removed.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """

    def __init__(self, directory: str | os.PathLike[str], max_age_s: float) -> None:
        self._directory = opened_workers_directory(directory)
        self._own: Path | None = None
        self._owner = 0
        self._closed = False
        self._max_age_s = max_age_s

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return the workers that share `workers_directory`; None if the settings name no directory."""
        if settings.workers_directory is None:
            return None
        return cls(settings.workers_directory, _MISSED_REPORTS * settings.monitoring_interval_s)

    def publish(self, report: WorkerReport) -> None:
        """Replace the report of this process atomically. Does nothing after `close`.

        Raises:
            OSError: if the directory cannot be written.
        """
        if self._closed:
            return
        if self._own is None or self._owner != os.getpid():
            # Chosen at the first report, because a server may create its service before it forks its workers.
            self._owner = os.getpid()
            self._own = self._directory / f"{self._owner}-{secrets.token_hex(8)}{_SUFFIX}"
        new = self._own.with_suffix(".new")
        new.write_bytes(_encode(report))
        new.replace(self._own)

    def others(self) -> Iterator[WorkerReport]:
        """Yield the latest report of each other live process. Files that are not valid reports are skipped."""
        for path in self._directory.glob(f"*{_SUFFIX}"):
            # Another process may remove the file while this one reads it, and anyone can write a file here.
            with suppress(OSError, ValueError):
                report = _decode(path.read_bytes())
                LatencyHistogram.decode(report.latency)
                if not abs(time.time() - report.reported_at) <= self._max_age_s:
                    path.unlink()
                elif path != self._own and report.is_valid:
                    yield report

    def close(self) -> None:
        """Remove the report of this process. Later calls of `publish` do nothing."""
        self._closed = True
        if self._own is not None and self._owner == os.getpid():
            self._own.unlink(missing_ok=True)
