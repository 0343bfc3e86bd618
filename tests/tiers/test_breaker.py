import pytest

from acgsperf.tiers.base import BreakerState
from acgsperf.tiers.breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(3, 1.0, clock=clock)


def test_it_opens_after_failures_in_a_row_and_says_so_once(breaker):
    breaker.failed()
    breaker.failed()
    breaker.succeeded()
    assert [breaker.failed() for _ in range(5)] == [False, False, True, False, False]
    assert not breaker.allow()


def test_one_attempt_closes_it_or_is_followed_by_another(breaker, clock):
    for _ in range(3):
        breaker.failed()
    clock.now = 1.0
    assert [breaker.allow(), breaker.allow()] == [True, False]
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.failed()
    clock.now = 1.9
    assert not breaker.allow()
    clock.now = 2.0
    assert breaker.allow()
    assert breaker.succeeded()
    assert breaker.allow()
    assert breaker.state is BreakerState.CLOSED


def test_an_attempt_without_an_outcome_is_followed_by_another(breaker, clock):
    for _ in range(3):
        breaker.failed()
    clock.now = 1.0
    assert breaker.allow()
    clock.now = 2.0
    assert breaker.allow()


def test_attempts_do_not_get_rare(breaker, clock):
    for _ in range(3):
        breaker.failed()
    for _ in range(100):
        clock.now += 1
        assert [breaker.allow(), breaker.allow()] == [True, False]
        breaker.failed()


def test_by_default_the_third_failure_opens_it_for_one_second(clock):
    breaker = CircuitBreaker(clock=clock)
    assert breaker.failures_in_a_row == 0
    assert breaker.succeeded() is False
    assert [breaker.failed() for _ in range(3)] == [False, False, True]
    clock.now = 0.99
    assert not breaker.allow()
    clock.now = 1.0
    assert breaker.allow()
