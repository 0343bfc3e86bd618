"""An object that exists once per process, created at its first use."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["ProcessSingleton"]

_T = TypeVar("_T")


class ProcessSingleton(Generic[_T]):
    """Creates an object at its first use, and again if the event loop of that use was closed.

    Args:
        make: creates the object.
    """

    def __init__(self, make: Callable[[], Awaitable[_T]]) -> None:
        self.instance: _T | None = None
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None
        # One lock per event loop, because a lock that had a waiter belongs to the event loop of that waiter.
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def get(self) -> _T:
        """Return the object; create it if necessary."""
        loop = asyncio.get_running_loop()
        async with self._locks.setdefault(loop, asyncio.Lock()):
            if self.instance is None or (self._loop is not None and self._loop.is_closed()):
                self.instance = await self._make()
                self._loop = loop
            return self.instance

    def forget(self, instance: _T) -> None:
        """Let the next `get` create a new object, if `instance` is the current one."""
        if self.instance is instance:
            self.instance = None
