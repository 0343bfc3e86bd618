"""A numeric setting that may be changed while a service runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from acgsperf._native.arguments import checked_positive

__all__ = ["Tunable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """A numeric setting that may be changed while the service runs.

    Attributes:
        name: of the setting.
        get: returns the current value.
        set: changes the value. It may round it: `get` returns the value that is in effect.
        lower, upper: the bounds, both included.
        step: how far one change goes. Or a function that takes the value and the direction (1 for up, -1 for down) and
            returns the next value. A value beyond a bound becomes the bound.
    """

    name: str
    get: Callable[[], float]
    set: Callable[[float], object]
    lower: float
    upper: float
    step: float | Callable[[float, int], float]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower <= self.upper):
            raise ValueError(
                f"{self.name}: bounds must be finite, and lower at most upper, got {self.lower!r} and {self.upper!r}"
            )
        if not callable(self.step):
            checked_positive(f"{self.name}: step", self.step)

    def proposal(self, value: float, direction: int) -> float | None:
        """Return the next value in a direction, within the bounds; None if there is none."""
        if not self.lower <= value <= self.upper:
            # Someone else put the setting outside its bounds on purpose.
            return None
        step = self.step
        proposed = step(value, direction) if callable(step) else value + direction * step
        bounded = min(max(proposed, self.lower), self.upper)
        # A `step` function may return NaN, or a value in the other direction.
        return bounded if (bounded - value) * direction > 0 else None
