"""The collector, through the client's own exposition and parser; and the dashboard over it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from acgsperf.asgi import PerformanceMiddleware
from acgsperf.metrics.prometheus import PerformanceCollector, exposition

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana-dashboard.json"


def samples(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


async def test_a_registry_takes_a_service_once(source):
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(source))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PerformanceCollector(source, labels={"service": "another"}))
    registry.register(PerformanceCollector(source, namespace="another"))


async def test_what_is_no_service_and_no_label_is_refused(source):
    with pytest.raises(TypeError, match="source must be a service or None, got <TieredCache"):
        PerformanceCollector(source.cache)
    with pytest.raises(TypeError, match="labels must be a str, got a=1"):
        PerformanceCollector(source, labels={"a": 1})


async def test_what_the_service_counts_is_exported(source):
    found = samples(PerformanceCollector(source))
    expected = {
        ("requests_total",): 4,
        ("request_errors_total",): 2,
        ("request_misses_total",): 1,
        ("compliance_violations_total",): 3,
        ("compliance_validations_total", "valid"): 1,
        ("compliance_validations_total", "mismatch"): 1,
        ("compliance_validations_total", "malformed"): 1,
        ("cache_hits_total", "l1"): 1,
        ("cache_misses_total", "l1"): 1,
        ("cache_misses_total", "l2"): 1,
        ("cache_misses_total", "l3"): 1,
        ("cache_entries",): 1,
        ("cache_max_entries",): 10,
        ("cache_breaker_state", "closed", "l2"): 1,
        ("cache_breaker_state", "l2", "open"): 0,
        ("backplane_state", "following"): 1,
        ("backplane_state", "off"): 0,
        ("backplane_sent_total",): 1,
        ("backplane_received_total",): 1,
        ("backplane_applied_total",): 1,
        ("backplane_gaps_total",): 0,
        ("backplane_malformed_total",): 0,
        ("backplane_queued",): 0,
        ("backplane_lag_seconds_count",): 1,
        ("pool_connections", "main"): 2,
        ("pool_used_connections", "main"): 1,
        ("pool_max_connections", "main/replica-1"): 3,
        ("pool_wait_seconds_count", "main"): 1,
        ("request_duration_seconds_bucket", "0.0005"): 1,
        ("request_duration_seconds_bucket", "0.001"): 2,
        ("request_duration_seconds_bucket", "0.005"): 3,
        ("request_duration_seconds_bucket", "30"): 3,
        ("request_duration_seconds_bucket", "+Inf"): 4,
        ("request_duration_seconds_count",): 4,
    }
    assert {key: found[f"acgsperf_{key[0]}", *key[1:]] for key in expected} == expected
    assert found["acgsperf_request_duration_seconds_sum",] == pytest.approx(60.0045, rel=1e-3)


async def test_without_a_backplane_none_is_exported(source_without_backplane):
    assert not [name for name, *_ in samples(PerformanceCollector(source_without_backplane)) if "backplane" in name]


async def test_names_and_constant_labels_are_the_users(source):
    collector = PerformanceCollector(source, namespace="mine", labels={"service": "a"}, buckets_s=[0.001])
    families = list(collector.collect())
    assert all(family.name.startswith("mine_") for family in families)
    assert all(sample.labels["service"] == "a" for family in families for sample in family.samples)


@pytest.mark.parametrize(
    "options",
    [
        {"namespace": "a-b"},
        {"labels": {"__a": "b"}},
        {"buckets_s": [2, 1]},
        {"buckets_s": [0.0, 1]},
        {"buckets_s": [1, 1]},
    ],
    ids=str,
)
def test_what_prometheus_would_not_take_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        PerformanceCollector(**options)


async def test_every_metric_of_the_dashboard_is_exported(source):
    middleware = PerformanceMiddleware(None)
    registry = CollectorRegistry()
    registry.register(PerformanceCollector(source, http=middleware))
    _, page = exposition(registry)()
    exported = set(re.findall(r"^# TYPE (\S+)", page.decode(), re.MULTILINE))
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = set(re.findall(r"acgsperf_\w+", " ".join(queries)))
    assert len(named) > 15
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= exported


def test_the_dashboard_asks_which_data_source():
    dashboard = json.loads(DASHBOARD.read_text())
    assert [variable["type"] for variable in dashboard["templating"]["list"]] == ["datasource"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        for user in (panel, *panel["targets"]):
            assert user["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize(
    ("module", "blocked", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "opentelemetry")],
)
def test_a_missing_extra_says_how_to_install_it(module, blocked, extra):
    code = f"import sys; sys.modules[{blocked!r}] = None; import acgsperf.metrics.{module}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr.rstrip().endswith(f"is not installed: pip install 'acgsperf[{extra}]'")
