"""The files that are made from the list of metrics: the table of the guide, the dashboard and the alert rules.

A real Prometheus tries them with a service that is overloaded and loses its servers.
"""

import asyncio
import importlib
import json
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from acgsperf import (
    AdaptiveCache,
    ComplianceError,
    PerformanceService,
    PoolManager,
    RedisTier,
    Settings,
    TieredCache,
)
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.backplane.base import BackplaneState
from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.metric import Merge
from acgsperf.metrics.prometheus import PerformanceCollector, exposition
from acgsperf.testing.server_processes import PrivateRedis

TOOLS = Path(__file__).parents[2] / "docs" / "tools"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs prometheus and promtool, of Debian's package prometheus",
)


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(TOOLS)
        yield importlib.import_module("metric_files")
    for name in ("metric_files", "alert_rules"):
        del sys.modules[name]


def queries_of(dashboard):
    """The queries of all panels, including those in a collapsed row."""
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", ()))]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_the_files_are_those_that_the_list_makes(made):
    hint = "run python docs/tools/metric_files.py"
    assert made.DASHBOARD.read_text() == made.dashboard(), hint
    assert made.RULES.read_text() == made.alert_rules.rules(), hint
    assert made.GUIDE.read_text() == made.guide(made.GUIDE.read_text()), hint


def test_the_guide_lists_every_metric(made):
    listed = re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) \|", made.GUIDE.read_text(), re.MULTILINE)
    assert listed == [metric.exported_name for metric in METRICS]


