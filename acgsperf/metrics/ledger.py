"""What the parts of this process have counted, for each part by its own, also after it was closed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import lt
from weakref import ref

from acgsperf.metrics.figures import COUNTED, Figures, Number, add, gather, put
from acgsperf.metrics.metric import Merge
from acgsperf.metrics.source import Parts

__all__ = ["Ledger"]


@dataclass(slots=True)
class _Account:
    """The counts of a part when they were last read. `source` returns its object, or None if it no longer exists."""

    source: Callable[[], object]
    counts: Figures


class Ledger:
    """Adds up the counts of all parts that this process has had.

    The sums do not decrease when a part is closed, and a part that is exported again is not counted again. Two parts
    may have the same labels, for example two pools called "main", so sums of both would not tell that.
    """

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, int], _Account] = {}
        # The counts of parts that do not exist any more, or have begun again with 0.
        self._earlier: Figures = {}

    def total(self, parts: Parts, bounds_ns: Sequence[int]) -> Figures:
        """Return the counts of these parts and of all former ones.

        Args:
            parts: the parts that are exported now.
            bounds_ns: the bounds of the buckets of histograms, the same in each call.
        """
        for key, account in list(self._accounts.items()):
            source = account.source()
            # The id of an object that does not exist any more may be that of another one now.
            if source is None or (key in parts and parts[key].source is not source):
                add(self._earlier, self._accounts.pop(key).counts)
        for key, part in parts.items():
            counts = gather(part.reading, bounds_ns, COUNTED)
            known = self._accounts.get(key)
            if known is None:
                self._accounts[key] = _Account(_reference(part.source), counts)
            else:
                self._keep_lost(known.counts, counts)
                known.counts = counts
        total: Figures = {}
        for account in self._accounts.values():
            add(total, account.counts)
        add(total, self._earlier)
        return total

    def _keep_lost(self, before: Figures, now: Figures) -> None:
        """Keep the counts that a part has lost, for example because one of its tiers was closed."""
        for name, known in before.items():
            series = now.get(name, {})
            for labels, number in known.items():
                if _is_less(series.get(labels), number):
                    put(self._earlier.setdefault(name, {}), labels, number, Merge.SUM)


def _reference(source: object) -> Callable[[], object]:
    """Return what returns the object as long as it exists. An object without weak references is kept."""
    try:
        return ref(source)
    except TypeError:
        return lambda: source


def _is_less(now: Number | None, before: Number) -> bool:
    """Return whether a count is missing or lower than before."""
    if now is None:
        return True
    if isinstance(now, int | float):
        assert isinstance(before, int | float)
        return now < before
    assert not isinstance(before, int | float)
    return any(map(lt, now, before))
