"""Constants, checks and statistics that both implementations of the predictor share."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Final, Literal

# The share of a cache that predicted values take at most.
SHARE: Final = 0.05
# How long a prediction may come true: so many requests for each value that the buffer holds.
LIVES: Final = 4
# A class is judged from so many resolved predictions on. At the higher number, both counts are halved.
LEAST_RESOLVED: Final = 16
MOST_RESOLVED: Final = 64
# The precision from which a class is active, and below which it is not.
ON: Final = 0.6
OFF: Final = 0.5
# How much more is needed from the third prediction on.
DEEPER: Final = 0.1
# The share of values that must arrive in time, or else only one in RETRY is fetched, to measure again.
IN_TIME: Final = 0.5
RETRY: Final = 32
# The most useless fetches as a share of the requests. From so many requests on, both counts are halved.
WASTE: Final = 0.05
WINDOW: Final = 2**17
# `reserved` grows in so many steps or more, and by at most so many entries at once: evicting them delays a request.
STEPS: Final = 4
LONGEST_STEP: Final = 64

BANDS: Final = ("1", "2", "3-4", "5-8")
_KINDS: Final[tuple[tuple[int, "Support"], ...]] = ((1, "alone"), (1, "contradicted"), (2, "alone"), (2, "confirmed"))

Support = Literal["alone", "confirmed", "contradicted"]


@dataclass(frozen=True, slots=True)
class PredictionClass:
    """How good the predictions of one class are.

    Attributes:
        order: how many keys the prediction is made from: the last two, or the last one.
        support: what the other order predicts: nothing, the same key, or another one.
        confident: whether the key has followed these keys more than once.
        depth: how many requests ahead: `1`, `2`, `3-4` or `5-8`.
        resolved: the latest predictions that are known to be right or wrong, at most 64.
        precision: the share of them that were right.
        active: whether keys are fetched for these predictions.
    """

    order: int
    support: Support
    confident: bool
    depth: str
    resolved: int
    precision: float
    active: bool

    @property
    def name(self) -> str:
        """All attributes that define the class, in words."""
        seen = "seen often" if self.confident else "seen once"
        return f"order {self.order} {self.support}, {seen}, depth {self.depth}"


@dataclass(frozen=True, slots=True)
class PredictionStats:
    """What prediction has done so far.

    Attributes:
        issued: the keys that were fetched because they were predicted.
        used: the values that answered a request.
        wasted: the fetches that brought nothing, or a value that was not requested in time or could not be used.
        late: the keys that were requested before their value had arrived.
        held: the values that wait to be requested, or to arrive.
        classes: the classes of predictions of which at least one is known to be right or wrong.
        loaded: the predicted keys that no tier had, and that a loader was called for.
    """

    issued: int
    used: int
    wasted: int
    late: int
    held: int
    classes: tuple[PredictionClass, ...]
    loaded: int = 0

    @property
    def active_classes(self) -> int:
        """The number of classes for which keys are fetched now."""
        return sum(found.active for found in self.classes)

    @property
    def active(self) -> bool:
        """Whether keys are fetched now, for at least one class."""
        return self.active_classes > 0

    @property
    def precision(self) -> float:
        """The share of the fetches that were used; 0.0 if none is known."""
        known = self.used + self.wasted + self.late
        return self.used / known if known else 0.0


def predictor_stats(
    issued: int, used: int, wasted: int, late: int, held: int, classes: Sequence[tuple[int, int, bool]]
) -> PredictionStats:
    """Return the statistics of a predictor.

    Args:
        issued, used, wasted, late, held: as in `PredictionStats`.
        classes: for each class the resolved predictions, how many of them were right, and whether it is active.
    """
    found = []
    for number, (resolved, right, active) in enumerate(classes):
        if resolved:
            kind, confident, band = number // 8, bool(number & 4), number & 3
            found.append(PredictionClass(*_KINDS[kind], confident, BANDS[band], resolved, right / resolved, active))
    return PredictionStats(issued, used, wasted, late, held, tuple(found))


def _checked(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = index(value)
    if not least <= number <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {number}")
    return number


def checked_share(share: object) -> float:
    """Return the share of a cache that predicted values take at most."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"share must be a number, got {share!r}")
    if not 0 < share <= 0.5:
        raise ValueError(f"share must be greater than 0 and at most 0.5, got {share!r}")
    return share


def checked_buffer(size: object) -> int:
    """Return the number of values to hold."""
    return _checked("size", size, 1, 2**24)


# How many requests ahead may be predicted.
MOST_DEPTH: Final = 8


def checked_depth(depth: object) -> int:
    """Return how many requests to predict ahead."""
    return _checked("depth", depth, 1, MOST_DEPTH)


def checked_table_size(table_size: object) -> int:
    """Return the number of contexts of a table."""
    return _checked("table_size", table_size, 64, 2**24)
