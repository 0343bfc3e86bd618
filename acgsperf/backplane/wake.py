"""Wakes the reader of a log when there is something new, but not for each record if there are many."""

import asyncio
from time import monotonic
from typing import Final

from acgsperf.timeouts import time_limit

__all__ = ["Wake"]

_SHORTEST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.01


class Wake:
    """An event that a reader waits for between two readings.

    A reading that begins after a pause begins at once. If the event is set again and again, readings begin at least 1
    to 10 ms after each other, so that one reading serves several records. Otherwise each process would read after each
    commit, and the server would spend more time on that than on the commits.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._began_at: float = 0.0
        self._pause_s: float = _SHORTEST_PAUSE_S

    def set(self) -> None:
        """Report a new record."""
        self._event.set()

    def clear(self) -> None:
        """Begin a reading, which finds all records so far."""
        self._event.clear()
        self._began_at = monotonic()

    async def wait(self, seconds: float) -> bool:
        """Wait until the next reading, at most for some seconds. Return whether there is something new."""
        try:
            async with time_limit(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        remaining = self._began_at + self._pause_s - monotonic()
        if remaining <= 0:
            self._pause_s = _SHORTEST_PAUSE_S
            return True
        await asyncio.sleep(remaining)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True
