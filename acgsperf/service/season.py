"""Tells the monitor what is usual at an hour of the week, from the hours that the service keeps."""

import asyncio
import logging
import time
from typing import Final

from acgsperf.errors import TrendError
from acgsperf.fleet.background import Background
from acgsperf.monitor import Monitor
from acgsperf.trends.season import season_of
from acgsperf.trends.store import TrendStore

__all__ = ["SeasonReader"]

_log: Final = logging.getLogger("acgsperf.trends")
_PERIOD_S: Final = 24 * 3600.0
_RETRY_S: Final = 3600.0


class SeasonReader:
    """Reads the hours of the last weeks once a day, in the background.

    Args:
        store: where the hours are. It is opened and closed by its owner.
        monitor: is told what is usual.
    """

    def __init__(self, store: TrendStore, monitor: Monitor) -> None:
        self._store = store
        self._monitor = monitor
        self._background = Background(self._read, "acgsperf season")
        self._due = 0.0

    def open(self) -> None:
        """Bind to the running event loop."""
        self._background.open()

    def refresh(self) -> None:
        """Read the hours in the background if they are due. May be called in any thread."""
        if self._background.is_open and time.monotonic() >= self._due:
            self._due = time.monotonic() + _PERIOD_S
            self._background.start()

    async def close(self) -> None:
        """Read no more. You may call it again."""
        await self._background.close()

    async def _read(self) -> None:
        try:
            found = await self._store.history()
        except TrendError as error:
            self._due = time.monotonic() + _RETRY_S
            # The warning that the hours cannot be saved says that the server is not reached.
            _log.debug("trends %r: forecasts do not know the usual hours yet: %s", self._store.namespace, error)
            return
        # In a thread, because it takes some ms.
        season = await asyncio.to_thread(season_of, found.hours)
        self._monitor.usual_ms = None if season is None else season.usual_ms
