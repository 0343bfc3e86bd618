"""The alert rules for Prometheus. `metric_files.py` writes them to a file."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from acgsperf.metrics.catalogue import METRICS
from acgsperf.settings import Settings

BY_NAME = {metric.name: metric for metric in METRICS}


@dataclass
class Windows:
    """The times of the alert rules.

    Attributes:
        now: the window for the current values.
        usual: the window before it, whose values the current ones are compared with.
        hold: how long a condition must hold before the alert fires.
        leak: how long an alert fires after a leak.
    """

    now: str = "5m"
    usual: str = "1h"
    hold: str = "1m"
    leak: str = "15m"


@dataclass
class Rule:
    """An alert rule; the description may use the value of the expression."""

    name: str
    severity: str
    expression: str
    hold: str
    summary: str
    description: str


def _counted(name: str, window: str, by: str, labels: str = "", offset: str = "", suffix: str = "") -> str:
    metric = BY_NAME[name]
    known = {"job", "instance", "le", *metric.labels}
    assert set(by.split(", ")) <= known
    chosen = f"{{{labels}}}" if labels else ""
    return f"sum by ({by}) (rate(acgsperf_{metric.exported_name}{suffix}{chosen}[{window}]{offset}))"


def _percentile(share: float, name: str, window: str, by: str, offset: str = "") -> str:
    return f"histogram_quantile({share}, {_counted(name, window, f'{by}, le', offset=offset, suffix='_bucket')})"


def _named(name: str) -> str:
    return f"acgsperf_{BY_NAME[name].exported_name}"


def alert_rules(windows: Windows) -> list[Rule]:
    """Return the alerts: the four of the monitor, and others for pools, circuit breakers and the backplane."""
    targets = Settings()
    now, hold = windows.now, windows.hold
    p95 = _percentile(0.95, "request_duration_seconds", now, "job")
    usual = _percentile(0.95, "request_duration_seconds", windows.usual, "job", f" offset {now}")
    first = 'tier="l1"'
    asked = f"{_counted('cache_hits', now, 'job, cache', first)} + {_counted('cache_misses', now, 'job, cache', first)}"
    share = targets.cache_hit_rate_target
    return [
        Rule(
            *("AcgsperfResponseTime", "warning"),
            f"{p95} > {targets.p95_latency_target_ms / 1e3:g}\nand {p95} > 1.5 * {usual}\n"
            f"and {_counted('requests', now, 'job')} > 1",
            *(hold, "Requests of {{ $labels.job }} are slow"),
            "P95 is {{ $value | humanizeDuration }}. This is over its target, and more than 50 % over "
            f"its value in the last {windows.usual}.",
        ),
        Rule(
            *("AcgsperfHitRate", "warning"),
            f"1 - {_counted('cache_load_waits', now, 'job, cache')} / ({asked}) < {share:g}\nand ({asked}) > 1",
            *(hold, "Cache {{ $labels.cache }} of {{ $labels.job }} has a low hit rate"),
            f"{{{{ $value | humanizePercentage }}}} of the keys did not wait for a loader; the target is {share:.0%}.",
        ),
        Rule(
            *("AcgsperfPoolUnhealthy", "critical", f"{_named('pool_healthy')} == 0", hold),
            "Pool {{ $labels.pool }} of {{ $labels.instance }} is unhealthy",
            "The server cannot be reached. The pool refuses callers.",
        ),
        Rule(
            *("AcgsperfCompliance", "critical"),
            f"sum by (job) (increase({_named('compliance_violations')}[{now}])) > 0\n"
            f"or sum by (job) (increase({_named('http_refused')}[{now}])) > 0",
            *("0s", "Requests to {{ $labels.job }} were refused for their constitutional hash"),
            f"{{{{ $value | humanize }}}} requests were refused in {now}.",
        ),
        Rule(
            *("AcgsperfPoolNearlyExhausted", "warning"),
            f"{_named('pool_used_connections')} / {_named('pool_max_connections')} > 0.9\n"
            f"or {_named('pool_oldest_wait_seconds')} > 1",
            *(hold, "Pool {{ $labels.pool }} of {{ $labels.instance }} is nearly exhausted"),
            "More than 90 % of its connections are in use, or a caller has waited for more than 1 s.",
        ),
        Rule(
            *("AcgsperfConnectionLeak", "warning"),
            f"sum by (job, instance, pool) (increase({_named('pool_leaks')}[{windows.leak}])) > 0",
            *("0s", "Pool {{ $labels.pool }} of {{ $labels.instance }} may have a leak"),
            "A connection was in use for longer than leak_threshold. The log has the stack of the borrower.",
        ),
        Rule(
            *("AcgsperfBreakerOpen", "warning"),
            f'sum by (job, instance, cache, tier) ({_named("cache_breaker_state")}{{state!="closed"}}) > 0',
            *(hold, "Cache {{ $labels.cache }} of {{ $labels.instance }} skips {{ $labels.tier }}"),
            "The circuit breaker is not closed, because the server fails.",
        ),
        Rule(
            *("AcgsperfBackplaneLag", "warning"),
            f"{_percentile(0.99, 'backplane_lag_seconds', now, 'job, instance, cache')} > 1\n"
            f'or sum by (job, instance, cache) ({_named("backplane_state")}{{state!="following"}}) > 0',
            *(hold, "Cache {{ $labels.cache }} of {{ $labels.instance }} gets records of writes late"),
            "Records arrive more than 1 s after the write, or not at all. The log of the process says why.",
        ),
    ]


def rules(windows: Windows | None = None) -> str:
    """Return the alert rules as YAML."""
    return "".join(_written(alert_rules(windows or Windows())))


def _written(found: Iterable[Rule]) -> Iterator[str]:
    yield "# Made by docs/tools/metric_files.py. Change the times and limits to those of your service.\n"
    yield "groups:\n  - name: acgsperf\n    rules:\n"
    for rule in found:
        yield f"      - alert: {rule.name}\n        expr: |\n"
        yield from (f"          {line}\n" for line in rule.expression.splitlines())
        yield f"        for: {rule.hold}\n        labels:\n          severity: {rule.severity}\n        annotations:\n"
        yield f"          summary: {json.dumps(rule.summary)}\n          description: {json.dumps(rule.description)}\n"
