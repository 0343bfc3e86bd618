"""The figures that a process shares with the other workers: those of all its collectors with the same files."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from weakref import finalize, ref

from acgsperf.metrics.figures import GAUGES, Figures, gather
from acgsperf.metrics.ledger import Ledger
from acgsperf.metrics.source import Sources, combined, parts_of
from acgsperf.metrics.workers import WorkerFigures

__all__ = ["ProcessFigures", "figures_of_process"]


class ProcessFigures:
    """The figures of this process, for all its collectors that share a directory and a name. See `figures_of_process`.

    A process counts once, and each of its parts counts once, however many collectors it has and has had.

    Arguments and errors are those of `WorkerFigures`.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str, bounds_ns: Sequence[int]) -> None:
        self._workers: Final = WorkerFigures(directory, name, bounds_ns)
        self._bounds_ns: Final = tuple(bounds_ns)
        self._ledger: Final = Ledger()
        # Not those of collectors that were closed, or are no longer referenced.
        self._sources: list[ref[Sources]] = []
        self._one_at_a_time = threading.Lock()
        self._at_fork: Figures = {}

    def begin(self, sources: Sources) -> None:
        """Include the figures of a collector, until `end` is called or its sources are no longer referenced."""
        self._sources.append(ref(sources))
        finalize(sources, self._count_as_ended).atexit = False

    def end(self, sources: Sources) -> None:
        """Publish for the last time with the figures of a collector."""
        self.publish()
        self._sources = [reference for reference in self._sources if reference() not in (sources, None)]
        if self._sources:
            # Now without its gauges.
            self.publish()
        else:
            self._workers.close()

    def publish(self) -> Figures:
        """Write the figures of this process, and return them."""
        with self._one_at_a_time:
            parts = parts_of(self._exported())
            gauges = gather(combined(parts), self._bounds_ns, GAUGES)
            return self._workers.publish(gauges | self._ledger.total(parts, self._bounds_ns))

    def page(self, bounds_ns: Sequence[int]) -> Figures:
        """Publish, and return the figures of all processes.

        Args:
            bounds_ns: the bounds of the returned histograms.
        """
        return self._workers.add_others(self.publish(), bounds_ns)

    def _exported(self) -> list[Sources]:
        return [sources for reference in self._sources if (sources := reference()) is not None]

    def _count_as_ended(self) -> None:
        if not self._exported():
            self._workers.close()

    def before_fork(self) -> None:
        """Keep the counts: a forked child begins with 0, because this process publishes them."""
        with self._one_at_a_time:
            self._at_fork = self._ledger.total(parts_of(self._exported()), self._bounds_ns)

    def after_fork(self) -> None:
        """Begin with 0 in a forked child."""
        # Another thread of the parent may have held the lock.
        self._one_at_a_time = threading.Lock()
        self._workers.after_fork(self._at_fork)


# They are kept after the last collector was closed: a later one must not count the same again.
_all: Final[dict[tuple[Path, str], ProcessFigures]] = {}


def figures_of_process(directory: str | os.PathLike[str], name: str, bounds_ns: Sequence[int]) -> ProcessFigures:
    """Return the figures of this process in a directory. They are made once, with the bounds of the first call.

    Raises:
        SettingsError: if the directory cannot be created or written.
    """
    key = Path(directory).absolute(), name
    found = _all.get(key)
    if found is None:
        found = _all[key] = ProcessFigures(directory, name, bounds_ns)
    return found


def _before_fork() -> None:
    for figures in list(_all.values()):
        figures.before_fork()


def _after_fork() -> None:
    for figures in list(_all.values()):
        figures.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
