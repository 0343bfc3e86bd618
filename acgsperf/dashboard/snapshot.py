"""What the dashboard shows at one moment. The page and `acgsperf top` draw this and nothing else."""

from msgspec import Struct

__all__ = [
    "AlertState",
    "BackplaneState",
    "CacheState",
    "HotKey",
    "HourPoint",
    "InstanceState",
    "Point",
    "PoolState",
    "PredictionState",
    "RouteState",
    "SizeState",
    "SizingState",
    "Snapshot",
    "TargetState",
    "TierState",
    "TrendState",
    "TrialState",
]


class Point(Struct, frozen=True, omit_defaults=True):
    """The figures of one interval that the charts draw. What was not measured is None.

    Attributes:
        at: the end of the interval, in seconds since the epoch.
        requests: requests per second that passed the compliance gate.
        errors: failed requests per second.
        violations: requests per second that the compliance gate refused.
        p50_ms, p95_ms, p99_ms: latency.
        heat: the number of requests in each band of latency, see `Snapshot.bands_ms`.
        hit_rate: the share of requests that did not wait for the handler.
        l1, l2, l3: the share of look-ups in this tier that found a value, over all caches.
        evictions: entries per second that L1 evicted.
        loads: loader calls per second.
        stale: stale values per second that callers got.
        in_use: connections in use, over all pools.
        waiting: callers that wait for a connection, over all pools.
        lag_ms: P99 of the time from a write in another process to the arrival of its record.
    """

    at: float
    requests: float | None = None
    errors: float | None = None
    violations: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    heat: tuple[int, ...] | None = None
    hit_rate: float | None = None
    l1: float | None = None
    l2: float | None = None
    l3: float | None = None
    evictions: float | None = None
    loads: float | None = None
    stale: float | None = None
    in_use: int | None = None
    waiting: int | None = None
    lag_ms: float | None = None


class TierState(Struct, frozen=True):
    """A tier of a cache. Rates are of the last interval.

    Attributes:
        name: "l1", "l2" or "l3".
        lookups: look-ups per second.
        hit_rate: the share of them that found a value.
        total_hit_rate: the same since the start of the process.
        read_p99_ms: P99 of reads since the start; None for L1.
        breaker: the state of the circuit breaker; None for L1.
        errors: failed calls per second, timeouts included; None for L1.
        skipped: keys per second that were not sent because the circuit was open; None for L1.
    """

    name: str
    lookups: float | None
    hit_rate: float | None
    total_hit_rate: float | None
    read_p99_ms: float | None = None
    breaker: str | None = None
    errors: float | None = None
    skipped: float | None = None


class SizeState(Struct, frozen=True):
    """What L1 would hit with another size: `factor` times the present one, `maxsize` entries."""

    factor: float
    maxsize: int
    lru: float
    adaptive: float


class SizingState(Struct, frozen=True):
    """What other sizes of L1 would hit, see `SizingStats`."""

    requests: int
    sizes: tuple[SizeState, ...]
    point_entries: int | None
    point_bytes: int | None


class PredictionState(Struct, frozen=True):
    """What prediction did in the last interval, per second, and since the start.

    Attributes:
        issued, used, wasted, late: keys per second.
        precision: the share of all fetches whose value was used; None if none is known.
        held: values that wait to be requested.
        classes: active classes of predictions.
    """

    issued: float | None
    used: float | None
    wasted: float | None
    late: float | None
    precision: float | None
    held: int
    classes: int


class BackplaneState(Struct, frozen=True):
    """The connection of a cache to the other processes.

    Attributes:
        state: "following" if records arrive, else "off", "connecting" or "recovering".
        applied: records of other processes per second.
        queued: records that wait to be published.
        gaps: how often records may have been missed, since the start.
        lag_p50_ms, lag_p99_ms: the time from a write to the arrival of its record, since the start.
    """

    state: str
    applied: float | None
    queued: int
    gaps: int
    lag_p50_ms: float | None
    lag_p99_ms: float | None


class CacheState(Struct, frozen=True):
    """A cache. Rates are per second in the last interval.

    Attributes:
        name: its namespace, or the name that it was given.
        tiers: its tiers, L1 first.
        entries, max_entries: of L1.
        evictions, expirations: entries of L1 per second.
        loads, load_errors, joins, refreshes, stale, negative: as the metrics of these names.
        loading: keys whose load is in flight.
        unrepaired: writes that failed in one tier and wait for a repair.
        sizing, prediction, backplane: None if the cache has none, or if it is not known.
    """

    name: str
    tiers: tuple[TierState, ...]
    entries: int
    max_entries: int
    evictions: float | None
    expirations: float | None
    loads: float | None
    load_errors: float | None
    joins: float | None
    refreshes: float | None
    stale: float | None
    negative: float | None
    loading: int
    unrepaired: int
    sizing: SizingState | None = None
    prediction: PredictionState | None = None
    backplane: BackplaneState | None = None


