"""A weigher in bytes, in pure Python: the twin of `weigh`, which documents it."""

import sys
from typing import Final

__all__ = ["IMPLEMENTATION", "weigh_bytes"]

IMPLEMENTATION: Final = "python"

# The slot of an entry, its links and its share of the index, in a table that is three quarters full.
ENTRY_BYTES: Final = 80
# Objects that are nested more deeply, or that come after so many others, are not counted.
MAX_DEPTH: Final = 100
MAX_OBJECTS: Final = 1_000_000
# Decoders use one object for equal dict keys up to this length.
LONGEST_SHARED_KEY: Final = 32


def _block(size: int) -> int:
    """Return how many bytes the allocator uses for an object of this size."""
    return (size + 15) & ~15 if size <= 512 else (size + 8 + 15) & ~15


def _flat(value: object) -> int:
    """Return the bytes of an object, without the objects that it refers to."""
    kind = type(value)
    if value is None or kind is bool:
        return 0
    if kind is int and -5 <= value <= 256:  # type: ignore[operator]
        return 0
    if kind in (str, bytes) and len(value) <= 1:  # type: ignore[arg-type]
        return 0
    if kind in (list, dict) and value:
        # The table of its items is a separate allocation.
        return _block(sys.getsizeof(value)) + 8
    return _block(sys.getsizeof(value))


def weigh_bytes(key: object, value: object, /) -> int:
    """Return about how many bytes a cache takes for an entry with a JSON-like value."""
    total = ENTRY_BYTES + _flat(key)
    level: list[object] = [value]
    objects = 0
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            objects += 1
            if objects > MAX_OBJECTS:
                return total
            total += _flat(item)
            if type(item) is dict:
                pairs = dict(item)
                below += pairs.values()
                for name in pairs:
                    if type(name) is not str or len(name) > LONGEST_SHARED_KEY:
                        total += _flat(name)
            elif type(item) is list or type(item) is tuple:
                below += item
        if not below:
            break
        level = below
    return total
