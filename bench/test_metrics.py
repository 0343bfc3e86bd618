"""A metrics page of 100 routes, 5 caches and 5 pools, for one worker and for four.

Run `pytest bench/test_metrics.py`. The page has about 3,900 lines. With workers, a scrape also writes the figures of
its own process, and adds up those of the other three, which have changed since the last scrape.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pytest_benchmark.fixture import BenchmarkFixture

from acgsperf import ConnectionPool, LatencyHistogram, LRUCache, PostgresTier, RedisTier, TieredCache
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.asgi.routes import _LAYOUT
from acgsperf.cache.histograms import histograms_of
from acgsperf.metrics.figures import gather
from acgsperf.metrics.prometheus import BUCKETS_S, PerformanceCollector, exposition
from acgsperf.metrics.source import Sources
from acgsperf.metrics.workers import WorkerFigures

ROUTES, CACHES, POOLS = 100, 5, 5


def latencies(layout: dict[str, int], count: int = 5_000) -> LatencyHistogram:
    histogram = LatencyHistogram(**layout)
    histogram.record_many(int(random.Random(count).lognormvariate(15, 1.5)) for _ in range(count))
    return histogram


async def nothing(scope: object, receive: object, send: object) -> None:
    """An application that is never called."""


class Application:
    """The parts of an application, with latencies."""

    def __init__(self) -> None:
        self.http = PerformanceMiddleware(nothing)
        self.http._routes._latencies = {f"/api/{number}": latencies(_LAYOUT) for number in range(ROUTES)}
        self.caches = [
            TieredCache(LRUCache(10), RedisTier("redis://a"), PostgresTier("postgresql://a/b"), namespace=f"c{number}")
            for number in range(CACHES)
        ]
        self.pools = [ConnectionPool("postgresql://a/b", name=f"p{number}") for number in range(POOLS)]
        times = [histogram for cache in self.caches for histogram in histograms_of(cache)]
        times += [time for pool in self.pools for time in (pool.wait_time, pool.use_time, pool.create_time)]
        for histogram in times:
            histogram.merge(latencies({}))

    def collector(self, directory: Path | str) -> PerformanceCollector:
        return PerformanceCollector(cache=self.caches, pools=self.pools, http=self.http, workers_directory=directory)

    def publish_as(self, worker: WorkerFigures, bounds_ns: list[int]) -> None:
        """Publish the figures as another process does."""
        sources = Sources(cache=self.caches, pools=self.pools, http=self.http)
        worker.publish(gather(sources.read(), bounds_ns))


@contextmanager
def page(application: Application, directory: Path | str) -> Iterator[CollectorRegistry]:
    registry = CollectorRegistry()
    collector = application.collector(directory)
    registry.register(collector)
    yield registry
    collector.close()


RENDERERS: dict[str, Callable[[CollectorRegistry], Callable[[], object]]] = {
    "exposition": exposition,
    "generate_latest": lambda registry: lambda: generate_latest(registry),
}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_page_of_one_worker(benchmark: BenchmarkFixture, renderer: str) -> None:
    with page(Application(), "") as registry:
        render = RENDERERS[renderer](registry)
        benchmark.pedantic(render, rounds=50, warmup_rounds=2)


@pytest.mark.parametrize("workers", [1, 4])
def test_page_of_workers(benchmark: BenchmarkFixture, tmp_path: Path, workers: int) -> None:
    application, bounds_ns = Application(), [round(bound * 1e9) for bound in BUCKETS_S]
    # Two collectors of one process would be one worker.
    others = [WorkerFigures(tmp_path, "acgsperf", bounds_ns) for _ in range(workers - 1)]
    with page(application, tmp_path) as registry:
        render = exposition(registry)

        def publish() -> None:
            for worker in others:
                application.publish_as(worker, bounds_ns)

        benchmark.pedantic(render, setup=publish, rounds=50, warmup_rounds=2)
    for worker in others:
        worker.close()
