"""Byte ranges of a stored response, and stored parts of one (RFC 9110, 14; RFC 9111, 3.3)."""

import re
from typing import Final, NamedTuple

__all__ = ["UNSATISFIABLE", "Part", "part_in", "part_of"]

UNSATISFIABLE: Final = slice(0, 0)
# Longer numbers are beyond the end of every stored body.
_ONE_RANGE: Final = re.compile(rb"bytes=[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.IGNORECASE)
# A longer `Range` is not remembered.
_MAX_ASKED: Final = 100
_CONTENT_RANGE: Final = re.compile(rb"bytes[ \t]+(\d{1,15})-(\d{1,15})/(\d{1,15})", re.IGNORECASE)


class Part(NamedTuple):
    """The part of a whole body that a 206 contains.

    Attributes:
        first: the position of its first byte.
        length: the length of the whole.
        asked: the `Range` of its request; empty if it is long.
    """

    first: int
    length: int
    asked: bytes

    def covers(self, wanted: bytes, available: int) -> slice | None:
        """Return which bytes of its body `Range` asks for; None if some of them are not in its body.

        Args:
            wanted: the value of `Range`.
            available: the length of its body.
        """
        if wanted == self.asked:
            return slice(0, available)
        part = part_of(wanted, self.length)
        if part is None or part is UNSATISFIABLE or part.start < self.first or part.stop > self.first + available:
            return None
        return slice(part.start - self.first, part.stop - self.first)


def part_in(content_range: bytes | None, asked: bytes) -> Part | None:
    """Return the part that a 206 contains; None if it has several, or if the length of the whole is not known."""
    found = None if content_range is None else _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None or int(found[1]) > int(found[2]) or int(found[2]) >= int(found[3]):
        return None
    return Part(int(found[1]), int(found[3]), asked if len(asked) <= _MAX_ASKED else b"")


def part_of(wanted: bytes, length: int) -> slice | None:
    """Return the part of a body that `Range` asks for.

    Returns:
        The part; UNSATISFIABLE if the body has no such part; None if the whole body is sent instead, because the unit
        or the syntax is not known, or because `Range` has several ranges.
    """
    found = _ONE_RANGE.fullmatch(wanted)
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        count = min(int(suffix), length)
        return slice(length - count, length) if count else UNSATISFIABLE
    start = int(first)
    end = int(last) if last else length - 1
    if last and end < start:
        return None
    return slice(start, min(end + 1, length)) if start < length else UNSATISFIABLE
