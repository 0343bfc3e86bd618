"""A circuit breaker: a server that fails again and again is left alone for a while."""

import time
from collections.abc import Callable
from typing import Final

from acgsperf.tiers.base import BreakerState

FAILURES: Final = 3
RECOVERY_S: Final = 1.0
MAX_RECOVERY_S: Final = 30.0


class CircuitBreaker:
    """Opens after some failures in a row; then lets one call through every so often, and closes when one succeeds.

    Args:
        failures: how many in a row open it.
        recovery_s: how long it stays open at first; twice as long after each failed attempt, to 30 s at most.
        clock: seconds, monotonic.
    """

    __slots__ = ("_clock", "_failures", "_first_recovery_s", "_in_a_row", "_recovery_s", "_retry_at", "state")

    def __init__(
        self,
        failures: int = FAILURES,
        recovery_s: float = RECOVERY_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = BreakerState.CLOSED
        self._failures = failures
        self._first_recovery_s = self._recovery_s = recovery_s
        self._clock = clock
        self._in_a_row = 0
        self._retry_at = 0.0

    def allow(self) -> bool:
        """Whether a call may be made now. One that may while the breaker is not closed is the attempt."""
        if self.state is BreakerState.CLOSED:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        # An attempt whose outcome nobody reports is replaced by another after the same time.
        self.state = BreakerState.HALF_OPEN
        self._retry_at = now + self._recovery_s
        return True

    def succeeded(self) -> bool:
        """Reports a call that the server answered; True when that closed the breaker."""
        self._in_a_row = 0
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.CLOSED
        self._recovery_s = self._first_recovery_s
        return True

    def failed(self) -> bool:
        """Reports a call that failed; True when that opened the breaker from closed."""
        self._in_a_row += 1
        if self.state is BreakerState.HALF_OPEN:
            self._recovery_s = min(2 * self._recovery_s, MAX_RECOVERY_S)
        elif self.state is BreakerState.OPEN or self._in_a_row < self._failures:
            return False
        opened = self.state is BreakerState.CLOSED
        self.state = BreakerState.OPEN
        self._retry_at = self._clock() + self._recovery_s
        return opened
