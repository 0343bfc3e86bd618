"""The choice of an endpoint, with a clock that the test moves."""

import asyncio
import os
import statistics
from collections import Counter
from pathlib import Path

import pytest

from acgsperf import LRUCache
from acgsperf.balance import Balancer, RetryBudget
from acgsperf.dispatch import request_key
from acgsperf.workbench.traces import Trace, zipf_requests


def answered(balancer, clock, seconds, **options):
    """The endpoint that answered a request, each after the time that `seconds` has for it."""
    with balancer.pick(**options) as choice:
        clock.advance(seconds[choice.endpoint] if isinstance(seconds, dict) else seconds)
    return choice.endpoint


def failed(balancer):
    """The endpoint of a request that failed."""
    with pytest.raises(OSError, match="refused"), balancer.pick() as choice:
        raise OSError("refused")
    return choice.endpoint


def of(balancer, endpoint):
    """The state of an endpoint."""
    return next(stats for stats in balancer.stats().endpoints if stats.endpoint == endpoint)


def test_endpoints_of_the_same_speed_share_the_requests(clock):
    balancer = Balancer(["a", "b", "c"], clock=clock, seed=1)
    counts = Counter(answered(balancer, clock, 0.01) for _ in range(3_000))
    assert min(counts.values()) > 700


def test_a_burst_goes_to_all_endpoints_before_any_has_answered(clock):
    balancer = Balancer(["a", "b", "c", "d"], clock=clock, seed=1)
    choices = [balancer.pick() for _ in range(400)]
    assert all(80 <= stats.in_flight <= 120 for stats in balancer.stats().endpoints)
    for choice in choices:
        choice.end()
    assert all(stats.in_flight == 0 for stats in balancer.stats().endpoints)


def test_a_burst_does_not_go_to_the_fastest_endpoint_alone(clock):
    seconds = {"fast": 0.01, "b": 0.02, "c": 0.02}
    balancer = Balancer(seconds, clock=clock, seed=1)
    for _ in range(100):
        answered(balancer, clock, seconds)
    choices = Counter(balancer.pick().endpoint for _ in range(100))
    assert choices["fast"] < 70
    assert choices["b"] > 10 < choices["c"]


def test_a_slow_endpoint_gets_only_probes(clock):
    seconds = {"a": 0.01, "b": 0.01, "slow": 0.1}
    balancer = Balancer(seconds, clock=clock, seed=1)
    counts = Counter(answered(balancer, clock, seconds) for _ in range(10_000))
    assert counts["slow"] < 50
    assert counts["slow"] == of(balancer, "slow").picks


def test_a_slow_endpoint_is_ejected_and_comes_back_when_it_is_fast_again(clock):
    balancer = Balancer(["a", "b", "slow"], clock=clock, seed=1)
    for _ in range(30):
        answered(balancer, clock, 0.01)
    # In flight at the same time, so that the choice does not yet know.
    choices = [balancer.pick() for _ in range(60)]
    clock.advance(0.01)
    for choice in choices:
        if choice.endpoint != "slow":
            choice.succeed()
            choice.end()
    clock.advance(0.5)
    for choice in choices:
        choice.succeed()
        choice.end()
    assert of(balancer, "slow").ejected
    assert of(balancer, "slow").ejections == 1
    counts = Counter(answered(balancer, clock, 0.001) for _ in range(100))
    assert counts["slow"] == 0
    clock.advance(1)
    assert answered(balancer, clock, 0.001) == "slow"
    assert balancer.stats().probes == 1
    assert not of(balancer, "slow").ejected


def test_a_failing_endpoint_is_ejected_after_five_failures_and_probed_ever_more_rarely(clock):
    balancer = Balancer(["dead", "b"], clock=clock, seed=1)
    failures = 0
    for _ in range(1_000):
        with balancer.pick() as choice:
            clock.advance(0.001)
            if choice.endpoint == "dead":
                failures += 1
                choice.fail()
    assert of(balancer, "dead").ejected
    assert failures == of(balancer, "dead").failures == of(balancer, "dead").picks
    assert failures <= 6
    for pause in (2, 4, 8, 16, 30, 30):
        clock.advance(pause)
        assert failed(balancer) == "dead"
        assert answered(balancer, clock, 0.001) == "b"


def test_only_one_request_probes(clock):
    balancer = Balancer(["dead", "b"], clock=clock, seed=1)
    while not of(balancer, "dead").ejected:
        with balancer.pick() as choice:
            if choice.endpoint == "dead":
                choice.fail()
    clock.advance(1)
    choices = [balancer.pick() for _ in range(10)]
    assert [choice.endpoint for choice in choices].count("dead") == 1
    # The probe is cancelled: the next request is one.
    choices[0].end()
    assert balancer.pick().endpoint == "dead"


