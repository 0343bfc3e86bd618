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
from pathlib import Path
from typing import Any, Final

import msgspec

from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.figures import Figures, Number, Series, add, negative, put
from acgsperf.metrics.metric import Kind, Merge
from acgsperf.metrics.worker_files import LocksMissingError, WorkerFiles, replace

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["WorkerFigures"]

_log: Final = logging.getLogger("acgsperf.metrics")

_METRICS: Final = {metric.name: metric for metric in METRICS}
# The common file keeps the latest names: a reader may have read the figures of a process from the file of that process,
# just before they were added to the common file. From the name it knows that.
_MOST_NAMES: Final = 1_000
# A file that was not changed for this long is not read again.
_OLD_NS: Final = 1_000_000_000

_Numbers = dict[str, list[tuple[tuple[str, ...], int | float]]]
_Histograms = dict[str, list[tuple[tuple[str, ...], list[int | float]]]]


class _Page(msgspec.Struct, frozen=True):
    """Figures as they are in a file: for each metric, pairs of the values of its labels and its value.

    Each kind is apart, because a process of another version must keep the counts of metrics that it does not know.

    Attributes:
        bounds_ns: the bounds of the buckets of `histograms`.
        counters: see above.
        histograms: for each bound the latencies within it; then their number, and their sum in ns.
        gauges: see above.
    """

    bounds_ns: list[int]
    counters: _Numbers
    histograms: _Histograms
    gauges: _Numbers


class _File(msgspec.Struct, frozen=True):
    """The content of a file: the figures of a process, or in the common file those of all processes that have ended.

    Attributes:
        pages: one page for each list of bounds.
        added: in the common file, the names of the processes whose figures it contains, the latest last.
    """

    pages: list[_Page]
    added: list[str] = []


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_File).decode


