"""The tiered cache: L1 in this process, then Redis and PostgreSQL, and one load for all callers that miss."""

from acgsperf.cache.decorator import BoundCachedFunction, CachedFunction, cached
from acgsperf.cache.prediction import Prediction
from acgsperf.cache.tiered import TieredCache
from acgsperf.cache.types import CacheHealth, TieredStats, Written

__all__ = [
    "BoundCachedFunction",
    "CacheHealth",
    "CachedFunction",
    "Prediction",
    "TieredCache",
    "TieredStats",
    "Written",
    "cached",
]
