"""The power of two choices: the better of two random candidates is nearly as good as the best of all.

Callers that choose at the same time do not all choose the same one, even if what they know is old (Mitzenmacher, "The
power of two choices in randomized load balancing", 2001).
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["two_of"]

_T = TypeVar("_T")


def two_of(among: Sequence[_T], uniform: Callable[[], float] = random.random) -> tuple[_T, _T]:
    """Return two different random candidates.

    Args:
        among: at least two candidates.
        uniform: returns a random number, 0 or more and less than 1.
    """
    # `random.sample` takes several times as long.
    position, offset = int(uniform() * len(among)), int(uniform() * (len(among) - 1))
    return among[position], among[position - 1 - offset]
