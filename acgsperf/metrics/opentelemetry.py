"""Metrics for OpenTelemetry, by its semantic conventions for database clients. They are read at each collection."""

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Final
from weakref import WeakKeyDictionary

from acgsperf._native.types import CacheStats
from acgsperf.backplane import BackplaneState
from acgsperf.metrics.source import MetricsSource, pools_of
from acgsperf.tiers.base import BreakerState, TierStats

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
except ImportError as missing:
    raise ImportError("opentelemetry-api is not installed: pip install 'acgsperf[opentelemetry]'") from missing

__all__ = ["Instrumentation", "instrument"]

# Copied from `opentelemetry.semconv`, a beta that would be another dependency for seven names. A test compares them.
_POOL: Final = "db.client.connection.pool.name"
_STATE: Final = "db.client.connection.state"
_TIER: Final = "acgsperf.cache.tier"
_RESULT: Final = "acgsperf.cache.result"
_REASON: Final = "acgsperf.cache.eviction.reason"
_VERDICT: Final = "acgsperf.compliance.verdict"
_OUTCOME: Final = "acgsperf.request.outcome"
_QUANTILE: Final = "acgsperf.quantile"
_QUANTILES: Final = (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))

_Values = Iterable[tuple[int | float, Mapping[str, str]]]
_Read = Callable[[MetricsSource], _Values]


class Instrumentation:
    """A running report, returned by `instrument`. After `close` it reports nothing and holds no reference."""

    def __init__(self, seat: "_Instruments", source: MetricsSource) -> None:
        self._instruments = seat
        self._source: MetricsSource | None = source
        seat.source = source

    def close(self) -> None:
        """Stop reporting and release the source. May be called again."""
        if self._source is not None:
            self._source = self._instruments.source = None


