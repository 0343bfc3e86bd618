"""The list of metrics: it contains all counts of the caches, tiers, backplanes and pools."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import msgspec

import acgsperf
from acgsperf import (
    ComplianceValidator,
    ConnectionPool,
    LatencyHistogram,
    LRUCache,
    PostgresTier,
    RedisTier,
    TieredCache,
)
from acgsperf._native.prediction_stats import PredictionClass
from acgsperf._native.stats import PolicyStats
from acgsperf.asgi import ConcurrencyLimitStats, PerformanceMiddleware
from acgsperf.backplane import BackplaneStats
from acgsperf.cache.histograms import histograms_of
from acgsperf.cache.types import TieredStats
from acgsperf.metrics.catalogue import ATTRIBUTES, METRICS
from acgsperf.metrics.figures import gather
from acgsperf.metrics.metric import Kind
from acgsperf.metrics.opentelemetry import INSTRUMENTS
from acgsperf.metrics.source import HttpCounts, LimitCounts, Reading, RequestCounts
from acgsperf.pool.options import PoolStats
from acgsperf.service.traffic import Counts
from acgsperf.tiers.base import ConnectionStats, TierStats
from acgsperf.validator import ValidatorMetrics

# Figures that change no metric, and why.
SUMMARIES = {
    (TierStats, "latency"): "cache_access_seconds",
    (ConnectionStats, "connect"): "cache_connect_seconds",
    (BackplaneStats, "lag"): "backplane_lag_seconds",
    (PoolStats, "wait"): "pool_wait_seconds",
    (PoolStats, "use"): "pool_use_seconds",
    (PoolStats, "create"): "pool_create_seconds",
    (ValidatorMetrics, "latency"): "compliance_validation_seconds",
}
# Prediction decides by itself with these figures of up to 32 classes. `cache_prediction_classes` has the active ones.
OF_PREDICTION = {
    (PredictionClass, field.name): "cache_prediction_classes"
    for field in fields(PredictionClass)
    if field.name != "active"
}
EXCEPTIONS = SUMMARIES | OF_PREDICTION
NAMES = {metric.name for metric in METRICS}


def made(hint):
    """A value of a type, as the package declares it. No optional part is missing."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return made(next(argument for argument in arguments if argument is not NoneType))
    if origin in (dict, Mapping):
        return {made(arguments[0]): made(arguments[1])}
    if origin is list:
        return [made(arguments[0])]
    if origin is tuple:
        return (made(arguments[0]),) if Ellipsis in arguments else tuple(map(made, arguments))
    if origin is Literal:
        return arguments[0]
    if hint is RequestCounts:
        return made(Counts)
    if hint is LimitCounts:
        return made(ConcurrencyLimitStats)
    if hint is LatencyHistogram:
        histogram = LatencyHistogram()
        histogram.record(1_000_000)
        return histogram
    if issubclass(hint, Enum):
        return next(iter(hint))
    if hint in (int, float, str, bool):
        return {int: 7, float: 7.5, str: "text", bool: False}[hint]
    return hint(**{name: made(found) for name, found in members(hint).items()})


def members(owner):
    hints = get_type_hints(owner)
    return {name: hints[name] for name in getattr(owner, "__struct_fields__", None) or [f.name for f in fields(owner)]}


def changes(value, path=()):
    """For each figure in a value: where it is, and the value with that figure changed."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ((where, {**value, key: changed}) for where, changed in changes(inner, (*path, (Mapping, key))))
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            for where, changed in changes(inner, path):
                yield where, type(value)([*value[:position], changed, *value[position + 1 :]])
    elif isinstance(value, LatencyHistogram):
        more = LatencyHistogram()
        more.record_many([1_000_000, 2_000_000])
        yield path, more
    elif isinstance(value, Enum):
        yield path, next(other for other in type(value) if other is not value)
    elif isinstance(value, bool | int | float):
        yield path, not value if isinstance(value, bool) else value + 1
    elif isinstance(value, str):
        yield path, f"another {value}"
    else:
        replace = msgspec.structs.replace if isinstance(value, msgspec.Struct) else dataclasses.replace
        for name in members(type(value)):
            for where, changed in changes(getattr(value, name), (*path, (type(value), name))):
                yield where, replace(value, **{name: changed})


def test_every_figure_that_stats_knows_changes_a_metric():
    reading = made(Reading)
    before = gather(reading, [1_500_000])
    found, seen, unseen = set(), set(), set()
    for path, changed in changes(reading):
        found.update(path)
        if gather(changed, [1_500_000]) == before:
            unseen.update(path[-1:] if EXCEPTIONS.keys().isdisjoint(path) else EXCEPTIONS.keys() & path)
        else:
            seen.update(path[-1:])
    # The statistics of a cache contain those of its tiers, which have readings of their own.
    assert unseen - seen == EXCEPTIONS.keys()
    assert set(EXCEPTIONS.values()) <= NAMES
    # All of them were tried, among them those of optional parts.
    assert {(TieredStats, "prediction"), (PolicyStats, "samples"), (HttpCounts, "stored")} <= found


def returned_by_stats():
    """The types that methods called `stats`, `metrics` or `counts` return."""
    for module in pkgutil.walk_packages(acgsperf.__path__, "acgsperf."):
        if module.name.startswith(("acgsperf.compat", "acgsperf.__main__")):
            continue
        for owner in vars(importlib.import_module(module.name)).values():
            for name in ("stats", "metrics", "counts"):
                method = getattr(owner, name, None) if isinstance(owner, type) else None
                found = get_type_hints(method).get("return") if inspect.isfunction(method) else None
                if isinstance(found, type):
                    yield owner, found


def test_everything_with_stats_is_in_a_reading():
    known = {owner for path, _ in changes(made(Reading)) for owner, _ in path} | {RequestCounts, LimitCounts}
    returned = dict(returned_by_stats())
    assert {TieredCache, ConnectionPool, RedisTier, PerformanceMiddleware, ComplianceValidator} <= returned.keys()
    assert not [owner for owner, found in returned.items() if found not in known]


def test_a_cache_has_all_histograms():
    cache = TieredCache(LRUCache(1), RedisTier("redis://a"), PostgresTier("postgresql://a/b"), namespace="a")
    assert len(histograms_of(cache)) == 5


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
