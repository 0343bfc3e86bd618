"""The surface of `services.shared.performance.performance_integration_service`, on the other three replacements.

It does not use `PerformanceService`, because callers replace the validator, the cache or the pools by their own objects
or by mocks. So this service calls each part by its former names, and awaits what is awaitable.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.compat._counters import percentiles_ms
from acgsperf.compat._maybe_await import maybe_await
from acgsperf.compat._request_metrics import LivePerformanceMetrics, PerformanceMetrics
from acgsperf.compat._singleton import ProcessSingleton
from acgsperf.compat.ultra_fast_cache import UltraFastMultiTierCache as _Cache
from acgsperf.compat.ultra_fast_cache import get_ultra_fast_cache
from acgsperf.compat.ultra_fast_connection_pool import get_pool_manager
from acgsperf.compat.validation import UltraFastConstitutionalValidator
from acgsperf.dispatch import MethodGuard
from acgsperf.fingerprint import request_key
from acgsperf.validator import HASH_FIELD

__all__ = [
    "CONSTITUTIONAL_HASH",
    "INTEGRATION_PERFORMANCE_TARGETS",
    "PerformanceIntegrationService",
    "PerformanceMetrics",
    "get_performance_service",
]

INTEGRATION_PERFORMANCE_TARGETS: Final[dict[str, float]] = {
    "p99_latency_ms": 5.0,
    "p95_latency_ms": 2.0,
    "p50_latency_ms": 1.0,
    "min_throughput_rps": 1000,
    "cache_hit_rate_target": 0.95,
    "constitutional_compliance": 1.0,
    "optimization_interval_s": 60,
    "monitoring_interval_s": 30,
}

_SUCCESS_RATE_TARGET: Final = 0.95
_RESPONSE_TTL_S: Final = 300
_DEFAULT_POOL: Final = "default"
_BASELINE_RECORDS: Final = 10
_REGRESSION: Final = 1.5

# Copying a dict is faster than building one.
_PERFORMANCE_OF_HIT: Final = {"response_time_ms": 0.0, "cached": True, "constitutional_validated": True}
_PERFORMANCE_OF_MISS: Final = {**_PERFORMANCE_OF_HIT, "cached": False}
_has_own_get: Final = MethodGuard(_Cache, "get").holds
_clock = time.perf_counter
_log = logging.getLogger(__name__)


class PerformanceIntegrationService:
    """Answers requests from the cache or a handler. Records metrics every 30 s, and optimizes its parts every 60 s.

    Args:
        handler: a coroutine function that takes a request and returns the response, a dict. By default, the response of
            the replaced module. Errors of the handler reach the caller, are counted, and are not cached.
    """

    def __init__(self, handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] | None = None) -> None:
        self.handler = handler
        self.constitutional_validator: Any = UltraFastConstitutionalValidator()
        self.pool_manager: Any = None
        self.cache: Any = None
        self.metrics: PerformanceMetrics = LivePerformanceMetrics()
        self.performance_history: list[dict[str, Any]] = []
        self.max_history_size = 1000
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self._running = False
        self._monitoring_task: asyncio.Task[None] | None = None
        self._optimization_task: asyncio.Task[None] | None = None
        # The number of requests, and their total time, at the latest record.
        self._recorded = (0, 0.0)

    async def initialize(self) -> None:
        """Use the cache and the pools of this process, and start both loops. Does nothing while they run.

        Raises:
            RuntimeError: if the validator refuses the constitutional hash.
        """
        if self._running:
            return
        if not await maybe_await(self.constitutional_validator.validate_hash(self.constitutional_hash)):
            raise RuntimeError(f"Constitutional compliance violation: {self.constitutional_hash} was refused")
        self.pool_manager = await maybe_await(get_pool_manager())
        self.cache = await maybe_await(get_ultra_fast_cache())
        # A concurrent call may have started the loops meanwhile.
        if self._running:
            return
        self._running = True
        await maybe_await(self._start_background_tasks())

    async def _start_background_tasks(self) -> None:
        self._monitoring_task = asyncio.create_task(self._monitoring_loop())
        self._optimization_task = asyncio.create_task(self._optimization_loop())

    async def process_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a request, with `performance` added.

        Args:
            request: its `constitutional_hash` is checked, if it has one. A request that is not JSON-like is not cached.
                With `database_operation`, the handler runs while a connection of the pool "default" is held, if there
                is such a pool.

        Raises:
            ValueError: "Constitutional compliance violation", if the validator refuses the hash.
            TypeError: if the handler does not return a dict.
            Exception: whatever the handler raises.
        """
        started, metrics = _clock(), self.metrics
        try:
            verdict = self.constitutional_validator.validate_hash(request.get(HASH_FIELD, self.constitutional_hash))
            metrics.constitutional_validations += 1
            if verdict is not True and not await maybe_await(verdict):
                raise ValueError("Constitutional compliance violation")
            key: Any  # None if the request is not JSON-like
            cache, found = self.cache, None
            try:
                key = request_key(request)
            except (TypeError, ValueError):
                key = cache = None
            if _has_own_get(cache) and (hits := cache._hits) is not None:
                # Nobody has replaced `get`, and its coroutine would take longer than the read.
                try:
                    found = hits[key].value
                except KeyError:
                    hits = None
                if hits is None:
                    found = await cache._get_after_l1_miss(key)
            elif cache is not None:
                found = await cache.get(key)
            response: dict[str, Any]
            # L1 holds the response object itself, which must not change. So the caller gets a copy. Other users of this
            # Redis may have stored a value that is not a dict.
            if isinstance(found, dict):
                metrics.cache_hits += 1
                response, performance = found.copy(), _PERFORMANCE_OF_HIT.copy()
            else:
                metrics.cache_misses += 1
                response = (await self._answer_uncached(key, request)).copy()
                performance = _PERFORMANCE_OF_MISS.copy()
        except BaseException:
            metrics.add_request(_clock() - started, success=False)
            raise
        took = _clock() - started
        metrics.add_request(took)
        performance["response_time_ms"] = took * 1e3
        response["performance"] = performance
        return response

    async def _answer_uncached(self, key: str | None, request: dict[str, Any]) -> dict[str, Any]:
        async with self._database(request):
            response = await (self._work if self.handler is None else self.handler)(request)
        if not isinstance(response, dict):
            raise TypeError(f"handler must return a dict, got {type(response).__name__}")
        if self.cache is not None and key is not None:
            await self.cache.set(key, response, ttl=_RESPONSE_TTL_S)
        return response

    async def _work(self, request: dict[str, Any]) -> dict[str, Any]:
        return {
            "processed": True,
            "timestamp": time.time(),
            "constitutional_hash": self.constitutional_hash,
            "request_id": request.get("id", "unknown"),
        }

    @asynccontextmanager
    async def _database(self, request: dict[str, Any]) -> AsyncIterator[None]:
        pool = connection = None
        if request.get("database_operation") and self.pool_manager is not None:
            try:
                pool = await self._default_pool()
                if pool is not None:
                    connection = await pool.acquire_connection()
                    self.metrics.db_connections_acquired += 1
            except Exception as error:
                _log.warning("pool %r: no connection; the request continues without one: %s", _DEFAULT_POOL, error)
        try:
            yield
        finally:
            if pool is not None and connection is not None:
                try:
                    await pool.release_connection(connection)
                except Exception as error:
                    _log.warning("pool %r: connection could not be released: %s", _DEFAULT_POOL, error)

    async def _default_pool(self) -> Any:
        try:
            return await self.pool_manager.get_pool(_DEFAULT_POOL)
        except ValueError:
            return None

    async def get_performance_summary(self) -> dict[str, Any]:
        """Return counters, targets, `response_time_percentiles`, and the metrics of the parts."""
        metrics, latency = self.metrics, self.metrics.latency_ns.snapshot()
        average_ms = metrics.get_avg_response_time_ms()
        targets = INTEGRATION_PERFORMANCE_TARGETS
        return {
            "integration_metrics": self._integration(average_ms),
            "response_time_percentiles": percentiles_ms(latency),
            "performance_targets": dict(targets),
            "targets_met": {
                # The average counts too, because callers may set the counters it comes from.
                "response_time": max(latency.p99 / 1e6, average_ms) <= targets["p99_latency_ms"],
                "success_rate": metrics.get_success_rate() >= _SUCCESS_RATE_TARGET,
                "cache_hit_rate": metrics.get_cache_hit_rate() >= targets["cache_hit_rate_target"],
            },
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
            **await self._parts(),
        }

    def _integration(self, average_ms: float) -> dict[str, Any]:
        return {
            "total_requests": self.metrics.total_requests,
            "success_rate": self.metrics.get_success_rate(),
            "avg_response_time_ms": average_ms,
            "cache_hit_rate": self.metrics.get_cache_hit_rate(),
            "constitutional_validations": self.metrics.constitutional_validations,
            "optimization_runs": self.metrics.optimization_runs,
        }

    async def _parts(self) -> dict[str, Any]:
        parts = {}
        validator = self.constitutional_validator
        if validator is not None:
            parts["constitutional_validator"] = await maybe_await(validator.get_performance_summary())
        if self.cache is not None:
            parts["cache"] = await maybe_await(self.cache.get_performance_metrics())
        if self.pool_manager is not None:
            parts["connection_pools"] = await maybe_await(self.pool_manager.health_check_all())
        return parts

    async def _collect_performance_metrics(self) -> dict[str, Any]:
        """Add a record to the history, and return it. Its average is that of the requests since the last record."""
        count, seconds = self.metrics.total_requests, self.metrics.total_response_time
        since, spent = count - self._recorded[0], seconds - self._recorded[1]
        self._recorded = (count, seconds)
        average_ms = spent / since * 1e3 if since > 0 else self.metrics.get_avg_response_time_ms()
        record = {
            "timestamp": time.time(),
            "constitutional_hash": self.constitutional_hash,
            "integration": self._integration(average_ms),
            **await self._parts(),
        }
        self.performance_history.append(record)
        del self.performance_history[: max(0, len(self.performance_history) - self.max_history_size)]
        return record

    async def _check_performance_regression(self, current: Mapping[str, Any]) -> None:
        """Warn if the response time of a record is over the P95 target and over 1.5 x the average of the 10 before."""
        history = self.performance_history
        if len(history) < _BASELINE_RECORDS:
            return
        earlier = (history[:-1] if history[-1] is current else history)[-_BASELINE_RECORDS:]
        baseline_ms = sum(map(_response_time_ms, earlier)) / len(earlier)
        now_ms = _response_time_ms(current)
        if now_ms > _REGRESSION * baseline_ms and now_ms > INTEGRATION_PERFORMANCE_TARGETS["p95_latency_ms"]:
            _log.warning("Performance regression detected: average %.3f ms, before %.3f ms", now_ms, baseline_ms)

    async def _run_optimization(self) -> dict[str, Any]:
        """Optimize every part, and return `optimizations_applied` and the result of each. A failure is logged."""
        parts = {"constitutional_validator": self.constitutional_validator, "cache": self.cache}
        optimize = {name: part.optimize_performance for name, part in parts.items() if part is not None}
        if self.pool_manager is not None:
            optimize["connection_pools"] = self.pool_manager.optimize_all_pools
        results = {}
        for name, run in optimize.items():
            try:
                results[name] = await maybe_await(run())
            except Exception:
                _log.exception("service: optimization of %s failed; the other parts are optimized", name)
        self.metrics.optimization_runs += 1
        self.metrics.last_optimization = time.time()
        return {
            "optimizations_applied": [line for result in results.values() for line in _applied(result)],
            **results,
            "constitutional_hash": self.constitutional_hash,
            "timestamp": self.metrics.last_optimization,
        }

    async def _monitoring_loop(self) -> None:
        while self._running:
            interval_s = INTEGRATION_PERFORMANCE_TARGETS["monitoring_interval_s"]
            await asyncio.sleep(interval_s)
            try:
                await self._check_performance_regression(await self._collect_performance_metrics())
            except Exception:
                _log.exception("service: monitoring failed; it runs again in %g s", interval_s)

    async def _optimization_loop(self) -> None:
        while self._running:
            interval_s = INTEGRATION_PERFORMANCE_TARGETS["optimization_interval_s"]
            await asyncio.sleep(interval_s)
            try:
                await self._run_optimization()
            except Exception:
                _log.exception("service: optimization failed; it runs again in %g s", interval_s)

    async def close(self) -> None:
        """Stop both loops, and close the cache and all pools of this process. You may call it again."""
        self._running = False
        tasks = [task for task in (self._monitoring_task, self._optimization_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(task for task in tasks if isinstance(task, asyncio.Future)), return_exceptions=True)
        try:
            if self.cache is not None:
                await self.cache.close()
        finally:
            if self.pool_manager is not None:
                await self.pool_manager.close_all()


def _response_time_ms(record: Mapping[str, Any]) -> float:
    milliseconds: float = record.get("integration", {}).get("avg_response_time_ms", 0.0)
    return milliseconds


def _applied(result: object) -> list[str]:
    """Return what a part applied, one line each; lines of a pool begin with its name."""
    if not isinstance(result, Mapping):
        return []
    pools = result.get("pool_optimizations", {})
    return [
        *result.get("optimizations_applied", []),
        *(f"pool '{name}': {line}" for name, pool in pools.items() for line in _applied(pool)),
    ]


async def _make_service() -> PerformanceIntegrationService:
    return PerformanceIntegrationService()


_service: Final = ProcessSingleton(_make_service)


async def get_performance_service() -> PerformanceIntegrationService:
    """Return the initialized service of this process. A closed service is initialized again."""
    service = await _service.get()
    await service.initialize()
    return service
