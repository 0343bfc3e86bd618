"""Numbers and names as short as a page needs them, and as a terminal can show them."""

from typing import Final, overload

from acgsperf.printable import printable

__all__ = ["clipped", "four_digits", "share"]

_LONGEST_NAME: Final = 80


@overload
def four_digits(value: float) -> float: ...
@overload
def four_digits(value: float | None) -> float | None: ...
def four_digits(value: float | None) -> float | None:
    """Return a number with four significant digits, which is enough to draw it."""
    return None if value is None else float(f"{value:.4g}")


def share(some: float, of: float) -> float | None:
    """Return a share with four significant digits; None of nothing."""
    return four_digits(some / of) if of else None


def clipped(name: str) -> str:
    """Return at most 80 characters of a name, all of them printable."""
    shown = printable(name[: _LONGEST_NAME + 1])
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"
