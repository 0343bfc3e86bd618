"""The option `auto_clone`: every caller gets a copy of a value, and the cache keeps one that no caller has."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from msgspec import msgpack

from acgsperf._native.entry import Codec
from acgsperf.cache.l1 import MISSING
from acgsperf.cache.source import Source
from acgsperf.cache.types import CachedValue
from acgsperf.cache.values import ValueType
from acgsperf.dispatch import changed_type

__all__ = ["clone", "clone_for_callers"]

# Nobody can change these.
_IMMUTABLE: Final = frozenset(
    (type(None), bool, int, float, str, bytes, Decimal, UUID, date, datetime, time, timedelta)
)


def clone(value: Any, codec: Codec | None) -> Any:
    """Return a copy of a value.

    A value that the lower tiers can keep is packed and opened again, because this is several times as fast as
    `copy.deepcopy`. It comes back as from a lower tier.

    Args:
        value: the value.
        codec: packs it, if it has a declared type.

    Raises:
        Exception: whatever `copy.deepcopy` raises, for a value that cannot be copied.
    """
    if type(value) in _IMMUTABLE:
        return value
    try:
        if isinstance(codec, ValueType):
            return codec.clone(value)
        if changed_type(value) is None:
            return msgpack.decode(msgpack.encode(value))
    except MemoryError:
        raise
    except Exception:
        # The lower tiers do not keep this value.
        return deepcopy(value)
    return deepcopy(value)


def clone_for_callers(cache: Any) -> None:
    """Let the methods of a `TieredCache` that return values return copies.

    They are replaced on this object, so that a cache without the option has no further step on the path of a hit.
    """
    methods, l1 = vars(cache), cache._parts.l1
    lookup: Callable[[str, Any], Any] = l1.lru.get
    get, get_many, get_entry = cache.get, cache.get_many, cache.get_entry
    get_or_load, get_or_load_many = cache.get_or_load, cache.get_or_load_many
    get_for_function, load_for_function = cache._get, cache._load

    def cloned(key: str, value: Any, codec: Codec | None = cache._codec) -> Any:
        entry = l1.answered_with(key)
        # A function or another user of the key may have another type than the cache.
        return clone(value, entry.codec if entry is not None and entry.value is value else codec)

    def cloned_get_local(key: str, default: Any = None, /) -> Any:
        value = lookup(key, MISSING)
        return default if value is MISSING else cloned(key, value)

    async def cloned_get(key: str, default: Any = None) -> Any:
        value = await get(key, MISSING)
        return default if value is MISSING else cloned(key, value)

    async def cloned_get_for_function(key: str, default: Any, codec: Codec | None) -> Any:
        value = await get_for_function(key, MISSING, codec)
        return default if value is MISSING else cloned(key, value, codec)

    async def cloned_get_many(keys: Iterable[str]) -> dict[str, Any]:
        return {key: cloned(key, value) for key, value in (await get_many(keys)).items()}

    async def cloned_get_entry(key: str) -> CachedValue[Any] | None:
        found = await get_entry(key)
        return None if found is None else replace(found, value=cloned(key, found.value))

    async def cloned_get_or_load(key: str, *arguments: Any, **options: Any) -> Any:
        return cloned(key, await get_or_load(key, *arguments, **options))

    async def cloned_load_for_function(key: str, source: Source) -> Any:
        return cloned(key, await load_for_function(key, source), source.codec)

    async def cloned_get_or_load_many(keys: Iterable[str], *arguments: Any, **options: Any) -> dict[str, Any]:
        values = await get_or_load_many(keys, *arguments, **options)
        return {key: cloned(key, value) for key, value in values.items()}

    methods |= {
        "get_local": cloned_get_local,
        "get": cloned_get,
        "get_many": cloned_get_many,
        "get_entry": cloned_get_entry,
        "get_or_load": cloned_get_or_load,
        "get_or_load_many": cloned_get_or_load_many,
        "_get": cloned_get_for_function,
        "_load": cloned_load_for_function,
    }