class PoolState(Struct, frozen=True):
    """A connection pool.

    Attributes:
        name: its name.
        healthy: whether it accepts callers.
        connections, idle, in_use, max, target: numbers of connections now.
        waiting: callers that wait now.
        oldest_wait_s: how long the first of them has waited.
        wait_p99_ms: P99 of the wait for a connection, since the start.
        use_p50_ms, use_p99_ms: how long borrowers kept a connection, since the start.
        leaks, timeouts, connect_errors: counts since the start.
    """

    name: str
    healthy: bool
    connections: int
    idle: int
    in_use: int
    max: int
    target: int
    waiting: int
    oldest_wait_s: float
    wait_p99_ms: float | None
    use_p50_ms: float | None
    use_p99_ms: float | None
    leaks: int
    timeouts: int
    connect_errors: int


class RouteState(Struct, frozen=True):
    """A route of the middleware: responses per second in the last interval, and latency since the start."""

    name: str
    responses: float | None
    total: int
    p50_ms: float | None
    p99_ms: float | None


class AlertState(Struct, frozen=True):
    """An alert that is raised now.

    Attributes:
        kind: as in `Alert`.
        subject: as in `Alert`.
        text: what it says, with the time at which a forecast will come true.
        since: when it was raised, in seconds since the epoch.
    """

    kind: str
    subject: str
    text: str
    since: float


class HotKey(Struct, frozen=True):
    """A key that is read often.

    Attributes:
        cache: the name of its cache.
        key: a digest of the key, or the key itself if the dashboard shows keys.
        share: its estimated share of the reads of the cache, between 0 and 1.
        error: by how much the share may be too high because the sketch is small.
    """

    cache: str
    key: str
    share: float
    error: float


class InstanceState(Struct, frozen=True):
    """An instance of a service, as its last two reports say.

    Attributes:
        name: host name and process id.
        instance: names the instance; another start of the same program is another instance.
        version: of the package.
        seconds: how long it has run.
        age_s: the seconds since its last report.
        requests, errors: per second, between its last two reports; None if only one is known.
        hit_rate, p50_ms, p99_ms: between its last two reports; None without requests.
        total: its requests since its start.
        lag_ms: P99 of the backplane's lag; None if no record has arrived.
        unhealthy: what does not work.
        alerts: the names of its alerts.
        revision: the revision of the tuning in force; 0 for none.
        arm: the part of a trial in which it takes part; empty for none.
        settings: the settings in force that may be tuned.
    """

    name: str
    instance: str
    version: str
    seconds: float
    age_s: float
    requests: float | None
    errors: float | None
    hit_rate: float | None
    p50_ms: float | None
    p99_ms: float | None
    total: int
    lag_ms: float | None
    unhealthy: tuple[str, ...]
    alerts: tuple[str, ...]
    revision: int
    arm: str
    settings: dict[str, float]


class TrialState(Struct, frozen=True):
    """A trial of a setting by a fleet.

    Attributes:
        setting: its name.
        before, value: the old value and the new one.
        outcome: how the trial ended; "running" if it has not.
        change: the change of the mean latency by the new value, -0.1 for 10 % less; None if it is not known.
        p: the probability of such a change if the new value had no effect; None if it is not known.
        instances: how many take part.
    """

    setting: str
    before: float
    value: float
    outcome: str
    change: float | None
    p: float | None
    instances: int


class HourPoint(Struct, frozen=True):
    """The figures of an hour of the past.

    Attributes:
        at: its end, in seconds since the epoch.
        requests: per second.
        p50_ms, p95_ms, p99_ms: latency; None without answered requests.
    """

    at: float
    requests: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class TrendState(Struct, frozen=True):
    """The last weeks of a service.

    Attributes:
        hours: the complete hours with requests of the last 28 days, in the order of time.
        changes: what became slower or faster, in words, the latest first; None if it is not known.
        missing: what is not known, in words.
        next_s: in how many seconds the page asks again.
    """

    hours: tuple[HourPoint, ...] = ()
    changes: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    next_s: float = 600.0


class TargetState(Struct, frozen=True):
    """The targets of the service."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    hit_rate: float
    throughput_rps: float


class Snapshot(Struct, frozen=True):
    """All figures at one moment.

    Attributes:
        name: what the figures are of.
        point: the figures of the last interval, for the charts.
        seconds: the length of the last interval; 0 for the first snapshot.
        processes: the number of processes whose figures are added up.
        requests: requests since the start.
        bands_ms: the upper bounds of the bands of `point.heat`. A last band has no upper bound.
        caches, pools, routes: the parts; at most 20 of each, and those with the most traffic first.
        alerts: the raised alerts; None if they are not known.
        hot_keys: the keys that are read most often; None if they are not known.
        targets: None if they are not known.
        instances: the instances of the fleet, at most 100, those with problems first; None if there is no fleet.
        trials: the trial that runs and those that ended, the latest first; None if there is no fleet.
        missing: what the figures of the fleet lack, in words.
    """

    name: str
    point: Point
    seconds: float
    processes: int
    requests: int
    bands_ms: tuple[float, ...]
    caches: tuple[CacheState, ...] = ()
    pools: tuple[PoolState, ...] = ()
    routes: tuple[RouteState, ...] = ()
    alerts: tuple[AlertState, ...] | None = None
    hot_keys: tuple[HotKey, ...] | None = None
    targets: TargetState | None = None
    instances: tuple[InstanceState, ...] | None = None
    trials: tuple[TrialState, ...] | None = None
    missing: tuple[str, ...] = ()
