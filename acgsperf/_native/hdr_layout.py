"""The bucket arithmetic of HdrHistogram in plain Python: in which slot a latency is counted (`hdr.pxd` has it in C)."""

from typing import SupportsIndex

from acgsperf._native.arguments import LONGEST_NS, checked_int


class Layout:
    """The slots of one configuration.

    The first 2 * half slots are one unit wide. After them, each power of two has half slots, which are twice as wide as
    those of the power before. half is the power of two that gives the significant figures.

    Args:
        lowest_ns: the smallest difference to distinguish, at least 1 ns.
        highest_ns: the largest latency that can be recorded, 2 * lowest_ns to 2**62 ns.
        significant_figures: 1 to 5.

    Raises:
        TypeError, ValueError: if an argument is not an integer, or out of range.
    """

    __slots__ = ("half_magnitude", "highest_ns", "length", "lowest_ns", "mask", "significant_figures", "unit")

    def __init__(self, lowest_ns: SupportsIndex, highest_ns: SupportsIndex, significant_figures: SupportsIndex) -> None:
        lowest = checked_int("lowest_ns", lowest_ns)
        highest = checked_int("highest_ns", highest_ns)
        figures = checked_int("significant_figures", significant_figures)
        if not 1 <= lowest <= LONGEST_NS // 2:
            raise ValueError(f"lowest_ns must be between 1 and {LONGEST_NS // 2}, got {lowest!r}")
        if not 2 * lowest <= highest <= LONGEST_NS:
            raise ValueError(f"highest_ns must be between {2 * lowest} and {LONGEST_NS}, got {highest!r}")
        if not 1 <= figures <= 5:
            raise ValueError(f"significant_figures must be between 1 and 5, got {figures!r}")
        self.lowest_ns, self.highest_ns, self.significant_figures = lowest, highest, figures
        resolution: int = 2 * 10**figures
        self.unit = lowest.bit_length() - 1
        self.half_magnitude = (resolution - 1).bit_length() - 1
        if self.unit + self.half_magnitude > 61:
            raise ValueError(f"lowest_ns must be smaller for {figures} significant figures, got {lowest!r}")
        self.mask = ((2 << self.half_magnitude) - 1) << self.unit
        self.length = (self._bucket_of(highest) + 2) << self.half_magnitude

    def _bucket_of(self, value: int) -> int:
        return (value | self.mask).bit_length() - self.unit - self.half_magnitude - 1

    def _shift_of(self, i: int) -> int:
        return self.unit + max((i >> self.half_magnitude) - 1, 0)

    def index_of(self, value: int) -> int:
        """Return the slot of a latency."""
        bucket = self._bucket_of(value)
        return (bucket << self.half_magnitude) + (value >> (bucket + self.unit))

    def lowest_of(self, i: int) -> int:
        """Return the smallest latency that a slot counts."""
        half = 1 << self.half_magnitude
        return (i if i < 2 * half else (i & (half - 1)) + half) << self._shift_of(i)

    def highest_of(self, i: int) -> int:
        """Return the largest latency that a slot counts."""
        return self.lowest_of(i) + (1 << self._shift_of(i)) - 1

    def median_of(self, i: int) -> int:
        """Return the middle of a slot."""
        return self.lowest_of(i) + ((1 << self._shift_of(i)) >> 1)
