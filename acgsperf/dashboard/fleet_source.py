"""Snapshots of all instances of a service, from the reports that they leave in a server."""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from acgsperf.dashboard.bands import BOUNDS_NS, bands_ms, heat_of
from acgsperf.dashboard.fleet_reading import FleetReader, FleetReading
from acgsperf.dashboard.rounding import four_digits
from acgsperf.dashboard.snapshot import AlertState, Point, Snapshot, TrendState
from acgsperf.dashboard.sources import SnapshotSource
from acgsperf.dashboard.trend_watch import TrendWatch
from acgsperf.fleet.store import ReportStore

if TYPE_CHECKING:
    from acgsperf.trends.store import TrendStore

__all__ = ["FleetSource"]

_MOST_ALERTS: Final = 50


class FleetSource(SnapshotSource):
    """Shows the instances of a service together, and one by one.

    An instance leaves a report once a monitoring round. Rates and percentiles are those between its last two reports.

    Args:
        store: where the reports are, see `acgsperf.fleet.store_of`. It is opened for the first viewer and closed after
            the last one. Do not open it yourself.
        trends: where the hours of the service are; None (default) for nowhere. It is opened and closed here, too.
        name: what the page calls the fleet; by default the namespace of the store.
    """

    def __init__(self, store: ReportStore, *, trends: "TrendStore | None" = None, name: str | None = None) -> None:
        self._store = store
        self._name = name if name is not None else store.namespace
        self._hours = trends
        self._trends: TrendWatch | None = None
        self._opening = asyncio.Lock()
        self._reader: FleetReader | None = None
        self._last = time.monotonic()
        # By instance and alert: since when it is known, in seconds since the epoch.
        self._since: dict[tuple[str, str], float] = {}

    async def snapshot(self) -> Snapshot:
        """Read the reports, and return the figures of the time between the last two of each instance.

        Raises:
            FleetError: if the server cannot be reached.
        """
        if self._reader is None:
            await self._store.open()
            self._reader = FleetReader(self._store)
        found = await self._reader.read()
        now, clock = time.time(), time.monotonic()
        seconds, self._last = clock - self._last, clock
        return Snapshot(
            self._name,
            _point(round(now, 3), found),
            # Without a new report, the charts get no new point.
            seconds=round(seconds, 6) if found.is_new and found.growth is not None else 0.0,
            processes=found.count,
            requests=found.requests,
            bands_ms=bands_ms(BOUNDS_NS),
            alerts=self._alerts(found, now),
            instances=found.instances,
            trials=found.trials,
            missing=found.missing,
        )

    async def trends(self) -> TrendState | None:
        """Return the last weeks, and what became slower or faster."""
        if self._hours is None:
            return None
        async with self._opening:
            if self._trends is None:
                await self._hours.open()
                self._trends = TrendWatch(self._hours, with_changes=True)
        return await self._trends.latest()

    async def close(self) -> None:
        """Close the stores: the last viewer has left."""
        self._reader = self._trends = None
        self._since.clear()
        try:
            if self._hours is not None:
                await self._hours.close()
        finally:
            await self._store.close()

    def _alerts(self, found: FleetReading, now: float) -> tuple[AlertState, ...]:
        raised = {
            (one.name, what): ("unhealthy" if what in one.unhealthy else "alert")
            for one in found.instances
            for what in (*one.unhealthy, *one.alerts)
        }
        self._since = {key: self._since.get(key, now) for key in raised}
        return tuple(
            AlertState(kind, instance, f"{instance}: {what}", round(self._since[instance, what], 1))
            for (instance, what), kind in list(raised.items())[:_MOST_ALERTS]
        )


def _point(at: float, found: FleetReading) -> Point:
    lag_ms = max((one.lag_ms for one in found.instances if one.lag_ms is not None), default=None)
    growth = found.growth
    if growth is None:
        return Point(at, lag_ms=lag_ms)
    buckets = growth.buckets
    return Point(
        at,
        requests=four_digits(growth.requests),
        errors=four_digits(growth.errors),
        violations=four_digits(growth.violations),
        p50_ms=four_digits(buckets.quantile_ms(0.5)),
        p95_ms=four_digits(buckets.quantile_ms(0.95)),
        p99_ms=four_digits(buckets.quantile_ms(0.99)),
        heat=heat_of(buckets),
        hit_rate=growth.hit_rate,
        lag_ms=lag_ms,
    )
