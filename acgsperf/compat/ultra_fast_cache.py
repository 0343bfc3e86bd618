"""What `services.shared.performance.ultra_fast_cache` offered, on `LRUCache` and a plain Redis client.

Not on `TieredCache`: its L2 writes envelopes, and this one shares a Redis with processes that still run the replaced
module. So the wire is theirs: the bare key, a JSON text, SETEX with a TTL and SET without.

A hit in memory is a lookup in the compiled cache and one append. What else is known about hits is worked out when
somebody asks for it: counts from the `LRUCache`, times as `AccessLog` and `seconds_per_call` say.
"""

import asyncio
import logging
import math
import os
import sys
import time
from collections import deque
from functools import cache as memoised
from typing import Any, Final

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.addresses import masked
from acgsperf.cache.ordering import Ordering
from acgsperf.compat._accesses import AccessLog
from acgsperf.compat._awaiting import settled
from acgsperf.compat._cache_metrics import CacheMetrics, LiveCacheMetrics
from acgsperf.compat._counters import seconds_per_call
from acgsperf.compat._l1 import CacheEntry, L1View
from acgsperf.compat._plain_redis import WRITTEN, PlainRedis, close_client
from acgsperf.compat._singleton import OnePerProcess
from acgsperf.compat.validation import UltraFastConstitutionalValidator
from acgsperf.dispatch import LRUCache

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
_CANDIDATES: Final = 10_000
_CONNECT_S: Final = 2.0

_log = logging.getLogger(__name__)


@memoised
def _hit_s() -> float:
    entries: LRUCache[str, int] = LRUCache(1)
    entries["key"] = 1
    return seconds_per_call(entries.__getitem__, "key")


