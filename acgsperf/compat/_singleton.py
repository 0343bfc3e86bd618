"""What the former modules have one of in a process."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["OnePerProcess"]

_T = TypeVar("_T")


class OnePerProcess(Generic[_T]):
    """Made when it is first asked for, and again when the event loop in which that was is closed.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], Awaitable[_T]]) -> None:
        self.held: _T | None = None
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None
        # One for each loop: a lock for which somebody has waited belongs to his.
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def get(self) -> _T:
        """The one."""
        loop = asyncio.get_running_loop()
        async with self._locks.setdefault(loop, asyncio.Lock()):
            if self.held is None or (self._loop is not None and self._loop.is_closed()):
                self.held = await self._make()
                self._loop = loop
            return self.held

    def forget(self, held: _T) -> None:
        """Make another one when there is need, if this is the one."""
        if self.held is held:
            self.held = None
