"""A compliance gate, a tiered cache and latency histograms for asyncio services, compiled with Cython."""

from importlib import import_module
from typing import TYPE_CHECKING

from acgsperf._dispatch import IMPLEMENTATION, HashValidator, LatencyHistogram, LRUCache, Timer
from acgsperf._types import (
    CONSTITUTIONAL_HASH,
    CacheStats,
    EvictionReason,
    HistogramSnapshot,
    ValidatorStats,
    Verdict,
)
from acgsperf.errors import (
    AcgsperfError,
    CacheError,
    ComplianceError,
    LoadCancelledError,
    LoadError,
    LoadTimeoutError,
    SettingsError,
    TierError,
)
from acgsperf.fingerprint import canonical, fingerprint
from acgsperf.validator import ComplianceValidator, ContextVerdict, ValidatorMetrics

if TYPE_CHECKING:
    from acgsperf.cache import CacheHealth, TieredCache, TieredStats, Written
    from acgsperf.tiers.postgres import PostgresTier
    from acgsperf.tiers.redis import RedisTier

__all__ = [
    "CONSTITUTIONAL_HASH",
    "IMPLEMENTATION",
    "AcgsperfError",
    "CacheError",
    "CacheHealth",
    "CacheStats",
    "ComplianceError",
    "ComplianceValidator",
    "ContextVerdict",
    "EvictionReason",
    "HashValidator",
    "HistogramSnapshot",
    "LRUCache",
    "LatencyHistogram",
    "LoadCancelledError",
    "LoadError",
    "LoadTimeoutError",
    "PostgresTier",
    "RedisTier",
    "SettingsError",
    "TierError",
    "TieredCache",
    "TieredStats",
    "Timer",
    "ValidatorMetrics",
    "ValidatorStats",
    "Verdict",
    "Written",
    "canonical",
    "fingerprint",
]

# asyncio and the drivers take longer to import than all the rest, and who wants the core alone does without it.
_LAZY = {
    "CacheHealth": "acgsperf.cache",
    "PostgresTier": "acgsperf.tiers.postgres",
    "RedisTier": "acgsperf.tiers.redis",
    "TieredCache": "acgsperf.cache",
    "TieredStats": "acgsperf.cache",
    "Written": "acgsperf.cache",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value
