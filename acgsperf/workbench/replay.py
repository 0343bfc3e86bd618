"""Replays a trace through validation, fingerprint, cache and origin, and compares the measurements with the targets."""

import asyncio
import dataclasses
import secrets
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from acgsperf._native.types import Policy
from acgsperf.addresses import checked_dsn
from acgsperf.cache import TieredCache
from acgsperf.errors import AcgsperfError
from acgsperf.pool import PoolManager
from acgsperf.tiers.postgres_schema import Tables
from acgsperf.workbench.replay_memory import bounded_memory
from acgsperf.workbench.replay_origin import Origin, WrongValueError, as_failure, connected
from acgsperf.workbench.replay_process import OtherProcess
from acgsperf.workbench.replay_report import Report, Row
from acgsperf.workbench.replay_run import Load, Measured, Options, Run, cache_of, l3_table, nothing
from acgsperf.workbench.replay_writes import ChangedKeys, spread, writer_of
from acgsperf.workbench.traces import Request

__all__ = ["Load", "Report", "Row", "WrongValueError", "replay"]

_L1_SIZE = 100_000
# With several processes L1 holds this share of the keys, so that the lower tiers have work.
_L1_SHARE = 0.1
_WRITES = 0.01


async def replay(
    requests: Load | Iterable[Request],
    database_url: str,
    *,
    concurrency: int = 4,
    rate: float | None = None,
    l1_size: int | None = None,
    policy: Policy = "adaptive",
    prediction: bool = False,
    ttl: float | None = 3600.0,
    redis_url: str | None = None,
    l3: bool = False,
    warm: bool = False,
    processes: int = 1,
    writes: float | None = None,
    backplane: bool = True,
    private_redis: bool = False,
    patience: float = 30.0,
    advanced: Callable[[int], object] = nothing,
) -> Report:
    """Send every request of a trace to a service, and measure the answers.

    The origin is a table in PostgreSQL, named for the run, with a row for each distinct request. It is filled before
    the clock starts, and dropped at the end. Every value is compared with its request.

    With several processes, this one fills the tiers: it sends all requests once before the clock starts. Then each
    process sends all requests. The L1 of the other processes is empty at first.

    Args:
        requests: at least one JSON-like request, or a `Load`.
        database_url: the PostgreSQL with the origin.
        concurrency: requests in flight in each process, at least 1.
        rate: requests a second in each process while the clock runs, on average and more than 0; None for as many as
            the service answers.
        l1_size: entries of L1; by default 100,000, or with several processes a tenth of the keys.
        policy: which entries L1 evicts, as for `AdaptiveCache`.
        prediction: whether keys are fetched before they are requested, as for `TieredCache`.
        ttl: seconds until a cached value expires; None for no limit.
        redis_url: the Redis that is L2; None for no L2.
        l3: whether a table in PostgreSQL is L3.
        warm: whether all requests are sent once before the clock starts. The rows of L2 and L3 count that pass too.
        processes: how many processes send the requests, at least 1. Several need a Redis or an L3.
        writes: the share of the keys whose values change during the run, from 0 to 1; by default 0, or with several
            processes 0.01.
        backplane: whether the processes tell each other what they write. Without it, they give outdated answers.
        private_redis: whether only this replay uses the Redis. With several processes and an L3, it gets memory for
            95 % of the values, so that L3 has work.
        patience: seconds for which PostgreSQL may be unreachable.
        advanced: called with the number of requests that this process has answered since its last call, also of those
            before the clock starts.

    Raises:
        ValueError: when there are no requests, or an argument is out of range.
        TypeError, ValueError: when a request is not JSON-like, or the cache refuses its arguments.
        AcgsperfError: when PostgreSQL cannot be reached or fails, a value is wrong, or another process fails.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    if rate is not None and not rate > 0:
        raise ValueError(f"rate must be greater than 0, got {rate}")
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if processes > 1 and redis_url is None and not l3:
        raise ValueError(f"{processes} processes need redis_url or l3: without them they share no values")
    share = writes if writes is not None else _WRITES if processes > 1 else 0.0
    if not 0 <= share <= 1:
        raise ValueError(f"writes must be from 0 to 1, got {share}")
    load = requests if isinstance(requests, Load) else Load.of(requests)
    try:
        checked_dsn("the DSN", database_url)
    except ValueError as error:
        raise AcgsperfError(f"PostgreSQL cannot be reached: {error}") from None
    if l1_size is None:
        l1_size = _L1_SIZE if processes == 1 else max(round(_L1_SHARE * len(load.distinct)), 1)
    options = Options(
        database_url=database_url,
        redis_url=redis_url,
        l3=l3,
        # Replays that share a database must not share a table.
        table=f"acgsperf_replay_{secrets.token_hex(8)}",
        concurrency=concurrency,
        rate=rate,
        l1_size=l1_size,
        policy=policy,
        prediction=prediction,
        ttl=ttl,
        patience=patience,
        backplane=backplane,
        processes=processes,
    )
    bounded = redis_url if private_redis and l3 and processes > 1 else None
    try:
        async with _prepared(options, load) as (cache, origin, pools):
            conductor = _Conductor(options, load, share, cache, origin, pools)
            return await conductor.replay(warm=warm, bounded=bounded, advanced=advanced)
    except Exception as error:
        failure = as_failure(error)
        if failure is error:
            raise
        raise failure from error


@asynccontextmanager
async def _prepared(options: Options, load: Load) -> AsyncIterator[tuple[TieredCache[str], Origin, PoolManager]]:
    """Provide a cache and an origin with all values. Remove their data from the servers at the end."""
    cache = cache_of(options)
    connection = connected(
        options.database_url, options.table, concurrency=options.concurrency, patience=options.patience
    )
    async with connection as (origin, pools):
        try:
            await origin.fill(load.addresses)
            async with cache:
                try:
                    yield cache, origin, pools
                finally:
                    await cache.clear()
        finally:
            await origin.drop(*Tables(l3_table(options.table)).names)


class _Conductor:
    """Lets one or more processes send the requests, and collects what they measure.

    Args:
        options: the options of this process.
        load: the requests.
        share: the share of the keys that are changed.
        cache, origin, pools: those of this process.
    """

    def __init__(
        self,
        options: Options,
        load: Load,
        share: float,
        cache: TieredCache[str],
        origin: Origin,
        pools: PoolManager,
    ) -> None:
        self._options = options
        self._load = load
        self._cache = cache
        self._origin = origin
        self._pools = pools
        # Four bytes a request.
        self._changed: list[int] = spread(array("I", load.indices()), share) if share else []

    async def replay(self, *, warm: bool, bounded: str | None, advanced: Callable[[int], object]) -> Report:
        """Fill the tiers if necessary, send the requests, and report.

        Args:
            warm: whether the tiers are filled in any case.
            bounded: the address of a Redis that gets memory for a part of the values; None for no bound.
            advanced: as for `replay`.
        """
        options = self._options
        async with AsyncExitStack() as block:
            others = [
                await block.enter_async_context(OtherProcess(msgspec.structs.replace(options, process=number)))
                for number in range(2, options.processes + 1)
            ]
            async with asyncio.TaskGroup() as group:
                for other in others:
                    group.create_task(other.prepare(self._load, self._changed))
            # The other processes are connected now, so the memory of their connections is not counted for values.
            bound = await block.enter_async_context(bounded_memory(bounded)) if bounded is not None else None
            if warm or others:
                at_once = msgspec.structs.replace(options, rate=None)
                await Run(at_once, self._cache, self._origin).send(self._load.requests, advanced)
            if bound is not None:
                await bound()
            return self._report(await self._measure(others, advanced))

    async def _measure(self, others: Sequence[OtherProcess], advanced: Callable[[int], object]) -> list[Measured]:
        options, distinct = self._options, list(self._load.distinct.values())
        keys = [distinct[index] for index in self._changed]
        changed = ChangedKeys(keys, options.process, options.processes) if keys else None
        run = Run(options, self._cache, self._origin, changed, self._pools)
        async with asyncio.TaskGroup() as group:
            theirs = [group.create_task(other.run()) for other in others]
            group.create_task(run.send(self._load.requests, advanced))
        writers = [changed.acknowledged if changed is not None else [], *(task.result() for task in theirs)]
        acknowledged = [writers[writer_of(at, options.processes) - 1][at] for at in range(len(keys))]
        return [run.measured(acknowledged), *[await other.measured(acknowledged) for other in others]]

    def _report(self, measured: Sequence[Measured]) -> Report:
        return Report(
            requests=len(self._load.requests) * len(measured),
            refused=sum(process.refused for process in measured),
            seconds=max(process.seconds for process in measured),
            loads=sum(process.loads for process in measured),
            processes=len(measured),
            writes=sum(process.writes for process in measured),
            unacknowledged=sum(process.unacknowledged for process in measured),
            rows=tuple(
                dataclasses.replace(row, process=number)
                for number, process in enumerate(measured, 1)
                for row in process.rows
            ),
        )
