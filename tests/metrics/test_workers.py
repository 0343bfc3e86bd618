"""One page for all workers, with real processes that start and end."""

import asyncio
import errno
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from acgsperf import LatencyHistogram, LRUCache, SettingsError, TieredCache
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.metrics import worker_files, workers
from acgsperf.metrics.prometheus import PerformanceCollector, exposition
from acgsperf.metrics.workers import WorkerFigures

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


def test_what_a_process_closes_keeps_its_counts(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as worker:
        pools = {"pool_timeouts": {("main",): 5}, "pool_connections": {("main",): 2}}
        assert worker.publish(pools) == pools
        # The pool is closed, and later opened again: its counts begin with 0.
        assert worker.publish({}) == {"pool_timeouts": {("main",): 5}}
        assert worker.publish({"pool_timeouts": {("main",): 1}}) == {"pool_timeouts": {("main",): 6}}
        assert worker.publish({"pool_timeouts": {("main",): 2}}) == {"pool_timeouts": {("main",): 7}}
        assert worker.publish(figures(1, 1_000_000))["requests"] == {(): 1}
        again = worker.publish(figures(0, 2_000_000) | {"requests": {(): 0}})
        assert again["request_duration_seconds"][()][:3] == [1, 2, 2]
        assert worker.publish(figures(0))["request_duration_seconds"][()][:3] == [1, 2, 2]


def test_gauges_are_merged_as_their_metric_says(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one, opened(tmp_path, "a", BOUNDS) as other:
        one.publish({"pool_healthy": {("p",): 0}, "pool_oldest_wait_seconds": {("p",): 3.5}, "processes": {(): 1}})
        found = page_of(
            other, {"pool_healthy": {("p",): 1}, "pool_oldest_wait_seconds": {("p",): 1.5}, "processes": {(): 1}}
        )
    assert found == {"pool_healthy": {("p",): 0}, "pool_oldest_wait_seconds": {("p",): 3.5}, "processes": {(): 2}}


def test_a_process_with_other_buckets_or_metrics_does_not_break_the_page(tmp_path):
    with opened(tmp_path, "a", [1_000_000, 2_000_000, 9_000_000]) as old, opened(tmp_path, "a", BOUNDS) as new:
        old.publish(
            {
                "request_duration_seconds": {(): [1, 2, 3, 4, 5]},
                "requests": {("unknown label",): 1},
                "request_errors": {(): [1, 2, 3, 4, 5]},
                "former": {(): 1},
            }
        )
        found = page_of(new, figures(1, 2_000_000))
    assert found["request_duration_seconds"][()][:3] == [1, 3, 5]
    assert found["requests"] == {(): 1}
    assert "former" not in found
    assert not found.get("request_errors")


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
                shown = page_of(one, counts(requests, entries=2))
                assert (shown["requests"], shown["pool_timeouts"]) == ({(): 5}, {("main",): 1})
                assert shown["cache_entries"] == {("app",): 2}
                assert other.add_others({})["requests"] == {(): 5}
        assert page_of(one, counts(9))["requests"] == {(): 9}
        assert other.add_others({})["requests"] == {(): 9}
        assert other.add_others({})["pool_timeouts"] == {("main",): 1}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert not list(tmp_path.glob("*.new"))


def test_a_disk_that_is_full_from_the_beginning_does_not_break_the_page(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as one, full_disk():
        assert page_of(one, counts(5))["requests"] == {(): 5}


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


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_count_what_its_parent_has_counted(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as worker:
        worker.publish(counts(5, timeouts=3))
        # The pool is closed: its counts continue in the parent only.
        worker.publish(counts(5))
        ready, told = os.pipe()
        if (child := os.fork()) == 0:
            worker.publish(counts(5, timeouts=1))
            worker.publish(counts(7, timeouts=2))
            os.write(told, b"x")
            os._exit(0)
        os.read(ready, 1)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
        for _ in range(2):
            shown = page_of(worker, counts(6))
            assert (shown["requests"], shown["pool_timeouts"]) == ({(): 8}, {("main",): 5})


def test_scrapes_in_threads_do_not_count_twice(tmp_path):
    with opened(tmp_path, "a", BOUNDS) as worker, ThreadPoolExecutor(4) as threads:
        for number in range(50):
            closed = [counts(number, timeouts=1), counts(number)] * 2
            list(threads.map(worker.publish, closed))
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
