"""Detects a regression: a percentile that rises far above its usual value and over its target."""

from collections import deque
from statistics import median
from typing import Final

from acgsperf.monitor.alerts import Finding

_CLEAR_SHARE_OF_TARGET: Final = 0.9


class Baseline:
    """The usual value of a percentile: its median over earlier intervals, so outliers hardly change it.

    While an alert is raised, the baseline does not change, and new values are collected apart. If the alert is still
    raised after `window` intervals, the shift is permanent: the collected values become the baseline.

    Args:
        window: the number of intervals that the baseline is taken from.
        warm_up: intervals that must be measured before a value is judged.
        regression: by which share a value must rise over its usual value; 0.5 means 50 %.
    """

    __slots__ = ("_collected", "_regression", "_usual", "_warm_up")

    def __init__(self, window: int, warm_up: int, regression: float) -> None:
        self._warm_up = max(1, warm_up)
        self._regression = regression
        self._usual: deque[float] = deque(maxlen=window)
        self._collected: deque[float] = deque(maxlen=window)

    def judge(self, value: float, target: float) -> Finding | None:
        """Compare a value in ms with its target and its usual value. Call this before `update`.

        Returns:
            None during the warm-up.
        """
        if len(self._usual) < self._warm_up:
            return None
        usual = median(self._usual)
        limit = max(target, (1 + self._regression) * usual)
        clear = max(_CLEAR_SHARE_OF_TARGET * target, (1 + self._regression / 2) * usual)
        message = f"{value:.3g} ms, usually {usual:.3g} ms, target {target:g} ms"
        return Finding(value > limit, value <= clear, message, value, limit)

    def update(self, value: float, *, raised: bool) -> None:
        """Add a value; `raised` says whether the alert is raised after it was judged."""
        if not raised:
            self._collected.clear()
            self._usual.append(value)
            return
        self._collected.append(value)
        if len(self._collected) == self._collected.maxlen:
            self._usual, self._collected = self._collected, deque(maxlen=self._collected.maxlen)
