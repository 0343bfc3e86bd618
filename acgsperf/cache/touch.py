"""`touch`: a new ttl for the value of a key, in every tier and process."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from acgsperf.cache.types import Written
from acgsperf.cache.values import opened
from acgsperf.tiers.base import ONLY_L1, Entry, Observation, Store, Tier
from acgsperf.tiers.records import RecordKind, of_keys

if TYPE_CHECKING:
    from acgsperf._native.entry import Codec
    from acgsperf.cache.options import EntryOptions
    from acgsperf.cache.parts import Parts
    from acgsperf.cache.staleness import Staleness

__all__ = ["touch"]

# How often a touch is tried if the key is written or loaded meanwhile.
_TRIES: Final = 3


async def touch(
    parts: "Parts", staleness: "Staleness", key: str, options: "EntryOptions", codec: "Codec | None"
) -> Written | None:
    """Give the fresh value of a key a new ttl, and return which tiers did so; None if there is no fresh value.

    It continues after its caller was cancelled or has waited for one deadline. In the second case, the result says that
    no tier is known to have done so.
    """
    call = _touch(parts, staleness, key, options, codec)
    if not parts.lower_tiers.tiers:
        return await call
    return await parts.writes.detached.run(call, lambda: _not_done(parts))


async def _touch(
    parts: "Parts", staleness: "Staleness", key: str, options: "EntryOptions", codec: "Codec | None"
) -> Written | None:
    """Touch an entry.

    A tier does so only if it still has the same entry, so a touch undoes no write, load or invalidation. For that, the
    tier is observed before the entry is read again, and compares the observation when it stores. Other processes get a
    record, because their L1 may have the entry with the former ttl.
    """
    found = await parts.lookup.find(key, codec)
    if found is None:
        return None
    tiers, entry = parts.lower_tiers, found[0]
    for _ in range(_TRIES):
        began_at = tiers.ordering.latest
        seen = (await parts.lookup.observe((key,), entry.tags))[key]
        present: dict[Tier, tuple[Entry, Observation]] = {}
        for tier, observed in ((tiers.l2, seen.l2), (tiers.l3, seen.l3)):
            if tier is not None and observed is not None and (has := await tier.get(key)) is not None:
                has_opened = opened(has, codec, tier)
                if has_opened is not None and not has_opened.negative and staleness.is_fresh(has_opened):
                    present[tier] = has_opened, observed
        newest = next((present[tier][0] for tier in tiers.tiers if tier.coherent and tier in present), entry)
        if newest.id != entry.id or newest.tags != entry.tags:
            # It was written meanwhile, or L1 does not know of that yet.
            entry = newest
        elif tiers.ordering.is_current(began_at, key, entry.tags):
            return await _carry_out(parts, staleness, key, options, codec, entry, present)
    return _not_done(parts)


async def _carry_out(
    parts: "Parts",
    staleness: "Staleness",
    key: str,
    options: "EntryOptions",
    codec: "Codec | None",
    entry: Entry,
    present: Mapping[Tier, tuple[Entry, Observation]],
) -> Written:
    """Store an entry with another ttl where it is present and has been observed."""
    tiers, ordering = parts.lower_tiers, parts.lower_tiers.ordering
    new = replace(staleness.entry(entry.value, options, entry.tags, codec), created_at=entry.created_at)
    if entry.id == ONLY_L1 or not tiers.tiers:
        new = replace(new, id=entry.id)
        parts.l1.put(key, new)
        return _written(parts, {}, True, None if parts.backplane is None else True)
    # A load in flight must not replace it in this process alone.
    parts.loading.supersede(key)
    tiers.supersede(key)
    ordering.supersede(key)
    number = ordering.latest
    stored: dict[Tier, bool] = {}
    # The slower tier first, as for every write.
    for tier in reversed(tiers.tiers):
        if tier in present:
            has, observed = present[tier]
            if tier.coherent and not has.id == observed.id == entry.id:
                continue
            stored[tier] = key in await tier.store({key: Store(replace(new, stamp=has.stamp), observed)})
    is_kept = bool(stored) and all(stored.values())
    published: bool | None = None if parts.backplane is None else True
    if any(stored.values()):
        published = await parts.writes.tell(of_keys(RecordKind.KEYS, [(key, new.id)]), waiting=True)
    if is_kept and ordering.is_current(number, key, entry.tags):
        parts.l1.put(key, new)
    return _written(parts, stored, is_kept, published)


def _not_done(parts: "Parts") -> Written:
    return _written(parts, {}, False, None if parts.backplane is None else False)


def _written(parts: "Parts", stored: Mapping[Tier, bool], l1: bool, published: bool | None) -> Written:
    l2, l3 = parts.lower_tiers.l2, parts.lower_tiers.l3
    return Written(
        l1,
        None if l2 is None else stored.get(l2, False),
        None if l3 is None else stored.get(l3, False),
        published,
    )
