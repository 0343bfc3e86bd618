"""The surface of `services.shared.performance.ultra_fast_cache`, on a compiled cache and a plain Redis client.

It does not use `TieredCache`, because this cache shares Redis with processes that still run the replaced module. So it
writes the same format: the bare key, a JSON text, SETEX with a TTL and SET without.

An L1 hit is one lookup in a `RecordingCache`. The figures of hits are derived when they are read: the counts from its
statistics, the times as `AccessLog` and `CacheActivity` describe.
"""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from redis import asyncio as redis

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.cache.ordering import Ordering
from acgsperf.compat._accesses import AccessLog
from acgsperf.compat._cache_metrics import CacheActivity, CacheMetrics, LiveCacheMetrics
from acgsperf.compat._l1 import CacheEntry, L1View
from acgsperf.compat._maybe_await import maybe_await
from acgsperf.compat._plain_redis import MAX_WRITTEN, PlainRedis, close_client, connected_client
from acgsperf.compat._read_ahead import ReadAhead
from acgsperf.compat._singleton import ProcessSingleton
from acgsperf.compat.validation import UltraFastConstitutionalValidator
from acgsperf.dispatch import LRUCache, RecordingCache

__all__ = [
    "CACHE_PERFORMANCE_TARGETS",
    "CONSTITUTIONAL_HASH",
    "CacheEntry",
    "CacheMetrics",
    "UltraFastMultiTierCache",
    "create_ultra_fast_cache",
    "get_ultra_fast_cache",
]

CACHE_PERFORMANCE_TARGETS: Final[dict[str, float]] = {
    "l1_access_time_ms": 0.01,
    "l2_access_time_ms": 0.1,
    "l3_access_time_ms": 1.0,
    "cache_hit_rate_target": 0.95,
    "l1_size_limit": 100000,
    "l2_ttl_default": 3600,
    "promotion_threshold": 3,
}

_DEFAULT_URL: Final = "redis://localhost:6389/0"
_TTL_S: Final = {
    "constitutional": 86400,
    "policy": 3600,
    "governance": 7200,
    "validation": 1800,
    "session": 3600,
    "metrics": 300,
    "compliance": 1800,
    "audit": 600,
}
_HOUR_S: Final = 3600.0
_MAX_CANDIDATES: Final = 10_000