class UltraFastMultiTierCache:
    """L1 in memory, an exact LRU with a TTL for each entry, before an L2 in Redis.

    Args:
        redis_url: where L2 is.
        l1_max_size: entries of L1 at most, 1 to 2**30; may be set, and counts from the next store on.
        constitutional_validator: kept under that name; one of its own when None.

    Raises:
        TypeError, ValueError: for a bad `l1_max_size`.
    """

    def __init__(
        self,
        redis_url: str = _DEFAULT_URL,
        l1_max_size: int = 100000,
        constitutional_validator: Any = None,
    ) -> None:
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self.constitutional_validator = constitutional_validator or UltraFastConstitutionalValidator()
        self.redis_url = redis_url
        self.l1_max_size = l1_max_size
        self.prediction_enabled = True
        self._l1: LRUCache[str, CacheEntry] = LRUCache(l1_max_size)
        self._accesses = AccessLog(self._l1)
        self._unstamped = self._accesses.unstamped
        self.l1_cache = L1View(self._l1, self._store_in_l1, self._accesses.stamp)
        # The times of the last hits in L2, of keys that are not in L1.
        self.promotion_candidates: LRUCache[str, deque[float]] = LRUCache(_CANDIDATES, _HOUR_S)
        self._written: LRUCache[str, None] = LRUCache(WRITTEN)
        self._ordering = Ordering()
        # Lookups in L1 that were not part of a `get`, and the time that `get` spent behind L1.
        self._helper_lookups = 0
        self._behind_s = 0.0
        self._metrics = LiveCacheMetrics(self)
        self.redis_client = None

    @property
    def redis_client(self) -> Any:
        """The client, None without Redis; may be set."""
        return self._l2.client

    @redis_client.setter
    def redis_client(self, client: Any) -> None:
        self._l2 = PlainRedis(client, self._written)

    @property
    def metrics(self) -> CacheMetrics:
        """The counters, which may be set; so may all at once, from another `CacheMetrics`."""
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: CacheMetrics) -> None:
        for name in CacheMetrics.__dataclass_fields__:
            setattr(self._metrics, name, getattr(metrics, name))

    @property
    def access_patterns(self) -> dict[str, list[float]]:
        """The times at which each key was accessed lately; bounded as `AccessLog` says."""
        return self._accesses.stamp()

    async def initialize(self) -> None:
        """Connect to Redis, or go on without one, and store the constitutional entry."""
        client = None
        try:
            # RESP2, in which a reply is the answer to the command before it, always; no retries behind our back.
            client = await settled(redis.from_url(self.redis_url, protocol=2, retry=Retry(NoBackoff(), 0)))
            async with asyncio.timeout(_CONNECT_S):
                await settled(client.ping())
        except Exception as error:
            where, why = masked(str(self.redis_url)), type(error).__name__
            _log.warning("no Redis at %s for the cache, which goes on in memory alone: %s", where, why)
            if client is not None:
                await close_client(client)
            client = None
        former, self.redis_client = self.redis_client, client
        if former is not None:
            await close_client(former)
        await self.set(f"constitutional_hash:{CONSTITUTIONAL_HASH}", True, data_type="constitutional")

    async def get(self, key: str, data_type: str = "default") -> Any:
        """The value of a key, None when no tier has it."""
        try:
            entry = self._l1[key]
        except KeyError:
            pass
        else:
            self._unstamped.append(key)
            return entry.value
        return await self._get_behind_l1(key, data_type)

    async def _get_behind_l1(self, key: str, data_type: str) -> Any:
        started = time.perf_counter()
        began_at = self._ordering.latest
        try:
            value = await self._get_from_l2(key)
            if value is None:
                self._accesses.record(key)
                self._metrics.l3_misses += 1
            elif self._ordering.is_current(began_at, key):
                self._update_access_patterns(key)
                await self._consider_promotion(key, value, data_type)
            return value
        finally:
            self._behind_s += time.perf_counter() - started

    async def set(self, key: str, value: Any, ttl: float | None = None, data_type: str = "default") -> bool:
        """Store a value in every tier.

        Args:
            key: as it is in Redis.
            value: what JSON can write goes to L2, anything to L1.
            ttl: seconds; that of the data type when None. What has none left is removed instead.
            data_type: says for how long, as a rule.

        Returns:
            True: L1 takes everything, and a Redis that does not is logged.
        """
        if ttl is None:
            ttl = self._get_optimal_ttl(data_type)
        if math.isnan(ttl):
            raise ValueError(f"ttl must be a number of seconds, not {ttl!r}")
        if ttl <= 0:
            await self.delete(key)
            return True
        with self._ordering.writing([key]):
            self.promotion_candidates.pop(key, None)
            self._set_in_l1(key, value, ttl)
            await self._set_in_l2(key, value, None if ttl == math.inf else ttl)
        return True

    async def delete(self, key: str) -> bool:
        """Remove a key from every tier; whether one of them had it, and none may have it still."""
        with self._ordering.writing([key]):
            self.promotion_candidates.pop(key, None)
            held = self._l1.pop(key, None) is not None
            removed = await self._l2.delete(key)
        return removed is not None and (removed or held)

    async def clear_all(self) -> bool:
        """Empty L1, and remove from Redis what this cache has put there, of which it knows the last 250,000 keys.

        Returns:
            Whether Redis did so, or there is none.
        """
        with self._ordering.clearing():
            self._l1.clear()
            self._accesses.clear()
            self.promotion_candidates.clear()
            return await self._l2.clear()

    async def close(self) -> None:
        """Close the client and forget L1. Where this is the cache of the process, it is so no longer."""
        _cache.forget(self)
        client, self.redis_client = self.redis_client, None
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
        self._helper_lookups += 1
        entry = self._l1.get(key)
        if entry is None:
            return None
        self._unstamped.append(key)
        return entry.value

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
        times = self.promotion_candidates.peek(key)
        threshold = CACHE_PERFORMANCE_TARGETS["promotion_threshold"]
        if times is None or sum(times[-1] - at <= _HOUR_S for at in times) < threshold:
            return
        await self._promote(key, value, data_type, times)

    async def _promote(self, key: str, value: Any, data_type: str, times: deque[float]) -> bool:
        began_at = self._ordering.latest
        # L1 keeps it no longer than Redis does.
        ttl = min(self._get_optimal_ttl(data_type), await self._l2.expires_in(key))
        # A key that was written or deleted meanwhile is no candidate any more, and its value is old.
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

    def _gets(self) -> int:
        looked_up = self._l1.stats()
        return looked_up.hits + looked_up.misses - self._helper_lookups

    def _access_s(self) -> float:
        return self._behind_s + self._l1.stats().hits * _hit_s()

    def get_performance_metrics(self) -> dict[str, Any]:
        """Rates, counters and sizes."""
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
        """Remove expired entries from L1, and put what is asked for often into it if L2 has it.

        Frequent is what was accessed `promotion_threshold` times within the last hour. Without `prediction_enabled`
        nothing is put into L1.
        """
        applied, recommendations = [], []
        if removed := self._l1.expire():
            applied.append(f"removed {removed} expired entries from L1")
        if self.prediction_enabled and (promoted := await self._promote_frequent()):
            applied.append(f"promoted {promoted} frequent entries to L1")
        if self._metrics.evictions and len(self._l1) >= self._l1.maxsize:
            recommendations.append("raise l1_max_size: L1 is full and evicts")
        if self.redis_client is None:
            recommendations.append("start Redis, and call initialize: L1 stands alone")
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
        # The most recent ones, and no more than L1 has room for: promotion must not evict what is in use.
        for key in frequent[::-1][: max(0, self._l1.maxsize - len(self._l1))]:
            times = deque([time.time()])
            self.promotion_candidates.set(key, times)
            began_at = self._ordering.latest
            value = await self._l2.read(key)
            stands = value is not None and self._ordering.is_current(began_at, key)
            promoted += stands and await self._promote(key, value, "default", times)
        return promoted

    async def health_check(self) -> dict[str, Any]:
        """Whether the tiers answer. L1, in this very process, always does, and serves without L2."""
        return {
            "healthy": True,
            "l1_healthy": True,
            "l2_healthy": await self._l2.answers(),
            "redis_connected": self.redis_client is not None,
            "metrics": self.get_performance_metrics(),
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }


def _rate(hits: int, misses: int) -> float:
    return hits / (hits + misses) if hits + misses else 0.0


async def get_ultra_fast_cache() -> UltraFastMultiTierCache:
    """The cache of this process, initialised; its Redis is the one that `REDIS_URL` names, if it names one."""
    return await _cache.get()


async def create_ultra_fast_cache(redis_url: str = _DEFAULT_URL, l1_max_size: int = 100000) -> UltraFastMultiTierCache:
    """A cache of one's own, initialised."""
    cache = UltraFastMultiTierCache(redis_url, l1_max_size)
    await cache.initialize()
    return cache


_cache: Final = OnePerProcess(lambda: create_ultra_fast_cache(os.environ.get("REDIS_URL") or _DEFAULT_URL))
