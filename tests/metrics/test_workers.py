"""One page for all workers, with real processes that start and end."""

import asyncio
import dataclasses
import errno
import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from acgsperf import (
    LatencyHistogram,
    LRUCache,
    PerformanceService,
    PoolManager,
    Settings,
    SettingsError,
    TieredCache,
    counting,
)
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.metrics import worker_files, workers
from acgsperf.metrics.ledger import Ledger
from acgsperf.metrics.metric import Kind
from acgsperf.metrics.prometheus import PerformanceCollector, exposition
from acgsperf.metrics.source import HttpCounts, Sources
from acgsperf.metrics.workers import WorkerFigures
from acgsperf.testing import MemoryServer, MemoryTier

WORKER = Path(__file__).with_name("worker.py")
BOUNDS = [1_000_000, 5_000_000]


class Worker:
    def __init__(self, directory):
        self.process = subprocess.Popen([sys.executable, WORKER, directory], stdout=subprocess.PIPE)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{int(self.process.stdout.readline())}", timeout=30)

    def request(self, *ids):
        for number in ids:
            assert self.client.get(f"/items/{number}").text == str(number)

    def page(self):
        return {
            (sample.name, *sorted(sample.labels.items())): (sample.value, family.type)
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for sample in family.samples
        }

    def end(self, number):
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        self.client.close()


class Application:
    """Some workers. The pages of all workers must be consistent."""

    def __init__(self, directory):
        self.directory = directory
        self.workers = []
        self._last = {}

    def start(self):
        self.workers.append(Worker(self.directory))
        return self.workers[-1]

    def end(self, worker, number):
        self.workers.remove(worker)
        worker.end(number)

    def check(self):
        """Read the page of every worker, check that no count decreases between them, and return the last page."""
        for worker in self.workers:
            page = worker.page()
            for sample, (value, kind) in self._last.items():
                if kind in ("counter", "histogram"):
                    assert page[sample][0] >= value, sample
            self._last = page
            assert page["acgsperf_processes",][0] == len(self.workers)
        return {sample: value for sample, (value, _) in self._last.items()}


@pytest.fixture
def application(tmp_path):
    running = Application(tmp_path / "workers")
    yield running
    for worker in running.workers:
        worker.end(signal.SIGKILL)


def test_counts_add_up_and_never_go_back_while_workers_come_and_go(application):
    a, b = application.start(), application.start()
    a.request(1, 2, 3)
    b.request(1, 2)
    application.check()
    page = application.check()
    route = ("route", "/items/{id}")
    assert page["acgsperf_requests_total",] == 5
    assert page["acgsperf_http_request_duration_seconds_count", route] == 5
    assert page["acgsperf_http_request_duration_seconds_bucket", ("le", "+Inf"), route] == 5
    assert page["acgsperf_cache_entries", ("cache", "acgsperf")] == 5
    c = application.start()
    c.request(7)
    application.check()
    assert application.check()["acgsperf_requests_total",] == 6
    application.end(b, signal.SIGKILL)
    page = application.check()
    assert page["acgsperf_requests_total",] == 6
    assert page["acgsperf_cache_entries", ("cache", "acgsperf")] == 4
    # This worker is not scraped again, but it publishes when it ends.
    c.request(8, 9)
    application.end(c, signal.SIGTERM)
    assert application.check()["acgsperf_requests_total",] == 8
    d = application.start()
    assert application.check()["acgsperf_requests_total",] == 8
    application.end(a, signal.SIGTERM)
    d.request(1)
    page = application.check()
    assert page["acgsperf_requests_total",] == 9
    assert page["acgsperf_request_duration_seconds_count",] == 9
    assert page["acgsperf_cache_entries", ("cache", "acgsperf")] == 1
    left = {path.name.split(".")[-1] for path in application.directory.iterdir()}
    assert left <= {"ended", "lock", "figures", "alive"}
    assert len(list(application.directory.glob("*.figures"))) == 1


def test_no_count_is_lost_or_doubled_while_many_scrape(application):
    """Several workers find the files of one that has ended, and one of them adds its counts to the common file."""
    readers = [application.start() for _ in range(3)]
    for round_ in range(3):
        ending = application.start()
        ending.request(*range(10))
        ending.page()
        application.end(ending, signal.SIGKILL)

        async def scrape():
            async with httpx.AsyncClient(timeout=30) as client:
                urls = [f"{reader.client.base_url}/metrics" for reader in readers] * 4
                return await asyncio.gather(*(client.get(url) for url in urls))

        for answer in asyncio.run(scrape()):
            assert f"acgsperf_requests_total {10.0 * (round_ + 1)}\n" in answer.text


