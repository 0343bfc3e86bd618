"""`HashValidator` in pure Python. It behaves as the class of `_core`, which documents it; the two change together."""

from collections.abc import Callable, Iterable
from typing import Self

from acgsperf._native.arguments import HEXADECIMAL, checked_callable, checked_hashes
from acgsperf._native.atomic import FinalType, atomic
from acgsperf._native.stats import ValidatorStats
from acgsperf._native.types import CONSTITUTIONAL_HASH, Verdict
from acgsperf._native.unraisable import report_unraisable


class HashValidator(FinalType):
    """Checks whether a value is one of the accepted constitutional hashes."""

    __slots__ = ("__weakref__", "_accepted", "_expected", "_malformed", "_mismatched", "_on_reject", "_valid")

    _accepted: frozenset[str]
    _expected: tuple[str, ...]
    _malformed: int
    _mismatched: int
    _on_reject: Callable[[object], object] | None
    _valid: int

    # Not __init__: calling that a second time must not change the object.
    def __new__(
        cls,
        expected: str | Iterable[str] = CONSTITUTIONAL_HASH,
        *,
        on_reject: Callable[[object], object] | None = None,
    ) -> Self:
        self = super().__new__(cls)
        self._expected = checked_hashes(expected)
        self._on_reject = checked_callable("on_reject", on_reject)
        self._accepted = frozenset(self._expected)
        self._valid = self._mismatched = self._malformed = 0
        return self

    @property
    def expected(self) -> tuple[str, ...]:
        """The accepted hashes."""
        return self._expected

    def _verdict(self, value: object) -> Verdict:
        # A subclass of str may lie in __eq__ and __hash__; its characters do not.
        text = str.__str__(value) if isinstance(value, str) else ""
        if text in self._accepted:
            return Verdict.VALID
        return Verdict.MISMATCH if HEXADECIMAL.fullmatch(text) else Verdict.MALFORMED

    @atomic
    def _count(self, valid: int, mismatched: int, malformed: int) -> None:
        self._valid += valid
        self._mismatched += mismatched
        self._malformed += malformed

    def _examine(self, value: object) -> Verdict:
        verdict = self._verdict(value)
        self._count(verdict == 1, verdict == 0, verdict == -1)
        return verdict

    def _reject(self, value: object) -> None:
        if self._on_reject is not None:
            try:
                self._on_reject(value)
            except BaseException as error:
                report_unraisable(error, self._on_reject)

    def classify(self, value: object, /) -> Verdict:
        """Return VALID, MISMATCH (a hash, but not an accepted one) or MALFORMED (not a hash at all)."""
        verdict = self._examine(value)
        if not verdict:
            self._reject(value)
        return verdict

    def validate(self, value: object, /) -> bool:
        """Return True for an accepted hash, False for anything else of any type."""
        return self.classify(value) is Verdict.VALID

    def validate_many(self, values: Iterable[object], /) -> list[bool]:
        """Validate each item of an iterable."""
        if type(values) not in (list, tuple):
            return [self.validate(value) for value in values]
        items = tuple(values)
        verdicts = [self._verdict(item) for item in items]
        self._count(*map(verdicts.count, (Verdict.VALID, Verdict.MISMATCH, Verdict.MALFORMED)))
        for item, verdict in zip(items, verdicts, strict=True):
            if not verdict:
                self._reject(item)
        return [verdict is Verdict.VALID for verdict in verdicts]

    @atomic
    def _counters(self) -> tuple[int, int, int]:
        return self._valid, self._mismatched, self._malformed

    def stats(self) -> ValidatorStats:
        """Return the counters since creation or `reset_stats`."""
        return ValidatorStats(*self._counters())

    @atomic
    def reset_stats(self) -> None:
        """Set the counters to zero."""
        self._valid = 0
        self._mismatched = 0
        self._malformed = 0

    def __repr__(self) -> str:
        return f"<HashValidator expected={self.expected!r}>"
