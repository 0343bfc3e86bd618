"""Of the writes in flight in this process, the one that began last."""

import random

import pytest

from acgsperf.cache.begun import ALL, Begun, key_name, tag_name


@pytest.fixture
def begun():
    return Begun()


def test_the_only_write_is_the_latest(begun):
    number = begun.begin(["a"])
    assert begun.is_latest(number, ["a"])
    assert begun.is_latest(number, ["a", "b", ALL])


def test_an_earlier_write_gives_way_to_a_later_one_of_the_same_name(begun):
    first, second = begun.begin(["a", "b"]), begun.begin(["b", "c"])
    assert not begun.is_latest(first, ["b"])
    assert not begun.is_latest(first, ["a", "b"])
    assert begun.is_latest(first, ["a"])
    assert begun.is_latest(second, ["b", "c"])


def test_a_later_write_that_has_ended_gives_way_no_more(begun):
    first = begun.begin(["a"])
    second = begun.begin(["a"])
    # As long as the first one is in flight, it must know of the second one.
    begun.end(["a"])
    assert not begun.is_latest(first, ["a"])
    assert begun.is_latest(second, ["a"])
    begun.end(["a"])
    assert begun.is_latest(first, ["a"])


def test_a_write_of_everything_counts_for_those_that_ask_for_it(begun):
    number = begun.begin([key_name("a")])
    cleared = begun.begin([ALL])
    assert not begun.is_latest(number, (ALL, key_name("a")))
    assert begun.is_latest(cleared, (ALL, key_name("a")))


def test_a_key_and_a_tag_of_the_same_text_have_different_names(begun):
    assert len({ALL, key_name(""), tag_name(""), key_name("t"), tag_name("k"), key_name("k")}) == 6
    number = begun.begin([key_name("x")])
    begun.begin([tag_name("x")])
    assert begun.is_latest(number, [key_name("x")])


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_remembered_of_writes_that_have_ended(begun, seed):
    chance = random.Random(seed)
    in_flight = []
    for _ in range(500):
        if in_flight and chance.random() < 0.5:
            number, names = in_flight.pop(chance.randrange(len(in_flight)))
            begun.end(names)
        else:
            names = chance.sample("abcdef", chance.randrange(1, 4))
            in_flight.append((begun.begin(names), names))
        for number, names in in_flight:
            later = any(other > number and set(others) & set(names) for other, others in in_flight)
            if later:
                assert not begun.is_latest(number, names)
    for _, names in in_flight:
        begun.end(names)
    assert begun._last == {}
