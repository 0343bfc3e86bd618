"""What a service has answered: all of it, and what fell into a window that someone looks at and starts again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from acgsperf.dispatch import LatencyHistogram

if TYPE_CHECKING:
    from acgsperf.cache import TieredCache

__all__ = ["Counts", "Traffic", "Window"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters that only grow.

    Attributes:
        failed: requests whose answer ended in an error.
        violations: requests with a wrong compliance hash.
        missed: requests that had to wait for the handler, their own call of it or another's.
    """

    failed: int
    violations: int
    missed: int

    def __sub__(self, earlier: "Counts") -> "Counts":
        return Counts(self.failed - earlier.failed, self.violations - earlier.violations, self.missed - earlier.missed)


class Traffic:
    """Records requests, and adds them up for every window.

    Args:
        cache: that answers them.
        clock: seconds, monotonic.
    """

    def __init__(self, cache: "TieredCache[Any]", clock: Callable[[], float] = time.monotonic) -> None:
        self.latency_ns: Final = LatencyHistogram()
        self.failed = 0
        self.violations = 0
        self.clock: Final = clock
        self._cache = cache
        self._windows: list[Window] = []
        self.total: Final = self.window()

    def window(self) -> "Window":
        """A new one, which begins now."""
        window = Window(self)
        self._windows.append(window)
        return window

    def counts(self) -> Counts:
        """The counters now."""
        return Counts(self.failed, self.violations, self._cache.stats().missed)

    def flush(self) -> None:
        """Add what was recorded since the last time to every window."""
        for window in self._windows:
            window.latency_ns.merge(self.latency_ns)
        self.latency_ns.reset()


class Window:
    """A stretch of time up to now."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.latency_ns: Final = LatencyHistogram()
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.latency_ns.reset()
        self._began_at = self._traffic.clock()
        self._counts = self._traffic.counts()

    @property
    def seconds(self) -> float:
        """How long it has been open."""
        return self._traffic.clock() - self._began_at

    @property
    def counts(self) -> Counts:
        """What the counters grew by."""
        return self._traffic.counts() - self._counts

    @property
    def requests(self) -> int:
        """Requests that passed the compliance gate."""
        return self.latency_ns.count + self.counts.failed

    def hit_rate(self) -> float | None:
        """The share of these that did not have to wait for the handler; None when there were none."""
        return max(0, self.requests - self.counts.missed) / self.requests if self.requests else None
