"""The main job: push a trace through validation, fingerprint, cache and origin, and hold it against the targets."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import asyncpg

from acgsperf._dispatch import LatencyHistogram, LRUCache
from acgsperf._types import CONSTITUTIONAL_HASH
from acgsperf.cache import TieredCache
from acgsperf.errors import AcgsperfError, PoolError
from acgsperf.fingerprint import fingerprint
from acgsperf.pool import ConnectionPool
from acgsperf.tiers.base import TierStats
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.validator import HASH_FIELD, ComplianceValidator
from acgsperf.workbench.traces import Request

_POOL_SIZE: Final = 8
# asyncpg tells of an internal error when a connection breaks at an awkward moment.
_ORIGIN_ERRORS: Final = (
    OSError,
    PoolError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# What a server says, or fails to say, that is being started again.
_PASSING_ERRORS: Final = (
    OSError,
    PoolError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_RETRY_S: Final = 0.05
# Hits never wait, so a worker that meets only hits would keep the event loop to itself.
_TURN: Final = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report; `target` says the bound as it is read, or `-` where there is none."""

    metric: str
    target: str
    achieved: str
    met: bool
    value: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay measured."""

    requests: int
    seconds: float
    loads: int
    rows: tuple[Row, ...]

    @property
    def met(self) -> bool:
        """Whether every target was."""
        return all(row.met for row in self.rows)

    def as_dict(self) -> dict[str, object]:
        """The report as JSON-like values."""
        return asdict(self) | {"met": self.met}


class WrongValueError(AcgsperfError):
    """A request was answered with what belongs to another."""


class _Replay:
    """One run: the parts that a request passes, and what they took."""

    def __init__(self, pool: ConnectionPool, table: str, cache: TieredCache[str], patience: float) -> None:
        self.pool = pool
        self.select = f"SELECT value FROM {table} WHERE address = $1"
        self.validator = ComplianceValidator()
        self.cache = cache
        self.patience = patience
        self.asked = 0
        self.loads = 0
        self.request_ns = LatencyHistogram()
        self.validation_ns = LatencyHistogram()
        self.l1_ns = LatencyHistogram()

    async def work(self, requests: Iterator[Request], advanced: Callable[[int], object]) -> None:
        """Take requests until there are none."""
        clock = time.perf_counter_ns
        validate, get, get_or_load = self.validator.validate, self.cache.get_local, self.cache.get_or_load
        done = 0
        for request in requests:
            started = clock()
            # Recorded keys carry no hash: their gateway would have stamped them.
            compliant = validate(request.get(HASH_FIELD, CONSTITUTIONAL_HASH))
            validated = clock()
            self.validation_ns.record(validated - started)
            if compliant:
                self.asked += 1
                address = fingerprint(request)
                addressed = clock()
                value = get(address)
                looked_up = clock()
                if value is None:
                    value = await get_or_load(address, self.read)
                if value != _value_of(address):
                    raise WrongValueError(f"request {request!r} was answered with {value!r}")
                finished = clock()
                self.l1_ns.record(looked_up - addressed)
                self.request_ns.record(finished - started)
            done += 1
            if done == _TURN:
                advanced(done)
                done = 0
                await asyncio.sleep(0)
        advanced(done)

    async def read(self, address: str) -> str:
        """Read a value from the origin; while its server is away, again and again."""
        give_up = time.monotonic() + self.patience
        while True:
            try:
                async with self.pool.acquire() as connection:
                    value: str | None = await connection.fetchval(self.select, address)
                break
            except _PASSING_ERRORS:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(_RETRY_S)
        if value is None:
            raise WrongValueError(f"the origin has no row for {address}")
        self.loads += 1
        return value

    def report(self, requests: int, seconds: float) -> Report:
        verdicts = self.validator.metrics().verdicts
        return Report(requests, seconds, self.loads, tuple(_rows(self, requests / seconds, verdicts.valid / requests)))


def _rows(run: _Replay, rate: float, compliance: float) -> Iterator[Row]:
    def at_most(metric: str, histogram: LatencyHistogram, q: float, limit_ms: float) -> Row:
        ms = histogram.percentile(q) / 1e6
        return Row(metric, f"< {limit_ms:g} ms", f"{ms:.4f} ms", ms < limit_ms, ms)

    stats = run.cache.stats()
    # Who has waited for another's load has missed as well.
    hit_rate = (run.asked - stats.loads - stats.joined) / run.asked if run.asked else 0.0
    yield at_most("P50 latency", run.request_ns, 50, 1)
    yield at_most("P95 latency", run.request_ns, 95, 2)
    yield at_most("P99 latency", run.request_ns, 99, 5)
    yield Row("Throughput", "> 1,000 requests/s", f"{rate:,.0f} requests/s", rate > 1000, rate)
    yield Row("Cache hit rate", "> 95 %", f"{100 * hit_rate:.2f} %", hit_rate > 0.95, hit_rate)
    yield Row("Compliance", "100 %", f"{100 * compliance:.2f} %", compliance == 1, compliance)
    yield at_most("Validation P99", run.validation_ns, 99, 0.1)
    yield at_most("L1 access P99", run.l1_ns, 99, 0.01)
    tiers = [(name, tier) for name, tier in (("L2", stats.l2), ("L3", stats.l3)) if tier is not None]
    if tiers:
        l1_rate = stats.l1.hits / run.asked if run.asked else 0.0
        told = f"{100 * l1_rate:.2f} % hits, {stats.promotions:,} promotions, {stats.demotions:,} demotions"
        yield Row("L1 tier", "-", told, True, l1_rate)
    for name, tier in tiers:
        yield Row(f"{name} tier", "-", _told_of(tier), True, tier.latency.p99 / 1e6)


def _told_of(tier: TierStats) -> str:
    failed = sum(tier.errors.values())
    trouble = f", {failed:,} failed calls" if failed else ""
    return f"P99 {tier.latency.p99 / 1e6:.4f} ms, {100 * tier.hit_rate:.2f} % hits{trouble}"


def _value_of(address: str) -> str:
    return f"value of {address}"


async def replay(
    requests: Sequence[Request],
    database_url: str,
    *,
    concurrency: int = 8,
    l1_size: int = 100_000,
    ttl: float | None = 3600.0,
    redis_url: str | None = None,
    l3: bool = False,
    patience: float = 30.0,
    advanced: Callable[[int], object] = lambda done: None,
) -> Report:
    """Answer every request of a trace, and measure it.

    The origin is a table of its own in PostgreSQL, named for the run, with a row for each distinct request. It is
    filled before the clock starts and dropped at the end. Every value is compared with its request.

    Args:
        requests: at least one JSON-like request.
        database_url: the PostgreSQL that holds the origin.
        concurrency: requests in flight, at least 1.
        l1_size: entries of L1.
        ttl: seconds until a cached value expires, None for never.
        redis_url: the Redis that is L2; None for no L2.
        l3: whether a table in PostgreSQL is L3.
        patience: seconds for which a server may be away.
        advanced: called with the number of requests done since its last call.

    Raises:
        ValueError: when there are no requests, or `concurrency` is not positive.
        TypeError, ValueError: when a request is not JSON-like, or the cache refuses its arguments.
        AcgsperfError: when the origin cannot be reached or fails, or a value is wrong.
    """
    if not requests:
        raise ValueError("requests must not be empty")
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    addresses = {_address(number, request) for number, request in enumerate(requests, 1)}
    # Nobody does anything to a session here that would have to be undone.
    size = min(concurrency, _POOL_SIZE)
    try:
        pool = ConnectionPool(database_url, name="origin", min_size=size, max_size=size, reset=False)
    except ValueError as error:
        raise AcgsperfError(f"PostgreSQL cannot be reached: {error}") from None
    # Replays that share a database must not share a table.
    table = f"acgsperf_replay_{secrets.token_hex(8)}"
    cache: TieredCache[str] = TieredCache(
        LRUCache(l1_size),
        None if redis_url is None else RedisTier(redis_url),
        PostgresTier(database_url, table=f"{table}_l3") if l3 else None,
        namespace=table,
        ttl=ttl,
    )
    try:
        async with pool:
            run = _Replay(pool, table, cache, patience)
            try:
                await _fill(pool, table, addresses)
                pending = iter(requests)
                async with cache:
                    try:
                        started = time.perf_counter()
                        async with asyncio.TaskGroup() as group:
                            for _ in range(concurrency):
                                group.create_task(run.work(pending, advanced))
                        return run.report(len(requests), time.perf_counter() - started)
                    finally:
                        await cache.clear()
            finally:
                async with pool.acquire() as connection:
                    await connection.execute(f"DROP TABLE IF EXISTS {table}, {table}_l3")
    except ExceptionGroup as failures:
        # Workers that fail together fail alike.
        raise _told(failures.exceptions[0]) from failures
    except _ORIGIN_ERRORS as error:
        raise _told(error) from error


async def _fill(pool: ConnectionPool, table: str, addresses: Iterable[str]) -> None:
    async with pool.acquire() as connection:
        try:
            # Logged, for a server that is killed has to have it again when it is back.
            await connection.execute(f"CREATE TABLE {table} (address text PRIMARY KEY, value text NOT NULL)")
            rows = [(address, _value_of(address)) for address in addresses]
            await connection.copy_records_to_table(table, records=rows)
        except asyncio.CancelledError:
            # The server may still be creating the table, and finds it to drop only in the session that does.
            await connection.execute(f"DROP TABLE IF EXISTS {table}")
            raise


def _address(number: int, request: Request) -> str:
    try:
        return fingerprint(request)
    except (TypeError, ValueError) as error:
        raise type(error)(f"request {number}: {error}") from None


def _told(error: Exception) -> Exception:
    if isinstance(error, PoolError):
        reason = error.__cause__ or error
        return AcgsperfError(f"PostgreSQL cannot be reached: {str(reason) or type(reason).__name__}")
    if isinstance(error, _ORIGIN_ERRORS):
        return AcgsperfError(f"PostgreSQL failed: {str(error) or type(error).__name__}")
    return error
