"""One optimization round: removes expired entries, resizes the pools, and tries one change of a cache setting."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

from acgsperf.cache import TieredCache
from acgsperf.pool import PoolManager
from acgsperf.pool.options import TARGET_UTILIZATION
from acgsperf.service.sizing import Sizer
from acgsperf.service.traffic import Window
from acgsperf.service.tuning import Action, Outcome, Tunable, Tuner
from acgsperf.validator import ComplianceValidator

__all__ = ["Optimizer", "cache_tunables"]

# The mean of fewer requests depends more on which requests they were than on the settings.
_MIN_REQUESTS: Final = 1_000
_PROMOTION_THRESHOLDS: Final = (1.0, 10.0)
# The ttl itself is not tuned: the application chose it. Only how early an entry in use is refreshed is tuned.
_REFRESH_AHEAD: Final = (0.8, 1.0)


class Optimizer:
    """Optimizes the parts of a service, one round per call of `run`.

    A round does at once what can be calculated: it removes expired entries, and gives each pool the size at which its
    recent demand is 80 % of it, or another share that the fleet has agreed on. If there are bounds for L1, it resizes
    L1. It tunes cache settings by trial: one change per round, judged by the mean response time of the next round.

    Args:
        validator: its expired contexts are removed.
        cache: its expired entries are removed; its `refresh_ahead` is tuned; its `promotion_threshold`, too, if it does
            not predict.
        pools: are resized.
        window: the requests since the last round.
        sizer: resizes L1; None to leave its size as it is.
        tuned_by_fleet: returns whether other instances exist, so that the settings are tuned together. Then this object
            leaves them and the size of L1 alone.

    Attributes:
        utilization: the share of its connections that a pool is to use at the highest recent demand.
    """

    def __init__(
        self,
        validator: ComplianceValidator,
        cache: TieredCache[Any],
        pools: PoolManager,
        window: Window,
        sizer: Sizer | None = None,
        tuned_by_fleet: Callable[[], bool] | None = None,
    ) -> None:
        self._validator = validator
        self._cache = cache
        self._pools = pools
        self._window = window
        self._sizer = sizer
        self._tuned_by_fleet = tuned_by_fleet or (lambda: False)
        self.utilization: float = TARGET_UTILIZATION
        self._tuner = Tuner(cache_tunables(cache))

    def run(self) -> tuple[Action, ...]:
        """Run one round.

        Returns:
            What this round did, and the outcome of the change that the last round made.
        """
        window = self._window
        merit = -window.latency_ns.mean if window.latency_ns.count >= _MIN_REQUESTS else None
        actions = (*self._remove_expired(), *self._resize_pools(), *self._tune(merit))
        # Without enough requests the window stays open: rounds with little traffic add up to one measurement.
        if merit is not None:
            window.restart()
        return actions

    def _tune(self, merit: float | None) -> Iterator[Action]:
        if self._tuned_by_fleet():
            yield from self._tuner.abandon()
            return
        if self._sizer is not None:
            yield from self._sizer.step()
        yield from self._tuner.step(merit)

    def _remove_expired(self) -> Iterator[Action]:
        contexts = self._validator.metrics().context_size
        self._validator.optimize()
        yield from _removal("validator contexts", contexts, self._validator.metrics().context_size)
        stats = self._cache.stats()
        entries = stats.l1.size + stats.stale_entries + stats.negative_entries
        yield from _removal("cache entries in this process", entries, entries - self._cache.remove_expired())

    def _resize_pools(self) -> Iterator[Action]:
        for name, done in self._pools.optimize(self.utilization).items():
            before, after = done.old_target_size, done.target_size
            if after != before:
                was, now = (-abs(done.demand / max(size, 1) - self.utilization) for size in (before, after))
                yield Action(f"size of pool {name}", before, after, was, now, Outcome.KEPT)


def _removal(name: str, before: int, after: int) -> Iterator[Action]:
    if after != before:
        yield Action(name, before, after, -before, -after, Outcome.KEPT)


def cache_tunables(cache: TieredCache[Any]) -> Iterator[Tunable]:
    """Yield the settings of a cache that one instance can tune alone."""
    low, high = _PROMOTION_THRESHOLDS
    if cache.has_lower_tiers and cache.promotion_threshold <= high:
        yield Tunable(
            name="promotion_threshold",
            get=lambda: cache.promotion_threshold,
            set=lambda value: setattr(cache, "promotion_threshold", round(value)),
            lower=low,
            upper=high,
            # While the cache predicts, it stays, see `TieredCache.optimize`.
            step=lambda value, direction: value if cache.predicts else value + direction,
        )
    low, high = _REFRESH_AHEAD
    if low <= (cache.refresh_ahead or high):
        yield Tunable(
            name="refresh_ahead",
            get=lambda: cache.refresh_ahead or high,
            set=lambda value: setattr(cache, "refresh_ahead", None if math.isclose(value, high) else value),
            lower=low,
            upper=high,
            step=0.05,
        )
