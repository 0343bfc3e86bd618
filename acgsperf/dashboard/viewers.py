"""The viewers of a dashboard. There is room for 100."""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

__all__ = ["MOST_VIEWERS", "Viewer", "Viewers"]

MOST_VIEWERS: Final = 100


class Viewer:
    """What one viewer has not got yet: at most the latest event, so that a slow viewer costs no memory.

    Args:
        address: the network address of the viewer; None if it is not known.

    Attributes:
        address: the same.
        ended: whether the viewer gets no more events but the last one.
        ended_at: when that was, in the time of the event loop; infinity before.
        finished: whether it gets no last one either, so that an event need not be sent to the end.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address: Final = address
        self.ended: bool = False
        self.ended_at: float = math.inf
        self.finished: bool = False
        self._event: bytes | None = None
        self._changed = asyncio.Event()

    def put(self, event: bytes) -> None:
        """Replace the event that waits to be sent."""
        if self.ended:
            return
        self._event = event
        self._changed.set()

    def end(self, last: bytes | None = None) -> None:
        """Let `next` return a last event, and then None."""
        if not self.ended:
            self.ended, self.ended_at = True, asyncio.get_running_loop().time()
        self.finished = last is None
        self._event = last
        self._changed.set()

    async def next(self) -> bytes | None:
        """Wait for the next event, and return it; None if there will be no more."""
        await self._changed.wait()
        event, self._event = self._event, None
        if not self.ended:
            self._changed.clear()
        return event


class Viewers:
    """All viewers.

    A viewer that reads nothing looks like one whose network is slow until all buffers on the way are full. So when
    there are too many, nobody is refused: the oldest viewer has to leave, of the address that has the most viewers.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # In the order in which they came.
        self._viewers: dict[Viewer, None] = {}

    def __len__(self) -> int:
        return len(self._viewers)

    def __iter__(self) -> Iterator[Viewer]:
        return iter(self._viewers)

    def add(self, viewer: Viewer) -> Viewer | None:
        """Add a viewer, and return the one that has to leave for it; None if there is room."""
        self._viewers[viewer] = None
        if len(self._viewers) <= self._most:
            return None
        of_address = Counter(one.address for one in self._viewers)
        most = max(of_address.values())
        leaving = next(one for one in self._viewers if of_address[one.address] == most)
        del self._viewers[leaving]
        return leaving

    def discard(self, viewer: Viewer) -> None:
        """Remove a viewer that has left."""
        self._viewers.pop(viewer, None)
