"""`TieredCache`, the public face of the tiered cache: L1 in this process, then L2 and L3, then a loader."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Generic, Self, TypeVar, overload

from acgsperf._native.arguments import checked_bool, checked_namespace
from acgsperf.backplane import Backplane
from acgsperf.cache.arguments import checked_key, checked_keys, checked_tags, checked_ttl, distinct_keys
from acgsperf.cache.decorator import DEFAULT_TTL, Decorator, cached, refuse_function
from acgsperf.cache.l1 import MISSING
from acgsperf.cache.parts import AUTOMATIC, Parts
from acgsperf.cache.prediction import Prediction, checked_prediction
from acgsperf.cache.source import Source
from acgsperf.cache.staleness import Staleness, aligned
from acgsperf.cache.stats import collect_stats
from acgsperf.cache.types import CacheHealth, TieredStats, Written
from acgsperf.cache.warm_restart import WarmRestart
from acgsperf.dispatch import BoundedCache
from acgsperf.errors import CacheError, TierError
from acgsperf.tiers.base import Entry, Tier
from acgsperf.tiers.server import ServerTier

__all__ = ["CacheHealth", "TieredCache", "TieredStats", "Written"]

_V = TypeVar("_V")
_D = TypeVar("_D")


class TieredCache(WarmRestart, Generic[_V]):
    """L1, L2 and L3 as one cache. L2 and L3 are the lower tiers; either may be absent.

    Open it before use, with `async with` or `open`, and use it in the thread of the event loop that opened it. Keys are
    str. With a lower tier, values must be JSON-like or bytes. A stored None, 0, False, "" or [] is a hit.

    Warning: L1 returns the stored object itself, not a copy. Do not change it: every later caller would get the change.

    Args:
        l1: an `LRUCache` or `AdaptiveCache` for this cache alone. After its own ttl, the lower tiers are asked again.
        l2: the faster of the lower tiers. The cache opens and closes it. None (default) for no L2.
        l3: the slower of the lower tiers. The cache opens and closes it. None (default) for no L3.
        namespace: 1 to 100 printable characters. Caches with the same one on the same servers share their entries.
        ttl: the seconds for which a value is fresh, 3600 by default; None for no limit.
        ttl_jitter: the share of the ttl, less than 1, by which it is shortened at random. 0 by default.
        stale_ttl: the seconds for which an expired value is kept, in case a load is slow or fails. 0 by default.
        soft_timeout: the seconds that a caller waits for a load if there is a stale value. Then it gets the stale
            value, and the load continues in the background. 0 (default) serves the stale value at once
            (stale-while-revalidate). None serves it only if the load fails (stale-if-error).
        hard_timeout: the seconds that a load may take, None (default) for no limit.
        refresh_ahead: the share of the ttl after which a hit of `get_or_load` starts a load in the background. Greater
            than 0 and less than 1; None (default) for never. A `PerformanceService` moves it between 0.8 and None.
        negative_ttl: the seconds for which a loader's None is remembered. With None (default), it is like any value.
        negative_maxsize: the maximum number of keys remembered that way, 10,000 by default.
        promotion_threshold: the hit in the lower tiers that copies a value to L1, 3 by default. `optimize` moves it.
        demotion: whether a fresh value that L1 evicts is written to L2 if L2 has lost it. True by default. It needs the
            default backplane, on the server of L2, which tells whether another process has removed the value.
        deadline: the seconds after which a read of L2 and L3 together is a miss, 0.25 by default.
        retry_after: the seconds for which a failed load is not retried if there is a stale value, 1 by default.
        lock_ttl: the seconds for which a process that loads a key holds a lock in L2, and others wait for its value. If
            its load fails, they get a `LoadError`. With None (default), each process loads for itself.
        backplane: tells other processes what this one writes, and vice versa. By default one on the server of L2, or
            else of L3. With None, L1 serves an old value until it expires there: give L1 a ttl then.
        backplane_timeout: the seconds without an answer of the default one after which L1 asks the tiers, by default 1.
        prediction: whether to fetch keys before they are requested, or a `Prediction`. False by default.
        clock: for tests. Returns seconds and never goes back, `time.monotonic` by default. Pass the same clock to L1.

    Attributes:
        namespace: the namespace.
        get_local: `l1.get` itself. `get_local(key, default=None)` looks in L1 only, without `await`.

    Raises:
        TypeError: if an argument has the wrong type, or `lock_ttl` is given and `l2` cannot lock.
        ValueError: if an argument is out of range, or `l1` belongs to another cache.
    """

    def __init__(
        self,
        l1: BoundedCache[str, _V],
        l2: Tier | None = None,
        l3: Tier | None = None,
        *,
        namespace: str,
        ttl: float | None = 3600,
        ttl_jitter: float = 0.0,
        stale_ttl: float = 0,
        soft_timeout: float | None = 0,
        hard_timeout: float | None = None,
        refresh_ahead: float | None = None,
        negative_ttl: float | None = None,
        negative_maxsize: int = 10_000,
        promotion_threshold: int = 3,
        demotion: bool = True,
        deadline: float = 0.25,
        retry_after: float = 1.0,
        lock_ttl: float | None = None,
        backplane: Backplane | None = AUTOMATIC,
        backplane_timeout: float = 1.0,
        prediction: bool | Prediction = False,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if not isinstance(l1, BoundedCache):
            raise TypeError(f"l1 must be an LRUCache or an AdaptiveCache, got {type(l1).__name__}")
        self.namespace: Final = checked_namespace("namespace", namespace)
        staleness = self._staleness = Staleness(
            clock=aligned(clock) if isinstance(l2, ServerTier) or isinstance(l3, ServerTier) else clock,
            ttl=ttl,
            ttl_jitter=ttl_jitter,
            stale_ttl=stale_ttl,
            soft_timeout=soft_timeout,
            hard_timeout=hard_timeout,
            refresh_ahead=refresh_ahead,
            negative_ttl=negative_ttl,
            retry_after=retry_after,
            deadline=deadline,
            lock_ttl=lock_ttl,
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
            prediction=checked_prediction(prediction),
        )
        self._l1, self._lower_tiers, self._promotion = parts.l1, parts.lower_tiers, parts.promotion
        self._lookup, self._loading, self._writes = parts.lookup, parts.loading, parts.writes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._read_path, self._ordering, self._prefetch = parts.read_path, parts.lower_tiers.ordering, parts.prefetch
        # The method of the compiled cache itself: a hit costs no Python call besides the compiled lookup.
        self.get_local: Final = l1.get

    def __repr__(self) -> str:
        """The namespace, the state and the tiers, without passwords."""
        tiers = ", ".join([repr(self._l1), *map(repr, self._lower_tiers.tiers)])
        return f"<TieredCache {self.namespace!r}, {'open' if self._loop is not None else 'not open'}, {tiers}>"

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
        """
        # The lookup is fastest without a default. A None is either a miss or a stored None.
        value = self.get_local(key)
        if value is not None or self._l1.lru.peek(key, MISSING) is None:
            return value
        path = self._read_path
        try:
            if self._prefetch is not None and (found := self._prefetch.request(key)) is not None:
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
            return await self._lookup.get_on(key, default, entry, began_at, started)
        self._require_open()
        checked_key(key)
        return await self._lookup.get(key, default)

    async def get_many(self, keys: Iterable[str]) -> dict[str, _V]:
        """Return the fresh values of those keys that have one, with one call of each tier."""
        found, missed = self._l1.get_many(checked_keys(keys))
        if missed:
            self._require_open()
            for key in missed:
                checked_key(key)
            if self._prefetch is not None:
                missed = self._prefetch.answer(missed, found)
            found |= await self._lookup.get_many(missed)
        return found

    async def set(self, key: str, value: _V, ttl: float | None = DEFAULT_TTL, *, tags: Sequence[str] = ()) -> Written:
        """Store a value in every tier, and tell the other processes. A load in flight does not replace it.

        Of two concurrent `set` of a key, one wins everywhere, not necessarily that of the last change in your database.

        Args:
            key: any str.
            value: JSON-like or bytes; without lower tiers, any object.
            ttl: the seconds for which the value is fresh; by default the cache's own ttl; None for no limit.
            tags: labels that `invalidate_tag` finds the value by.

        Returns:
            Which tiers accepted the value. If only one did, both remove it in the background.

        Raises:
            CacheError: if the cache is not open, or is open in another event loop.
            TypeError: if the key, the ttl or a tag has the wrong type.
            ValueError: if the ttl is not greater than 0, or a tag cannot be encoded as UTF-8.
        """
        return (await self._writes.set_many(self._entries({key: value}, ttl, tags)))[key]

    async def set_many(
        self, values: Mapping[str, _V], ttl: float | None = DEFAULT_TTL, *, tags: Sequence[str] = ()
    ) -> dict[str, Written]:
        """`set` each item, with one call of each tier."""
        return await self._writes.set_many(self._entries(values, ttl, tags))

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
        loader: Callable[[str], Awaitable[_V]],
        *,
        ttl: float | None = DEFAULT_TTL,
        tags: Sequence[str] = (),
    ) -> _V:
        """Return the value of a key from the first tier that has it, or else call the loader and store its value.

        Concurrent callers of a key share one load. Cancelling one of them does not affect the others; the load is
        cancelled when its last caller leaves. If the loader fails, each caller gets its error, and nothing is stored.

        Args:
            key: any str.
            loader: a coroutine function that takes the key and returns the value.
            ttl, tags: as for `set`.

        Raises:
            LoadTimeoutError: if the load takes longer than `hard_timeout`, and there is no stale value.
            LoadCancelledError: if the loader cancels its own load.
            LoadError: if the load would wait for itself, or fails in another process that holds the lock.
            CacheError: if the cache is not open, or is closed during the load.
            TypeError: if `loader` is not a coroutine function, or as for `set`.
            ValueError: as for `set`.
        """
        value: Any = self.get_local(key, MISSING)
        if value is not MISSING:
            return value  # type: ignore[no-any-return]
        self._require_open()
        checked_key(key)
        source = Source.of_one(key, loader, self._ttl(ttl), checked_tags(tags))
        loaded: _V = (await self._loading.load((key,), source))[key]
        return loaded

    async def _load(self, key: str, source: Source) -> Any:
        """`get_or_load` for a `CachedFunction`, after a miss in L1."""
        self._require_open()
        checked_key(key)
        return (await self._loading.load((key,), source))[key]

    async def get_or_load_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, _V]]],
        *,
        ttl: float | None = DEFAULT_TTL,
        tags: Sequence[str] = (),
    ) -> dict[str, _V | None]:
        """`get_or_load` each key, with one call of each tier, and one call of the loader for what is missing.

        If another caller is loading a key, this call waits for that load, and does not pass the key to its loader.

        Args:
            keys: any str.
            loader: a coroutine function that takes a list of keys and returns a mapping of keys to values.
            ttl, tags: as for `set`.

        Returns:
            A value for every key, None for those that the mapping lacks.

        Raises:
            Exception: as for `get_or_load`, if a key has neither a loaded nor a stale value.
        """
        keys = list(dict.fromkeys(checked_keys(keys)))
        values, missed = self._l1.get_many(keys)
        if missed:
            self._require_open()
            for key in missed:
                checked_key(key)
            values |= await self._loading.load(missed, Source(loader, self._ttl(ttl), checked_tags(tags)))
        return {key: values[key] for key in keys}

    def cached(
        self,
        function: None = None,
        /,
        *,
        key: Callable[..., str] | None = None,
        ttl: float | None = DEFAULT_TTL,
        tags: Sequence[str] | Callable[..., Sequence[str]] = (),
    ) -> Decorator:
        """Decorate a coroutine function or method, whose results this cache keeps; see `cached`.

        Write `@cache.cached()` with parentheses: `function` is only there for the message if they are missing.
        """
        if function is not None:
            refuse_function(function, "cache.cached")
        return cached(self, key=key, ttl=ttl, tags=tags)

    def stats(self) -> TieredStats:
        """Return the counts so far."""
        return collect_stats(self._parts)

    async def health(self) -> CacheHealth:
        """Ask the servers of the lower tiers now, and return their answers."""
        self._require_open()
        return CacheHealth(*await self._lower_tiers.health())

    @property
    def promotion_threshold(self) -> int:
        """The hit in the lower tiers at which a value is copied to L1. May be changed at any time."""
        return self._promotion.threshold

    @promotion_threshold.setter
    def promotion_threshold(self, threshold: int) -> None:
        self._promotion.set_threshold(threshold)

    @property
    def refresh_ahead(self) -> float | None:
        """The share of the ttl after which a hit starts a load in the background, None for never.

        May be changed at any time. Entries that L1 already holds keep their old refresh point.
        """
        return self._staleness.refresh_ahead

    @refresh_ahead.setter
    def refresh_ahead(self, share: float | None) -> None:
        self._staleness.set_refresh_ahead(share)

    @property
    def predicts(self) -> bool:
        """Whether predicted keys are fetched. May be changed if the cache was made with `prediction`."""
        return self._prefetch is not None and self._prefetch.enabled

    @predicts.setter
    def predicts(self, wanted: bool) -> None:
        self._parts.switch_prediction(checked_bool("predicts", wanted))

    @property
    def has_lower_tiers(self) -> bool:
        """Whether there is an L2 or an L3."""
        return bool(self._lower_tiers.tiers)

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

    def remove_expired(self) -> int:
        """Remove the entries of this process that may not be served any more, and return their number. O(n)."""
        return self._l1.remove_unservable()

    def optimize(self) -> tuple[str, ...]:
        """Do what `remove_expired` does, and move the promotion threshold towards a higher L1 hit rate.

        Returns:
            What was done, in words; empty if nothing was.
        """
        done = [f"removed {removed} expired entries"] if (removed := self.remove_expired()) else []
        moved = self._promotion.adapt(self._l1.lru.stats())
        return (*done, moved) if moved else tuple(done)

    def _entries(self, values: Mapping[str, _V], ttl: float | None, tags: Sequence[str]) -> dict[str, Entry]:
        self._require_open()
        own_ttl, own_tags = self._ttl(ttl), checked_tags(tags)
        for key in values:
            checked_key(key)
        return {key: self._staleness.entry(value, own_ttl, own_tags) for key, value in values.items()}

    def _ttl(self, ttl: float | None) -> float | None:
        # The ttl of a call is checked before a load starts, so that no other caller gets the error.
        if ttl is DEFAULT_TTL:
            return self._staleness.ttl
        checked_ttl(ttl)
        return ttl
