"""The part of `TieredCache` that reads and writes no values: counts, health, and what may be tuned."""

from dataclasses import replace
from typing import TYPE_CHECKING

from acgsperf._native.arguments import checked_bool, checked_maxsize
from acgsperf.cache.options import DEFAULT_TTL, EntryOptions, checked_options, with_ttl
from acgsperf.cache.stats import collect_stats
from acgsperf.cache.types import CacheHealth, TieredStats
from acgsperf.cache.warm_restart import WarmRestart
from acgsperf.errors import CacheError

if TYPE_CHECKING:
    from acgsperf.cache.staleness import Staleness

__all__ = ["Upkeep"]


class Upkeep(WarmRestart):
    """The base of `TieredCache`."""

    namespace: str
    _staleness: "Staleness"

    def __repr__(self) -> str:
        """The namespace, the state and the tiers, without passwords."""
        tiers = ", ".join([repr(self._parts.l1), *map(repr, self._parts.lower_tiers.tiers)])
        return f"<TieredCache {self.namespace!r}, {'open' if self._loop is not None else 'not open'}, {tiers}>"

    def stats(self) -> TieredStats:
        """Return the counts so far."""
        return collect_stats(self._parts)

    async def health(self) -> CacheHealth:
        """Ask the servers of the lower tiers now, and return their answers."""
        self._require_open()
        return CacheHealth(*await self._parts.lower_tiers.health())

    @property
    def promotion_threshold(self) -> int:
        """The hit in the lower tiers at which a value is copied to L1. May be changed at any time."""
        return self._parts.promotion.threshold

    @promotion_threshold.setter
    def promotion_threshold(self, threshold: int) -> None:
        self._parts.promotion.set_threshold(threshold)

    @property
    def options(self) -> EntryOptions:
        """The options of the entries, for calls that give none of their own."""
        return self._staleness.options

    @property
    def refresh_ahead(self) -> float | None:
        """The share of the ttl after which a hit starts a load in the background, None for never.

        May be changed at any time. Entries that L1 already holds keep their old refresh point.
        """
        return self._staleness.options.refresh_ahead

    @refresh_ahead.setter
    def refresh_ahead(self, share: float | None) -> None:
        self._staleness.options = replace(self._staleness.options, refresh_ahead=share)

    @property
    def predicts(self) -> bool:
        """Whether predicted keys are fetched. May be changed if the cache was made with `prediction`."""
        return self._parts.prefetch is not None and self._parts.prefetch.enabled

    @predicts.setter
    def predicts(self, wanted: bool) -> None:
        self._parts.switch_prediction(checked_bool("predicts", wanted))

    @property
    def prediction_depth(self) -> int | None:
        """How many requests ahead keys are predicted, 1 to 8; None if the cache was made without `prediction`.

        May be changed at any time if it is not None.
        """
        return None if self._parts.prefetch is None else self._parts.prefetch.depth

    @prediction_depth.setter
    def prediction_depth(self, depth: int) -> None:
        if self._parts.prefetch is None:
            raise CacheError(f"cache {self.namespace!r} cannot predict: it was made without prediction")
        self._parts.prefetch.depth = depth

    @property
    def l1_maxsize(self) -> int:
        """The largest number of entries of L1, including the values that prediction holds; `resize_l1` changes it."""
        prefetch = self._parts.prefetch
        return self._parts.l1.lru.maxsize + (0 if prefetch is None else prefetch.reserved)

    def resize_l1(self, maxsize: int) -> None:
        """Change the largest number of entries of L1, and evict until they fit.

        Evicting 1,000 entries takes some milliseconds. How many values prediction holds, and how many keys the
        promotion counts, does not change.

        Raises:
            TypeError, ValueError: if `maxsize` is not an integer from 1 to 2**30.
        """
        maxsize, prefetch = checked_maxsize(maxsize), self._parts.prefetch
        self._parts.l1.resize(maxsize if prefetch is None else prefetch.remaining(maxsize))

    @property
    def has_lower_tiers(self) -> bool:
        """Whether there is an L2 or an L3."""
        return bool(self._parts.lower_tiers.tiers)

    def remove_expired(self) -> int:
        """Remove the entries of this process that may not be served any more, and return their number. O(n)."""
        return self._parts.l1.remove_unservable()

    def optimize(self) -> tuple[str, ...]:
        """Do what `remove_expired` does, and move the promotion threshold towards a higher L1 hit rate.

        While the cache predicts, the threshold stays. With a higher one, L1 would lack keys that the predictor expects
        there.

        Returns:
            What was done, in words; empty if nothing was.
        """
        removed = self.remove_expired()
        moved = None if self.predicts else self._parts.promotion.adapt(self._parts.l1.lru.stats())
        done = [f"removed {removed} expired entries"] if removed else []
        return (*done, moved) if moved else tuple(done)

    def _options(self, options: EntryOptions | None, ttl: float | None) -> EntryOptions:
        # The options of a call are checked before a load starts, so that no other caller gets the error.
        own = self._staleness.options
        if options is not None:
            own = checked_options(options, own)
        return own if ttl is DEFAULT_TTL else with_ttl(own, ttl)
