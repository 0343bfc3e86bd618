"""What lies behind the L1 cache: tiers that keep entries in a server, and the contract that they share.

`RedisTier` and `PostgresTier` are in modules of their own, which import their drivers.
"""

from acgsperf.tiers.base import BreakerState, Entry, LockingTier, Tier, TierHealth, TierStats

__all__ = ["BreakerState", "Entry", "LockingTier", "Tier", "TierHealth", "TierStats"]
