"""The documents of coordinated tuning: what the fleet has agreed on, and what each instance has measured.

A fleet shares one `Agreement`. Each instance publishes a `Standing` with its report. Both come from a server to which
others can write, so that everything is checked when it is read.
"""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from acgsperf.fleet.effects import treated_first

__all__ = [
    "FORMAT",
    "Agreement",
    "Figures",
    "Finished",
    "NewerFormatError",
    "Pause",
    "Standing",
    "Trial",
    "TrialOutcome",
    "decode_agreement",
    "decode_standing",
    "encoded",
]

# It changes when older versions of the package would misunderstand an agreement.
FORMAT: Final = 1
MOST_INSTANCES: Final = 64
MOST_BLOCKS: Final = 16
MOST_SETTINGS: Final = 100
MOST_FINISHED: Final = 20
# With this many instances or more, one of them tries a new value first.
_FEWEST_FOR_ONE: Final = 4
_LARGEST_AGREEMENT: Final = 64 << 10
_LARGEST_STANDING: Final = 8 << 10
_LONGEST_TEXT: Final = 200
_MOST: Final = 2**53


class NewerFormatError(ValueError):
    """An agreement of another version of the package, which this version cannot read."""


class TrialOutcome(StrEnum):
    """How a trial ended."""

    ADOPTED = "adopted"
    """The new value is better. All instances use it from now on."""
    REJECTED = "rejected"
    """The new value is not better than the old one, or the difference may be chance. All use the old one."""
    STOPPED = "stopped"
    """The instances with the new value were clearly worse, so the trial ended early. All use the old one."""
    ABANDONED = "abandoned"
    """The trial could not be finished: its coordinator or too many instances stopped. All use the old one."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison of two values of a setting.

    Period 0 is before the trial: all use the old value. In period 1, a single instance tries the new one. If there are
    less than four instances, this period is left out, because one instance is a large part of them. Then come two
    periods for each block.

    Attributes:
        id: random; it decides which instances use the new value in which period.
        setting: its name.
        before: the old value.
        value: the new value.
        instances: those that take part, sorted.
        blocks: how many blocks it has.
        since: the round of the agreement in which it began.
        period: the current period.
        period_since: the round of the agreement in which the period began.
    """

    id: str
    setting: str
    before: float
    value: float
    instances: tuple[str, ...]
    blocks: int
    since: int = 0
    period: int = 0
    period_since: int = 0

    @property
    def first_of_blocks(self) -> int:
        """The number of the first period of the first block."""
        return 2 if len(self.instances) >= _FEWEST_FOR_ONE else 1

    @property
    def last_period(self) -> int:
        """The number of the last period."""
        return self.first_of_blocks + 2 * self.blocks - 1

    @property
    def blocks_over(self) -> int:
        """How many blocks are over at the end of the current period."""
        return max(0, self.period + 1 - self.first_of_blocks) // 2

    def treated(self, period: int) -> frozenset[str]:
        """Return the instances that use the new value in a period."""
        if period == 0:
            return frozenset()
        if period < self.first_of_blocks:
            return frozenset({min(treated_first(self.instances, self.id, 0))})
        block, half = divmod(period - self.first_of_blocks, 2)
        first = treated_first(self.instances, self.id, block)
        return frozenset(self.instances) - first if half else first

    @property
    def is_valid(self) -> bool:
        """Whether this package can have made it."""
        return (
            math.isfinite(self.before)
            and math.isfinite(self.value)
            and 2 <= len(self.instances) <= MOST_INSTANCES
            and len(set(self.instances)) == len(self.instances)
            and 1 <= self.blocks <= MOST_BLOCKS
            and 0 <= self.period <= self.last_period
            and 0 <= self.since <= self.period_since <= _MOST
            and _are_texts((self.id, self.setting, *self.instances))
        )


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that ended.

    Attributes:
        id, setting, before, value: of the trial.
        outcome: how it ended.
        change: the change of the mean latency by the new value, -0.1 for 10 % less; None if it was not measured.
        p: the probability of such a change if the new value had no effect; None if it was not measured.
        instances: how many took part.
    """

    id: str
    setting: str
    before: float
    value: float
    outcome: TrialOutcome
    change: float | None
    p: float | None
    instances: int

    @property
    def is_valid(self) -> bool:
        """Whether this package can have made it."""
        numbers = (self.before, self.value, self.change or 0.0, self.p or 0.0)
        return all(map(math.isfinite, numbers)) and _are_texts((self.id, self.setting))


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """When a setting is tried again.

    Attributes:
        direction: 1 if a higher value comes next, -1 for a lower one.
        length: the rounds of the last pause.
        remaining: the rounds until the next trial.
    """

    direction: int = 1
    length: int = 0
    remaining: int = 0

    @property
    def is_valid(self) -> bool:
        """Whether this package can have made it."""
        return self.direction in {-1, 1} and 0 <= self.length <= _MOST and 0 <= self.remaining <= _MOST


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What the instances of a fleet have agreed on.

    Attributes:
        coordinator: the instance that starts, advances and ends trials. It writes the agreement in every round. If it
            does not, another one takes over.
        round: counts what coordinators have written.
        revision: how often a value was adopted.
        settings: the adopted values, by setting.
        trial: the current trial; None if there is none.
        rest: the rounds until the next trial of any setting.
        pauses: when each setting is tried again.
        finished: the last trials, the oldest first.
        format: of the agreement.
    """

    coordinator: str = ""
    round: int = 0
    revision: int = 0
    settings: dict[str, float] = {}
    trial: Trial | None = None
    rest: int = 0
    pauses: dict[str, Pause] = {}
    finished: tuple[Finished, ...] = ()
    format: int = FORMAT

    @property
    def is_valid(self) -> bool:
        """Whether this package can have made it."""
        return (
            all(0 <= number <= _MOST for number in (self.round, self.revision, self.rest))
            and len(self.settings) <= MOST_SETTINGS
            and len(self.pauses) <= MOST_SETTINGS
            and len(self.finished) <= MOST_FINISHED
            and all(map(math.isfinite, self.settings.values()))
            and _are_texts((self.coordinator, *self.settings, *self.pauses))
            and (self.trial is None or self.trial.is_valid)
            and all(pause.is_valid for pause in self.pauses.values())
            and all(finished.is_valid for finished in self.finished)
        )


