"""Alerts, and the hysteresis that keeps them from flapping."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_MOST_DOUBLINGS: Final = 5
# So many times `clear_after` an alert has to stay clear until one doubling is taken back.
_CALM: Final = 16


class AlertKind(StrEnum):
    """What an alert is about."""

    RESPONSE_TIME = "response_time"
    """A percentile regressed."""
    HIT_RATE = "hit_rate"
    """The hit rate is below its target."""
    POOL_HEALTH = "pool_health"
    """A pool is not healthy."""
    COMPLIANCE = "compliance"
    """Requests without an accepted hash."""
    FORECAST = "forecast"
    """A figure is on its way to cross its target."""


class AlertState(StrEnum):
    """Which way an alert went."""

    RAISED = "raised"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert at the moment when it was raised or cleared.

    Attributes:
        kind: what it is about.
        subject: which one: "p50", "p95", "p99", "hit_rate", "requests" or the name of a pool.
        state: raised or cleared.
        message: all of it in words.
        value: what was measured: ms, a share, a number of violations, 1 for an unhealthy pool.
        limit: what it was compared with, in the same unit.
        at: the time of the reading.
        due: of a forecast that was raised, when the target will be crossed, on the same clock.
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
    """What one interval says about one subject; between bad and good it is neither.

    `intervals` is in how many of them a forecast expects its target to be crossed.
    """

    bad: bool
    good: bool
    message: str
    value: float
    limit: float
    intervals: float | None = None


class Latch:
    """Whether an alert is raised: at once by a bad interval, cleared by several good ones in a row.

    An alert that comes back soon after it was cleared needs twice as many good intervals the next time, up to 32 times
    as many; each time that it has stayed clear for 16 times `clear_after` takes one doubling back (after the route flap
    damping of RFC 2439).
    """

    __slots__ = ("_clear_after", "_doublings", "_quiet", "_streak", "raised")

    def __init__(self, clear_after: int) -> None:
        self.raised = False
        self._clear_after = clear_after
        self._doublings = 0
        self._streak = 0
        self._quiet: int | None = None

    @property
    def forgettable(self) -> bool:
        """Whether a new latch would do the same."""
        return not self.raised and self._quiet is None

    def update(self, finding: Finding) -> AlertState | None:
        """Count an interval; what it changed."""
        if not self.raised:
            return self._while_clear(finding.bad)
        self._streak = self._streak + 1 if finding.good and not finding.bad else 0
        if self._streak < self._clear_after << self._doublings:
            return None
        self.raised, self._quiet = False, 0
        return AlertState.CLEARED

    def _while_clear(self, bad: bool) -> AlertState | None:
        if bad:
            if self._quiet is not None:
                self._doublings = min(self._doublings + 1, _MOST_DOUBLINGS)
            self.raised, self._streak = True, 0
            return AlertState.RAISED
        if self._quiet is not None:
            self._quiet += 1
            if self._quiet >= _CALM * self._clear_after:
                self._quiet = 0 if self._doublings else None
                self._doublings = max(0, self._doublings - 1)
        return None
