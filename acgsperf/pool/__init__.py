"""PostgreSQL connection pools that recover by themselves: one pool, or several under names."""

from acgsperf.pool.connection_pool import ConnectionPool
from acgsperf.pool.manager import PoolManager
from acgsperf.pool.options import CloseReason, PoolHealth, PoolOptimization, PoolStats

__all__ = ["CloseReason", "ConnectionPool", "PoolHealth", "PoolManager", "PoolOptimization", "PoolStats"]
