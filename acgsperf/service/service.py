"""`PerformanceService`: validates a request, answers it from a cache tier or the handler, and records its latency."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from inspect import isawaitable
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

from acgsperf._native.arguments import checked_callable
from acgsperf.addresses import masked
from acgsperf.cache import EntryOptions, TieredCache
from acgsperf.cache.l1 import MISSING
from acgsperf.cache.missed import load_missed
from acgsperf.dispatch import AdaptiveCache, LatencyHistogram
from acgsperf.errors import ComplianceError, ServiceError, SettingsError
from acgsperf.fingerprint import request_key
from acgsperf.monitor import Monitor, Reading, Targets
from acgsperf.pool import PoolManager
from acgsperf.service.optimizer import Optimizer
from acgsperf.service.summary import PerformanceSummary, ServiceHealth, summarize
from acgsperf.service.traffic import Counts, Traffic, Window
from acgsperf.service.tuning import Action
from acgsperf.service.workers import WorkerReport, Workers
from acgsperf.settings import Settings
from acgsperf.tiers.base import Tier
from acgsperf.validator import HASH_FIELD, HASH_HEADER, ComplianceValidator

__all__ = ["Handler", "PerformanceService", "Request"]

Request = Mapping[str, Any]
Handler = Callable[[Request], Awaitable[Any]]

DEFAULT_POOL: Final = "default"
# More requests at a time gain nothing. They keep the event loop so busy that, on a loaded machine, servers seem to miss
# their deadlines.
_CONCURRENT_REQUESTS: Final = 100

_LONGEST_NS: Final = LatencyHistogram().highest_ns
_clock_ns: Final = time.perf_counter_ns

_log: Final = logging.getLogger("acgsperf.service")


class PerformanceService:
    """Answers requests from a tiered cache or a handler, and monitors and tunes itself.

    Use it as an async context manager, or call `open` and `close`:

        async with PerformanceService(handler=handler) as service:
            answer = await service.process_request({"action": "read", "id": 7})

    A request is a mapping of JSON-like values; equal requests share one cached answer. If a request has a compliance
    hash, in the field `constitutional_hash` or `X-Constitutional-Hash`, the service checks it. A request with a wrong
    hash never reaches the cache or the handler.

    Answers must be JSON-like if the cache has an L2 or an L3. L1 holds the answer object itself: do not change it.

    You open and close the `cache` and the `pools` that you pass. The service creates, opens and closes what you do not
    pass: a cache (with an L2 if `redis_url` is set, and an L3 if `database_url` is set) and a pool manager (with a pool
    named `default` if `database_url` is set).

    Args:
        settings: by default, read from the environment.
        handler: a coroutine function. It computes the answer to a request that no tier has. Its errors reach the
            caller and are not cached.
        cache: holds the answers. Use it for this service only, because the hit rate comes from its counters.
        pools: monitored and resized by the service.

    Raises:
        SettingsError: if the environment, `redis_url` or `workers_directory` is not usable.
        TypeError: if an argument has the wrong type.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        handler: Handler | None = None,
        cache: TieredCache[Any] | None = None,
        pools: PoolManager | None = None,
    ) -> None:
        if settings is not None and not isinstance(settings, Settings):
            raise TypeError(f"settings must be Settings or None, got {type(settings).__name__}")
        if cache is not None and not isinstance(cache, TieredCache):
            raise TypeError(f"cache must be a TieredCache or None, got {type(cache).__name__}")
        if pools is not None and not isinstance(pools, PoolManager):
            raise TypeError(f"pools must be a PoolManager or None, got {type(pools).__name__}")
        self.settings: Final = settings if settings is not None else Settings.from_environment()
        self.handler: Handler | None = checked_callable("handler", handler)
        self.validator: Final = ComplianceValidator(
            self.settings.constitutional_hashes,
            fast_path=self.settings.fast_path_enabled,
            batch=self.settings.batch_processing_enabled,
        )
        self._owns_cache, self._owns_pools = cache is None, pools is None
        self.cache: Final = _cache_of(self.settings) if cache is None else cache
        self.pools: Final = (
            PoolManager(interval=self.settings.db_pool_health_check_interval) if pools is None else pools
        )
        self.monitor: Final = Monitor(_targets_of(self.settings))
        self.traffic: Final = Traffic(self.cache)
        self._interval = self.traffic.window()
        self._optimizer = Optimizer(self.validator, self.cache, self.pools, self.traffic.window())
        self._workers = Workers.from_settings(self.settings)
        self._exits = AsyncExitStack()
        self._on_close: list[Callable[[], object]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._get_local = self.cache.get_local
        self._record = self.traffic.latency_ns.record

    async def open(self) -> Self:
        """Open the parts that the service created, and start monitoring and optimization.

        If Redis is not reachable, the service opens without it, and later calls try to connect again. The same holds
        for PostgreSQL if `db_pool_min_size` is 0.

        Raises:
            ServiceError: if the service was opened before, even if that failed.
            PoolUnhealthy, PoolTimeout: if the pool `default` cannot connect.
        """
        if self._loop is not None:
            raise ServiceError("a service can be opened only once; create a new one")
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as exits:
            if self._owns_pools:
                await exits.enter_async_context(self.pools)
                if self.settings.database_url is not None:
                    await self.pools.create(
                        DEFAULT_POOL,
                        self.settings.database_url,
                        min_size=self.settings.db_pool_min_size,
                        max_size=self.settings.db_pool_max_size,
                        statement_cache_size=self.settings.db_statement_cache_size,
                        command_timeout=self.settings.db_command_timeout,
                    )
            if self._owns_cache:
                await exits.enter_async_context(self.cache)
            self._exits = exits.pop_all()
        self._tasks = [
            self._every(self.settings.monitoring_interval_s, self.observe),
            self._every(self.settings.optimization_interval_s, self.optimize),
        ]
        return self

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the service closes, before it closes its pools and its cache."""
        self._on_close.append(callback)

    async def close(self) -> None:
        """Stop monitoring and optimization, and close the parts that the service created. You may call it again.

        Raises:
            ServiceError: if called in a different event loop than `open`.
        """
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise ServiceError("a service must be closed in the event loop in which it was opened")
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            while self._on_close:
                self._on_close.pop()()
            if self._workers is not None:
                self._workers.close()
        except OSError as error:
            _log.warning(
                "service: cannot remove this worker's report; other workers count it for up to 3 more rounds: %s", error
            )
        finally:
            await self._exits.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def process_request(self, request: Request) -> Any:
        """Validate a request, and return its answer from the cache or, on a miss, from the handler.

        Args:
            request: a mapping of JSON-like values.

        Raises:
            ComplianceError: if the request has a compliance hash that is not accepted.
            TypeError, ValueError: if the request is not a JSON-like mapping.
            ServiceError: if no tier has the answer, and there is no handler.
            Exception: whatever the handler raises.
        """
        started = _clock_ns()
        if type(request) is not dict:
            request = _as_dict(request)
        if HASH_FIELD in request or HASH_HEADER in request:
            self._require_compliance(request)
        key = request_key(request)
        answer = self._get_local(key, MISSING)
        if answer is MISSING:
            answer = await self._answer_l1_miss(key, request)
        elapsed = _clock_ns() - started
        # A request may take longer than the histogram can hold. A call of `min` costs four times as much as this `if`.
        if elapsed > _LONGEST_NS:
            elapsed = _LONGEST_NS
        self._record(elapsed)
        return answer

    @overload
    async def process_many(
        self, requests: Iterable[Request], *, return_exceptions: Literal[False] = False
    ) -> list[Any]: ...
    @overload
    async def process_many(self, requests: Iterable[Request], *, return_exceptions: bool) -> list[Any | Exception]: ...
    async def process_many(self, requests: Iterable[Request], *, return_exceptions: bool = False) -> list[Any]:
        """Process many requests, 100 at a time, and return their answers in order.

        The L1 misses of each 100 reach each lower tier in one batch.

        Args:
            requests: as for `process_request`.
            return_exceptions: if True, the result holds the error in the place of the answer. If False, the first
                error is raised after all requests are done.
        """
        wanted = list(requests)
        answers: list[Any] = []
        for at in range(0, len(wanted), _CONCURRENT_REQUESTS):
            some = map(self.process_request, wanted[at : at + _CONCURRENT_REQUESTS])
            answers += await asyncio.gather(*some, return_exceptions=True)
        if not return_exceptions:
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
        return answers

    def _require_compliance(self, request: Request) -> None:
        for field in (HASH_FIELD, HASH_HEADER):
            if field in request and not self.validator.validate(request[field]):
                self.traffic.violations += 1
                raise ComplianceError(self.validator.expected, request[field])

    async def _answer_l1_miss(self, key: str, request: Request) -> Any:
        async def load(key: str) -> Any:
            if self.handler is None:
                raise ServiceError("no tier has the answer, and the service has no handler")
            answer = self.handler(request)
            if not isawaitable(answer):
                raise TypeError(f"handler must be a coroutine function, got one that returned {type(answer).__name__}")
            return await answer

        try:
            return await load_missed(self.cache, key, load)
        except Exception:
            self.traffic.failed += 1
            raise

    def latency(self) -> LatencyHistogram:
        """Return a copy of the latency histogram of all answered requests, in ns."""
        self.traffic.flush()
        latency_ns = LatencyHistogram()
        latency_ns.merge(self.traffic.total.latency_ns)
        return latency_ns

    def counts(self) -> Counts:
        """Return the counters since the service was created."""
        return self.traffic.total.counts

    async def health(self) -> ServiceHealth:
        """Ask every server now, and return which of them answered."""
        cache, pools = await asyncio.gather(self.cache.health(), self.pools.health())
        return ServiceHealth(cache, pools)

    def observe(self) -> Reading:
        """End the monitoring interval now: add its reading to the history, and raise and clear alerts.

        An open service does this by itself every `monitoring_interval_s`.
        """
        self.traffic.flush()
        interval = self._interval
        reading = Reading(
            at=self.traffic.clock(),
            requests=interval.requests,
            errors=interval.counts.failed,
            violations=interval.counts.violations,
            p50_ms=_percentile_ms(interval, 50),
            p95_ms=_percentile_ms(interval, 95),
            p99_ms=_percentile_ms(interval, 99),
            hit_rate=interval.hit_rate(),
            unhealthy_pools=tuple(_unhealthy(self.pools)),
        )
        interval.restart()
        self.monitor.observe(reading)
        if self._workers is not None:
            self._workers.publish(self._report())
        return reading

    def optimize(self) -> tuple[Action, ...]:
        """Run one optimization round now.

        An open service does this by itself every `optimization_interval_s`.

        Returns:
            What this round did, and the outcome of the change that the last round made.
        """
        self.traffic.flush()
        return self._optimizer.run()

    def get_performance_summary(self, *, workers: bool = False) -> PerformanceSummary:
        """Return the figures since the service was created.

        Args:
            workers: add the other processes that share `workers_directory`.

        Raises:
            ServiceError: if `workers` is True and the settings have no `workers_directory`.
        """
        reports = [self._report()]
        if workers:
            if self._workers is None:
                raise ServiceError("workers=True needs workers_directory; set it in Settings")
            reports += self._workers.others()
        return summarize(
            reports,
            self.settings,
            alerts=self.monitor.active,
            validator=self.validator.metrics(),
            cache=self.cache.stats(),
            pools={name: self.pools.get(name).stats() for name in self.pools.names()},
        )

    def _report(self) -> WorkerReport:
        total, counts = self.traffic.total, self.counts()
        return WorkerReport(
            reported_at=time.time(),
            seconds=total.seconds,
            failed=counts.failed,
            violations=counts.violations,
            missed=counts.missed,
            latency=self.latency().encode(),
        )

    def _every(self, seconds: float, work: Callable[[], object]) -> asyncio.Task[None]:
        async def repeat() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    work()
                # The work awaits nothing, so that a cancellation that it raises is not that of this task.
                except (Exception, asyncio.CancelledError):
                    _log.exception("service: %s failed; it runs again in %g s", work.__name__, seconds)

        return asyncio.create_task(repeat(), name=f"acgsperf service: {work.__name__}")


def _as_dict(request: object) -> dict[str, Any]:
    if not isinstance(request, Mapping):
        raise TypeError(f"request must be a mapping, got {type(request).__name__}")
    return dict(request)


def _percentile_ms(window: Window, q: float) -> float | None:
    return window.latency_ns.percentile(q) / 1e6 if window.latency_ns.count else None


def _unhealthy(pools: PoolManager) -> Iterator[str]:
    for name in pools.names():
        pool = pools.get(name)
        yield from (member.name for member in (pool, *pool.replicas) if not member.healthy)


def _targets_of(settings: Settings) -> Targets:
    return Targets(
        p50_ms=settings.p50_latency_target_ms,
        p95_ms=settings.p95_latency_target_ms,
        p99_ms=settings.p99_latency_target_ms,
        hit_rate=settings.cache_hit_rate_target,
        throughput_rps=settings.throughput_target_rps,
    )


def _cache_of(settings: Settings) -> TieredCache[Any]:
    l1: AdaptiveCache[str, Any] = AdaptiveCache(settings.l1_cache_size, policy=settings.l1_policy)
    return TieredCache(
        l1,
        _l2_of(settings),
        _l3_of(settings),
        namespace=settings.cache_namespace,
        options=EntryOptions(ttl=settings.l2_ttl_default),
        prediction=settings.l1_prediction,
    )


def _l2_of(settings: Settings) -> Tier | None:
    if settings.redis_url is None:
        return None
    # Imported here, so that a service without Redis does not import redis-py.
    from acgsperf.tiers.redis import RedisTier

    try:
        return RedisTier(settings.redis_url)
    except ValueError as error:
        raise SettingsError("REDIS_URL", masked(settings.redis_url), f"a URL that redis-py accepts ({error})") from None


def _l3_of(settings: Settings) -> Tier | None:
    if settings.database_url is None:
        return None
    from acgsperf.tiers.postgres import PostgresTier

    return PostgresTier(settings.database_url, statement_cache_size=settings.db_statement_cache_size)
