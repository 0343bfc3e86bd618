"""The background tasks of a pool, which has to end them when it is closed."""

import asyncio
from collections.abc import Coroutine


class BackgroundTasks:
    """Tasks that one owner starts, and cancels and awaits when it ends."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None], name: str | None = None) -> "asyncio.Task[None]":
        """Run a coroutine in a task of its own."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def cancel_all(self) -> None:
        """Cancel every task, and return when the last one has ended."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()
