"""One page for all workers: each process writes its figures to a shared directory, and adds those of the others.

A process writes its figures before it shows them. So a count on the page of one worker is never lower than on an
earlier page of another worker. The counts of a process that has ended are added to a common file once: the file lists
the processes whose counts it contains.
"""

import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import lt
from pathlib import Path
from typing import Final

import msgspec

from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.figures import Figures, Number, merge, put
from acgsperf.metrics.metric import Kind, Merge, Metric
from acgsperf.metrics.worker_files import WorkerFiles, replace

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["WorkerFigures"]

_log: Final = logging.getLogger("acgsperf.metrics")

_METRICS: Final = {metric.name: metric for metric in METRICS}
_ACCUMULATED: Final = frozenset(metric.name for metric in METRICS if metric.kind is not Kind.GAUGE)
# The common file keeps the latest names: a reader may have read the figures of a process from the file of that process,
# just before they were added to the common file. From the name it knows that.
_MOST_NAMES: Final = 1_000
# A file that was not changed for this long is not read again.
_OLD_NS: Final = 1_000_000_000


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
        self._files = WorkerFiles(directory, name, "figures")
        self._common: Final = self._files.directory / f"{name}.ended"
        self._common_lock: Final = self._files.directory / f"{name}.lock"
        self._bounds_ns = list(bounds_ns)
        self._steady = _Steady()
        self._pid = 0
        # The process that has published, its counts as the others know them, and whether they can be written now.
        self._published: Figures = {}
        self._can_write = True
        # For each file that was read: what tells its versions apart, and its content.
        self._known: dict[Path, tuple[object, _Page]] = {}
        # An application may scrape in a thread, although it should not.
        self._one_at_a_time = threading.Lock()

    def publish(self, figures: Figures) -> Figures:
        """Write the figures of this process, and return them with the counts of the parts that it has closed.

        If they cannot be written, return the counts that were written last: the pages of the other workers show these,
        and a count must not be lower on the next page. The first failure is logged.
        """
        if self._pid not in (0, os.getpid()):
            self._after_fork()
        with self._one_at_a_time:
            figures = self._steady.continued(figures)
            try:
                if self._files.is_lost:
                    self._after_loss(figures)
                self._files.publish(_encode(_Page(self._bounds_ns, _listed(figures))))
            except OSError as error:
                if self._can_write:
                    self._can_write = False
                    _log.warning(
                        "metrics: cannot write the figures of this process; its counts stay the same until it can: %s",
                        error,
                    )
                return {**figures, **self._published}
            if not self._can_write:
                self._can_write = True
                _log.info("metrics: the figures of this process can be written again")
            self._pid = os.getpid()
            self._published = {name: series for name, series in figures.items() if name in _ACCUMULATED}
            return figures

    def add_others(self, figures: Figures) -> Figures:
        """Return the figures of this process and of all others, added up.

        Args:
            figures: those of this process, as `publish` has returned them.
        """
        total: Figures = {name: dict(series) for name, series in figures.items()}
        # The common file last: figures that another process moves to it meanwhile are then read at least once.
        pages = {token: page for token in self._files.others() if (page := self._read(self._files.path(token)))}
        ended = self._ended()
        leftover = []
        for token, page in pages.items():
            alive = token not in ended.added and self._files.is_alive(token)
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
        for path in self._known.keys() - {self._common, *map(self._files.path, pages)}:
            del self._known[path]
        return total

    def close(self) -> None:
        """Count as ended from now on. `publish` starts again under a new name."""
        self._files.close()

    def _after_fork(self) -> None:
        """Begin with 0 in a forked child: the parent has published the counts so far."""
        # Another thread of the parent may have held the lock.
        self._one_at_a_time = threading.Lock()
        self._pid = 0
        self._steady.subtract(self._published)
        self._published = {}

    def _after_loss(self, figures: Figures) -> None:
        """Prepare to publish under a new name, because something has removed files of this process.

        Another process may have taken this one for ended, and may have added its counts to the common file. They are
        subtracted then.
        """
        self._files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._exclusively(wait=True):
            token = self._files.token
            self._files.remove(token)
            if token in self._ended().added:
                self._steady.subtract(self._published)
                merge(figures, _negative(self._published))

    @contextmanager
    def _exclusively(self, *, wait: bool = False) -> Iterator[bool]:
        """Lock the common file, and yield True. If another process has locked it, yield False unless you wait."""
        descriptor = os.open(self._common_lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def _move_to_common(self, tokens: Iterable[str]) -> None:
        ended = self._ended()
        figures = self._figures(ended, False)
        added = list(ended.added)
        finished = []
        for token in tokens:
            page = self._read(self._files.path(token))
            if page is not None and token not in added and not self._files.is_alive(token):
                merge(figures, self._figures(page, False))
                added.append(token)
            if token in added:
                finished.append(token)
        # If this process ends before it has removed the files, another one knows from the names that they were added.
        replace(self._common, _encode(_Page(self._bounds_ns, _listed(figures), added[-_MOST_NAMES:])))
        for token in finished:
            self._files.remove(token)

    def _ended(self) -> _Page:
        return self._read(self._common) or _Page(self._bounds_ns, {})

    def _read(self, path: Path) -> _Page | None:
        """Return the content of a file; its last readable content if it is damaged, None if there is none."""
        seen, known = self._known.get(path, (None, None))
        try:
            found = path.stat()
            version = (found.st_ino, found.st_mtime_ns, found.st_size)
            if known is None or version != seen:
                known = _decode(path.read_bytes())
                # Two versions that are written one after the other may have the same time, so that is not enough then.
                is_old = time.time_ns() - found.st_mtime_ns > _OLD_NS
                self._known[path] = (version if is_old else None), known
        except FileNotFoundError:
            # Another process may remove the file at any time.
            return None
        except (OSError, ValueError, msgspec.MsgspecError):
            # The directory may contain files of any content.
            pass
        return known

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

    def subtract(self, counts: Figures) -> None:
        """Subtract counts from all that follow."""
        merge(self._earlier, _negative(counts))


def _negative(counts: Figures) -> Figures:
    return {
        name: {
            labels: -number if isinstance(number, int | float) else [-part for part in number]
            for labels, number in series.items()
        }
        for name, series in counts.items()
    }


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
