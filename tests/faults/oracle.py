"""What must be true of every fault: checked from outside, whatever the fault was."""

import asyncio
import gc
import threading
import time
from collections import deque
from pathlib import Path

# A caller may be answered this much after its deadline.
GRACE_S = 0.1
# Plus this many turns of the event loop: its timer is served after the turn in which it is due, and a deadline that
# finds the loop busy waits for the next replies, three times at most.
_TURNS = 4
# The longest time for which one turn of the event loop may compute.
LONGEST_TURN_S = 0.1
RESIDENT_BYTES = 64 << 20
VIRTUAL_BYTES = 512 << 20
RECOVERY_S = 2.0

_TICK_S = 0.002
# What timers and schedulers need anyway is no stall.
_STALL_S = 0.002
_MEMORY_EVERY_TICKS = 5
# A late call was held up by one of this many turns.
_RECENT_TICKS = 20
_STATM = Path("/proc/self/statm")
_DESCRIPTORS = Path("/proc/self/fd")
_PAGE_BYTES = 4096


class Oracle:
    """Watches the event loop for the time of an `async with`, and raises an AssertionError at its end.

    It checks that callers were answered in time, that the event loop was never blocked, that memory stayed flat, that
    nobody reported an error to the event loop, and that tasks, threads and descriptors are those of the beginning. Time
    in which the machine kept this thread from running does not count.

    Args:
        longest_turn_s: the longest time for which one turn of the event loop may compute.

    Attributes:
        stalled_s: the sum of these times so far.
        late_s: how late the event loop was just now.
    """

    def __init__(self, longest_turn_s=LONGEST_TURN_S):
        self._longest_turn_s = longest_turn_s
        self._late = []
        self._turns = deque([0.0], maxlen=_RECENT_TICKS)
        self._reports = []
        self._longest_turn = self.stalled_s = self.late_s = 0.0
        self._most = [0, 0]

    async def __aenter__(self):
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda loop, context: self._reports.append(context))
        self._before = self._resources()
        self._memory = self._most = _memory()
        self._ticker = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, kind, error, trace):
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)
        if kind is None:
            await self._check()
        self._loop.set_exception_handler(None)

    async def call(self, what, call, within):
        """Await a call, which must return or raise within some seconds."""
        began, stalled = time.perf_counter(), self.stalled_s
        try:
            return await call
        finally:
            took = time.perf_counter() - began
            if took > within + GRACE_S:
                self._late.append((what, took, within + _TURNS * max(self._turns), stalled))

    async def _check(self):
        late = [
            f"{what} took {took:.3f} s, at most {within:g} s"
            for what, took, within, stalled in self._late
            if took - (self.stalled_s - stalled) > within + GRACE_S
        ]
        assert not late, late
        assert self._longest_turn <= self._longest_turn_s, f"the loop was blocked for {self._longest_turn:.3f} s"
        grown = [most - before for most, before in zip(self._most, self._memory, strict=True)]
        assert grown[0] <= VIRTUAL_BYTES, f"{grown[0] >> 20} MiB more virtual memory"
        assert grown[1] <= RESIDENT_BYTES, f"{grown[1] >> 20} MiB more memory"
        for _ in range(50):
            if self._resources() == self._before:
                break
            await asyncio.sleep(0.01)
        assert self._resources() == self._before
        # A forgotten exception is reported when its future is collected.
        gc.collect()
        await asyncio.sleep(0)
        assert not self._reports, self._reports

    def _resources(self):
        tasks = len(asyncio.all_tasks())
        descriptors = len(list(_DESCRIPTORS.iterdir())) if _DESCRIPTORS.exists() else 0
        return {"tasks": tasks, "threads": threading.active_count(), "descriptors": descriptors}

    async def _tick(self):
        ticks = 0
        while True:
            began, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(_TICK_S)
            took, computed = time.perf_counter() - began, time.thread_time() - computed
            self._turns.append(computed)
            self._longest_turn = max(self._longest_turn, computed)
            late = took - computed - _TICK_S
            self.late_s = late if late > _STALL_S else 0.0
            self.stalled_s += self.late_s
            ticks += 1
            if ticks % _MEMORY_EVERY_TICKS == 0:
                self._most = list(map(max, self._most, _memory()))


def _memory():
    """Virtual and resident memory of this process."""
    if not _STATM.exists():
        return [0, 0]
    return [int(pages) * _PAGE_BYTES for pages in _STATM.read_text().split()[:2]]


async def eventually(check, within=RECOVERY_S):
    """Repeat a check until it passes; raise its last AssertionError after some seconds."""
    end = time.monotonic() + within
    while True:
        try:
            return await check()
        except AssertionError:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.02)
