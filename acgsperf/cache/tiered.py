"""The tiered cache: L1 in this process, Redis and Postgres behind it, and one load for all who miss."""

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar, overload

from acgsperf._native.arguments import checked_bool, checked_namespace
from acgsperf.cache.decorator import key_maker
from acgsperf.cache.l1 import MISSING, Local
from acgsperf.cache.loading import Loading
from acgsperf.cache.lower_tiers import Behind
from acgsperf.cache.process_lock import ProcessLock
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.staleness import Staleness, checked_tags
from acgsperf.cache.types import CacheHealth, TieredStats, Written
from acgsperf.dispatch import LRUCache
from acgsperf.errors import CacheError
from acgsperf.tiers.base import Entry, LockingTier, Tier

__all__ = ["CacheHealth", "TieredCache", "TieredStats", "Written"]

_V = TypeVar("_V")
_D = TypeVar("_D")
_R = TypeVar("_R")
_P = ParamSpec("_P")

_CLOSE_GRACE_S: Final = 5.0
# The cache's own ttl, where a call gives none: None means never.
_DEFAULT: Final[Any] = object()


class TieredCache(Generic[_V]):
    """L1, L2 and L3 as one cache; any of L2 and L3 may be absent.

    Keys are text. Values are JSON-like or bytes where there is a tier behind L1. What L1 holds is the object itself:
    whoever changes it changes it for all. A stored None, 0, False, "" or [] is a hit.

    A cache belongs to the event loop that opened it, and is used in its thread. Times are in seconds.

    Args:
        l1: belongs to this cache from now on. A ttl of its own is the longest that this process goes without asking
            the tiers behind it.
        l2, l3: the tiers behind, L2 the faster one; opened and closed with the cache.
        namespace: whose keys these are; caches with different ones share nothing.
        ttl: how long a value is fresh, None for ever.
        ttl_jitter: the share of the ttl by which it is shortened at random, so that what was stored together is not
            loaded together.
        stale_ttl: how much longer a value is kept, to be given when a load is slow or fails.
        soft_timeout: how long a caller waits for a load before a stale value is given, while the load goes on behind.
            0 gives it at once (stale while revalidate); None only when the load fails (stale if error).
        hard_timeout: how long a load may take, None for no limit.
        refresh_ahead: the share of the ttl after which a hit of `get_or_load` begins a load behind; a service that
            optimizes itself moves it between 0.8 and None.
        negative_ttl: how long it is remembered that a loader returned None; None when that is a value like any other.
        negative_maxsize: how many of these are remembered.
        promotion_threshold: the hit behind L1 at which a value is taken into it; `optimize` moves it.
        demotion: whether a fresh entry that L1 evicts goes back to an L2 that has lost it. An L2 has also lost what
            another process has deleted or invalidated, and this brings it back until it is due.
        deadline: for a read of L2 and L3 together.
        retry_after: how long a load that failed is not tried again while a stale value can be given.
        lock_ttl: with it, a process that loads a key for `get_or_load` holds a lock in L2, and others wait for what it
            stores, both for at most this long. None lets each process load once.
        clock: the time in seconds since the epoch; L1 has a clock of its own, which should be the same.

    Raises:
        TypeError, ValueError: for an argument out of bounds, and for an L1 that belongs to another cache.
    """

    def __init__(
        self,
        l1: LRUCache[str, _V],
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(l1, LRUCache):
            raise TypeError(f"l1 must be an LRUCache, not {l1!r:.100}")
        for name, tier in (("l2", l2), ("l3", l3)):
            if tier is not None and not isinstance(tier, Tier):
                raise TypeError(f"{name} must be a Tier or None, not of type {type(tier).__name__}")
        self.namespace: Final = checked_namespace("namespace", namespace)
        self._ttl = ttl
        staleness = self._staleness = Staleness(
            clock=clock,
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
        lock = None
        if lock_ttl is not None:
            if not isinstance(l2, LockingTier):
                raise TypeError(f"lock_ttl needs an l2 that can lock, not {l2!r}")
            lock = ProcessLock(l2, lock_ttl)
        self._promotion = Promotion(promotion_threshold, l1.maxsize)
        self._behind = Behind(l2, l3, staleness, self._promotion)
        evicted = self._behind.demote if checked_bool("demotion", demotion) else None
        self._local = self._behind.local = Local(l1, staleness, negative_maxsize, evicted)
        self._loading = Loading(self._local, self._behind, staleness, lock)
        self._loop: asyncio.AbstractEventLoop | None = None
        # L1's own method: nothing stands between the caller and the compiled lookup.
        self.get_local = l1.get

    def __repr__(self) -> str:
        """The namespace, the state and the tiers; nothing of a password."""
        l1, behind = self._local.l1, [tier for tier in (self._behind.l2, self._behind.l3) if tier is not None]
        tiers = ", ".join([f"L1 with {len(l1)} of {l1.maxsize} entries", *map(repr, behind)])
        return f"<TieredCache {self.namespace!r}, {'open' if self._loop is not None else 'not open'}, {tiers}>"

    async def open(self) -> Self:
        """Open the tiers, in the running event loop.

        Raises:
            CacheError: when the cache is open.
            TierError: when a tier is.
        """
        if self._loop is not None:
            raise CacheError("the cache is open")
        await self._behind.open(self.namespace)
        self._loop = asyncio.get_running_loop()
        self._loading.flights.closed = False
        return self

    async def close(self) -> None:
        """Cancel the loads, write what is queued, wait for every task, and close the tiers. May be repeated."""
        if self._loop is None:
            return
        self._require_open()
        self._loop = None
        await self._loading.flights.close(_CLOSE_GRACE_S)
        await self._behind.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @overload
    async def get(self, key: str, default: None = None) -> _V | None: ...
    @overload
    async def get(self, key: str, default: _V | _D) -> _V | _D: ...
    async def get(self, key: str, default: Any = None) -> Any:
        """The fresh value of a key, from the first tier that has one; `default` for a miss.

        What fails behind L1 is a miss, within the deadline.
        """
        # Without a default of its own the lookup is the fastest; what a None means is looked at apart.
        value = self.get_local(key)
        if value is not None:
            return value
        return await self._get_behind(key, default)

    async def _get_behind(self, key: str, default: Any) -> Any:
        if self._local.l1.peek(key, MISSING) is None:
            return None
        self._require_open()
        _check_key(key)
        entry = self._loading.held(key)
        if entry is None or not self._staleness.is_fresh(entry):
            entry = await self._behind.read(key)
        if entry is None or entry.negative or not self._staleness.is_fresh(entry):
            return default
        return entry.value

    async def get_many(self, keys: Iterable[str]) -> dict[str, _V]:
        """The fresh values of those keys that have one, with one call of each tier."""
        found: dict[str, Any] = {}
        wanted = []
        for key in dict.fromkeys(keys):
            value = self.get_local(key, MISSING)
            if value is MISSING:
                entry = self._loading.held(key)
                if entry is None or not self._staleness.is_fresh(entry):
                    wanted.append(key)
                elif not entry.negative:
                    found[key] = entry.value
            else:
                found[key] = value
        if wanted:
            self._require_open()
            for key in wanted:
                _check_key(key)
            for key, entry in (await self._behind.read_many(wanted)).items():
                if not entry.negative and self._staleness.is_fresh(entry):
                    found[key] = entry.value
        return found

    async def set(self, key: str, value: _V, ttl: float | None = _DEFAULT, *, tags: Sequence[str] = ()) -> Written:
        """Store a value in every tier; a load under way does not overwrite it.

        Args:
            key: text.
            value: as the class says.
            ttl: instead of the cache's own; None for ever.
            tags: what `invalidate_tag` finds it by.

        Returns:
            Which tiers took it.
        """
        return (await self.set_many({key: value}, ttl, tags=tags))[key]

    async def set_many(
        self, values: Mapping[str, _V], ttl: float | None = _DEFAULT, *, tags: Sequence[str] = ()
    ) -> dict[str, Written]:
        """`set` for each item, with one call of each tier."""
        self._require_open()
        own_tags = checked_tags(tags)
        entries = {key: self._entry(key, value, ttl, own_tags) for key, value in values.items()}
        for key, entry in entries.items():
            self._loading.overtake(key)
            self._local.put(key, entry)
        l2, l3 = await self._behind.store(entries)
        return {
            key: Written(True, None if l2 is None else key in l2, None if l3 is None else key in l3) for key in entries
        }

    async def delete(self, key: str) -> Written:
        """Forget a key in every tier; which of them have. A load under way does not bring it back."""
        return await self.delete_many((key,))

    async def delete_many(self, keys: Iterable[str]) -> Written:
        """`delete` for each key, with one call of each tier; which tiers have forgotten them all."""
        self._require_open()
        keys = tuple(dict.fromkeys(keys))
        for key in keys:
            _check_key(key)
        for key in keys:
            self._loading.overtake(key)
            self._local.drop(key)
        return Written(True, *await self._behind.remove(keys))

    async def invalidate_tag(self, tag: str) -> Written:
        """Forget every entry with a tag; which tiers have. Other processes' L1 keep theirs until they are due."""
        self._require_open()
        checked_tags((tag,))
        self._loading.flights.overtake_tag(tag)
        self._local.drop_tag(tag)
        return Written(True, *await self._behind.invalidate_tag(tag))

    async def clear(self) -> Written:
        """Forget the whole namespace, and no other; which tiers have."""
        self._require_open()
        self._loading.flights.overtake_all()
        self._local.clear()
        return Written(True, *await self._behind.clear())

    async def get_or_load(
        self,
        key: str,
        loader: Callable[[str], Awaitable[_V]],
        *,
        ttl: float | None = _DEFAULT,
        tags: Sequence[str] = (),
    ) -> _V:
        """The value of a key: from a tier, or else from the loader, which then goes to every tier.

        Callers who want the same key at the same time share one load. Cancelling one of them does nothing to the
        others; the load is cancelled when the last has left. Each gets the loader's error, which is not kept.

        Args:
            key: text.
            loader: a coroutine function that is called with the key.
            ttl, tags: as for `set`.

        Raises:
            LoadTimeoutError: when the load took longer than `hard_timeout`, and nothing stale can be given.
            LoadCancelledError: when the load was cancelled from inside.
            LoadError: when the load would wait for itself.
            CacheError: when the cache is not open, or was closed during the load.
            TypeError: when `loader` is no coroutine function.
        """
        value: Any = self.get_local(key, MISSING)
        if value is not MISSING:
            return value  # type: ignore[no-any-return]
        self._require_open()

        async def load(keys: Sequence[str]) -> dict[str, _V]:
            return {key: await _awaitable(loader(key)) for key in keys}

        loaded: _V = (await self._load((key,), load, ttl, tags))[key]
        return loaded

    async def get_or_load_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, _V]]],
        *,
        ttl: float | None = _DEFAULT,
        tags: Sequence[str] = (),
    ) -> dict[str, _V | None]:
        """`get_or_load` for each key: one call of each tier, and one of the loader for what is missing.

        A key that another caller is loading is waited for and not asked for again.

        Args:
            keys: text.
            loader: a coroutine function that is called with a list of keys and returns a mapping.
            ttl, tags: as for `set`.

        Returns:
            A value for every key; None for those that the mapping lacks.

        Raises:
            As `get_or_load`, for the first key that has neither been loaded nor a stale value.
        """
        values: dict[str, Any] = {}
        wanted = []
        keys = list(dict.fromkeys(keys))
        for key in keys:
            value: Any = self.get_local(key, MISSING)
            if value is MISSING:
                wanted.append(key)
            else:
                values[key] = value
        if wanted:
            self._require_open()
            values |= await self._load(wanted, loader, ttl, tags)
        return {key: values[key] for key in keys}

    async def _load(
        self,
        keys: Sequence[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
        ttl: float | None,
        tags: Sequence[str],
    ) -> dict[str, Any]:
        own_tags = checked_tags(tags)
        for key in keys:
            # Whoever passes a bad key, ttl or tag hears of it now, and nobody has to wait for it.
            self._entry(key, None, ttl, own_tags)

        def entry_of(value: Any) -> Entry:
            return self._entry("", value, ttl, own_tags)

        return await self._loading.load(keys, loader, entry_of, own_tags)

    def cached(
        self,
        *,
        key: Callable[_P, str] | None = None,
        ttl: float | None = _DEFAULT,
        tags: Sequence[str] | Callable[_P, Sequence[str]] = (),
    ) -> Callable[[Callable[_P, Coroutine[Any, Any, _R]]], Callable[_P, Coroutine[Any, Any, _R]]]:
        """Decorates a coroutine function or method: what it returns for the same arguments is kept.

        Args:
            key: makes the key of a call from its arguments, `self` included. Otherwise it is the function's name and
                the `fingerprint` of its arguments; instances that are not equal have results of their own, which no
                other process finds.
            ttl: as for `set`.
            tags: the tags of a result, or a function of the arguments that makes them.

        Raises:
            TypeError: when what is decorated is not a coroutine function. A call raises it, without a `key`, for
                arguments that are not JSON-like.
        """

        def decorate(function: Callable[_P, Coroutine[Any, Any, _R]]) -> Callable[_P, Coroutine[Any, Any, _R]]:
            key_of = key_maker(function)
            if key is not None:
                key_of = key

            @functools.wraps(function)
            async def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
                async def load(key: str) -> Any:
                    return await function(*args, **kwargs)

                own_tags = tags(*args, **kwargs) if callable(tags) else tags
                result: Any = await self.get_or_load(key_of(*args, **kwargs), load, ttl=ttl, tags=own_tags)
                return result  # type: ignore[no-any-return]

            return call

        return decorate

    def stats(self) -> TieredStats:
        """The counts so far."""
        loading, behind = self._loading, self._behind
        return TieredStats(
            l1=self._local.l1.stats(),
            l2=None if behind.l2 is None else behind.l2.stats(),
            l3=None if behind.l3 is None else behind.l3.stats(),
            loads=loading.loads,
            load_errors=loading.load_errors,
            load_timeouts=loading.load_timeouts,
            missed=loading.missed,
            joined=loading.joined,
            refreshes=loading.refreshes,
            stale_served=loading.stale_served,
            negative_hits=loading.negative_hits,
            promotions=behind.promotions,
            promotion_threshold=self._promotion.threshold,
            demotions=sum(queue.demoted for queue in behind.queues),
            write_backs=sum(queue.written for queue in behind.queues),
            dropped=sum(queue.dropped + queue.refused for queue in behind.queues),
            deadlines=behind.deadlines,
            stale_entries=self._local.stale_count,
            negative_entries=self._local.negative_count,
            loading=len(loading.flights),
        )

    async def health(self) -> CacheHealth:
        """Ask the servers now."""
        self._require_open()
        tiers = [tier for tier in (self._behind.l2, self._behind.l3) if tier is not None]
        answers = iter(await asyncio.gather(*(tier.health() for tier in tiers)))
        return CacheHealth(*(None if tier is None else next(answers) for tier in (self._behind.l2, self._behind.l3)))

    @property
    def promotion_threshold(self) -> int:
        """The hit behind L1 at which a value is taken into it; may be moved at any time."""
        return self._promotion.threshold

    @promotion_threshold.setter
    def promotion_threshold(self, threshold: int) -> None:
        self._promotion.set_threshold(threshold)

    @property
    def refresh_ahead(self) -> float | None:
        """The share of the ttl after which a hit begins a load behind, None for never; a change is for new entries."""
        return self._staleness.refresh_ahead

    @refresh_ahead.setter
    def refresh_ahead(self, share: float | None) -> None:
        self._staleness.set_refresh_ahead(share)

    @property
    def has_tiers_behind(self) -> bool:
        """Whether there is an L2 or an L3."""
        return bool(self._behind.queues)

    def expire(self) -> int:
        """Remove from this process what is of no use any more; how many entries were. O(n)."""
        return self._local.expire()

    def optimize(self) -> tuple[str, ...]:
        """Remove what is of no use, and move the promotion threshold by what it gains.

        Returns:
            What was done, in words; nothing when nothing was.
        """
        removed = self.expire()
        moved = self._promotion.adapt(self._local.l1.stats())
        done = [f"removed {removed} entries that were of no use"] if removed else []
        return (*done, moved) if moved else tuple(done)

    def _entry(self, key: str, value: Any, ttl: float | None, tags: tuple[str, ...]) -> Entry:
        _check_key(key)
        return self._staleness.entry(value, self._ttl if ttl is _DEFAULT else ttl, tags)

    def _require_open(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise CacheError(
                "the cache is not open" if self._loop is None else "the cache is open in another event loop"
            )


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise TypeError(f"key must be text, not {key!r:.100}")


def _awaitable(found: Any) -> Awaitable[Any]:
    if not inspect.isawaitable(found):
        raise TypeError(f"a loader must be a coroutine function: it returned {type(found).__name__}")
    return found
