"""The syntax of header fields: lists, directives, dates and numbers. Every function takes linear time."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

__all__ = ["MAX_FIELD_BYTES", "Headers", "directives", "http_date", "joined", "members", "seconds"]

Headers = Sequence[tuple[bytes, bytes]]

# A response with a longer `Cache-Control` or `Vary` is not stored, a request with a longer one bypasses the cache.
MAX_FIELD_BYTES: Final = 8_192
# RFC 9111, 1.2.2.
_MAX_SECONDS: Final = 2**31
# Only the results for short values are remembered, so that clients cannot fill the memory.
_MAX_REMEMBERED_BYTES: Final = 256

# An opening quote without a closing one matches the rest of the text. Otherwise, a text of many such quotes would take
# quadratic time.
_PIECES: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[^",]+|,', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_TIME: Final = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
# RFC 9110, 5.6.7. By RFC 9111, 4.2, the case does not matter, and a zone other than GMT makes a date invalid.
_DATES: Final = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        rf"[a-z]{{3}}, (?P<day>\d\d) (?P<month>[a-z]{{3}}) (?P<year>\d{{4}}) {_TIME} GMT",
        rf"[a-z]{{6,9}}, (?P<day>\d\d)-(?P<month>[a-z]{{3}})-(?P<year>\d\d) {_TIME} GMT",
        rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)


def joined(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """Return the value of a header; several headers are joined by commas."""
    found = [value for name, value in headers if name.lower() == wanted]
    if not found:
        return None
    return found[0] if len(found) == 1 else b", ".join(found)


def members(text: str, *, empty: bool = False) -> list[str]:
    """Return the members of a list, without the white space around them. A comma in quotes does not separate.

    Args:
        text: the list.
        empty: whether empty members count.
    """
    if '"' not in text:
        found = [part.strip(" \t") for part in text.split(",")]
    else:
        found = []
        pieces: list[str] = []
        for piece in [*_PIECES.findall(text), ","]:
            if piece != ",":
                pieces.append(piece)
            else:
                found.append("".join(pieces).strip(" \t"))
                pieces.clear()
    return found if empty else [member for member in found if member]


def directives(value: bytes | None) -> Mapping[str, str | None]:
    """Return the directives of `Cache-Control` and similar fields; of a repeated one, the first.

    White space around `=` is not valid. The value of such a directive is empty, which no directive accepts.
    """
    if value is None:
        return {}
    return _known_directives(value) if len(value) <= _MAX_REMEMBERED_BYTES else _directives(value)


def _directives(value: bytes) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for member in members(value.decode("latin-1")):
        name, equals, argument = member.partition("=")
        bare = name.rstrip(" \t")
        if not equals:
            found.setdefault(bare.lower(), None)
        elif bare != name or argument[:1] in {" ", "\t"}:
            found.setdefault(bare.lower(), "")
        elif len(argument) >= 2 and argument[0] == argument[-1] == '"':
            found.setdefault(bare.lower(), _ESCAPED.sub(r"\1", argument[1:-1]))
        else:
            found.setdefault(bare.lower(), argument)
    return found


_known_directives = lru_cache(maxsize=1_024)(_directives)


def seconds(value: str | None) -> int | None:
    """Return a number of seconds, at most 2**31; None if the value is not a non-negative integer."""
    if value is None or not (value.isascii() and value.isdecimal()):
        return None
    # `int` takes quadratic time.
    return min(int(value), _MAX_SECONDS) if len(value) <= 20 else _huge(value)


def _huge(value: str) -> int:
    digits = value.lstrip("0")
    return min(int(digits or "0"), _MAX_SECONDS) if len(digits) <= 20 else _MAX_SECONDS


def http_date(value: bytes | None) -> float | None:
    """Return the seconds since the epoch of an HTTP date, which is in UTC; None if it is not a valid one."""
    return None if value is None or len(value) > 40 else _http_date(value.strip(b" \t"))


@lru_cache(maxsize=1_024)
def _http_date(value: bytes) -> float | None:
    text = value.decode("latin-1")
    for form in _DATES:
        found = form.fullmatch(text)
        if found is not None:
            break
    else:
        return None
    month = _MONTHS.get(found["month"].lower(), 0)
    year = int(found["year"])
    if len(found["year"]) == 2:
        # RFC 9110, 5.6.7: what seems to be more than 50 years in the future was in the past.
        this_year = time.gmtime().tm_year
        year += this_year // 100 * 100
        year -= 100 * (year > this_year + 50)
    try:
        # A leap second is read as the second before it.
        moment = datetime(
            year, month, int(found["day"]), int(found["hour"]), int(found["minute"]), min(int(found["second"]), 59)
        )
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC).timestamp()
