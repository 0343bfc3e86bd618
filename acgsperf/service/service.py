"""`PerformanceService`: validates a request, answers it from a cache tier or the handler, and records its latency."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from acgsperf._native.arguments import checked_callable
from acgsperf.cache import TieredCache
from acgsperf.cache.l1 import MISSING
from acgsperf.cache.missed import load_missed
from acgsperf.counting import note
from acgsperf.dispatch import LatencyHistogram
from acgsperf.errors import ComplianceError, FleetError, ServiceError
from acgsperf.fingerprint import request_key
from acgsperf.fleet.store import Found, ReportStore
from acgsperf.fleet.summary import FleetSummary
from acgsperf.fleet.summary import summarize as summarize_fleet
from acgsperf.monitor import Monitor, Reading
from acgsperf.pool import PoolManager
from acgsperf.service.creation import cache_of, fleet_of, hours_of, targets_of
from acgsperf.service.fleet_tuning import FleetTuning
from acgsperf.service.optimizer import Optimizer
from acgsperf.service.reporter import Reporter, unhealthy_pools
from acgsperf.service.sizing import Sizer
from acgsperf.service.summary import PerformanceSummary, ServiceHealth, summarize
from acgsperf.service.traffic import Counts, Traffic, Window
from acgsperf.service.tuning import Action
from acgsperf.service.workers import Workers
from acgsperf.settings import Settings
from acgsperf.validator import HASH_FIELD, HASH_HEADER, ComplianceValidator

if TYPE_CHECKING:
    from acgsperf.trends.store import TrendStore

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
        self.cache: Final = cache_of(self.settings) if cache is None else cache
        self.pools: Final = (
            PoolManager(interval=self.settings.db_pool_health_check_interval) if pools is None else pools
        )
        self.monitor: Final = Monitor(targets_of(self.settings))
        self.traffic: Final = Traffic(self.cache)
        self._interval = self.traffic.window()
        self._optimizer = Optimizer(
            self.validator,
            self.cache,
            self.pools,
            self.traffic.window(),
            Sizer.from_settings(self.cache, self.settings),
            tuned_by_fleet=lambda: self._tuning is not None and self._tuning.has_others(),
        )
        self._reporter = Reporter(self.traffic, self.cache, self.pools, self.monitor)
        self._workers = Workers.from_settings(self.settings)
        self._fleet = fleet_of(self.settings, self.cache.namespace)
        self._tuning: FleetTuning | None = None
        self._hours = hours_of(
            self.settings, self.cache.namespace, self.traffic, self.monitor, lambda: self._reporter.instance
        )
        self._exits = AsyncExitStack()
        self._on_close: list[Callable[[], object]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._get_local = self.cache.get_local
        self._record = self.traffic.latency_ns.record
        note(self)

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
            if self._fleet is not None:
                exits.push_async_callback(self._fleet.close)
                await self._fleet.open()
                self._fleet.publish(self._reporter.report())
                if self.settings.fleet_tuning_enabled:
                    self._tuning = self._tuning_of(self._fleet.store)
                    exits.push_async_callback(self._tuning.close)
            if self._hours is not None:
                exits.push_async_callback(self._hours.close)
                await self._hours.open()
            self._exits = exits.pop_all()
        self._tasks = [
            self._every(self.settings.monitoring_interval_s, self.observe),
            self._every(self.settings.optimization_interval_s, self.optimize),
        ]
        return self

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the service has closed its pools and its cache, if it has created them."""
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
            if self._workers is not None:
                self._workers.close()
        except OSError as error:
            _log.warning("service: cannot remove this worker's report; another worker removes it: %s", error)
        finally:
            try:
                await self._exits.aclose()
            finally:
                while self._on_close:
                    self._on_close.pop()()

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
            unhealthy_pools=tuple(unhealthy_pools(self.pools)),
        )
        interval.restart()
        self.monitor.observe(reading)
        if self._fleet is not None or self._workers is not None:
            report = self._reporter.report()
            if self._fleet is not None:
                self._fleet.publish(report)
            if self._workers is not None:
                self._workers.publish(report)
        if self._tuning is not None:
            self._tuning.start_round()
        if self._hours is not None:
            self._hours.observe()
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
        reports = [self._reporter.report()]
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

    @property
    def fleet_store(self) -> ReportStore | None:
        """Where the instances of the service leave their reports; None without a server, or with FLEET_ENABLED=false.

        The service opens and closes it.
        """
        return None if self._fleet is None else self._fleet.store

    @property
    def trend_store(self) -> "TrendStore | None":
        """Where the service keeps its hours; None without a PostgreSQL, or with TRENDS_ENABLED=false.

        The service opens and closes it.
        """
        return None if self._hours is None else self._hours.store

    async def fleet_summary(self) -> FleetSummary:
        """Return the figures of all instances of the service: their sums, percentiles of all requests, and each alone.

        The instances are those that share the namespace of the cache and the server of the settings: Redis or, without
        one, PostgreSQL; without any server, the processes that share `workers_directory`. The figures of this instance
        are those of now, and the others those of their last monitoring round.

        It does not raise if the server cannot be reached. Then `missing` says so, and only this instance is included.
        """
        found, missing = Found(), []
        if self._fleet is not None:
            try:
                found = await self._fleet.store.found()
            except FleetError as error:
                missing.append(str(error))
        elif self._workers is not None:
            found.reports += self._workers.others()
            found.ages_s += [0.0] * len(found.reports)
        own = self._reporter.report()
        for at, report in enumerate(found.reports):
            if report.instance == own.instance:
                del found.reports[at], found.ages_s[at]
                break
        found.reports.append(own)
        found.ages_s.append(0.0)
        return await summarize_fleet(found, missing)

    def _tuning_of(self, store: ReportStore) -> FleetTuning:
        return FleetTuning(store, self.settings, self.cache, self.pools, self.traffic, self._reporter, self._optimizer)

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
