"""A compliance gate, an L1 cache and latency histograms for asyncio services, compiled with Cython."""

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
    ComplianceError,
    PoolClosed,
    PoolError,
    PoolExists,
    PoolNotFound,
    PoolSaturated,
    PoolTimeout,
    PoolUnhealthy,
    SettingsError,
)
from acgsperf.fingerprint import canonical, fingerprint
from acgsperf.validator import ComplianceValidator, ContextVerdict, ValidatorMetrics

if TYPE_CHECKING:
    from acgsperf.pool import CloseReason, ConnectionPool, PoolHealth, PoolManager, PoolOptimization, PoolStats

__all__ = [
    "CONSTITUTIONAL_HASH",
    "IMPLEMENTATION",
    "AcgsperfError",
    "CacheStats",
    "CloseReason",
    "ComplianceError",
    "ComplianceValidator",
    "ConnectionPool",
    "ContextVerdict",
    "EvictionReason",
    "HashValidator",
    "HistogramSnapshot",
    "LRUCache",
    "LatencyHistogram",
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
    "SettingsError",
    "Timer",
    "ValidatorMetrics",
    "ValidatorStats",
    "Verdict",
    "canonical",
    "fingerprint",
]

_LATER = dict.fromkeys(
    ("CloseReason", "ConnectionPool", "PoolHealth", "PoolManager", "PoolOptimization", "PoolStats"), "acgsperf.pool"
)


def __getattr__(name: str) -> object:
    """What needs a client of a server is imported when it is first asked for: `import acgsperf` stays light."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value
