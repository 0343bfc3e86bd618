"""The summary and the health of a service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from acgsperf._native.stats import HistogramSnapshot
from acgsperf.cache.types import CacheHealth, TieredStats
from acgsperf.fleet.report import Report
from acgsperf.fleet.summary import Sum
from acgsperf.monitor import Alert
from acgsperf.pool.options import PoolHealth, PoolStats
from acgsperf.settings import Settings
from acgsperf.validator import ValidatorMetrics

__all__ = ["PerformanceSummary", "ServiceHealth", "summarize"]


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """Whether the servers that a service uses answered just now."""

    cache: CacheHealth
    pools: Mapping[str, PoolHealth]

    @property
    def ok(self) -> bool:
        """Whether every configured server answered."""
        return self.cache.ok and all(pool.healthy for pool in self.pools.values())

    def as_dict(self) -> dict[str, object]:
        """Return the health as JSON-like values, for a health endpoint."""
        pools: dict[str, object] = msgspec.to_builtins(self.pools)
        return {"ok": self.ok, "cache": self.cache.as_dict(), "pools": pools}


@dataclass(frozen=True, slots=True)
class PerformanceSummary:
    """The figures of a service since it was created.

    Attributes:
        workers: the number of processes that are added up. `alerts`, `validator`, `cache` and `pools` are always those
            of this process alone.
        requests: requests that passed the compliance gate.
        failed: those of them that ended in an error.
        violations: requests that did not pass the compliance gate.
        success_rate, hit_rate, compliance: shares of requests, between 0 and 1; 1.0 without requests. A request is a
            hit if it did not wait for the handler. `cache.l1.hit_rate` is the share of requests that L1 answered.
        throughput_rps: all requests, divided by the seconds that the oldest process has run.
        latency: of answered requests, in ns: mean and true percentiles.
        targets: the target values, with the names of `targets_met` and `throughput_rps`.
        targets_met: whether each target is met; True without requests. Throughput is not judged: an idle service does
            not miss its target.
        alerts: the alerts that are raised now.
        validator, cache, pools: the figures of the parts. `cache.sizing` says what other sizes of L1 would hit.
    """

    workers: int
    requests: int
    failed: int
    violations: int
    success_rate: float
    hit_rate: float
    compliance: float
    throughput_rps: float
    latency: HistogramSnapshot
    targets: Mapping[str, float]
    targets_met: Mapping[str, bool]
    alerts: tuple[Alert, ...]
    validator: ValidatorMetrics
    cache: TieredStats
    pools: Mapping[str, PoolStats]

    def as_dict(self) -> dict[str, object]:
        """Return the summary as JSON-like values."""
        values: dict[str, object] = msgspec.to_builtins(self)
        return values


def summarize(
    reports: Sequence[Report],
    settings: Settings,
    *,
    alerts: Sequence[Alert],
    validator: ValidatorMetrics,
    cache: TieredStats,
    pools: Mapping[str, PoolStats],
) -> PerformanceSummary:
    """Add up the reports of one or more processes, and compare the sums with the targets."""
    everything = Sum()
    for report in reports:
        everything.add(report)
    latency, hit_rate, compliance = everything.latency_ns.snapshot(), everything.hit_rate, everything.compliance
    targets = {
        "p50_latency": settings.p50_latency_target_ms,
        "p95_latency": settings.p95_latency_target_ms,
        "p99_latency": settings.p99_latency_target_ms,
        "hit_rate": settings.cache_hit_rate_target,
        "compliance": 1.0,
    }
    return PerformanceSummary(
        workers=len(reports),
        requests=everything.requests,
        failed=everything.failed,
        violations=everything.violations,
        success_rate=everything.success_rate,
        hit_rate=hit_rate,
        compliance=compliance,
        throughput_rps=everything.requests / max(max(report.seconds for report in reports), 1e-9),
        latency=latency,
        targets=targets | {"throughput_rps": settings.throughput_target_rps},
        targets_met={
            "p50_latency": latency.p50 / 1e6 < targets["p50_latency"],
            "p95_latency": latency.p95 / 1e6 < targets["p95_latency"],
            "p99_latency": latency.p99 / 1e6 < targets["p99_latency"],
            "hit_rate": hit_rate >= targets["hit_rate"],
            "compliance": compliance == 1,
        },
        alerts=tuple(alerts),
        validator=validator,
        cache=cache,
        pools=pools,
    )
