"""Connects a service to the tuning of its fleet: its settings, its requests, and the rounds."""

import logging
from collections.abc import Iterator
from typing import Any, Final

from acgsperf.cache import TieredCache
from acgsperf.errors import FleetError
from acgsperf.fleet.background import Background
from acgsperf.fleet.coordinator import Coordinator
from acgsperf.fleet.judging import TrialOptions
from acgsperf.fleet.store import ReportStore
from acgsperf.fleet.trials import Agreement, Figures, Standing, decode_standing, encoded
from acgsperf.fleet.tunable import Tunable
from acgsperf.pool import PoolManager
from acgsperf.service.optimizer import Optimizer, cache_tunables
from acgsperf.service.reporter import Reporter
from acgsperf.service.traffic import Traffic
from acgsperf.settings import Settings

__all__ = ["FleetTuning"]

_log: Final = logging.getLogger("acgsperf.fleet")
_UTILIZATIONS: Final = (0.5, 0.95)
_DEPTHS: Final = (1, 8)


class FleetTuning:
    """Tunes a service together with the other instances of its fleet. Create it in the event loop of the service.

    Args:
        store: shared by the fleet.
        settings, cache, pools, traffic, reporter: those of the service.
        optimizer: resizes its pools.
        options: how trials are made.
    """

    def __init__(
        self,
        store: ReportStore,
        settings: Settings,
        cache: TieredCache[Any],
        pools: PoolManager,
        traffic: Traffic,
        reporter: Reporter,
        optimizer: Optimizer,
        options: TrialOptions | None = None,
    ) -> None:
        self._store = store
        self._reporter = reporter
        self._background = Background(self._round, "acgsperf fleet tuning")
        self._background.open()
        self._coordinator = Coordinator(
            store,
            reporter.instance,
            (*_fleet_tunables(cache, pools, settings, optimizer), *cache_tunables(cache)),
            _Meter(traffic),
            interval=settings.monitoring_interval_s,
            options=options,
        )

    @property
    def agreement(self) -> Agreement:
        """What the fleet has agreed on, as far as this instance knows."""
        return self._coordinator.agreement

    def has_others(self) -> bool:
        """Return whether the fleet has other instances, as far as is known."""
        return not self._coordinator.is_alone

    def start_round(self) -> None:
        """Carry out a round in the background. May be called in any thread. Does nothing after `close`.

        If the last round is still in flight, this one is left out.
        """
        if self._background.is_open:
            self._background.start()

    async def close(self) -> None:
        """Stop, and undo a trial in this instance. You may call it again."""
        await self._background.close()
        self._coordinator.undo()

    async def _round(self) -> None:
        try:
            await self._coordinator.follow()
            self._tell()
            await self._coordinator.lead(self._standings)
            self._tell()
        except Exception:
            _log.exception("fleet: a round of tuning failed; the next one tries again")

    def _tell(self) -> None:
        """Let the next report say what this instance does."""
        self._reporter.revision = self._coordinator.revision
        self._reporter.arm = self._coordinator.arm
        self._reporter.tuning = encoded(self._coordinator.standing())

    async def _standings(self) -> dict[str, Standing]:
        found = await self._store.found()
        if found.more:
            raise FleetError("a fleet with more reports than can be read is not tuned: 10,000, or 128 MiB")
        # An instance of an older version tells nothing, but it is one.
        return {report.instance: decode_standing(report.tuning) or Standing() for report in found.reports}


class _Meter:
    """Measures the requests of a service."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._window = traffic.window()

    def restart(self) -> None:
        self._traffic.flush()
        self._window.restart()

    def figures(self, rounds: int) -> Figures:
        self._traffic.flush()
        latency_ns = self._window.latency_ns
        return Figures(
            requests=latency_ns.count,
            failed=max(0, self._window.counts.failed),
            mean_ns=latency_ns.mean if latency_ns.count else 0.0,
            p99_ns=float(latency_ns.percentile(99)) if latency_ns.count else 0.0,
            rounds=rounds,
        )


def _fleet_tunables(
    cache: TieredCache[Any], pools: PoolManager, settings: Settings, optimizer: Optimizer
) -> Iterator[Tunable]:
    """Yield the settings that only several instances can tune: their effect is too small, or too slow, for one."""
    least, size, most = settings.l1_cache_size_min, cache.l1_maxsize, settings.l1_cache_size_max
    if least is not None or most is not None:
        least, most = size if least is None else least, size if most is None else most
        if least <= size <= most:
            yield Tunable(
                name="l1_size",
                get=lambda: cache.l1_maxsize,
                set=lambda value: cache.resize_l1(round(value)),
                lower=least,
                upper=most,
                step=lambda value, direction: round(value * 2.0**direction),
            )
    if cache.prediction_depth is not None:
        yield Tunable(
            name="prediction_depth",
            get=lambda: cache.prediction_depth or 1,
            set=lambda value: setattr(cache, "prediction_depth", round(value)),
            lower=_DEPTHS[0],
            upper=_DEPTHS[1],
            step=1,
        )
    if pools.names():
        yield Tunable(
            name="pool_utilization",
            get=lambda: optimizer.utilization,
            set=lambda value: setattr(optimizer, "utilization", value),
            lower=_UTILIZATIONS[0],
            upper=_UTILIZATIONS[1],
            step=0.1,
        )
