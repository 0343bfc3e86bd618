"""The pauses between attempts to reach a server."""

import random
from typing import Final

__all__ = ["Backoff"]

_FIRST_S: Final = 0.05
_LONGEST_S: Final = 1.0


class Backoff:
    """Pauses that double from 50 ms to 1 s. Each is up to half as long, so that processes do not retry together."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = _FIRST_S

    def pause(self) -> float:
        """Return how many seconds to wait before the next attempt."""
        pause = self._next
        self._next = min(2 * pause, _LONGEST_S)
        return pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again with the shortest pause, because an attempt has succeeded."""
        self._next = _FIRST_S
