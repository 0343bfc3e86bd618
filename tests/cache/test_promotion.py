"""How the promotion threshold moves."""

import dataclasses

import pytest

from acgsperf import CacheStats
from acgsperf.cache.promotion import Promotion


class L1:
    """The growing counters of an L1."""

    def __init__(self):
        self.stats = CacheStats(0, 0, 0, 0, 0, 0, 0, 100)

    def pass_time(self, *, hits, misses, evictions=0):
        grown = {"hits": hits, "misses": misses, "evictions": evictions}
        self.stats = dataclasses.replace(
            self.stats, **{name: getattr(self.stats, name) + more for name, more in grown.items()}
        )
        return self.stats


@pytest.fixture
def l1():
    return L1()


@pytest.fixture
def promotion(l1):
    promotion = Promotion(3, 100)
    promotion.adapt(l1.stats)
    return promotion


def test_while_l1_has_room_the_threshold_falls_to_one(promotion, l1):
    moves = [promotion.adapt(l1.pass_time(hits=900, misses=100)) for _ in range(3)]
    assert promotion.threshold == 1
    assert moves == [
        "promotion threshold changed from 3 to 2: L1 has room",
        "promotion threshold changed from 2 to 1: L1 has room",
        None,
    ]


def test_requests_add_up_until_there_are_enough_to_judge(promotion, l1):
    assert promotion.adapt(l1.pass_time(hits=600, misses=0)) is None
    assert promotion.adapt(l1.pass_time(hits=600, misses=0)) is not None


def test_the_threshold_keeps_its_direction_while_the_hit_rate_rises_and_reverses_when_it_falls(promotion, l1):
    def rate(hits):
        promotion.adapt(l1.pass_time(hits=hits, misses=1000 - hits, evictions=10))
        return promotion.threshold

    assert [rate(500), rate(400), rate(500), rate(600), rate(601), rate(500)] == [2, 3, 4, 5, 5, 4]


def test_the_threshold_stays_within_its_bounds(promotion, l1):
    seen = set()
    for i in range(100):
        promotion.adapt(l1.pass_time(hits=300 + 5 * i, misses=700 - 5 * i, evictions=10))
        seen.add(promotion.threshold)
    assert seen == set(range(1, 11))


def test_a_reset_of_the_counters_restarts_the_comparison(promotion, l1):
    promotion.adapt(l1.pass_time(hits=900, misses=100, evictions=10))
    l1.stats = CacheStats(0, 0, 0, 0, 0, 0, 0, 100)
    assert promotion.adapt(l1.stats) is None
    assert promotion.adapt(l1.pass_time(hits=10, misses=990, evictions=10)) is not None
