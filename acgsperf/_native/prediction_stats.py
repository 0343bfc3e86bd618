"""What prediction has done: the values that `stats` returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

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
