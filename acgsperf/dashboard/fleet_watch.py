"""Reads the reports of a fleet in the background, so that the figures of this process never wait for a server."""

import logging
import time
from typing import Final

from acgsperf.dashboard.fleet_reading import FleetReader, FleetReading
from acgsperf.errors import FleetError
from acgsperf.fleet.background import Background
from acgsperf.fleet.store import ReportStore

__all__ = ["FleetWatch"]

_PERIOD_S: Final = 5.0
_log: Final = logging.getLogger("acgsperf.dashboard")


class FleetWatch:
    """The latest reading of a fleet. It reads at most once in 5 s, and only if someone asks for the latest.

    Args:
        store: where the reports are. It is opened and closed by its owner.

    Attributes:
        latest: the latest reading; None if there is none yet.
        problem: why the last reading failed; empty if it did not.
    """

    def __init__(self, store: ReportStore) -> None:
        self.latest: FleetReading | None = None
        self.problem: str = ""
        self._store = store
        self._reader = FleetReader(store)
        self._background = Background(self._read, "acgsperf dashboard: fleet")
        self._due = 0.0

    def refresh(self) -> None:
        """Start a reading in the background if the last one is too old."""
        if not self._background.is_open:
            self._background.open()
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _PERIOD_S
            self._background.start()

    async def close(self) -> None:
        """End a reading, and forget the latest. `refresh` may be called again afterwards."""
        await self._background.close()
        self.latest, self.problem, self._due = None, "", 0.0
        self._reader = FleetReader(self._store)

    async def _read(self) -> None:
        try:
            self.latest, self.problem = await self._reader.read(), ""
        except FleetError as error:
            self.problem = str(error)
        except Exception:
            self.problem = "the reports of the fleet cannot be read; see the log of the service"
            _log.exception("dashboard: the fleet cannot be read; it is tried again in %g s", _PERIOD_S)