def test_requests_go_to_ejected_endpoints_if_all_fail(clock):
    balancer = Balancer(["a", "b"], clock=clock, seed=1)
    for _ in range(100):
        failed(balancer)
    assert all(stats.ejected for stats in balancer.stats().endpoints)
    choices = [balancer.pick() for _ in range(100)]
    assert {choice.endpoint for choice in choices} == {"a", "b"}
    for choice in choices:
        choice.end()
    for _ in range(10):
        answered(balancer, clock, 0.01)
    assert sum(stats.ejected for stats in balancer.stats().endpoints) == 1
    clock.advance(30)
    answered(balancer, clock, 0.01)
    assert not any(stats.ejected for stats in balancer.stats().endpoints)


def test_at_most_half_of_the_endpoints_are_ejected_for_slowness(clock):
    seconds = {"a": 0.01, "b": 0.01, "c": 0.5, "d": 0.5, "e": 0.5}
    balancer = Balancer(seconds, clock=clock, seed=1)
    for _ in range(300):
        choices = [balancer.pick() for _ in range(5)]
        for choice in sorted(choices, key=lambda choice: seconds[choice.endpoint]):
            clock.advance(seconds[choice.endpoint])
            choice.succeed()
            choice.end()
        assert sum(stats.ejected for stats in balancer.stats().endpoints) <= 2


def test_a_pause_of_all_endpoints_ejects_none(clock):
    balancer = Balancer(["a", "b", "c"], clock=clock, seed=1)
    for seconds in (0.01, 0.2, 0.01):
        for _ in range(200):
            choices = [balancer.pick() for _ in range(9)]
            clock.advance(seconds)
            for choice in choices:
                choice.succeed()
                choice.end()
    assert not any(stats.ejections for stats in balancer.stats().endpoints)


def test_an_idle_balancer_does_not_take_usual_latencies_for_slow(clock):
    balancer = Balancer(["a", "b", "c"], clock=clock, seed=1)
    for _ in range(200):
        answered(balancer, clock, 0.01)
        clock.advance(60)
    assert not any(stats.ejections for stats in balancer.stats().endpoints)


def test_a_hanging_request_keeps_others_away(clock):
    balancer = Balancer(["a", "b"], clock=clock, seed=1)
    for _ in range(20):
        answered(balancer, clock, 0.01)
    hanging = balancer.pick()
    clock.advance(1)
    assert all(answered(balancer, clock, 0.01) != hanging.endpoint for _ in range(50))


def test_cancellation_counts_as_nothing(clock):
    balancer = Balancer(["a"], clock=clock)
    with pytest.raises(asyncio.CancelledError), balancer.pick():
        raise asyncio.CancelledError
    (stats,) = balancer.stats().endpoints
    assert (stats.failures, stats.in_flight, stats.latency_s) == (0, 0, None)


def test_reported_load_counts_as_requests_in_flight(clock):
    balancer = Balancer(["busy", "b"], load={"busy": 50.0, "b": 0.0}.__getitem__, clock=clock, seed=1)
    for choice in [balancer.pick() for _ in range(2)]:
        clock.advance(0.01)
        choice.succeed()
        choice.end()
    assert Counter(balancer.pick().endpoint for _ in range(40))["busy"] <= 1


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -5.0])
def test_nonsense_as_load_is_ignored(clock, nonsense):
    balancer = Balancer(["a", "b"], load=lambda endpoint: nonsense, clock=clock, seed=1)
    assert set(Counter(balancer.pick().endpoint for _ in range(40)).values()) == {20}


def test_a_key_goes_to_the_same_endpoint_and_keys_spread(clock):
    balancer = Balancer(["a", "b", "c"], clock=clock)
    keys = [f"key {number}" for number in range(3_000)]
    homes = [answered(balancer, clock, 0.01, key=key) for key in keys]
    assert homes == [answered(balancer, clock, 0.01, key=key.encode()) for key in keys]
    assert min(Counter(homes).values()) > 900


def test_caches_that_share_the_keys_hit_as_often_as_one_large_cache(clock):
    def hits(balancer, size):
        caches = {endpoint: LRUCache(size) for endpoint in balancer.endpoints}
        for request in zipf_requests(30_000):
            key = request_key(request)
            cache = caches[answered(balancer, clock, 0.001, key=key)]
            if cache.get(key) is None:
                cache.set(key, True)
        return sum(cache.stats().hits for cache in caches.values()) / 30_000

    assert abs(hits(Balancer(["a", "b", "c"], clock=clock), 200) - hits(Balancer(["a"], clock=clock), 600)) < 0.01


def test_three_instances_hit_a_recorded_trace_as_one_with_three_times_the_size(clock):
    folder = os.environ.get("ACGSPERF_TRACES")
    path = Path(folder or "", "web12.trace.xz")
    if not folder or not path.exists():
        pytest.skip("needs the recorded trace web12.trace.xz: set ACGSPERF_TRACES to a folder that has it")
    with Trace(path) as trace:
        keys = [request_key(request) for request in trace]

    def hit_rate(balancer, size):
        caches = {endpoint: LRUCache(size) for endpoint in balancer.endpoints}
        for key in keys:
            cache = caches[answered(balancer, clock, 0.001, key=key)]
            if cache.get(key) is None:
                cache.set(key, True)
        return sum(cache.stats().hits for cache in caches.values()) / len(keys)

    for size in (500, 1_000):
        shared, one = (
            hit_rate(Balancer(["a", "b", "c"], clock=clock), size),
            hit_rate(Balancer(["a"], clock=clock), 3 * size),
        )
        print(f"web12, {size} entries in each of three instances: {shared:.2%}; {3 * size} in one: {one:.2%}")
        assert abs(shared - one) < 0.01


