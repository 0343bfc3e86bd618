"""Takes one snapshot per second for all viewers, from the first viewer to the last."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from acgsperf.dashboard.sources import SnapshotSource
from acgsperf.errors import AcgsperfError

if TYPE_CHECKING:
    from acgsperf.dashboard.snapshot import Point

__all__ = ["Broadcast", "Viewer"]

# Five minutes.
_MOST_POINTS: Final = 300
_encoder: Final = msgspec.json.Encoder()
_log: Final = logging.getLogger("acgsperf.dashboard")


class Viewer:
    """What one viewer has not got yet: at most the latest event, so that a slow viewer costs no memory.

    Attributes:
        ended: whether the viewer gets no more events.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self._event: bytes | None = None
        self._changed = asyncio.Event()

    def put(self, event: bytes) -> None:
        """Replace the event that waits to be sent."""
        self._event = event
        self._changed.set()

    def end(self) -> None:
        """Let `next` return None."""
        self.ended = True
        self._changed.set()

    async def next(self) -> bytes | None:
        """Wait for the next event, and return it; None if there will be no more."""
        await self._changed.wait()
        self._changed.clear()
        return None if self.ended else self._event


class Broadcast:
    """Sends the snapshots of a source to all viewers.

    One task takes a snapshot every `interval` seconds. It starts with the first viewer and stops with the last one.

    Args:
        source: has the snapshots.
        interval: the time between two snapshots, in seconds.
        is_ending: returns whether the server shuts down. Then all viewers are ended, because a server waits for the end
            of its responses.
    """

    def __init__(self, source: SnapshotSource, interval: float, is_ending: Callable[[], bool]) -> None:
        self._source = source
        self._interval = interval
        self._is_ending = is_ending
        self._viewers: set[Viewer] = set()
        self._points: deque[Point] = deque(maxlen=_MOST_POINTS)
        self._latest: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """The number of viewers now."""
        return len(self._viewers)

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[Viewer]:
        """Add a viewer for as long as the context lasts."""
        viewer = Viewer()
        self._viewers.add(viewer)
        if self._is_ending():
            viewer.end()
        elif self._task is None:
            self._latest = None
            self._source.start()
            self._task = asyncio.create_task(self._run(), name="acgsperf dashboard: snapshots")
        elif self._latest is not None:
            viewer.put(self._latest)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                await self._stop()

    def history(self) -> bytes:
        """Return the event with the points before the next snapshot."""
        points = [*self._source.history(), *self._points]
        return _event("history", sorted(points, key=lambda point: point.at))

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._source.stop()
            task.cancel()
            await asyncio.wait([task])
            # A viewer that came meanwhile needs it.
            if self._task is None:
                await self._source.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            event = await self._next_event()
            if self._is_ending():
                for viewer in self._viewers:
                    viewer.end()
                return
            self._latest = event
            for viewer in self._viewers:
                viewer.put(event)
            # Never twice at once after the event loop was busy.
            due = max(due + self._interval, loop.time() + self._interval / 2)
            await asyncio.sleep(due - loop.time())

    async def _next_event(self) -> bytes:
        try:
            found = await self._source.snapshot()
        except AcgsperfError as error:
            return _event("problem", str(error))
        except Exception:
            _log.exception("dashboard: a snapshot failed; the next one is taken in %g s", self._interval)
            return _event("problem", "the figures cannot be read; see the log of the service")
        if found.seconds:
            self._points.append(found.point)
        return _event("snapshot", found)


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encoder.encode(data))
