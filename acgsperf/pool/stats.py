"""Collects the figures of the parts of a pool."""

from acgsperf.pool.health import ServerHealth
from acgsperf.pool.lender import Lender
from acgsperf.pool.options import CloseReason, PoolStats
from acgsperf.pool.supply import Supply
from acgsperf.pool.waiters import WaitQueue

__all__ = ["collect_stats"]


def collect_stats(supply: Supply, lender: Lender, waiters: WaitQueue, health: ServerHealth) -> PoolStats:
    """Return the state and the counters of a pool, without its replicas."""
    inventory = supply.inventory
    return PoolStats(
        size=len(inventory.slots),
        idle=len(inventory.idle),
        in_use=inventory.in_use,
        waiting=len(waiters.waiting),
        connecting=supply.connecting + supply.spare.in_flight,
        min_size=supply.min_size,
        max_size=supply.max_size,
        target_size=supply.target_size,
        opened=supply.opened,
        closed={reason: inventory.closed_by[reason] for reason in CloseReason},
        failed_connects=health.failed_connects,
        timeouts=waiters.timeouts,
        saturations=waiters.saturations,
        leaks=lender.leaks,
        oldest_wait_s=lender.oldest_wait_s(),
        wait=lender.wait_time.snapshot(),
        use=lender.use_time.snapshot(),
        create=supply.create_time.snapshot(),
        failovers=supply.roles.failovers,
        replica_lag_s=lender.lag_s,
        ejected=lender.is_ejected,
    )
