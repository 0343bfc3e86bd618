"""Checks of the arguments of a tiered cache: one check and one message for each kind of argument."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from acgsperf._native.arguments import checked_ttl_ns

__all__ = ["checked_key", "checked_keys", "checked_number", "checked_tags", "checked_ttl", "distinct_keys"]


def checked_key(key: object) -> None:
    """Raise TypeError unless the key is a str."""
    if not isinstance(key, str):
        raise TypeError(f"key must be a str, got {key!r:.100}")


def checked_keys(keys: Iterable[str]) -> Iterable[str]:
    """Return the keys, which must not be a single str or bytes: its items are single characters."""
    if isinstance(keys, str | bytes | bytearray):
        raise TypeError(f"keys must be an iterable of str, got the {type(keys).__name__} {keys!r:.100}")
    return keys


def distinct_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Return each key once. Raise TypeError for one that is not a str."""
    keys = tuple(keys)
    for key in keys:
        # Before they are compared: not everything can be hashed.
        checked_key(key)
    return tuple(dict.fromkeys(keys))


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags as a tuple.

    Raises:
        TypeError: if `tags` is a single str or not iterable, or an item is not a str.
        ValueError: if an item cannot be encoded as UTF-8.
    """
    is_text = isinstance(tags, str)
    checked = tuple(tags) if not is_text and isinstance(tags, Iterable) else ()
    if is_text or not isinstance(tags, Iterable) or not all(isinstance(tag, str) for tag in checked):
        raise TypeError(f"tags must be a sequence of str, got {tags!r:.100}")
    for tag in checked:
        try:
            tag.encode()
        except UnicodeEncodeError:
            raise ValueError(f"tags must not contain lone surrogates, got {tag!r:.100}") from None
    return checked


def checked_ttl(ttl: float | None) -> float:
    """Return a time to live in seconds, infinity for None."""
    return math.inf if ttl is None or checked_ttl_ns(ttl) is None else float(ttl)


def checked_number(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> None:
    """Raise TypeError unless an option is a number, and ValueError unless it keeps the rule."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} must be at most 1.8e308 or infinite, got {hex(int(value)):.20}...") from None
    if not holds(value):
        raise ValueError(f"{name} must be {rule}, got {value!r}")
