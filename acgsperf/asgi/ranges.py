"""Byte ranges of a stored response (RFC 9110, 14)."""

import re
from typing import Final

__all__ = ["UNSATISFIABLE", "part_of"]

UNSATISFIABLE: Final = slice(0, 0)
# Longer numbers are beyond the end of every stored body.
_ONE_RANGE: Final = re.compile(rb"bytes=[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.IGNORECASE)


def part_of(wanted: bytes, length: int) -> slice | None:
    """Return the part of a body that `Range` asks for.

    Returns:
        The part; UNSATISFIABLE if the body has no such part; None if the whole body is to be sent, because the unit or
        the syntax is not known, or because several ranges are wanted.
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
