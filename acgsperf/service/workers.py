"""The reports of several processes of one service on this machine: each process writes its own into a directory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Self

from acgsperf.fleet.report import LARGEST_REPORT_BYTES, Report, decode_report, encode_report
from acgsperf.metrics.worker_files import WorkerFiles
from acgsperf.settings import Settings

__all__ = ["Workers"]

_NAME: Final = "service"


class Workers:
    """Publishes the report of this process, and reads the reports of the other processes on this machine.

    Args:
        directory: shared by all processes; created if it is missing.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._files = WorkerFiles(directory, _NAME, "report")
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return the workers that share `workers_directory`; None if the settings name no directory."""
        return None if settings.workers_directory is None else cls(settings.workers_directory)

    def publish(self, report: Report) -> None:
        """Replace the report of this process atomically. Does nothing after `close`.

        Raises:
            OSError: if the directory cannot be written.
            ValueError: if the report has more than 128 KiB.
        """
        if not self._closed:
            if self._files.is_lost:
                self._files.revive()
            self._files.publish(encode_report(report))

    def others(self) -> Iterator[Report]:
        """Yield the latest report of each other live process. Files that are not valid reports are skipped."""
        for token in self._files.others():
            # Another process may remove the file while this one reads it, and anyone can write a file here.
            with suppress(OSError, ValueError):
                if not self._files.is_alive(token):
                    self._files.remove(token)
                    continue
                with self._files.path(token).open("rb") as file:
                    # Of a larger file, one byte too many is read.
                    report = decode_report(file.read(LARGEST_REPORT_BYTES + 1))
                _ = report.latency_ns
                yield report

    def close(self) -> None:
        """Remove the report of this process. Later calls of `publish` do nothing.

        Raises:
            OSError: if it cannot be removed. The other processes remove it.
        """
        self._closed = True
        token = self._files.token
        self._files.close()
        if token:
            self._files.remove(token)
