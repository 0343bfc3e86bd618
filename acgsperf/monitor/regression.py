"""What is usual of a percentile, and when it is no more."""

from collections import deque
from statistics import median
from typing import Final

from acgsperf.monitor.alerts import Finding

_CLEAR_SHARE_OF_TARGET: Final = 0.9


class Baseline:
    """The median of a percentile over earlier intervals: half of them may be anything.

    While an alert is raised the baseline stands still, and what is measured waits. If the alert is still raised when as
    many intervals wait as the baseline has, the shift is there to stay: they become the baseline.

    Args:
        window: intervals that count.
        warm_up: how many there must be before there is a verdict.
        regression: by which share of the usual a value has to rise, 0.5 for 50 %.
    """

    __slots__ = ("_regression", "_usual", "_waiting", "_warm_up")

    def __init__(self, window: int, warm_up: int, regression: float) -> None:
        self._warm_up = max(1, warm_up)
        self._regression = regression
        self._usual: deque[float] = deque(maxlen=window)
        self._waiting: deque[float] = deque(maxlen=window)

    def judge(self, value: float, target: float) -> Finding | None:
        """What a value in ms says, before it is learned; None during the warm-up."""
        if len(self._usual) < self._warm_up:
            return None
        usual = median(self._usual)
        limit = max(target, (1 + self._regression) * usual)
        clear = max(_CLEAR_SHARE_OF_TARGET * target, (1 + self._regression / 2) * usual)
        message = f"{value:.3g} ms, usually {usual:.3g} ms, target {target:g} ms"
        return Finding(value > limit, value <= clear, message, value, limit)

    def learn(self, value: float, *, raised: bool) -> None:
        """Count a value, with whether an alert is raised after it."""
        if not raised:
            self._waiting.clear()
            self._usual.append(value)
            return
        self._waiting.append(value)
        if len(self._waiting) == self._waiting.maxlen:
            self._usual, self._waiting = self._waiting, deque(maxlen=self._waiting.maxlen)
