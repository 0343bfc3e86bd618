"""Replays a trace through validation, fingerprint, cache and origin, and compares the measurements with the targets."""

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import asyncpg

from acgsperf._native.types import CONSTITUTIONAL_HASH, CacheStats, HistogramSnapshot
from acgsperf.addresses import checked_dsn
from acgsperf.cache import TieredCache
from acgsperf.dispatch import LatencyHistogram, LRUCache
from acgsperf.errors import AcgsperfError, ComplianceError, PoolError
from acgsperf.fingerprint import fingerprint, request_key
from acgsperf.pool import ConnectionPool, PoolManager
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings
from acgsperf.tiers.base import TierStats
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.postgres_schema import Tables
from acgsperf.tiers.redis import RedisTier
from acgsperf.validator import HASH_FIELD
from acgsperf.workbench.traces import Request

_POOL_SIZE: Final = 8
# asyncpg raises an internal error when a connection breaks at certain moments.
_ORIGIN_ERRORS: Final = (
    OSError,
    PoolError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# The errors that a restarting server causes.
_PASSING_ERRORS: Final = (
    OSError,
    PoolError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_RETRY_S: Final = 0.05
# Hits never wait, so a worker with only hits would block the event loop.
_TURN: Final = 64
_THROUGHPUT: Final = "> 1,000 requests/s"
_HIT_RATE: Final = "> 95 %"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report.

    Attributes:
        metric: its name.
        target: the bound as text, `-` if there is none.
        achieved: the measurement as text.
        met: whether the target was met; None if there is none. What was not measured has not met its target.
        value: the measurement; None if there is none.
    """

    metric: str
    target: str
    achieved: str
    met: bool | None
    value: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay measured.

    Attributes:
        requests: requests that were sent.
        refused: how many of them the compliance gate refused.
        seconds: from the first request to the last answer.
        loads: values that were read from the origin.
        rows: the measurements and their targets.
    """

    requests: int
    refused: int
    seconds: float
    loads: int
    rows: tuple[Row, ...]

    @property
    def met(self) -> bool:
        """Whether every target was met."""
        return all(row.met is not False for row in self.rows)

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-like values."""
        return asdict(self) | {"met": self.met}


class WrongValueError(AcgsperfError):
    """A request was answered with the value of another request."""


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a replay, checked and stamped; equal requests are one object, so that long traces fit in memory.

    Attributes:
        requests: in the order in which they are sent.
        addresses: the fingerprints of the distinct ones.
    """

    requests: Sequence[Request]
    addresses: Collection[str]

    @classmethod
    def of(cls, requests: Iterable[Request]) -> Self:
        """Prepare the requests of a trace.

        Raises:
            ValueError: when there are none.
            TypeError, ValueError: when a request is not JSON-like; the message has its number.
        """
        distinct: dict[str, Request] = {}
        sent: list[Request] = []
        for number, request in enumerate(requests, 1):
            # Recorded keys carry no hash: their gateway would have stamped them.
            stamped = {HASH_FIELD: CONSTITUTIONAL_HASH} | request
            sent.append(distinct.setdefault(_address(number, stamped), stamped))
        if not sent:
            raise ValueError("requests must not be empty")
        return cls(sent, distinct)


class _Origin:
    """The handler of a replay: it reads a value from a table in PostgreSQL."""

    def __init__(self, pool: ConnectionPool, table: str, patience: float) -> None:
        self._pool = pool
        self._select = f"SELECT value FROM {table} WHERE address = $1"
        self._patience = patience
        self.loads = 0

    async def __call__(self, request: Mapping[str, Any]) -> str:
        """Read the value of a request. While the server is unreachable, try again for `patience` seconds."""
        address = fingerprint(request)
        give_up = time.monotonic() + self._patience
        while True:
            try:
                async with self._pool.acquire() as connection:
                    value: str | None = await connection.fetchval(self._select, address)
                break
            except _PASSING_ERRORS:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(_RETRY_S)
        if value is None:
            raise WrongValueError(f"the origin has no row for {address}")
        self.loads += 1
        return value


class _Replay:
    """One run, with the measurements that the service does not take itself."""

    def __init__(self, service: PerformanceService) -> None:
        self.service = service
        self.validation_ns = LatencyHistogram()
        self.l1_ns = LatencyHistogram()
        self.timed_hits = 0

    async def work(self, requests: Iterator[Request], advanced: Callable[[int], object]) -> None:
        """Send requests, one after the other, until none remains."""
        process = self.service.process_request
        done = 0
        for request in requests:
            try:
                value = await process(request)
            except ComplianceError:
                pass
            else:
                if value != _value_of(fingerprint(request)):
                    raise WrongValueError(f"request {request!r} was answered with {value!r}")
            done += 1
            if done == _TURN:
                self.time_steps(request)
                advanced(done)
                done = 0
                await asyncio.sleep(0)
        if done:
            self.time_steps(request)
        advanced(done)

    def time_steps(self, request: Request) -> None:
        """Time validation and L1 on their own. Timing them in every request would make requests slower."""
        clock, key = time.perf_counter_ns, request_key(request)
        started = clock()
        self.service.validator.validate(CONSTITUTIONAL_HASH)
        validated = clock()
        value = self.service.cache.get_local(key)
        self.l1_ns.record(clock() - validated)
        self.validation_ns.record(validated - started)
        self.timed_hits += value is not None


def _rows(run: _Replay, seconds: float) -> Iterator[Row]:
    def at_most(metric: str, latency: HistogramSnapshot, ns: int, limit_ms: float) -> Row:
        if not latency.count:
            return Row(metric, f"< {limit_ms:g} ms", "not measured", False, None)
        return Row(metric, f"< {limit_ms:g} ms", f"{ns / 1e6:.4f} ms", ns / 1e6 < limit_ms, ns / 1e6)

    summary = run.service.get_performance_summary()
    latency, validation, l1 = summary.latency, run.validation_ns.snapshot(), run.l1_ns.snapshot()
    yield at_most("P50 latency", latency, latency.p50, 1)
    yield at_most("P95 latency", latency, latency.p95, 2)
    yield at_most("P99 latency", latency, latency.p99, 5)
    if summary.requests:
        # Refused requests do not count: refusing one takes almost no time.
        rate, hit_rate = summary.requests / seconds, summary.hit_rate
        yield Row("Throughput", _THROUGHPUT, f"{rate:,.0f} requests/s", rate > 1000, rate)
        yield Row("Cache hit rate", _HIT_RATE, f"{100 * hit_rate:.2f} % of requests", hit_rate > 0.95, hit_rate)
    else:
        yield Row("Throughput", _THROUGHPUT, "not measured", False, None)
        yield Row("Cache hit rate", _HIT_RATE, "not measured", False, None)
    compliance = summary.compliance
    yield Row("Compliance", "100 %", f"{100 * compliance:.2f} %", compliance == 1, compliance)
    yield at_most("Validation P99", validation, validation.p99, 0.1)
    yield at_most("L1 access P99", l1, l1.p99, 0.01)
    stats = summary.cache
    tiers = [(name, tier) for name, tier in (("L2", stats.l2), ("L3", stats.l3)) if tier is not None]
    if not summary.requests:
        for name in ("L1", *(name for name, _ in tiers)) if tiers else ():
            yield Row(f"{name} tier", "-", "not read: every request was refused", None, None)
        return
    if tiers:
        l1_rate = (stats.l1.hits - run.timed_hits) / summary.requests
        moved = f"{stats.promotions:,} promotions, {stats.demotions:,} demotions"
        yield Row("L1 tier", "-", f"hits in {100 * l1_rate:.2f} % of requests, {moved}", None, l1_rate)
    for name, tier in tiers:
        p99_ms = tier.latency.p99 / 1e6 if tier.latency.count else None
        yield Row(f"{name} tier", "-", _activity(tier, stats.l1), None, p99_ms)


def _activity(tier: TierStats, l1: CacheStats) -> str:
    asked, failed = tier.hits + tier.misses, sum(tier.errors.values())
    if not asked:
        return "not read: L1 answered every request"
    p99 = f"P99 {tier.latency.p99 / 1e6:.4f} ms"
    if not (tier.hits or failed or l1.evictions or l1.expirations):
        # The tier was read only for the first request of each key, which it cannot answer. A rate of 0 % would look
        # like a fault.
        return f"not needed, because L1 kept every value; {p99}"
    return f"{p99}, hits in {100 * tier.hit_rate:.2f} % of reads" + (f", {failed:,} failed calls" if failed else "")


def _value_of(address: str) -> str:
    return f"value of {address}"


async def replay(
    requests: Load | Iterable[Request],
    database_url: str,
    *,
    concurrency: int = 4,
    l1_size: int = 100_000,
    ttl: float | None = 3600.0,
    redis_url: str | None = None,
    l3: bool = False,
    warm: bool = False,
    patience: float = 30.0,
    advanced: Callable[[int], object] = lambda done: None,
) -> Report:
    """Send every request of a trace to a service, and measure the answers.

    The origin is a table in PostgreSQL, named for the run, with a row for each distinct request. It is filled before
    the clock starts, and dropped at the end. Every value is compared with its request.

    Args:
        requests: at least one JSON-like request, or a `Load`.
        database_url: the PostgreSQL with the origin.
        concurrency: requests in flight, at least 1.
        l1_size: entries of L1.
        ttl: seconds until a cached value expires; None for no limit.
        redis_url: the Redis that is L2; None for no L2.
        l3: whether a table in PostgreSQL is L3.
        warm: whether all requests are sent once before the clock starts. The rows of L2 and L3 count that pass too.
        patience: seconds for which PostgreSQL may be unreachable.
        advanced: called with the number of requests answered since its last call.

    Raises:
        ValueError: when there are no requests, or `concurrency` is less than 1.
        TypeError, ValueError: when a request is not JSON-like, or the cache refuses its arguments.
        AcgsperfError: when PostgreSQL cannot be reached or fails, or a value is wrong.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    load = requests if isinstance(requests, Load) else Load.of(requests)
    try:
        checked_dsn("the DSN", database_url)
    except ValueError as error:
        raise AcgsperfError(f"PostgreSQL cannot be reached: {error}") from None
    # Replays that share a database must not share a table.
    table = f"acgsperf_replay_{secrets.token_hex(8)}"
    l1: LRUCache[str, str] = LRUCache(l1_size)
    cache: TieredCache[str] = TieredCache(
        l1,
        None if redis_url is None else RedisTier(redis_url),
        PostgresTier(database_url, table=f"{table}_l3") if l3 else None,
        namespace=table,
        ttl=ttl,
    )
    try:
        async with PoolManager() as pools:
            size = min(concurrency, _POOL_SIZE)
            # Nothing here changes a session, so nothing has to be reset.
            pool = await pools.create("origin", database_url, min_size=size, max_size=size, reset=False)
            try:
                await _fill(pool, table, load.addresses)
                origin = _Origin(pool, table, patience)
                async with cache:
                    try:
                        if warm:
                            await _run(
                                PerformanceService(Settings(), handler=origin, cache=cache), load.requests, concurrency
                            )
                            l1.reset_stats()
                        service = PerformanceService(Settings(), handler=origin, cache=cache, pools=pools)
                        run, seconds = await _run(service, load.requests, concurrency, advanced)
                        refused = service.counts().violations
                        return Report(len(load.requests), refused, seconds, origin.loads, tuple(_rows(run, seconds)))
                    finally:
                        await cache.clear()
            finally:
                async with pool.acquire() as connection:
                    await connection.execute(f"DROP TABLE IF EXISTS {table}, {', '.join(Tables(f'{table}_l3').names)}")
    except ExceptionGroup as failures:
        # Workers that fail together fail for the same reason.
        raise _as_failure(failures.exceptions[0]) from failures
    except _ORIGIN_ERRORS as error:
        raise _as_failure(error) from error


async def _run(
    service: PerformanceService,
    requests: Sequence[Request],
    concurrency: int,
    advanced: Callable[[int], object] = lambda done: None,
) -> tuple[_Replay, float]:
    async with service:
        run, pending = _Replay(service), iter(requests)
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(run.work(pending, advanced))
        return run, time.perf_counter() - started


async def _fill(pool: ConnectionPool, table: str, addresses: Iterable[str]) -> None:
    async with pool.acquire() as connection:
        try:
            # Not an unlogged table: a server that is killed must still have it after its restart.
            await connection.execute(f"CREATE TABLE {table} (address text PRIMARY KEY, value text NOT NULL)")
            rows = ((address, _value_of(address)) for address in addresses)
            await connection.copy_records_to_table(table, records=rows)
        except asyncio.CancelledError:
            # The server may still be creating the table. Only the same session is sure to find it.
            await connection.execute(f"DROP TABLE IF EXISTS {table}")
            raise


def _address(number: int, request: Request) -> str:
    try:
        return fingerprint(request)
    except (TypeError, ValueError) as error:
        raise type(error)(f"request {number}: {error}") from None


def _as_failure(error: Exception) -> Exception:
    if isinstance(error, PoolError):
        return AcgsperfError(f"PostgreSQL cannot be reached: {error}")
    if isinstance(error, _ORIGIN_ERRORS):
        return AcgsperfError(f"PostgreSQL failed: {str(error) or type(error).__name__}")
    return error
