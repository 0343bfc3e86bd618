"""Tunes settings while a service runs: makes one change, measures it, and undoes it if it made things worse."""

import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from acgsperf._native.arguments import checked_at_least, checked_positive
from acgsperf.fleet.tunable import Tunable

__all__ = ["Action", "Outcome", "Tunable", "Tuner"]

_log: Final = logging.getLogger("acgsperf.service")

_UP: Final = 1


class Outcome(StrEnum):
    """The outcome of a change."""

    APPLIED = "applied"
    """The change was made; the next interval measures it."""
    KEPT = "kept"
    """The change made nothing worse."""
    UNDONE = "undone"
    """The change made things worse and was undone."""
    SUPERSEDED = "superseded"
    """Someone else changed the setting meanwhile. Their value stays."""


@dataclass(frozen=True, slots=True)
class Action:
    """A step of the tuner: a change that was applied, or the outcome of the change before.

    Attributes:
        name: of the setting.
        before, after: its values.
        merit_before: the figure of merit before the change; higher is better.
        merit_after: the figure of merit after the change; None for a change that was just applied.
        outcome: see `Outcome`.
    """

    name: str
    before: float
    after: float
    merit_before: float
    merit_after: float | None
    outcome: Outcome


@dataclass(slots=True)
class _Schedule:
    """A tunable, the direction of its next change, and how many more measurements it waits for.

    `pause` is how long the next wait is, in measurements.
    """

    tunable: Tunable
    direction: int = _UP
    pause: int = 1
    wait: int = 0

    def back_off(self, max_pause: int) -> None:
        self.wait = self.pause
        self.pause = min(2 * self.pause, max_pause)


class Tuner:
    """Hill climbing that changes settings ever more rarely, whatever the figure of merit does.

    The figure of merit of the next interval judges a change: the change is undone if the figure is worse by more than
    `tolerance`. After a change that made things better, the same setting changes again at once, in the same direction.
    After everything else (no effect, an undone change, a bound reached) the setting pauses, each time twice as long. A
    success does not shorten the pause. So a setting with k steps between its bounds changes at most k + 1 times
    between two pauses; n intervals have about log2(n) pauses, and then one per `max_pause`.

    Args:
        tunables: the settings, tried in turn. Their names must differ.
        tolerance: the share by which the figure of merit must change to count as better or worse.
        max_pause: the longest pause, in measured intervals.
        history: how many actions are kept.

    Raises:
        ValueError: if two settings have the same name, a value is outside its bounds, or an option is out of range.
        TypeError: if an option has the wrong type.
    """

    def __init__(
        self, tunables: Iterable[Tunable], *, tolerance: float = 0.02, max_pause: int = 128, history: int = 1000
    ) -> None:
        self._tolerance = checked_positive("tolerance", tolerance)
        self._max_pause = checked_at_least("max_pause", max_pause, 1)
        self._actions: deque[Action] = deque(maxlen=checked_at_least("history", history, 1))
        self._schedules = deque(_Schedule(tunable) for tunable in tunables)
        names = [schedule.tunable.name for schedule in self._schedules]
        if len(set(names)) < len(names):
            raise ValueError(f"tunables must have different names, got {names}")
        for schedule in self._schedules:
            tunable, value = schedule.tunable, schedule.tunable.get()
            if not tunable.lower <= value <= tunable.upper:
                raise ValueError(f"{tunable.name} must be between {tunable.lower} and {tunable.upper}, got {value!r}")
        self._in_trial: tuple[_Schedule, Action] | None = None

    @property
    def actions(self) -> tuple[Action, ...]:
        """The latest actions, the oldest first."""
        return tuple(self._actions)

    def step(self, merit: float | None) -> tuple[Action, ...]:
        """End an interval: judge the change in trial, then perhaps make another one.

        Args:
            merit: the figure of merit of the interval; higher is better. With None, NaN or infinity nothing was
                measured, and the tuner judges nothing and changes nothing.

        Returns:
            At most one outcome and one new change.
        """
        if merit is None or not math.isfinite(merit):
            return ()
        for schedule in self._schedules:
            schedule.wait = max(0, schedule.wait - 1)
        done = []
        if self._in_trial is not None:
            verdict = self._judge(*self._in_trial, merit)
            if verdict is None:
                return ()
            self._in_trial = None
            done.append(verdict)
        # After an undone change, this interval measured a setting that is no longer in effect. The next change needs
        # another interval to be compared with.
        if not done or done[0].outcome is Outcome.KEPT:
            done += self._change(merit)
        self._actions.extend(done)
        return tuple(done)

    def abandon(self) -> tuple[Action, ...]:
        """Undo the change in trial, if there is one, because someone else tunes the settings from now on."""
        if self._in_trial is None:
            return ()
        (schedule, change), self._in_trial = self._in_trial, None
        outcome = Outcome.SUPERSEDED
        if schedule.tunable.get() == change.after and _set(schedule.tunable, change.before):
            outcome = Outcome.UNDONE
        done = replace(change, outcome=outcome)
        self._actions.append(done)
        return (done,)

    def _judge(self, schedule: _Schedule, change: Action, merit: float) -> Action | None:
        """Return the outcome of a change; None if undoing it failed, which the next interval tries again."""
        margin = self._tolerance * abs(change.merit_before)
        outcome = Outcome.KEPT
        if schedule.tunable.get() != change.after:
            outcome = Outcome.SUPERSEDED
        elif merit < change.merit_before - margin:
            if not _set(schedule.tunable, change.before):
                return None
            schedule.direction = -schedule.direction
            outcome = Outcome.UNDONE
        if outcome is not Outcome.KEPT or merit <= change.merit_before + margin:
            schedule.back_off(self._max_pause)
        return replace(change, merit_after=merit, outcome=outcome)

    def _change(self, merit: float) -> list[Action]:
        """Make the next change of the first setting that does not wait, if there is one."""
        for schedule in self._schedules:
            if schedule.wait:
                continue
            tunable = schedule.tunable
            before = tunable.get()
            proposed = tunable.proposal(before, schedule.direction)
            if proposed is None:
                schedule.direction = -schedule.direction
            if proposed is None or not _set(tunable, proposed) or tunable.get() == before:
                schedule.back_off(self._max_pause)
                continue
            change = Action(tunable.name, before, tunable.get(), merit, None, Outcome.APPLIED)
            self._in_trial = schedule, change
            self._schedules.remove(schedule)
            self._schedules.append(schedule)
            return [change]
        return []


def _set(tunable: Tunable, value: float) -> bool:
    """Set a value, and return whether that succeeded. A failure is logged."""
    try:
        tunable.set(value)
    except Exception:
        _log.exception("setting '%s': cannot be set to %r; the tuner tries again later", tunable.name, value)
        return False
    return True
