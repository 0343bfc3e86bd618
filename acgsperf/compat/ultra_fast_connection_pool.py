"""What `services.shared.database.ultra_fast_connection_pool` offered, on asyncpg's pool.

Not on `acgsperf.ConnectionPool`: callers put a pool of asyncpg's, or a stand-in for one, in the place of `pool`, and
replace `asyncpg.create_pool` here. So asyncpg makes, keeps and lends the connections; what is added is a deadline for
every wait, a `LatencyHistogram` of the waits, and the counters. Nothing is set in anybody's session. A service that
is free to change takes `acgsperf.PoolManager`, which recovers by itself, queues fairly and finds leaks.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from asyncpg import InterfaceError, Pool

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.compat._awaiting import settled
from acgsperf.compat._counters import percentiles_ms
from acgsperf.compat._singleton import OnePerProcess
from acgsperf.compat.validation import UltraFastConstitutionalValidator
from acgsperf.dispatch import LatencyHistogram

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
_HEALTH_TIMEOUT_S: Final = 5.0
_RELEASE_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass
class ConnectionMetrics:
    """What a pool counted; times are in seconds, of the acquisitions that succeeded."""

    total_acquisitions: int = 0
    successful_acquisitions: int = 0
    failed_acquisitions: int = 0
    total_acquisition_time: float = 0.0
    peak_connections: int = 0
    current_connections: int = 0
    health_check_failures: int = 0
    connection_recycling_count: int = 0

    def get_avg_acquisition_time_ms(self) -> float:
        """The average wait for a connection in milliseconds; 0.0 when there was none."""
        count = self.successful_acquisitions
        return self.total_acquisition_time / count * 1e3 if count else 0.0

    def get_success_rate(self) -> float:
        """Successful acquisitions / all, between 0 and 1; 1.0 when there was none."""
        return self.successful_acquisitions / self.total_acquisitions if self.total_acquisitions else 1.0


class UltraFastConnectionPool:
    """A pool of asyncpg's under a name, with a deadline of `acquisition_timeout_s` for every wait.

    Args:
        pool_name: for messages.
        dsn: of the PostgreSQL.
        min_size: connections that are opened at the start.
        max_size: connections at most.
        constitutional_validator: has `validate_hash`; one of its own when None.
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
        self.constitutional_validator = constitutional_validator or UltraFastConstitutionalValidator()
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self.pool: Any = None
        self.is_initialized = False
        self.is_healthy = True
        self.metrics = ConnectionMetrics()
        self.fast_path_enabled = True
        self.connection_cache: dict[str, Any] = {}
        self.acquisition_timeout_s = _ACQUISITION_TIMEOUT_S
        self._waits = LatencyHistogram()
        self._lent: set[int] = set()
        self._initializing = asyncio.Lock()

    async def initialize(self) -> None:
        """Open `min_size` connections; nothing, when that was done before.

        Raises:
            RuntimeError: when the validator refuses the constitutional hash.
            Exception: whatever kept asyncpg from connecting; the pool is unhealthy then.
        """
        async with self._initializing:
            if not self.is_initialized:
                await self._initialize()

    async def _initialize(self) -> None:
        try:
            if not await settled(self.constitutional_validator.validate_hash(self.constitutional_hash)):
                raise RuntimeError(
                    f"Constitutional compliance violation: {self.constitutional_hash} was refused "
                    f"for pool '{self.pool_name}'"
                )
            self.pool = await settled(
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
        self._lent.clear()
        self.metrics.current_connections = 0
        self.is_initialized = self.is_healthy = True

    async def acquire_connection(self) -> Any:
        """A connection, to be given back by `release_connection`.

        Raises:
            RuntimeError: when the pool is not initialized or is unhealthy, or no connection came in time.
            Exception: what asyncpg raises when it cannot connect.
        """
        if self.pool is None or not self.is_initialized:
            raise RuntimeError(f"Pool '{self.pool_name}' is not initialized")
        if not self.is_healthy:
            raise RuntimeError(f"Pool '{self.pool_name}' is unhealthy")
        metrics = self.metrics
        metrics.total_acquisitions += 1
        started = time.perf_counter_ns()
        try:
            async with asyncio.timeout(self.acquisition_timeout_s):
                connection = await settled(self.pool.acquire())
        except TimeoutError:
            metrics.failed_acquisitions += 1
            raise RuntimeError(f"Connection acquisition timeout for pool '{self.pool_name}'") from None
        except BaseException:
            metrics.failed_acquisitions += 1
            raise
        took_ns = time.perf_counter_ns() - started
        self._waits.record(took_ns)
        metrics.successful_acquisitions += 1
        metrics.total_acquisition_time += took_ns / 1e9
        self._lent.add(id(connection))
        metrics.current_connections += 1
        metrics.peak_connections = max(metrics.peak_connections, metrics.current_connections)
        return connection

    async def release_connection(self, connection: Any) -> None:
        """Give a connection back. One whose session is not reset within 5 s is closed, and counted as recycled.

        Raises:
            asyncpg.InterfaceError: for a connection of another pool.
        """
        if self.pool is None or connection is None:
            return
        # Before asyncpg hands it to the next; a second time it is not given back.
        if id(connection) in self._lent:
            self._lent.remove(id(connection))
            self.metrics.current_connections = max(0, self.metrics.current_connections - 1)
        try:
            await self._give_back(connection)
        except InterfaceError:
            raise
        except Exception as error:
            self._recycle(type(error).__name__)

    def _recycle(self, why: str) -> None:
        self.metrics.connection_recycling_count += 1
        _log.warning("pool %r let go of a connection: %s", self.pool_name, why)

    async def health_check(self) -> dict[str, Any]:
        """Ask the server, and believe it: a pool that was unhealthy serves again when it answers.

        With every connection lent nobody can be asked, and the pool is as healthy as it was.
        """
        if self.pool is None:
            return self._health(False, {"error": "Pool not initialized"})
        started = time.perf_counter()
        if not self._is_all_lent():
            try:
                await self._ask_server()
            except Exception as error:
                self.is_healthy = False
                self.metrics.health_check_failures += 1
                return self._health(False, {"error": str(error) or type(error).__name__})
            self.is_healthy = True
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

    async def _ask_server(self) -> None:
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                connection = await settled(self.pool.acquire())
        except TimeoutError:
            # To wait for borrowers is no verdict on the server.
            if self._is_all_lent():
                return
            raise
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await settled(connection.fetchval("SELECT 1"))
        finally:
            await self._give_back(connection)

    async def _give_back(self, connection: Any) -> None:
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await settled(self.pool.release(connection))
        except TimeoutError:
            await settled(connection.terminate())
            raise

    def _is_all_lent(self) -> bool:
        if isinstance(self.pool, Pool):
            return self.pool.get_idle_size() == 0 and self.pool.get_size() >= self.pool.get_max_size()
        return self.metrics.current_connections >= self.max_size

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
        size = self.pool.get_size() if self.pool is not None else 0
        if inspect.iscoroutine(size):
            # An AsyncMock in the place of the pool makes everything awaitable; this is not.
            size.close()
        return size if isinstance(size, int) else self.metrics.current_connections

    def get_performance_metrics(self) -> dict[str, Any]:
        """Counters and sizes; `acquisition_percentiles` are those of the successful waits."""
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
        """Open what is missing to `min_size`; recommend what only the owner of the pool should change."""
        applied, recommendations = [], []
        if opened := await self._pre_warm_connections():
            applied.append(f"opened {opened} connections")
        if self.metrics.peak_connections > self.max_size * POOL_PERFORMANCE_TARGETS["pool_utilization_target"]:
            recommendations.append(f"raise max_size: {self.metrics.peak_connections} of {self.max_size} were in use")
        if self.metrics.get_avg_acquisition_time_ms() > POOL_PERFORMANCE_TARGETS["connection_acquisition_ms"]:
            recommendations.append("raise min_size, or hold connections for a shorter time: callers wait")
        if not self.is_healthy:
            recommendations.append("look after the server: the pool is unhealthy")
        return {
            "optimizations_applied": applied,
            "recommendations": recommendations,
            "current_metrics": self.get_performance_metrics(),
            "constitutional_hash": self.constitutional_hash,
        }

    async def _pre_warm_connections(self) -> int:
        """Hold as many connections at once as there should be, for asyncpg opens one only when it is needed."""
        missing = self.min_size - self._size() if self.is_initialized else 0
        if missing <= 0 or self.metrics.current_connections or not isinstance(self.pool, Pool):
            return 0
        before, lent = self._size(), []
        try:
            async with asyncio.timeout(self.acquisition_timeout_s):
                for _ in range(self.min_size):
                    lent.append(await self.pool.acquire())  # noqa: PERF401 - a time-out must find what there is
        except Exception as error:
            _log.warning("pool %r cannot open connections: %s", self.pool_name, type(error).__name__)
        finally:
            for connection in lent:
                await self.pool.release(connection)
        return self._size() - before

    async def close(self) -> None:
        """Close every connection, when its borrower has given it back or 10 s are over."""
        pool = self.pool
        self.is_initialized = False
        if pool is None:
            return
        try:
            async with asyncio.timeout(10):
                await settled(pool.close())
        except Exception as error:
            _log.warning("pool %r did not close, and is terminated: %s", self.pool_name, type(error).__name__)
            await settled(pool.terminate())
        finally:
            # Until here borrowers could give back what they had.
            self.pool = None
            self._lent.clear()
            self.metrics.current_connections = 0


class UltraFastConnectionPoolManager:
    """Several pools under names, whose health is asked for every 30 s from the first one on."""

    def __init__(self) -> None:
        self.pools: dict[str, UltraFastConnectionPool] = {}
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self._opening: set[str] = set()
        self._monitoring_task: asyncio.Task[None] | None = None

    async def create_pool(
        self, name: str, dsn: str, min_size: int = 20, max_size: int = 100
    ) -> UltraFastConnectionPool:
        """Open a pool under a name.

        Raises:
            ValueError: when the name is taken.
            RuntimeError, Exception: as `UltraFastConnectionPool.initialize`; the name is free again.
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
        if self._monitoring_task is None or self._monitoring_task.done():
            self._monitoring_task = asyncio.create_task(self._monitor())
        return pool

    async def get_pool(self, name: str) -> UltraFastConnectionPool:
        """The pool of a name.

        Raises:
            ValueError: when there is none.
        """
        if name not in self.pools:
            raise ValueError(f"Pool '{name}' not found")
        return self.pools[name]

    async def health_check_all(self) -> dict[str, Any]:
        """The health of every pool, all asked at once."""
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
        """Optimize every pool, one after the other."""
        results = {name: await pool.optimize_performance() for name, pool in list(self.pools.items())}
        return {
            "pool_optimizations": results,
            "total_pools": len(results),
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }

    async def close_all(self) -> None:
        """Stop watching, and close all pools at once."""
        task, self._monitoring_task = self._monitoring_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        pools, self.pools = self.pools, {}
        await asyncio.gather(*(pool.close() for pool in pools.values()))

    async def _monitor(self) -> None:
        while True:
            await asyncio.sleep(POOL_PERFORMANCE_TARGETS["health_check_interval_s"])
            try:
                await self.health_check_all()
            except Exception:
                _log.exception("the health check of the pools failed")


async def _make_manager() -> UltraFastConnectionPoolManager:
    return UltraFastConnectionPoolManager()


_manager: Final = OnePerProcess(_make_manager)


async def get_pool_manager() -> UltraFastConnectionPoolManager:
    """The manager of this process."""
    return await _manager.get()


async def create_ultra_fast_pool(
    name: str, dsn: str, min_size: int = 20, max_size: int = 100
) -> UltraFastConnectionPool:
    """A pool of the manager of this process; see `UltraFastConnectionPoolManager.create_pool`."""
    return await (await get_pool_manager()).create_pool(name, dsn, min_size, max_size)
