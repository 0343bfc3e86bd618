"""The figures of a fleet, from the reports of its instances: each is compared with the one before."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from acgsperf.dashboard.bands import BOUNDS_NS
from acgsperf.dashboard.interval import Buckets
from acgsperf.dashboard.rounding import clipped, four_digits, share
from acgsperf.dashboard.snapshot import InstanceState, TrialState
from acgsperf.fleet.report import MOST_PER_S, Report
from acgsperf.fleet.store import AT_ONCE, ReportStore
from acgsperf.fleet.summary import missing_of
from acgsperf.fleet.trials import Agreement, decode_agreement

__all__ = ["FleetReader", "FleetReading", "Growth"]

_MOST_INSTANCES: Final = 100
_MOST_PROBLEMS: Final = 10


@dataclass(frozen=True, slots=True)
class _Counts:
    """The counters of an instance at the time of a report."""

    sequence: int
    seconds: float
    failed: int
    violations: int
    missed: int
    within: tuple[int, ...]


@dataclass(slots=True)
class Growth:
    """By how much the counters grew between two reports, per second, and the latencies in between.

    Attributes:
        requests, errors, violations, missed: per second.
        latencies: how many answered requests took how long; a number for each bucket.
    """

    requests: float
    errors: float
    violations: float
    missed: float
    latencies: list[int]

    def add(self, other: "Growth") -> None:
        """Add the growth of another instance."""
        self.requests += other.requests
        self.errors += other.errors
        self.violations += other.violations
        self.missed += other.missed
        self.latencies = [ours + theirs for ours, theirs in zip(self.latencies, other.latencies, strict=True)]

    @property
    def hit_rate(self) -> float | None:
        """The share of requests that did not wait for the handler; None without requests."""
        return share(max(self.requests - self.missed, 0.0), self.requests)

    @property
    def buckets(self) -> Buckets:
        """The latencies."""
        return Buckets(BOUNDS_NS, self.latencies)


@dataclass(frozen=True, slots=True)
class FleetReading:
    """The figures of a fleet at one moment.

    Attributes:
        instances: at most 100, those with problems first.
        count: the number of all of them.
        requests: of all instances since their start.
        growth: of all instances together; None if no instance has left a second report.
        is_new: whether a report has come since the last reading.
        trials: the trial that runs and those that ended, the latest first.
        missing: what is missing, in words.
    """

    instances: tuple[InstanceState, ...]
    count: int
    requests: int
    growth: Growth | None
    is_new: bool
    trials: tuple[TrialState, ...]
    missing: tuple[str, ...]


class FleetReader:
    """Reads the reports of a fleet again and again.

    Args:
        store: where they are. It must be open.
    """

    def __init__(self, store: ReportStore) -> None:
        self._store = store
        self._counts: dict[str, _Counts] = {}
        self._growths: dict[str, Growth] = {}

    async def read(self) -> FleetReading:
        """Return the figures of now. Other tasks of the event loop run in between.

        Raises:
            FleetError: if the server cannot be reached.
        """
        found = await self._store.found()
        _, document = await self._store.state()
        states, damaged, total, is_new = [], found.unreadable, 0, False
        everything: Growth | None = None
        counts, growths = self._counts, self._growths
        self._counts, self._growths = {}, {}
        for number, (report, age_s) in enumerate(zip(found.reports, found.ages_s, strict=True), 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            name, before = report.instance, counts.get(report.instance)
            now, growth = before, growths.get(name)
            if now is None or now.sequence != report.sequence:
                try:
                    now = _counts_of(report)
                    growth = _growth(before, now)
                except ValueError:
                    damaged += 1
                    # The next report is compared with the last good one.
                    if before is not None:
                        self._counts[name] = before
                    continue
                is_new = True
            self._counts[name] = now
            if growth is not None:
                self._growths[name] = growth
                if everything is None:
                    everything = Growth(0.0, 0.0, 0.0, 0.0, [0] * len(growth.latencies))
                everything.add(growth)
            requests = now.within[-1] + report.failed
            total += requests
            states.append(_state(report, age_s, growth, requests))
        states.sort(key=lambda one: (not one.unhealthy, not one.alerts, one.name, one.instance))
        missing = list(missing_of(found, damaged))
        try:
            trials = tuple(_trials(decode_agreement(document)))
        except ValueError as error:
            trials = ()
            missing.append(f"the trials cannot be read: {error}")
        return FleetReading(
            tuple(states[:_MOST_INSTANCES]), len(states), total, everything, is_new, trials, tuple(missing)
        )


def _counts_of(report: Report) -> _Counts:
    """Return the counters of a report.

    Raises:
        ValueError: if the latencies cannot be decoded.
    """
    within, count, _ = report.latency_ns.cumulative(BOUNDS_NS)
    return _Counts(report.sequence, report.seconds, report.failed, report.violations, report.missed, (*within, count))


def _growth(before: _Counts | None, now: _Counts) -> Growth | None:
    """Return the growth between two reports; None if they cannot be compared.

    Raises:
        ValueError: if no instance can have answered so many requests in that time.
    """
    if before is None or now.seconds <= before.seconds:
        return None
    seconds = now.seconds - before.seconds
    within = [after - earlier for after, earlier in zip(now.within, before.within, strict=True)]
    latencies = [count - below for count, below in zip(within, (0, *within), strict=False)]
    failed = now.failed - before.failed
    violations, missed = now.violations - before.violations, now.missed - before.missed
    # The counters of an instance never go back, but anybody may write a report.
    if min(failed, violations, missed, *latencies) < 0:
        return None
    if max(within[-1] + failed, violations, missed) > MOST_PER_S * seconds:
        raise ValueError(f"a report says that the counters grew beyond {MOST_PER_S:g} per second")
    return Growth(
        requests=(within[-1] + failed) / seconds,
        errors=failed / seconds,
        violations=violations / seconds,
        missed=missed / seconds,
        latencies=latencies,
    )


def _state(report: Report, age_s: float, growth: Growth | None, requests: int) -> InstanceState:
    latencies = None if growth is None else growth.buckets
    return InstanceState(
        name=clipped(report.name or report.instance),
        instance=report.instance,
        version=clipped(report.version),
        seconds=round(report.seconds, 1),
        age_s=round(age_s, 1),
        requests=None if growth is None else four_digits(growth.requests),
        errors=None if growth is None else four_digits(growth.errors),
        hit_rate=None if growth is None else growth.hit_rate,
        p50_ms=None if latencies is None else four_digits(latencies.quantile_ms(0.5)),
        p99_ms=None if latencies is None else four_digits(latencies.quantile_ms(0.99)),
        total=requests,
        lag_ms=four_digits(report.backplane_lag_ms),
        unhealthy=tuple(map(clipped, report.unhealthy[:_MOST_PROBLEMS])),
        alerts=tuple(map(clipped, report.alerts[:_MOST_PROBLEMS])),
        revision=report.revision,
        arm=clipped(report.arm),
        settings={clipped(name): value for name, value in list(report.settings.items())[:_MOST_PROBLEMS]},
    )


def _trials(agreement: Agreement) -> Iterable[TrialState]:
    running = agreement.trial
    if running is not None:
        yield TrialState(
            clipped(running.setting), running.before, running.value, "running", None, None, len(running.instances)
        )
    for ended in reversed(agreement.finished):
        yield TrialState(
            clipped(ended.setting),
            ended.before,
            ended.value,
            ended.outcome.value,
            four_digits(ended.change),
            four_digits(ended.p),
            ended.instances,
        )
