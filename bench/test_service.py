"""A request that L1 answers, compared with an empty coroutine; and the time of a monitoring and an optimization round.

Run `pytest bench/test_service.py` with `acgsperf[bench]`. One call of the first group is 1,000 requests in one turn
of the event loop. Divide a time of the second group by its interval (30 s and 60 s) to get its share of a core.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf import CONSTITUTIONAL_HASH
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings

ROUNDS = 1_000
ENTRIES = 100_000
REQUEST = {"id": "example", "type": "api_call", "constitutional_hash": CONSTITUTIONAL_HASH}

_Calls = Callable[[], Coroutine[Any, Any, None]]


async def answer(request: object) -> int:
    return 1


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def service(runner: asyncio.Runner) -> Iterator[PerformanceService]:
    service = PerformanceService(Settings(), handler=answer)
    runner.run(service.open())
    yield service
    runner.run(service.close())


async def empty_calls() -> None:
    async def empty() -> None:
        pass

    for _ in range(ROUNDS):
        await empty()


def requests_of(service: PerformanceService) -> _Calls:
    async def calls() -> None:
        for _ in range(ROUNDS):
            await service.process_request(REQUEST)

    return calls


@pytest.mark.parametrize("contestant", ["empty async def", "process_request, three fields"])
def test_l1_hit(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, service: PerformanceService, contestant: str
) -> None:
    benchmark.group = "await service.process_request(request), L1 hit"
    benchmark.extra_info["operations"] = ROUNDS
    calls = empty_calls if contestant == "empty async def" else requests_of(service)
    loop = runner.get_loop()
    benchmark(lambda: loop.run_until_complete(calls()))


@pytest.mark.parametrize("work", ["observe", "optimize"])
def test_a_round(benchmark: BenchmarkFixture, runner: asyncio.Runner, service: PerformanceService, work: str) -> None:
    benchmark.group = f"a round, {ENTRIES:,} entries in L1"
    requests = [{"id": number} for number in range(ENTRIES)]

    async def prepare() -> None:
        for at in range(0, ENTRIES, 1_000):
            await service.process_many(requests[at : at + 1_000])
        for _ in range(1_000):
            service.observe()

    runner.run(prepare())

    async def once() -> None:
        getattr(service, work)()

    loop = runner.get_loop()
    benchmark(lambda: loop.run_until_complete(once()))
