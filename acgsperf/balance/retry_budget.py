"""Limits how many requests are retries, so that retries cannot multiply the load of a service that is failing."""

import time
from collections.abc import Callable
from typing import Final

__all__ = ["RetryBudget"]


class RetryBudget:
    """Allows a retry for a share of the requests, and a few for each second.

    It is a token bucket, as Finagle's `RetryBudget` is: each request adds `ratio` tokens, each second adds
    `per_second`, and each retry takes one. The bucket has room for ten seconds of `per_second`, and for at least 10.

    Args:
        ratio: retries for each request, from 0 to 1.
        per_second: retries that are allowed each second in any case, at least 0.
        clock: returns seconds and never goes back.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, ratio: float = 0.2, per_second: float = 10, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be from 0 to 1, got {ratio}")
        if not 0 <= per_second < float("inf"):
            raise ValueError(f"per_second must be at least 0, got {per_second}")
        self._ratio: Final = ratio
        self._per_second: Final = per_second
        self._most: Final = max(10.0, 10.0 * per_second)
        self._clock = clock
        self._tokens = float(per_second)
        self._filled_at = clock()

    def note_request(self) -> None:
        """Count a first attempt."""
        self._tokens = min(self._most, self._tokens + self._ratio)

    def spend(self) -> bool:
        """Return whether a retry is allowed, and count it if it is."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + self._per_second * (now - self._filled_at))
        self._filled_at = now
        # Five times 0.2 is a little less than 1.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True
