"""The stamps of this process's writes, by which tiers tell a later write from an earlier one."""

from collections.abc import Sequence
from typing import Final

from acgsperf.tiers.base import Tier

__all__ = ["Stamps"]

# A stamp further ahead of the server's clock is an error of some clock. It decides about its own key only.
_MAX_AHEAD_US: Final = 3_600_000_000


class Stamps:
    """Makes stamps that grow. All processes take them from the clock of the same server, in microseconds.

    Args:
        tiers: the lower tiers, the one with the clock first.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = tiers
        self._last = 0

    def next(self) -> int:
        """Return a stamp greater than every earlier one."""
        now = self._tiers[0].now_us() if self._tiers else 0
        self._last = max(self._last + 1, now)
        return self._last

    def above(self, stamp: int) -> int:
        """Return a stamp greater than every earlier one, and than that of a tier whose writer's clock is ahead."""
        found = max(self.next(), stamp + 1)
        if found - self._tiers[0].now_us() < _MAX_AHEAD_US:
            self._last = found
        return found
