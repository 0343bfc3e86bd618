"""The list of all metrics. Both exporters, the dashboard, the alert rules and the documentation use it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from acgsperf import hooks
from acgsperf.metrics.metric import Kind, Merge, Metric
from acgsperf.metrics.readers import (
    Read,
    accesses,
    all_tiers,
    backplane_states,
    backplanes,
    balancers,
    breakers,
    caches,
    closed,
    connect_times,
    connections,
    endpoints,
    errors,
    evictions,
    http,
    l1s,
    lags,
    limits,
    points,
    policies,
    pools,
    predictions,
    responses,
    routes,
    service,
    setting_hit_rates,
    settings,
    size_hit_rates,
    sizes,
    sizings,
    tiers,
    uses,
    verdicts,
    weights,
)

__all__ = ["ATTRIBUTES", "METRICS"]

# For each label its attribute in OpenTelemetry, from the semantic conventions if they define one.
ATTRIBUTES: Final[Mapping[str, str]] = {
    "cache": hooks.CACHE,
    "endpoint": "server.address",
    "error": "error.type",
    "factor": "acgsperf.factor",
    "policy": "acgsperf.policy",
    "pool": hooks.POOL,
    "reason": "acgsperf.reason",
    "result": "acgsperf.result",
    "route": "http.route",
    "setting": "acgsperf.setting",
    "state": "acgsperf.state",
    "tier": hooks.TIER,
    "verdict": "acgsperf.compliance.verdict",
}
_CONNECTIONS: Final = "db.client.connection.count"
_STATE: Final = "db.client.connection.state"
# Names from the semantic conventions for database clients, and attributes that distinguish two metrics of one name.
_CONVENTIONS: Final[Mapping[str, tuple[str, tuple[tuple[str, str], ...]]]] = {
    "pool_idle_connections": (_CONNECTIONS, ((_STATE, "idle"),)),
    "pool_used_connections": (_CONNECTIONS, ((_STATE, "used"),)),
    "pool_min_connections": ("db.client.connection.idle.min", ()),
    "pool_max_connections": ("db.client.connection.max", ()),
    "pool_waiting_requests": ("db.client.connection.pending_requests", ()),
    "pool_timeouts": ("db.client.connection.timeouts", ()),
    "pool_wait_seconds": ("db.client.connection.wait_time", ()),
    "pool_use_seconds": ("db.client.connection.use_time", ()),
    "pool_create_seconds": ("db.client.connection.create_time", ()),
}
_NOT_SUMMED: Final[Mapping[str, Merge]] = {
    "balancer_ejected": Merge.MAX,
    "balancer_latency_seconds": Merge.MAX,
    "cache_entry_bytes": Merge.MAX,
    "cache_policy_age_seconds": Merge.MIN,
    "cache_policy_hit_rate": Merge.MIN,
    "cache_promotion_threshold": Merge.MAX,
    "cache_sizing_entries": Merge.MAX,
    "cache_sizing_hit_rate": Merge.MIN,
    "cache_sizing_point_bytes": Merge.MAX,
    "cache_sizing_point_entries": Merge.MAX,
    "http_limit_usual_latency_seconds": Merge.MAX,
    "pool_ejected": Merge.MAX,
    "pool_healthy": Merge.MIN,
    "pool_oldest_wait_seconds": Merge.MAX,
    "pool_replica_lag_seconds": Merge.MAX,
}


def _metrics(labels: Sequence[str], *rows: tuple[str, Kind, str, str, Read]) -> Iterable[Metric]:
    for name, kind, unit, text, read in rows:
        otel_name, attributes = _CONVENTIONS.get(name, ("", ()))
        merge = _NOT_SUMMED.get(name, Merge.SUM)
        yield Metric(name, kind, text, tuple(labels), read, unit, merge, otel_name, attributes)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

METRICS: Final = (
    *_metrics(
        (),
        ("processes", _G, "{process}", "Live processes whose metrics are added up.", lambda _: [((), 1)]),
        ("requests", _C, "{request}", "Requests answered.", service(lambda s: s.latency.count)),
        ("request_errors", _C, "{request}", "Requests whose handler failed.", service(lambda s: s.counts.failed)),
        ("request_misses", _C, "{request}", "Requests that no tier answered.", service(lambda s: s.counts.missed)),
        ("request_duration_seconds", _H, "s", "Duration of answered requests.", service(lambda s: s.latency)),
        (
            *("compliance_violations", _C, "{request}", "Requests refused for their constitutional hash."),
            service(lambda s: s.counts.violations),
        ),
    ),
    *_metrics(("verdict",), ("compliance_validations", _C, "{hash}", "Hashes checked, by verdict.", verdicts)),
    *_metrics(
        (),
        (
            *("compliance_fast_path_calls", _C, "{call}", "Hashes checked without timing the call."),
            service(lambda s: s.validator.fast_path_calls),
        ),
        ("compliance_batches", _C, "{call}", "Batches of hashes checked.", service(lambda s: s.validator.batches)),
        (
            *("compliance_context_hits", _C, "{call}", "Checks in a context that had a known result."),
            service(lambda s: s.validator.context_hits),
        ),
        (
            *("compliance_context_misses", _C, "{call}", "Checks in a context that had no known result."),
            service(lambda s: s.validator.context_misses),
        ),
        (
            *("compliance_context_entries", _G, "{entry}", "Stored results of checks in a context."),
            service(lambda s: s.validator.context_size),
        ),
        (
            *("compliance_validation_seconds", _H, "s", "Duration of timed checks of a hash."),
            service(lambda s: s.validation_time),
        ),
    ),
    *_metrics(
        ("cache", "tier"),
        ("cache_hits", _C, "{key}", "Keys found.", all_tiers(lambda s: s.hits)),
        ("cache_misses", _C, "{key}", "Keys not found.", all_tiers(lambda s: s.misses)),
        ("cache_stores", _C, "{entry}", "Entries stored in a lower tier.", tiers(lambda s: s.stores)),
        (
            *("cache_refused", _C, "{entry}", "Entries that a lower tier refused to store."),
            tiers(lambda s: s.refused),
        ),
        ("cache_deletes", _C, "{entry}", "Entries deleted from a lower tier.", tiers(lambda s: s.deletes)),
        (
            *("cache_failovers", _C, "{event}", "Reconnects because a server was read-only."),
            tiers(lambda s: s.failovers),
        ),
        ("cache_corrupt", _C, "{entry}", "Stored values that could not be used.", tiers(lambda s: s.corrupt)),
        (
            *("cache_skipped", _C, "{key}", "Keys not sent to a tier, because its circuit breaker was open."),
            tiers(lambda s: s.skipped),
        ),
        ("cache_timeouts", _C, "{call}", "Calls to a lower tier that the deadline ended.", tiers(lambda s: s.timeouts)),
        ("cache_access_seconds", _H, "s", "Duration of reads from a lower tier, for each key.", accesses),
        (
            *("cache_connections", _G, "{connection}", "Open connections of a tier to its server."),
            connections(lambda c: c.open),
        ),
        (
            *("cache_opened_connections", _C, "{connection}", "Connections that a tier opened."),
            connections(lambda c: c.opened),
        ),
        (
            *("cache_connect_errors", _C, "{attempt}", "Failed attempts of a tier to connect."),
            connections(lambda c: c.failed),
        ),
        ("cache_connect_seconds", _H, "s", "Time to open a connection of a tier.", connect_times),
    ),
    *_metrics(
        ("cache", "tier", "error"),
        ("cache_errors", _C, "{call}", "Failed calls to a lower tier, timeouts included.", errors),
    ),
    *_metrics(
        ("cache", "tier", "state"),
        ("cache_breaker_state", _G, "{breaker}", "Circuit breakers in this state, 0 or 1 in a process.", breakers),
    ),
    *_metrics(
        ("cache", "reason"),
        ("cache_evictions", _C, "{entry}", "Entries removed from L1, by reason: size or expired.", evictions),
    ),
    *_metrics(
        ("cache", "setting"),
        ("cache_policy", _G, "{policy}", "Processes whose L1 uses this setting of its eviction policy.", settings),
        (
            *("cache_policy_hit_rate", _G, "1", "Estimated hit rate of L1 if it had always used this setting."),
            setting_hit_rates,
        ),
    ),
    *_metrics(
        ("cache", "factor"),
        ("cache_sizing_entries", _G, "{entry}", "Size of L1 times the factor; the estimate is for this size.", sizes),
    ),
    *_metrics(
        ("cache", "factor", "policy"),
        ("cache_sizing_hit_rate", _G, "1", "Estimated hit rate of L1 with its size times the factor.", size_hit_rates),
    ),
    *_metrics(
        ("cache",),
        (
            *("cache_policy_age_seconds", _G, "s", "Time since the setting of L1's eviction policy changed."),
            policies(lambda p: p.seconds),
        ),
        (
            *("cache_policy_switches", _C, "{event}", "Changes of the setting of L1's eviction policy."),
            policies(lambda p: p.switches),
        ),
        (
            *("cache_policy_samples", _C, "{key}", "Requests that the shadow caches of L1's policy have seen."),
            policies(lambda p: p.samples),
        ),
        (
            *("cache_sizing_requests", _G, "{request}", "Requests that the estimates for other sizes of L1 use."),
            sizings(lambda s: s.requests),
        ),
        (
            *("cache_sizing_point_entries", _G, "{entry}", "Entries to add to L1 to raise its hit rate by 0.01."),
            points(lambda s: s.point_entries),
        ),
        (
            *("cache_sizing_point_bytes", _G, "By", "Bytes to add to L1 to raise its hit rate by 0.01."),
            points(lambda s: s.point_bytes),
        ),
        ("cache_entry_bytes", _G, "By", "Mean weight of an entry in L1.", points(lambda s: s.entry_bytes)),
        ("cache_entries", _G, "{entry}", "Entries in L1.", l1s(lambda s: s.size)),
        ("cache_max_entries", _G, "{entry}", "Maximum entries in L1.", l1s(lambda s: s.maxsize)),
        ("cache_weight", _G, "1", "Weight of the entries in L1, if it has a weigher.", weights(lambda s: s.weight)),
        (
            *("cache_max_weight", _G, "1", "Maximum weight of the entries in L1, if it has a weigher."),
            weights(lambda s: s.maxweight),
        ),
        ("cache_rejections", _C, "{value}", "Values that were too heavy for L1.", l1s(lambda s: s.rejections)),
        ("cache_insertions", _C, "{entry}", "New keys stored in L1.", l1s(lambda s: s.insertions)),
        ("cache_updates", _C, "{entry}", "Values replaced in L1.", l1s(lambda s: s.updates)),
        (
            *("cache_promotions", _C, "{entry}", "Entries promoted to L1 after hits in lower tiers."),
            caches(lambda s: s.promotions),
        ),
        (
            *("cache_promotion_threshold", _G, "{hit}", "Hits in lower tiers after which an entry is promoted."),
            caches(lambda s: s.promotion_threshold),
        ),
        (
            *("cache_demotions", _C, "{entry}", "Entries evicted from L1 and written back to L2."),
            caches(lambda s: s.demotions),
        ),
        (
            *("cache_write_backs", _C, "{entry}", "Loaded values and L3 hits written in the background."),
            caches(lambda s: s.write_backs),
        ),
        (
            *("cache_dropped_writes", _C, "{entry}", "Background writes that a tier did not store."),
            caches(lambda s: s.dropped),
        ),
        (
            *("cache_unrepaired_writes", _G, "{write}", "Writes that failed in one tier and wait for a repair."),
            caches(lambda s: s.unrepaired),
        ),
        ("cache_loads", _C, "{load}", "Loader calls.", caches(lambda s: s.loads)),
        ("cache_load_errors", _C, "{load}", "Loader calls that failed.", caches(lambda s: s.load_errors)),
        (
            *("cache_load_timeouts", _C, "{load}", "Loader calls that the hard timeout ended."),
            caches(lambda s: s.load_timeouts),
        ),
        ("cache_load_joins", _C, "{call}", "Calls that joined a load in flight.", caches(lambda s: s.joined)),
        ("cache_load_waits", _C, "{key}", "Keys whose caller waited for a loader.", caches(lambda s: s.missed)),
        ("cache_loading", _G, "{key}", "Keys whose load is in flight.", caches(lambda s: s.loading)),
        ("cache_refreshes", _C, "{load}", "Loads that ran in the background.", caches(lambda s: s.refreshes)),
        ("cache_stale_served", _C, "{key}", "Stale values served.", caches(lambda s: s.stale_served)),
        ("cache_stale_entries", _G, "{entry}", "Entries in the stale store.", caches(lambda s: s.stale_entries)),
        ("cache_negative_hits", _C, "{key}", "Calls answered by a negative entry.", caches(lambda s: s.negative_hits)),
        ("cache_negative_entries", _G, "{entry}", "Negative entries.", caches(lambda s: s.negative_entries)),
        (
            *("cache_deadlines", _C, "{read}", "Reads of lower tiers that the deadline ended."),
            caches(lambda s: s.deadlines),
        ),
        ("cache_prediction_issued", _C, "{key}", "Keys fetched by prediction.", predictions(lambda s: s.issued)),
        ("cache_prediction_used", _C, "{key}", "Predicted values that were requested.", predictions(lambda s: s.used)),
        (
            *("cache_prediction_wasted", _C, "{key}", "Predicted fetches whose value was not used."),
            predictions(lambda s: s.wasted),
        ),
        (
            *("cache_prediction_late", _C, "{key}", "Predicted keys requested before their value arrived."),
            predictions(lambda s: s.late),
        ),
        (
            *("cache_prediction_loaded", _C, "{key}", "Predicted keys that a loader was called for."),
            predictions(lambda s: s.loaded),
        ),
        ("cache_prediction_held", _G, "{entry}", "Predicted values not requested yet.", predictions(lambda s: s.held)),
        (
            *("cache_prediction_classes", _G, "{class}", "Classes of predictions for which keys are fetched now."),
            predictions(lambda s: s.active_classes),
        ),
        ("backplane_sent", _C, "{record}", "Records of this cache written to the log.", backplanes(lambda s: s.sent)),
        ("backplane_received", _C, "{record}", "Records of other caches read.", backplanes(lambda s: s.received)),
        ("backplane_applied", _C, "{record}", "Records of other caches applied.", backplanes(lambda s: s.applied)),
        ("backplane_recovered", _C, "{record}", "Records read after a reconnect.", backplanes(lambda s: s.recovered)),
        ("backplane_gaps", _C, "{gap}", "Times that records may have been missed.", backplanes(lambda s: s.gaps)),
        (
            *("backplane_malformed", _C, "{record}", "Records that could not be parsed."),
            backplanes(lambda s: s.malformed),
        ),
        ("backplane_queued", _G, "{record}", "Records that wait to be published.", backplanes(lambda s: s.queued)),
        ("backplane_lag_seconds", _H, "s", "Time from a write to the arrival of its record.", lags),
    ),
    *_metrics(
        ("cache", "state"),
        ("backplane_state", _G, "{backplane}", "Backplanes in this state, 0 or 1 in a process.", backplane_states),
    ),
    *_metrics(
        ("pool",),
        ("pool_connections", _G, "{connection}", "Open connections.", pools(lambda p: p.stats.size)),
        ("pool_idle_connections", _G, "{connection}", "Idle connections.", pools(lambda p: p.stats.idle)),
        (
            *("pool_used_connections", _G, "{connection}", "Connections in use, being checked or being reset."),
            pools(lambda p: p.stats.in_use),
        ),
        ("pool_connecting", _G, "{attempt}", "Connection attempts in flight.", pools(lambda p: p.stats.connecting)),
        ("pool_min_connections", _G, "{connection}", "Minimum connections kept.", pools(lambda p: p.stats.min_size)),
        ("pool_max_connections", _G, "{connection}", "Maximum connections open.", pools(lambda p: p.stats.max_size)),
        (
            *("pool_target_connections", _G, "{connection}", "Connections that the pool tries to keep open now."),
            pools(lambda p: p.stats.target_size),
        ),
        ("pool_waiting_requests", _G, "{request}", "Waiting callers.", pools(lambda p: p.stats.waiting)),
        (
            *("pool_oldest_wait_seconds", _G, "s", "Time that the longest-waiting caller has waited."),
            pools(lambda p: p.stats.oldest_wait_s),
        ),
        (
            *("pool_replica_lag_seconds", _G, "s", "Time that a replica lags behind its primary; 0 if unknown."),
            pools(lambda p: p.stats.replica_lag_s or 0.0),
        ),
        (
            *("pool_ejected", _G, "1", "1 if readers do not use a replica because its server fails, else 0."),
            pools(lambda p: int(p.stats.ejected)),
        ),
        ("pool_healthy", _G, "1", "1 if the server answers all processes, else 0.", pools(lambda p: int(p.healthy))),
        ("pool_timeouts", _C, "{timeout}", "Callers whose wait timed out.", pools(lambda p: p.stats.timeouts)),
        (
            *("pool_saturations", _C, "{request}", "Callers refused because too many were waiting."),
            pools(lambda p: p.stats.saturations),
        ),
        (
            *("pool_failovers", _C, "{event}", "Reconnects because a server was read-only."),
            pools(lambda p: p.stats.failovers),
        ),
        (
            *("pool_leaks", _C, "{connection}", "Connections in use for longer than leak_threshold."),
            pools(lambda p: p.stats.leaks),
        ),
        (
            *("pool_connect_errors", _C, "{attempt}", "Failed attempts to connect."),
            pools(lambda p: p.stats.failed_connects),
        ),
        ("pool_opened_connections", _C, "{connection}", "Connections opened.", pools(lambda p: p.stats.opened)),
        ("pool_wait_seconds", _H, "s", "Time that callers waited for a connection.", pools(lambda p: p.wait)),
        ("pool_use_seconds", _H, "s", "Time that callers kept a connection.", pools(lambda p: p.use)),
        ("pool_create_seconds", _H, "s", "Time to open a connection.", pools(lambda p: p.create)),
    ),
    *_metrics(
        ("pool", "reason"),
        ("pool_closed_connections", _C, "{connection}", "Connections closed, by reason.", closed),
    ),
    *_metrics(
        (),
        (
            *("http_refused", _C, "{request}", "Requests refused for their constitutional hash."),
            http(lambda c: c.refused),
        ),
        ("http_cache_stores", _C, "{response}", "Responses stored in the response cache.", http(lambda c: c.stored)),
        ("http_limit", _G, "{request}", "Requests that may be in flight at once.", limits(lambda s: s.limit)),
        (
            *("http_limit_in_flight", _G, "{request}", "Requests in flight that the limit counts."),
            limits(lambda s: s.in_flight),
        ),
        ("http_limit_accepted", _C, "{request}", "Requests that the limit accepted.", limits(lambda s: s.accepted)),
        (
            *("http_limit_refused", _C, "{request}", "Requests that the limit refused with 503."),
            limits(lambda s: s.refused),
        ),
        (
            *("http_limit_usual_latency_seconds", _G, "s", "Mean latency while no request is refused."),
            limits(lambda s: s.usual_latency_s),
        ),
    ),
    *_metrics(
        ("result",),
        ("http_cache_requests", _C, "{request}", "Requests seen by the response cache, by result.", responses),
    ),
    *_metrics(
        ("route",),
        ("http_request_duration_seconds", _H, "s", "Duration of responses, by route.", routes),
    ),
    *_metrics(
        ("route", "pool"),
        ("http_connection_uses", _C, "{connection}", "Connections that requests used, by route.", uses(0)),
        ("http_connection_use_seconds", _C, "s", "Time that requests kept connections, by route.", uses(1)),
    ),
    *_metrics(
        ("endpoint",),
        ("balancer_picks", _C, "{request}", "Requests sent to an endpoint.", endpoints(lambda e: e.picks)),
        ("balancer_failures", _C, "{request}", "Requests to an endpoint that failed.", endpoints(lambda e: e.failures)),
        ("balancer_in_flight", _G, "{request}", "Requests in flight to an endpoint.", endpoints(lambda e: e.in_flight)),
        ("balancer_latency_seconds", _G, "s", "Recent latency of an endpoint.", endpoints(lambda e: e.latency_s)),
        (
            *("balancer_ejected", _G, "1", "1 if an endpoint is ejected and gets only probes, else 0."),
            endpoints(lambda e: int(e.ejected)),
        ),
        ("balancer_ejections", _C, "{event}", "Ejections of an endpoint.", endpoints(lambda e: e.ejections)),
    ),
    *_metrics(
        (),
        ("balancer_probes", _C, "{request}", "Requests that tried an ejected endpoint.", balancers(lambda b: b.probes)),
    ),
)
