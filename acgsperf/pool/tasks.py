"""The background tasks of a pool, which has to end them when it is closed."""

import asyncio
from collections.abc import Coroutine
from functools import partial


class BackgroundTasks:
    """Tasks that one owner starts, and cancels and awaits when it ends."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many tasks have not ended."""
        return len(self._running)

    def start(
        self,
        work: Coroutine[object, object, None],
        name: str | None = None,
        ended: "asyncio.Future[None] | None" = None,
    ) -> "asyncio.Task[None]":
        """Run a coroutine in a task of its own.

        Args:
            work: the coroutine.
            name: the name of the task.
            ended: a future that has a result when the task has ended. If the work sets it in its last step, the caller
                that waits for it continues one turn of the event loop earlier.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard if ended is None else partial(self._end, ended))
        return task

    def _end(self, ended: "asyncio.Future[None]", task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        set_ended(ended)

    async def cancel_all(self) -> None:
        """Cancel every task, and return when the last one has ended."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()


def set_ended(ended: "asyncio.Future[None]") -> None:
    """Give a future its result, unless it has one, or the caller that waited for it was cancelled."""
    if not ended.done():
        ended.set_result(None)
