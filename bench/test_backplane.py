"""The backplane between four processes: how soon L1 elsewhere has a new value, and whether all keep up with writes.

Run `pytest bench/test_backplane.py` with `acgsperf[bench]`. The figures are in the titles of the groups and in
`extra_info`; the time of a round is how long the processes were told to work.

- **Lag**: from the return of `set` in one process until `get_local` has the value in another. Every process has all
  keys in L1 and reads them all the time; together they write 200 times a second. A value that is visible before `set`
  returns has no lag.
- **Load**: each process writes 1,000 times a second. The figures say how much of that it achieves, how long the last
  writes take to arrive everywhere, how much memory a process gains in the second half of the run, and how long the
  log of the backplane is in the end.
"""

import asyncio
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf import LRUCache
from acgsperf.cache import TieredCache
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.workbench.embedded import Servers, embedded_servers

PROCESSES: Final = 4
KEYS: Final = [f"key {i}" for i in range(100)]
LASTS: Final = [f"last of {number}" for number in range(PROCESSES)]
LAG_WRITES_A_SECOND: Final = 200
LOAD_WRITES_A_SECOND: Final = 1_000
SECONDS: Final = 5.0
# An event loop that sleeps for less takes the whole CPU.
TICK_S: Final = 0.001
ARRIVAL_TIMEOUT_S: Final = 30.0

# A version is the number of the process and the number of its write.
Version = tuple[int, int]


@dataclass
class Work:
    """What one process has to do, and how it reaches the servers."""

    number: int
    redis_url: str | None
    database_url: str | None
    namespace: str

    def cache(self) -> "TieredCache[Any]":
        """Return a cache whose L1 gets values at their first hit in a lower tier."""
        l2 = None if self.redis_url is None else RedisTier(self.redis_url, deadline=5)
        l3 = None if self.database_url is None else PostgresTier(self.database_url, deadline=5)
        return TieredCache(LRUCache(1_000), l2, l3, namespace=self.namespace, deadline=5, promotion_threshold=1)


@dataclass
class Seen:
    """When a process returned from its writes, and when it first had those of others in L1, by the monotonic clock."""

    returned: dict[Version, int] = field(default_factory=dict)
    seen: dict[Version, int] = field(default_factory=dict)


@dataclass
class Load:
    """What a process has achieved."""

    writes: int
    published: int
    arrival_s: float
    gained_bytes: int
    backplane: str


async def _measure_lag(work: Work, pipe: Connection) -> Seen:
    """Write at a steady rate, and look at L1 all the time."""
    seen = Seen()
    async with work.cache() as cache:
        if work.number == 0:
            await cache.set_many({key: [-1, 0] for key in KEYS})
        await _together(pipe)
        await cache.get_many(KEYS)
        await _together(pipe)
        until = time.monotonic() + SECONDS
        reader = asyncio.create_task(_read(cache, work.number, until, seen))
        pause = PROCESSES / LAG_WRITES_A_SECOND
        due = time.monotonic() + pause * work.number / PROCESSES
        count = 0
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # No other process writes the key at the same time: a version that is superseded is never seen.
            key = KEYS[(count * PROCESSES + work.number) % len(KEYS)]
            written = await cache.set(key, [work.number, count])
            seen.returned[work.number, count] = time.monotonic_ns()
            assert written.everywhere
            count += 1
            due += pause
        await reader
    return seen


async def _read(cache: "TieredCache[Any]", me: int, until: float, seen: Seen) -> None:
    """Note when values of other processes are in L1. Whatever L1 has dropped is read from a lower tier at once."""
    # Only one process looks without a pause, because four would need more CPUs than a small machine has.
    pause = 0.0 if me == 0 else TICK_S
    while time.monotonic() < until + 1:
        for key in KEYS:
            value = cache.get_local(key)
            if value is None:
                value = await cache.get(key)
            number, count = value
            if me == 0 and number > 0:
                seen.seen.setdefault((number, count), time.monotonic_ns())
        await asyncio.sleep(pause)


async def _measure_load(work: Work, pipe: Connection) -> Load:
    """Write as often as wanted, and wait for the last write of every process."""
    async with work.cache() as cache:
        if work.number == 0:
            await cache.set_many(dict.fromkeys(LASTS, "not written"))
        await _together(pipe)
        await cache.get_many(LASTS)
        await _together(pipe)
        began = time.monotonic()
        due, until = began, began + SECONDS
        writes = published = half_bytes = 0
        tasks: set[asyncio.Task[bool]] = set()
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # As many as are due: a sleep is longer than the pause between two writes.
            while due <= time.monotonic() and due < until:
                task = asyncio.create_task(_published(cache, KEYS[writes % len(KEYS)], [work.number, writes]))
                tasks.add(task)
                writes += 1
                due += 1 / LOAD_WRITES_A_SECOND
            done = {task for task in tasks if task.done()}
            tasks -= done
            published += sum(task.result() for task in done)
            if not half_bytes and time.monotonic() > began + SECONDS / 2:
                half_bytes = _memory()
        published += sum(await asyncio.gather(*tasks))
        achieved_s = time.monotonic() - began
        gained = _memory() - half_bytes
        await _together(pipe)
        arrival_s = await _last_writes(cache, work.number)
        await _together(pipe)
        backplane = repr(getattr(cache.stats(), "backplane", None))
    return Load(int(writes / achieved_s), published, arrival_s, gained, backplane)


