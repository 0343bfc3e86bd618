"""Several connection pools under names."""

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from acgsperf._native.arguments import checked_seconds, checked_str
from acgsperf.errors import PoolClosed, PoolExists, PoolNotFound
from acgsperf.pool.connection_pool import ConnectionPool
from acgsperf.pool.options import TARGET_UTILIZATION, PoolHealth, PoolOptimization

__all__ = ["PoolManager"]

_log: Final = logging.getLogger("acgsperf.pool")


class PoolManager:
    """Several pools under names. One task checks their health. Use it with `async with`, or call `close`.

    At the end of the block it is closed. Another block, also in another event loop, opens it again, without pools.

    Args:
        interval: seconds between two health checks of all pools.
    """

    def __init__(self, *, interval: float = 30.0) -> None:
        self._interval = checked_seconds("interval", interval)
        self._pools: dict[str, ConnectionPool] = {}
        self._opening: dict[str, ConnectionPool] = {}
        self._closing: set[ConnectionPool] = set()
        # For exporters: those that still exist, also while they are opened or after they were closed.
        self._created: Final[WeakSet[ConnectionPool]] = WeakSet()
        self._monitor: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Return the manager, which is open, also if it was closed before. Health checks start with the first pool."""
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all pools. After an error, it does not wait for borrowers."""
        await self.close(10.0 if error is None else 0.0)

    async def create(self, name: str, dsn: str, **options: Any) -> ConnectionPool:
        """Open a pool under a name. `options` are those of `ConnectionPool`.

        Raises:
            PoolExists: if an open pool or replica has the name, or the name of one of the new replicas.
            PoolClosed: if the manager is closed.
            TypeError: if the name is not a str.
            TypeError, ValueError, PoolUnhealthy, PoolTimeout: as `ConnectionPool` and its `open`. The name can then be
                used again.
        """
        checked_str("name", name)
        if self._closed:
            raise PoolClosed("the pool manager is closed")
        pool = ConnectionPool(dsn, name=name, **options)
        self._pools = self._open_pools()
        names = {member.name for member in _members((*self._pools.values(), *self._opening.values()))}
        for member in _members((pool,)):
            if member.name in names:
                raise PoolExists(f"a pool named {member.name!r} exists already")
        self._opening[name] = pool
        self._created.add(pool)
        try:
            await pool.open()
        finally:
            del self._opening[name]
        if self._closed:
            await pool.close(0)
            raise PoolClosed(f"the pool manager was closed while pool {name!r} was opened")
        self._pools[name] = pool
        if self._monitor is None:
            self._monitor = asyncio.create_task(self._watch(), name="acgsperf pool manager")
        return pool

    def get(self, name: str) -> ConnectionPool:
        """Return the pool of a name.

        Raises:
            PoolNotFound: if there is no open pool of this name.
        """
        pool = self._pools.get(name)
        if pool is None or pool.closed:
            raise PoolNotFound(f"there is no open pool named {name!r}")
        return pool

    def names(self) -> list[str]:
        """Return the names of the open pools, oldest first."""
        return list(self._open_pools())

    def _open_pools(self) -> dict[str, ConnectionPool]:
        # The application may have closed some of them. An exporter may call this in another thread: change nothing.
        return {name: pool for name, pool in self._pools.copy().items() if not pool.closed}

    async def health(self) -> dict[str, PoolHealth]:
        """Check all pools and replicas concurrently; return the results by name."""
        pools = _members(self._open_pools().values())
        answers = await asyncio.gather(*(pool.health() for pool in pools))
        return {pool.name: answer for pool, answer in zip(pools, answers, strict=True)}

    def optimize(self, utilization: float = TARGET_UTILIZATION) -> dict[str, PoolOptimization]:
        """Adapt the size of every pool and replica to its recent demand; return what was done, by name.

        Args:
            utilization: as for `ConnectionPool.optimize`.
        """
        pools = _members(self._open_pools().values())
        return {pool.name: pool.optimize(utilization) for pool in pools}

    async def close(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Stop the health checks, and close all pools concurrently, those that are being opened too.

        Args:
            timeout: seconds to wait for borrowers, as for `ConnectionPool.close`.

        A call that was cancelled can be repeated.

        Raises:
            TypeError, ValueError: if the timeout is not a number of seconds, 0 or more; the pools stay open.
        """
        timeout = checked_seconds("timeout", timeout, zero=True)
        self._closed = True
        # A call that is cancelled leaves them here for the next one.
        self._closing.update(self._pools.values(), self._opening.values())
        self._pools = {}
        if self._monitor is not None:
            self._monitor.cancel()
            await asyncio.gather(self._monitor, return_exceptions=True)
            self._monitor = None
        await asyncio.gather(*(pool.close(timeout) for pool in self._closing))
        self._closing.clear()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.health()
            except Exception:
                _log.exception("pool manager: the health check failed; trying again in %g s", self._interval)


def _members(pools: Iterable[ConnectionPool]) -> list[ConnectionPool]:
    """Return the pools, each followed by its replicas."""
    return [member for pool in pools for member in (pool, *pool.replicas)]
