"""The list of metrics: it contains all counts of the caches, tiers, backplanes and pools."""

from dataclasses import fields

import msgspec
import pytest

from acgsperf._native.predicting import PredictionStats
from acgsperf._native.types import CacheStats
from acgsperf.backplane import BackplaneStats
from acgsperf.cache.types import TieredStats
from acgsperf.metrics.catalogue import ATTRIBUTES, METRICS, Kind
from acgsperf.metrics.opentelemetry import INSTRUMENTS
from acgsperf.pool.options import PoolStats
from acgsperf.tiers.base import TierStats

# Counts whose metrics have another name.
RENAMED = {
    "size": "cache_entries",
    "maxsize": "cache_max_entries",
    "maxweight": "cache_max_weight",
    "expirations": "cache_evictions",
    "joined": "cache_load_joins",
    "missed": "cache_load_waits",
    "dropped": "cache_dropped_writes",
    "unrepaired": "cache_unrepaired_writes",
    "breaker": "cache_breaker_state",
    "latency": "cache_access_seconds",
    "lag": "backplane_lag_seconds",
}
OF_POOLS = {
    "size": "pool_connections",
    "idle": "pool_idle_connections",
    "in_use": "pool_used_connections",
    "waiting": "pool_waiting_requests",
    "min_size": "pool_min_connections",
    "max_size": "pool_max_connections",
    "target_size": "pool_target_connections",
    "opened": "pool_opened_connections",
    "closed": "pool_closed_connections",
    "failed_connects": "pool_connect_errors",
    "oldest_wait_s": "pool_oldest_wait_seconds",
    "replica_lag_s": "pool_replica_lag_seconds",
    "wait": "pool_wait_seconds",
    "use": "pool_use_seconds",
    "create": "pool_create_seconds",
}
NAMES = {metric.name for metric in METRICS}


def counts_of(stats):
    if isinstance(stats, type) and issubclass(stats, msgspec.Struct):
        return set(stats.__struct_fields__)
    return {field.name for field in fields(stats)}


@pytest.mark.parametrize(
    ("stats", "prefix", "renamed"),
    [
        (CacheStats, "cache", RENAMED),
        (TierStats, "cache", RENAMED),
        (TieredStats, "cache", RENAMED | {"l1": "cache_hits", "l2": "cache_hits", "l3": "cache_hits"}),
        (PredictionStats, "cache_prediction", RENAMED),
        (BackplaneStats, "backplane", RENAMED),
        (PoolStats, "pool", OF_POOLS),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_everything_that_stats_knows_is_a_metric(stats, prefix, renamed):
    metrics = {renamed.get(count, f"{prefix}_{count}") for count in counts_of(stats)} - {
        "cache_backplane",
        "cache_prediction",
    }
    assert metrics <= NAMES


def test_a_name_is_there_once():
    assert len(NAMES) == len(METRICS)


def test_every_label_has_an_attribute():
    assert {label for metric in METRICS for label in metric.labels} == ATTRIBUTES.keys()


def test_metrics_that_share_an_instrument_differ_in_an_attribute_only():
    for metrics in INSTRUMENTS.values():
        assert len({(metric.kind, metric.unit, metric.labels, metric.merge) for metric in metrics}) == 1
        assert len({metric.otel_attributes for metric in metrics}) == len(metrics)


def test_names_follow_the_conventions_of_prometheus():
    for metric in METRICS:
        assert not metric.name.endswith(("_total", "_count", "_bucket", "_sum"))
        assert metric.name.endswith("_seconds") is (metric.unit == "s")
        assert metric.unit == "s" or metric.kind is not Kind.HISTOGRAM
        assert metric.help.endswith(".")
