"""What the core, in both implementations, and what is built on it ask of arguments: one check, one message for each."""

import math
import re
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import index
from typing import Any, Final, SupportsFloat, SupportsIndex, TypeVar, cast

from acgsperf._native.types import HASH_LENGTH, MAX_ENTRIES

LONGEST_NS: Final = 2**62
MOST_HASHES: Final = 16
MOST_CORRECTIONS: Final = 10_000_000
HEXADECIMAL: Final = re.compile(rf"[0-9a-f]{{{HASH_LENGTH}}}")

_CallbackT = TypeVar("_CallbackT", bound=Callable[..., object] | None)


def checked_int(name: str, value: SupportsIndex) -> int:
    """An integer; a bool is none."""
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an integer, not {value!r}")


def checked_bool(name: str, value: bool) -> bool:
    """True or False; 0 and 1 are none."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {value!r}")
    return value


def checked_at_least(name: str, value: SupportsIndex, least: int) -> int:
    """An integer that is not too small."""
    number = checked_int(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return number


def checked_callable(name: str, value: _CallbackT) -> _CallbackT:
    """A callable, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, not {value!r}")
    return value


def checked_str(name: str, value: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}")
    return value


def checked_namespace(name: str, value: str) -> str:
    """Whose keys in a shared server are meant."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not of type {type(value).__name__}")
    if not (0 < len(value) <= 100 and value.isprintable()):
        raise ValueError(f"{name} must be 1 to 100 printable characters, not {value!r:.120}")
    return value


def _checked_real(rule: str, value: SupportsFloat) -> float:
    """A real number; beyond what a float holds it is infinite."""
    if isinstance(value, bool | str | bytes | bytearray) or not hasattr(value, "__float__"):
        raise TypeError(f"{rule}, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if cast("int", value) > 0 else -math.inf


def checked_seconds(name: str, value: SupportsFloat, *, zero: bool = False) -> float:
    """A positive number of seconds, or with `zero` one that may be 0 as well."""
    what = "a number of seconds that is at least 0" if zero else "a positive number of seconds"
    seconds = _checked_real(f"{name} must be {what}", value)
    if not (seconds > 0 or (zero and seconds == 0)):
        raise ValueError(f"{name} must be {what}, not {value!r}")
    return seconds


def checked_positive(name: str, value: SupportsFloat) -> float:
    """A positive number that is not infinite."""
    number = _checked_real(f"{name} must be a positive number", value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value!r}")
    return number


def checked_share(name: str, value: SupportsFloat) -> float:
    """A number above 0 and up to 1."""
    share = _checked_real(f"{name} must be a number above 0 and up to 1", value)
    if not 0 < share <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, not {value!r}")
    return share


def _checked_hash(item: object, name: str) -> str:
    """16 digits of 0-9a-f, without what a subclass of str adds to them."""
    if not isinstance(item, str):
        raise TypeError(f"{name} must be a str or an iterable of str, not {item!r}")
    if not HEXADECIMAL.fullmatch(item):
        raise ValueError(f"{name} must be {HASH_LENGTH} lower-case hexadecimal digits, not {item!r}")
    return str.__str__(item)


def checked_hashes(expected: str | Iterable[str], name: str = "expected") -> tuple[str, ...]:
    """1 to 16 different hashes."""
    items: Any = (expected,) if isinstance(expected, str | bytes) else expected
    try:
        items = dict.fromkeys(items)
    except TypeError:
        raise TypeError(f"{name} must be a str or an iterable of str, not {expected!r}") from None
    hashes = tuple(map(_checked_hash, items, repeat(name)))
    if not 1 <= len(hashes) <= MOST_HASHES:
        raise ValueError(f"{name} must be 1 to {MOST_HASHES} hashes, not {len(hashes)}")
    return hashes


def checked_maxsize(maxsize: SupportsIndex, name: str = "maxsize") -> int:
    """A number of entries."""
    size = checked_int(name, maxsize)
    if not 1 <= size <= MAX_ENTRIES:
        raise ValueError(f"{name} must be between 1 and {MAX_ENTRIES}, not {size!r}")
    return size


def checked_ttl_ns(ttl: SupportsFloat | None) -> int | None:
    """Seconds as whole nanoseconds; None for never."""
    if ttl is None:
        return None
    seconds = _checked_real("ttl must be a positive number of seconds or None", ttl)
    if not seconds > 0:
        raise ValueError(f"ttl must be a positive number of seconds or None, not {ttl!r}")
    if seconds * 1e9 >= LONGEST_NS:
        return None
    return max(1, round(seconds * 1e9))


def checked_interval_ns(latency_ns: int, expected_interval_ns: SupportsIndex) -> int:
    """An interval by which a latency can be corrected."""
    interval = checked_int("expected_interval_ns", expected_interval_ns)
    if interval <= 0:
        raise ValueError(f"expected_interval_ns must be positive, not {interval!r}")
    if latency_ns // interval > MOST_CORRECTIONS:
        raise ValueError(f"expected_interval_ns must ask for at most {MOST_CORRECTIONS} corrections, not {interval!r}")
    # Longer than any latency is as good as the longest, and fits a machine word.
    return min(interval, LONGEST_NS)


def checked_percent(q: SupportsFloat) -> float:
    """A number between 0 and 100."""
    percent = _checked_real("percentile must be a number between 0 and 100", q)
    if not 0 <= percent <= 100:
        raise ValueError(f"percentile must be between 0 and 100, not {q!r}")
    return percent
