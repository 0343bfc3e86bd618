"""The surface of `services.shared.database.ultra_fast_connection_pool`, on asyncpg's pool.

It does not use `acgsperf.ConnectionPool`, because callers replace the attribute `pool` by an asyncpg pool or a mock,
and patch `asyncpg.create_pool` in this module. asyncpg opens, keeps and lends the connections. This module adds a
deadline to every wait, a `LatencyHistogram` of the waits, and the counters. It changes no session settings.

Use `acgsperf.PoolManager` in new code: it recovers by itself, serves waiters in order, and finds leaks.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
from asyncpg import InterfaceError, Pool

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.compat._asyncpg_pool import is_exhausted, open_connections, ping, pool_size, release
from acgsperf.compat._counters import percentiles_ms
from acgsperf.compat._maybe_await import maybe_await
from acgsperf.compat._pool_metrics import ConnectionMetrics
from acgsperf.compat._singleton import ProcessSingleton
from acgsperf.compat.validation import UltraFastConstitutionalValidator
from acgsperf.dispatch import LatencyHistogram
from acgsperf.timeouts import time_limit

__all__ = [
    "CONSTITUTIONAL_HASH",
    "POOL_PERFORMANCE_TARGETS",
    "ConnectionMetrics",
    "UltraFastConnectionPool",
    "UltraFastConnectionPoolManager",
    "create_ultra_fast_pool",
    "get_pool_manager",
]

POOL_PERFORMANCE_TARGETS: Final[dict[str, float]] = {
    "connection_acquisition_ms": 1.0,
    "pool_utilization_target": 0.8,
    "health_check_interval_s": 30,
    "connection_lifetime_s": 3600,
    "min_pool_size": 20,
    "max_pool_size": 100,
}

_ACQUISITION_TIMEOUT_S: Final = 5.0
_CLOSE_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


class UltraFastConnectionPool:
    """An asyncpg pool with a name, counters, and a deadline for every wait (`acquisition_timeout_s`, 5 s).

    Args:
        pool_name: used in messages.
        dsn: the PostgreSQL server.
        min_size: connections that `initialize` opens.
        max_size: the maximum number of connections.
        constitutional_validator: an object with `validate_hash`; by default, a new validator.
    """

    def __init__(
        self,
        pool_name: str,
        dsn: str,
        min_size: int = 20,
        max_size: int = 100,
        constitutional_validator: Any = None,
    ) -> None:
        self.pool_name = pool_name
        self.dsn = dsn
        self.min_size = min_size
        self.max_size = max_size
        self.constitutional_validator: Any = constitutional_validator or UltraFastConstitutionalValidator()
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self.pool: Any = None
        self.is_initialized: bool = False
        self.is_healthy: bool = True
        self.metrics: ConnectionMetrics = ConnectionMetrics()
        self.fast_path_enabled = True
        self.connection_cache: dict[str, Any] = {}
        self.acquisition_timeout_s = _ACQUISITION_TIMEOUT_S
        self._waits = LatencyHistogram()
        self._in_use: set[int] = set()
        self._initializing = asyncio.Lock()

    async def initialize(self) -> None:
        """Open `min_size` connections. Does nothing if the pool is already initialized.

        Raises:
            RuntimeError: if the validator refuses the constitutional hash.
            Exception: whatever asyncpg raises if it cannot connect. The pool is then unhealthy.
        """
        async with self._initializing:
            if not self.is_initialized:
                await self._initialize()

    async def _initialize(self) -> None:
        try:
            if not await maybe_await(self.constitutional_validator.validate_hash(self.constitutional_hash)):
                raise RuntimeError(
                    f"Constitutional compliance violation: {self.constitutional_hash} was refused "
                    f"for pool '{self.pool_name}'"
                )
            self.pool = await maybe_await(
                asyncpg.create_pool(
                    self.dsn,
                    min_size=self.min_size,
                    max_size=self.max_size,
                    max_inactive_connection_lifetime=POOL_PERFORMANCE_TARGETS["connection_lifetime_s"],
                )
            )
        except BaseException:
            self.is_healthy = False
            raise
        self._in_use.clear()
        self.metrics.current_connections = 0
        self.is_initialized = self.is_healthy = True

    async def acquire_connection(self) -> Any:
        """Acquire a connection. Return it with `release_connection`, in a `finally` block.

        Raises:
            RuntimeError: if the pool is not initialized or is unhealthy, or no connection became free in time.
            Exception: whatever asyncpg raises if it cannot connect.
        """
        if self.pool is None or not self.is_initialized:
            raise RuntimeError(f"Pool '{self.pool_name}' is not initialized")
        if not self.is_healthy:
            raise RuntimeError(f"Pool '{self.pool_name}' is unhealthy")
        metrics = self.metrics
        metrics.total_acquisitions += 1
        started = time.perf_counter_ns()
        try:
            async with time_limit(self.acquisition_timeout_s):
                connection = await maybe_await(self.pool.acquire())
        except TimeoutError:
            metrics.failed_acquisitions += 1
            raise RuntimeError(f"Connection acquisition timeout for pool '{self.pool_name}'") from None
        except BaseException:
            metrics.failed_acquisitions += 1
            raise
        finally:
            took_ns = time.perf_counter_ns() - started
            metrics.total_acquisition_time += took_ns / 1e9
        self._waits.record(took_ns)
        metrics.successful_acquisitions += 1
        self._in_use.add(id(connection))
        metrics.current_connections += 1
        metrics.peak_connections = max(metrics.peak_connections, metrics.current_connections)
        return connection

    async def release_connection(self, connection: Any) -> None:
        """Return a connection to the pool.

        If its session is not reset within 5 s, the connection is closed and counted as recycled.

        Raises:
            asyncpg.InterfaceError: if the connection belongs to another pool.
        """
        if self.pool is None or connection is None:
            return
        # Counted before asyncpg lends the connection to the next borrower. A second release does not count.
        if id(connection) in self._in_use:
            self._in_use.remove(id(connection))
            self.metrics.current_connections = max(0, self.metrics.current_connections - 1)
        try:
            await release(self.pool, connection)
        except InterfaceError:
            raise
        except Exception as error:
            self.metrics.connection_recycling_count += 1
            why = type(error).__name__
            _log.warning("pool %r: connection could not be released and was closed: %s", self.pool_name, why)

    async def health_check(self) -> dict[str, Any]:
        """Run `SELECT 1` on the server, and set `is_healthy` by the outcome.

        An unhealthy pool serves again after a successful check. If every connection is in use, or borrowers take them
        all while the check waits for one, no check is possible, and `is_healthy` does not change.
        """
        if self.pool is None:
            return self._health(False, {"error": "Pool not initialized"})
        started = time.perf_counter()
        if not self._is_exhausted():
            try:
                # No connection in time says nothing about the server if borrowers hold all of them.
                if await ping(self.pool):
                    self.is_healthy = True
                elif not self._is_exhausted():
                    raise TimeoutError
            except Exception as error:
                self.is_healthy = False
                self.metrics.health_check_failures += 1
                return self._health(False, {"error": str(error) or type(error).__name__})
        return self._health(
            self.is_healthy,
            {
                "pool_size": self._size(),
                "pool_min_size": self.min_size,
                "pool_max_size": self.max_size,
                "health_check_time_ms": (time.perf_counter() - started) * 1e3,
                "metrics": self.get_performance_metrics()["performance_summary"],
            },
        )

    def _is_exhausted(self) -> bool:
        return is_exhausted(self.pool, self.metrics.current_connections, self.max_size)

    def _health(self, healthy: bool, details: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "healthy": healthy,
            "pool_name": self.pool_name,
            **details,
            "health_check_failures": self.metrics.health_check_failures,
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }

    def _size(self) -> int:
        return pool_size(self.pool, self.metrics.current_connections)

    def get_performance_metrics(self) -> dict[str, Any]:
        """Return counters and sizes; `acquisition_percentiles` are those of successful acquisitions."""
        metrics, waits = self.metrics, self._waits.snapshot()
        average_ms, size = metrics.get_avg_acquisition_time_ms(), self._size()
        return {
            "performance_summary": {
                "avg_acquisition_time_ms": average_ms,
                "success_rate": metrics.get_success_rate(),
                "total_acquisitions": metrics.total_acquisitions,
                "current_connections": metrics.current_connections,
                "peak_connections": metrics.peak_connections,
                "meets_acquisition_target": average_ms <= POOL_PERFORMANCE_TARGETS["connection_acquisition_ms"],
            },
            "pool_status": {
                "pool_size": size,
                "min_size": self.min_size,
                "max_size": self.max_size,
                "is_healthy": self.is_healthy,
                "is_initialized": self.is_initialized,
            },
            "optimization_status": {
                "fast_path_enabled": self.fast_path_enabled,
                "pre_warmed": self.is_initialized and size >= self.min_size,
            },
            "acquisition_percentiles": percentiles_ms(waits),
            "constitutional_hash": self.constitutional_hash,
        }

    async def optimize_performance(self) -> dict[str, Any]:
        """Open connections up to `min_size`, and recommend changes that only the owner of the pool should make."""
        applied, recommendations = [], []
        if opened := await self._pre_warm_connections():
            applied.append(f"opened {opened} connections")
        if self.metrics.peak_connections > self.max_size * POOL_PERFORMANCE_TARGETS["pool_utilization_target"]:
            recommendations.append(f"raise max_size: {self.metrics.peak_connections} of {self.max_size} were in use")
        if self.metrics.get_avg_acquisition_time_ms() > POOL_PERFORMANCE_TARGETS["connection_acquisition_ms"]:
            recommendations.append("raise min_size or release connections earlier: callers wait for connections")
        if not self.is_healthy:
            recommendations.append("check the server: the pool is unhealthy")
        return {
            "optimizations_applied": applied,
            "recommendations": recommendations,
            "current_metrics": self.get_performance_metrics(),
            "constitutional_hash": self.constitutional_hash,
        }

    async def _pre_warm_connections(self) -> int:
        """Open connections up to `min_size`, and return how many were opened."""
        missing = self.min_size - self._size() if self.is_initialized else 0
        if missing <= 0 or self.metrics.current_connections or not isinstance(self.pool, Pool):
            return 0
        before = self._size()
        try:
            await open_connections(self.pool, self.min_size, self.acquisition_timeout_s)
        except Exception as error:
            why = type(error).__name__
            _log.warning("pool %r: cannot open %d connections: %s", self.pool_name, self.min_size, why)
        return self._size() - before

    async def close(self) -> None:
        """Close all connections. Waits up to 10 s for borrowers, then terminates their connections."""
        pool = self.pool
        self.is_initialized = self.is_healthy = False
        if pool is None:
            return
        try:
            async with time_limit(_CLOSE_TIMEOUT_S):
                await maybe_await(pool.close())
        except Exception as error:
            why = type(error).__name__
            _log.warning("pool %r: did not close gracefully; terminating its connections: %s", self.pool_name, why)
            await maybe_await(pool.terminate())
        finally:
            # Not earlier, because borrowers release their connections while the pool closes.
            self.pool = None
            self._in_use.clear()
            self.metrics.current_connections = 0


class UltraFastConnectionPoolManager:
    """Holds pools by name, and checks their health every 30 s once there is a pool."""

    def __init__(self) -> None:
        self.pools: dict[str, UltraFastConnectionPool] = {}
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self._opening: set[str] = set()
        self._monitoring_enabled = True
        self._is_closed = False
        self._monitoring_task: asyncio.Task[None] | None = None

    async def create_pool(
        self, name: str, dsn: str, min_size: int = 20, max_size: int = 100
    ) -> UltraFastConnectionPool:
        """Open a pool, and register it under a name.

        Raises:
            ValueError: if there is a pool with this name.
            RuntimeError, Exception: as `UltraFastConnectionPool.initialize`. The name is then not registered.
        """
        if name in self.pools or name in self._opening:
            raise ValueError(f"Pool '{name}' already exists")
        self._opening.add(name)
        try:
            pool = UltraFastConnectionPool(name, dsn, min_size, max_size)
            await pool.initialize()
        finally:
            self._opening.discard(name)
        self.pools[name] = pool
        if self._is_closed:
            # The manager is used again after `close_all`.
            self._is_closed, self._monitoring_enabled = False, True
        if self._monitoring_enabled and (self._monitoring_task is None or self._monitoring_task.done()):
            self._monitoring_task = asyncio.create_task(self._monitor())
        return pool

    async def get_pool(self, name: str) -> UltraFastConnectionPool:
        """Return the pool with this name.

        Raises:
            ValueError: if there is none.
        """
        if name not in self.pools:
            raise ValueError(f"Pool '{name}' not found")
        return self.pools[name]

    async def health_check_all(self) -> dict[str, Any]:
        """Check all pools concurrently, and return their health."""
        pools = dict(self.pools)
        answers = await asyncio.gather(*(pool.health_check() for pool in pools.values()))
        healthy = sum(bool(answer["healthy"]) for answer in answers)
        return {
            "overall_healthy": healthy == len(pools),
            "pools": dict(zip(pools, answers, strict=True)),
            "total_pools": len(pools),
            "healthy_pools": healthy,
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }

    async def optimize_all_pools(self) -> dict[str, Any]:
        """Optimize all pools, one after the other."""
        results = {name: await pool.optimize_performance() for name, pool in list(self.pools.items())}
        return {
            "pool_optimizations": results,
            "total_pools": len(results),
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }

    async def close_all(self) -> None:
        """Stop the health checks, and close all pools concurrently."""
        self._is_closed, self._monitoring_enabled = True, False
        task, self._monitoring_task = self._monitoring_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        pools, self.pools = self.pools, {}
        await asyncio.gather(*(pool.close() for pool in pools.values()))

    async def _monitor(self) -> None:
        while self._monitoring_enabled:
            interval_s = POOL_PERFORMANCE_TARGETS["health_check_interval_s"]
            await asyncio.sleep(interval_s)
            try:
                await self.health_check_all()
            except Exception:
                _log.exception("pool manager: health check failed; the next one runs in %g s", interval_s)


async def _make_manager() -> UltraFastConnectionPoolManager:
    return UltraFastConnectionPoolManager()


_manager: Final = ProcessSingleton(_make_manager)


async def get_pool_manager() -> UltraFastConnectionPoolManager:
    """Return the pool manager of this process."""
    return await _manager.get()


async def create_ultra_fast_pool(
    name: str, dsn: str, min_size: int = 20, max_size: int = 100
) -> UltraFastConnectionPool:
    """Open a pool of the process's manager; see `UltraFastConnectionPoolManager.create_pool`."""
    return await (await get_pool_manager()).create_pool(name, dsn, min_size, max_size)