@pytest.mark.parametrize("key", [1, {"id": 1}, bytearray(b"a")], ids=["int", "dict", "bytearray"])
def test_a_key_of_another_type_is_refused(clock, key):
    balancer = Balancer(["a", "b"], clock=clock)
    with pytest.raises(TypeError, match="key must be a str, bytes or None, got "):
        balancer.pick(key=key)
    assert all(endpoint.in_flight == 0 for endpoint in balancer.stats().endpoints)


def test_only_the_keys_of_a_removed_endpoint_move(clock):
    balancer = Balancer(["a", "b", "c"], clock=clock)
    keys = [f"key {number}" for number in range(1_000)]
    before = [answered(balancer, clock, 0.01, key=key) for key in keys]
    balancer.replace(["a", "b"])
    after = [answered(balancer, clock, 0.01, key=key) for key in keys]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "c")
    assert set(after) == {"a", "b"}


def test_a_popular_key_overflows_to_other_endpoints(clock):
    balancer = Balancer(["a", "b", "c", "d"], clock=clock)
    choices = [balancer.pick("popular") for _ in range(400)]
    counts = Counter(choice.endpoint for choice in choices)
    assert max(counts.values()) <= 126
    assert len(counts) == 4


def test_a_retry_avoids_the_endpoint_that_failed(clock):
    balancer = Balancer(["a", "b", "c"], clock=clock)
    for key in (None, "key"):
        first = balancer.pick(key).endpoint
        assert {balancer.pick(key, avoid=[first]).endpoint for _ in range(20)} <= {"a", "b", "c"} - {first}
        assert balancer.pick(key, avoid=["a", "b", "c"]).endpoint in {"a", "b", "c"}


def test_endpoints_that_stay_keep_their_measurements(clock):
    balancer = Balancer(["a", "b"], clock=clock)
    in_flight = balancer.pick()
    answered(balancer, clock, 0.01)
    balancer.replace(["a", "b", "c"])
    assert balancer.endpoints == ("a", "b", "c")
    assert sum(stats.in_flight for stats in balancer.stats().endpoints) == 1
    balancer.replace(["c"])
    # The response of an endpoint that has been removed.
    for _ in range(6):
        in_flight.fail()
    in_flight.end()
    assert balancer.pick().endpoint == "c"


@pytest.mark.parametrize(
    ("endpoints", "error", "message"),
    [
        ([], ValueError, "endpoints must have at least one address, got none"),
        ("abc", TypeError, "endpoints must be a collection of str, got the str 'abc'"),
        ([1], TypeError, "an endpoint must be a str, got 1"),
        (["a", "b", "a"], ValueError, "endpoints must be different, got 'a' twice"),
    ],
)
def test_bad_endpoints_are_refused_and_the_old_ones_stay(endpoints, error, message):
    with pytest.raises(error, match=message):
        Balancer(endpoints)
    balancer = Balancer(["old"])
    with pytest.raises(error, match=message):
        balancer.replace(endpoints)
    assert balancer.endpoints == ("old",)


@pytest.mark.parametrize("decay_s", [0, -1, float("nan"), float("inf")])
def test_a_bad_decay_is_refused(decay_s):
    with pytest.raises(ValueError, match=f"decay_s must be greater than 0, got {decay_s}"):
        Balancer(["a"], decay_s=decay_s)


def test_the_budget_allows_a_share_of_the_requests_and_a_few_each_second(clock):
    budget = RetryBudget(0.2, 10, clock=clock)
    assert sum(budget.spend() for _ in range(100)) == 10
    for _ in range(100):
        budget.note_request()
    assert sum(budget.spend() for _ in range(100)) == 20
    clock.advance(1)
    assert sum(budget.spend() for _ in range(100)) == 10
    clock.advance(1_000_000)
    assert sum(budget.spend() for _ in range(1_000)) == 100


@pytest.mark.parametrize(("ratio", "per_second"), [(-0.1, 1), (1.1, 1), (0.1, -1), (0.1, float("inf"))])
def test_a_bad_budget_is_refused(ratio, per_second):
    with pytest.raises(ValueError, match=r"ratio must be from 0 to 1|per_second must be at least 0"):
        RetryBudget(ratio, per_second)


def test_the_slowest_of_many_requests_is_hardly_slower_with_one_bad_endpoint(clock):
    def p99(seconds):
        balancer = Balancer(seconds, clock=clock, seed=1)
        return statistics.quantiles(
            (seconds[answered(balancer, clock, seconds)] for _ in range(5_000)), n=100, method="inclusive"
        )[98]

    assert p99({"a": 0.01, "b": 0.01, "c": 0.1}) <= 1.5 * p99({"a": 0.01, "b": 0.01, "c": 0.01})
