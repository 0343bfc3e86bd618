"""The time of `fleet_summary` with 1,000 reports of instances, each of which has answered 100,000 requests.

Run `pytest bench/test_fleet.py` with `acgsperf[bench,embedded]`. `extra_info` in `--benchmark-json` has the CPU time,
which other processes do not change, and how long one turn of the event loop takes meanwhile at most, because requests
wait for that.
"""

import asyncio
import random
import time
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf import LatencyHistogram
from acgsperf.fleet import FleetSummary, Report, store_of
from acgsperf.service import PerformanceService
from acgsperf.settings import Settings
from acgsperf.workbench.embedded import Servers, embedded_servers

INSTANCES = 1_000
REQUESTS = 100_000


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with embedded_servers() as servers:
        yield servers


def latencies() -> list[bytes]:
    """Encoded histograms of ten instances. Most of their latencies are hits, and the others take milliseconds."""
    found = []
    for seed in range(10):
        chance = random.Random(seed)
        histogram = LatencyHistogram()
        histogram.record_many(
            int(chance.lognormvariate(8.5, 0.5) if chance.random() < 0.95 else chance.lognormvariate(14.5, 0.8))
            for _ in range(REQUESTS)
        )
        found.append(histogram.encode())
    return found


async def publish_all(url: str, namespace: str) -> None:
    encoded = latencies()
    async with store_of(url, namespace, lifetime=3600, timeout=60) as store:
        for number in range(INSTANCES):
            report = Report(
                instance=f"{number:016x}",
                sequence=1,
                seconds=3600.0,
                failed=1,
                violations=0,
                missed=4,
                latency=encoded[number % len(encoded)],
                name=f"host-{number}:1",
                settings={"l1_size": 100_000, "promotion_threshold": 3, "refresh_ahead": 1.0},
            )
            await store.publish(report)


async def summary_and_longest_turn_s(service: PerformanceService) -> tuple[FleetSummary, float]:
    longest_s = 0.0

    async def turn() -> None:
        nonlocal longest_s
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.perf_counter() - began)

    turning = asyncio.create_task(turn())
    summary = await service.fleet_summary()
    turning.cancel()
    return summary, longest_s


@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_sum_of_a_thousand_reports(benchmark: BenchmarkFixture, servers: Servers, kind: str) -> None:
    benchmark.group = "fleet_summary of 1,000 instances"
    url = servers.redis_url if kind == "redis" else servers.database_url
    assert url is not None
    namespace = f"bench-{kind}"
    settings = Settings(
        redis_url=url if kind == "redis" else None,
        database_url=None if kind == "redis" else url,
        db_pool_min_size=0,
        cache_namespace=namespace,
    )
    with asyncio.Runner() as runner:
        runner.run(publish_all(url, namespace))
        service = PerformanceService(settings)
        runner.run(service.open())
        turns, cpu = [], []

        def summed() -> FleetSummary:
            cpu.append(-time.process_time())
            summary, longest_s = runner.run(summary_and_longest_turn_s(service))
            cpu[-1] += time.process_time()
            turns.append(longest_s)
            return summary

        summary = benchmark.pedantic(summed, rounds=5, warmup_rounds=1)
        assert len(summary.instances) == INSTANCES + 1
        assert summary.requests == INSTANCES * (REQUESTS + 1)
        benchmark.extra_info["cpu_s"] = round(min(cpu), 3)
        benchmark.extra_info["longest_turn_ms"] = round(1e3 * min(turns), 1)
        runner.run(service.close())
