"""Calls that continue after their caller has been answered."""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

__all__ = ["DetachedCalls"]

_T = TypeVar("_T")

_log: Final = logging.getLogger("acgsperf.cache")

# If more calls than this are in flight, their callers wait. With so many, this process may be slow, and not the
# servers. And a caller that makes one call after the other builds up no backlog.
_MANY: Final = 100


class DetachedCalls:
    """Runs calls that continue after their caller was cancelled or has waited for some time.

    Args:
        patience_s: for how long the caller of a call to the tiers waits; infinite for no limit.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s: Final = patience_s if math.isfinite(patience_s) else None
        self._tasks: set[asyncio.Task[Any]] = set()
        # Those whose callers have been answered.
        self._late: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Wait for the calls in flight."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def run(
        self,
        call: Coroutine[Any, Any, _T],
        if_late: Callable[[], _T],
        on_end: Callable[[], None] | None = None,
        batches: int = 1,
    ) -> _T:
        """Return the result of a call, or that of `if_late` if the call takes too long.

        Args:
            call: the call.
            if_late: returns what is certain before the call has ended.
            on_end: is called when the call has ended.
            batches: in how many batches, one after the other, the tiers carry it out. Each has the patience of one.
        """
        task = asyncio.Task(call)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, on_end))
        await asyncio.wait((task,), timeout=self._patience_s and batches * self._patience_s)
        if not task.done() and len(self._tasks) > _MANY:
            await asyncio.wait((task,))
        if task.done():
            return task.result()
        self._late.add(task)
        return if_late()

    def _ended(self, on_end: Callable[[], None] | None, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if on_end is not None:
            on_end()
        # Retrieve the error. If the caller was cancelled, asyncio would log it as never retrieved.
        error = None if task.cancelled() else task.exception()
        if task in self._late:
            self._late.discard(task)
            if error is not None:
                _log.error("a call to slow tiers failed after its caller was answered", exc_info=error)
