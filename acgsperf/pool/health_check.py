"""The health check of a pool: a question to its server."""

import asyncio
import math
from typing import TYPE_CHECKING

from acgsperf.errors import PoolError
from acgsperf.pool.health import ServerHealth
from acgsperf.pool.lender import Lender
from acgsperf.pool.lifecycle import Lifecycle
from acgsperf.pool.options import CloseReason, PoolHealth, PoolOptions
from acgsperf.pool.supply import Supply, nanoseconds
from acgsperf.pool.waiters import HEALTH_CHECK_TICKET
from acgsperf.timeouts import time_limit

if TYPE_CHECKING:
    from acgsperf.pool.slot import Slot


class HealthCheck:
    """Asks the server of a pool whether it answers, with an idle connection or with a new one."""

    __slots__ = ("_health", "_lender", "_lifecycle", "_options", "_supply")

    def __init__(
        self, lifecycle: Lifecycle, health: ServerHealth, supply: Supply, lender: Lender, options: PoolOptions
    ) -> None:
        self._lifecycle = lifecycle
        self._health = health
        self._supply = supply
        self._lender = lender
        self._options = options

    async def run(self) -> PoolHealth:
        """Ask the server; see `ConnectionPool.health`."""
        lifecycle, health, supply = self._lifecycle, self._health, self._supply
        if not lifecycle.is_open:
            return self._not_open()
        start = self._options.clock()
        if health.error is None and supply.inventory.idle:
            if await self._ask_with_idle():
                return self._answered(start)
            if health.error is None and not supply.inventory.has_lent():
                supply.mark_unhealthy(TimeoutError(f"no answer within {self._options.check_timeout} s"))
        if lifecycle.is_open and health.error is None and supply.room > 0:
            opened = supply.opened
            await asyncio.wait((supply.start_connecting(),))
            if supply.opened > opened:
                return self._answered(start)
            if not lifecycle.is_open:
                return self._not_open()
            # A server that refuses a connection does answer. If it says nothing, its other sessions are silent too.
            if isinstance(health.last_failure, TimeoutError):
                supply.mark_unhealthy(health.last_failure)
            elif health.last_failure is not None and not supply.inventory.has_live():
                return PoolHealth(False, error=health.describe(health.last_failure))
        return PoolHealth(True) if health.error is None else PoolHealth(False, error=health.describe(health.error))

    def _answered(self, start: float) -> PoolHealth:
        latency_ns = nanoseconds(self._options.clock() - start)
        return PoolHealth(True, latency_ns, role=self._supply.roles.describe(), lag_s=self._lender.lag_s)

    def _not_open(self) -> PoolHealth:
        return PoolHealth(False, error=f"pool {self._lifecycle.name!r} is not open")

    async def _ask_with_idle(self) -> bool:
        # The check is served before all callers. If its deadline passes, that is not counted as a caller's timeout.
        slot: Slot | None = None
        try:
            async with time_limit(self._options.check_timeout):
                slot = await self._lender.wait(HEALTH_CHECK_TICKET, math.inf, math.inf)
                self._supply.checks.begin(slot)
                # A connection that a borrower has just returned was not checked.
                await slot.connection.execute("SELECT 1")
        except PoolError:
            return False
        except BaseException as error:
            if slot is not None:
                self._supply.checks.end(slot)
                self._supply.terminate(slot, CloseReason.CHECK_FAILED)
            if isinstance(error, Exception):
                return False
            raise
        self._supply.checks.end(slot)
        self._supply.offer(slot)
        return True
