"""What a service does for its own speed: tidies up, sizes its pools, and tries what else there is to change."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from acgsperf.pool.options import TARGET_UTILIZATION
from acgsperf.service.tuning import Action, Knob, Outcome, Tuner

if TYPE_CHECKING:
    from acgsperf.cache import TieredCache
    from acgsperf.pool import PoolManager
    from acgsperf.service.traffic import Window
    from acgsperf.validator import ComplianceValidator

__all__ = ["Action", "Optimizer", "Outcome"]

# The mean of fewer says more about them than about the settings.
_ENOUGH_REQUESTS: Final = 1_000
_THRESHOLDS: Final = (1.0, 10.0)
# The ttl is a promise of its owner's: what is tuned is how long before its end a value in use is loaded again.
_REFRESH_POINTS: Final = (0.8, 1.0)


class Optimizer:
    """One round at a time, of all parts.

    What can be calculated is done at once: what has expired is removed, and pools get the size that keeps recent demand
    at 80 %. The rest is tried: one change a round, judged by the mean response time of the next.

    Args:
        validator, cache, pools: the parts.
        window: the traffic since the last round.
    """

    def __init__(
        self,
        validator: "ComplianceValidator",
        cache: "TieredCache[Any]",
        pools: "PoolManager",
        window: "Window",
    ) -> None:
        self._validator = validator
        self._cache = cache
        self._pools = pools
        self._window = window
        self._tuner = Tuner(_knobs(cache))

    def run(self) -> tuple[Action, ...]:
        """A round; what was done, and what has become of the change that is on trial."""
        window = self._window
        merit = -window.latency_ns.mean if window.latency_ns.count >= _ENOUGH_REQUESTS else None
        actions = (*self._tidied(), *self._sized(), *self._tuner.step(merit))
        # The quiet hours of a small service add up to a round too.
        if merit is not None:
            window.restart()
        return actions

    def _tidied(self) -> Iterator[Action]:
        contexts = self._validator.metrics().context_size
        self._validator.optimize()
        yield from _counted("validator contexts", contexts, self._validator.metrics().context_size)
        stats = self._cache.stats()
        entries = stats.l1.size + stats.stale_entries + stats.negative_entries
        yield from _counted("cache entries in this process", entries, entries - self._cache.expire())

    def _sized(self) -> Iterator[Action]:
        for name, done in self._pools.optimize().items():
            before, after = done.old_target_size, done.target_size
            if after != before:
                was, now = (-abs(done.demand / max(size, 1) - TARGET_UTILIZATION) for size in (before, after))
                yield Action(f"size of pool {name}", before, after, was, now, Outcome.KEPT)


def _counted(name: str, before: int, after: int) -> Iterator[Action]:
    if after != before:
        yield Action(name, before, after, -before, -after, Outcome.KEPT)


def _knobs(cache: "TieredCache[Any]") -> Iterator[Knob]:
    low, high = _THRESHOLDS
    if cache.has_lower_tiers and cache.promotion_threshold <= high:
        yield Knob(
            name="promotion_threshold",
            get=lambda: cache.promotion_threshold,
            set=lambda value: setattr(cache, "promotion_threshold", round(value)),
            lower=low,
            upper=high,
            step=1,
        )
    low, high = _REFRESH_POINTS
    if low <= (cache.refresh_ahead or high):
        yield Knob(
            name="refresh_ahead",
            get=lambda: cache.refresh_ahead or high,
            set=lambda value: setattr(cache, "refresh_ahead", None if math.isclose(value, high) else value),
            lower=low,
            upper=high,
            step=0.05,
        )
