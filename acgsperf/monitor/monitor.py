"""The watch over a service: a bounded history of readings, and alerts that do not flap."""

import inspect
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from acgsperf._native.arguments import checked_at_least, checked_positive, checked_share
from acgsperf.monitor.alerts import Alert, AlertKind, AlertState, Finding, Latch
from acgsperf.monitor.forecast import trend
from acgsperf.monitor.regression import Baseline

__all__ = ["Alert", "AlertKind", "AlertState", "Monitor", "Reading", "Targets"]

_log: Final = logging.getLogger("acgsperf.monitor")

PERCENTILES: Final = ("p50", "p95", "p99")
HIT_RATE: Final = "hit_rate"
# A hit rate has recovered when it is above its target by this share of the misses that the target allows.
_HIT_RATE_MARGIN: Final = 0.1
# A forecast is over when the crossing is this many times as far away as what raises it.
_FORECAST_MARGIN: Final = 1.5
# With fewer points no trend is significant.
_LEAST_TREND: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The figures of one interval, the last one, and of nothing before it.

    What is None, no finite number, negative or, of a share, above 1 counts as not measured.

    Attributes:
        at: seconds, on any clock; alerts repeat it, and no verdict depends on it.
        requests: answered in the interval.
        errors: of these, those that failed.
        violations: requests without an accepted hash.
        p50_ms, p95_ms, p99_ms: latency; None without requests.
        hit_rate: of the cache, between 0 and 1; None when it was not asked.
        unhealthy_pools: names.
    """

    at: float
    requests: int
    errors: int = 0
    violations: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    hit_rate: float | None = None
    unhealthy_pools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is to be held; no alert is about the throughput, for a quiet service is not ill.

    Raises:
        TypeError, ValueError: names the field.
    """

    p50_ms: float = 1.0
    p95_ms: float = 2.0
    p99_ms: float = 5.0
    hit_rate: float = 0.95
    throughput_rps: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("p50_ms", "p95_ms", "p99_ms", "throughput_rps"):
            object.__setattr__(self, name, checked_positive(name, getattr(self, name)))
        object.__setattr__(self, "hit_rate", checked_share("hit_rate", self.hit_rate))


