"""One page for all workers: each process writes its figures into a shared directory, and adds up those of the others.

A process writes its figures before it shows them. So whatever one worker has shown, the next page of another worker has
at least that. The counts of a process that has ended are added to a common file, once: the file names the processes
whose counts it has. A process holds a lock on a file of its own while it lives, which the system releases in any case.
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
# A reader may have the figures of a process that were added to the common file meanwhile. It finds the name there.
_MOST_NAMES: Final = 1_000


class _Page(msgspec.Struct, frozen=True):
    """The figures of a process, or of all that have ended.

    Attributes:
        bounds_ns: the bounds of the buckets of histograms.
        figures: for each metric the values of its labels, and its value.
        added: of the common file, the names of the processes whose figures it has, the latest last.
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
        name: the processes that use the same name are added up.
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
        """Write the figures of this process, and return them with the counts of what it has closed meanwhile.

        Raises:
            OSError: if the directory cannot be written.
        """
        figures = self._steady.continued(figures)
        if self._lock is None:
            # At the first time, because a server may create its collector before it forks its workers.
            self._token = secrets.token_hex(8)
            self._lock = os.open(self._path("alive"), os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # So that what cleans up old files leaves it alone.
        os.utime(self._path("alive"))
        self._write(self._path("figures"), _Page(self._bounds_ns, _listed(figures)))
        return figures

    def add_others(self, figures: Figures) -> Figures:
        """Return the figures of this process together with those of all others.

        Args:
            figures: those of this process, as `publish` has returned them.
        """
        total: Figures = {name: dict(series) for name, series in figures.items()}
        # First those of the processes, then those of the ended ones: nothing can be in neither.
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
            # Another process may be doing the same. What it has not written to the common file is still in their files.
            with suppress(OSError), self._exclusively() as locked:
                if locked:
                    self._move_to_common(leftover)
        return total

    def close(self) -> None:
        """Let the other processes see that this one has ended. `publish` begins anew."""
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
        """Return a context in which no other process changes the common file; or, at once, that another one does."""
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
        # If this process ends before it has removed the files, the next one knows that they have been added.
        self._write(self._common, _Page(self._bounds_ns, _listed(figures), added[-_MOST_NAMES:]))
        for token in finished:
            self._path("figures", token).unlink(missing_ok=True)
            self._path("alive", token).unlink(missing_ok=True)

    def _read(self, path: Path) -> _Page | None:
        # Another process may remove the file at any time, and anyone can write a file here.
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
        """Return a number with the buckets of this process. A bound that the page lacks gets the count of the last."""
        if isinstance(number, int | float) or bounds_ns == self._bounds_ns:
            return number
        *within, total, total_ns = number
        counts = [0, *within]
        return [*(counts[bisect_right(bounds_ns, bound)] for bound in self._bounds_ns), total, total_ns]


class _Steady:
    """Keeps counts from decreasing: a pool that was closed, or opened again, takes its counts with it."""

    def __init__(self) -> None:
        self._last: Figures = {}
        self._earlier: Figures = {}

    def continued(self, figures: Figures) -> Figures:
        """Return figures whose counts have what they had before, and more."""
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
    """Return whether a value is one of this metric. A process of another version may mean another one by the name."""
    if len(labels) != len(metric.labels):
        return False
    if metric.kind is not Kind.HISTOGRAM:
        return isinstance(number, int | float)
    return not isinstance(number, int | float) and len(number) == bounds + 2


def _is_less(now: Number | None, before: Number) -> bool:
    """Return whether something has begun to count anew, or is gone."""
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


def _begin_anew() -> None:
    """Close what a child process has of the locks of its parent: the parent has ended when the last copy is closed."""
    for workers in list(_all):
        workers.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