class WorkerFigures:
    """Publishes the figures of this process, and adds up those of all processes on this machine.

    Args:
        directory: shared by all processes; created if it is missing.
        name: the figures of all processes with the same name are added up.
        bounds_ns: the bounds of the buckets of the histograms that this process publishes.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str, bounds_ns: Sequence[int]) -> None:
        self._files = WorkerFiles(directory, name, "figures")
        self._common: Final = self._files.directory / f"{name}.ended"
        self._common_lock: Final = self._files.directory / f"{name}.lock"
        self._bounds_ns = list(bounds_ns)
        # The counts that this process has written last, and those of them that it has written under former tokens.
        self._written: Figures = {}
        self._former: Figures = {}
        self._can_write = True
        # For each file that was read: what tells its versions apart, and its content.
        self._known: dict[Path, tuple[object, _File]] = {}
        # An application may scrape in a thread, although it should not.
        self._one_at_a_time = threading.Lock()

    def publish(self, figures: Figures) -> Figures:
        """Write the figures of this process, and return them without the counts that other files contain.

        If they cannot be written, return the counts that were written last: the pages of the other workers show these,
        and a count must not be lower on the next page. The first failure is logged. In a directory without file locks
        no process can publish, so then all figures are returned.

        Args:
            figures: the current gauges, and the counts since this process was started. Counts must not decrease.
        """
        counts = {name: dict(series) for name, series in figures.items() if _METRICS[name].kind is not Kind.GAUGE}
        gauges = {name: series for name, series in figures.items() if name not in counts}
        with self._one_at_a_time:
            try:
                if self._files.is_lost:
                    self._after_loss()
                if not self._files.token:
                    self._former = self._written
                page = self._page(gauges, _without(counts, self._former))
                self._files.publish(_encode(_File([page])))
            except OSError as error:
                unshared = isinstance(error, LocksMissingError) and not self._written
                if self._can_write:
                    self._can_write = False
                    _log.warning(
                        "metrics: cannot write the figures of this process; %s: %s",
                        "its page shows no other process" if unshared else "its counts stay the same until it can",
                        error,
                    )
                return figures if unshared else gauges | _without(self._written, self._former)
            if not self._can_write:
                self._can_write = True
                _log.info("metrics: the figures of this process can be written again")
            self._written = counts
            return gauges | _without(counts, self._former)

    def add_others(self, figures: Figures, bounds_ns: Sequence[int] | None = None) -> Figures:
        """Return the figures of this process and of all others, added up.

        Args:
            figures: those of this process, as `publish` has returned them.
            bounds_ns: the bounds of the returned histograms; by default those that this process publishes. If a page
                lacks a bound, the next lower one counts.
        """
        bounds = self._bounds_ns if bounds_ns is None else list(bounds_ns)
        total: Figures = {
            name: {labels: _fitted(number, self._bounds_ns, bounds) for labels, number in series.items()}
            for name, series in figures.items()
        }
        # The common file last: figures that another process moves to it meanwhile are then read at least once.
        files = {token: file for token in self._files.others() if (file := self._read(self._files.path(token)))}
        ended = self._ended()
        leftover = []
        for token, file in files.items():
            alive = token not in ended.added and self._files.is_alive(token)
            if not alive:
                leftover.append(token)
            if token not in ended.added:
                _merge_known(total, file, bounds, alive)
        _merge_known(total, ended, bounds, False)
        if leftover:
            # Another process may do the same now. Until it has written the common file, the other files remain.
            with suppress(OSError), self._exclusively() as locked:
                if locked:
                    self._move_to_common(leftover)
        for path in self._known.keys() - {self._common, *map(self._files.path, files)}:
            del self._known[path]
        return total

    def close(self) -> None:
        """Count as ended from now on. `publish` starts again under a new name."""
        self._files.close()

    def after_fork(self) -> None:
        """Begin with 0 in a forked child."""
        # Another thread of the parent may have held the lock.
        self._one_at_a_time = threading.Lock()
        self._written = self._former = {}

    def _page(self, gauges: Figures, counts: Figures) -> _Page:
        of_kind: dict[Kind, Figures] = {kind: {} for kind in Kind}
        for name, series in (gauges | counts).items():
            of_kind[_METRICS[name].kind][name] = series
        sections = (_listed(of_kind[kind]) for kind in (Kind.COUNTER, Kind.HISTOGRAM, Kind.GAUGE))
        return _Page(self._bounds_ns, *sections)

    def _after_loss(self) -> None:
        """Prepare to publish again, because something has removed files of this process.

        Another process may have taken this one for ended, and may have added its counts to the common file. Then this
        one begins again under a new name.
        """
        self._files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._exclusively(wait=True):
            if self._files.token in self._ended().added:
                self._files.remove(self._files.token)
                self._files.close()
            else:
                self._files.revive()

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
        added = list(ended.added)
        files = [ended]
        finished = []
        for token in tokens:
            file = self._read(self._files.path(token))
            if file is not None and token not in added and not self._files.is_alive(token):
                files.append(file)
                added.append(token)
            if token in added:
                finished.append(token)
        # If this process ends before it has removed the files, another one knows from the names that they were added.
        replace(self._common, _encode(_File(_sums(files), added[-_MOST_NAMES:])))
        for token in finished:
            self._files.remove(token)

    def _ended(self) -> _File:
        return self._read(self._common) or _File([])

    def _read(self, path: Path) -> _File | None:
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


def _without(counts: Figures, former: Figures) -> Figures:
    if not former:
        return counts
    rest = {name: dict(series) for name, series in counts.items()}
    add(rest, negative(former))
    return rest


def _sums(files: Iterable[_File]) -> list[_Page]:
    """Return the counts of all files.

    Their bounds and names remain as they are, because each reader has its own bounds, and knows its own metrics.
    """
    counters: dict[tuple[int, ...], Figures] = {}
    histograms: dict[tuple[int, ...], Figures] = {}
    for page in (page for file in files for page in file.pages):
        bounds = tuple(page.bounds_ns)
        add(counters.setdefault(bounds, {}), {name: dict(series) for name, series in page.counters.items()})
        add(
            histograms.setdefault(bounds, {}),
            {
                name: {labels: number for labels, number in series if len(number) == len(bounds) + 2}
                for name, series in page.histograms.items()
            },
        )
    return [_Page(list(bounds), _listed(counters[bounds]), _listed(histograms[bounds]), {}) for bounds in counters]


def _listed(figures: Figures) -> Any:
    return {name: list(series.items()) for name, series in figures.items()}


def _merge_known(total: Figures, file: _File, bounds_ns: Sequence[int], gauges: bool) -> None:
    """Merge the figures that this version knows, with or without gauges."""
    for page in file.pages:
        length = len(page.bounds_ns) + 2
        for into, rule, labels, number in _known(total, page.counters, Kind.COUNTER):
            put(into, labels, number, rule)
        for into, rule, labels, number in _known(total, page.histograms, Kind.HISTOGRAM):
            if len(number) == length:
                put(into, labels, _fitted(number, page.bounds_ns, bounds_ns), rule)
        if gauges:
            for into, rule, labels, number in _known(total, page.gauges, Kind.GAUGE):
                put(into, labels, number, rule)


def _known(total: Figures, section: _Numbers | _Histograms, kind: Kind) -> Iterator[tuple[Series, Merge, Any, Any]]:
    """Yield the figures of metrics that this version knows, and where to put them.

    Another version may use a name for another metric.
    """
    for name, series in section.items():
        metric = _METRICS.get(name)
        if metric is not None and metric.kind is kind:
            into = total.setdefault(name, {})
            for labels, number in series:
                if len(labels) == len(metric.labels):
                    yield into, metric.merge, labels, number


def _fitted(number: Number, present: Sequence[int], wanted: Sequence[int]) -> Number:
    """Convert a histogram to other bounds. If a bound is missing, the next lower one counts."""
    if isinstance(number, int | float) or present == wanted:
        return number
    *within, total, total_ns = number
    counts = [0, *within]
    return [*(counts[bisect_right(present, bound)] for bound in wanted), total, total_ns]