class Monitor:
    """Takes a reading an interval, and says what became bad or good by it.

    One thread at a time. A reading costs well under a millisecond, and the memory is bounded by `history`, the windows
    and the number of pools.

    Args:
        targets: what is to be held.
        history: readings kept.
        baseline_window: intervals whose median is what a percentile usually is; also how long a shift has to last to
            become the usual.
        warm_up: measured intervals before percentiles and hit rate are judged: a cache starts cold.
        regression: by which share a percentile has to rise over the usual, 0.5 for 50 %.
        min_requests: with fewer an interval says nothing of percentiles and hit rate.
        clear_after: good intervals in a row that clear an alert.
        forecast_intervals: how far ahead a trend is believed.
        trend_window: measured intervals that a trend is taken from, at least 8.

    Raises:
        TypeError, ValueError: names the argument.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        history: int = 1000,
        baseline_window: int = 20,
        warm_up: int = 10,
        regression: float = 0.5,
        min_requests: int = 20,
        clear_after: int = 3,
        forecast_intervals: int = 10,
        trend_window: int = 20,
    ) -> None:
        self.targets = targets
        self._warm_up = checked_at_least("warm_up", warm_up, 0)
        window = checked_at_least("baseline_window", baseline_window, max(1, self._warm_up))
        regression = checked_positive("regression", regression)
        self._min_requests = checked_at_least("min_requests", min_requests, 1)
        self._clear_after = checked_at_least("clear_after", clear_after, 1)
        self._horizon = checked_at_least("forecast_intervals", forecast_intervals, 1)
        self._trend_window = checked_at_least("trend_window", trend_window, _LEAST_TREND)
        self._history: deque[Reading] = deque(maxlen=checked_at_least("history", history, 1))
        self._interval = 0
        self._rates = 0
        self._baselines = {subject: Baseline(window, self._warm_up, regression) for subject in PERCENTILES}
        self._points: dict[str, deque[tuple[int, float]]] = {
            subject: deque(maxlen=self._trend_window) for subject in (*PERCENTILES, HIT_RATE)
        }
        self._latches: dict[tuple[AlertKind, str], Latch] = {}
        self._active: dict[tuple[AlertKind, str], Alert] = {}
        self._callbacks: tuple[Callable[[Alert], object], ...] = ()

    @property
    def history(self) -> tuple[Reading, ...]:
        """The readings that are kept, the oldest first."""
        return tuple(self._history)

    @property
    def active(self) -> tuple[Alert, ...]:
        """The alerts that are raised and not cleared, the oldest first."""
        return tuple(self._active.values())

    def on_alert(self, callback: Callable[[Alert], object]) -> Callable[[], None]:
        """Call `callback` with every alert, in the order of registration; what it raises is logged.

        Returns:
            What ends the registration; more than once does no harm.

        Raises:
            TypeError: when it is not callable, or a coroutine function, which nobody would await.
        """
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError(f"callback must be an ordinary callable, not {callback!r}")

        # Every registration is an entry of its own, also where a callable is registered twice.
        def entry(alert: Alert) -> None:
            callback(alert)

        def unregister() -> None:
            self._callbacks = tuple(kept for kept in self._callbacks if kept is not entry)

        self._callbacks = (*self._callbacks, entry)
        return unregister

    def observe(self, reading: Reading) -> tuple[Alert, ...]:
        """Take the reading of an interval; the alerts that it raised or cleared, told to all before it returns."""
        self._history.append(reading)
        self._interval += 1
        alerts = (*self._traffic(reading), *self._pools(reading), *self._compliance(reading))
        for alert in alerts:
            self._tell(alert)
        return alerts

    def _traffic(self, reading: Reading) -> Iterator[Alert]:
        if reading.requests < self._min_requests:
            return
        for subject in PERCENTILES:
            value, target = _measured(getattr(reading, f"{subject}_ms")), getattr(self.targets, f"{subject}_ms")
            if value is None:
                continue
            baseline = self._baselines[subject]
            yield from self._update(AlertKind.RESPONSE_TIME, subject, baseline.judge(value, target), reading)
            baseline.learn(value, raised=(AlertKind.RESPONSE_TIME, subject) in self._active)
            yield from self._update(AlertKind.FORECAST, subject, self._forecast(subject, value, target, 1), reading)
        rate, target = _measured(reading.hit_rate), self.targets.hit_rate
        if rate is None or rate > 1:
            return
        self._rates += 1
        if self._rates > self._warm_up:
            clear = target + _HIT_RATE_MARGIN * (1 - target)
            finding = Finding(rate < target, rate >= clear, f"{rate:.2%}, target {target:.2%}", rate, target)
            yield from self._update(AlertKind.HIT_RATE, HIT_RATE, finding, reading)
        yield from self._update(AlertKind.FORECAST, HIT_RATE, self._forecast(HIT_RATE, rate, target, -1), reading)

    def _pools(self, reading: Reading) -> Iterator[Alert]:
        # Whether anybody asks the service or not: a pool is asked for its health by its own keeper.
        ill = dict.fromkeys(reading.unhealthy_pools)
        watched = dict.fromkeys(subject for kind, subject in self._latches if kind is AlertKind.POOL_HEALTH)
        for name in ill | watched:
            bad = name in ill
            finding = Finding(bad, not bad, "unhealthy" if bad else "healthy", float(bad), 0.0)
            yield from self._update(AlertKind.POOL_HEALTH, name, finding, reading)

    def _compliance(self, reading: Reading) -> Iterator[Alert]:
        found = reading.violations
        if found > 0 or reading.requests > 0:
            finding = Finding(found > 0, found <= 0, f"{found} without an accepted hash", found, 0)
            yield from self._update(AlertKind.COMPLIANCE, "requests", finding, reading)

    def _forecast(self, subject: str, value: float, target: float, worse: int) -> Finding | None:
        """Whether a figure is on its way to its target; `worse` is the sign of the way there."""
        points = self._points[subject]
        points.append((self._interval, value))
        if len(points) < self._trend_window:
            return None
        line = trend(tuple(points))
        ahead = None if line is None or line.slope * worse <= 0 else line.crossing(target)
        level = value if line is None else line.level
        missed = (value - target) * worse > 0 or (level - target) * worse > 0
        bad = ahead is not None and ahead <= self._horizon and not missed
        good = not missed and (ahead is None or ahead > _FORECAST_MARGIN * self._horizon)
        message = f"the target of {target:g} is not about to be crossed"
        if bad:
            message = f"{level:.4g}, and at its present slope across the target of {target:g} in {ahead:.1f} intervals"
        return Finding(bad, good, message, level, target, ahead)

    def _update(self, kind: AlertKind, subject: str, finding: Finding | None, reading: Reading) -> Iterator[Alert]:
        if finding is None:
            return
        key = (kind, subject)
        latch = self._latches.setdefault(key, Latch(self._clear_after))
        state = latch.update(finding)
        if latch.forgettable:
            del self._latches[key]
        if state is None:
            return
        due = self._due(finding.intervals) if state is AlertState.RAISED else None
        alert = Alert(kind, subject, state, finding.message, finding.value, finding.limit, reading.at, due)
        if state is AlertState.RAISED:
            self._active[key] = alert
        else:
            del self._active[key]
        yield alert

    def _due(self, intervals: float | None) -> float | None:
        """When so many intervals will have passed since the last reading, by how long they were of late."""
        recent = tuple(self._history)[-self._trend_window :]
        # The median: a clock that was set in between changes nothing.
        lengths = [after.at - before.at for before, after in pairwise(recent)]
        return recent[-1].at + intervals * median(lengths) if intervals is not None and lengths else None

    def _tell(self, alert: Alert) -> None:
        level = logging.WARNING if alert.state is AlertState.RAISED else logging.INFO
        _log.log(level, "%s alert of %s %s: %s", alert.kind, alert.subject, alert.state, alert.message)
        for callback in self._callbacks:
            try:
                callback(alert)
            except Exception:
                _log.exception("a callback failed for the %s alert of %s", alert.kind, alert.subject)


def _measured(value: float | None) -> float | None:
    """A figure that says something, or None."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None