class Figures(msgspec.Struct, frozen=True, array_like=True):
    """What an instance measured in one period of a trial.

    Attributes:
        requests: those that were answered.
        failed: those that ended in an error.
        mean_ns: the mean latency of the answered ones.
        p99_ns: the P99 of their latency.
        rounds: how many rounds were measured.
    """

    requests: int
    failed: int
    mean_ns: float
    p99_ns: float
    rounds: int

    @property
    def is_valid(self) -> bool:
        """Whether an instance can have measured it."""
        counts = all(0 <= count <= _MOST for count in (self.requests, self.failed, self.rounds))
        return counts and all(0 <= value <= _MOST for value in (self.mean_ns, self.p99_ns))

    @property
    def failed_share(self) -> float:
        """The share of requests that ended in an error."""
        return self.failed / max(1, self.requests + self.failed)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance tells the coordinator.

    Attributes:
        settings: the value of each setting that may be tuned in this instance.
        trial: the trial in which it takes part; empty for none.
        periods: what it measured, by the period of the trial.
    """

    settings: dict[str, float] = {}
    trial: str = ""
    periods: dict[int, Figures] = {}

    @property
    def is_valid(self) -> bool:
        """Whether an instance can have written it."""
        return (
            len(self.settings) <= MOST_SETTINGS
            and all(map(math.isfinite, self.settings.values()))
            and all(0 <= period <= 2 * MOST_BLOCKS + 1 and it.is_valid for period, it in self.periods.items())
            and _are_texts((self.trial, *self.settings))
        )


class _Format(msgspec.Struct):
    format: int


encoded: Final = msgspec.msgpack.Encoder().encode
_decode_agreement: Final = msgspec.msgpack.Decoder(Agreement).decode
_decode_format: Final = msgspec.msgpack.Decoder(_Format).decode
_decode_standing: Final = msgspec.msgpack.Decoder(Standing).decode


def decode_agreement(blob: bytes) -> Agreement:
    """Return the agreement in some bytes; an empty one for no bytes.

    Raises:
        NewerFormatError: if another version of the package wrote it. It must not be replaced.
        ValueError: if it is not an agreement, too large, or not valid.
    """
    if not blob:
        return Agreement()
    if len(blob) > _LARGEST_AGREEMENT:
        raise ValueError(f"an agreement must have at most {_LARGEST_AGREEMENT} bytes, got {len(blob)}")
    # A hostile document may be nested.
    try:
        found = _decode_format(blob).format
        if found != FORMAT:
            raise NewerFormatError(f"format of an agreement must be {FORMAT}, got {found}")
        agreement = _decode_agreement(blob)
    except RecursionError as error:
        raise ValueError(f"not an agreement: {error}") from None
    if not agreement.is_valid:
        raise ValueError("not an agreement: it has impossible values")
    return agreement


def decode_standing(blob: bytes) -> Standing | None:
    """Return the standing in some bytes; None if there is none that can be used."""
    if not 0 < len(blob) <= _LARGEST_STANDING:
        return None
    try:
        standing = _decode_standing(blob)
    except (ValueError, RecursionError):
        return None
    return standing if standing.is_valid else None


def _are_texts(texts: Iterable[str]) -> bool:
    return all(len(text) <= _LONGEST_TEXT and text.isprintable() for text in texts)
