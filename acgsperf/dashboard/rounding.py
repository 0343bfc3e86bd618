"""Numbers and names as short as a page needs them."""

from typing import Final, overload

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
    """Return at most 80 characters of a name."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
