"""Which reads a write overtakes."""

import pytest

from acgsperf.cache import ordering as ordering_module
from acgsperf.cache.ordering import Ordering


@pytest.fixture
def ordering():
    return Ordering()


def test_a_read_stands_where_nothing_is_written(ordering):
    ordering.supersede("a")
    assert ordering.is_current(ordering.latest, "a", ("t",))


def test_a_write_overtakes_what_was_being_read_when_it_ended(ordering):
    before = ordering.latest
    with ordering.writing(["a", "b", "a"]):
        during = ordering.latest
        assert not ordering.is_current(before, "a", ())
        assert not ordering.is_current(during, "b", ())
        assert ordering.is_current(during, "c", ())
    assert not ordering.is_current(during, "a", ())
    assert not ordering.is_current(during, "b", ())
    assert ordering.is_current(before, "c", ())
    assert ordering.is_current(ordering.latest, "a", ())


def test_of_two_writes_the_later_end_counts(ordering):
    with ordering.writing(["a"]):
        with ordering.writing(["a"]):
            pass
        assert not ordering.is_current(ordering.latest, "a", ())
        began_at = ordering.latest
    assert not ordering.is_current(began_at, "a", ())


def test_a_load_overtakes_at_once(ordering):
    began_at = ordering.latest
    ordering.supersede("a")
    assert not ordering.is_current(began_at, "a", ())
    assert ordering.is_current(began_at, "b", ())


def test_an_invalidation_overtakes_entries_with_the_tag(ordering):
    before = ordering.latest
    with ordering.invalidating("t"):
        during = ordering.latest
        assert not ordering.is_current(before, "a", ("s", "t"))
    assert not ordering.is_current(during, "a", ("t",))
    assert ordering.is_current(before, "a", ("s",))
    assert ordering.is_current(ordering.latest, "a", ("t",))


def test_clearing_overtakes_everything(ordering):
    before = ordering.latest
    with ordering.clearing():
        assert not ordering.is_current(ordering.latest, "a", ())
        during = ordering.latest
    assert not ordering.is_current(before, "a", ())
    assert not ordering.is_current(during, "b", ())
    assert ordering.is_current(ordering.latest, "a", ())


def test_memory_is_bounded_and_what_is_forgotten_is_taken_for_overtaken(ordering, monkeypatch):
    monkeypatch.setattr(ordering_module, "_MAX_REMEMBERED", 100)
    began_at = ordering.latest
    for i in range(101):
        ordering.supersede(f"key {i}")
        assert not ordering.is_current(began_at, "key 0", ())
    assert not ordering.is_current(began_at, "another", ())
    assert ordering.is_current(ordering.latest, "key 0", ())
    assert not ordering._keys.last
