"""The report of a replay: the measurements of each process, and their targets."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from acgsperf._native.stats import CacheStats, HistogramSnapshot
from acgsperf.cache.types import TieredStats
from acgsperf.service.summary import PerformanceSummary
from acgsperf.tiers.base import TierStats
from acgsperf.workbench.replay_writes import Check

__all__ = ["Report", "Row", "figures", "of_answers", "of_lags", "of_shares", "of_tiers", "predicted"]

_UNMEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement of one process.

    Attributes:
        metric: its name.
        target: the bound as text, `-` if there is none.
        achieved: the measurement as text.
        met: whether the target was met; None if there is none. What was not measured has not met its target.
        value: the measurement; None if there is none.
        process: the process, from 1.
    """

    metric: str
    target: str
    achieved: str
    met: bool | None
    value: float | None
    process: int = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay measured.

    Attributes:
        requests: requests that were sent, by all processes.
        refused: how many of them the compliance gate refused.
        seconds: from the first request to the last answer, of the slowest process.
        loads: values that were read from the origin.
        processes: how many processes there were.
        writes: how often the value of a key was changed.
        unacknowledged: how many of these writes some tier did not accept, or were not published.
        rows: the measurements of each process and their targets.
    """

    requests: int
    refused: int
    seconds: float
    loads: int
    processes: int
    writes: int
    unacknowledged: int
    rows: tuple[Row, ...]

    @property
    def met(self) -> bool:
        """Whether every process met every target."""
        return all(row.met is not False for row in self.rows)

    def by_metric(self) -> list[tuple[Row, ...]]:
        """Return for each metric the rows of all processes."""
        each = [[row for row in self.rows if row.process == number] for number in range(1, self.processes + 1)]
        return list(zip(*each, strict=True))

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-like values."""
        return asdict(self) | {"met": self.met}


def figures(
    summary: PerformanceSummary, seconds: float, validation: HistogramSnapshot, l1: HistogramSnapshot
) -> Iterator[Row]:
    """Return the rows that have targets, whatever the cache is made of."""
    latency = summary.latency
    yield _at_most("P50 latency", latency, latency.p50, 1)
    yield _at_most("P95 latency", latency, latency.p95, 2)
    yield _at_most("P99 latency", latency, latency.p99, 5)
    if summary.requests:
        # Refused requests do not count: refusing one takes almost no time.
        rate, hit_rate = summary.requests / seconds, summary.hit_rate
        yield Row("Throughput", "> 1,000/s", f"{rate:,.0f}/s", rate > 1000, rate)
        yield Row("Cache hit rate", "> 95 %", f"{100 * hit_rate:.2f} %", hit_rate > 0.95, hit_rate)
    else:
        yield Row("Throughput", "> 1,000/s", _UNMEASURED, False, None)
        yield Row("Cache hit rate", "> 95 %", _UNMEASURED, False, None)
    compliance = summary.compliance
    yield Row("Compliance", "100 %", f"{100 * compliance:.2f} %", compliance == 1, compliance)
    yield _at_most("Validation P99", validation, validation.p99, 0.1)
    yield _at_most("L1 access P99", l1, l1.p99, 0.01)


def _at_most(metric: str, latency: HistogramSnapshot, ns: int, limit_ms: float) -> Row:
    if not latency.count:
        return Row(metric, f"< {limit_ms:g} ms", _UNMEASURED, False, None)
    return Row(metric, f"< {limit_ms:g} ms", f"{ns / 1e6:.4f} ms", ns / 1e6 < limit_ms, ns / 1e6)


def predicted(stats: TieredStats, before: TieredStats) -> tuple[int, int]:
    """Return how many requests predicted values have answered, and how many useless fetches there were."""
    if stats.prediction is None or before.prediction is None:
        return 0, 0
    return stats.prediction.used - before.prediction.used, stats.prediction.wasted - before.prediction.wasted


