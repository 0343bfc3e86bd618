"""Settings tuned while a service runs: one change at a time, measured, and undone when it made things worse."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from acgsperf._native.arguments import checked_at_least, checked_positive

__all__ = ["Action", "Knob", "Outcome", "Tuner"]

_log: Final = logging.getLogger("acgsperf.service")

_UP: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A number that may be changed while the service runs.

    Attributes:
        name: of the setting.
        get: its value now.
        set: change it; what `get` says afterwards is what was set.
        lower, upper: its bounds, both included.
        step: how far one change goes, or what is proposed for a value and a direction, 1 up or -1 down. A proposal
            beyond a bound is the bound.
    """

    name: str
    get: Callable[[], float]
    set: Callable[[float], object]
    lower: float
    upper: float
    step: float | Callable[[float, int], float]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower <= self.upper):
            raise ValueError(f"{self.name}: bounds must be finite and in order, not {self.lower!r} and {self.upper!r}")
        if not callable(self.step):
            checked_positive(f"{self.name}: step", self.step)

    def proposal(self, value: float, direction: int) -> float | None:
        """The next value in a direction, within the bounds; None when there is none."""
        if not self.lower <= value <= self.upper:
            # Somebody else's decision; it is not for the tuner to take it back.
            return None
        step = self.step
        proposed = step(value, direction) if callable(step) else value + direction * step
        bounded = min(max(proposed, self.lower), self.upper)
        # The other way is no proposal, and a NaN neither.
        return bounded if (bounded - value) * direction > 0 else None


class Outcome(StrEnum):
    """What became of a change."""

    APPLIED = "applied"
    """It was made, and is being measured."""
    KEPT = "kept"
    """It made nothing worse."""
    UNDONE = "undone"
    """It made things worse."""
    OVERTAKEN = "overtaken"
    """Somebody else changed the setting meanwhile, and has the last word."""


@dataclass(frozen=True, slots=True)
class Action:
    """A step of the tuner; an applied change has no `merit_after` yet."""

    name: str
    before: float
    after: float
    merit_before: float
    merit_after: float | None
    outcome: Outcome


@dataclass(slots=True)
class _Plan:
    """A knob, which way it goes next, and after how many more measurements."""

    knob: Knob
    direction: int = _UP
    pause: int = 1
    wait: int = 0

    def back_off(self, most: int) -> None:
        self.wait = self.pause
        self.pause = min(2 * self.pause, most)


class Tuner:
    """Hill climbing that comes to rest, whatever the merit does.

    A change is judged by the merit of the next interval: it is kept unless that is worse by more than `tolerance`. A
    knob goes on at once only after a change that made things better, and in the same direction. Whatever else happens
    (no effect, a change undone, a bound reached) makes it wait, each time twice as long, and no success shortens that.
    So a knob with k steps between its bounds makes at most k + 1 changes between two pauses, and of pauses there are
    log2(n) in n intervals, and then one each `max_pause`.

    Args:
        knobs: tried in turn; their names differ.
        tolerance: the share by which the merit has to change to count as better or worse.
        max_pause: measured intervals after which a knob is tried again at the latest.
        history: actions kept.

    Raises:
        ValueError: for two knobs of one name, or one whose value is out of its bounds.
        TypeError, ValueError: names the argument.
    """

    def __init__(
        self, knobs: Iterable[Knob], *, tolerance: float = 0.02, max_pause: int = 128, history: int = 1000
    ) -> None:
        self._tolerance = checked_positive("tolerance", tolerance)
        self._max_pause = checked_at_least("max_pause", max_pause, 1)
        self._actions: deque[Action] = deque(maxlen=checked_at_least("history", history, 1))
        self._plans = deque(_Plan(knob) for knob in knobs)
        names = [plan.knob.name for plan in self._plans]
        if len(set(names)) < len(names):
            raise ValueError(f"knobs must have different names, not {names}")
        for plan in self._plans:
            knob, value = plan.knob, plan.knob.get()
            if not knob.lower <= value <= knob.upper:
                raise ValueError(f"{knob.name} must be between {knob.lower} and {knob.upper}, not {value!r}")
        self._pending: tuple[_Plan, Action] | None = None

    @property
    def actions(self) -> tuple[Action, ...]:
        """What was done, the oldest first."""
        return tuple(self._actions)

    def step(self, merit: float | None) -> tuple[Action, ...]:
        """End an interval: judge the change that it was measured under, then perhaps make another.

        Args:
            merit: the figure of the interval, higher is better. None or no finite number when there was nothing to
                measure: then nothing is judged and nothing changed.

        Returns:
            What was done, at most a verdict and a new change.
        """
        if merit is None or not math.isfinite(merit):
            return ()
        for plan in self._plans:
            plan.wait = max(0, plan.wait - 1)
        done = []
        if self._pending is not None:
            verdict = self._judge(*self._pending, merit)
            if verdict is None:
                return ()
            self._pending = None
            done.append(verdict)
        # An interval that was measured under what has just been undone is nothing to compare the next one with.
        if not done or done[0].outcome is Outcome.KEPT:
            done += self._change(merit)
        self._actions.extend(done)
        return tuple(done)

    def _judge(self, plan: _Plan, change: Action, merit: float) -> Action | None:
        """What becomes of a change; None when it cannot be undone now, which the next interval tries again."""
        margin = self._tolerance * abs(change.merit_before)
        outcome = Outcome.KEPT
        if plan.knob.get() != change.after:
            outcome = Outcome.OVERTAKEN
        elif merit < change.merit_before - margin:
            if not _set(plan.knob, change.before):
                return None
            plan.direction = -plan.direction
            outcome = Outcome.UNDONE
        if outcome is not Outcome.KEPT or merit <= change.merit_before + margin:
            plan.back_off(self._max_pause)
        return replace(change, merit_after=merit, outcome=outcome)

    def _change(self, merit: float) -> list[Action]:
        """The next change of the first knob that is due, or none."""
        for plan in self._plans:
            if plan.wait:
                continue
            knob = plan.knob
            before = knob.get()
            proposed = knob.proposal(before, plan.direction)
            if proposed is None:
                plan.direction = -plan.direction
            if proposed is None or not _set(knob, proposed) or knob.get() == before:
                plan.back_off(self._max_pause)
                continue
            change = Action(knob.name, before, knob.get(), merit, None, Outcome.APPLIED)
            self._pending = plan, change
            self._plans.remove(plan)
            self._plans.append(plan)
            return [change]
        return []


def _set(knob: Knob, value: float) -> bool:
    """Whether a knob took a value; why not is logged."""
    try:
        knob.set(value)
    except Exception:
        _log.exception("%s cannot be set to %r", knob.name, value)
        return False
    return True
