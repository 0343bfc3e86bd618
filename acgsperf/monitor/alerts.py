"""Alerts, and the hysteresis that keeps an alert from flapping between raised and cleared."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_MAX_DOUBLINGS: Final = 5
# After this many times `clear_after` intervals without an alert, one doubling is taken back.
_QUIET_FACTOR: Final = 16


class AlertKind(StrEnum):
    """What an alert is about."""

    RESPONSE_TIME = "response_time"
    """A percentile is over its target and far over its usual value."""
    HIT_RATE = "hit_rate"
    """The hit rate is below its target."""
    POOL_HEALTH = "pool_health"
    """A pool is unhealthy."""
    COMPLIANCE = "compliance"
    """Requests had no accepted hash."""
    FORECAST = "forecast"
    """A trend will cross its target soon."""


class AlertState(StrEnum):
    """Whether an alert was raised or cleared."""

    RAISED = "raised"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert at the moment when it was raised or cleared.

    Attributes:
        kind: what the alert is about.
        subject: the figure: "p50", "p95", "p99", "hit_rate", "requests" or the name of a pool.
        state: raised or cleared.
        message: the measured value and the limit, in words.
        value: the measured value: ms, a share, a number of violations, or 1 for an unhealthy pool.
        limit: the value it was compared with, in the same unit.
        at: the time of the reading.
        due: for a raised forecast, when the figure will cross its target, on the clock of `at`.
    """

    kind: AlertKind
    subject: str
    state: AlertState
    message: str
    value: float
    limit: float
    at: float
    due: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgment of one interval about one subject. Between bad and good, both are False.

    Attributes:
        bad: raises the alert.
        good: counts toward clearing the alert.
        message: see `Alert`.
        value, limit: see `Alert`.
        intervals: of a forecast, how many intervals remain until the figure crosses its target.
    """

    bad: bool
    good: bool
    message: str
    value: float
    limit: float
    intervals: float | None = None


class Hysteresis:
    """The state of one alert: one bad interval raises it, `clear_after` good intervals in a row clear it.

    An alert that is raised again soon after it was cleared needs twice as many good intervals the next time, up to 32
    times `clear_after`. Every 16 times `clear_after` intervals without the alert take one doubling back. (This follows
    the route flap damping of RFC 2439.)

    Args:
        clear_after: good intervals in a row that clear the alert.
    """

    __slots__ = ("_clear_after", "_doublings", "_good_in_a_row", "_quiet_intervals", "raised")

    def __init__(self, clear_after: int) -> None:
        self.raised: bool = False
        self._clear_after = clear_after
        self._doublings = 0
        self._good_in_a_row = 0
        self._quiet_intervals: int | None = None

    @property
    def is_initial(self) -> bool:
        """Whether this object behaves like a new one, so that it can be dropped."""
        return not self.raised and self._quiet_intervals is None

    def update(self, finding: Finding) -> AlertState | None:
        """Count an interval, and return the new state if it changed."""
        if not self.raised:
            return self._update_cleared(finding.bad)
        self._good_in_a_row = self._good_in_a_row + 1 if finding.good and not finding.bad else 0
        if self._good_in_a_row < self._clear_after << self._doublings:
            return None
        self.raised, self._quiet_intervals = False, 0
        return AlertState.CLEARED

    def _update_cleared(self, bad: bool) -> AlertState | None:
        if bad:
            if self._quiet_intervals is not None:
                self._doublings = min(self._doublings + 1, _MAX_DOUBLINGS)
            self.raised, self._good_in_a_row = True, 0
            return AlertState.RAISED
        if self._quiet_intervals is not None:
            self._quiet_intervals += 1
            if self._quiet_intervals >= _QUIET_FACTOR * self._clear_after:
                self._quiet_intervals = 0 if self._doublings else None
                self._doublings = max(0, self._doublings - 1)
        return None
