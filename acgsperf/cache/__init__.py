"""The tiered cache: L1 in this process, then Redis and PostgreSQL, and one load for all callers that miss."""

from acgsperf.cache.decorator import BoundCachedFunction, CachedFunction, CachedMethod, cached
from acgsperf.cache.options import EntryOptions
from acgsperf.cache.prediction import Prediction
from acgsperf.cache.results import UNCHANGED, Loaded, Previous
from acgsperf.cache.tiered import TieredCache
from acgsperf.cache.types import CachedValue, CacheHealth, TieredStats, Written

__all__ = [
    "UNCHANGED",
    "BoundCachedFunction",
    "CacheHealth",
    "CachedFunction",
    "CachedMethod",
    "CachedValue",
    "EntryOptions",
    "Loaded",
    "Prediction",
    "Previous",
    "TieredCache",
    "TieredStats",
    "Written",
    "cached",
]
