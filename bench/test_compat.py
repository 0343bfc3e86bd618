"""The drop-in modules, compared with the core and with plain Python that works like the replaced modules.

Run `pytest -s bench/test_compat.py`. One call is 1,000 operations. For the bounds, the contestants take turns and their
minima are compared, because other work on the machine makes a turn longer, never shorter. Every contestant records its
hits. The drop-in cache derives the access times when they are read, which has a benchmark of its own.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from stand_ins import CONSTITUTIONAL_HASH, PlainCache, PlainService, PlainValidator

from acgsperf import HashValidator
from acgsperf.compat.performance_integration_service import PerformanceIntegrationService
from acgsperf.compat.ultra_fast_cache import UltraFastMultiTierCache
from acgsperf.compat.validation import UltraFastConstitutionalValidator

KEYS = [f"key {i}" for i in range(1_000)]
REQUESTS: list[dict[str, object]] = [{"id": f"example {i}", "type": "api_call", "user": i} for i in range(1_000)]
ROUNDS = 50
ROUNDS_OF_BOUNDS = 200
PROCESSES = 9
VALIDATIONS_PER_CORE = 2.0
HITS_PER_STAND_IN = 9.0
REQUESTS_PER_STAND_IN = 4.0

_Contestants = dict[str, Callable[[], object]]


def validators() -> _Contestants:
    core, compat, plain = HashValidator(), UltraFastConstitutionalValidator(), PlainValidator()

    # One loop per contestant, which looks up the method like a caller: the interpreter specializes it for one type.
    def core_calls() -> None:
        for _ in KEYS:
            core.validate(CONSTITUTIONAL_HASH)

    def compat_calls() -> None:
        for _ in KEYS:
            compat.validate_hash(CONSTITUTIONAL_HASH)

    def plain_calls() -> None:
        for _ in KEYS:
            plain.validate_hash(CONSTITUTIONAL_HASH)

    return {
        "HashValidator.validate": core_calls,
        "compat validate_hash": compat_calls,
        "plain memoized method": plain_calls,
    }


def caches(runner: asyncio.Runner) -> _Contestants:
    compat, plain = UltraFastMultiTierCache(), PlainCache()
    loop = runner.get_loop()

    async def compat_hits() -> None:
        for key in KEYS:
            await compat.get(key)

    async def plain_hits() -> None:
        for key in KEYS:
            await plain.get(key)

    for key in KEYS:
        compat._set_in_l1(key, 1, 3600)
        runner.run(plain.set(key, 1))
    return {
        "compat get": lambda: loop.run_until_complete(compat_hits()),
        "plain get": lambda: loop.run_until_complete(plain_hits()),
    }


def services(runner: asyncio.Runner) -> _Contestants:
    compat, plain = PerformanceIntegrationService(), PlainService()
    # Without Redis, because an L1 hit does not use it.
    compat.cache = UltraFastMultiTierCache()
    loop = runner.get_loop()

    async def compat_requests() -> None:
        for request in REQUESTS:
            await compat.process_request(request)

    async def plain_requests() -> None:
        for request in REQUESTS:
            await plain.process_request(request)

    # The first round has the misses.
    runner.run(compat_requests())
    runner.run(plain_requests())
    return {
        "compat process_request": lambda: loop.run_until_complete(compat_requests()),
        "plain process_request": lambda: loop.run_until_complete(plain_requests()),
    }


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.parametrize("contestant", ["HashValidator.validate", "compat validate_hash", "plain memoized method"])
def test_validation(benchmark: BenchmarkFixture, contestant: str) -> None:
    benchmark.group = "validate a valid hash"
    benchmark.extra_info["operations"] = len(KEYS)
    benchmark.pedantic(validators()[contestant], rounds=ROUNDS, warmup_rounds=2)


@pytest.mark.parametrize("contestant", ["compat get", "plain get"])
def test_l1_hit(benchmark: BenchmarkFixture, runner: asyncio.Runner, contestant: str) -> None:
    benchmark.group = "await cache.get(key), L1 hit, under the former names"
    benchmark.extra_info["operations"] = len(KEYS)
    benchmark.pedantic(caches(runner)[contestant], rounds=ROUNDS, warmup_rounds=2)


@pytest.mark.parametrize("contestant", ["compat process_request", "plain process_request"])
def test_cached_request(benchmark: BenchmarkFixture, runner: asyncio.Runner, contestant: str) -> None:
    benchmark.group = "a cached process_request under the former names"
    benchmark.extra_info["operations"] = len(REQUESTS)
    benchmark.pedantic(services(runner)[contestant], rounds=ROUNDS, warmup_rounds=2)


def test_times_of_accesses(benchmark: BenchmarkFixture) -> None:
    """The cost of `access_patterns` after as many hits as it can hold without a time."""
    cache = UltraFastMultiTierCache()
    for key in KEYS:
        cache._set_in_l1(key, 1)

    def fill() -> None:
        for key in KEYS * 5:
            cache._get_from_l1(key)

    benchmark.group = "derive the times of 4,096 accesses of 1,000 keys"
    benchmark.pedantic(lambda: cache.access_patterns, setup=fill, rounds=ROUNDS)


def test_the_bounds() -> None:
    """A validation costs at most 2 x the core; a hit is 9 x and a request 4 x as fast as in plain Python.

    Where the memory of a process lies decides how often its data leave the processor's caches, and that changes the
    margins by a tenth. So several processes measure them, and the median counts.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as processes:
        measured = [processes.submit(_margins).result() for _ in range(PROCESSES)]
    margins = {name: sorted(each[name] for each in measured) for name in measured[0]}
    for name, ratios in margins.items():
        print(f"{name}: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    assert median(margins["validations: compat / core"]) <= VALIDATIONS_PER_CORE
    assert median(margins["hits: plain / compat"]) >= HITS_PER_STAND_IN
    assert median(margins["requests: plain / compat"]) >= REQUESTS_PER_STAND_IN


def _margins() -> dict[str, float]:
    validating = _minima(validators())
    with asyncio.Runner() as runner:
        hitting, serving = _minima(caches(runner)), _minima(services(runner))
    return {
        "validations: compat / core": validating["compat validate_hash"] / validating["HashValidator.validate"],
        "hits: plain / compat": hitting["plain get"] / hitting["compat get"],
        "requests: plain / compat": serving["plain process_request"] / serving["compat process_request"],
    }


def _minima(contestants: _Contestants) -> dict[str, float]:
    times: dict[str, list[int]] = {name: [] for name in contestants}
    for _ in range(ROUNDS_OF_BOUNDS):
        for name, call in contestants.items():
            started = time.perf_counter_ns()
            call()
            times[name].append(time.perf_counter_ns() - started)
    return {name: float(min(taken)) for name, taken in times.items()}
