"""A load that its caller runs. The cache keeps its values only if no write has superseded them meanwhile."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from acgsperf._native.entry import Codec
from acgsperf.cache.arguments import checked_key, checked_tags
from acgsperf.cache.lower_tiers import Seen
from acgsperf.cache.options import with_ttl
from acgsperf.tiers.base import Observation

if TYPE_CHECKING:
    from acgsperf.cache.tiered import TieredCache

__all__ = ["PendingLoad"]

_NO_TAGS: Final[Mapping[str, Sequence[str]]] = {}


class PendingLoad:
    """Stores the values of a load that the caller runs, unless a write has superseded it.

        pending = await PendingLoad.begin(cache, [key], tags)
        value = ...  # computed by the caller
        await pending.store({key: value}, ttl)

    Use it instead of `set` for a value that was computed from data that others may have changed meanwhile, if the value
    or its key cannot be made by a loader. Concurrent loads of a key do not share a value: the first one is stored.

    No tier keeps a value if this process or another one has written the key, invalidated a tag or cleared the namespace
    since `begin`, or if the load took longer than the tiers remember removals.

    It works by observation: it holds what the lower tiers had before the load, and they compare that when they store.

    Limit: if a key was not passed to `begin`, other processes can supersede its value only by its tags. So all writers
    of such a key must share a tag.
    """

    __slots__ = ("_began_at", "_cache", "_expires_at", "_seen", "_tags")

    def __init__(self, cache: "TieredCache[Any]", tags: tuple[str, ...], began_at: int, seen: dict[str, Seen]) -> None:
        self._cache = cache
        self._tags = tags
        self._began_at = began_at
        self._seen = seen
        self._expires_at = min(one.expires_at for one in seen.values())

    @classmethod
    async def begin(cls, cache: "TieredCache[Any]", keys: Sequence[str], tags: Sequence[str]) -> "PendingLoad":
        """Observe the lower tiers, before the load.

        Args:
            cache: an open cache.
            keys: the keys that may be stored; at least one.
            tags: the tags of all values that may be stored.

        Raises:
            CacheError: if the cache is not open, or is open in another event loop.
            TypeError, ValueError: if a key or a tag is not valid.
        """
        cache._require_open()
        for key in keys:
            checked_key(key)
        tags, parts = checked_tags(tags), cache._parts
        # What is written while the tiers answer supersedes the load as well.
        began_at = parts.lower_tiers.ordering.latest
        return cls(cache, tags, began_at, await parts.lookup.observe(keys, tags))

    def is_current(self, key: str, late_tags: tuple[str, ...] = ()) -> bool:
        """Return whether a value may still be stored: this process knows of no later write that supersedes it.

        Args:
            key: the key of the value.
            late_tags: tags of the value that were not known before the load.
        """
        return self._cache._parts.lower_tiers.ordering.is_current(self._began_at, key, self._tags + late_tags)

    async def store(
        self,
        values: Mapping[str, Any],
        ttl: float | Mapping[str, float | None] | None,
        *,
        late_tags: Mapping[str, Sequence[str]] = _NO_TAGS,
        codec: Codec | None = None,
    ) -> frozenset[str]:
        """Store what was loaded, and wait for the first lower tier.

        Args:
            values: by key.
            ttl: the seconds for which they are fresh, from now on; None for no limit. A mapping has one for each key.
            late_tags: for each key, tags that were not known before the load. The lower tiers do not store a value with
                such tags if any tag of the namespace was invalidated since `begin`.
            codec: packs the values; None for that of the cache.

        Returns:
            The keys that are stored.

        Raises:
            CacheError: if the cache is not open any more.
            TypeError, ValueError: if a key or the ttl is not valid.
        """
        self._cache._require_open()
        parts, staleness = self._cache._parts, self._cache._staleness
        tiers, ordering = parts.lower_tiers, parts.lower_tiers.ordering
        codec = self._cache._codec if codec is None else codec
        for key in values:
            checked_key(key)
        tags = {key: self._tags + checked_tags(late_tags.get(key, ())) for key in values}
        seen = self._seen | await self._observe_late([key for key in values if key not in self._seen])
        entries = {
            key: staleness.entry(
                value, with_ttl(staleness.options, ttl[key] if isinstance(ttl, Mapping) else ttl), tags[key], codec
            )
            for key, value in values.items()
            if ordering.is_current(self._began_at, key, tags[key])
        }
        if not entries or time.monotonic() >= self._expires_at:
            return frozenset()
        for key in entries:
            # A load by `get_or_load` that is in flight must not replace this value.
            parts.loading.supersede(key)
        storing = tiers.put_and_wait(entries, seen)
        number = ordering.latest
        stored = await storing
        kept = set(stored)
        for key, entry in entries.items():
            first = seen[key].l3 if tiers.l2 is None else seen[key].l2
            # L1 keeps what the first tier has stored. If that tier did not answer before the load, L1 keeps it alone.
            if (first is None or key in stored) and ordering.is_current(number, key, tags[key]):
                parts.l1.put(key, entry)
                kept.add(key)
        return frozenset(kept)

    async def _observe_late(self, keys: Sequence[str]) -> dict[str, Seen]:
        """Observe keys that were not known before the load, and compare their tags with what was observed then."""
        if not keys:
            return {}
        early = next(iter(self._seen.values()))
        late = await self._cache._parts.lookup.observe(keys, self._tags)
        return {key: Seen(_dated_back(one.l2, early.l2), _dated_back(one.l3, early.l3)) for key, one in late.items()}


def _dated_back(late: Observation | None, early: Observation | None) -> Observation | None:
    """Return a late observation of a key, with the tokens that were observed before the load."""
    return None if late is None or early is None else replace(early, id=late.id, stamp=late.stamp)
