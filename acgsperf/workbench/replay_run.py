"""The part of one process in a replay: it sends requests through a service, checks the answers, and measures."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from msgspec import Struct

from acgsperf._native.types import CONSTITUTIONAL_HASH, Policy
from acgsperf.cache import EntryOptions, TieredCache
from acgsperf.dispatch import AdaptiveCache, LatencyHistogram
from acgsperf.errors import ComplianceError
from acgsperf.fingerprint import fingerprint, request_key
from acgsperf.pool import PoolManager
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.validator import HASH_FIELD
from acgsperf.workbench import replay_report as report
from acgsperf.workbench.replay_origin import Origin, WrongValueError, value_of
from acgsperf.workbench.replay_writes import Acknowledged, ChangedKeys
from acgsperf.workbench.traces import Request

__all__ = ["Load", "Measured", "Options", "Run", "cache_of", "l3_table", "nothing"]

# Hits never wait. A worker with only hits would block the event loop, so it pauses after this many requests.
_TURN: Final = 64
# A timer of an event loop may be a millisecond late. A wait that is not longer than this is skipped.
_EARLY_S: Final = 0.001


def nothing(done: int) -> None:
    """Show no progress."""


class Options(Struct, frozen=True):
    """The options that the processes of a replay share, and the number of this process.

    Attributes:
        database_url: the PostgreSQL with the origin, and L3 if there is one.
        redis_url: the Redis that is L2; None for no L2.
        l3: whether there is an L3.
        table: the table of the origin, and the namespace.
        concurrency: requests in flight.
        rate: requests a second; None for as many as the service answers.
        l1_size: entries of L1.
        policy: which entries L1 evicts.
        prediction: whether keys are fetched before they are requested.
        ttl: the ttl of the cache.
        patience: the seconds for which PostgreSQL may be unreachable.
        backplane: whether the processes send each other records of their writes.
        process: this process, from 1.
        processes: how many there are.
    """

    database_url: str
    redis_url: str | None
    l3: bool
    table: str
    concurrency: int
    l1_size: int
    ttl: float | None
    patience: float
    policy: Policy = "adaptive"
    prediction: bool = False
    backplane: bool = True
    rate: float | None = None
    process: int = 1
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a replay, checked and stamped; equal requests are one object, so that long traces fit in memory.

    Attributes:
        requests: in the order in which they are sent.
        distinct: each of them once, by its fingerprint.
    """

    requests: Sequence[Request]
    distinct: dict[str, Request]

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

    @property
    def addresses(self) -> Collection[str]:
        """The fingerprints of the distinct requests."""
        return self.distinct

    def indices(self) -> Iterator[int]:
        """Return for each request which of the distinct ones it is."""
        index_of = {id(request): index for index, request in enumerate(self.distinct.values())}
        return (index_of[id(request)] for request in self.requests)


def _address(number: int, request: Request) -> str:
    try:
        return fingerprint(request)
    except (TypeError, ValueError) as error:
        raise type(error)(f"request {number}: {error}") from None


def l3_table(table: str) -> str:
    """Return the name for the tables of L3."""
    return f"{table}_l3"


def cache_of(options: Options) -> TieredCache[str]:
    """Return the cache of one process.

    Raises:
        ValueError: if it refuses the options.
    """
    l1: AdaptiveCache[str, str] = AdaptiveCache(options.l1_size, policy=options.policy)
    l2 = None if options.redis_url is None else RedisTier(options.redis_url)
    l3 = PostgresTier(options.database_url, table=l3_table(options.table)) if options.l3 else None
    silent: dict[str, Any] = {} if options.backplane else {"backplane": None}
    entries, prediction = EntryOptions(ttl=options.ttl), options.prediction
    return TieredCache(l1, l2, l3, namespace=options.table, options=entries, prediction=prediction, **silent)


class _Pace:
    """Spreads the requests of all workers over time. After a delay, requests that are late are sent at once.

    Args:
        rate: requests a second.
    """

    def __init__(self, rate: float) -> None:
        self._interval_s = 1 / rate
        self._due = time.perf_counter()

    async def wait(self) -> None:
        """Return when the next request is due."""
        early_s = self._due - time.perf_counter()
        self._due += self._interval_s
        if early_s > _EARLY_S:
            await asyncio.sleep(early_s)


