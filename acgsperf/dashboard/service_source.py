"""Snapshots of the service, caches and pools of this process."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from acgsperf.cache.types import Written
from acgsperf.dashboard.bands import BOUNDS_NS
from acgsperf.dashboard.compose import compose
from acgsperf.dashboard.fleet_watch import FleetWatch
from acgsperf.dashboard.hot_keys import HotKeys
from acgsperf.dashboard.interval import Interval, Observation
from acgsperf.dashboard.rounding import four_digits
from acgsperf.dashboard.snapshot import AlertState, HotKey, Point, Snapshot, TargetState, TrendState
from acgsperf.dashboard.sources import SnapshotSource
from acgsperf.dashboard.trend_watch import TrendWatch
from acgsperf.errors import CacheError
from acgsperf.metrics.figures import gather
from acgsperf.metrics.source import Caches, HttpSource, MetricsSource, Pools, Sources
from acgsperf.monitor import Alert, AlertKind, Monitor
from acgsperf.printable import printable

if TYPE_CHECKING:
    from acgsperf.fleet.store import ReportStore
    from acgsperf.trends.store import TrendStore

__all__ = ["ServiceSource"]

_MOST_HOT_KEYS: Final = 20
_MOST_ALERTS: Final = 50


class ServiceSource(SnapshotSource):
    """Shows what runs in this process.

    Args:
        service: a service, with its cache, its pools and its alerts; or None.
        cache, pools, http: what else to show, see `PerformanceCollector`.
        name: what the page calls it; by default the namespace of the first cache.
        hot_keys: whether to sample the keys that are read.
        show_keys: whether to show these keys and not their digests.
    """

    def __init__(
        self,
        service: MetricsSource | None = None,
        *,
        cache: Caches = (),
        pools: Pools = (),
        http: HttpSource | None = None,
        name: str | None = None,
        hot_keys: bool = True,
        show_keys: bool = False,
    ) -> None:
        self._sources = Sources(service, cache, pools, http)
        self._caches = self._sources.caches
        self._name = name if name is not None else next(iter(self._caches), "acgsperf")
        self._monitor: Monitor | None = getattr(service, "monitor", None)
        self._clock: Callable[[], float] = getattr(getattr(service, "traffic", None), "clock", time.monotonic)
        readers = () if service is None else (service,)
        self._hot_keys = (
            {
                name: HotKeys(name, cache, *(readers if at == 0 else ()), show_keys=show_keys)
                for at, (name, cache) in enumerate(self._caches.items())
            }
            if hot_keys
            else None
        )
        store: ReportStore | None = getattr(service, "fleet_store", None)
        self._fleet = None if store is None else FleetWatch(store)
        hours: TrendStore | None = getattr(service, "trend_store", None)
        self._trends = None if hours is None else TrendWatch(hours)
        self._before: Observation | None = None

    def add_http(self, http: HttpSource) -> None:
        """Show the routes of a middleware, unless the constructor was given one."""
        if self._sources.http is None:
            self._sources.http = http

    async def snapshot(self) -> Snapshot:
        """Return the figures of the time since the last call."""
        now = Observation(time.time(), time.monotonic(), gather(self._sources.read(), BOUNDS_NS), BOUNDS_NS)
        interval, self._before = Interval(now, self._before), now
        found = compose(self._name, interval)
        return replace(
            found, alerts=self._alerts(now.at), hot_keys=self._hottest(), targets=self._targets(), **self._of_fleet()
        )

    def history(self) -> Sequence[Point]:
        """Return the readings of the service's monitor."""
        if self._monitor is None:
            return ()
        offset = time.time() - self._clock()
        readings = self._monitor.history
        lengths = [0.0, *(after.at - before.at for before, after in pairwise(readings))]
        return [
            Point(
                at=round(reading.at + offset, 1),
                requests=four_digits(reading.requests / seconds) if seconds > 0 else None,
                errors=four_digits(reading.errors / seconds) if seconds > 0 else None,
                violations=four_digits(reading.violations / seconds) if seconds > 0 else None,
                p50_ms=reading.p50_ms,
                p95_ms=reading.p95_ms,
                p99_ms=reading.p99_ms,
                hit_rate=reading.hit_rate,
            )
            for reading, seconds in zip(readings, lengths, strict=False)
        ]

    async def trends(self) -> TrendState | None:
        """Return the hours that the service keeps. Changes are not looked for, because that would delay requests."""
        return None if self._trends is None else await self._trends.latest()

    def start(self) -> None:
        """Sample the keys that are read."""
        # The first rates must not be those of the time without viewers.
        self._before = None
        for sampled in (self._hot_keys or {}).values():
            sampled.start()

    def stop(self) -> None:
        """Sample no keys any more."""
        for sampled in (self._hot_keys or {}).values():
            sampled.stop()

    async def close(self) -> None:
        """Read the fleet no more."""
        if self._fleet is not None:
            await self._fleet.close()

    def cache_names(self) -> Sequence[str]:
        """Return the names of the caches."""
        return list(self._caches)

    async def invalidate(self, cache: str, *, key: str | None = None, tag: str | None = None) -> Written:
        """Remove a key or a tag from all tiers of a cache."""
        found = self._caches.get(cache)
        if found is None:
            raise CacheError(f"there is no cache {cache!r:.100} here")
        if key is not None:
            return await found.delete(key)
        return await found.invalidate_tag(tag or "")

    def _of_fleet(self) -> dict[str, Any]:
        if self._fleet is None:
            return {}
        self._fleet.refresh()
        found, problem = self._fleet.latest, self._fleet.problem
        missing = ((problem,) if problem else ()) + (() if found is None else found.missing)
        if found is None:
            return {"missing": missing}
        return {"instances": found.instances, "trials": found.trials, "missing": missing}

    def _hottest(self) -> tuple[HotKey, ...] | None:
        if self._hot_keys is None:
            return None
        found = [key for sampled in self._hot_keys.values() for key in sampled.top(_MOST_HOT_KEYS)]
        return tuple(sorted(found, key=lambda key: -key.share)[:_MOST_HOT_KEYS])

    def _alerts(self, now: float) -> tuple[AlertState, ...] | None:
        if self._monitor is None:
            return None
        offset = now - self._clock()
        return tuple(
            AlertState(
                alert.kind.value,
                printable(alert.subject),
                printable(_text_of(alert, now - offset)),
                round(alert.at + offset, 1),
            )
            for alert in self._monitor.active[:_MOST_ALERTS]
        )

    def _targets(self) -> TargetState | None:
        if self._monitor is None:
            return None
        found = self._monitor.targets
        return TargetState(found.p50_ms, found.p95_ms, found.p99_ms, found.hit_rate, found.throughput_rps)


def _text_of(alert: Alert, now: float) -> str:
    """Return what an alert says, for example `P99 passes 5 ms in about 12 minutes`."""
    subject = alert.subject.replace("_", " ")
    subject = subject.upper() if alert.subject in {"p50", "p95", "p99"} else subject.capitalize()
    if alert.kind is AlertKind.POOL_HEALTH:
        return f"Pool {alert.subject} is {alert.message}"
    if alert.kind is not AlertKind.FORECAST:
        return f"{subject}: {alert.message}"
    falls = alert.subject == "hit_rate"
    crossing = f"falls below {100 * alert.limit:g} %" if falls else f"passes {alert.limit:g} ms"
    if alert.due is None or alert.due <= now:
        return f"{subject} {crossing} about now"
    return f"{subject} {crossing} in about {_duration(alert.due - now)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{round(seconds / 3600)} hours"
