"""`acgsperf stats`, against pages that real servers hold."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry

from acgsperf import LatencyHistogram, LRUCache, TieredCache
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.metrics.prometheus import PerformanceCollector, exposition
from acgsperf.workbench.scrape import ScrapeError, _quantile, fetch, figures


def page_of(**options):
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(**options))
    return exposition(registry)()[1]


@contextlib.contextmanager
def held(page, status=200):
    """The address of a page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def stats(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "acgsperf", "stats", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_the_figures_are_those_of_the_service(source):
    found = figures(page_of(source=source).decode())
    assert (found.requests, found.errors, found.violations) == (4, 2, 3)
    assert found.error_rate == pytest.approx(5 / 9)
    assert found.p50_ms == pytest.approx(1.0)
    assert found.p99_ms == pytest.approx(30_000)
    assert found.hit_rates == {"l1": 0.5, "l2": 0, "l3": 0}
    # Of the 6 requests that passed the gate, one reached the handler.
    assert found.hit_rate == pytest.approx(5 / 6)
    assert found.pools["main"] == {"connections": 2, "in_use": 1, "max": 3, "waiting": 0}


async def test_the_command_prints_a_table_and_json(source):
    with held(page_of(source=source)) as url:
        table, as_json = stats(url), stats(url, "--json")
    assert (table.returncode, table.stderr) == (0, "")
    assert re.search(r"P50, estimated from buckets\W+1\.000 ms", table.stdout)
    assert re.search(r"Hits per request\W+83\.33%", table.stdout)
    assert re.search(r"Hits per look-up in L1\W+50\.00%", table.stdout)
    assert (as_json.returncode, as_json.stderr) == (0, "")
    assert json.loads(as_json.stdout)["requests"] == 4


def middleware_with(**routes):
    middleware = PerformanceMiddleware(None)
    for route, latencies in routes.items():
        middleware._routes._latencies[f"/{route}"] = histogram = LatencyHistogram()
        histogram.record_many(latencies)
    return middleware


def test_a_page_of_a_middleware_alone_has_figures_too():
    found = figures(page_of(http=PerformanceMiddleware(None)).decode())
    assert (found.requests, found.error_rate, found.hit_rate, found.p50_ms, found.pools) == (0, None, None, None, {})
    found = figures(page_of(http=middleware_with(a=[1_000_000] * 3, b=[5_000_000] * 7)).decode())
    assert (found.requests, found.errors, found.violations, found.error_rate) == (10, None, 0, None)
    assert found.p99_ms == pytest.approx(5, rel=0.02)
    assert list(found.routes) == ["/b", "/a"]
    assert (found.routes["/a"].responses, found.routes["/a"].p50_ms) == (3, pytest.approx(0.75))


def test_the_command_shows_an_application_that_has_http_figures_alone():
    routes = {f"r{number}": [1_000_000] * (number + 1) for number in range(12)}
    with held(page_of(http=middleware_with(**routes))) as url:
        table, as_json = stats(url), stats(url, "--json")
    assert (table.returncode, table.stderr) == (0, "")
    assert re.search(r"Requests\W+78\W", table.stdout)
    assert re.search(r"Errors\W+-\W", table.stdout)
    assert re.search(r"Route /r11\W+12 responses, P95 0\.9\d\d ms", table.stdout)
    assert re.search(r"Other routes\W+2, see --json", table.stdout)
    assert len(json.loads(as_json.stdout)["routes"]) == 12


async def test_a_page_of_caches_alone_has_figures_too():
    async with TieredCache(LRUCache(5), namespace="one") as one, TieredCache(LRUCache(5), namespace="two") as two:
        await one.get("a")
        page = page_of(cache=[one, two]).decode()
    found = figures(page)
    assert (found.requests, found.hit_rates) == (0, {"one l1": 0})
    assert ("Hits per look-up in one L1", "0.00%") in found.rows()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("http://", "must begin with http"),
        ("http://[", "cannot be read"),
        ("http://127.0.0.1:1/metrics", "refused"),
        ("http://127.0.0.1:999999/metrics", "cannot be read"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line_and_status_2(url, message):
    done = stats(url)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"acgsperf: [^\n]+\n", done.stderr)
    assert message in done.stderr


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"a 1\n",
        b"acgsperf_requests_total NaN\n",
        b"acgsperf_requests_total{ 1\n",
        b'acgsperf_request_duration_seconds_bucket{le="NaN"} 1\n',
        b'acgsperf_http_request_duration_seconds_bucket{route="/",le="nan"} 1\n',
        b'acgsperf_http_request_duration_seconds_bucket{route="/",le="-1"} 1\n',
    ],
    ids=repr,
)
def test_what_is_no_page_of_ours_is_an_error(page):
    with held(page) as url, pytest.raises(ScrapeError):
        figures(fetch(url))


def test_a_status_is_told():
    with held(b"", 404) as url, pytest.raises(ScrapeError, match="404"):
        fetch(url)


def test_a_server_that_says_nothing_is_left_in_time():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(ScrapeError, match=r"no answer within 0\.05 s"):
            fetch(url, 0.05)


def test_the_look_up_of_the_name_has_the_same_deadline(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **options: released.wait(60))
    try:
        with pytest.raises(ScrapeError, match=r"no answer within 0\.05 s"):
            fetch("http://a-name-that-takes-long/", 0.05)
    finally:
        released.set()


def test_a_page_that_takes_long_to_read_is_left_in_time():
    labels = ",".join(f'a{number}="{number}"' for number in range(20_000))
    with pytest.raises(ScrapeError, match="a line must have at most 65,536 characters"):
        figures(f"acgsperf_processes 1\nacgsperf_x{{{labels}}} 1\n")
    page = "".join(f'acgsperf_x{{a="{number}"}} 1\n' for number in range(500_000))
    began = time.process_time()
    with pytest.raises(ScrapeError, match="the page cannot be read before the deadline"):
        figures(page, timeout=0.01)
    # All of it takes several seconds.
    assert time.process_time() - began < 1
    assert figures("acgsperf_processes 1\n", timeout=60).processes == 1


def test_names_that_clients_choose_do_not_control_the_terminal():
    nasty = "\x1b]0;owned\x07\x1b[2J\n\u202e\x9b"
    routes = middleware_with(**{nasty: [1_000_000]})
    with held(page_of(http=routes)) as url:
        done = stats(url)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"Route /\x1b]0;owned\x07\x1b[2J\n\u202e\x9b" in done.stdout
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    with held(b"acgsperf_processes \x1b[2J 1\n") as url:
        done = stats(url)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"acgsperf: [^\n]+\n", done.stderr)
    assert done.stderr[:-1].isprintable()


def test_a_page_without_our_metrics_says_which_name_was_expected():
    with pytest.raises(ScrapeError, match=r"^the page has no metrics of acgsperf: no name begins with other_$"):
        figures("a 1\n", "other")


def test_a_quantile_is_linear_within_a_bucket():
    buckets = {0.001: 50, 0.002: 100, float("inf"): 100}
    assert _quantile(buckets, 0.5) == pytest.approx(1.0)
    assert _quantile(buckets, 0.75) == pytest.approx(1.5)
    assert _quantile({0.001: 0, float("inf"): 1}, 0.5) == pytest.approx(1.0)
