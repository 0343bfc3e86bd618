"""`Monitor`: keeps a bounded history of readings, and raises and clears alerts."""

import asyncio
import inspect
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from acgsperf._native.arguments import checked_at_least, checked_positive, checked_share
from acgsperf.monitor.alerts import Alert, AlertKind, AlertState, Finding, Hysteresis
from acgsperf.monitor.forecast import smoothed_trend, trend
from acgsperf.monitor.regression import Baseline

__all__ = ["Monitor", "Reading", "Targets"]

_log: Final = logging.getLogger("acgsperf.monitor")

PERCENTILES: Final = ("p50", "p95", "p99")
HIT_RATE: Final = "hit_rate"
# A hit rate is good again if it is above its target by this share of the misses that the target allows.
_HIT_RATE_MARGIN: Final = 0.1
# A forecast is good again if the crossing is this many times as far away as the limit that raises it.
_FORECAST_MARGIN: Final = 1.5
# For a slow trend, so many points are taken together.
_SMOOTHED: Final = 6
# A peak may come an hour early or late, for example when the clocks change. So a value counts as higher than usual only
# if it is this factor above the highest usual value of the 90 minutes before and after it.
_SEASON_MINUTES: Final = range(-90, 91, 10)
_LEAST_DEVIATION: Final = 1.1
# With fewer points no trend is significant.
_MIN_TREND_WINDOW: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The figures of one interval alone, not of the time before it.

    A latency or hit rate that is None, NaN, infinite or negative counts as not measured; so does a hit rate above 1.

    Attributes:
        at: the time in seconds, on any clock. Alerts repeat it, and forecasts take the length of an interval from it.
        requests: requests in the interval that passed the compliance gate.
        errors: those of them that failed.
        violations: requests without an accepted hash.
        p50_ms, p95_ms, p99_ms: latency; None without requests.
        hit_rate: of the cache, between 0 and 1; None if the cache was not used.
        unhealthy_pools: the names of the unhealthy pools.
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
    """The targets of a service. No alert is raised for the throughput, because an idle service is not a problem.

    Attributes:
        p50_ms, p95_ms, p99_ms: the highest latency.
        hit_rate: the lowest hit rate, above 0 and at most 1.
        throughput_rps: requests per second, for summaries only.

    Raises:
        TypeError, ValueError: if a field is not usable; the message names it.
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
    """Takes one reading per interval, and raises and clears alerts.

    It starts no task: call `observe` once per interval. Use it from one thread at a time. `observe` takes well under a
    millisecond; with `usual_ms`, up to 2 ms while values are higher than usual. The memory is bounded by
    `history`, the windows and the number of pools.

    Args:
        targets: the values to compare readings with.
        history: how many readings are kept.
        baseline_window: the usual value of a percentile is its median over this many intervals. A shift that lasts
            for as many intervals becomes the usual value.
        warm_up: measured intervals before percentiles and hit rate are judged, because a cache starts empty.
        regression: by which share a percentile must rise over its usual value to be bad; 0.5 means 50 %.
        min_requests: in an interval with fewer requests, percentiles and hit rate are not judged.
        clear_after: good intervals in a row that clear an alert.
        forecast_intervals: a forecast is raised if a trend crosses its target within this many intervals.
        trend_window: measured intervals that a trend is taken from, at least 8. With `usual_ms`, a slow trend is taken
            from six times as many.

    Attributes:
        usual_ms: returns the usual value of "p50", "p95" or "p99" at a time in seconds since 1970, or None if it is not
            known. With it, a forecast is the trend of the deviation from what is usual, so that a daily peak raises
            none. None (default): a forecast is the trend of the value itself.

    Raises:
        TypeError, ValueError: if an argument is not usable; the message names it.
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
        self.usual_ms: Callable[[str, float], float | None] | None = None
        self._warm_up = checked_at_least("warm_up", warm_up, 0)
        window = checked_at_least("baseline_window", baseline_window, max(1, self._warm_up))
        regression = checked_positive("regression", regression)
        self._min_requests = checked_at_least("min_requests", min_requests, 1)
        self._clear_after = checked_at_least("clear_after", clear_after, 1)
        self._horizon = checked_at_least("forecast_intervals", forecast_intervals, 1)
        self._trend_window = checked_at_least("trend_window", trend_window, _MIN_TREND_WINDOW)
        self._history: deque[Reading] = deque(maxlen=checked_at_least("history", history, 1))
        self._interval = 0
        self._rates = 0
        self._baselines = {subject: Baseline(window, self._warm_up, regression) for subject in PERCENTILES}
        # Interval, value, and what is usual then.
        self._points: dict[str, deque[tuple[int, float, float | None]]] = {
            subject: deque(maxlen=_SMOOTHED * self._trend_window) for subject in (*PERCENTILES, HIT_RATE)
        }
        self._hysteresis: dict[tuple[AlertKind, str], Hysteresis] = {}
        self._active: dict[tuple[AlertKind, str], Alert] = {}
        self._callbacks: tuple[Callable[[Alert], object], ...] = ()

    @property
    def history(self) -> tuple[Reading, ...]:
        """The latest readings, the oldest first."""
        return tuple(self._history)

    @property
    def active(self) -> tuple[Alert, ...]:
        """The alerts that are raised now, the oldest first."""
        return tuple(self._active.values())

    def on_alert(self, callback: Callable[[Alert], object]) -> Callable[[], None]:
        """Call `callback` with every alert that is raised or cleared.

        Callbacks run in the order of registration. An error of a callback is logged and has no other effect.

        Returns:
            A function that unregisters the callback. You may call it more than once.

        Raises:
            TypeError: if `callback` is not callable, or is a coroutine function, because nothing would await it.
        """
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError(f"callback must be a callable that is not a coroutine function, got {callback!r}")

        # A new function per registration: the same callback may be registered twice.
        def entry(alert: Alert) -> None:
            callback(alert)

        def unregister() -> None:
            self._callbacks = tuple(kept for kept in self._callbacks if kept is not entry)

        self._callbacks = (*self._callbacks, entry)
        return unregister

    def observe(self, reading: Reading) -> tuple[Alert, ...]:
        """Add the reading of an interval, log and call back the alerts that it raised or cleared, and return them."""
        self._history.append(reading)
        self._interval += 1
        alerts = (*self._judge_traffic(reading), *self._judge_pools(reading), *self._judge_compliance(reading))
        for alert in alerts:
            self._notify(alert)
        return alerts

    def _judge_traffic(self, reading: Reading) -> Iterator[Alert]:
        if reading.requests < self._min_requests:
            return
        for subject in PERCENTILES:
            value, target = _measured(getattr(reading, f"{subject}_ms")), getattr(self.targets, f"{subject}_ms")
            if value is None:
                continue
            baseline = self._baselines[subject]
            yield from self._update(AlertKind.RESPONSE_TIME, subject, baseline.judge(value, target), reading)
            baseline.update(value, raised=(AlertKind.RESPONSE_TIME, subject) in self._active)
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

    def _judge_pools(self, reading: Reading) -> Iterator[Alert]:
        # Idle intervals count too, because a pool checks its health without requests.
        unhealthy = dict.fromkeys(reading.unhealthy_pools)
        known = dict.fromkeys(subject for kind, subject in self._hysteresis if kind is AlertKind.POOL_HEALTH)
        for name in unhealthy | known:
            bad = name in unhealthy
            finding = Finding(bad, not bad, "unhealthy" if bad else "healthy", float(bad), 0.0)
            yield from self._update(AlertKind.POOL_HEALTH, name, finding, reading)

    def _judge_compliance(self, reading: Reading) -> Iterator[Alert]:
        found = reading.violations
        if found > 0 or reading.requests > 0:
            finding = Finding(found > 0, found <= 0, f"{found} requests without an accepted hash", found, 0)
            yield from self._update(AlertKind.COMPLIANCE, "requests", finding, reading)

    def _forecast(self, subject: str, value: float, target: float, worse: int) -> Finding | None:
        """Judge whether a figure will cross its target soon; `worse` is 1 if higher is worse, else -1."""
        points = self._points[subject]
        now = time.time()
        points.append((self._interval, value, None if subject == HIT_RATE else self._usual(subject, now)))
        recent = list(points)[-self._trend_window :]
        if len(recent) < self._trend_window:
            return None
        if all(known is not None and found > 0 for _, found, known in recent):
            level, ahead = value, self._seasonal_crossing(subject, target, now)
        else:
            line = trend([(interval, found) for interval, found, _ in recent])
            level = value if line is None else line.level
            ahead = None if line is None or line.slope * worse <= 0 else line.crossing(target)
        missed = (value - target) * worse > 0 or (level - target) * worse > 0
        bad = ahead is not None and ahead <= self._horizon and not missed
        good = not missed and (ahead is None or ahead > _FORECAST_MARGIN * self._horizon)
        message = f"no trend crosses the target of {target:g}"
        if bad:
            message = (
                f"{level:.4g} now; at its current slope it will cross the target of {target:g} in {ahead:.1f} intervals"
            )
        return Finding(bad, good, message, level, target, ahead)

    def _update(self, kind: AlertKind, subject: str, finding: Finding | None, reading: Reading) -> Iterator[Alert]:
        if finding is None:
            return
        key = (kind, subject)
        hysteresis = self._hysteresis.setdefault(key, Hysteresis(self._clear_after))
        state = hysteresis.update(finding)
        if hysteresis.is_initial:
            del self._hysteresis[key]
        if state is None:
            return
        due = self._crossing_time(finding.intervals) if state is AlertState.RAISED else None
        alert = Alert(kind, subject, state, finding.message, finding.value, finding.limit, reading.at, due)
        if state is AlertState.RAISED:
            self._active[key] = alert
        else:
            del self._active[key]
        yield alert

    def _usual(self, subject: str, at: float) -> float | None:
        """Return the usual value of a percentile at a time, greater than 0; None if it is not known."""
        value = None if self.usual_ms is None else self.usual_ms(subject, at)
        return value if value is not None and 0 < value < math.inf else None

    def _seasonal_crossing(self, subject: str, target: float, now: float) -> float | None:
        """Return how many intervals remain until the usual value, with the trend of the deviation, is at the target."""
        # Logarithms, because the deviation is a factor, and a leak often grows by a factor.
        deviations = [
            (interval, math.log(found) - math.log(known))
            for interval, found, known in self._points[subject]
            if known is not None and found > 0
        ]
        length = self._interval_s()
        usual = self._usual(subject, now)
        if length is None or usual is None:
            return None
        # Not the level of a trend: it is too high for a while after a rise has ended.
        level = median(deviation for _, deviation in deviations[-_SMOOTHED:])
        near = (self._usual(subject, now + minutes * 60) for minutes in _SEASON_MINUTES)
        highest = max((known for known in near if known is not None), default=usual)
        if level < math.log(_LEAST_DEVIATION * highest / usual):
            return None
        lines = [trend(deviations[-self._trend_window :])]
        if len(deviations) == _SMOOTHED * self._trend_window:
            lines.append(smoothed_trend(deviations, _SMOOTHED))
        slope = max((line.slope for line in lines if line is not None), default=0.0)
        if slope <= 0:
            return None
        for ahead in range(1, math.ceil(_FORECAST_MARGIN * self._horizon) + 1):
            usual = self._usual(subject, now + ahead * length)
            # A usual value that misses the target itself is nothing new.
            if usual is None or usual >= target:
                continue
            if level + slope * (ahead + (_SMOOTHED - 1) / 2) >= math.log(target / usual):
                return float(ahead)
        return None

    def _interval_s(self) -> float | None:
        """Return the length of an interval; None if it is not known."""
        recent = tuple(self._history)[-self._trend_window :]
        # The median, so that a clock that was set meanwhile does not matter.
        lengths = [after.at - before.at for before, after in pairwise(recent)]
        return median(lengths) if lengths else None

    def _crossing_time(self, intervals: float | None) -> float | None:
        """Return the time at which this many intervals have passed since the last reading, if the times are known."""
        length = self._interval_s()
        return self._history[-1].at + intervals * length if intervals is not None and length is not None else None

    def _notify(self, alert: Alert) -> None:
        level = logging.WARNING if alert.state is AlertState.RAISED else logging.INFO
        _log.log(level, "%s alert for %s %s: %s", alert.kind, alert.subject, alert.state, alert.message)
        for callback in self._callbacks:
            try:
                callback(alert)
            # A callback is not awaited, so that a cancellation that it raises is its own and not that of the caller.
            except (Exception, asyncio.CancelledError):
                _log.exception("%s alert for %s: a callback failed; the other callbacks run", alert.kind, alert.subject)


def _measured(value: float | None) -> float | None:
    """Return the figure; None if it does not count as measured."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None
