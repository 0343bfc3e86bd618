"""One optimization round, and its effect on the parts of a service."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from acgsperf import ComplianceValidator, ConnectionPool, EntryOptions, LRUCache, PoolManager, RedisTier, TieredCache
from acgsperf.service.optimizer import Optimizer
from acgsperf.service.traffic import Traffic
from acgsperf.service.tuning import Outcome


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


def optimizer_of(cache, pools=None, validator=None):
    traffic = Traffic(cache)
    return Optimizer(validator or ComplianceValidator(), cache, pools or PoolManager(), traffic.window()), traffic


def busy(traffic, mean_ns, requests=1_000):
    traffic.latency_ns.record_many([mean_ns] * requests)
    traffic.flush()


async def test_a_round_with_nothing_to_do_returns_no_actions():
    optimizer, _ = optimizer_of(TieredCache(LRUCache(10), namespace="test"))
    assert optimizer.run() == ()


async def test_expired_contexts_and_entries_are_removed_and_counted():
    clock = Clock()
    validator = ComplianceValidator(context_ttl=10, clock=clock)
    async with TieredCache(
        LRUCache(10, clock=clock), namespace="test", options=EntryOptions(ttl=10), clock=clock
    ) as cache:
        await cache.set_many({str(number): number for number in range(5)})
        validator.validate_with_context("0" * 16, {"user": 1})
        clock.now += 60
        optimizer, _ = optimizer_of(cache, validator=validator)
        done = {action.name: (action.before, action.after) for action in optimizer.run()}
    assert done == {"validator contexts": (1, 0), "cache entries in this process": (5, 0)}


async def test_a_pool_is_resized_to_its_demand(servers):
    async with PoolManager() as pools:
        pool: ConnectionPool = await pools.create("main", servers.database_url, min_size=1, max_size=10)
        optimizer, _ = optimizer_of(TieredCache(LRUCache(10), namespace="test"), pools)
        async with pool.acquire(), pool.acquire(), pool.acquire(), pool.acquire():
            (grown,) = optimizer.run()
        assert (grown.name, grown.before, grown.after, grown.outcome) == ("size of pool main", 1, 5, Outcome.KEPT)
        assert grown.merit_before < grown.merit_after == 0
        optimizer.run()
        assert pool.stats().target_size in (1, 5)


async def test_a_change_that_makes_requests_slower_is_undone(servers):
    cache = TieredCache(LRUCache(10), RedisTier(servers.redis_url), namespace="test")
    optimizer, traffic = optimizer_of(cache)
    busy(traffic, 1_000)
    (tried,) = optimizer.run()
    assert (tried.name, tried.before, tried.outcome) == ("promotion_threshold", 3, Outcome.APPLIED)
    assert cache.promotion_threshold == tried.after != 3
    busy(traffic, 2_000)
    (verdict, *_) = optimizer.run()
    assert (verdict.outcome, verdict.merit_before, verdict.merit_after) == (Outcome.UNDONE, -1_000, -2_000)
    assert cache.promotion_threshold == 3


async def test_rounds_with_too_few_requests_add_up_to_one_measurement(servers):
    cache = TieredCache(LRUCache(10), RedisTier(servers.redis_url), namespace="test")
    optimizer, traffic = optimizer_of(cache)
    busy(traffic, 1_000, requests=600)
    assert optimizer.run() == ()
    busy(traffic, 1_000, requests=600)
    assert [action.outcome for action in optimizer.run()] == [Outcome.APPLIED]


async def test_a_cache_without_lower_tiers_has_no_promotion_threshold_to_tune():
    cache = TieredCache(LRUCache(10), namespace="test")
    optimizer, traffic = optimizer_of(cache)
    for mean_ns in (1_000, 900, 800, 700):
        busy(traffic, mean_ns)
        assert {action.name for action in optimizer.run()} <= {"refresh_ahead"}
    assert cache.promotion_threshold == 3


async def test_while_a_cache_predicts_its_promotion_threshold_is_not_tuned(servers):
    cache = TieredCache(LRUCache(100), RedisTier(servers.redis_url), namespace="test", prediction=True)
    optimizer, traffic = optimizer_of(cache)
    for mean_ns in (1_000, 900, 800, 700):
        busy(traffic, mean_ns)
        assert {action.name for action in optimizer.run()} <= {"refresh_ahead"}
    assert cache.promotion_threshold == 1
    cache.predicts = False
    tried = set()
    for _ in range(20):
        busy(traffic, 700)
        tried |= {action.name for action in optimizer.run()}
    assert "promotion_threshold" in tried


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 10**9), min_size=480, max_size=480))
def test_in_eight_hours_of_adversarial_traffic_settings_stay_in_bounds_and_change_ever_more_rarely(means_ns):
    async def run():
        cache = TieredCache(LRUCache(10), RedisTier("redis://localhost:1"), namespace="test")
        optimizer, traffic = optimizer_of(cache)
        changes = []
        for round_, mean_ns in enumerate(means_ns):
            busy(traffic, mean_ns)
            changes += [round_ for action in optimizer.run() if action.outcome is Outcome.APPLIED]
            assert 1 <= cache.promotion_threshold <= 10
            assert cache.refresh_ahead is None or 0.8 <= cache.refresh_ahead < 1
        return changes

    changes = asyncio.run(run())
    assert len(changes) == len(set(changes)), "one change per round"
    # Pauses double up to 128 rounds. Between two pauses a setting moves from one bound to the other at most.
    assert len(changes) <= 180
    assert sum(round_ >= 240 for round_ in changes) <= 60
