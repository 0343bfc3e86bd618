"""Calls whose callers are answered in time, and that go on without them."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

__all__ = ["InTime"]

_T = TypeVar("_T")


class InTime:
    """Runs calls that continue if their caller is cancelled, or has waited long enough.

    Args:
        patience_s: for how long a caller waits; infinite if there is no limit.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s: Final = patience_s if math.isfinite(patience_s) else None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the calls in flight."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def run(
        self, call: Coroutine[Any, Any, _T], late: Callable[[], _T], ended: Callable[[], None] | None = None
    ) -> _T:
        """Return the result of a call, or that of `late` if the call takes too long.

        Args:
            call: the call.
            late: returns what is certain before the call has ended.
            ended: is called when the call has ended.
        """
        task = asyncio.Task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if ended is not None:
            task.add_done_callback(lambda _: ended())
        await asyncio.wait((task,), timeout=self._patience_s)
        return task.result() if task.done() else late()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Retrieve the error. If the caller has gone, asyncio would log it as never retrieved.
        if not task.cancelled():
            task.exception()
