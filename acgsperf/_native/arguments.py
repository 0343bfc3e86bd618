"""Checks of arguments, shared by both implementations of the core and by what is built on it.

Each check returns the value in the form in which it is used, and raises with the same message everywhere.
"""

import math
import re
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import ge, index
from os import urandom
from typing import Any, Final, SupportsFloat, SupportsIndex, TypeVar, cast

from acgsperf._native.types import HASH_LENGTH, MAX_ENTRIES

LONGEST_NS: Final = 2**62
MAX_WEIGHT: Final = 2**62
# A cache with a `maxweight` keeps no entry that is heavier than this fraction of it.
HEAVIEST_SHARE: Final = 4
# The setting with which each policy starts, as its place in `SETTING_NAMES`; None if the policy has no settings.
POLICIES: Final = {"adaptive": 1, "s3fifo": 3, "lru": None}
MOST_HASHES: Final = 16
MOST_CORRECTIONS: Final = 10_000_000
HEXADECIMAL: Final = re.compile(rf"[0-9a-f]{{{HASH_LENGTH}}}")

_CallbackT = TypeVar("_CallbackT", bound=Callable[..., object] | None)


def checked_int(name: str, value: SupportsIndex) -> int:
    """Accept an integer, but no bool."""
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an integer, got {value!r}")


def checked_bool(name: str, value: bool) -> bool:
    """Accept True or False, but not 0 or 1."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value


def checked_at_least(name: str, value: SupportsIndex, least: int) -> int:
    """Accept an integer that is not less than `least`."""
    number = checked_int(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def checked_callable(name: str, value: _CallbackT) -> _CallbackT:
    """Accept a callable, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {value!r}")
    return value


def checked_str(name: str, value: str) -> str:
    """Accept a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")
    return value


def checked_namespace(name: str, value: str) -> str:
    """Accept a prefix for the keys of one application in a shared server."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    if not (0 < len(value) <= 100 and value.isprintable()):
        raise ValueError(f"{name} must be 1 to 100 printable characters, got {value!r:.120}")
    return value


def _checked_real(name: str, kind: str, value: SupportsFloat) -> float:
    """Accept a real number; one beyond the range of a float becomes infinite."""
    if isinstance(value, bool | str | bytes | bytearray) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if cast("int", value) > 0 else -math.inf


def checked_seconds(name: str, value: SupportsFloat, *, zero: bool = False) -> float:
    """Accept a number of seconds greater than 0, or with `zero` also 0."""
    seconds = _checked_real(name, "a number of seconds", value)
    if not (seconds > 0 or (zero and seconds == 0)):
        raise ValueError(f"{name} must be {'at least' if zero else 'greater than'} 0, got {value!r}")
    return seconds


def checked_positive(name: str, value: SupportsFloat) -> float:
    """Accept a finite number greater than 0."""
    number = _checked_real(name, "a number", value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be {'finite' if number == math.inf else 'greater than 0'}, got {value!r}")
    return number


def checked_share(name: str, value: SupportsFloat) -> float:
    """Accept a number greater than 0 and at most 1."""
    share = _checked_real(name, "a number", value)
    if not 0 < share <= 1:
        raise ValueError(f"{name} must be greater than 0 and at most 1, got {value!r}")
    return share


def _checked_hash(item: object, name: str) -> str:
    """Accept 16 digits of 0-9a-f; return a plain str."""
    if not isinstance(item, str):
        raise TypeError(f"{name} must be a str or an iterable of str, got {item!r}")
    if not HEXADECIMAL.fullmatch(item):
        raise ValueError(f"{name} must be {HASH_LENGTH} lower-case hexadecimal digits, got {item!r}")
    return str.__str__(item)


def checked_hashes(expected: str | Iterable[str], name: str = "expected") -> tuple[str, ...]:
    """Accept 1 to 16 hashes; return each of them once."""
    items: Any = (expected,) if isinstance(expected, str | bytes) else expected
    try:
        items = dict.fromkeys(items)
    except TypeError:
        raise TypeError(f"{name} must be a str or an iterable of str, got {expected!r}") from None
    hashes = tuple(map(_checked_hash, items, repeat(name)))
    if not 1 <= len(hashes) <= MOST_HASHES:
        raise ValueError(f"{name} must be 1 to {MOST_HASHES} hashes, got {len(hashes)}")
    return hashes


def checked_maxsize(maxsize: SupportsIndex, name: str = "maxsize") -> int:
    """Accept a number of entries."""
    size = checked_int(name, maxsize)
    if not 1 <= size <= MAX_ENTRIES:
        raise ValueError(f"{name} must be between 1 and {MAX_ENTRIES}, got {size!r}")
    return size


def checked_weight(weight: SupportsIndex) -> int:
    """Accept the number that a weigher returned."""
    try:
        number = checked_int("weight", weight)
    except TypeError:
        raise TypeError(f"weigher must return an integer, got {weight!r}") from None
    if not 1 <= number <= MAX_WEIGHT:
        raise ValueError(f"weigher must return an integer from 1 to 2**62, got {weight!r}")
    return number


def checked_limits(maxsize: SupportsIndex | None, maxweight: SupportsIndex | None, weigher: object) -> tuple[int, int]:
    """Accept the limits of a cache, at least one of them; return 0 for None."""
    if maxsize is None and maxweight is None:
        raise TypeError("maxsize must be an integer, got None; it can be left out if maxweight is given")
    size = 0 if maxsize is None else checked_maxsize(maxsize)
    weight = 0
    if maxweight is not None:
        weight = checked_int("maxweight", maxweight)
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"maxweight must be between 1 and {MAX_WEIGHT}, got {maxweight!r}")
        if weigher is None:
            raise TypeError("maxweight needs a weigher")
    return size, weight


