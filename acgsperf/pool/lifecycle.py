"""Whether a pool is open, and the event loop and process that it belongs to."""

import asyncio
from typing import Final

from acgsperf.errors import PoolClosed, PoolError


class Lifecycle:
    """The state of a pool from its construction to `close`. A pool is opened once, in one event loop."""

    __slots__ = ("closed", "is_open", "loop", "name")

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.is_open: bool = False
        self.closed: bool = False
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Mark the pool as open; it belongs to the running event loop from now on."""
        self.is_open = True
        self.loop = asyncio.get_running_loop()

    def stop(self) -> bool:
        """Mark the pool as closed; return whether it was open."""
        was_open, self.is_open, self.closed = self.is_open, False, True
        return was_open

    def refuse_elsewhere(self) -> None:
        """Raise `PoolError` in another event loop and in a forked process, which holds copies of the sockets."""
        if self.loop is None:
            return
        try:
            elsewhere = asyncio.get_running_loop() is not self.loop
        except RuntimeError:
            elsewhere = True
        if elsewhere:
            raise PoolError(f"pool {self.name!r} belongs to another event loop or process")

    def refuse_unless_open(self) -> None:
        """Raise `PoolClosed` if the pool is not open, and `PoolError` as `refuse_elsewhere` does."""
        self.refuse_elsewhere()
        if not self.is_open:
            raise PoolClosed(f"pool {self.name!r} is {'closed' if self.closed else 'not open'}")
