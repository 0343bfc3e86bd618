"""Writes the files that are made from the list of metrics: the table of the guide, the dashboard and the alert rules.

    python docs/tools/metric_files.py

A test checks that the files are up to date.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alert_rules

from acgsperf.metrics.catalogue import METRICS
from acgsperf.metrics.metric import Kind, Metric

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "metrics.md"
DASHBOARD = ROOT / "examples" / "grafana-dashboard.json"
RULES = ROOT / "examples" / "prometheus-rules.yml"

BY_NAME = alert_rules.BY_NAME
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
INTERVAL = "$__rate_interval"
BEGIN, END = "<!-- metrics: made by docs/tools/metric_files.py -->\n", "<!-- end of metrics -->\n"


def series(name: str, suffix: str = "", labels: str = "") -> str:
    """Return a selector of a metric for the chosen instances, caches and pools."""
    metric = BY_NAME[name]
    chosen = ['instance=~"$instance"']
    chosen += [f'{label}=~"${label}"' for label in ("cache", "pool") if label in metric.labels]
    return f"acgsperf_{metric.exported_name}{suffix}{{{','.join([*chosen, *filter(None, [labels])])}}}"


def _by(metric: Metric, by: Iterable[str], more: Iterable[str] = ()) -> str:
    by = tuple(by)
    assert set(by) <= set(metric.labels), f"{metric.name} has no {by}"
    labels = ", ".join([*by, *more])
    return f" by ({labels}) " if labels else ""


def rate(name: str, *by: str, labels: str = "") -> str:
    """Return a query for the rate of a counter, per second."""
    assert BY_NAME[name].kind is Kind.COUNTER
    return f"sum{_by(BY_NAME[name], by)}(rate({series(name, labels=labels)}[{INTERVAL}]))"


def gauge(name: str, *by: str, labels: str = "", function: str = "sum") -> str:
    """Return a query for a gauge."""
    assert BY_NAME[name].kind is Kind.GAUGE
    return f"{function}{_by(BY_NAME[name], by)}({series(name, labels=labels)})"


def buckets(name: str, *by: str) -> str:
    """Return a query for the rate of latencies within each bound, per second."""
    assert BY_NAME[name].kind is Kind.HISTOGRAM
    return f"sum{_by(BY_NAME[name], by, ['le'])}(rate({series(name, '_bucket')}[{INTERVAL}]))"


def quantile(share: float, name: str, *by: str) -> str:
    """Return a query for a percentile."""
    return f"histogram_quantile({share}, {buckets(name, *by)})"


@dataclass
class Panel:
    """A panel of the dashboard: its title, the unit of its values, and (query, legend) pairs."""

    title: str
    unit: str
    queries: list[tuple[str, str]]
    heat_map: bool = False


def heat(title: str, name: str) -> Panel:
    """Return a heat map of latencies."""
    return Panel(title, "s", [(buckets(name), "{{le}}")], heat_map=True)


def _panels() -> dict[str, list[Panel]]:
    """Return the panels, by the title of their row."""
    hits, misses = rate("cache_hits", "cache", "tier"), rate("cache_misses", "cache", "tier")
    first = 'tier="l1"'
    asked = f"{rate('cache_hits', 'cache', labels=first)} + {rate('cache_misses', 'cache', labels=first)}"
    return {
        "Requests": [
            Panel(
                *("Requests", "reqps"),
                [
                    (rate("requests"), "answered"),
                    (rate("request_errors"), "failed"),
                    (rate("request_misses"), "missed"),
                    (rate("compliance_violations"), "refused"),
                ],
            ),
            Panel(
                *("Request latency", "s"),
                [(quantile(q, "request_duration_seconds"), f"P{q * 100:g}") for q in (0.5, 0.95, 0.99)],
            ),
            heat("Request latency, all", "request_duration_seconds"),
            Panel(
                *("Compliance", "reqps"),
                [
                    (rate("compliance_validations", "verdict"), "{{verdict}}"),
                    (rate("http_refused"), "refused by the middleware"),
                ],
            ),
            Panel(
                *("Timed checks of a hash, P95", "s"), [(quantile(0.95, "compliance_validation_seconds"), "duration")]
            ),
        ],
        "HTTP": [
            Panel(
                *("Responses by route", "reqps"),
                [
                    (
                        f"sum by (route) (rate({series('http_request_duration_seconds', '_count')}[{INTERVAL}]))",
                        "{{route}}",
                    )
                ],
            ),
            Panel(
                *("Latency by route, P99", "s"),
                [(quantile(0.99, "http_request_duration_seconds", "route"), "{{route}}")],
            ),
            heat("Latency of responses, all", "http_request_duration_seconds"),
            Panel(
                *("Response cache", "reqps"),
                [(rate("http_cache_requests", "result"), "{{result}}"), (rate("http_cache_stores"), "stored")],
            ),
            Panel(
                *("Connections in use, by route", "short"),
                [(rate("http_connection_use_seconds", "route", "pool"), "{{route}}: {{pool}}")],
            ),
        ],
        "Caches": [
            Panel(
                *("Keys that did not wait for a loader", "percentunit"),
                [(f"1 - {rate('cache_load_waits', 'cache')} / ({asked})", "{{cache}}")],
            ),
            Panel(*("Hit rate by tier", "percentunit"), [(f"{hits} / ({hits} + {misses})", "{{cache}} {{tier}}")]),
            Panel(
                *("Loads", "ops"),
                [
                    (rate("cache_loads", "cache"), "{{cache}} loads"),
                    (rate("cache_load_errors", "cache"), "{{cache}} failed"),
                    (rate("cache_load_joins", "cache"), "{{cache}} joined"),
                    (rate("cache_refreshes", "cache"), "{{cache}} refreshes"),
                    (rate("cache_stale_served", "cache"), "{{cache}} stale served"),
                ],
            ),
            Panel(
                *("Entries in L1", "short"),
                [
                    (gauge("cache_entries", "cache"), "{{cache}}"),
                    (gauge("cache_max_entries", "cache"), "{{cache}} limit"),
                ],
            ),
            Panel(*("Evictions", "ops"), [(rate("cache_evictions", "cache", "reason"), "{{cache}} {{reason}}")]),
            Panel(
                *("Prediction", "ops"),
                [
                    (rate("cache_prediction_issued", "cache"), "{{cache}} fetched"),
                    (rate("cache_prediction_used", "cache"), "{{cache}} used"),
                    (rate("cache_prediction_wasted", "cache"), "{{cache}} useless"),
                    (rate("cache_prediction_late", "cache"), "{{cache}} late"),
                ],
            ),
            heat("Reads from lower tiers", "cache_access_seconds"),
            Panel(
                *("Failures of lower tiers", "ops"),
                [
                    (rate("cache_errors", "cache", "tier", "error"), "{{cache}} {{tier}} {{error}}"),
                    (rate("cache_skipped", "cache", "tier"), "{{cache}} {{tier}} skipped"),
                    (rate("cache_deadlines", "cache"), "{{cache}} deadlines"),
                ],
            ),
            Panel(
                *("Hit rate of L1 by policy setting, estimated", "percentunit"),
                [(gauge("cache_policy_hit_rate", "cache", "setting", function="avg"), "{{cache}} {{setting}}")],
            ),
            Panel(
                *("Time since the policy setting changed", "s"),
                [(gauge("cache_policy_age_seconds", "cache", function="min"), "{{cache}}")],
            ),
            Panel(
                *("Connections of lower tiers", "short"),
                [(gauge("cache_connections", "cache", "tier"), "{{cache}} {{tier}}")],
            ),
            Panel(
                *("New connections of lower tiers", "ops"),
                [
                    (rate("cache_opened_connections", "cache", "tier"), "{{cache}} {{tier}} opened"),
                    (rate("cache_connect_errors", "cache", "tier"), "{{cache}} {{tier}} failed"),
                ],
            ),
            Panel(
                *("Time to open a connection of a lower tier, P95", "s"),
                [(quantile(0.95, "cache_connect_seconds", "cache", "tier"), "{{cache}} {{tier}}")],
            ),
            Panel(
                *("Circuit breakers that are not closed", "short"),
                [(gauge("cache_breaker_state", "cache", "tier", labels='state!="closed"'), "{{cache}} {{tier}}")],
            ),
        ],
        "Between processes": [
            Panel(
                *("Backplanes by state", "short"), [(gauge("backplane_state", "cache", "state"), "{{cache}} {{state}}")]
            ),
            heat("Lag of the backplane", "backplane_lag_seconds"),
            Panel(
                *("Records", "ops"),
                [
                    (rate("backplane_sent", "cache"), "{{cache}} sent"),
                    (rate("backplane_applied", "cache"), "{{cache}} applied"),
                    (rate("backplane_gaps", "cache"), "{{cache}} gaps"),
                ],
            ),
            Panel(*("Processes", "short"), [(gauge("processes"), "processes")]),
        ],
        "Pools": [
            Panel(
                *("Connections", "short"),
                [
                    (gauge("pool_used_connections", "pool"), "{{pool}} used"),
                    (gauge("pool_idle_connections", "pool"), "{{pool}} idle"),
                    (gauge("pool_max_connections", "pool"), "{{pool}} limit"),
                    (gauge("pool_waiting_requests", "pool"), "{{pool}} waiting"),
                ],
            ),
            Panel(
                *("Unhealthy pools", "short"), [(f"1 - {gauge('pool_healthy', 'pool', function='min')}", "{{pool}}")]
            ),
            heat("Waits for a connection", "pool_wait_seconds"),
            heat("Use of a connection", "pool_use_seconds"),
            Panel(
                *("Time to open a connection, P95", "s"), [(quantile(0.95, "pool_create_seconds", "pool"), "{{pool}}")]
            ),
            Panel(
                *("Longest wait of a waiting caller", "s"),
                [(gauge("pool_oldest_wait_seconds", "pool", function="max"), "{{pool}}")],
            ),
            Panel(
                *("Failures of pools", "ops"),
                [
                    (rate("pool_timeouts", "pool"), "{{pool}} timeouts"),
                    (rate("pool_saturations", "pool"), "{{pool}} saturations"),
                    (rate("pool_connect_errors", "pool"), "{{pool}} connect errors"),
                    (rate("pool_leaks", "pool"), "{{pool}} leaks"),
                ],
            ),
        ],
    }


def _rest(shown: str) -> list[Panel]:
    """Return a panel for every metric that no other panel shows."""
    panels = []
    for metric in METRICS:
        if f"acgsperf_{metric.name}" not in shown:
            query = {Kind.COUNTER: rate, Kind.GAUGE: gauge}[metric.kind](metric.name, *metric.labels)
            legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels)
            unit = "ops" if metric.kind is Kind.COUNTER else "short"
            panels.append(Panel(metric.help.removesuffix("."), unit, [(query, legend)]))
    return panels


def _variables() -> list[dict[str, Any]]:
    def chosen_from(name: str, metric: str, label: str) -> dict[str, Any]:
        among = "" if label == "instance" else '{instance=~"$instance"}'
        query = f"label_values(acgsperf_{metric}{among}, {label})"
        return {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": name},
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": ["All"], "value": ["$__all"]},
            "options": [],
            "refresh": 2,
            "regex": "",
            "sort": 1,
        }

    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "current": {},
            "options": [],
            "refresh": 1,
            "regex": "",
        },
        chosen_from("instance", "processes", "instance"),
        chosen_from("cache", BY_NAME["cache_entries"].exported_name, "cache"),
        chosen_from("pool", BY_NAME["pool_connections"].exported_name, "pool"),
    ]


def _drawn(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "id": number,
        "type": "heatmap" if panel.heat_map else "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 8, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(ord("A") + position), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for position, (query, legend) in enumerate(panel.queries)
        ],
    }
    if panel.heat_map:
        drawn["options"] = {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "steps": 64, "reverse": False},
            "filterValues": {"le": 1e-9},
            "tooltip": {"mode": "single", "yHistogram": False},
            "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
        }
        for target in drawn["targets"]:
            target["format"] = "heatmap"
    return drawn


def dashboard() -> str:
    """Return the dashboard as JSON."""
    rows = _panels()
    shown = json.dumps([panel.queries for panels in rows.values() for panel in panels])
    drawn: list[dict[str, Any]] = []
    y = number = 0
    for title, panels in [*rows.items(), ("Everything else", _rest(shown))]:
        number += 1
        row: dict[str, Any] = {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": title not in rows,
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
            "panels": [],
        }
        drawn.append(row)
        y += 1
        for position, panel in enumerate(panels):
            number += 1
            placed = _drawn(panel, number, 8 * (position % 3), y + 8 * (position // 3))
            (row["panels"] if row["collapsed"] else drawn).append(placed)
        y += 8 * -(-len(panels) // 3)
    return (
        json.dumps(
            {
                "title": "acgsperf",
                "uid": "acgsperf",
                "tags": ["acgsperf"],
                "schemaVersion": 39,
                "version": 2,
                "editable": True,
                "refresh": "30s",
                "time": {"from": "now-1h", "to": "now"},
                "timezone": "",
                "annotations": {"list": []},
                "templating": {"list": _variables()},
                "panels": drawn,
            },
            indent=2,
        )
        + "\n"
    )


def guide(text: str) -> str:
    """Return the text of the guide with the current table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{''.join(_table())}\n{END}{after}"


def _table() -> Iterator[str]:
    yield "| metric | type | labels | meaning | in OpenTelemetry |\n|---|---|---|---|---|\n"
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        name = metric.instrument
        if metric.kind is Kind.HISTOGRAM and not name.startswith("db."):
            name += ".quantile"
        yield f"| `{metric.exported_name}` | {metric.kind} | {labels} | {metric.help.removesuffix('.')} | `{name}` |\n"


if __name__ == "__main__":
    GUIDE.write_text(guide(GUIDE.read_text()))
    DASHBOARD.write_text(dashboard())
    RULES.write_text(alert_rules.rules())
