"""One page for all workers: each process writes its figures to a shared directory, and adds those of the others.

A process writes its figures before it shows them. So a count on the page of one worker is never lower than on an
earlier page of another worker. The counts of a process that has ended are added to a common file once: the file lists
the processes whose counts it contains. While a process lives, it holds a lock on its own file. The system releases the
lock when the process ends for any reason.
"""

import os
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import lt
from pathlib import Path
from typing import Final
from weakref import WeakSet

import msgspec

from acgsperf.errors import SettingsError
from acgsperf.metrics.catalogue import METRICS, Kind, Merge, Metric
from acgsperf.metrics.figures import Figures, Number, merge, put
from acgsperf.settings import opened_workers_directory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["WorkerFigures"]

_METRICS: Final = {metric.name: metric for metric in METRICS}
_ACCUMULATED: Final = frozenset(metric.name for metric in METRICS if metric.kind is not Kind.GAUGE)
# The common file keeps the latest names: a reader may have read the figures of a process from the file of that process,
# just before they were added to the common file. From the name it knows that.
_MOST_NAMES: Final = 1_000


class _Page(msgspec.Struct, frozen=True):
    """The content of a file: the figures of a process, or in the common file those of all processes that have ended.

    Attributes:
        bounds_ns: the bounds of the buckets of histograms.
        figures: for each metric, pairs of the values of its labels and its value.
        added: in the common file, the names of the processes whose figures it contains, the latest last.
    """

    bounds_ns: list[int]
    figures: dict[str, list[tuple[tuple[str, ...], int | float | list[int | float]]]]
    added: list[str] = []


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Page).decode


