"""The whole, wired together: a request comes in, is checked, and is answered from a tier or by the handler."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from acgsperf._native.arguments import checked_callable
from acgsperf.addresses import masked
from acgsperf.cache import TieredCache
from acgsperf.cache.l1 import MISSING
from acgsperf.dispatch import LatencyHistogram, LRUCache
from acgsperf.errors import ComplianceError, ServiceError, SettingsError
from acgsperf.fingerprint import request_key
from acgsperf.monitor import Monitor, Reading, Targets
from acgsperf.pool import PoolManager
from acgsperf.service.optimizer import Action, Optimizer
from acgsperf.service.summary import PerformanceSummary, ServiceHealth, summarize
from acgsperf.service.traffic import Counts, Traffic, Window
from acgsperf.service.workers import WorkerReport, Workers
from acgsperf.settings import Settings
from acgsperf.validator import HASH_FIELD, HASH_HEADER, ComplianceValidator

if TYPE_CHECKING:
    from acgsperf.tiers.base import Tier

__all__ = ["Handler", "PerformanceService", "PerformanceSummary", "Request", "ServiceHealth"]

Request = Mapping[str, Any]
Handler = Callable[[Request], Awaitable[Any]]

DEFAULT_POOL: Final = "default"
# More gain nothing, and keep the event loop so busy that on a loaded machine servers seem to miss their deadlines.
_AT_ONCE: Final = 100

_LONGEST_NS: Final = LatencyHistogram().highest_ns
_clock_ns: Final = time.perf_counter_ns

_log: Final = logging.getLogger("acgsperf.service")


class PerformanceService:
    """Answers requests from a tiered cache, or else by a handler, and watches and tunes itself meanwhile.

    A request is a JSON-like mapping, and equal requests have one answer. Its compliance hash is checked where it has
    one, in the field `constitutional_hash` or `X-Constitutional-Hash`; a wrong one never reaches the cache or the
    handler.

    Answers are JSON-like where there is a tier behind L1. What L1 holds is the object itself: nobody may change it.

    What is given is opened and closed by whoever gives it; what is missing the service makes as the settings say, and
    opens and closes itself: a cache with an L2 where there is a `redis_url` and an L3 where there is a `database_url`,
    and a pool manager with the pool `default` where there is a `database_url`.

    Args:
        settings: those of the environment, if not given.
        handler: a coroutine function that computes the answer to a request that no tier can answer. Its errors reach
            the caller and are not kept.
        cache: of answers. It is meant to be the service's alone: the hit rate is taken from its counts.
        pools: watched and tuned with the rest.

    Raises:
        SettingsError: when the environment cannot be used, or `redis_url` or `workers_directory` cannot.
        TypeError: for an argument of the wrong type.
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
            raise TypeError(f"settings must be Settings or None, not {settings!r:.100}")
        if cache is not None and not isinstance(cache, TieredCache):
            raise TypeError(f"cache must be a TieredCache or None, not {cache!r:.100}")
        if pools is not None and not isinstance(pools, PoolManager):
            raise TypeError(f"pools must be a PoolManager or None, not {pools!r:.100}")
        self.settings: Final = settings if settings is not None else Settings.from_environment()
        self.handler = checked_callable("handler", handler)
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
        self._workers = Workers.of(self.settings)
        self._exits = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._get_local = self.cache.get_local
        self._record = self.traffic.latency_ns.record

    async def open(self) -> Self:
        """Open what the service has made, and start monitoring and optimisation.

        A Redis that cannot be reached, or a PostgreSQL behind L3, is looked for again by later calls.

        Raises:
            ServiceError: when the service was opened before, if only in vain.
            PoolUnhealthy, PoolTimeout: when the pool `default` cannot connect.
        """
        if self._loop is not None:
            raise ServiceError("a service is opened once; after a failure, make a new one")
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

    async def close(self) -> None:
        """Stop watching, and close what the service has made. May be repeated.

        Raises:
            ServiceError: in another event loop than it was opened in.
        """
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise ServiceError("a service is closed in the event loop in which it was opened")
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._workers is not None:
                self._workers.close()
        except OSError as error:
            _log.warning("the report to the other workers cannot be removed: %s", error)
        finally:
            await self._exits.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def process_request(self, request: Request) -> Any:
        """The answer to a request: validate, make its key, look it up, and on a miss ask the handler.

        Raises:
            ComplianceError: when its compliance hash is not an accepted one.
            TypeError, ValueError: when it is not a JSON-like mapping.
            ServiceError: when no tier can answer it, and there is no handler.
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
            answer = await self._answer_behind(key, request)
        elapsed = _clock_ns() - started
        # A request may take longer than a histogram reaches. A call of `min` would take four times as long as this.
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
        """`process_request` for each, 100 at once: what L1 misses of these travels to each tier together.

        Args:
            requests: as for `process_request`.
            return_exceptions: whether an error stands in the place of its answer. Otherwise the first is raised, once
                all requests have been answered.
        """
        wanted = list(requests)
        answers: list[Any] = []
        for at in range(0, len(wanted), _AT_ONCE):
            some = map(self.process_request, wanted[at : at + _AT_ONCE])
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

    async def _answer_behind(self, key: str, request: Request) -> Any:
        async def load(key: str) -> Any:
            if self.handler is None:
                raise ServiceError("no tier has the answer, and the service has no handler")
            answer = self.handler(request)
            if not isawaitable(answer):
                raise TypeError(f"the handler must be a coroutine function: it returned {type(answer).__name__}")
            return await answer

        try:
            return await self.cache.get_or_load(key, load)
        except Exception:
            self.traffic.failed += 1
            raise

    def latency(self) -> LatencyHistogram:
        """How long answered requests took so far, in ns; a copy."""
        self.traffic.flush()
        latency_ns = LatencyHistogram()
        latency_ns.merge(self.traffic.total.latency_ns)
        return latency_ns

    def counts(self) -> Counts:
        """The counters so far."""
        return self.traffic.total.counts

    async def health(self) -> ServiceHealth:
        """Ask every server now."""
        cache, pools = await asyncio.gather(self.cache.health(), self.pools.health())
        return ServiceHealth(cache, pools)

    def observe(self) -> Reading:
        """End a monitoring interval now: what it was like is added to the history, and alerts are raised and cleared.

        Otherwise this happens every `monitoring_interval_s`.
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
        """One round of optimisation: what it did, and what has become of what the last one did.

        Otherwise this happens every `optimization_interval_s`.
        """
        self.traffic.flush()
        return self._optimizer.run()

    def get_performance_summary(self, *, workers: bool = False) -> PerformanceSummary:
        """What the service has done since it was made.

        Args:
            workers: whether the other processes that share `workers_directory` are added.

        Raises:
            ServiceError: when they are asked for, and the settings name no such directory.
        """
        reports = [self._report()]
        if workers:
            if self._workers is None:
                raise ServiceError("the settings name no workers_directory, where the others could be found")
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
                except Exception:
                    _log.exception("%s failed", work.__name__)

        return asyncio.create_task(repeat(), name=f"acgsperf service: {work.__name__}")


def _as_dict(request: object) -> dict[str, Any]:
    if not isinstance(request, Mapping):
        raise TypeError(f"a request must be a mapping, not {type(request).__name__}")
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
    # Here, so that a service without a server does not need its client.
    l2: Tier | None = None
    l3: Tier | None = None
    if settings.redis_url is not None:
        from acgsperf.tiers.redis import RedisTier

        try:
            l2 = RedisTier(settings.redis_url)
        except ValueError as error:
            raise SettingsError(
                "REDIS_URL", masked(settings.redis_url), f"a URL that the client takes ({error})"
            ) from None
    if settings.database_url is not None:
        from acgsperf.tiers.postgres import PostgresTier

        l3 = PostgresTier(settings.database_url, statement_cache_size=settings.db_statement_cache_size)
    l1: LRUCache[str, Any] = LRUCache(settings.l1_cache_size)
    return TieredCache(l1, l2, l3, namespace=settings.cache_namespace, ttl=settings.l2_ttl_default)
