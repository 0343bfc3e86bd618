"""One optimization round: removes expired entries, resizes the pools, and tries one change of a cache setting."""

import math
from collections.abc import Iterator
from typing import Any, Final

from acgsperf.cache import TieredCache
from acgsperf.pool import PoolManager
from acgsperf.pool.options import TARGET_UTILIZATION
from acgsperf.service.traffic import Window
from acgsperf.service.tuning import Action, Outcome, Tunable, Tuner
from acgsperf.validator import ComplianceValidator

__all__ = ["Optimizer"]

# The mean of fewer requests depends more on which requests they were than on the settings.
_MIN_REQUESTS: Final = 1_000
_PROMOTION_THRESHOLDS: Final = (1.0, 10.0)
# The ttl itself is not tuned: the application chose it. Only how early an entry in use is refreshed is tuned.
_REFRESH_AHEAD: Final = (0.8, 1.0)


class Optimizer:
    """Optimizes the parts of a service, one round per call of `run`.

    A round does at once what can be calculated: it removes expired entries, and gives each pool the size at which its
    recent demand is 80 % of it. It tunes cache settings by trial: one change per round, judged by the mean response
    time of the next round.

    Args:
        validator: its expired contexts are removed.
        cache: its expired entries are removed; its `promotion_threshold` and `refresh_ahead` are tuned.
        pools: are resized.
        window: the requests since the last round.
    """

    def __init__(
        self, validator: ComplianceValidator, cache: TieredCache[Any], pools: PoolManager, window: Window
    ) -> None:
        self._validator = validator
        self._cache = cache
        self._pools = pools
        self._window = window
        self._tuner = Tuner(_tunables(cache))

    def run(self) -> tuple[Action, ...]:
        """Run one round.

        Returns:
            What this round did, and the outcome of the change that the last round made.
        """
        window = self._window
        merit = -window.latency_ns.mean if window.latency_ns.count >= _MIN_REQUESTS else None
        actions = (*self._remove_expired(), *self._resize_pools(), *self._tuner.step(merit))
        # Without enough requests the window stays open: rounds with little traffic add up to one measurement.
        if merit is not None:
            window.restart()
        return actions

    def _remove_expired(self) -> Iterator[Action]:
        contexts = self._validator.metrics().context_size
        self._validator.optimize()
        yield from _removal("validator contexts", contexts, self._validator.metrics().context_size)
        stats = self._cache.stats()
        entries = stats.l1.size + stats.stale_entries + stats.negative_entries
        yield from _removal("cache entries in this process", entries, entries - self._cache.remove_expired())

    def _resize_pools(self) -> Iterator[Action]:
        for name, done in self._pools.optimize().items():
            before, after = done.old_target_size, done.target_size
            if after != before:
                was, now = (-abs(done.demand / max(size, 1) - TARGET_UTILIZATION) for size in (before, after))
                yield Action(f"size of pool {name}", before, after, was, now, Outcome.KEPT)


def _removal(name: str, before: int, after: int) -> Iterator[Action]:
    if after != before:
        yield Action(name, before, after, -before, -after, Outcome.KEPT)


def _tunables(cache: TieredCache[Any]) -> Iterator[Tunable]:
    low, high = _PROMOTION_THRESHOLDS
    if cache.has_lower_tiers and cache.promotion_threshold <= high:
        yield Tunable(
            name="promotion_threshold",
            get=lambda: cache.promotion_threshold,
            set=lambda value: setattr(cache, "promotion_threshold", round(value)),
            lower=low,
            upper=high,
            step=1,
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
