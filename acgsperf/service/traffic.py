"""Records the requests of a service, and adds them up per window: since the start, and since a window was restarted."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from acgsperf.cache import TieredCache
from acgsperf.dispatch import LatencyHistogram

__all__ = ["Counts", "Traffic", "Window"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters that never decrease.

    Attributes:
        failed: requests that ended in an error.
        violations: requests with a wrong compliance hash.
        missed: requests that waited for the handler, whether they called it or shared the call of another request.
    """

    failed: int
    violations: int
    missed: int

    def __sub__(self, earlier: "Counts") -> "Counts":
        return Counts(self.failed - earlier.failed, self.violations - earlier.violations, self.missed - earlier.missed)


class Traffic:
    """Records requests, and adds them to every window.

    Args:
        cache: the cache that answers the requests; it counts the misses.
        clock: monotonic, in seconds.
    """

    def __init__(self, cache: TieredCache[Any], clock: Callable[[], float] = time.monotonic) -> None:
        self.latency_ns: Final = LatencyHistogram()
        self.failed = 0
        self.violations = 0
        self.clock: Final = clock
        self._cache = cache
        self._windows: list[Window] = []
        self.total: Final = self.window()

    def window(self) -> "Window":
        """Return a new window that starts now."""
        window = Window(self)
        self._windows.append(window)
        return window

    def counts(self) -> Counts:
        """Return the current counters."""
        return Counts(self.failed, self.violations, self._cache.stats().missed)

    def flush(self) -> None:
        """Add the latencies recorded since the last flush to every window."""
        for window in self._windows:
            window.latency_ns.merge(self.latency_ns)
        self.latency_ns.reset()


class Window:
    """The requests from one moment until now. Call `Traffic.flush` before you read it."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.latency_ns: Final = LatencyHistogram()
        self.restart()

    def restart(self) -> None:
        """Start the window again now."""
        self.latency_ns.reset()
        self._began_at = self._traffic.clock()
        self._counts = self._traffic.counts()

    @property
    def seconds(self) -> float:
        """Seconds since the window started."""
        return self._traffic.clock() - self._began_at

    @property
    def counts(self) -> Counts:
        """How much each counter grew in the window."""
        return self._traffic.counts() - self._counts

    @property
    def requests(self) -> int:
        """Requests that passed the compliance gate."""
        return self.latency_ns.count + self.counts.failed

    def hit_rate(self) -> float | None:
        """Return the share of requests that did not wait for the handler; None without requests."""
        return max(0, self.requests - self.counts.missed) / self.requests if self.requests else None
