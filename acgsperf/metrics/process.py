"""The figures that a process exports for Prometheus: with a directory, those of all its collectors and all workers."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from weakref import WeakSet, finalize, ref

from acgsperf._native.unraisable import report_unraisable
from acgsperf.metrics.figures import GAUGES, Figures, gather
from acgsperf.metrics.ledger import Ledger, before_fork, begin_in_child, end_fork
from acgsperf.metrics.source import Sources, combined
from acgsperf.metrics.workers import WorkerFigures

__all__ = ["ProcessFigures", "after_in_child", "after_in_parent", "before", "figures_of_process"]


class ProcessFigures:
    """The figures of this process, for all its collectors that share a directory and a name. See `figures_of_process`.

    A process counts once, and each of its parts counts once, however many collectors it has and has had.

    Args:
        workers: writes the figures for the other workers; None if there is no directory.
        bounds_ns: the bounds of the buckets of histograms.
    """

    def __init__(self, workers: WorkerFigures | None, bounds_ns: Sequence[int]) -> None:
        self._workers: Final = workers
        self._bounds_ns: Final = tuple(bounds_ns)
        # Not those of collectors that were closed, or are no longer referenced.
        self._sources: list[ref[Sources]] = []
        self._ledger: Final = Ledger(self._exported, self._bounds_ns)
        self._one_at_a_time = threading.Lock()
        _all.add(self)

    def begin(self, sources: Sources) -> None:
        """Include the figures of a collector, until `end` is called or its sources are no longer referenced."""
        self._sources.append(ref(sources))
        finalize(sources, self._count_as_ended).atexit = False

    def end(self, sources: Sources) -> None:
        """Publish for the last time with the figures of a collector."""
        try:
            self.publish()
        except Exception as error:
            # A source of the user may raise, and must not keep its collector open.
            report_unraisable(error, sources)
        self._sources = [reference for reference in self._sources if reference() not in (sources, None)]
        if self._sources:
            # Now without its gauges.
            self.publish()
        else:
            self._count_as_ended()

    def publish(self) -> Figures:
        """Write the figures of this process, and return them."""
        with self._one_at_a_time:
            parts, counts = self._ledger.read()
            figures = gather(combined(parts), self._bounds_ns, GAUGES) | counts
            return figures if self._workers is None else self._workers.publish(figures)

    def page(self, bounds_ns: Sequence[int]) -> Figures:
        """Publish, and return the figures of all processes.

        Args:
            bounds_ns: the bounds of the returned histograms.
        """
        figures = self.publish()
        return figures if self._workers is None else self._workers.add_others(figures, bounds_ns)

    def _exported(self) -> list[Sources]:
        return [sources for reference in self._sources if (sources := reference()) is not None]

    def _count_as_ended(self) -> None:
        if self._workers is not None and not self._exported():
            self._workers.close()

    def before_fork(self) -> None:
        """Publish, because a forked child does not export what this process has counted until then."""
        if self._workers is not None and self._exported():
            self.publish()

    def after_fork(self) -> None:
        """Begin with 0 in a forked child."""
        # Another thread of the parent may have held the lock.
        self._one_at_a_time = threading.Lock()
        if self._workers is not None:
            self._workers.after_fork()


_all: Final[WeakSet[ProcessFigures]] = WeakSet()
# They are kept after the last collector was closed: a later one must not count the same again.
_of_directories: Final[dict[tuple[Path, str], ProcessFigures]] = {}


def figures_of_process(directory: str | os.PathLike[str], name: str, bounds_ns: Sequence[int]) -> ProcessFigures:
    """Return the figures of this process in a directory. They are made once, with the bounds of the first call.

    Args:
        directory: shared by all workers. If it is empty, the figures are those of one collector only.
        name: see `WorkerFigures`.
        bounds_ns: the bounds of the buckets of histograms.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """
    if not directory:
        return ProcessFigures(None, bounds_ns)
    workers = WorkerFigures(directory, name, bounds_ns)
    # The same directory may have several paths.
    key = Path(directory).resolve(), name
    if key not in _of_directories:
        _of_directories[key] = ProcessFigures(workers, bounds_ns)
    return _of_directories[key]


def before() -> None:
    """Prepare for a fork."""
    for figures in list(_all):
        try:
            figures.before_fork()
        except Exception as error:
            # A source of the user may raise. The others must still publish.
            report_unraisable(error, figures)
    before_fork()


def after_in_parent() -> None:
    """Release what only a forked child needs."""
    end_fork()


def after_in_child() -> None:
    """Begin with 0 in a forked child."""
    begin_in_child()
    for figures in list(_all):
        figures.after_fork()
