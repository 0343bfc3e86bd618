"""Tiers below the L1 cache: caches in a server that processes share, and the contract that they have in common.

`RedisTier` and `PostgresTier` have modules of their own, which import their drivers.
"""

from acgsperf._native.entry import Packed, TypedEntry
from acgsperf.tiers.base import (
    BreakerState,
    ConnectionStats,
    Entry,
    LockingTier,
    Observation,
    Outcome,
    Store,
    StoreKind,
    Tier,
    TierHealth,
    TierStats,
    Write,
    WriteResult,
)

__all__ = [
    "BreakerState",
    "ConnectionStats",
    "Entry",
    "LockingTier",
    "Observation",
    "Outcome",
    "Packed",
    "Store",
    "StoreKind",
    "Tier",
    "TierHealth",
    "TierStats",
    "TypedEntry",
    "Write",
    "WriteResult",
]
