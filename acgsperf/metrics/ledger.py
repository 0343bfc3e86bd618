"""What an exporter has counted: sums that do not decrease when a part is closed, and contain no count twice."""

import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from weakref import WeakSet, ref

from acgsperf import counting
from acgsperf._native.unraisable import report_unraisable
from acgsperf.metrics.figures import (
    COUNTED,
    Counts,
    Figures,
    Number,
    by_field,
    counts_of,
    figures_of,
    gather,
    put,
)
from acgsperf.metrics.metric import Merge, Metric
from acgsperf.metrics.source import Part, Parts, Sources, parts_of, reading_of
from acgsperf.pool import ConnectionPool

__all__ = ["Ledger", "before_fork", "begin_in_child", "end_fork"]


@dataclass(slots=True)
class _Account:
    """The counts of a part when they were last read. `source` returns its object, or None if it no longer exists."""

    source: Callable[[], object]
    counts: Figures


class Ledger:
    """Adds up what the parts of an exporter count.

    Each part has an account with the counts that are in the sums already. An object that is exported under another name
    takes its account along. Several parts may have the same labels, for example two pools called "main".

    Args:
        exported: returns the sources that are exported now.
        bounds_ns: the bounds of the buckets of histograms.
        metrics: the counters and histograms to add up.
        begins_at_fork: whether a forked child begins with 0.
    """

    def __init__(
        self,
        exported: Callable[[], Iterable[Sources]],
        bounds_ns: Sequence[int],
        metrics: Sequence[Metric] = COUNTED,
        *,
        begins_at_fork: bool = True,
    ) -> None:
        self._exported = exported
        self._bounds_ns = bounds_ns
        self._metrics = by_field(metrics)
        self._begins_at_fork = begins_at_fork
        self._accounts: dict[tuple[int, tuple[str, ...]], _Account] = {}
        self._sums: Figures = {}
        # An application may scrape in a thread.
        self._one_at_a_time = threading.Lock()
        _all.add(self)

    def read(self) -> tuple[Parts, Figures]:
        """Read the exported parts. Return them, and the counts of these and of all former parts."""
        with self._one_at_a_time:
            # Not earlier: a pool that is closed meanwhile in another thread would have counted more already.
            parts = parts_of(self._exported())
            for key, account in list(self._accounts.items()):
                if account.source() is None:
                    del self._accounts[key]
            for part in parts.values():
                self._read(part, parts)
            return parts, {name: dict(series) for name, series in self._sums.items()}

    def read_last(self, pool: ConnectionPool) -> None:
        """Read a pool that was just closed, if it is exported."""
        with self._one_at_a_time:
            for sources in self._exported():
                if (part := sources.closed_pool(pool)) is not None:
                    self._read(part, {})
                    return

    def after_fork(self) -> None:
        """Prepare for the use in a forked child."""
        # Another thread of the parent may have held the lock.
        self._one_at_a_time = threading.Lock()
        if self._begins_at_fork:
            self._accounts.clear()
            self._sums.clear()

    def _read(self, part: Part, exported: Parts) -> None:
        key = id(part.source), part.labels
        account = self._accounts.get(key)
        # The id of an object that does not exist any more may be that of another one now.
        if account is None or account.source() is not part.source:
            account = self._accounts[key] = _Account(_reference(part.source), self._before(part, exported))
        metrics = [metric for name, own in self._metrics.items() if getattr(part.reading, name) for metric in own]
        counts = gather(part.reading, self._bounds_ns, metrics)
        for name, series in counts.items():
            before = account.counts.get(name, {})
            sums = self._sums.setdefault(name, {})
            for labels, number in series.items():
                known = before.get(labels)
                if known != number or labels not in sums:
                    put(sums, labels, _growth(known, number), Merge.SUM)
        account.counts = counts

    def _before(self, part: Part, exported: Parts) -> Figures:
        """Return what a part without an account has counted under a former name, or before the fork."""
        for key, account in self._accounts.items():
            if key[0] == id(part.source) and key not in exported and account.source() is part.source:
                del self._accounts[key]
                return _relabelled(account.counts, part.labels)
        source, counts = _at_fork.get(id(part.source), (None, None))
        if source is None or counts is None or source() is not part.source:
            return {}
        return _relabelled(figures_of(counts, self._bounds_ns), part.labels)


_all: Final[WeakSet[Ledger]] = WeakSet()

_Baselines = dict[int, tuple[Callable[[], object], Counts]]
# By the ids of objects: what they had counted when this process was forked, and in the parent during a fork.
_at_fork: _Baselines = {}
_now: _Baselines = {}


def _read_last(pool: ConnectionPool) -> None:
    for ledger in list(_all):
        ledger.read_last(pool)


counting.read_last = _read_last


def before_fork() -> None:
    """Read all objects, because the parent exports what they have counted until now."""
    for reference in counting.objects.valuerefs():
        source = reference()
        if source is None:
            continue
        try:
            _now[id(source)] = ref(source, partial(_forget, id(source))), counts_of(reading_of(source))
        except Exception as error:
            # A source of the user may raise. The others must still be read.
            report_unraisable(error, source)


def _forget(identity: int, _: object) -> None:
    _at_fork.pop(identity, None)


def end_fork() -> None:
    """Forget what `before_fork` has read. The parent does not need it."""
    _now.clear()


def begin_in_child() -> None:
    """Let all ledgers of a forked child begin with 0."""
    _at_fork.clear()
    _at_fork.update(_now)
    _now.clear()
    for ledger in list(_all):
        ledger.after_fork()


def _reference(source: object) -> Callable[[], object]:
    """Return what returns the object as long as it exists. An object without weak references is kept."""
    try:
        return ref(source)
    except TypeError:
        return lambda: source


def _relabelled(counts: Figures, labels: tuple[str, ...]) -> Figures:
    """Return counts with other first labels."""
    if not labels:
        return counts
    return {
        name: {labels + own[len(labels) :]: number for own, number in series.items()} for name, series in counts.items()
    }


def _growth(before: Number | None, now: Number) -> Number:
    """Return what was counted since. If a count is lower than before, it has begun again with 0."""
    if before is None:
        return now
    if isinstance(now, int | float):
        assert isinstance(before, int | float)
        return now - before if now >= before else now
    assert not isinstance(before, int | float)
    growth = list(map(operator.sub, now, before))
    return growth if min(growth) >= 0 else now
