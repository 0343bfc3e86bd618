"""What only an `AdaptiveCache` does: it learns which entries to evict, the same ones in both implementations."""

import random
import sys

import pytest
from conftest import IMPLEMENTATIONS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from acgsperf._native.types import SETTING_NAMES

KEYS = st.integers(0, 60)
both = pytest.mark.skipif(len(IMPLEMENTATIONS) < 2, reason="there is one implementation")


def loop(length, requests):
    """Request the keys in a loop. If it is larger than the cache, LRU evicts each key before it is used again."""
    return [i % length for i in range(requests)]


def phases(keys, requests, seed=1):
    """Request other keys every thousand requests, each several times: a key that was used last is used again."""
    chooser = random.Random(seed)
    return [i // 1_000 * keys + chooser.randrange(keys) for i in range(requests)]


def scans(hot, requests, seed=1):
    """Request a few keys again and again, and every other time a key that is requested only once."""
    chooser = random.Random(seed)
    return [chooser.randrange(hot) if i % 2 else 1_000_000 + i for i in range(requests)]


def hit_rate(cache, keys):
    for key in keys:
        if cache.get(key) is None:
            cache.set(key, True)
    return cache.stats().hit_rate


@pytest.mark.parametrize(
    ("trace", "size", "at_least"),
    [
        (loop(300, 30_000), 200, 0.6),
        (loop(1_100, 60_000), 512, 0.4),
        (scans(100, 40_000), 110, 0.48),
        (phases(150, 40_000), 120, 0.6),
    ],
    ids=["short loop", "loop", "scans", "phases"],
)
def test_it_hits_where_a_fixed_policy_does_not(core, trace, size, at_least):
    rate = hit_rate(core.AdaptiveCache(size, seed=1), trace)
    assert rate >= at_least
    assert rate >= hit_rate(core.LRUCache(size), trace) - 0.03


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_no_key_of_a_loop_is_always_forgotten(core, seed):
    assert hit_rate(core.AdaptiveCache(100, policy="s3fifo", seed=seed), loop(150, 30_000)) > 0.45


def test_the_shadows_see_each_key_of_a_loop_again_and_again(core):
    cache = core.AdaptiveCache(300, seed=1)
    hit_rate(cache, loop(360, 20_000))
    rates = cache.stats().policy.hit_rates
    assert rates["lru"] < 0.05 < rates["s3fifo"]


def test_in_a_tiny_cache_evicted_keys_are_remembered_as_long_as_in_a_large_one(core):
    assert hit_rate(core.AdaptiveCache(10, seed=1), loop(20, 4_000)) > 0.35


def test_fast_changes_of_the_setting_stop_if_they_come_too_late(core):
    """Loops, which LRU never hits, alternate with popular keys, which it hits, faster than the cache learns."""
    chooser = random.Random(4)
    keys = []
    for phase in range(60):
        popular = (10**6 * phase + i // 3 + chooser.randrange(35) for i in range(250))
        keys += popular if phase % 2 else loop(75, 250)
    rate = hit_rate(core.AdaptiveCache(50, seed=2), keys)
    assert rate >= hit_rate(core.LRUCache(50), keys) - 0.015


@pytest.mark.parametrize("policy", ["adaptive", "s3fifo"])
def test_a_scan_does_not_evict_what_is_used_again(core, policy):
    cache = core.AdaptiveCache(1_000, policy=policy)
    for _ in range(4):
        for key in range(500):
            if cache.get(key) is None:
                cache.set(key, key)
    for key in range(1_000, 21_000):
        cache.set(key, key)
    assert sum(cache.peek(key) is not None for key in range(500)) > 450


def scanned(core, keys, **arguments):
    """Return a cache of 50 entries, whose shadow caches see every key and remember 160, after a scan."""
    cache = core.AdaptiveCache(50, seed=1, **arguments)
    for key in range(keys):
        cache.set(key, key)
    return cache


@pytest.mark.parametrize("sizing", [False, True])
def test_the_shadow_caches_skip_most_keys_of_a_long_scan(core, sizing):
    cache = scanned(core, 160, sizing=sizing)
    before = cache.stats().policy.samples
    assert before > 150
    for key in range(160, 4_160):
        cache.set(key, key)
    assert cache.stats().policy.samples - before == pytest.approx(4_000 / 8, abs=160)


@pytest.mark.parametrize("again", [20, 4_940], ids=["an entry", "an evicted key"])
def test_after_a_scan_the_shadow_caches_see_every_new_key_when_one_is_used_again(core, again):
    cache = scanned(core, 5_000)
    before = cache.stats().policy.samples
    if cache.get(again) is None:
        cache.set(again, again)
    for key in range(5_000, 5_150):
        cache.set(key, key)
    assert cache.stats().policy.samples - before > 140


def test_a_scan_does_not_delay_what_the_cache_learns_afterwards(core):
    fresh, cache = core.AdaptiveCache(50, seed=1), scanned(core, 10_000)
    keys = [f"after {key}" for key in phases(100, 10_000)]
    assert hit_rate(cache, keys) > hit_rate(fresh, keys) - 0.02


def test_with_the_policy_lru_it_is_an_lru_cache(core):
    cache, lru = core.AdaptiveCache(50, policy="lru"), core.LRUCache(50)
    for key in phases(80, 3_000):
        for one in (cache, lru):
            if one.get(key) is None:
                one.set(key, key)
    assert cache.keys() == lru.keys()
    assert cache.stats() == lru.stats()
    assert cache.stats().policy is None


def test_its_statistics_say_what_the_policy_does(core):
    cache = core.AdaptiveCache(512, seed=1)
    found = cache.stats().policy
    assert (found.setting, found.seconds, found.switches, found.samples, found.hit_rates) == ("frequency", 0, 0, 0, {})
    rate = hit_rate(cache, loop(1_100, 60_000))
    found = cache.stats().policy
    assert found.setting == "scan"
    assert found.switches == 1
    assert found.seconds >= 0
    assert found.samples > 10_000
    assert tuple(found.hit_rates) == SETTING_NAMES
    assert found.hit_rates["lru"] < 0.05
    assert abs(found.hit_rates["scan"] - rate) < 0.05
    cache.reset_stats()
    found = cache.stats().policy
    assert (found.setting, found.switches, found.samples, found.hit_rates) == ("scan", 0, 0, {})


def test_the_seed_chooses_the_sample(core):
    def samples(seed):
        cache = core.AdaptiveCache(200, seed=seed)
        hit_rate(cache, phases(300, 3_000))
        return cache.stats().policy.samples

    assert samples(7) == samples(7)
    assert len({samples(seed) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": "fifo"}, ValueError, "policy must be one of 'adaptive', 's3fifo', 'lru', got 'fifo'"),
        ({"policy": None}, TypeError, "policy must be a str, got None"),
        ({"policy": 7}, TypeError, "policy must be a str, got 7"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got 'x'"),
    ],
)
def test_a_bad_argument_is_refused(core, arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        core.AdaptiveCache(10, **arguments)


def test_an_adaptive_cache_takes_at_most_24_bytes_an_entry_more_than_an_lru_cache():
    core = pytest.importorskip("acgsperf._core")
    for size, each in ((500, 24), (1_000, 24), (2_048, 16), (4_096, 10.5), (16_384, 8), (100_000, 8)):
        sizes = []
        for cache in (core.LRUCache(size), core.AdaptiveCache(size)):
            for key in range(3 * size):
                cache.set(key, None)
            sizes.append(sys.getsizeof(cache))
        assert sizes[1] - sizes[0] <= each * size, size


def test_the_base_class_cannot_be_created(core):
    with pytest.raises(TypeError, match="cannot create"):
        core.BoundedCache()
    assert issubclass(core.LRUCache, core.BoundedCache)
    assert issubclass(core.AdaptiveCache, core.BoundedCache)


class TwinMachine(RuleBasedStateMachine):
    """Calls both implementations in the same way, and compares everything after every step."""

    twins = None

    @initialize(
        maxsize=st.integers(1, 40),
        maxweight=st.none() | st.integers(20, 200),
        policy=st.sampled_from(["adaptive", "s3fifo"]),
        seed=st.integers(0, 3),
    )
    def create(self, maxsize, maxweight, policy, seed):
        self.now = 0.0
        self.reported = [], []
        self.caches = [
            core.AdaptiveCache(
                maxsize,
                100,
                policy=policy,
                seed=seed,
                maxweight=maxweight,
                weigher=None if maxweight is None else lambda key, value: 1 + value % 9,
                clock=lambda: self.now,
                on_evict=lambda *evicted, reported=reported: reported.append(evicted),
            )
            for core, reported in zip(self.twins, self.reported, strict=True)
        ]

    def do(self, action):
        one, other = map(action, self.caches)
        assert one == other

    @rule(keys=st.lists(KEYS, min_size=5, max_size=60))
    def request(self, keys):
        self.do(
            lambda cache: [cache.get(key) for key in keys if cache.get(key) is not None or cache.set(key, key) is None]
        )

    @rule(first=KEYS, count=st.integers(10, 200))
    def scan(self, first, count):
        self.do(lambda cache: [cache.set(first + 100 + i, i) for i in range(count)])

    @rule(key=KEYS, value=st.integers(0, 40), ttl=st.sampled_from([None, 1, 5]))
    def set(self, key, value, ttl):
        self.do(lambda cache: cache.set(key, value, ttl))

    @rule(key=KEYS, value=st.integers(0, 40))
    def setdefault(self, key, value):
        self.do(lambda cache: cache.setdefault(key, value))

    @rule(key=KEYS)
    def pop(self, key):
        self.do(lambda cache: cache.pop(key, None))

    @rule()
    def popitem(self):
        self.do(lambda cache: cache.popitem() if cache.keys() else None)

    @rule(seconds=st.sampled_from([0.5, 3]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        self.do(lambda cache: cache.expire())

    @rule(maxsize=st.integers(1, 50))
    def resize(self, maxsize):
        self.do(lambda cache: cache.resize(maxsize))

    @rule(maxweight=st.integers(20, 200))
    def change_weight(self, maxweight):
        if self.caches[0].weigher is not None:
            self.do(lambda cache: cache.resize(maxweight=maxweight))

    @rule()
    def clear(self):
        self.do(lambda cache: cache.clear())

    @invariant()
    def agree(self):
        if not hasattr(self, "caches"):
            return
        one, other = self.caches
        assert one.items() == other.items()
        assert one.stats() == other.stats()
        assert self.reported[0] == self.reported[1]
        assert len(one) <= one.maxsize
        assert one.maxweight is None or one.stats().weight <= one.maxweight
        if one.stats().policy is not None:
            for name in ("setting", "switches", "samples", "hit_rates"):
                assert getattr(one.stats().policy, name) == getattr(other.stats().policy, name)


@both
def test_both_implementations_evict_the_same_entries(twins):
    machine = type("Machine", (TwinMachine,), {"twins": twins})
    run_state_machine_as_test(machine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None))


@both
@pytest.mark.parametrize(
    "trace", [loop(300, 4_000), scans(150, 6_000), phases(150, 6_000)], ids=["loop", "scan", "phase"]
)
def test_both_implementations_hit_the_same_requests(twins, trace):
    caches = [core.AdaptiveCache(130, seed=3) for core in twins]
    for cache in caches:
        hit_rate(cache, trace)
    assert caches[0].keys() == caches[1].keys()
    assert caches[0].stats() == caches[1].stats()
    assert caches[0].stats().policy.hit_rates == caches[1].stats().policy.hit_rates


def test_it_stays_whole_while_settings_change(core):
    cache = core.AdaptiveCache(64, seed=1)
    chooser = random.Random(1)
    for part in range(12):
        trace = [loop(100, 2_000), phases(80, 2_000, part), scans(40, 2_000, part)][part % 3]
        hit_rate(cache, trace)
        for key in chooser.sample(cache.keys(), 10):
            cache.pop(key)
        cache.resize(chooser.choice([16, 64, 200]))
        items = cache.items()
        assert len(items) == len(cache) <= cache.maxsize
        assert [cache.peek(key) for key, _ in items] == [value for _, value in items]


def test_a_small_change_of_the_size_keeps_what_was_learned(twins):
    caches = [core.AdaptiveCache(400, seed=3) for core in twins]
    for cache in caches:
        hit_rate(cache, loop(700, 30_000))
        learned = cache.stats().policy
        assert learned.setting == "scan"
        cache.resize(360)
        assert len(cache) == 360
        assert cache.stats().policy.samples == learned.samples
        cache.resize(400)
        assert cache.stats().policy.samples == learned.samples
        hit_rate(cache, loop(700, 7_000))
        assert len(cache) == 400
        cache.resize(200)
        assert cache.stats().policy.samples == 0
    assert caches[0].keys() == caches[1].keys()


def test_many_small_changes_of_the_size_are_not_one_small_change(core):
    cache = core.AdaptiveCache(400, seed=3)
    hit_rate(cache, loop(700, 30_000))
    for size in range(390, 330, -10):
        cache.resize(size)
    assert cache.stats().policy.samples == 0
    assert len(cache) == 340
