"""What the reports of several instances say together."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from acgsperf._native.stats import HistogramSnapshot
from acgsperf.dispatch import LatencyHistogram
from acgsperf.fleet.report import Report
from acgsperf.fleet.store import AT_ONCE, Found

__all__ = ["FleetSummary", "Instance", "Sum", "missing_of", "summarize"]


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service, as its last report says.

    Attributes:
        instance: names the instance; another start of the same program is another instance.
        name: names it for people: host name and process id.
        version: of the package.
        age_s: the seconds since it left the report, by the server's clock.
        seconds: how long it had run then.
        sequence: the number of the report, from 1.
        requests: requests that passed the compliance gate.
        failed: those of them that ended in an error.
        violations: requests that did not pass the compliance gate.
        hit_rate: the share of requests that did not wait for the handler; 1.0 without requests.
        latency: of answered requests, in ns.
        unhealthy: what did not work: pools, tiers and the backplane.
        alerts: the names of the alerts that were raised.
        backplane_lag_ms: P99 of the time from a write in another process to the arrival of its record; None if no
            record has arrived.
        settings: the settings in force that may be tuned, by name.
        revision: the revision of the tuning in force; 0 for none.
        arm: the part of a trial in which the instance takes part; empty for none.
    """

    instance: str
    name: str
    version: str
    age_s: float
    seconds: float
    sequence: int
    requests: int
    failed: int
    violations: int
    hit_rate: float
    latency: HistogramSnapshot
    unhealthy: tuple[str, ...]
    alerts: tuple[str, ...]
    backplane_lag_ms: float | None
    settings: Mapping[str, float]
    revision: int
    arm: str


@dataclass(frozen=True, slots=True)
class FleetSummary:
    """The figures of all instances together, each since its start, and one by one.

    Attributes:
        instances: the instances, by name.
        missing: what the summary lacks, in words: a server that does not answer, or reports that cannot be used. Empty
            if it lacks nothing.
        requests, failed, violations: sums.
        success_rate, hit_rate, compliance: shares of all requests, between 0 and 1; 1.0 without requests.
        latency: of all answered requests together, in ns: mean and true percentiles.
    """

    instances: tuple[Instance, ...]
    missing: tuple[str, ...]
    requests: int
    failed: int
    violations: int
    success_rate: float
    hit_rate: float
    compliance: float
    latency: HistogramSnapshot

    def as_dict(self) -> dict[str, object]:
        """Return the summary as JSON-like values."""
        values: dict[str, object] = msgspec.to_builtins(self)
        return values


class Sum:
    """Adds up reports.

    Attributes:
        latency_ns: of all answered requests together.
        failed, violations, missed: sums.
    """

    def __init__(self) -> None:
        self.latency_ns: Final = LatencyHistogram()
        self.failed: int = 0
        self.violations: int = 0
        self.missed: int = 0

    def add(self, report: Report) -> LatencyHistogram:
        """Add a report, and return its latencies.

        Raises:
            ValueError: if they cannot be decoded. Then nothing was added.
        """
        latency_ns = report.latency_ns
        self.latency_ns.merge(latency_ns)
        self.failed += report.failed
        self.violations += report.violations
        self.missed += report.missed
        return latency_ns

    @property
    def requests(self) -> int:
        """Requests that passed the compliance gate."""
        return self.latency_ns.count + self.failed

    @property
    def success_rate(self) -> float:
        """The share of them that did not fail."""
        return _share(self.latency_ns.count, self.requests)

    @property
    def hit_rate(self) -> float:
        """The share of them that did not wait for the handler."""
        return _share(max(self.requests - self.missed, 0), self.requests)

    @property
    def compliance(self) -> float:
        """The share of all requests that passed the compliance gate."""
        return _share(self.requests, self.requests + self.violations)


async def summarize(found: Found, missing: Iterable[str] = ()) -> FleetSummary:
    """Add up the reports of a fleet. Other tasks of the event loop run in between.

    Args:
        found: the reports.
        missing: what is known to be missing besides.
    """
    everything = Sum()
    instances = []
    damaged = found.unreadable
    for number, (report, age_s) in enumerate(zip(found.reports, found.ages_s, strict=True), 1):
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            latency_ns = everything.add(report)
        except ValueError:
            damaged += 1
            continue
        instances.append(_instance(report, age_s, latency_ns))
    return FleetSummary(
        instances=tuple(sorted(instances, key=lambda one: (one.name, one.instance))),
        missing=(*missing, *missing_of(found, damaged)),
        requests=everything.requests,
        failed=everything.failed,
        violations=everything.violations,
        success_rate=everything.success_rate,
        hit_rate=everything.hit_rate,
        compliance=everything.compliance,
        latency=everything.latency_ns.snapshot(),
    )


def missing_of(found: Found, damaged: int) -> Iterable[str]:
    """Yield what the reports lack, in words.

    Args:
        found: the reports.
        damaged: how many cannot be used, because they are damaged or too large.
    """
    for count, problem in (
        (damaged, "damaged or too large"),
        (found.other_format, "of another version of acgsperf"),
        (found.from_the_future, "from the future by the server's clock"),
    ):
        if count:
            yield f"{count} {'report is' if count == 1 else 'reports are'} {problem}"
    if found.more:
        yield "there are more reports than can be read: 10,000, or 128 MiB"


def _instance(report: Report, age_s: float, latency_ns: LatencyHistogram) -> Instance:
    requests = latency_ns.count + report.failed
    return Instance(
        instance=report.instance,
        name=report.name,
        version=report.version,
        age_s=age_s,
        seconds=report.seconds,
        sequence=report.sequence,
        requests=requests,
        failed=report.failed,
        violations=report.violations,
        hit_rate=_share(max(requests - report.missed, 0), requests),
        latency=latency_ns.snapshot(),
        unhealthy=report.unhealthy,
        alerts=report.alerts,
        backplane_lag_ms=report.backplane_lag_ms,
        settings=report.settings,
        revision=report.revision,
        arm=report.arm,
    )


def _share(some: int, of: int) -> float:
    return some / of if of else 1.0
