"""The statistics of a trial: who gets the new value when, how large its effect is, and whether it is chance.

A trial is a switchback experiment. It has several blocks of two periods each. In the first period of a block, half of
the instances use the new value; in the second period the other half does. So each block compares

- instances with others at the same time: what changes for all of them, such as the load, cancels out, and
- each instance with itself: what differs between instances, such as their machines, cancels out.

This is a difference in differences. One number per instance and period enters it, for example the logarithm of the mean
latency, because the requests of an instance are not independent of each other: they share a cache, a machine and
neighbors. A test that treats requests as independent would report effects that are chance.

The significance comes from a randomization test (Fisher, "The Design of Experiments", 1935; for switchback experiments:
Bojinov, Simchi-Levi and Zhao, "Design and Analysis of Switchback Experiments", Management Science 69(7), 2023). A hash
of a random number decides who comes first in each block. If the new value had no effect, each other decision would have
led to the same measurements. The p-value is the share of the decisions with an effect at least as large as the measured
one. It is right for any distribution of the latency, for any correlation over time, and for two instances as well as
for many.
"""

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean
from typing import Final

from xxhash import xxh3_64_intdigest

__all__ = ["Block", "Effect", "blocks_needed", "difference_of_changes", "effect_of", "treated_first"]

# Up to this many decisions are all looked at. Of more, a random sample is.
_MOST_DECISIONS: Final = 1_300
_DRAWS: Final = 999
_FEWEST_DRAWS: Final = 199
# The work of one test, in numbers that are added up: some tens of milliseconds.
_MOST_ADDITIONS: Final = 200_000

# During a trial: worse by so much (as a logarithm), with the t-value of a one-sided error of 1 % for so many degrees of
# freedom or more.
_WORSE: Final = math.log(1.1)
_T: Final = ((1, 31.82), (2, 6.96), (3, 4.54), (4, 3.75), (5, 3.36), (6, 3.14), (8, 2.90), (12, 2.68), (20, 2.53))
# Without two instances on any side, nothing is known about chance.
_WORSE_WITHOUT_ERROR: Final = math.log(1.5)