def test_the_guide_says_which_gauges_are_not_added_up(made):
    (paragraph,) = re.findall(r"^- \*\*Gauges\*\*.*?(?=^- )", made.GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    _, exceptions = paragraph.split("There are exceptions")
    not_added = {metric.name for metric in METRICS if metric.merge is not Merge.SUM}
    assert not_added <= set(re.findall(r"`(\w+)`", exceptions))


def test_the_dashboard_shows_every_metric(made):
    queries = " ".join(queries_of(json.loads(made.dashboard())))
    assert [metric.name for metric in METRICS if f"acgsperf_{metric.name}" not in queries] == []


def test_the_dashboard_has_variables_and_heat_maps(made):
    dashboard = json.loads(made.dashboard())
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query", "cache": "query", "pool": "query"}
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", ()))]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len([panel for panel in panels if panel["type"] == "heatmap"]) == 6
    for panel in panels:
        for user in (panel, *panel.get("targets", ())) if panel["type"] != "row" else ():
            assert user["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel.get("targets", ()):
            assert 'instance=~"$instance"' in target["expr"]
            assert target.get("format", "time_series") == ("heatmap" if panel["type"] == "heatmap" else "time_series")


@needs_prometheus
def test_promtool_accepts_the_rules(made):
    done = subprocess.run(["promtool", "check", "rules", made.RULES], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SUCCESS: 8 rules found" in done.stdout


def test_an_alert_fires_in_each_state_of_a_backplane_without_records(made):
    (rule,) = [rule for rule in made.alert_rules.alert_rules(made.alert_rules.Windows()) if "Backplane" in rule.name]
    (operator, text) = re.search(r'_backplane_state\{state(=~|!=)"([^"]+)"\}', rule.expression).groups()
    fires = {state for state in BackplaneState if (re.fullmatch(text, state.value) is None) == (operator == "!=")}
    # It is OFF, for example, if the server refuses it.
    assert fires == set(BackplaneState) - {BackplaneState.FOLLOWING}


class Prometheus:
    """A Prometheus that scrapes one page every second."""

    CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: app
    static_configs: [{{targets: ["{target}"]}}]
"""

    def __init__(self, folder, target, rules):
        (folder / "rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(self.CONFIGURATION.format(rules=folder / "rules.yml", target=target))
        # Prometheus does not print which port it has chosen.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    async def get(self, path, **parameters):
        try:
            response = await self.client.get(path, params=parameters)
        except httpx.TransportError:
            # It is still starting.
            return None
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def query(self, expression):
        data = await self.get("/query", query=expression)
        return None if data is None else data["result"]

    async def firing(self):
        data = await self.get("/alerts")
        return {alert["labels"]["alertname"] for alert in data["alerts"] if alert["state"] == "firing"}

    async def close(self):
        await self.client.aclose()
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def private_redis(folder):
    redis = PrivateRedis(folder)
    redis.start()
    redis.wait(lambda: None)
    try:
        yield redis
    finally:
        redis.stop()


class Overload:
    """A service under load. A test changes its load and its servers."""

    def __init__(self, service, pool, other):
        self.service, self.pool, self.other = service, pool, other
        self.delay = 0.0
        self.new_keys = self.wrong_hashes = False
        self.hold = asyncio.Event()
        self.tasks = []
        service.handler = self.handle

    async def handle(self, request):
        await asyncio.sleep(self.delay)
        return request["id"]

    async def send(self):
        """Send requests, and write to another cache of the namespace, until the task is cancelled."""
        number = 0
        while True:
            number += 1
            key = secrets.token_hex(4) if self.new_keys else number % 10
            await self.service.process_request({"id": key})
            await self.other.set(f"{number % 10}", number)
            if self.wrong_hashes:
                with pytest.raises(ComplianceError):
                    await self.service.process_request({"id": 1, "constitutional_hash": "0" * 16})
            await asyncio.sleep(0.005)

    async def borrow(self):
        async with self.pool.acquire():
            await self.hold.wait()

    def start(self, work):
        self.tasks.append(asyncio.create_task(work))

    async def stop(self):
        self.hold.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def served(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none", lifespan="off"))
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def ok(scope, receive, send):
    scope["route"] = SimpleNamespace(path="/items/{id}")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def monitored(made, victim, scratch, tmp_path, l1, **sources):
    """A service with every kind of part, and a Prometheus that has scraped it for a while."""
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(private_redis(scratch))
        caches = [
            await stack.enter_async_context(
                TieredCache(l1, RedisTier(redis.url, deadline=2), namespace="app", backplane_timeout=2, prediction=True)
            )
            for l1 in (l1, AdaptiveCache(1_000))
        ]
        pools = await stack.enter_async_context(PoolManager(interval=0.5))
        pool = await pools.create("main", victim.dsn, min_size=1, max_size=2, leak_threshold=0.5)
        settings = Settings()
        service = await stack.enter_async_context(PerformanceService(settings, cache=caches[0], pools=pools))
        overload = Overload(service, pool, caches[1])
        registry = CollectorRegistry()
        app = PerformanceMiddleware(ok, metrics=exposition(registry))
        app._routes.record("/items/{id}", time.perf_counter_ns())
        app._routes.note_connections("/items/{id}", {"main": (1, 1)})
        registry.register(PerformanceCollector(service, http=app, **sources))
        address = await stack.enter_async_context(served(app))
        windows = made.alert_rules.Windows(now="5s", usual="20s", hold="1s", leak="60s")
        prometheus = Prometheus(tmp_path, address, made.alert_rules.rules(windows))
        stack.push_async_callback(prometheus.close)
        stack.push_async_callback(overload.stop)
        overload.start(overload.send())
        async with asyncio.timeout(60):
            # Until there are earlier response times to compare with.
            while not await prometheus.query("rate(acgsperf_requests_total[5s] offset 5s) > 0"):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        yield prometheus, overload, redis, victim


@needs_prometheus
async def test_every_query_is_answered_and_every_alert_fires_in_an_overload(
    made, victim, scratch, tmp_path, experienced_l1, limit, balancer
):
    parts = victim, scratch, tmp_path, experienced_l1(1_000)
    async with monitored(made, *parts, limit=limit, balancers=balancer) as (prometheus, overload, redis, server):
        # The other alerts depend on latencies, and this machine may be busy.
        certain = {
            "AcgsperfPoolUnhealthy",
            "AcgsperfCompliance",
            "AcgsperfConnectionLeak",
            "AcgsperfPoolNearlyExhausted",
        }
        assert certain.isdisjoint(await prometheus.firing())
        await try_dashboard(prometheus, json.loads(made.dashboard()))
        rules = (await prometheus.get("/rules"))["groups"][0]["rules"]
        assert [rule["health"] for rule in rules] == ["ok"] * len(rules)
        expected = {rule["name"] for rule in rules}
        fired = set()

        async def until(*names):
            async with asyncio.timeout(90):
                while not fired.issuperset(names):
                    await asyncio.sleep(0.2)
                    fired.update(await prometheus.firing())

        # More requests than the handler and the pool can serve, and with a wrong hash.
        overload.delay, overload.new_keys, overload.wrong_hashes = 0.02, True, True
        for _ in range(10):
            overload.start(overload.send())
            overload.start(overload.borrow())
        await until("AcgsperfResponseTime", "AcgsperfHitRate", "AcgsperfCompliance")
        await until("AcgsperfPoolNearlyExhausted", "AcgsperfConnectionLeak")
        assert "AcgsperfPoolUnhealthy" not in fired
        redis.process.send_signal(signal.SIGKILL)
        server.kill()
        await until("AcgsperfPoolUnhealthy", "AcgsperfBreakerOpen", "AcgsperfBackplaneLag")
        assert fired == expected


async def try_dashboard(prometheus, dashboard):
    for query in queries_of(dashboard):
        filled = query.replace("$__rate_interval", "5s")
        for variable in ("instance", "cache", "pool"):
            filled = filled.replace(f"${variable}", ".*")
        assert "$" not in filled
        assert await prometheus.query(filled), filled
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            found = await prometheus.query(f"count by ({label}) ({metric.replace('$instance', '.*')})")
            assert all(result["metric"][label] for result in found)
            assert found