def checked_bounds(
    maxsize: SupportsIndex | None, maxweight: SupportsIndex | None, weigher: Callable[..., object] | None
) -> tuple[int, int]:
    """Accept the bounds of a new cache. Without a `maxsize`, return the largest one."""
    checked_callable("weigher", weigher)
    size, weight = checked_limits(maxsize, maxweight, weigher)
    return size or MAX_ENTRIES, weight


def checked_policy(policy: str, name: str = "policy") -> int | None:
    """Accept the name of a policy; return the setting with which it starts, None for one without settings."""
    if checked_str(name, policy) not in POLICIES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
    return POLICIES[policy]


def checked_seed(seed: SupportsIndex | None) -> int:
    """Accept an integer; return 64 bits of it, or random ones for None."""
    if seed is None:
        return int.from_bytes(urandom(8), "little")
    # SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), so that seeds that follow each other choose unrelated samples.
    mixed = (checked_int("seed", seed) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & (2**64 - 1)
    return mixed ^ mixed >> 31


def checked_ttl_ns(ttl: SupportsFloat | None) -> int | None:
    """Accept seconds; return whole nanoseconds, None for never."""
    if ttl is None:
        return None
    seconds = _checked_real("ttl", "a number of seconds or None", ttl)
    if not seconds > 0:
        raise ValueError(f"ttl must be greater than 0, got {ttl!r}")
    if seconds * 1e9 >= LONGEST_NS:
        return None
    return max(1, round(seconds * 1e9))


def checked_time_ns(name: str, value: SupportsFloat | None) -> int | None:
    """Accept a time of a clock in seconds; return whole nanoseconds, None for never."""
    if value is None:
        return None
    seconds = _checked_real(name, "a number of seconds or None", value)
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a time, got {value!r}")
    if seconds * 1e9 >= LONGEST_NS:
        return None
    return round(max(seconds * 1e9, -LONGEST_NS))


def checked_interval_ns(latency_ns: int, expected_interval_ns: SupportsIndex) -> int:
    """Accept an interval by which a latency can be corrected."""
    interval = checked_int("expected_interval_ns", expected_interval_ns)
    if interval <= 0:
        raise ValueError(f"expected_interval_ns must be greater than 0, got {interval!r}")
    if latency_ns // interval > MOST_CORRECTIONS:
        raise ValueError(f"expected_interval_ns must lead to at most {MOST_CORRECTIONS} corrections, got {interval!r}")
    # An interval longer than any latency has the effect of the longest latency, which fits a machine word.
    return min(interval, LONGEST_NS)


def checked_bounds_ns(bounds_ns: Iterable[SupportsIndex]) -> list[int]:
    """Accept ascending integers. Return bounds of at most `LONGEST_NS`, because no latency is longer."""
    given = list(bounds_ns)
    try:
        bounds = list(map(index, given))
    except TypeError:
        raise TypeError(f"bounds_ns must be integers, got {given!r}") from None
    if any(map(ge, bounds, bounds[1:])):
        raise ValueError(f"bounds_ns must be ascending, got {bounds!r}")
    if bounds and (bounds[0] < 0 or bounds[-1] > LONGEST_NS):
        return [max(min(bound, LONGEST_NS), -1) for bound in bounds]
    return bounds


def checked_percent(q: SupportsFloat) -> float:
    """Accept a number between 0 and 100."""
    percent = _checked_real("percentile", "a number between 0 and 100", q)
    if not 0 <= percent <= 100:
        raise ValueError(f"percentile must be between 0 and 100, got {q!r}")
    return percent


def checked_latency_s(seconds: SupportsFloat) -> float:
    """Accept a real number of seconds."""
    return _checked_real("latency", "a real number of seconds", seconds)
