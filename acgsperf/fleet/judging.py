"""Decides what happens to a trial next, by what its instances have measured so far."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from acgsperf._native.arguments import checked_at_least, checked_share
from acgsperf.fleet.effects import Block, Effect, difference_of_changes, effect_of
from acgsperf.fleet.trials import Figures, Standing, Trial, TrialOutcome

__all__ = ["TrialOptions", "Verdict", "judged"]

# Until the standings of all instances show a new trial, some rounds pass.
_ROUNDS_TO_JOIN: Final = 10
# An early look at the latency needs this share of the requests of a period.
_LOOK_SHARE: Final = 0.25
# Before the end of a period, only so much (as a logarithm) is clearly worse.
_MUCH_WORSE: Final = math.log(2)
# During a trial: so many more requests fail with the new value.
_MORE_FAILED: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOptions:
    """How trials are made. A round is one monitoring interval.

    Attributes:
        significance: the probability with which a value that is not better is adopted.
        settle_rounds: rounds at the start of a period that are not measured, so that caches adapt to the new value.
        period_rounds: the rounds that are measured in each period.
        period_requests: the requests that each instance must have answered in a period.
        most_period_rounds: a period ends after so many rounds. Instances with too few requests do not count then.
        silent_rounds: an instance that hears nothing from the server or the coordinator for so long undoes a trial.
        most_harm: the share by which trials may make the requests of the fleet slower, over a long time. After a trial
            that made some of them slower, the next one waits until this share is not exceeded.
        least_pause: the rounds before the first trial, and before the next one after a trial that was not adopted. For
            the same setting, the pause doubles each time.
        max_pause: the longest pause of a setting, in rounds.
    """

    significance: float = 0.025
    settle_rounds: int = 2
    period_rounds: int = 4
    period_requests: int = 1_000
    most_period_rounds: int = 40
    silent_rounds: int = 3
    most_harm: float = 0.01
    least_pause: int = 40
    max_pause: int = 2_880

    def __post_init__(self) -> None:
        checked_share("significance", self.significance)
        checked_share("most_harm", self.most_harm)
        for name in ("settle_rounds", "period_rounds", "period_requests", "most_period_rounds", "silent_rounds"):
            checked_at_least(name, getattr(self, name), 1)
        checked_at_least("least_pause", self.least_pause, 1)
        checked_at_least("max_pause", self.max_pause, self.least_pause)

    def longest_trial(self, blocks: int) -> int:
        """Return the rounds after which a trial is undone in any case."""
        return (2 * blocks + 1) * (self.most_period_rounds + self.settle_rounds + _ROUNDS_TO_JOIN)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a trial.

    Attributes:
        outcome: how it ends; None if its next period begins.
        effect: of the new value on the logarithm of the mean latency; None if it was not measured.
        harm: the share by which the new value made requests slower, or fail, when the trial was stopped early.
    """

    outcome: TrialOutcome | None
    effect: Effect | None = None
    harm: float = 0.0


def judged(trial: Trial, rounds: int, standings: Mapping[str, Standing], options: TrialOptions) -> Verdict | None:
    """Return what happens to a trial now; None if its period goes on.

    Args:
        trial: the trial.
        rounds: how long its current period has lasted.
        standings: those of all live instances.
        options: how trials are made.
    """
    taking_part = {
        instance: standings[instance].periods
        for instance in trial.instances
        if instance in standings and standings[instance].trial == trial.id
    }
    joined = len(taking_part) == sum(instance in standings for instance in trial.instances)
    if trial.period == 0 and rounds < _ROUNDS_TO_JOIN and not joined:
        return None
    if len(taking_part) < 2:
        return Verdict(TrialOutcome.ABANDONED)
    harm = _harm(trial, taking_part, options) if trial.period else 0.0
    if harm:
        return Verdict(TrialOutcome.STOPPED, harm=harm)
    if rounds < options.most_period_rounds and not all(
        _is_measured(periods.get(trial.period), options) for periods in taking_part.values()
    ):
        return None
    if sum(_has_requests(periods.get(trial.period), options) for periods in taking_part.values()) < 2:
        return Verdict(TrialOutcome.ABANDONED)
    if trial.period < trial.first_of_blocks or (trial.period - trial.first_of_blocks) % 2 == 0:
        return Verdict(None)
    return _after_block(trial, taking_part, options)


