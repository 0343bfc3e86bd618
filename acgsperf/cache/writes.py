"""`set`, `delete`, `invalidate_tag` and `clear`: what they supersede, and which tiers carry them out."""

from collections.abc import Mapping, Sequence
from typing import Any

from acgsperf.cache.l1 import L1
from acgsperf.cache.loading import Loading
from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.types import Written
from acgsperf.tiers.base import Entry

__all__ = ["Writes"]


class Writes:
    """The writes of callers, as opposed to those that follow a load or a lookup.

    A write supersedes the loads in flight of its keys, then changes L1, then the lower tiers. L1 has changed before the
    first `await`: a caller that reads the key during the write gets the new value.

    Args:
        l1: is changed first.
        lower_tiers: are changed together after it.
        loading: its loads are superseded.
        promotion: counts the hits of a written key from zero again.
    """

    def __init__(self, l1: L1[Any], lower_tiers: LowerTiers, loading: Loading, promotion: Promotion) -> None:
        self._l1 = l1
        self._lower_tiers = lower_tiers
        self._loading = loading
        self._promotion = promotion

    async def set_many(self, entries: Mapping[str, Entry]) -> dict[str, Written]:
        """Store entries, and return for each key which tiers accepted it."""
        for key, entry in entries.items():
            self._loading.supersede(key)
            self._promotion.forget(key)
            self._l1.put(key, entry)
        l2, l3 = await self._lower_tiers.store(entries)
        return {
            key: Written(True, None if l2 is None else key in l2, None if l3 is None else key in l3) for key in entries
        }

    async def delete_many(self, keys: Sequence[str]) -> Written:
        """Remove distinct keys, and return which tiers removed them all."""
        for key in keys:
            self._loading.supersede(key)
            self._promotion.forget(key)
            self._l1.remove(key)
        return Written(True, *await self._lower_tiers.remove(keys))

    async def invalidate_tag(self, tag: str) -> Written:
        """Remove every entry with a tag, and return which tiers did so."""
        self._loading.flights.supersede_tag(tag)
        self._l1.remove_tag(tag)
        return Written(True, *await self._lower_tiers.invalidate_tag(tag))

    async def clear(self) -> Written:
        """Remove every entry, and return which tiers did so."""
        self._loading.flights.supersede_all()
        self._promotion.clear()
        self._l1.clear()
        return Written(True, *await self._lower_tiers.clear())