class UltraFastMultiTierCache:
    """A cache with an L1 in memory (an exact LRU with a TTL per entry) and an L2 in Redis.

    Call `initialize` before use, and `close` afterwards.

    While `prediction_enabled` is True, keys that were requested in the same order before are read from Redis ahead of
    their requests. A value that was read ahead answers for up to 1 s.

    Args:
        redis_url: the Redis server of L2, the sentinels that watch it (`redis+sentinel://`), or nodes of a cluster
            (`redis+cluster://`).
        l1_max_size: the maximum number of entries in L1, 1 to 2**30. A new value takes effect at the next store.
        constitutional_validator: available as the attribute of that name; by default, a new validator.

    Raises:
        TypeError, ValueError: if `l1_max_size` is not usable.
    """

    def __init__(
        self,
        redis_url: str = _DEFAULT_URL,
        l1_max_size: int = 100000,
        constitutional_validator: Any = None,
    ) -> None:
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self.constitutional_validator: Any = constitutional_validator or UltraFastConstitutionalValidator()
        self.redis_url = redis_url
        self.l1_max_size = l1_max_size
        self.prediction_enabled = True
        self._l1: RecordingCache[str, CacheEntry] = RecordingCache(l1_max_size)
        self._accesses = AccessLog(self._l1)
        self.l1_cache: L1View = L1View(self._l1, self._store_in_l1, self._accesses.stamp)
        # Key -> the times of its latest L2 hits, for keys that are not in L1.
        self.promotion_candidates: LRUCache[str, deque[float]] = LRUCache(_MAX_CANDIDATES, _HOUR_S)
        self._written: LRUCache[str, None] = LRUCache(MAX_WRITTEN)
        self._ordering = Ordering()
        self._read_ahead = ReadAhead(self._l1, self._ordering)
        self._activity = CacheActivity(self._l1)
        self._metrics = LiveCacheMetrics(self._activity)
        self.redis_client = None
        # Where a hit of `get` may be read without the coroutine; None if `get` was replaced on this object.
        self._hits: RecordingCache[str, CacheEntry] | None = self._l1
        if type(self)._get_from_l1 is not _GET_FROM_L1 and type(self).get is _GET:
            # A subclass or a patch has replaced the method.
            self.get = self._get_by_method  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_get_from_l1":
            # `get` reads L1 without this method, because a call costs more than the read. A replacement must be called.
            self.get = self._get_by_method  # type: ignore[method-assign]
        elif name == "get":
            self._hits = None
        super().__setattr__(name, value)

    @property
    def redis_client(self) -> Any:
        """The Redis client; None without Redis. You may set it."""
        return self._l2.client

    @redis_client.setter
    def redis_client(self, client: Any) -> None:
        self._l2 = PlainRedis(client, self._written)

    @property
    def metrics(self) -> CacheMetrics:
        """The counters. You may set each of them, or all of them from another `CacheMetrics`."""
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: CacheMetrics) -> None:
        for name in CacheMetrics.__dataclass_fields__:
            setattr(self._metrics, name, getattr(metrics, name))

    @property
    def access_patterns(self) -> dict[str, list[float]]:
        """Key -> the times of its latest accesses; `AccessLog` describes the bounds.

        You may write to the dict, or set another one. Times that you write count for promotion.
        """
        return self._accesses.stamp()

    @access_patterns.setter
    def access_patterns(self, times: Mapping[str, Iterable[float]]) -> None:
        self._accesses.replace(times)

    async def initialize(self) -> None:
        """Connect to Redis, and store the constitutional entry. If Redis is not reachable, the cache uses L1 only."""
        client = await connected_client(self.redis_url, redis)
        former, self.redis_client = self.redis_client, client
        if former is not None:
            await close_client(former)
        await self.set(f"constitutional_hash:{CONSTITUTIONAL_HASH}", True, data_type="constitutional")

    async def get(self, key: str, data_type: str = "default") -> Any:
        """Return the value of a key; None if no tier has it."""
        try:
            return self._l1[key].value
        except KeyError:
            pass
        return await self._get_after_l1_miss(key, data_type)

    async def _get_by_method(self, key: str, data_type: str = "default") -> Any:
        value = await maybe_await(self._get_from_l1(key))
        return value if value is not None else await self._get_after_l1_miss(key, data_type)

    async def _get_after_l1_miss(self, key: str, data_type: str = "default") -> Any:
        started = time.perf_counter()
        began_at = self._ordering.latest
        try:
            value = None
            if self.prediction_enabled and self.redis_client is not None:
                value = self._read_ahead.request(key, self._l2.read)
            if value is not None:
                self._metrics.l2_hits += 1
            else:
                value = await self._get_from_l2(key)
            if value is None:
                self._accesses.record(key)
                self._metrics.l3_misses += 1
            elif self._ordering.is_current(began_at, key):
                self._update_access_patterns(key)
                await self._consider_promotion(key, value, data_type)
            return value
        finally:
            self._activity.l1_miss_s += time.perf_counter() - started

    async def set(self, key: str, value: Any, ttl: float | None = None, data_type: str = "default") -> bool:
        """Store a value in every tier.

        Args:
            key: used in Redis without a prefix.
            value: L1 stores any object; Redis stores values that JSON can encode.
            ttl: seconds. By default, the TTL of the data type. With 0 or less, the key is deleted.
            data_type: selects the default TTL.

        Returns:
            Always True, because L1 stores every value. A failure of Redis is logged.

        Raises:
            ValueError: if `ttl` is NaN.
        """
        if ttl is None:
            ttl = self._get_optimal_ttl(data_type)
        if math.isnan(ttl):
            raise ValueError(f"ttl must be a number of seconds, got {ttl!r}")
        if ttl <= 0:
            await self.delete(key)
            return True
        with self._ordering.writing([key]):
            self.promotion_candidates.pop(key, None)
            self._set_in_l1(key, value, ttl)
            await self._set_in_l2(key, value, None if ttl == math.inf else ttl)
        return True

    async def delete(self, key: str) -> bool:
        """Remove a key from every tier.

        Returns:
            Whether a tier had the key. False if Redis did not answer, because it may still have the key.
        """
        with self._ordering.writing([key]):
            self.promotion_candidates.pop(key, None)
            held = self._l1.pop(key, None) is not None
            removed = await self._l2.delete(key)
        return removed is not None and (removed or held)

    async def clear_all(self) -> bool:
        """Empty L1, and remove the keys that this cache stored in Redis. Keys of other users of Redis stay.

        The cache remembers the last 250,000 keys that it stored; older ones stay in Redis until they expire.

        Returns:
            False if Redis did not answer.
        """
        with self._ordering.clearing():
            self._l1.clear()
            self._accesses.clear()
            self.promotion_candidates.clear()
            return await self._l2.clear()

    async def close(self) -> None:
        """Close the Redis client and empty L1. `get_ultra_fast_cache` then creates a new cache."""
        _cache.forget(self)
        client, self.redis_client = self.redis_client, None
        await self._read_ahead.close()
        self._l1.clear()
        if client is not None:
            await close_client(client)

    def _set_in_l1(self, key: str, value: Any, ttl: float | None = None) -> None:
        now = time.time()
        self._store_in_l1(key, CacheEntry(value, now, now, 0, ttl, sys.getsizeof(value)), ttl)

    def _store_in_l1(self, key: str, entry: CacheEntry, ttl: float | None) -> None:
        if self.l1_max_size != self._l1.maxsize:
            self._l1.resize(self.l1_max_size)
        if ttl is not None and ttl <= 0:
            self._l1.pop(key, None)
        else:
            self._l1.set(key, entry, ttl)

    def _get_from_l1(self, key: str) -> Any:
        self._activity.other_lookups += 1
        entry = self._l1.get(key)
        return None if entry is None else entry.value

    async def _set_in_l2(self, key: str, value: Any, ttl: float | None = None) -> bool:
        return await self._l2.write(key, value, ttl)

    async def _get_from_l2(self, key: str) -> Any:
        if self.redis_client is None:
            return None
        value = await self._l2.read(key)
        if value is None:
            self._metrics.l2_misses += 1
        else:
            self._metrics.l2_hits += 1
        return value

    def _get_optimal_ttl(self, data_type: str) -> int:
        return _TTL_S.get(data_type, int(CACHE_PERFORMANCE_TARGETS["l2_ttl_default"]))

    async def _consider_promotion(self, key: str, value: Any, data_type: str = "default") -> None:
        times = self.promotion_candidates.peek(key, deque())
        since = time.time() - _HOUR_S
        accesses = [*times, *self._accesses.times_of_callers(key)]
        if sum(at >= since for at in accesses) < CACHE_PERFORMANCE_TARGETS["promotion_threshold"]:
            return
        self.promotion_candidates.set(key, times)
        await self._promote(key, value, data_type, times)

    async def _promote(self, key: str, value: Any, data_type: str, times: deque[float]) -> bool:
        began_at = self._ordering.latest
        # L1 must not keep the value longer than Redis.
        ttl = min(self._get_optimal_ttl(data_type), await self._l2.expires_in(key))
        # A write or delete meanwhile removed the key from the candidates, and this value is outdated.
        if (
            not self._ordering.is_current(began_at, key)
            or self.promotion_candidates.pop(key, None) is not times
            or ttl <= 0
        ):
            return False
        self._set_in_l1(key, value, ttl)
        self._metrics.promotions += 1
        return True

    def _update_access_patterns(self, key: str) -> None:
        self._accesses.record(key)
        times = self.promotion_candidates.peek(key)
        if times is None:
            times = deque(maxlen=int(CACHE_PERFORMANCE_TARGETS["promotion_threshold"]))
        times.append(time.time())
        self.promotion_candidates.set(key, times)

    def get_performance_metrics(self) -> dict[str, Any]:
        """Return rates, counters and sizes."""
        metrics = self._metrics
        hit_rate, access_ms = metrics.get_overall_hit_rate(), metrics.get_avg_access_time_ms()
        return {
            "performance_summary": {
                "overall_hit_rate": hit_rate,
                "avg_access_time_ms": access_ms,
                "meets_hit_rate_target": hit_rate >= CACHE_PERFORMANCE_TARGETS["cache_hit_rate_target"],
                "meets_access_time_target": access_ms <= CACHE_PERFORMANCE_TARGETS["l1_access_time_ms"],
            },
            "tier_performance": {
                "l1_hit_rate": _rate(metrics.l1_hits, metrics.l1_misses),
                "l2_hit_rate": _rate(metrics.l2_hits, metrics.l2_misses),
                "l1_size": len(self._l1),
                "l1_max_size": self.l1_max_size,
            },
            "cache_statistics": {
                name: getattr(metrics, name)
                for name in CacheMetrics.__dataclass_fields__
                if not name.startswith("total_")
            },
            "optimization_status": {
                "prediction_enabled": self.prediction_enabled,
                "tracked_patterns": len(self.access_patterns),
                "promotion_candidates": len(self.promotion_candidates),
            },
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }

    async def optimize_performance(self) -> dict[str, Any]:
        """Remove expired entries from L1, and promote frequent entries from L2 to L1.

        An entry is frequent if it was accessed `promotion_threshold` times within the last hour. If
        `prediction_enabled` is False, nothing is promoted.
        """
        applied, recommendations = [], []
        if removed := self._l1.expire():
            applied.append(f"removed {removed} expired entries from L1")
        if self.prediction_enabled and (promoted := await self._promote_frequent()):
            applied.append(f"promoted {promoted} frequent entries to L1")
        if self._metrics.evictions and len(self._l1) >= self._l1.maxsize:
            recommendations.append("raise l1_max_size: L1 is full and evicts")
        if self.redis_client is None:
            recommendations.append("start Redis and call initialize: the cache uses L1 only")
        return {
            "optimizations_applied": applied,
            "recommendations": recommendations,
            "current_metrics": self.get_performance_metrics(),
            "constitutional_hash": self.constitutional_hash,
        }

    async def _promote_frequent(self) -> int:
        if self.redis_client is None:
            return 0
        since = time.time() - _HOUR_S
        threshold = CACHE_PERFORMANCE_TARGETS["promotion_threshold"]
        frequent = [
            key
            for key, times in self.access_patterns.items()
            if key not in self._l1 and sum(at >= since for at in times) >= threshold
        ]
        promoted = 0
        # The most recently accessed ones, and only as many as fit: promotion must not evict other entries.
        for key in frequent[::-1][: max(0, self._l1.maxsize - len(self._l1))]:
            times = deque([time.time()])
            self.promotion_candidates.set(key, times)
            began_at = self._ordering.latest
            value = await self._l2.read(key)
            stands = value is not None and self._ordering.is_current(began_at, key)
            promoted += stands and await self._promote(key, value, "default", times)
        return promoted

    async def health_check(self) -> dict[str, Any]:
        """Return the health of the tiers. Without Redis the cache is healthy, because L1 serves."""
        return {
            "healthy": True,
            "l1_healthy": True,
            "l2_healthy": await self._l2.answers(),
            "redis_connected": self.redis_client is not None,
            "metrics": self.get_performance_metrics(),
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }


_GET: Final = UltraFastMultiTierCache.get
_GET_FROM_L1: Final = UltraFastMultiTierCache._get_from_l1


def _rate(hits: int, misses: int) -> float:
    return hits / (hits + misses) if hits + misses else 0.0


async def get_ultra_fast_cache() -> UltraFastMultiTierCache:
    """Return the initialized cache of this process. Its Redis is `REDIS_URL`, by default the former URL."""
    return await _cache.get()


async def create_ultra_fast_cache(redis_url: str = _DEFAULT_URL, l1_max_size: int = 100000) -> UltraFastMultiTierCache:
    """Create and initialize a cache."""
    cache = UltraFastMultiTierCache(redis_url, l1_max_size)
    await cache.initialize()
    return cache


_cache: Final = ProcessSingleton(lambda: create_ultra_fast_cache(os.environ.get("REDIS_URL") or _DEFAULT_URL))
