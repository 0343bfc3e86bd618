"""A compliance gate, an L1 cache and latency histograms for asyncio services, compiled with Cython."""

from acgsperf._dispatch import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache
from acgsperf._types import (
    CONSTITUTIONAL_HASH,
    CacheStats,
    EvictionReason,
    HistogramSnapshot,
    ValidatorStats,
    Verdict,
)

__all__ = [
    "CONSTITUTIONAL_HASH",
    "IMPLEMENTATION",
    "CacheStats",
    "EvictionReason",
    "HashValidator",
    "HistogramSnapshot",
    "LRUCache",
    "LatencyHistogram",
    "ValidatorStats",
    "Verdict",
]
