"""Publishes the reports of one instance in the background."""

import logging
from typing import Final

from acgsperf.errors import FleetError
from acgsperf.fleet.background import LAST_S, Background
from acgsperf.fleet.report import Report
from acgsperf.fleet.store import ReportStore
from acgsperf.timeouts import time_limit

__all__ = ["Publisher"]

_log: Final = logging.getLogger("acgsperf.fleet")


class Publisher:
    """Publishes the reports of one instance. No call waits for the server, except `close`, for 1 s at most.

    If a report is still in flight when the next one comes, only the last one is published after it.

    Args:
        store: is opened and closed here.

    Attributes:
        store: where the reports are.
    """

    def __init__(self, store: ReportStore) -> None:
        self.store: Final = store
        self._next: Report | None = None
        self._background = Background(self._publish, "acgsperf fleet")
        self._is_failing = False
        # What was published, or perhaps was.
        self._instance = ""

    async def open(self) -> None:
        """Open the store, in the running event loop. It does not connect yet."""
        await self.store.open()
        self._background.open()

    def publish(self, report: Report) -> None:
        """Publish a report in the background. Does nothing before `open` and after `close`.

        It may be called in any thread, and while the event loop is not running.
        """
        if self._background.is_open:
            self._next = report
            self._background.start()

    async def close(self) -> None:
        """Withdraw the report if the server answers, and close the store. You may call it again."""
        try:
            if not await self._background.close():
                return
            if self._instance and not self._is_failing:
                async with time_limit(LAST_S):
                    await self.store.withdraw(self._instance)
        except (FleetError, TimeoutError) as error:
            _log.debug("fleet %r: cannot withdraw the report, which expires: %s", self.store.namespace, error)
        finally:
            await self.store.close()

    async def _publish(self) -> None:
        while (report := self._next) is not None:
            self._next = None
            self._instance = report.instance
            try:
                await self.store.publish(report)
            except Exception as error:
                if not self._is_failing:
                    unexpected = None if isinstance(error, FleetError | ValueError) else error
                    _log.warning(
                        "fleet %r: the report of this instance cannot be published; each round tries again: %s",
                        *(self.store.namespace, error),
                        exc_info=unexpected,
                    )
                self._is_failing = True
            else:
                if self._is_failing:
                    _log.info("fleet %r: the reports of this instance are published again", self.store.namespace)
                self._is_failing = False