def _after_block(trial: Trial, taking_part: Mapping[str, Mapping[int, Figures]], options: TrialOptions) -> Verdict:
    effect = _effect(trial, taking_part, options, _log_mean)
    if effect is not None and effect.estimate > 0 and effect.p_higher <= options.significance:
        return Verdict(TrialOutcome.STOPPED, effect)
    if trial.period < trial.last_period:
        return Verdict(None, effect)
    if effect is None:
        return Verdict(TrialOutcome.ABANDONED)
    if effect.p_lower > options.significance:
        return Verdict(TrialOutcome.REJECTED, effect)
    # A better mean must not cost those who wait longest.
    tail = _effect(trial, taking_part, options, _log_p99)
    worse = tail is not None and tail.estimate > 0 and tail.p_higher <= options.significance
    return Verdict(TrialOutcome.REJECTED if worse else TrialOutcome.ADOPTED, effect)


def _effect(
    trial: Trial,
    taking_part: Mapping[str, Mapping[int, Figures]],
    options: TrialOptions,
    value: Callable[[Figures], float],
) -> Effect | None:
    """Return the effect on a value, by the blocks that are over.

    Instances that lack a period of a block do not count in it.
    """
    blocks = []
    for block in range(trial.blocks_over):
        one = trial.first_of_blocks + 2 * block
        other = one + 1
        first = trial.treated(one)
        measured = {
            instance: (value(periods[one]), value(periods[other]))
            for instance, periods in taking_part.items()
            if _has_requests(periods.get(one), options) and _has_requests(periods.get(other), options)
        }
        blocks.append(
            Block(
                {instance: values for instance, values in measured.items() if instance in first},
                {instance: values for instance, values in measured.items() if instance not in first},
            )
        )
    return effect_of(blocks, trial.id)


def _harm(trial: Trial, taking_part: Mapping[str, Mapping[int, Figures]], options: TrialOptions) -> float:
    """Return by how much the instances with the new value are clearly worse; 0 if they are not."""
    enough = options.period_requests * _LOOK_SHARE
    seen = {
        instance: (periods[0], periods[trial.period])
        for instance, periods in taking_part.items()
        if 0 in periods and trial.period in periods and min(_all(periods[0]), _all(periods[trial.period])) >= enough
    }
    treated = trial.treated(trial.period)
    new = [now.failed_share - before.failed_share for name, (before, now) in seen.items() if name in treated]
    old = [now.failed_share - before.failed_share for name, (before, now) in seen.items() if name not in treated]
    if new and old and (more_failed := fmean(new) - fmean(old)) > _MORE_FAILED:
        return more_failed
    answered = {name: both for name, both in seen.items() if min(it.requests and it.mean_ns for it in both) > 0}
    compared = difference_of_changes(
        {name: _log_mean(before) for name, (before, _) in answered.items()},
        {name: _log_mean(now) for name, (_, now) in answered.items()},
        treated,
    )
    if compared is None:
        return 0.0
    difference, chance = compared
    if not all(_is_measured(now, options) for _, now in answered.values()):
        chance = max(chance, _MUCH_WORSE)
    return math.expm1(min(difference, 100.0)) if difference > chance else 0.0


def _is_measured(figures: Figures | None, options: TrialOptions) -> bool:
    return figures is not None and figures.rounds >= options.period_rounds and _has_requests(figures, options)


def _has_requests(figures: Figures | None, options: TrialOptions) -> bool:
    return figures is not None and figures.requests >= options.period_requests and figures.mean_ns > 0


def _all(figures: Figures) -> int:
    return figures.requests + figures.failed


def _log_mean(figures: Figures) -> float:
    return math.log(figures.mean_ns)


def _log_p99(figures: Figures) -> float:
    return math.log(max(figures.p99_ns, 1.0))
