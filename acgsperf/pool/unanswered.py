"""The connections that wait for an answer of the server, and those that have waited too long."""

import asyncio
from collections.abc import Callable
from typing import Final

from acgsperf.pool.slot import Slot

# A server that works answers a check, a reset or a close within this time.
_STALLED_S: Final = 0.1


class Unanswered:
    """The connections that wait for an answer to what the pool has sent, such as a check.

    `len` is their number. One timer serves all of them, because a timer for each would slow down each reset.

    Args:
        on_stall: called when connections have waited for 0.1 s.

    Attributes:
        stalled: the connections that have waited for longer.
    """

    __slots__ = ("_on_stall", "_since", "_timer", "stalled")

    def __init__(self, on_stall: Callable[[], None]) -> None:
        self._on_stall = on_stall
        # The oldest one comes first.
        self._since: dict[Slot, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.stalled: set[Slot] = set()

    def __len__(self) -> int:
        """Return how many connections wait."""
        return len(self._since) + len(self.stalled)

    def begin(self, slot: Slot) -> None:
        """Note that the pool has sent something on a connection."""
        loop = asyncio.get_running_loop()
        self._since[slot] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(_STALLED_S, self._find_stalled)

    def end(self, slot: Slot) -> None:
        """Note that the wait for the answer has ended."""
        self._since.pop(slot, None)
        self.stalled.discard(slot)

    def _find_stalled(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now, before = loop.time(), len(self.stalled)
        for slot, since in list(self._since.items()):
            # The timer may fire a clock tick early.
            if (remaining := since + _STALLED_S - now) > 1e-3:
                self._timer = loop.call_later(remaining, self._find_stalled)
                break
            del self._since[slot]
            self.stalled.add(slot)
        if len(self.stalled) > before:
            self._on_stall()

    def clear(self) -> None:
        """Stop the timer, and wait for no connection."""
        self._since.clear()
        self.stalled.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
