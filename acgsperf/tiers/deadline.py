"""One deadline for many short waits. It uses one timer for all of them; `asyncio.timeout` creates one for each."""

import asyncio
from types import TracebackType
from typing import Final, Self

__all__ = ["Deadline", "Wait"]

# The timer is late by more than this only if the event loop was blocked: by a garbage collection, by code that does not
# await, or because other programs used the processor.
_BLOCKED_S: Final = 0.005
# The time in which a loop that was blocked reads what has arrived meanwhile. A busy machine may block it again.
_CATCH_UP_S: Final = 0.02
_MOST_CATCH_UPS: Final = 3


class Deadline:
    """Ends waits that take longer than `seconds`.

    All waits have the same length, so the one that began first ends first, and one timer moves from each to the next.
    A wait that began much earlier than those already registered needs a `Deadline` of its own.

    If the event loop was blocked when the deadline passed, waits end 20 ms later. The replies may have arrived
    meanwhile, and a server that answered in time must not be reported as failing. The same holds if the loop is
    blocked again in these 20 ms, at most three times in a row.

    Attributes:
        seconds: how long a wait may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds: Final = seconds
        self._waits: dict[Wait, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._catch_ups = 0

    def wait(self, began_at: float | None = None) -> "Wait":
        """Return a context manager for one wait in the current task.

        It raises nothing when the deadline passes; `passed` tells whether the deadline ended the wait.

        Args:
            began_at: when the wait began, in the event loop's time; None for now.
        """
        return Wait(self, began_at)

    def close(self) -> None:
        """Cancel the timer. Call it when there are no more waits in this event loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._catch_ups = 0

    def _begin(self, wait: "Wait") -> None:
        loop = asyncio.get_running_loop()
        wait.until = (loop.time() if wait.began_at is None else wait.began_at) + self.seconds
        self._waits[wait] = None
        if self._timer is None:
            self._set_timer(loop, wait.until)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._timer = loop.call_at(at, self._expire)
        # A wait may begin when its deadline has passed already.
        self._due_at = max(at, loop.time())

    def _end(self, wait: "Wait") -> None:
        self._waits.pop(wait, None)

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._waits and now - self._due_at > _BLOCKED_S and self._catch_ups < _MOST_CATCH_UPS:
            self._catch_ups += 1
            self._set_timer(loop, now + _CATCH_UP_S)
            return
        self._catch_ups = 0
        while self._waits:
            first = next(iter(self._waits))
            if first.until > now:
                self._set_timer(loop, first.until)
                return
            del self._waits[first]
            first.expire()


class Wait:
    """One wait. `passed` says whether the deadline ended it. Cancellation from elsewhere propagates."""

    __slots__ = ("_cancelling", "_deadline", "_task", "began_at", "passed", "until")

    def __init__(self, deadline: Deadline, began_at: float | None) -> None:
        self._deadline = deadline
        self.began_at: Final = began_at
        self.passed: bool = False
        self.until: float = 0.0

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadline._begin(self)
        return self

    @property
    def seconds(self) -> float:
        """How long the wait may take."""
        return self._deadline.seconds

    def expire(self) -> None:
        """End the wait because its deadline has passed."""
        self.passed = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._deadline._end(self)
        # As in asyncio.timeout: if other code has cancelled the task as well, that cancellation must propagate.
        return self.passed and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
