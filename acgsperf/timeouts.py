"""`asyncio.timeout`, as CPython 3.12 has it.

The first releases of CPython 3.11, which Debian 12 has, lose the TimeoutError of a task that was cancelled before: the
caller gets a CancelledError that nobody asked for. This happens when something is closed after a failed TaskGroup or a
cancelled call (https://github.com/python/cpython/issues/102780).
"""

import asyncio
import sys
from types import TracebackType
from typing import Final, Self

__all__ = ["time_limit"]


class _Timeout:
    def __init__(self, delay: float) -> None:
        self._delay: Final = delay
        self._has_passed = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._delay, self._expire)
        return self

    def _expire(self) -> None:
        self._has_passed = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._has_passed and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error


if sys.version_info >= (3, 12):
    time_limit = asyncio.timeout
else:

    def time_limit(delay: float) -> _Timeout:
        """Return a context that ends with a TimeoutError after `delay` seconds. Other cancellations propagate."""
        return _Timeout(delay)
