"""Work that an instance does in the background of its event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

__all__ = ["LAST_S", "Background"]

# How long a server that does not answer delays `close`.
LAST_S: Final = 1.0


class Background:
    """Runs a coroutine function in the background, one call at a time.

    Args:
        work: what to run.
        name: of its task.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_open(self) -> bool:
        """Whether `start` has an effect. False before `open`, and after `close` or the end of the event loop."""
        return self._loop is not None and not self._loop.is_closed()

    def open(self) -> None:
        """Run in the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Run the function soon, unless it is running. You may call it in any thread while this is open."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        if self._loop is not None and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._work(), name=self._name)

    async def close(self) -> bool:
        """Cancel the task and wait for its end. Return whether this was open."""
        if self._loop is None:
            return False
        self._loop = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        return True
