"""Constants and checks that both implementations of the predictor share."""

from operator import index
from typing import Final

# The share of a cache that predicted values take at most.
SHARE: Final = 0.05
# How long a prediction may come true: so many requests for each value that the buffer holds.
LIVES: Final = 4
# A class is judged from so many resolved predictions on. At the higher number, both counts are halved.
LEAST_RESOLVED: Final = 16
MOST_RESOLVED: Final = 64
# The precision from which a class is active, and below which it is not.
ON: Final = 0.6
OFF: Final = 0.5
# How much more is needed from the third prediction on.
DEEPER: Final = 0.1
# The share of values that must arrive in time, or else only one in RETRY is fetched, to measure again.
IN_TIME: Final = 0.5
RETRY: Final = 32
# The most useless fetches as a share of the requests. From so many requests on, both counts are halved.
WASTE: Final = 0.05
WINDOW: Final = 2**17
# `reserved` grows in so many steps or more, and by at most so many entries at once: evicting them delays a request.
STEPS: Final = 4
LONGEST_STEP: Final = 64


def _checked(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = index(value)
    if not least <= number <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {number}")
    return number


def checked_share(share: object) -> float:
    """Return the share of a cache that predicted values take at most."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"share must be a number, got {share!r}")
    if not 0 < share <= 0.5:
        raise ValueError(f"share must be greater than 0 and at most 0.5, got {share!r}")
    return share


def checked_buffer(size: object) -> int:
    """Return the number of values to hold."""
    return _checked("size", size, 1, 2**24)


# How many requests ahead may be predicted.
MOST_DEPTH: Final = 8


def checked_depth(depth: object) -> int:
    """Return how many requests to predict ahead."""
    return _checked("depth", depth, 1, MOST_DEPTH)


def checked_table_size(table_size: object) -> int:
    """Return the number of contexts of a table."""
    return _checked("table_size", table_size, 64, 2**24)
