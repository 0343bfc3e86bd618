"""A compliance gate, an L1 cache and latency histograms for asyncio services, compiled with Cython."""

from acgsperf._dispatch import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
from acgsperf._types import (
    CONSTITUTIONAL_HASH,
    CacheStats,
    EvictionReason,
    HistogramSnapshot,
    ValidatorStats,
    Verdict,
)
from acgsperf.errors import AcgsperfError, ComplianceError, SettingsError
from acgsperf.fingerprint import canonical, fingerprint
from acgsperf.validator import ComplianceValidator, ContextVerdict, ValidatorMetrics

__all__ = [
    "CONSTITUTIONAL_HASH",
    "IMPLEMENTATION",
    "AcgsperfError",
    "CacheStats",
    "ComplianceError",
    "ComplianceValidator",
    "ContextVerdict",
    "EvictionReason",
    "HashValidator",
    "HistogramSnapshot",
    "LRUCache",
    "LatencyHistogram",
    "SettingsError",
    "Timer",
    "ValidatorMetrics",
    "ValidatorStats",
    "Verdict",
    "canonical",
    "fingerprint",
]
