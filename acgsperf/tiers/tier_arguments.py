"""Checks of what a caller passes to a tier."""

from math import inf, isfinite, isnan
from typing import Final

from acgsperf._native import envelope_format as envelope
from acgsperf._native import zstd
from acgsperf._native.arguments import checked_at_least, checked_seconds
from acgsperf.tiers.base import Entry, Write

__all__ = [
    "MOST_STAMP",
    "check_id_and_stamp",
    "check_key",
    "check_keys",
    "check_tag",
    "check_times",
    "checked_compress_above",
    "seconds",
]

# Scripts of Redis compare stamps as doubles.
MOST_STAMP: Final = 1 << 53


def check_key(key: object) -> None:
    """Raise TypeError if a key is not a str."""
    if not isinstance(key, str):
        raise TypeError(f"a key must be a str, got {key!r:.100}")


def check_keys(keys: object) -> None:
    """Raise TypeError if `keys` is a single str, or one of them is not a str."""
    if isinstance(keys, str | bytes):
        raise TypeError(f"keys must be a sequence of str, got the {type(keys).__name__} {keys!r:.100}")
    for key in keys:  # type: ignore[attr-defined]
        check_key(key)


def check_tag(tag: object) -> None:
    """Raise TypeError if a tag is not a str."""
    if not isinstance(tag, str):
        raise TypeError(f"a tag must be a str, got {tag!r:.100}")


def check_id_and_stamp(write: Write) -> None:
    """Raise ValueError if a write has an id or a stamp that an envelope cannot hold."""
    if len(write.id) != envelope.ID_BYTES:
        raise ValueError(f"id must be {envelope.ID_BYTES} bytes, got {write.id!r:.100}")
    if not 0 < write.stamp < MOST_STAMP:
        raise ValueError(f"stamp must be between 1 and {MOST_STAMP - 1}, got {write.stamp!r:.40}")


def check_times(entry: Entry) -> None:
    """Raise ValueError or OverflowError for times that an envelope cannot hold."""
    created, fresh, kept = entry.created_at, entry.fresh_until, entry.kept_until
    if not isfinite(created) or (fresh is not None and isnan(fresh)) or (kept is not None and isnan(kept)):
        raise ValueError(f"times must be numbers, created_at a finite one, got {created!r}, {fresh!r}, {kept!r}")


def seconds(name: str, value: float) -> float:
    """Return a positive number of seconds, which may be infinite; raise TypeError or ValueError for anything else."""
    number = checked_seconds(name, value)
    if number == inf != value:
        raise ValueError(f"{name} must be a number of seconds that a float can hold, got {value!r:.40}...")
    return number


def checked_compress_above(size: int | None) -> int | None:
    """Return the bytes above which a value is compressed.

    Raises:
        TypeError, ValueError: if it is not an integer of at least 0, or None.
        ImportError: if there is no module for zstd.
    """
    if size is None:
        return None
    checked_at_least("compress_above", size, 0)
    if not zstd.is_available():
        raise ImportError(f"compress_above needs {zstd.INSTALL}")
    return size