class _Instruments:
    """The instruments of a provider, which keeps them forever, and the service that they report now."""

    def __init__(self, provider: MeterProvider) -> None:
        self.source: MetricsSource | None = None
        meter = provider.get_meter("acgsperf", version("acgsperf"))
        create = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }
        for name, kind, unit, description, read in _INSTRUMENTS:
            create[kind](name, [self._observing(read)], unit, description)

    def _observing(self, read: _Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            source = self.source
            return [] if source is None else [Observation(value, labels) for value, labels in read(source)]

        return observe


_instruments_of: Final[WeakKeyDictionary[MeterProvider, _Instruments]] = WeakKeyDictionary()


def instrument(source: MetricsSource, meter_provider: MeterProvider | None = None) -> Instrumentation:
    """Report the metrics of a service at every collection.

    A reader may collect in a thread of its own: it reads plain counters, each exact, without locks.

    Args:
        source: the service; a provider reports one at a time.
        meter_provider: None for the global one.

    Returns:
        An object with `close()`.

    Raises:
        ValueError: if the provider already reports a service.
    """
    provider = meter_provider or get_meter_provider()
    seat = _instruments_of.get(provider)
    if seat is None:
        seat = _instruments_of[provider] = _Instruments(provider)
    if seat.source is not None:
        raise ValueError("the meter provider already reports a service; close that instrumentation first")
    return Instrumentation(seat, source)


def _of_pools(attribute: str) -> _Read:
    def read(source: MetricsSource) -> _Values:
        return [(getattr(pool.stats(), attribute), {_POOL: pool.name}) for pool in pools_of(source)]

    return read


def _connections(source: MetricsSource) -> _Values:
    for pool in pools_of(source):
        stats = pool.stats()
        yield stats.idle, {_POOL: pool.name, _STATE: "idle"}
        yield stats.in_use, {_POOL: pool.name, _STATE: "used"}


def _tiers(source: MetricsSource) -> dict[str, CacheStats | TierStats]:
    stats = source.cache.stats()
    tiers = {"l1": stats.l1, "l2": stats.l2, "l3": stats.l3}
    return {name: tier for name, tier in tiers.items() if tier is not None}


def _lookups(source: MetricsSource) -> _Values:
    for name, tier in _tiers(source).items():
        yield tier.hits, {_TIER: name, _RESULT: "hit"}
        yield tier.misses, {_TIER: name, _RESULT: "miss"}


def _evictions(source: MetricsSource) -> _Values:
    l1 = source.cache.stats().l1
    return [(l1.evictions, {_REASON: "size"}), (l1.expirations, {_REASON: "expired"})]


def _errors(source: MetricsSource) -> _Values:
    tiers = _tiers(source).items()
    return [(sum(tier.errors.values()), {_TIER: name}) for name, tier in tiers if isinstance(tier, TierStats)]


def _open_breakers(source: MetricsSource) -> _Values:
    tiers = _tiers(source).items()
    return [
        (int(tier.breaker is not BreakerState.CLOSED), {_TIER: name})
        for name, tier in tiers
        if isinstance(tier, TierStats)
    ]


def _of_cache(attribute: str) -> _Read:
    return lambda source: [(getattr(source.cache.stats(), attribute), {})]


def _of_backplane(attribute: str) -> _Read:
    def read(source: MetricsSource) -> _Values:
        stats = source.cache.stats().backplane
        return [] if stats is None else [(getattr(stats, attribute), {})]

    return read


def _following(source: MetricsSource) -> _Values:
    stats = source.cache.stats().backplane
    return [] if stats is None else [(int(stats.state is BackplaneState.FOLLOWING), {})]


def _lag(source: MetricsSource) -> _Values:
    stats = source.cache.stats().backplane
    if stats is None:
        return []
    return [(getattr(stats.lag, attribute) / 1e9, {_QUANTILE: quantile}) for quantile, attribute in _QUANTILES]


def _of_l1(attribute: str) -> _Read:
    return lambda source: [(getattr(source.cache.stats().l1, attribute), {})]


def _requests(source: MetricsSource) -> _Values:
    counts = source.counts()
    return [
        (source.latency().count, {_OUTCOME: "answered"}),
        (counts.failed, {_OUTCOME: "failed"}),
        (counts.violations, {_OUTCOME: "refused"}),
    ]


def _misses(source: MetricsSource) -> _Values:
    return [(source.counts().missed, {})]


def _durations(source: MetricsSource) -> _Values:
    latency = source.latency().snapshot()
    return [(getattr(latency, attribute) / 1e9, {_QUANTILE: quantile}) for quantile, attribute in _QUANTILES]


def _validations(source: MetricsSource) -> _Values:
    verdicts = source.validator.metrics().verdicts
    return [
        (verdicts.valid, {_VERDICT: "valid"}),
        (verdicts.mismatched, {_VERDICT: "mismatch"}),
        (verdicts.malformed, {_VERDICT: "malformed"}),
    ]


_INSTRUMENTS: Final[tuple[tuple[str, str, str, str, _Read], ...]] = (
    ("db.client.connection.count", "updowncounter", "{connection}", "Connections, by state.", _connections),
    (
        "db.client.connection.idle.min",
        "updowncounter",
        "{connection}",
        "Minimum connections kept open.",
        _of_pools("min_size"),
    ),
    (
        "db.client.connection.max",
        "updowncounter",
        "{connection}",
        "Maximum connections open.",
        _of_pools("max_size"),
    ),
    (
        "db.client.connection.pending_requests",
        "updowncounter",
        "{request}",
        "Waiting callers.",
        _of_pools("waiting"),
    ),
    ("db.client.connection.timeouts", "counter", "{timeout}", "Waits that timed out.", _of_pools("timeouts")),
    ("acgsperf.cache.requests", "counter", "{key}", "Keys read, by tier and result.", _lookups),
    ("acgsperf.cache.entries", "updowncounter", "{entry}", "Entries in L1.", _of_l1("size")),
    ("acgsperf.cache.max_entries", "updowncounter", "{entry}", "Maximum entries in L1.", _of_l1("maxsize")),
    ("acgsperf.cache.evictions", "counter", "{entry}", "Entries that L1 evicted or expired.", _evictions),
    ("acgsperf.cache.promotions", "counter", "{entry}", "Entries promoted to L1.", _of_cache("promotions")),
    ("acgsperf.cache.loads", "counter", "{load}", "Loader calls.", _of_cache("loads")),
    ("acgsperf.cache.load_errors", "counter", "{load}", "Loader calls that failed.", _of_cache("load_errors")),
    ("acgsperf.cache.deadlines", "counter", "{read}", "Reads ended by the deadline.", _of_cache("deadlines")),
    ("acgsperf.cache.errors", "counter", "{call}", "Failed calls to a server.", _errors),
    ("acgsperf.cache.breaker.open", "gauge", "1", "1 while calls skip the tier.", _open_breakers),
    ("acgsperf.backplane.following", "gauge", "1", "1 while records of other processes arrive.", _following),
    ("acgsperf.backplane.sent", "counter", "{record}", "Records that the log has.", _of_backplane("sent")),
    ("acgsperf.backplane.received", "counter", "{record}", "Records of others read.", _of_backplane("received")),
    ("acgsperf.backplane.applied", "counter", "{record}", "Records of others applied.", _of_backplane("applied")),
    ("acgsperf.backplane.recovered", "counter", "{record}", "Read after a reconnect.", _of_backplane("recovered")),
    ("acgsperf.backplane.gaps", "counter", "{gap}", "Gaps after which L1 was verified.", _of_backplane("gaps")),
    ("acgsperf.backplane.malformed", "counter", "{record}", "Records not parsed.", _of_backplane("malformed")),
    ("acgsperf.backplane.queued", "updowncounter", "{record}", "Waiting to be published.", _of_backplane("queued")),
    ("acgsperf.backplane.lag.quantile", "gauge", "s", "Percentiles of the time until a record arrives.", _lag),
    ("acgsperf.requests", "counter", "{request}", "Requests, by outcome.", _requests),
    ("acgsperf.request.misses", "counter", "{request}", "Requests that no tier could answer.", _misses),
    (
        "acgsperf.request.duration.quantile",
        "gauge",
        "s",
        "Percentiles since the start.",
        _durations,
    ),
    ("acgsperf.compliance.validations", "counter", "{hash}", "Hashes checked, by verdict.", _validations),
)