async def _published(cache: "TieredCache[Any]", key: str, value: Any) -> bool:
    return bool(getattr(await cache.set(key, value), "published", False))


async def _last_writes(cache: "TieredCache[Any]", me: int) -> float:
    """Write a last value, and return how long it takes until L1 has those of all processes instead of what it had."""
    began = time.monotonic()
    await cache.set(LASTS[me], "written")
    while time.monotonic() - began < ARRIVAL_TIMEOUT_S:
        # It reads from a lower tier what L1 has dropped.
        await cache.get_many(LASTS)
        if all(cache.get_local(key) == "written" for key in LASTS):
            return time.monotonic() - began
        await asyncio.sleep(TICK_S)
    raise TimeoutError(f"process {me} has not heard of the last writes within {ARRIVAL_TIMEOUT_S:g} s")


async def _together(pipe: Connection) -> None:
    """Wait until all processes are as far as this one."""
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _process(measure: Callable[[Work, Connection], Any], work: Work, pipe: Connection) -> None:
    """The main function of a process."""
    try:
        pipe.send(asyncio.run(measure(work, pipe)))
    except Exception as error:
        pipe.send(error)


def _run(measure: Callable[[Work, Connection], Any], work: list[Work]) -> list[Any]:
    """Run a function in one process for each piece of work, and return what they return."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for one in work:
        ours, theirs = context.Pipe()
        process = context.Process(target=_process, args=(measure, one, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        while True:
            said = [pipe.recv() for pipe in pipes]
            for one in said:
                if isinstance(one, Exception):
                    raise one
            if said != ["ready"] * len(said):
                return said
            for pipe in pipes:
                pipe.send("go")
    finally:
        for process in processes:
            process.join(5)
            with suppress(ProcessLookupError):
                process.kill()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with embedded_servers() as found:
        yield found


@pytest.fixture(params=["l2", "l3", "l2+l3"])
def work(request: pytest.FixtureRequest, servers: Servers) -> list[Work]:
    """The tiers are in the title of a group; the backplane is on the first of them."""
    namespace = "bench-" + secrets.token_hex(4)
    redis_url = servers.redis_url if "l2" in request.param else None
    database_url = servers.database_url if "l3" in request.param else None
    return [Work(number, redis_url, database_url, namespace) for number in range(PROCESSES)]


def _title(work: list[Work]) -> str:
    tiers = " and ".join(name for name, url in (("L2", work[0].redis_url), ("L3", work[0].database_url)) if url)
    return f"{PROCESSES} processes, {tiers}"


def test_lag(benchmark: BenchmarkFixture, work: list[Work]) -> None:
    results: list[Seen] = benchmark.pedantic(lambda: _run(_measure_lag, work), rounds=1)
    returned = {version: at for result in results[1:] for version, at in result.returned.items()}
    lags = sorted(max(0, at - returned[version]) / 1e6 for version, at in results[0].seen.items())
    # A write that the next one of its key has superseded early is not seen, and not counted.
    assert len(lags) > len(returned) * 0.9, f"only {len(lags)} of {len(returned)} writes were seen"
    median, p99 = lags[len(lags) // 2], lags[len(lags) * 99 // 100]
    figures = {"writes": len(lags), "median_ms": median, "p99_ms": p99, "max_ms": lags[-1]}
    benchmark.extra_info.update(figures)
    # The fixture has copied its own group already.
    benchmark.stats.group = (
        f"lag, {_title(work)}, {LAG_WRITES_A_SECOND} writes/s: median {median:.2f} ms, P99 {p99:.2f} ms, "
        f"maximum {lags[-1]:.2f} ms"
    )


def test_load(benchmark: BenchmarkFixture, work: list[Work]) -> None:
    results: list[Load] = benchmark.pedantic(lambda: _run(_measure_load, work), rounds=1)
    writes, arrival_s = min(one.writes for one in results), max(one.arrival_s for one in results)
    gained_mb = max(one.gained_bytes for one in results) / 1e6
    length = _stream_length(work[0])
    benchmark.extra_info.update(
        writes_a_second=writes,
        published=sum(one.published for one in results),
        arrival_ms=arrival_s * 1e3,
        gained_mb=gained_mb,
        stream_length=length,
        backplanes=[one.backplane for one in results],
    )
    # The fixture has copied its own group already.
    benchmark.stats.group = (
        f"load, {_title(work)}, {LOAD_WRITES_A_SECOND:,} writes/s each: the slowest wrote {writes:,}/s, the last "
        f"writes took {arrival_s * 1e3:.0f} ms, memory + {gained_mb:.1f} MB, log of {length:,} records"
    )


def _stream_length(work: Work) -> int:
    """Return the number of records in the streams of the namespace."""
    if work.redis_url is None:
        return 0
    with redis.Redis.from_url(work.redis_url, protocol=2) as client:
        return sum(client.xlen(key) for key in client.scan_iter(f"*{work.namespace}*", _type="stream"))