class WorkerFigures:
    """Publishes the figures of this process, and adds up those of all processes on this machine.

    Args:
        directory: shared by all processes; created if it is missing.
        name: the figures of all processes with the same name are added up.
        bounds_ns: the bounds of the buckets of histograms.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str, bounds_ns: Sequence[int]) -> None:
        if fcntl is None:
            problem = "a writable directory (file locks are missing on this system)"
            raise SettingsError("WORKERS_DIRECTORY", str(directory), problem)
        self._directory = opened_workers_directory(directory)
        self._name = name
        self._bounds_ns = list(bounds_ns)
        self._token = ""
        self._lock: int | None = None
        self._steady = _Steady()
        _all.add(self)

    def publish(self, figures: Figures) -> Figures:
        """Write the figures of this process, and return them with the counts of the parts that it has closed.

        Raises:
            OSError: if the directory cannot be written.
        """
        figures = self._steady.continued(figures)
        if self._lock is None:
            # Only now, because a server may create its collector before it forks its workers.
            self._token = secrets.token_hex(8)
            self._lock = os.open(self._path("alive"), os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A program that removes old files must not remove this one.
        os.utime(self._path("alive"))
        self._write(self._path("figures"), _Page(self._bounds_ns, _listed(figures)))
        return figures

    def add_others(self, figures: Figures) -> Figures:
        """Return the figures of this process and of all others, added up.

        Args:
            figures: those of this process, as `publish` has returned them.
        """
        total: Figures = {name: dict(series) for name, series in figures.items()}
        # The common file last: figures that another process moves to it meanwhile are then read at least once.
        pages = {token: page for token in self._others() if (page := self._read(self._path("figures", token)))}
        ended = self._read(self._common) or _Page(self._bounds_ns, {})
        leftover = []
        for token, page in pages.items():
            alive = token not in ended.added and self._is_alive(token)
            if not alive:
                leftover.append(token)
            if token not in ended.added:
                merge(total, self._figures(page, alive))
        merge(total, self._figures(ended, False))
        if leftover:
            # Another process may do the same now. Until it has written the common file, the other files remain.
            with suppress(OSError), self._exclusively() as locked:
                if locked:
                    self._move_to_common(leftover)
        return total

    def close(self) -> None:
        """Release the lock, so that this process counts as ended. `publish` starts again under a new name."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    @property
    def _common(self) -> Path:
        return self._directory / f"{self._name}.ended"

    def _path(self, kind: str, token: str = "") -> Path:
        return self._directory / f"{self._name}.{token or self._token}.{kind}"

    def _others(self) -> Iterator[str]:
        for path in self._directory.glob(f"{self._name}.*.figures"):
            token = path.name.split(".")[1]
            if token != self._token:
                yield token

    def _is_alive(self, token: str) -> bool:
        try:
            descriptor = os.open(self._path("alive", token), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextmanager
    def _exclusively(self) -> Iterator[bool]:
        """Lock the common file, and yield True. If another process has locked it, yield False without a wait."""
        descriptor = os.open(self._directory / f"{self._name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def _move_to_common(self, tokens: Iterable[str]) -> None:
        ended = self._read(self._common) or _Page(self._bounds_ns, {})
        figures = self._figures(ended, False)
        added = list(ended.added)
        finished = []
        for token in tokens:
            page = self._read(self._path("figures", token))
            if page is not None and token not in added and not self._is_alive(token):
                merge(figures, self._figures(page, False))
                added.append(token)
            if token in added:
                finished.append(token)
        # If this process ends before it has removed the files, another one knows from the names that they were added.
        self._write(self._common, _Page(self._bounds_ns, _listed(figures), added[-_MOST_NAMES:]))
        for token in finished:
            self._path("figures", token).unlink(missing_ok=True)
            self._path("alive", token).unlink(missing_ok=True)

    def _read(self, path: Path) -> _Page | None:
        # Another process may remove the file at any time, and the directory may contain files of any content.
        with suppress(OSError, ValueError, msgspec.MsgspecError):
            return _decode(path.read_bytes())
        return None

    def _write(self, path: Path, page: _Page) -> None:
        new = path.with_suffix(f".{os.getpid()}.new")
        new.write_bytes(_encode(page))
        new.replace(path)

    def _figures(self, page: _Page, gauges: bool) -> Figures:
        """Return the figures of a page that this process knows, with or without gauges."""
        return {
            name: {
                labels: self._fitted(number, page.bounds_ns)
                for labels, number in series
                if _fits(_METRICS[name], labels, number, len(page.bounds_ns))
            }
            for name, series in page.figures.items()
            if name in _METRICS and (gauges or name in _ACCUMULATED)
        }

    def _fitted(self, number: Number, bounds_ns: Sequence[int]) -> Number:
        """Convert a histogram to the bounds of this process. If the page lacks a bound, the next lower one counts."""
        if isinstance(number, int | float) or bounds_ns == self._bounds_ns:
            return number
        *within, total, total_ns = number
        counts = [0, *within]
        return [*(counts[bisect_right(bounds_ns, bound)] for bound in self._bounds_ns), total, total_ns]


class _Steady:
    """Keeps counts from decreasing. Without it, the counts of a pool would be lost when the pool is closed."""

    def __init__(self) -> None:
        self._last: Figures = {}
        self._earlier: Figures = {}

    def continued(self, figures: Figures) -> Figures:
        """Return the figures, with the counts of closed parts added."""
        found = {name: dict(series) for name, series in figures.items()}
        for name, known in self._last.items():
            earlier = self._earlier.setdefault(name, {})
            series = found.setdefault(name, {})
            for labels, last in known.items():
                if _is_less(series.get(labels), last):
                    put(earlier, labels, last, Merge.SUM)
        self._last = {name: dict(figures[name]) for name in figures.keys() & _ACCUMULATED}
        merge(found, self._earlier)
        return {name: series for name, series in found.items() if series}


def _fits(metric: Metric, labels: Sequence[str], number: Number, bounds: int) -> bool:
    """Return whether a value fits a metric. A process of another version may use the name for another metric."""
    if len(labels) != len(metric.labels):
        return False
    if metric.kind is not Kind.HISTOGRAM:
        return isinstance(number, int | float)
    return not isinstance(number, int | float) and len(number) == bounds + 2


def _is_less(now: Number | None, before: Number) -> bool:
    """Return whether a count is missing or lower than before, because its part was closed or opened again."""
    if now is None:
        return True
    if isinstance(now, int | float):
        assert isinstance(before, int | float)
        return now < before
    assert not isinstance(before, int | float)
    return any(map(lt, now, before))


def _listed(figures: Figures) -> dict[str, list[tuple[tuple[str, ...], int | float | list[int | float]]]]:
    return {
        name: [
            (labels, number if isinstance(number, int | float) else list(number)) for labels, number in series.items()
        ]
        for name, series in figures.items()
    }


_all: Final[WeakSet[WorkerFigures]] = WeakSet()


def _close_copies() -> None:
    """Close the copies of the parent's locks in a child process: a lock is held until its last copy is closed."""
    for workers in list(_all):
        workers.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
