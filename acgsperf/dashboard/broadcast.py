"""Takes one snapshot per second for all viewers, from the first viewer to the last."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from acgsperf.dashboard.snapshot import TrendState
from acgsperf.dashboard.sources import SnapshotSource
from acgsperf.dashboard.timeline import Timeline
from acgsperf.dashboard.viewers import MOST_VIEWERS, Viewer, Viewers
from acgsperf.errors import AcgsperfError
from acgsperf.printable import printable

__all__ = ["Broadcast"]

# A server that shuts down waits so much longer for the viewers.
_WATCH_S: Final = 0.25
_TRENDS_RETRY_S: Final = 60.0
_encoder: Final = msgspec.json.Encoder()
_log: Final = logging.getLogger("acgsperf.dashboard")


class Broadcast:
    """Sends the snapshots of a source to all viewers, and calls the source only while there are viewers.

    One task takes a snapshot every `interval` seconds. It starts with the first viewer and stops with the last one.
    Then the source is closed. A viewer that comes meanwhile waits for the end of that.

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
        self._viewers = Viewers(MOST_VIEWERS)
        # Also those that had to leave, until they have got their last event.
        self._connected: set[Viewer] = set()
        self._timeline = Timeline()
        self._latest: bytes | None = None
        self._task: asyncio.Task[None] | None = None
        self._watcher: asyncio.TimerHandle | None = None
        # The calls of `trends` in progress.
        self._calls: set[asyncio.Task[bytes]] = set()
        self._closing: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """The number of viewers now."""
        return len(self._viewers)

    @asynccontextmanager
    async def viewer(self, address: str | None) -> AsyncIterator[Viewer]:
        """Add a viewer for as long as the context lasts.

        Args:
            address: the network address of the viewer; None if it is not known.
        """
        viewer = Viewer(address)
        self._connected.add(viewer)
        leaving = self._viewers.add(viewer)
        if leaving is not None:
            leaving.end(_event("ended", f"more than {MOST_VIEWERS} pages are open; reload this one to continue"))
        try:
            if self._is_ending():
                viewer.end()
            elif self._task is None:
                self._latest = None
                self._source.start()
                self._task = asyncio.create_task(self._run(), name="acgsperf dashboard: snapshots")
                self._watch()
            elif self._latest is not None:
                viewer.put(self._latest)
            yield viewer
        finally:
            self._connected.discard(viewer)
            self._viewers.discard(viewer)
            if not self._viewers:
                await self._stop()

    def history(self) -> bytes:
        """Return the event with the points before the next snapshot."""
        try:
            return _event("history", self._timeline.history(self._source.history()))
        except Exception:
            _log.exception("dashboard: the history cannot be read; the charts begin now")
            return _event("history", [])

    async def trends(self) -> bytes | None:
        """Return the last weeks as JSON; None if nobody views the page: then nobody would close what is opened."""
        await self._closed()
        if self._task is None:
            return None
        call = asyncio.create_task(self._read_trends(), name="acgsperf dashboard: last weeks")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            await asyncio.wait([call])
        finally:
            call.cancel()
        return None if call.cancelled() else call.result()

    async def _read_trends(self) -> bytes:
        try:
            return _encoder.encode(await self._source.trends())
        except AcgsperfError as error:
            problem = printable(str(error))
        except Exception:
            problem = "the last weeks cannot be read; see the log of the service"
            _log.exception("dashboard: the last weeks cannot be read; they are tried again in %g s", _TRENDS_RETRY_S)
        return _encoder.encode(TrendState(missing=(problem,), next_s=_TRENDS_RETRY_S))

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        if self._watcher is not None:
            self._watcher.cancel()
        try:
            self._source.stop()
        except Exception:
            _log.exception("dashboard: the source cannot be stopped; it is closed")
        calls = (task, *self._calls)
        for call in calls:
            call.cancel()
        self._closing = asyncio.create_task(self._close(self._closing, calls), name="acgsperf dashboard: closing")
        # The source is closed to the end, even if the request of the last viewer is cancelled.
        await asyncio.shield(self._closing)

    async def _close(self, earlier: asyncio.Task[None] | None, calls: tuple[asyncio.Task[Any], ...]) -> None:
        """Close the source after the earlier time and after the calls that use it."""
        if earlier is not None and not earlier.done():
            await asyncio.wait([earlier])
        await asyncio.wait(calls)
        # A viewer that came meanwhile needs it.
        if self._task is None:
            await self._source.close()

    async def _closed(self) -> None:
        """Wait while the source is being closed."""
        while self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing])

    def _watch(self) -> None:
        """End all viewers if the server shuts down, also while a snapshot is taken or the next one is far away."""
        if self._is_ending():
            for viewer in self._connected:
                viewer.end()
        else:
            self._watcher = asyncio.get_running_loop().call_later(_WATCH_S, self._watch)

    async def _run(self) -> None:
        await self._closed()
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            event = self._latest = await self._next_event()
            for viewer in self._viewers:
                viewer.put(event)
            # Never twice at once after the event loop was busy.
            due = max(due + self._interval, loop.time() + self._interval / 2)
            await asyncio.sleep(due - loop.time())

    async def _next_event(self) -> bytes:
        try:
            found = await self._source.snapshot()
            event = _event("snapshot", found)
            if found.seconds:
                self._timeline.add(found.point, found.seconds)
        except AcgsperfError as error:
            return _event("problem", printable(str(error)))
        except (Exception, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The cancellation of something that the source awaits is a failure of the source.
            _log.exception("dashboard: a snapshot failed; the next one is taken in %g s", self._interval)
            return _event("problem", "the figures cannot be read; see the log of the service")
        return event


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encoder.encode(data))
