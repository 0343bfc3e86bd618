"""Reads the hours of a service again and again, but rarely."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from acgsperf.dashboard.rounding import four_digits
from acgsperf.dashboard.snapshot import HourPoint, TrendState
from acgsperf.errors import TrendError
from acgsperf.printable import printable
from acgsperf.trends import History, Hour, trends_of

if TYPE_CHECKING:
    from acgsperf.trends.store import TrendStore

__all__ = ["TrendWatch"]

_PERIOD_S: Final = 600.0
# After a failure.
_RETRY_S: Final = 60.0
_HOUR_S: Final = 3600
_SHOWN_S: Final = 28 * 24 * _HOUR_S
_MOST_CHANGES: Final = 20
_log: Final = logging.getLogger("acgsperf.dashboard")


class TrendWatch:
    """The last weeks of a service. They are read at most once in 10 minutes, and only if someone asks.

    Args:
        store: where the hours are. It is opened and closed by its owner.
        with_changes: whether to say what became slower or faster. That takes half a second in a thread, which delays
            the event loop by some milliseconds now and then: not for a process that serves requests.
    """

    def __init__(self, store: "TrendStore", *, with_changes: bool = False) -> None:
        self._store = store
        self._with_changes = with_changes
        self._lock = asyncio.Lock()
        self._latest = TrendState()
        self._due = 0.0

    async def latest(self) -> TrendState:
        """Return the last weeks. If they cannot be read, `missing` says so."""
        async with self._lock:
            if time.monotonic() >= self._due:
                try:
                    self._latest = await self._read()
                    self._due = time.monotonic() + _PERIOD_S
                except TrendError as error:
                    self._fail(printable(str(error)))
                except Exception:
                    self._fail("the last weeks cannot be read; see the log of the service")
                    _log.exception("dashboard: the last weeks cannot be read; they are tried again in %g s", _RETRY_S)
        return self._latest

    def _fail(self, problem: str) -> None:
        self._latest = replace(self._latest, missing=(problem,), next_s=_RETRY_S)
        self._due = time.monotonic() + _RETRY_S

    async def _read(self) -> TrendState:
        found = await self._store.history()
        # By time and not by number, because an hour without requests has no row.
        earliest = time.time() - _SHOWN_S
        hours = tuple(point for point in map(_point, found.hours) if point.at > earliest)
        if not self._with_changes:
            return TrendState(hours, next_s=_PERIOD_S)
        changes, missing = await asyncio.to_thread(_changes, found)
        return TrendState(hours, changes, missing, next_s=_PERIOD_S)


def _point(hour: Hour) -> HourPoint:
    has_latency = hour.p50_ms > 0
    return HourPoint(
        at=hour.start + _HOUR_S,
        requests=four_digits(hour.requests / _HOUR_S),
        p50_ms=four_digits(hour.p50_ms) if has_latency else None,
        p95_ms=four_digits(hour.p95_ms) if has_latency else None,
        p99_ms=four_digits(hour.p99_ms) if has_latency else None,
    )


def _changes(found: History) -> tuple[tuple[str, ...], tuple[str, ...]]:
    trends = trends_of(found)
    return tuple(str(change) for change in reversed(trends.changes[-_MOST_CHANGES:])), trends.missing
