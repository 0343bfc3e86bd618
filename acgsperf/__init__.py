"""A compliance gate, a tiered cache and latency histograms for asyncio services, compiled with Cython."""

# First of all: while the command `acgsperf` imports the package, Ctrl-C must not show a traceback.
from acgsperf import interrupts as _interrupts  # noqa: F401

# isort: split

from importlib import import_module
from typing import TYPE_CHECKING

from acgsperf._native.types import CONSTITUTIONAL_HASH, EvictionReason, Verdict
from acgsperf.dispatch import (
    IMPLEMENTATION,
    AdaptiveCache,
    BoundedCache,
    HashValidator,
    LatencyHistogram,
    LRUCache,
    Timer,
    weigh_bytes,
)
from acgsperf.errors import (
    AcgsperfError,
    CacheError,
    ComplianceError,
    LoadCancelledError,
    LoadError,
    LoadTimeoutError,
    MessageTooLarge,
    PoolClosed,
    PoolError,
    PoolExists,
    PoolNotFound,
    PoolSaturated,
    PoolTimeout,
    PoolUnhealthy,
    ServiceError,
    SettingsError,
    SnapshotError,
    TierError,
)
from acgsperf.fingerprint import canonical, fingerprint, request_key

if TYPE_CHECKING:
    from acgsperf._native.prediction_stats import PredictionClass, PredictionStats
    from acgsperf._native.sizing_stats import SizeEstimate, SizingStats
    from acgsperf._native.stats import (
        CacheStats,
        HistogramSnapshot,
        LoadResult,
        PolicyStats,
        SaveResult,
        ValidatorStats,
    )
    from acgsperf.cache import (
        UNCHANGED,
        CacheHealth,
        EntryOptions,
        Loaded,
        Prediction,
        Previous,
        TieredCache,
        TieredStats,
        Written,
        cached,
    )
    from acgsperf.monitor import Alert, AlertKind, AlertState, Monitor, Reading, Targets
    from acgsperf.pool import CloseReason, ConnectionPool, PoolHealth, PoolManager, PoolOptimization, PoolStats
    from acgsperf.service import PerformanceService, PerformanceSummary, ServiceHealth
    from acgsperf.settings import Settings
    from acgsperf.tiers.postgres import PostgresTier
    from acgsperf.tiers.redis import RedisTier
    from acgsperf.validator import ComplianceValidator, ContextVerdict, ValidatorMetrics

__all__ = [
    "CONSTITUTIONAL_HASH",
    "IMPLEMENTATION",
    "UNCHANGED",
    "AcgsperfError",
    "AdaptiveCache",
    "Alert",
    "AlertKind",
    "AlertState",
    "BoundedCache",
    "CacheError",
    "CacheHealth",
    "CacheStats",
    "CloseReason",
    "ComplianceError",
    "ComplianceValidator",
    "ConnectionPool",
    "ContextVerdict",
    "EntryOptions",
    "EvictionReason",
    "HashValidator",
    "HistogramSnapshot",
    "LRUCache",
    "LatencyHistogram",
    "LoadCancelledError",
    "LoadError",
    "LoadResult",
    "LoadTimeoutError",
    "Loaded",
    "MessageTooLarge",
    "Monitor",
    "PerformanceService",
    "PerformanceSummary",
    "PolicyStats",
    "PoolClosed",
    "PoolError",
    "PoolExists",
    "PoolHealth",
    "PoolManager",
    "PoolNotFound",
    "PoolOptimization",
    "PoolSaturated",
    "PoolStats",
    "PoolTimeout",
    "PoolUnhealthy",
    "PostgresTier",
    "Prediction",
    "PredictionClass",
    "PredictionStats",
    "Previous",
    "Reading",
    "RedisTier",
    "SaveResult",
    "ServiceError",
    "ServiceHealth",
    "Settings",
    "SettingsError",
    "SizeEstimate",
    "SizingStats",
    "SnapshotError",
    "Targets",
    "TierError",
    "TieredCache",
    "TieredStats",
    "Timer",
    "ValidatorMetrics",
    "ValidatorStats",
    "Verdict",
    "Written",
    "cached",
    "canonical",
    "fingerprint",
    "request_key",
    "weigh_bytes",
]

# asyncio, the clients of servers, the settings and dataclasses take longer to import than the rest. A program that
# uses only the core needs none of them at first.
_LATER = {
    "UNCHANGED": "acgsperf.cache",
    "Alert": "acgsperf.monitor",
    "AlertKind": "acgsperf.monitor",
    "AlertState": "acgsperf.monitor",
    "CacheHealth": "acgsperf.cache",
    "CacheStats": "acgsperf._native.stats",
    "CloseReason": "acgsperf.pool",
    "ComplianceValidator": "acgsperf.validator",
    "ConnectionPool": "acgsperf.pool",
    "ContextVerdict": "acgsperf.validator",
    "EntryOptions": "acgsperf.cache",
    "HistogramSnapshot": "acgsperf._native.stats",
    "LoadResult": "acgsperf._native.stats",
    "Loaded": "acgsperf.cache",
    "Monitor": "acgsperf.monitor",
    "PerformanceService": "acgsperf.service",
    "PerformanceSummary": "acgsperf.service",
    "PolicyStats": "acgsperf._native.stats",
    "PoolHealth": "acgsperf.pool",
    "PoolManager": "acgsperf.pool",
    "PoolOptimization": "acgsperf.pool",
    "PoolStats": "acgsperf.pool",
    "PostgresTier": "acgsperf.tiers.postgres",
    "Prediction": "acgsperf.cache",
    "PredictionClass": "acgsperf._native.prediction_stats",
    "PredictionStats": "acgsperf._native.prediction_stats",
    "Previous": "acgsperf.cache",
    "Reading": "acgsperf.monitor",
    "RedisTier": "acgsperf.tiers.redis",
    "SaveResult": "acgsperf._native.stats",
    "ServiceHealth": "acgsperf.service",
    "Settings": "acgsperf.settings",
    "SizeEstimate": "acgsperf._native.sizing_stats",
    "SizingStats": "acgsperf._native.sizing_stats",
    "Targets": "acgsperf.monitor",
    "TieredCache": "acgsperf.cache",
    "TieredStats": "acgsperf.cache",
    "ValidatorMetrics": "acgsperf.validator",
    "ValidatorStats": "acgsperf._native.stats",
    "Written": "acgsperf.cache",
    "cached": "acgsperf.cache",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version  # takes as long to import as the rest of the package

        return version("acgsperf")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value
