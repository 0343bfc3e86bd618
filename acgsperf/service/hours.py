"""Keeps the hours of this instance: collects them, and saves them in the background."""

import logging
import time
from collections.abc import Callable
from typing import Final

from acgsperf.errors import TrendError
from acgsperf.fleet.background import LAST_S, Background
from acgsperf.service.season import SeasonReader
from acgsperf.service.traffic import Traffic
from acgsperf.timeouts import time_limit
from acgsperf.trends.changes import HOUR_S
from acgsperf.trends.history import InstanceHour
from acgsperf.trends.store import TrendStore

__all__ = ["HourKeeper"]

_log: Final = logging.getLogger("acgsperf.trends")
# So much is lost if the process is killed.
_SAVE_EVERY_S: Final = 300.0
# The server refuses older hours.
_MOST_UNSAVED: Final = 4


class HourKeeper:
    """Saves the figures of this instance, hour by hour. No call waits for the server, except `close`, for 1 s at most.

    An hour ends with the first `observe` after it. Hours without requests are not saved. If the clock is set back to an
    earlier hour, the requests from then on are saved in rows of their own, so that no saved row is replaced.

    Args:
        store: is opened and closed here.
        traffic: the requests.
        instance: returns the name of this instance.
        version: of the service; empty if it is not known.
        season: is told when to read what is usual; None for nothing.
        clock: the time in seconds since 1970.

    Attributes:
        store: where the hours are.
    """

    def __init__(
        self,
        store: TrendStore,
        traffic: Traffic,
        instance: Callable[[], str],
        version: str = "",
        *,
        season: SeasonReader | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store: Final = store
        self._traffic = traffic
        self._window = traffic.window()
        self._season = season
        self._instance = instance
        self._version = version
        self._clock = clock
        self._hour = self._current_hour()
        self._saved_at = clock()
        # How often the clock was set back to an earlier hour.
        self._steps_back = 0
        # By the start of the hour and the steps back before it, the oldest first.
        self._unsaved: dict[tuple[int, int], InstanceHour] = {}
        self._must_tidy = False
        self._background = Background(self._save, "acgsperf trends")
        self._is_failing = False
        self._is_untidy = False
        self._is_refused = False

    async def open(self) -> None:
        """Open the store, in the running event loop. It does not connect yet."""
        await self.store.open()
        self._background.open()
        if self._season is not None:
            self._season.open()

    def observe(self) -> None:
        """End the hour if it is over, and save it in the background if it is due.

        It may be called in any thread. Does nothing before `open` and after `close`.
        """
        if not self._background.is_open:
            return
        if self._season is not None:
            self._season.refresh()
        now, hour = self._clock(), self._current_hour()
        if hour == self._hour and abs(now - self._saved_at) < _SAVE_EVERY_S:
            return
        self._note()
        self._saved_at = now
        if hour != self._hour:
            self._steps_back += hour < self._hour
            self._hour = hour
            self._window.restart()
            self._must_tidy = True
        self._background.start()

    async def close(self) -> None:
        """Save the hour if the server answers, and close the store. You may call it again."""
        if self._season is not None:
            await self._season.close()
        try:
            if not await self._background.close():
                return
            self._note()
            if not self._is_failing:
                async with time_limit(LAST_S):
                    await self._save_all()
        except (TrendError, TimeoutError) as error:
            _log.warning("trends %r: the last minutes are not saved: %s", self.store.namespace, error)
        finally:
            await self.store.close()

    def _current_hour(self) -> int:
        return int(self._clock() // HOUR_S) * HOUR_S

    def _note(self) -> None:
        """Replace what is to be saved of the hour."""
        self._traffic.flush()
        window, counts = self._window, self._window.counts
        if not window.requests and not counts.violations:
            return
        key = self._hour, self._steps_back
        while len(self._unsaved) >= _MOST_UNSAVED and key not in self._unsaved:
            del self._unsaved[next(iter(self._unsaved))]
        instance = self._instance()
        self._unsaved[key] = InstanceHour(
            start=self._hour,
            instance=f"{instance}.{self._steps_back}" if self._steps_back else instance,
            version=self._version,
            failed=counts.failed,
            violations=counts.violations,
            missed=counts.missed,
            latency=window.latency_ns.encode(),
        )

    async def _save(self) -> None:
        try:
            await self._save_all()
        except Exception as error:
            if not self._is_failing:
                _log.warning(
                    "trends %r: the hours of this instance cannot be saved; it tries again every %g s: %s",
                    *(self.store.namespace, _SAVE_EVERY_S, error),
                    exc_info=None if isinstance(error, TrendError) else error,
                )
            self._is_failing = True
            return
        if self._is_failing:
            _log.info("trends %r: the hours of this instance are saved again", self.store.namespace)
        self._is_failing = False
        if self._must_tidy:
            self._must_tidy = False
            await self._tidy()

    async def _tidy(self) -> None:
        try:
            await self.store.tidy()
        except Exception as error:
            if not self._is_untidy:
                _log.warning(
                    "trends %r: old hours cannot be merged and removed; it tries again every hour: %s",
                    *(self.store.namespace, error),
                    exc_info=None if isinstance(error, TrendError) else error,
                )
            self._is_untidy = True
        else:
            self._is_untidy = False

    async def _save_all(self) -> None:
        for key, hour in self._unsaved.copy().items():
            saved = await self.store.save(hour)
            # Meanwhile it may have been replaced.
            if self._unsaved.get(key) is hour:
                del self._unsaved[key]
            if not saved and not self._is_refused:
                self._is_refused = True
                _log.warning(
                    "trends %r: an hour is not kept: its start is more than 3 hours from the time of the server; "
                    "check the clock of this machine",
                    self.store.namespace,
                )
