"""`Ordering`: which reads a write supersedes."""

import pytest

from acgsperf.cache import ordering as ordering_module
from acgsperf.cache.ordering import Ordering


@pytest.fixture
def ordering():
    return Ordering()


def test_a_read_without_a_concurrent_write_is_current(ordering):
    ordering.supersede("a")
    assert ordering.is_current(ordering.latest, "a", ("t",))


def test_a_write_supersedes_the_reads_in_flight_when_it_ends(ordering):
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


def test_of_two_concurrent_writes_the_one_that_ends_last_counts(ordering):
    with ordering.writing(["a"]):
        with ordering.writing(["a"]):
            pass
        assert not ordering.is_current(ordering.latest, "a", ())
        began_at = ordering.latest
    assert not ordering.is_current(began_at, "a", ())


def test_a_load_supersedes_reads_immediately(ordering):
    began_at = ordering.latest
    ordering.supersede("a")
    assert not ordering.is_current(began_at, "a", ())
    assert ordering.is_current(began_at, "b", ())


def test_an_invalidation_supersedes_reads_of_entries_with_the_tag(ordering):
    before = ordering.latest
    with ordering.invalidating("t"):
        during = ordering.latest
        assert not ordering.is_current(before, "a", ("s", "t"))
    assert not ordering.is_current(during, "a", ("t",))
    assert ordering.is_current(before, "a", ("s",))
    assert ordering.is_current(ordering.latest, "a", ("t",))


def test_clearing_supersedes_every_read(ordering):
    before = ordering.latest
    with ordering.clearing():
        assert not ordering.is_current(ordering.latest, "a", ())
        during = ordering.latest
    assert not ordering.is_current(before, "a", ())
    assert not ordering.is_current(during, "b", ())
    assert ordering.is_current(ordering.latest, "a", ())


def test_memory_is_bounded_and_forgotten_writes_supersede_every_read(ordering, monkeypatch):
    monkeypatch.setattr(ordering_module, "_MAX_REMEMBERED", 100)
    began_at = ordering.latest
    for i in range(101):
        ordering.supersede(f"key {i}")
        assert not ordering.is_current(began_at, "key 0", ())
    assert not ordering.is_current(began_at, "another", ())
    assert ordering.is_current(ordering.latest, "key 0", ())
    assert not ordering._keys.last


def test_a_key_is_unwritten_until_it_or_a_tag_of_its_entry_is_written(ordering):
    assert ordering.latest == 0
    assert ordering.is_unwritten("a", ("t",))
    ordering.supersede("a")
    assert not ordering.is_unwritten("a", ("t",))
    assert ordering.is_unwritten("b", ("t",))


def test_a_tag_that_was_superseded_supersedes_the_reads_in_flight_and_counts_as_written(ordering):
    began_at = ordering.latest
    ordering.supersede_tag("t")
    assert not ordering.is_current(began_at, "a", ("s", "t"))
    assert ordering.is_current(began_at, "a", ("s",))
    assert not ordering.is_unwritten("a", ("s", "t"))
    assert ordering.is_unwritten("a", ("s",))
