"""What several processes of one service have done together: each leaves its figures in a directory that they share."""

import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from acgsperf._dispatch import LatencyHistogram

__all__ = ["WorkerReport", "Workers"]

_SUFFIX: Final = ".acgsperf"


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
    """

    def __init__(self, directory: str | os.PathLike[str], patience: float) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._own: Path | None = None
        self._owner = 0
        self._closed = False
        self._patience = patience

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