def figures(count, *values):
    histogram = LatencyHistogram()
    histogram.record_many(values)
    within, total, sum_ns = histogram.cumulative(BOUNDS)
    return {"requests": {(): count}, "request_duration_seconds": {(): [*within, total, round(sum_ns)]}}


@contextmanager
def opened(*arguments):
    created = WorkerFigures(*arguments)
    yield created
    created.close()


def page_of(created, own):
    return created.add_others(created.publish(own))


def test_gauges_are_merged_as_their_metric_says(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        one.publish({"pool_healthy": {("p",): 0}, "pool_oldest_wait_seconds": {("p",): 3.5}, "processes": {(): 1}})
        found = page_of(
            other, {"pool_healthy": {("p",): 1}, "pool_oldest_wait_seconds": {("p",): 1.5}, "processes": {(): 1}}
        )
        assert found == {"pool_healthy": {("p",): 0}, "pool_oldest_wait_seconds": {("p",): 3.5}, "processes": {(): 2}}
        ejected = {"pool_ejected": {("p",): 1}, "balancer_ejected": {("e",): 1}}
        one.publish(ejected)
        assert page_of(other, ejected) == ejected


def test_a_process_with_other_buckets_does_not_break_the_page(tmp_path):
    with opened(tmp_path, "a", [1_000_000, 2_000_000, 9_000_000]) as old, opened(tmp_path, "a", BOUNDS) as new:
        old.publish({"request_duration_seconds": {(): [1, 2, 3, 4, 5]}})
        found = page_of(new, figures(1, 2_000_000))
    assert found["request_duration_seconds"][()][:3] == [1, 3, 5]
    assert found["requests"] == {(): 1}


def test_a_process_with_fewer_buckets_loses_no_counts_of_ended_processes(tmp_path):
    fine, coarse = [1_000_000, 2_000_000, 9_000_000], [9_000_000]
    with opened(tmp_path, "a", fine) as reader:
        with opened(tmp_path, "a", fine) as ending:
            ending.publish({"request_duration_seconds": {(): [1, 2, 3, 4, 5]}})
        with opened(tmp_path, "a", coarse) as other:
            # This process adds the counts to the common file.
            assert other.add_others({})["request_duration_seconds"][()] == [3, 4, 5]
            assert (tmp_path / "a.ended").exists()
            other.publish({"request_duration_seconds": {(): [10, 10, 10]}})
            assert reader.add_others({})["request_duration_seconds"][()] == [1, 2, 13, 14, 15]
        for _ in range(2):
            assert reader.add_others({})["request_duration_seconds"][()] == [1, 2, 13, 14, 15]


def another_version(**changes):
    """Return the metrics of another version, which has others or none under some names."""
    metrics = {name: metric for name, metric in workers._METRICS.items() if name not in changes}
    return metrics | {name: metric for name, metric in changes.items() if metric is not None}


def test_a_process_of_another_version_loses_no_counts_of_metrics_that_it_does_not_know(tmp_path, monkeypatch):
    with opened(tmp_path, "a", BOUNDS) as ending:
        ending.publish(figures(5, 1_000_000) | {"processes": {(): 1}})
    with monkeypatch.context() as patched, opened(tmp_path, "a", BOUNDS) as old:
        patched.setattr(workers, "_METRICS", another_version(requests=None, request_duration_seconds=None))
        assert old.add_others({}) == {}
        assert len(list(tmp_path.glob("*.figures"))) == 0
    with opened(tmp_path, "a", BOUNDS) as new:
        assert new.add_others({}) == figures(5, 1_000_000)


def test_a_process_of_another_version_may_use_a_name_for_another_metric(tmp_path, monkeypatch):
    known = workers._METRICS
    with opened(tmp_path, "a", BOUNDS) as other, opened(tmp_path, "a", BOUNDS) as reader:
        with monkeypatch.context() as patched:
            changed = another_version(
                requests=dataclasses.replace(known["requests"], labels=("tenant",)),
                request_errors=dataclasses.replace(known["request_errors"], kind=Kind.HISTOGRAM),
                cache_entries=dataclasses.replace(known["cache_entries"], kind=Kind.COUNTER),
            )
            patched.setattr(workers, "_METRICS", changed)
            other.publish(
                {"requests": {("x",): 1}, "request_errors": {(): [1, 2, 3, 4]}, "cache_entries": {("app",): 3}}
            )
        own = counts(2, entries=1) | {"request_errors": {(): 1}}
        for _ in range(2):
            assert page_of(reader, own) == own
            other.close()


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x80"])
def test_files_that_are_no_figures_are_ignored(tmp_path, garbage):
    (tmp_path / "a.0123.figures").write_bytes(garbage)
    (tmp_path / "a.ended").write_bytes(garbage)
    with opened(tmp_path, "a", BOUNDS) as worker:
        assert page_of(worker, figures(1))["requests"] == {(): 1}


def test_processes_of_another_name_are_another_page(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "b", BOUNDS) as other:
        one.publish(figures(1))
        assert page_of(other, figures(2))["requests"] == {(): 2}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_counts_are_added_once_even_if_the_process_that_does_it_dies_meanwhile(tmp_path, monkeypatch):
    with opened(tmp_path, "a", BOUNDS) as ended:
        ended.publish(figures(7))
    with opened(tmp_path, "a", BOUNDS) as worker:
        with monkeypatch.context() as patched:
            # The common file is written, and the file of the ended process stays.
            patched.setattr(workers.Path, "unlink", lambda *arguments, **options: os._exit(1))
            if (child := os.fork()) == 0:
                page_of(worker, figures(0))
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        for _ in range(2):
            assert page_of(worker, figures(1))["requests"] == {(): 8}
    assert len(list(tmp_path.glob("*.figures"))) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_a_process_of_its_own(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as worker:
        worker.publish({"processes": {(): 1}})
        ready, told = os.pipe()
        if (child := os.fork()) == 0:
            worker.publish({"processes": {(): 1}})
            os.write(told, b"x")
            signal.pause()
        os.read(ready, 1)
        assert page_of(worker, {"processes": {(): 1}}) == {"processes": {(): 2}}
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
        assert page_of(worker, {"processes": {(): 1}}) == {"processes": {(): 1}}


@pytest.mark.parametrize("directory", ["/proc/nowhere", "\0"])
def test_a_directory_that_cannot_be_written_is_refused(directory):
    with pytest.raises(SettingsError, match="WORKERS_DIRECTORY"):
        PerformanceCollector(workers_directory=directory)


async def test_figures_without_a_service_are_shared_too(tmp_path):
    async with TieredCache(LRUCache(5), namespace="one") as one, TieredCache(LRUCache(5), namespace="two") as two:
        await one.set("a", 1)
        first = PerformanceCollector(cache=one, workers_directory=tmp_path)
        second = PerformanceCollector(cache=two, workers_directory=tmp_path)
        first.publish()
        registry = CollectorRegistry()
        registry.register(second)
        assert b'acgsperf_cache_entries{cache="one"} 1.0' in generate_latest(registry)
        assert b'acgsperf_cache_entries{cache="two"} 0.0' in generate_latest(registry)
        first.close()
        first.close()
        assert b'acgsperf_cache_entries{cache="one"}' not in generate_latest(registry)
        assert b'acgsperf_cache_insertions_total{cache="one"} 1.0' in generate_latest(registry)
        second.close()


async def test_a_collector_made_before_the_event_loop_publishes_when_the_application_starts(tmp_path):
    async with TieredCache(LRUCache(5), namespace="one") as cache:
        collector = await asyncio.to_thread(PerformanceCollector, cache=cache, workers_directory=tmp_path)
        assert not list(tmp_path.iterdir())
        begun = asyncio.Event()

        async def application(scope, receive, send):
            begun.set()
            await receive()

        app = PerformanceMiddleware(application, metrics=exposition(CollectorRegistry()))
        lifespan = asyncio.create_task(app({"type": "lifespan"}, asyncio.Event().wait, None))
        await begun.wait()
        await asyncio.sleep(0)
        assert len(list(tmp_path.glob("*.figures"))) == 1
        lifespan.cancel()
        await asyncio.wait([lifespan])
        collector.close()


AT_EXIT = """
import asyncio
from acgsperf import LRUCache, TieredCache
from acgsperf.metrics.prometheus import PerformanceCollector

async def main():
    async with TieredCache(LRUCache(5), namespace="one") as cache:
        collector = PerformanceCollector(cache=cache)
        await asyncio.sleep(0)
        await cache.set("a", 1)
        return collector

collector = asyncio.run(main())
"""


async def test_a_process_that_exits_loses_no_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKERS_DIRECTORY", str(tmp_path))
    done = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-W", "error", "-c", AT_EXIT], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    registry = CollectorRegistry()
    collector = PerformanceCollector()
    registry.register(collector)
    assert b'acgsperf_cache_insertions_total{cache="one"} 1.0' in generate_latest(registry)
    collector.close()


@contextmanager
def full_disk():
    """Nothing can be written to a file. Python ignores the signal that a process gets then."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def counts(requests, entries=0, timeouts=None):
    pools = {} if timeouts is None else {"pool_timeouts": {("main",): timeouts}}
    return {"requests": {(): requests}, "cache_entries": {("app",): entries}, **pools}


def test_no_count_goes_back_while_the_disk_is_full(tmp_path, caplog):
    caplog.set_level("INFO", logger="acgsperf.metrics")
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        one.publish(counts(5, timeouts=1))
        with full_disk():
            for requests in (8, 9):
                shown = page_of(one, counts(requests, entries=2, timeouts=2))
                assert (shown["requests"], shown["pool_timeouts"]) == ({(): 5}, {("main",): 1})
                assert shown["cache_entries"] == {("app",): 2}
                assert other.add_others({})["requests"] == {(): 5}
        assert page_of(one, counts(9, timeouts=2))["requests"] == {(): 9}
        assert other.add_others({})["requests"] == {(): 9}
        assert other.add_others({})["pool_timeouts"] == {("main",): 2}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert not list(tmp_path.glob("*.new"))


def test_all_pages_agree_if_a_worker_starts_while_the_disk_is_full(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as late:
        one.publish(counts(7))
        with full_disk():
            for requests in (4, 8):
                assert page_of(one, counts(7 + requests))["requests"] == {(): 7}
                shown = page_of(late, {**counts(requests, entries=2), "request_errors": {(): 1}})
                assert shown == counts(7, entries=2)
        assert page_of(late, counts(9))["requests"] == {(): 16}


def test_a_disk_that_is_full_from_the_beginning_does_not_break_the_page(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one:
        with full_disk():
            # No other page can show the counts, so this one does not either.
            assert page_of(one, counts(5, entries=2)) == {"cache_entries": {("app",): 2}}
        assert page_of(one, counts(5))["requests"] == {(): 5}


@pytest.mark.parametrize("moved", [True, False])
def test_a_worker_that_was_taken_for_ended_while_the_disk_is_full_is_counted_once(tmp_path, moved):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        one.publish(counts(5))
        (path,) = tmp_path.glob("*.alive")
        path.unlink()
        if moved:
            assert other.add_others({})["requests"] == {(): 5}
        with full_disk():
            for requests in (6, 7):
                assert page_of(one, counts(requests))["requests"] == {(): 5}
                assert other.add_others({})["requests"] == {(): 5}
        for requests in (8, 9):
            assert page_of(one, counts(requests))["requests"] == {(): requests}
            assert other.add_others({})["requests"] == {(): requests}


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80"])
def test_a_damaged_file_of_a_live_worker_hides_no_counts(tmp_path, damage):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        one.publish(counts(5))
        assert other.add_others({})["requests"] == {(): 5}
        (path,) = tmp_path.glob("*.figures")
        path.write_bytes(damage)
        assert other.add_others({})["requests"] == {(): 5}
        one.publish(counts(6))
        assert other.add_others({})["requests"] == {(): 6}


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80"])
def test_a_damaged_common_file_loses_no_counts_that_a_worker_has_seen(tmp_path, damage):
    with opened(tmp_path, "a", BOUNDS) as one:
        one.publish(counts(5))
    with opened(tmp_path, "a", BOUNDS) as two:
        two.publish(counts(2))
        with opened(tmp_path, "a", BOUNDS) as reader:
            for _ in range(2):
                assert reader.add_others({})["requests"] == {(): 7}
            (tmp_path / "a.ended").write_bytes(damage)
            assert reader.add_others({})["requests"] == {(): 7}
            two.close()
            assert reader.add_others({})["requests"] == {(): 7}
        # The common file is right again, because the counts of another process were added to it.
        with opened(tmp_path, "a", BOUNDS) as late:
            assert late.add_others({})["requests"] == {(): 7}


def test_two_versions_of_a_file_within_the_same_tick_of_the_clock_are_two(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        for number in range(1, 200):
            one.publish(counts(number))
            assert other.add_others({})["requests"] == {(): number}


@pytest.mark.parametrize("removed", ["*.alive", "*.figures", "*"])
def test_files_that_something_removes_are_written_again_and_nothing_is_doubled(tmp_path, removed):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        one.publish(counts(5))
        for path in tmp_path.glob(removed):
            path.unlink()
        assert page_of(one, counts(6))["requests"] == {(): 6}
        assert other.add_others({})["requests"] == {(): 6}


def test_a_worker_that_was_taken_for_ended_is_not_counted_twice(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        one.publish({**counts(5), **figures(5, 1_000_000)})
        (path,) = tmp_path.glob("*.alive")
        path.unlink()
        assert other.add_others({})["requests"] == {(): 5}
        assert (tmp_path / "a.ended").exists()
        for requests in (6, 7):
            assert page_of(one, figures(requests, *[1_000_000] * requests))["requests"] == {(): requests}
            shown = other.add_others({})
            assert shown["requests"] == {(): requests}
            assert shown["request_duration_seconds"][()][0] == requests


def test_a_directory_that_was_removed_is_made_again(tmp_path):
    directory = tmp_path / "workers"
    with opened(directory, "a", BOUNDS) as one:
        one.publish(counts(5))
        shutil.rmtree(directory)
        assert one.add_others({}) == {}
        assert page_of(one, counts(6))["requests"] == {(): 6}
        with opened(directory, "a", BOUNDS) as other:
            assert other.add_others({})["requests"] == {(): 6}


def test_a_worker_may_change_its_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened("workers", "a", BOUNDS) as one:
        one.publish(counts(5))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        one.publish(counts(6))
        with opened(tmp_path / "workers", "a", BOUNDS) as other:
            assert other.add_others({})["requests"] == {(): 6}


def test_where_locks_do_not_work_each_worker_shows_its_own_figures(tmp_path, monkeypatch, caplog):
    def refused(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    # There is no file system without locks here.
    monkeypatch.setattr(worker_files.fcntl, "flock", refused)
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        for _ in range(2):
            assert page_of(one, counts(5))["requests"] == {(): 5}
            assert page_of(other, counts(2))["requests"] == {(): 2}
    assert len(caplog.records) == 2
    assert "No locks available" in caplog.text
    assert list(tmp_path.iterdir()) == []


def in_a_child(work):
    """Call `work` in a forked child, which then ends like a worker that is killed."""
    if (child := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Routes:
    """A source of one route. Its requests can be counted without an application."""

    def __init__(self, requests=0):
        self.latencies = {"/": LatencyHistogram()}
        self.count(requests)

    def count(self, requests):
        self.latencies["/"].record_many([1_000_000] * requests)

    def routes(self):
        return self.latencies

    def counts(self):
        return HttpCounts(0, 0, 0, 0, 0)


def requests_on(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    page = generate_latest(registry).decode()
    (count,) = re.findall(r"acgsperf_http_request_duration_seconds_count\{.*\} (.*)", page)
    (processes,) = re.findall(r"^acgsperf_processes (.*)", page, re.MULTILINE)
    return int(float(count)), int(float(processes))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("published", [True, False])
def test_a_forked_child_does_not_count_what_its_parent_counts(tmp_path, published):
    source = Routes(10)
    collector = PerformanceCollector(http=source, workers_directory=tmp_path)
    if published:
        collector.publish()
        source.count(2)

    def work():
        collector.publish()
        source.count(1)
        collector.publish()

    for _ in range(3):
        in_a_child(work)
    for _ in range(2):
        assert requests_on(collector) == (15 if published else 13, 1)
    collector.close()


def used(cache, hits):
    """Let a cache have so many hits in L1."""

    async def use():
        async with cache:
            await cache.set("a", 1)
            for _ in range(hits):
                assert cache.get_local("a") == 1

    asyncio.run(use())


def hits_on(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    (hits,) = re.findall(r"acgsperf_cache_hits_total\{.*\} (.*)", generate_latest(registry).decode())
    return int(float(hits))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("exported_before", [True, False])
def test_a_forked_child_does_not_count_what_was_counted_before_without_an_exporter(tmp_path, exported_before):
    cache = TieredCache(LRUCache(5), namespace="app")
    if exported_before:
        used(cache, 5)
        PerformanceCollector(cache=cache, workers_directory=tmp_path).close()
    used(cache, 10)

    def work():
        used(cache, 1)
        collector = PerformanceCollector(cache=cache, workers_directory=tmp_path)
        collector.publish()

    for _ in range(3):
        in_a_child(work)
    collector = PerformanceCollector(cache=cache, workers_directory=tmp_path)
    assert hits_on(collector) == 13 + (5 if exported_before else 0)
    collector.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_of_a_child_does_not_count_what_both_parents_count(tmp_path):
    cache = TieredCache(LRUCache(5), namespace="app")
    used(cache, 10)

    def work():
        used(cache, 1)
        in_a_child(lambda: PerformanceCollector(cache=cache, workers_directory=tmp_path).publish())
        PerformanceCollector(cache=cache, workers_directory=tmp_path).publish()

    in_a_child(work)
    collector = PerformanceCollector(cache=cache, workers_directory=tmp_path)
    assert hits_on(collector) == 11
    collector.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_parent_without_an_event_loop_publishes_when_it_forks(tmp_path):
    cache = TieredCache(LRUCache(5), namespace="app")
    used(cache, 10)
    kept = PerformanceCollector(cache=cache, workers_directory=tmp_path)

    def work():
        collector = PerformanceCollector(cache=cache, workers_directory=tmp_path)
        assert hits_on(collector) == 10

    in_a_child(work)
    kept.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_histograms_begin_at_0_in_a_forked_child_whatever_its_buckets_are(tmp_path):
    source = Routes(10)
    PerformanceCollector(http=source, workers_directory=tmp_path).close()

    def work():
        source.count(2)
        collector = PerformanceCollector(http=source, buckets_s=[0.0005, 2], workers_directory="")
        buckets = re.findall(r"duration_seconds_bucket\{.*\} (.*)", page_without_files(collector))
        assert list(map(float, buckets)) == [0, 2, 2]

    in_a_child(work)


def page_without_files(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_source_that_raises_does_not_hide_the_counts_of_others_at_a_fork(tmp_path, monkeypatch):
    class Broken(Routes):
        def counts(self):
            raise RuntimeError("torn")

    broken, cache = Broken(), TieredCache(LRUCache(5), namespace="app")
    used(cache, 10)
    Sources(http=broken)
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    in_a_child(lambda: PerformanceCollector(cache=cache, workers_directory=tmp_path).publish())
    assert [str(each.exc_value) for each in reported] == ["torn"]
    collector = PerformanceCollector(cache=cache, workers_directory=tmp_path)
    assert hits_on(collector) == 10
    collector.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_collector_whose_source_raises_does_not_spoil_a_fork_and_can_be_closed(tmp_path, monkeypatch):
    class Broken(Routes):
        def counts(self):
            raise RuntimeError("torn")

    cache = TieredCache(LRUCache(5), namespace="app")
    collector = PerformanceCollector(cache=cache, workers_directory=tmp_path / "good")
    broken = PerformanceCollector(http=Broken(), workers_directory=tmp_path / "broken")
    used(cache, 10)
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    def work():
        used(cache, 1)
        collector.publish()

    in_a_child(work)
    assert hits_on(collector) == 11
    broken.close()
    assert {str(each.exc_value) for each in reported} == {"torn"}
    collector.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_begins_at_0_also_if_all_sources_of_its_parent_are_gone(servers, monkeypatch):
    pools = PoolManager()
    collector = PerformanceCollector(pools=pools, workers_directory="")
    # Without those of other tests.
    monkeypatch.setattr(counting, "objects", WeakValueDictionary())

    async def use():
        pool = await pools.create("main", servers.database_url, min_size=1, max_size=1)
        await pool.close()
        await pools.close()

    registry = CollectorRegistry()
    registry.register(collector)

    def page():
        return generate_latest(registry).decode()

    def opened_connections():
        (line,) = re.findall(r'^acgsperf_pool_opened_connections_total\{pool="main"\} (.*)', page(), re.MULTILINE)
        return float(line)

    def work():
        assert "acgsperf_pool_opened_connections_total{" not in page()

    asyncio.run(use())
    assert opened_connections() == 1
    gc.collect()
    assert not counting.objects
    in_a_child(work)
    assert opened_connections() == 1
    collector.close()


def test_two_paths_of_one_directory_are_one_directory(tmp_path):
    directory, link = tmp_path / "real", tmp_path / "link"
    directory.mkdir()
    link.symlink_to(directory)
    source = Routes(10)
    collectors = [PerformanceCollector(http=source, workers_directory=path) for path in (directory, link)]
    for collector in (*collectors, *collectors):
        assert requests_on(collector) == (10, 1)
    for collector in collectors:
        collector.close()


async def test_a_scrape_in_another_event_loop_does_not_stop_or_multiply_the_publishing(tmp_path, monkeypatch):
    collector = PerformanceCollector(http=Routes(1), workers_directory=tmp_path)
    published, enough = [], asyncio.Event()
    publish, loop = collector.publish, asyncio.get_running_loop()

    def counted():
        published.append(asyncio.get_running_loop())
        publish()
        if len(published) == 3:
            enough.set()

    async def scrape():
        requests_on(collector)
        # The other loop has had its turn to publish.
        await asyncio.sleep(0)

    monkeypatch.setattr("acgsperf.metrics.prometheus._PUBLISH_EVERY_S", 0)
    monkeypatch.setattr(collector, "publish", counted)
    for _ in range(3):
        await asyncio.to_thread(asyncio.run, scrape())
        requests_on(collector)
    async with asyncio.timeout(30):
        await enough.wait()
    assert set(published) == {loop}
    collector.close()


def test_another_event_loop_publishes_when_the_first_one_has_ended(tmp_path):
    collector = PerformanceCollector(http=Routes(1), workers_directory=tmp_path)

    async def scrape():
        requests_on(collector)
        await asyncio.sleep(0)
        return collector._publishing

    first, second = asyncio.run(scrape()), asyncio.run(scrape())
    assert second is not first
    collector.close()


def test_a_cache_that_gets_another_name_is_counted_under_each_name_only_for_its_time(tmp_path):
    cache = TieredCache(LRUCache(5), namespace="app")
    registry = CollectorRegistry()
    for name, hits in (("a", 10), ("b", 1), ("a", 5)):
        used(cache, hits)
        collector = PerformanceCollector(cache={name: cache}, workers_directory=tmp_path)
        registry.register(collector)
        page = generate_latest(registry).decode()
        registry.unregister(collector)
        collector.close()
    found = dict(re.findall(r'acgsperf_cache_hits_total\{cache="(.*)",tier="l1"\} (.*)', page))
    assert found == {"a": "15.0", "b": "1.0"}


@pytest.mark.parametrize("shared", [True, False])
def test_a_closed_collector_exports_nothing(tmp_path, shared):
    collector = PerformanceCollector(http=Routes(1), workers_directory=tmp_path if shared else "")
    assert list(collector.collect())
    collector.close()
    assert list(collector.collect()) == []


async def test_a_tier_that_is_given_to_another_cache_is_not_counted_again(tmp_path):
    tier = MemoryTier(MemoryServer())
    for number in range(3):
        async with TieredCache(LRUCache(5), tier, namespace="app") as cache:
            collector = PerformanceCollector(cache=cache, workers_directory=tmp_path)
            if number == 0:
                await cache.set("a", 1)
                await cache.set("b", 1)
            page = page_without_files(collector)
            collector.close()
        assert 'acgsperf_cache_stores_total{cache="app",tier="l2"} 2.0' in page


@pytest.mark.parametrize("shared", [True, False])
async def test_pools_that_are_closed_between_scrapes_are_counted(tmp_path, servers, shared):
    async with PoolManager() as pools:
        collector = PerformanceCollector(pools=pools, workers_directory=tmp_path if shared else "")
        for _ in range(2):
            pool = await pools.create("main", servers.database_url, min_size=1, max_size=1)
            await pool.fetchval("SELECT 1")
            await pool.close()
            del pool
        await pools.create("main", servers.database_url, min_size=1, max_size=1)
    page = page_without_files(collector)
    assert 'acgsperf_pool_opened_connections_total{pool="main"} 3.0' in page
    assert 'acgsperf_pool_closed_connections_total{pool="main",reason="closed"} 3.0' in page
    assert 'acgsperf_pool_use_seconds_count{pool="main"} 2.0' in page
    assert "acgsperf_pool_connections{" not in page
    collector.close()


async def test_the_counts_of_two_pools_with_one_name_do_not_go_back_when_one_is_closed(servers):
    async with PoolManager() as one, PoolManager() as other:
        collector = PerformanceCollector(pools=[one, other], workers_directory="")
        for pools in (one, other):
            await pools.create("main", servers.database_url, min_size=1, max_size=1)
        await one.close()
        assert 'acgsperf_pool_opened_connections_total{pool="main"} 2.0' in page_without_files(collector)


async def test_a_service_that_has_closed_has_published_what_closing_counts(tmp_path, servers):
    settings = Settings(database_url=servers.database_url, db_pool_min_size=1, workers_directory=str(tmp_path))
    async with PerformanceService(settings, handler=None) as service:
        kept = PerformanceCollector(service)
    with opened(tmp_path, "acgsperf", BOUNDS) as reader:
        assert reader.add_others({})["pool_closed_connections"]["default", "closed"] == 1
    kept.close()


def test_a_source_that_is_exported_again_is_not_counted_again(tmp_path):
    source = Routes(10)
    for number in range(10, 13):
        collector = PerformanceCollector(http=source, workers_directory=tmp_path)
        assert requests_on(collector) == (number, 1)
        source.count(1)
        collector.close()
    # Another source with the same labels continues the counts, even if it has counted more.
    collector = PerformanceCollector(http=Routes(20), workers_directory=tmp_path)
    assert requests_on(collector) == (33, 1)
    collector.close()


def test_two_collectors_of_a_process_are_one_process_and_count_each_source_once(tmp_path):
    source = Routes(10)
    one = PerformanceCollector(http=source, workers_directory=tmp_path)
    two = PerformanceCollector(http=source, workers_directory=tmp_path, buckets_s=[0.5, 2])
    three = PerformanceCollector(http=Routes(5), workers_directory=tmp_path)
    two.publish()
    for collector in (one, two, three):
        assert requests_on(collector) == (15, 1)
    three.close()
    one.close()
    for _ in range(2):
        assert requests_on(two) == (15, 1)
    two.close()
    with opened(tmp_path, "acgsperf", BOUNDS) as reader:
        assert "processes" not in reader.add_others({})


def test_parts_with_the_same_labels_keep_their_counts_when_one_is_closed():
    exported = []
    ledger, one, other = Ledger(lambda: exported, BOUNDS), Routes(10), Routes(3)

    def total(*sources):
        exported[:] = [Sources(http=source) for source in sources]
        return ledger.read()[1]

    for open_ in ([one, other], [other], [other], [one, other]):
        assert total(*open_)["http_request_duration_seconds"]["/",][2] == 13
    one.count(1)
    assert total(one)["http_request_duration_seconds"]["/",][:3] == [14, 14, 14]
    del one, open_
    other.latencies = {"/": LatencyHistogram()}
    # It has begun again with 0.
    assert total(other)["http_request_duration_seconds"]["/",][2] == 14
    other.count(2)
    assert total(other)["http_request_duration_seconds"]["/",][2] == 16
    other.latencies = {}
    assert total(other)["http_request_duration_seconds"]["/",][2] == 16


def test_scrapes_in_threads_do_not_count_twice(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as worker, ThreadPoolExecutor(4) as threads:
        for number in range(50):
            list(threads.map(worker.publish, [counts(number)] * 4))
        assert not list(tmp_path.glob("*.new"))
        assert worker.publish(counts(50))["requests"] == {(): 50}


async def test_applications_with_different_labels_can_share_a_directory(tmp_path):
    async with TieredCache(LRUCache(5), namespace="app") as cache:
        pages = []
        for service in ("orders", "users"):
            collector = PerformanceCollector(cache=cache, labels={"service": service}, workers_directory=tmp_path)
            registry = CollectorRegistry()
            registry.register(collector)
            pages.append(generate_latest(registry).decode())
            assert "acgsperf_processes{" + f'service="{service}"' + "} 1.0" in pages[-1]
            _kept.append(collector)
        for collector in _kept:
            collector.close()


_kept = []


async def test_a_collector_that_was_collected_counts_as_ended(tmp_path):
    async with TieredCache(LRUCache(5), namespace="app") as cache:
        PerformanceCollector(cache=cache, workers_directory=tmp_path).publish()
        gc.collect()
        with opened(tmp_path, "acgsperf", BOUNDS) as reader:
            assert "processes" not in reader.add_others({})
