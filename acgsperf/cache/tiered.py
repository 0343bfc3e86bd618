"""`TieredCache`, the public face of the tiered cache: L1 in this process, then L2 and L3, then a loader."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, Unpack, overload

from acgsperf._native.arguments import checked_bool, checked_namespace
from acgsperf._native.entry import Codec
from acgsperf.backplane import Backplane
from acgsperf.cache.arguments import checked_key, checked_keys, checked_tags, distinct_keys
from acgsperf.cache.cloning import clone, clone_for_callers
from acgsperf.cache.decorator import Decorator, cached, refuse_function
from acgsperf.cache.l1 import MISSING
from acgsperf.cache.options import DEFAULT_TTL, EntryKeywords, EntryOptions, options_of_cache
from acgsperf.cache.parts import AUTOMATIC, Parts
from acgsperf.cache.prediction import Prediction, checked_prediction
from acgsperf.cache.results import Loader, LoaderOfMany
from acgsperf.cache.source import Source
from acgsperf.cache.staleness import Staleness, aligned
from acgsperf.cache.touch import touch
from acgsperf.cache.types import CachedValue, CacheHealth, TieredStats, Written
from acgsperf.cache.upkeep import Upkeep
from acgsperf.cache.values import codec_of, opened
from acgsperf.dispatch import BoundedCache
from acgsperf.errors import CacheError, TierError
from acgsperf.tiers.base import Entry, Tier

__all__ = ["CacheHealth", "TieredCache", "TieredStats", "Written"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    _V = TypeVarWithDefault("_V", default=Any)
else:
    _V = TypeVar("_V")
_D = TypeVar("_D")


class TieredCache(Upkeep, Generic[_V]):
    """L1, L2 and L3 as one cache. L2 and L3 are the lower tiers; either may be absent.

    Open it before use, with `async with` or `open`, and use it in the thread of the event loop that opened it. Keys are
    str. Lower tiers keep JSON-like values, bytes, and the `value_type`. A stored None, 0, False, "" or [] is a hit.

    Warning: L1 returns the stored object itself, not a copy. Do not change it, or pass `auto_clone=True`.

    Args:
        l1: an `LRUCache` or `AdaptiveCache` for this cache alone. After its own ttl, the lower tiers are asked again.
        l2: the faster of the lower tiers. The cache opens and closes it. None (default) for no L2.
        l3: the slower of the lower tiers. The cache opens and closes it. None (default) for no L3.
        namespace: 1 to 100 printable characters. Caches with the same one on the same servers share their entries.
        options: how long values are fresh, and what callers get then: `EntryOptions`. None (default) for the defaults.
        negative_maxsize: the maximum number of keys remembered that way, 10,000 by default.
        promotion_threshold: the hit in the lower tiers that copies a value to L1. By default 3, with prediction 1.
        demotion: whether a fresh value that L1 evicts is written to L2 if L2 has lost it. True by default. It needs the
            default backplane, on the server of L2, which tells whether another process has removed the value.
        deadline: the seconds after which a read of L2 and L3 together is a miss. With an L3, L2 has half of this time.
        retry_after: the seconds for which a failed load is not retried if there is a stale value, 1 by default.
        lock_ttl: the seconds for which a process that loads a key holds a lock in L2, and others wait for its value. If
            its load fails, they get a `LoadError`. With None (default), each process loads for itself.
        value_type: the type of the values: what msgspec can decode, or a Pydantic model. Every tier returns this type.
            With None (default), the lower tiers store only JSON-like values and bytes.
        auto_clone: whether callers get copies that they may change. False by default: L1 returns the value itself.
        backplane: tells other processes what this one writes, and vice versa. By default one on the server of L2, or
            else of L3. With None, L1 serves an old value until it expires there: give L1 a ttl then.
        backplane_timeout: the seconds without an answer of the default one after which L1 asks the tiers, by default 1.
        prediction: whether to fetch keys before they are requested, or a `Prediction`. False by default.
        clock: for tests. Returns seconds and never goes back, `time.monotonic` by default. Pass the same clock to L1.
        entry_options: single options of `EntryOptions`, such as `ttl=60`. They win over `options`.

    Attributes:
        namespace: the namespace.
        value_type: the declared type; None if there is none.
        get_local: `l1.get` itself, or its copies. `get_local(key, default=None)` looks in L1 only. If closed: a miss.

    Raises:
        TypeError: if an argument has the wrong type, or `lock_ttl` is given and `l2` cannot lock.
        ValueError: if an argument is out of range, or `l1` belongs to another cache.
    """

    def __init__(
        self,
        l1: BoundedCache[str, Any],
        l2: Tier | None = None,
        l3: Tier | None = None,
        *,
        namespace: str,
        options: EntryOptions | None = None,
        negative_maxsize: int = 10_000,
        promotion_threshold: int | None = None,
        demotion: bool = True,
        deadline: float = 0.25,
        retry_after: float = 1.0,
        lock_ttl: float | None = None,
        value_type: type[_V] | UnionType | None = None,
        auto_clone: bool = False,
        backplane: Backplane | None = AUTOMATIC,
        backplane_timeout: float = 1.0,
        prediction: bool | Prediction = False,
        clock: Callable[[], float] = monotonic,
        **entry_options: Unpack[EntryKeywords],
    ) -> None:
        if not isinstance(l1, BoundedCache):
            raise TypeError(f"l1 must be an LRUCache or an AdaptiveCache, got {type(l1).__name__}")
        self.namespace: str = checked_namespace("namespace", namespace)
        self.value_type: Final = value_type
        self._codec: Final = None if value_type is None else codec_of(value_type)
        staleness = self._staleness = Staleness(
            clock=aligned(clock, l2, l3),
            options=options_of_cache(options, entry_options),
            retry_after=retry_after,
            deadline=deadline,
            lock_ttl=lock_ttl,
            clone=clone if checked_bool("auto_clone", auto_clone) else None,
        )
        parts = self._parts = Parts(
            l1,
            l2,
            l3,
            namespace=self.namespace,
            staleness=staleness,
            negative_maxsize=negative_maxsize,
            promotion_threshold=promotion_threshold,
            demotion=checked_bool("demotion", demotion),
            backplane=backplane,
            backplane_timeout=backplane_timeout,
            codec=self._codec,
            prediction=checked_prediction(prediction),
        )
        self._l1, self._lower_tiers, self._promotion = parts.l1, parts.lower_tiers, parts.promotion
        self._lookup, self._loading, self._writes = parts.lookup, parts.loading, parts.writes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._read_path, self._ordering, self._prefetch = parts.read_path, parts.lower_tiers.ordering, parts.prefetch
        # The method of the compiled cache itself: a hit costs no Python call besides the compiled lookup.
        values: BoundedCache[str, _V] = l1
        self._get_local: Final = values.get
        self.get_local: Final = values.get
        if auto_clone:
            clone_for_callers(self)

    async def open(self) -> Self:
        """Open the tiers, in the running event loop.

        Raises:
            CacheError: if the cache is open already.
            TierError: if a tier is open already.
        """
        if self._loop is not None:
            raise CacheError(f"cache {self.namespace!r} is already open")
        await self._parts.open()
        self._loop = asyncio.get_running_loop()
        self._read_path.enabled = self._lookup.begin_get is not None
        return self

    async def close(self) -> None:
        """Cancel the loads, write what is queued, and close the tiers.

        Callers that wait for a load get a `CacheError`. A loader that ignores its cancellation is abandoned after 5 s.
        Repairs of writes that are not done yet (`stats().unrepaired`) are dropped. Closing again does nothing.
        """
        if self._loop is None:
            return
        self._require_open()
        self._loop = None
        self._read_path.enabled = False
        await self._parts.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @overload
    async def get(self, key: str, default: None = None) -> _V | None: ...
    @overload
    async def get(self, key: str, default: _V | _D) -> _V | _D: ...
    async def get(self, key: str, default: Any = None) -> Any:
        """Return the fresh value of a key from the first tier that has one, or `default`.

        A lower tier that fails, or does not answer within the deadline, is a miss.

        Warning: L1 returns the value itself, not a copy, unless the cache has `auto_clone`. Do not change it.
        """
        # The lookup is fastest without a default. A None is either a miss or a stored None.
        value = self._get_local(key)
        if value is not None or key in self._l1.lru:
            return value
        path = self._read_path
        try:
            if self._prefetch is not None and (found := self._prefetch.request(key, self._codec)) is not None:
                return found.value
            future = path.begin(key)
        except TierError:
            self._require_open()
            raise
        if future is not None:
            began_at, started = self._ordering.latest, monotonic()
            entry = await future
            if path.end(key, entry):
                return entry.value
            if entry is not None and self._codec is not None:
                entry = opened(entry, self._codec, self._lower_tiers.tiers[0])
                if entry is not None and path.end_opened(key, entry):
                    return entry.value
            return await self._lookup.get_on(key, default, entry, self._codec, began_at, started)
        self._require_open()
        checked_key(key)
        return await self._lookup.get(key, default, self._codec)

    async def _get(self, key: str, default: Any, codec: Codec | None) -> Any:
        """`get` after a miss in L1. The codec opens what the lower tiers have."""
        self._require_open()
        if self._prefetch is not None and (found := self._prefetch.request(key, codec)) is not None:
            return found.value
        checked_key(key)
        return await self._lookup.get(key, default, codec)

    async def get_many(self, keys: Iterable[str]) -> dict[str, _V]:
        """Return the fresh values of those keys that have one, with one call of each tier."""
        found, missed = self._l1.get_many(checked_keys(keys))
        if missed:
            self._require_open()
            for key in missed:
                checked_key(key)
            if self._prefetch is not None:
                missed = self._prefetch.answer(missed, found, self._codec)
            found |= await self._lookup.get_many(missed, self._codec)
        return found

    async def get_entry(self, key: str) -> CachedValue[_V] | None:
        """Return what `get` finds, with its age, remaining ttl, tags and tier; None if there is no fresh value."""
        self._require_open()
        checked_key(key)
        found = await self._lookup.find(key, self._codec)
        if found is None:
            return None
        (entry, tier), now = found, self._staleness.clock()
        ttl = None if entry.fresh_until is None else entry.fresh_until - now
        return CachedValue(entry.value, max(now - entry.created_at, 0.0), ttl, entry.tags, tier)

    async def touch(self, key: str, ttl: float | None = DEFAULT_TTL) -> Written | None:
        """Give the fresh value of a key a new ttl, from now on, in every tier and process.

        It changes nothing else: if the key is written, loaded or invalidated meanwhile, that stays.

        Returns:
            Which tiers did so; a tier without the value did not. None if there is no fresh value. A value that no lower
            tier could store is not touched. After a deadline, it continues in the background, and the result is False.
        """
        self._require_open()
        checked_key(key)
        return await touch(self._parts, self._staleness, key, self._options(None, ttl), self._codec)

    async def set(
        self,
        key: str,
        value: _V,
        ttl: float | None = DEFAULT_TTL,
        *,
        tags: Sequence[str] = (),
        options: EntryOptions | None = None,
    ) -> Written:
        """Store a value in every tier, and tell the other processes. A load in flight does not replace it.

        Of two concurrent `set` of a key, one wins everywhere, not necessarily that of the last change in your database.

        Args:
            key: any str.
            value: JSON-like, bytes, or of the `value_type`; without lower tiers, any object.
            ttl: the seconds for which the value is fresh; by default the cache's own ttl; None for no limit.
            tags: labels that `invalidate_tag` finds the value by.
            options: other options; those that are not given are the cache's.

        Returns:
            Which tiers accepted the value. If only one did, both remove it in the background.

        Raises:
            CacheError: if the cache is not open, or is open in another event loop.
            TypeError: if the key, the ttl or a tag has the wrong type.
            ValueError: if the ttl is not greater than 0, or a tag cannot be encoded as UTF-8.
        """
        return (await self._writes.set_many(self._entries({key: value}, ttl, tags, options)))[key]

    async def set_many(
        self,
        values: Mapping[str, _V],
        ttl: float | None = DEFAULT_TTL,
        *,
        tags: Sequence[str] = (),
        options: EntryOptions | None = None,
    ) -> dict[str, Written]:
        """`set` each item, with one call of each tier."""
        return await self._writes.set_many(self._entries(values, ttl, tags, options))

    async def delete(self, key: str) -> Written:
        """Remove a key from every tier, and return which tiers did so. A load in flight does not restore it.

        If L3 refuses to write, but not to read, for longer than L2 remembers the deletion (60 s), the value may return.
        """
        return await self.delete_many((key,))

    async def delete_many(self, keys: Iterable[str]) -> Written:
        """`delete` each key, with one call of each tier, and return which tiers removed them all."""
        self._require_open()
        return await self._writes.delete_many(distinct_keys(checked_keys(keys)))

    async def invalidate_tag(self, tag: str) -> Written:
        """Remove every entry with a tag from every tier, and return which did. It has the limit of `delete`."""
        self._require_open()
        checked_tags((tag,))
        return await self._writes.invalidate_tag(tag)

    async def clear(self) -> Written:
        """Remove every entry of the namespace from every tier, and return which did. It has the limit of `delete`."""
        self._require_open()
        return await self._writes.clear()

    async def get_or_load(
        self,
        key: str,
        loader: Loader[_V],
        *,
        ttl: float | None = DEFAULT_TTL,
        tags: Sequence[str] = (),
        options: EntryOptions | None = None,
        refresh: bool = False,
        bypass: bool = False,
    ) -> _V:
        """Return the value of a key from the first tier that has it, or else call the loader and store its value.

        Concurrent callers of a key share one load. Cancelling one of them does not affect the others; the load is
        cancelled when its last caller leaves. If the loader fails, each caller gets its error, and nothing is stored.

        Args:
            key: any str.
            loader: a coroutine function that takes the key and returns the value, or a `Loaded`, which decides how the
                value is kept. With a second parameter, it also gets the `Previous` value, or None, and may return
                `UNCHANGED`.
            ttl, tags, options: as for `set`.
            refresh: load the value now, even if a tier has a fresh one, and replace that.
            bypass: only call the loader. Nothing is read or stored, and the load is not shared.

        Raises:
            LoadTimeoutError: if the load takes longer than `hard_timeout`, and there is no stale value.
            LoadCancelledError: if the loader cancels its own load.
            LoadError: if the load would wait for itself, fails in another process that holds the lock, or returns
                `UNCHANGED` without a previous value.
            CacheError: if the cache is not open, or is closed during the load.
            TypeError: if `loader` is not a coroutine function, or as for `set`.
            ValueError: as for `set`.
        """
        value: Any = MISSING if refresh or bypass else self._get_local(key, MISSING)
        if value is not MISSING:
            return value  # type: ignore[no-any-return]
        self._require_open()
        checked_key(key)
        source = Source.of_one(key, loader, self._options(options, ttl), checked_tags(tags), self._codec, refresh)
        load = self._loading.bypass if bypass else self._loading.load
        loaded: _V = (await load((key,), source))[key]
        return loaded

    async def _load(self, key: str, source: Source) -> Any:
        """`get_or_load` for a `CachedFunction`, after a miss in L1."""
        self._require_open()
        checked_key(key)
        return (await self._loading.load((key,), source))[key]

    async def get_or_load_many(
        self,
        keys: Iterable[str],
        loader: LoaderOfMany[_V],
        *,
        ttl: float | None = DEFAULT_TTL,
        tags: Sequence[str] = (),
        options: EntryOptions | None = None,
        refresh: bool = False,
        bypass: bool = False,
    ) -> dict[str, _V | None]:
        """`get_or_load` each key, with one call of each tier, and one call of the loader for what is missing.

        If another caller is loading a key, this call waits for that load, and does not pass the key to its loader.

        Args:
            keys: any str.
            loader: a coroutine function that takes a list of keys and returns a mapping of keys to what the loader of
                `get_or_load` may return. With a second parameter, it gets a mapping of keys to `Previous`.
            ttl, tags, options: as for `set`.
            refresh, bypass: as for `get_or_load`.

        Returns:
            A value for every key, None for those that the mapping lacks.

        Raises:
            Exception: as for `get_or_load`, if a key has neither a loaded nor a stale value.
        """
        keys = list(dict.fromkeys(checked_keys(keys)))
        values, missed = ({}, keys) if refresh or bypass else self._l1.get_many(keys)
        if missed:
            self._require_open()
            for key in missed:
                checked_key(key)
            source = Source(loader, self._options(options, ttl), checked_tags(tags), reload=refresh, codec=self._codec)
            values |= await (self._loading.bypass if bypass else self._loading.load)(missed, source)
        return {key: values[key] for key in keys}

    def cached(
        self,
        function: None = None,
        /,
        *,
        key: Callable[..., str] | None = None,
        ttl: float | None = DEFAULT_TTL,
        tags: Sequence[str] | Callable[..., Sequence[str]] = (),
        value_type: Any = None,
        options: EntryOptions | None = None,
    ) -> Decorator:
        """Decorate a coroutine function or method, whose results this cache keeps; see `cached`.

        Write `@cache.cached()` with parentheses: `function` is only there for the message if they are missing.
        """
        if function is not None:
            refuse_function(function, "cache.cached")
        return cached(self, key=key, ttl=ttl, tags=tags, value_type=value_type, options=options)

    async def expire_now(self, *keys: str) -> Written:
        """Make the values of keys stale in every tier and process, and return which tiers did so.

        The value is kept for `stale_ttl` from now on. The next `get_or_load` loads the key; `soft_timeout` decides
        whether it waits, or returns the stale value. `delete` removes a value.
        """
        self._require_open()
        return await self._writes.expire_now(distinct_keys(keys))

    async def expire_tag_now(self, tag: str) -> Written:
        """`expire_now` for every value with a tag. If a tier did not do it, a repair removes these values."""
        self._require_open()
        checked_tags((tag,))
        return await self._writes.expire_tag(tag)

    def _entries(
        self, values: Mapping[str, _V], ttl: float | None, tags: Sequence[str], options: EntryOptions | None
    ) -> dict[str, Entry]:
        self._require_open()
        own_options, own_tags = self._options(options, ttl), checked_tags(tags)
        for key in values:
            checked_key(key)
        return {key: self._staleness.entry(value, own_options, own_tags, self._codec) for key, value in values.items()}
