"""Backplanes: each process tells the caches of the others what it has written, in records.

`RedisBackplane` and `PostgresBackplane` have modules of their own, which import their drivers.
"""

from acgsperf.backplane.base import TIMEOUT_S, Backplane, BackplaneState, BackplaneStats, Listener
from acgsperf.tiers.base import Tier

__all__ = ["Backplane", "BackplaneState", "BackplaneStats", "Listener", "beside"]


def beside(tier: Tier | None, timeout: float = TIMEOUT_S) -> Backplane | None:
    """Return a new backplane on the server of a tier; None for a tier of another kind."""
    if tier is None:
        return None
    # A tier of these kinds has imported its driver already.
    if tier.name == "redis":
        from acgsperf.backplane.redis import RedisBackplane
        from acgsperf.tiers.redis import RedisTier

        return RedisBackplane.beside(tier, timeout=timeout) if isinstance(tier, RedisTier) else None
    if tier.name == "postgres":
        from acgsperf.backplane.postgres import PostgresBackplane
        from acgsperf.tiers.postgres import PostgresTier

        return PostgresBackplane.beside(tier, timeout=timeout) if isinstance(tier, PostgresTier) else None
    return None
