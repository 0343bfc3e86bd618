"""Whether a pool is open, and the event loop and process that it belongs to."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from acgsperf.errors import PoolClosed, PoolError


class Lifecycle:
    """The state of a pool. From `open` to the end of `close`, it belongs to one event loop. It can be opened again.

    Attributes:
        name: the name of the pool.
        is_open: whether the pool lends connections, or is being opened.
        closed: whether the pool was closed, and was not opened again.
        loop: the event loop that the pool belongs to; None if it belongs to none.
    """

    __slots__ = ("_calls", "closed", "is_open", "loop", "name")

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.is_open: bool = False
        self.closed: bool = False
        self.loop: asyncio.AbstractEventLoop | None = None
        # The calls of `open` and `close` that have not ended.
        self._calls = 0

    def start(self, remains: bool) -> None:
        """Mark the pool as open; it belongs to the running event loop from now on.

        Args:
            remains: whether it still has connections or tasks from before.

        Raises:
            PoolError: if the pool is open, or is being closed.
        """
        if self.is_open:
            raise PoolError(f"pool {self.name!r} is already open")
        if self._calls or remains:
            raise PoolError(f"pool {self.name!r} is being closed; wait for close() before open()")
        self.is_open, self.closed = True, False
        self.loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Mark the pool as closed."""
        self.is_open, self.closed = False, True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Allow no `start` within the block. A pool that is closed at its end belongs to no event loop."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self.is_open and not self._calls:
                self.loop = None

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