class Measured(Struct, frozen=True):
    """The measurements of one process; see `Report`."""

    refused: int
    seconds: float
    loads: int
    writes: int
    unacknowledged: int
    rows: tuple[report.Row, ...]


class Run:
    """One pass through the requests, with the measurements that the service does not take itself.

    Args:
        options: the options of this process.
        cache: its cache.
        origin: answers the misses.
        changed: the keys that are changed during the run; None for no writes.
        pools: the connection pools of the service.
    """

    def __init__(
        self,
        options: Options,
        cache: TieredCache[str],
        origin: Origin,
        changed: ChangedKeys | None = None,
        pools: PoolManager | None = None,
    ) -> None:
        self._options = options
        self._cache = cache
        self._origin = origin
        self._changed = changed
        self._service = PerformanceService(Settings(), handler=origin, cache=cache, pools=pools)
        self._positions = {} if changed is None else changed.positions
        self._validation_ns = LatencyHistogram()
        self._l1_ns = LatencyHistogram()
        self._timed_hits = 0
        self._before = cache.stats()
        self._seconds = 0.0

    async def send(self, requests: Sequence[Request], advanced: Callable[[int], object] = nothing) -> None:
        """Send all requests, with some of them in flight, while the keys are changed."""
        self._before = self._cache.stats()
        pending = iter(requests)
        async with self._service, asyncio.TaskGroup() as group:
            writing = None
            if self._changed is not None:
                writing = group.create_task(self._changed.write(self._cache, self._origin))
            started = time.perf_counter()
            pace = None if self._options.rate is None else _Pace(self._options.rate)
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._options.concurrency):
                    workers.create_task(self._work(pending, pace, advanced))
            self._seconds = time.perf_counter() - started
            if writing is not None:
                writing.cancel()
                with suppress(asyncio.CancelledError):
                    await writing

    async def _work(self, requests: Iterator[Request], pace: _Pace | None, advanced: Callable[[int], object]) -> None:
        """Send requests, one after the other, until none remains."""
        process, positions, clock = self._service.process_request, self._positions, time.monotonic_ns
        done = 0
        for request in requests:
            if pace is not None:
                await pace.wait()
            address = fingerprint(request)
            position = positions.get(address)
            began_ns = 0 if position is None else clock()
            try:
                value = await process(request)
            except ComplianceError:
                pass
            else:
                if position is not None and self._changed is not None:
                    self._changed.answered(position, began_ns, address, value)
                elif value != value_of(address):
                    raise WrongValueError(f"request {request!r} was answered with {value!r}")
            done += 1
            if done == _TURN:
                self._time_steps(request)
                advanced(done)
                done = 0
                await asyncio.sleep(0)
        if done:
            self._time_steps(request)
        advanced(done)

    def _time_steps(self, request: Request) -> None:
        """Time validation and L1 on their own. Timing them in every request would make requests slower."""
        clock, key = time.perf_counter_ns, request_key(request)
        started = clock()
        self._service.validator.validate(CONSTITUTIONAL_HASH)
        validated = clock()
        value = self._service.cache.get_local(key)
        self._l1_ns.record(clock() - validated)
        self._validation_ns.record(validated - started)
        self._timed_hits += value is not None

    def measured(self, acknowledged: Sequence[Acknowledged]) -> Measured:
        """Return the measurements.

        Args:
            acknowledged: the writes of all processes, for each changed key.
        """
        changed = self._changed
        return Measured(
            refused=self._service.counts().violations,
            seconds=self._seconds,
            loads=self._origin.loads,
            writes=0 if changed is None else changed.writes,
            unacknowledged=0 if changed is None else changed.unacknowledged,
            rows=tuple(self._rows(acknowledged)),
        )

    def _rows(self, acknowledged: Sequence[Acknowledged]) -> Iterator[report.Row]:
        summary, several = self._service.get_performance_summary(), self._options.processes > 1
        yield from report.figures(summary, self._seconds, self._validation_ns.snapshot(), self._l1_ns.snapshot())
        l1_hits = summary.cache.l1.hits - self._before.l1.hits - self._timed_hits
        l1_hits += report.predicted(summary.cache, self._before)[0]
        if several:
            yield from report.of_shares(summary, l1_hits, self._before)
        else:
            yield from report.of_tiers(summary, l1_hits, self._before)
        if self._changed is not None:
            if several:
                yield from report.of_lags(summary.cache)
            yield from report.of_answers(self._changed.check(acknowledged))