def of_tiers(summary: PerformanceSummary, l1_hits: int, before: TieredStats) -> Iterator[Row]:
    """Return what each tier did for a process that is alone.

    Args:
        summary: the summary of the service.
        l1_hits: requests that L1 or a predicted value answered.
        before: the counts of the cache when the clock started.
    """
    stats = summary.cache
    tiers = _lower_tiers(stats)
    if not summary.requests:
        for name in ("L1", *(name for name, _ in tiers)) if tiers else ():
            yield Row(f"{name} tier", "-", "not read: every request was refused", None, None)
        return
    if tiers:
        l1_rate = l1_hits / summary.requests
        moved = f"{stats.promotions:,} promotions, {stats.demotions:,} demotions"
        yield Row("L1 tier", "-", f"hits in {100 * l1_rate:.2f} % of requests, {moved}", None, l1_rate)
    if stats.prediction is not None:
        share, useless = (count / summary.requests for count in predicted(stats, before))
        text = f"{100 * share:.2f} % of requests, which L1's hits include; {100 * useless:.2f} % useless fetches"
        yield Row("Prediction", "-", text, None, share)
    for name, tier in tiers:
        p99_ms = tier.latency.p99 / 1e6 if tier.latency.count else None
        yield Row(f"{name} tier", "-", _activity(tier, stats.l1), None, p99_ms)


def _lower_tiers(stats: TieredStats) -> list[tuple[str, TierStats]]:
    return [(name, tier) for name, tier in (("L2", stats.l2), ("L3", stats.l3)) if tier is not None]


def _activity(tier: TierStats, l1: CacheStats) -> str:
    asked, failed = tier.hits + tier.misses, sum(tier.errors.values())
    if not asked:
        return "not read: L1 answered every request"
    p99 = f"P99 {tier.latency.p99 / 1e6:.4f} ms"
    if not (tier.hits or failed or l1.evictions or l1.expirations):
        # The tier was read only for the first request of each key, which it cannot answer. A rate of 0 % would look
        # like a fault.
        return f"not needed, because L1 kept every value; {p99}"
    return f"{p99}, hits in {100 * tier.hit_rate:.2f} % of reads" + (f", {failed:,} failed calls" if failed else "")


def of_shares(summary: PerformanceSummary, l1_hits: int, before: TieredStats) -> Iterator[Row]:
    """Return the share of the answers that came from each tier.

    Args:
        summary: the summary of the process.
        l1_hits: requests that L1 answered.
        before: the cache's counts before the first request.
    """
    requests = summary.requests
    missed = round((1 - summary.hit_rate) * requests)
    # Requests that share a read are counted once by the tier, and here as often as there are requests.
    found = max(requests - missed - l1_hits, 0)
    tiers = {
        name: tier.hits - former.hits
        for (name, tier), (_, former) in zip(_lower_tiers(summary.cache), _lower_tiers(before), strict=True)
    }
    hits = sum(tiers.values())
    answers = {"L1": float(l1_hits)}
    answers |= {name: found * count / hits if hits else 0.0 for name, count in tiers.items()}
    for name, count in (answers | {"the origin": float(missed)}).items():
        metric = f"Answers from {name}"
        if requests:
            yield Row(metric, "-", f"{100 * count / requests:.2f} %", None, count / requests)
        else:
            yield Row(metric, "-", _UNMEASURED, None, None)


def of_lags(stats: TieredStats) -> Iterator[Row]:
    """Return how long the records of the other processes' writes took."""
    lag = None if stats.backplane is None else stats.backplane.lag
    for name in ("median", "P99"):
        metric = f"Invalidation lag, {name}"
        if lag is None:
            yield Row(metric, "-", "no backplane", None, None)
        elif not lag.count:
            yield Row(metric, "-", _UNMEASURED, None, None)
        else:
            lag_ms = (lag.p50 if name == "median" else lag.p99) / 1e6
            yield Row(metric, "-", f"{lag_ms:.2f} ms", None, lag_ms)


def of_answers(check: Check) -> Iterator[Row]:
    """Return whether an answer was older than a write."""
    if check.checked:
        achieved = f"{check.outdated:,} of {check.checked:,}"
        yield Row("Outdated answers", "0", achieved, not check.outdated, check.outdated)
    else:
        yield Row("Outdated answers", "0", _UNMEASURED, False, None)
    yield Row("Outdated for at most", "-", f"{check.longest_ns / 1e6:.2f} ms", None, check.longest_ns / 1e6)
