"""PostgreSQL connection pools that recover by themselves, one or several."""

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

from acgsperf._native.arguments import checked_seconds, checked_str
from acgsperf.errors import PoolClosed, PoolExists, PoolNotFound
from acgsperf.pool.connection_pool import ConnectionPool
from acgsperf.pool.options import CloseReason, PoolHealth, PoolOptimization, PoolStats

__all__ = ["CloseReason", "ConnectionPool", "PoolHealth", "PoolManager", "PoolOptimization", "PoolStats"]

_log: Final = logging.getLogger("acgsperf.pool")


class PoolManager:
    """Several pools under names, watched by one task; use it with `async with`, or call `close`.

    Args:
        interval: seconds between two health checks of all pools.
    """

    def __init__(self, *, interval: float = 30.0) -> None:
        self._interval = checked_seconds("interval", interval)
        self._pools: dict[str, ConnectionPool] = {}
        self._opening: dict[str, ConnectionPool] = {}
        self._monitor: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """The manager itself; monitoring starts with the first pool."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all pools; when leaving with an error, without waiting for their borrowers."""
        await self.close(10.0 if error is None else 0.0)

    async def create(self, name: str, dsn: str, **options: Any) -> ConnectionPool:
        """Open a pool under a name; `options` are those of `ConnectionPool`.

        Raises:
            PoolExists: when the name is taken, or that of a replica is, by a pool that is not closed.
            PoolClosed: when the manager is closed.
            TypeError: when the name is no str.
            TypeError, ValueError, PoolUnhealthy, PoolTimeout: as `ConnectionPool` and its `open`; the name is free
                again.
        """
        checked_str("name", name)
        if self._closed:
            raise PoolClosed("the pool manager is closed")
        pool = ConnectionPool(dsn, name=name, **options)
        taken = {member.name for member in _members((*self._open_pools().values(), *self._opening.values()))}
        for member in _members((pool,)):
            if member.name in taken:
                raise PoolExists(f"there is a pool named {member.name!r} already")
        self._opening[name] = pool
        try:
            await pool.open()
        finally:
            del self._opening[name]
        if self._closed:
            await pool.close(0)
            raise PoolClosed("the pool manager was closed meanwhile")
        self._pools[name] = pool
        if self._monitor is None:
            self._monitor = asyncio.create_task(self._watch(), name="acgsperf pool manager")
        return pool

    def get(self, name: str) -> ConnectionPool:
        """The pool of a name.

        Raises:
            PoolNotFound: when there is none.
        """
        pool = self._pools.get(name)
        if pool is None or pool.closed:
            raise PoolNotFound(f"there is no pool named {name!r}")
        return pool

    def names(self) -> list[str]:
        """The names of the open pools, the oldest first."""
        return list(self._open_pools())

    def _open_pools(self) -> dict[str, ConnectionPool]:
        # Their users may have closed some.
        self._pools = {name: pool for name, pool in self._pools.items() if not pool.closed}
        return self._pools

    async def health(self) -> dict[str, PoolHealth]:
        """The health of every pool and replica now, all asked at once."""
        pools = _members(self._open_pools().values())
        answers = await asyncio.gather(*(pool.health() for pool in pools))
        return {pool.name: answer for pool, answer in zip(pools, answers, strict=True)}

    def optimize(self) -> dict[str, PoolOptimization]:
        """Fit every pool and replica to its recent demand, and tell what was done."""
        pools = _members(self._open_pools().values())
        return {pool.name: pool.optimize() for pool in pools}

    async def close(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Stop watching, and close all pools at once as `ConnectionPool.close` does; one that is being opened too.

        Raises:
            TypeError, ValueError: for a timeout that is none; the manager goes on.
        """
        timeout = checked_seconds("timeout", timeout, zero=True)
        self._closed = True
        pools, self._pools = [*self._pools.values(), *self._opening.values()], {}
        if self._monitor is not None:
            self._monitor.cancel()
            await asyncio.gather(self._monitor, return_exceptions=True)
        await asyncio.gather(*(pool.close(timeout) for pool in pools))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.health()
            except Exception:
                _log.exception("the health check of the pools failed")


def _members(pools: Iterable[ConnectionPool]) -> list[ConnectionPool]:
    """The pools, each with its replicas."""
    return [member for pool in pools for member in (pool, *pool.replicas)]
