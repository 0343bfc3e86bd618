"""A circuit breaker: after several failures in a row, calls skip the server for a while."""

import time
from collections.abc import Callable
from typing import Final

from acgsperf.tiers.base import BreakerState

FAILURES: Final = 3
RECOVERY_S: Final = 1.0


class CircuitBreaker:
    """Opens after several failures in a row, then allows one attempt at a time, and closes when an attempt succeeds.

    Args:
        failures: number of failures in a row that opens it.
        recovery_s: time from a failure to the next attempt. It does not grow, so that a server that is back is used
            soon; one attempt in that time costs little.
        clock: returns monotonic seconds.

    Attributes:
        state: closed, open or half-open.
        failures_in_a_row: failures since the last success.
        recovery_s: time from a failure to the next attempt.
    """

    __slots__ = ("_clock", "_failures", "_retry_at", "failures_in_a_row", "recovery_s", "state")

    def __init__(
        self,
        failures: int = FAILURES,
        recovery_s: float = RECOVERY_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state: BreakerState = BreakerState.CLOSED
        self.failures_in_a_row: int = 0
        self.recovery_s: Final = recovery_s
        self._failures = failures
        self._clock = clock
        self._retry_at = 0.0

    def allow(self) -> bool:
        """Return whether a call may be made now. A call allowed while the breaker is not closed is the attempt."""
        if self.state is BreakerState.CLOSED:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        # If no caller reports the outcome of an attempt, another one is allowed after the same time.
        self.state = BreakerState.HALF_OPEN
        self._retry_at = now + self.recovery_s
        return True

    def succeeded(self) -> bool:
        """Report that the server answered a call. Return True if that closed the breaker."""
        self.failures_in_a_row = 0
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.CLOSED
        return True

    def failed(self) -> bool:
        """Report that a call failed. Return True if that opened the breaker from closed."""
        self.failures_in_a_row += 1
        if self.state is BreakerState.OPEN:
            return False
        if self.state is BreakerState.CLOSED and self.failures_in_a_row < self._failures:
            return False
        opened = self.state is BreakerState.CLOSED
        self.state = BreakerState.OPEN
        self._retry_at = self._clock() + self.recovery_s
        return opened
