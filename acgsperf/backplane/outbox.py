"""Records that wait to be published."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

from acgsperf.backplane.backoff import Backoff
from acgsperf.tiers.records import Record, RecordKind

__all__ = ["Outbox"]

MAX_QUEUED: Final = 10_000
_BATCH: Final = 100

_Item = tuple[Record, "asyncio.Future[bool]"]


class Outbox:
    """Publishes records in order, and retries until the server accepts them.

    If too many records wait, one record that clears every L1 replaces all of them. Dropping single records would leave
    old values in other processes. Clearing only costs them misses.

    Args:
        send: publishes some records and returns how many of the first ones the server has accepted. It may raise.
        limit: the maximum number of records that wait.
    """

    def __init__(self, send: Callable[[Sequence[Record]], Awaitable[int]], limit: int = MAX_QUEUED) -> None:
        self._send = send
        self._limit = limit
        self._waiting: deque[_Item] = deque()
        self._in_flight: list[_Item] = []
        self._failing = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def publish(self, record: Record) -> "asyncio.Future[bool]":
        """Queue a record. The future is True once the server has it, False as soon as an attempt has failed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if self._closed:
            future.set_result(False)
            return future
        if len(self) >= self._limit:
            _resolve(self._waiting, False)
            self._waiting.clear()
            # A clear includes this record and all records before it.
            record = Record(RecordKind.CLEAR, (), record.writer, record.sent_us)
        self._waiting.append((record, future))
        if self._failing:
            future.set_result(False)
        if self._task is None:
            self._task = asyncio.Task(self._run(), loop=loop)
        return future

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109
        """Send what waits, if the server accepts records, for at most some seconds."""
        self._closed = True
        task = self._task
        try:
            if task is not None and not self._failing:
                await asyncio.wait([task], timeout=timeout)
        finally:
            _resolve(self._in_flight, False)
            _resolve(self._waiting, False)
            self._waiting.clear()
            if task is not None:
                task.cancel()
        if task is not None:
            await asyncio.wait([task])

    async def _run(self) -> None:
        backoff = Backoff()
        try:
            while self._waiting:
                batch = self._in_flight = list(islice(self._waiting, _BATCH))
                for _ in batch:
                    self._waiting.popleft()
                accepted = await self._attempt([record for record, _ in batch])
                _resolve(batch[:accepted], True)
                self._in_flight = []
                if accepted == len(batch):
                    self._failing = False
                    backoff.reset()
                    continue
                self._failing = True
                self._waiting.extendleft(reversed(batch[accepted:]))
                _resolve(self._waiting, False)
                if self._closed:
                    return
                await asyncio.sleep(backoff.pause())
        finally:
            self._task = None

    async def _attempt(self, records: Sequence[Record]) -> int:
        try:
            return await self._send(records)
        except Exception:
            # The reader of the log gets the same error, and logs it.
            return 0


def _resolve(items: "Sequence[_Item] | deque[_Item]", accepted: bool) -> None:
    for _, future in items:
        if not future.done():
            future.set_result(accepted)
