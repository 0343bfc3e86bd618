"""The bounds of the dashboard's own histograms, and the bands of the heat map."""

from collections.abc import Sequence
from typing import Final

from acgsperf.dashboard.interval import Buckets
from acgsperf.dashboard.rounding import four_digits

__all__ = ["BOUNDS_NS", "bands_ms", "heat_of"]

# From 100 ns to 10 s. With 24 buckets in a decade, an interpolated percentile is within 2 % of the true one.
_PER_DECADE: Final = 24
BOUNDS_NS: Final = tuple(round(1e2 * 10 ** (step / _PER_DECADE)) for step in range(8 * _PER_DECADE + 1))
_BUCKETS_PER_BAND: Final = 4
# A page of metrics has few buckets, so each is a band.
_FEW_BOUNDS: Final = 40


def bands_ms(bounds_ns: Sequence[int]) -> tuple[float, ...]:
    """Return the upper bounds of the bands into which these buckets are grouped."""
    group, last = _group(bounds_ns), len(bounds_ns) - 1
    bands = [*range(group - 1, len(bounds_ns), group)]
    if group > 1 and bands[-1] != last:
        bands.append(last)
    return tuple(four_digits(bounds_ns[at] / 1e6) for at in bands)


def heat_of(buckets: Buckets) -> tuple[int, ...] | None:
    """Return the number of values in each band; None without values."""
    return buckets.grouped(_group(buckets.bounds_ns)) if buckets.total else None


def _group(bounds_ns: Sequence[int]) -> int:
    return 1 if len(bounds_ns) <= _FEW_BOUNDS else _BUCKETS_PER_BAND