@dataclass(frozen=True, slots=True)
class Block:
    """Two periods of a trial.

    Attributes:
        first: for each instance that used the new value in the first period, its measurements in both periods.
        second: the same for the instances that used the new value in the second period.
    """

    first: Mapping[str, tuple[float, float]]
    second: Mapping[str, tuple[float, float]]

    @property
    def is_complete(self) -> bool:
        """Whether there is something to compare."""
        return bool(self.first and self.second)


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a new value.

    Attributes:
        estimate: the mean change of the measurement by the new value. For logarithms, -0.1 is a decrease of about 10 %.
        p_lower: the probability of an estimate that is this low or lower, if the new value had no effect.
        p_higher: the probability of an estimate that is this high or higher, if the new value had no effect.
        blocks: how many blocks it is from.
    """

    estimate: float
    p_lower: float
    p_higher: float
    blocks: int


def treated_first(instances: Collection[str], trial: str, block: int) -> frozenset[str]:
    """Return the instances that use the new value in the first period of a block; the others use it in the second.

    Both groups have the same size. If the number of instances is odd, they differ by one.

    Args:
        instances: the instances of the trial.
        trial: its identifier, which is random.
        block: the number of the block.
    """
    ranked = sorted(instances, key=lambda instance: (_hash(f"{trial}/{block}/{instance}"), instance))
    larger_first = _hash(f"{trial}/{block}") & 1
    return frozenset(ranked[: (len(ranked) + larger_first) // 2])


def blocks_needed(instances: int, significance: float) -> int:
    """Return how many blocks make a clear effect significant, at least 4.

    The test can return no p-value below one divided by the number of possible decisions.

    Args:
        instances: how many instances take part, at least 2.
        significance: the p-value below which an effect is significant.
    """
    decisions = math.comb(instances, instances // 2) * (1 + instances % 2)
    # Half of the smallest p-value: otherwise one unlucky block would hide the effect.
    return max(4, math.ceil(math.log(2 / significance) / math.log(decisions)))


def effect_of(blocks: Sequence[Block], seed: str) -> Effect | None:
    """Return the effect of the new value, and how likely it is chance.

    Args:
        blocks: the measurements. Blocks without an instance on one side are ignored.
        seed: makes the random decisions repeatable.

    Returns:
        None if there is no block to compare.
    """
    compared = [_Compared(block) for block in blocks if block.is_complete]
    if not compared:
        return None
    measured = fmean(block.measured for block in compared)
    lower = higher = total = 0
    # Sums in another order differ in the last digits.
    tolerance = 1e-12 + 1e-9 * abs(measured)
    if math.prod(block.decisions for block in compared) <= _MOST_DECISIONS:
        others = (fmean(estimates) for estimates in product(*(tuple(block.all()) for block in compared)))
    else:
        # The measured decision is one of the sample (Phipson and Smyth, "Permutation p-values should never be zero",
        # 2010).
        lower = higher = total = 1
        additions = sum(block.instances for block in compared)
        draws = max(_FEWEST_DRAWS, min(_DRAWS, _MOST_ADDITIONS // additions))
        drawn = random.Random(seed)
        others = (fmean(block.draw(drawn) for block in compared) for _ in range(draws))
    for estimate in others:
        total += 1
        lower += estimate <= measured + tolerance
        higher += estimate >= measured - tolerance
    return Effect(measured, lower / total, higher / total, len(compared))


def difference_of_changes(
    before: Mapping[str, float], now: Mapping[str, float], treated: Collection[str]
) -> tuple[float, float] | None:
    """Return how much more the instances with the new value changed than the others, and how much may be chance.

    A difference above the second number is chance in less than 1 % of all cases (Student's t-test, in which an instance
    is one observation). The second number is at least that of 10 %.

    Args:
        before: the logarithm of the latency of each instance before the trial.
        now: the same now. Instances that are in one of both only are ignored.
        treated: the instances with the new value.

    Returns:
        None if there is no instance on one side.
    """
    changes = {instance: now[instance] - value for instance, value in before.items() if instance in now}
    new = [change for instance, change in changes.items() if instance in treated]
    old = [change for instance, change in changes.items() if instance not in treated]
    if not new or not old:
        return None
    difference = fmean(new) - fmean(old)
    freedom = len(changes) - 2
    if freedom < 1:
        return difference, _WORSE_WITHOUT_ERROR
    squares = sum((change - fmean(side)) ** 2 for side in (new, old) for change in side)
    error = math.sqrt(squares / freedom * (1 / len(new) + 1 / len(old)))
    t = next(value for least, value in reversed(_T) if freedom >= least)
    return difference, max(_WORSE, min(t * error, _WORSE_WITHOUT_ERROR) if freedom < 2 else t * error)


class _Compared:
    """A block, and the estimates of the other decisions that were possible with these instances.

    These are the decisions with groups of the same sizes, also the other way round.
    """

    def __init__(self, block: Block) -> None:
        self._changes = [first - second for first, second in (*block.first.values(), *block.second.values())]
        self._total = sum(self._changes)
        self._sizes = {len(block.first), len(block.second)}
        self._size_list = (len(block.first), len(block.second))
        self.instances: Final = len(self._changes)
        self.decisions: Final = len(self._sizes) * math.comb(self.instances, len(block.first))
        self.measured: Final = self._estimate(sum(self._changes[: len(block.first)]), len(block.first))

    def _estimate(self, first: float, size: int) -> float:
        """Return the effect, if the changes of the group that came first add up to `first`."""
        return (first / size - (self._total - first) / (self.instances - size)) / 2

    def all(self) -> Iterator[float]:
        for size in self._sizes:
            for group in combinations(self._changes, size):
                yield self._estimate(sum(group), size)

    def draw(self, drawn: random.Random) -> float:
        size = drawn.choice(self._size_list)
        return self._estimate(sum(drawn.sample(self._changes, size)), size)


def _hash(text: str) -> int:
    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
