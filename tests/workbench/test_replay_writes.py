"""The comparison of answers with writes."""

import pytest

from acgsperf.workbench.replay_origin import value_of, version_of
from acgsperf.workbench.replay_writes import Check, checked_answers, spread, total, writer_of

# Version 1 was acknowledged at 100, version 2 at 200, and so on.
WRITES = [(version, 100 * version) for version in range(1, 6)]


@pytest.mark.parametrize(
    ("began", "version", "expected"),
    [
        (99, 0, Check(0, 0, 0)),
        (100, 0, Check(1, 1, 0)),
        (150, 0, Check(1, 1, 50)),
        (150, 1, Check(1, 0, 0)),
        (199, 1, Check(1, 0, 0)),
        (230, 1, Check(1, 1, 30)),
        # The value that is being written may be read before its write is acknowledged.
        (250, 3, Check(1, 0, 0)),
        (900, 5, Check(1, 0, 0)),
        (900, 0, Check(1, 1, 800)),
    ],
)
def test_an_answer_is_outdated_if_a_newer_write_was_acknowledged_before_its_request(began, version, expected):
    assert checked_answers([began, version], WRITES, 0) == expected


def test_a_write_of_another_process_may_be_unknown_for_the_allowed_lag():
    answers = [149, 0, 150, 0, 249, 1, 250, 1, 251, 2]
    assert checked_answers(answers, WRITES, 50) == Check(4, 2, 50)
    assert checked_answers([130, 0], WRITES, 50) == Check(0, 0, 30)


def test_without_writes_nothing_is_checked():
    assert checked_answers([1, 0, 2, 0], [], 0) == Check(0, 0, 0)
    assert total([]) == Check(0, 0, 0)


def test_a_write_that_was_not_acknowledged_may_be_read_or_not():
    writes = [(1, 100), (3, 300)]
    assert checked_answers([250, 1, 250, 2, 350, 3], writes, 0) == Check(3, 0, 0)
    assert checked_answers([350, 2], writes, 0) == Check(1, 1, 50)


def test_the_results_of_all_keys_add_up():
    assert total([Check(3, 1, 50), Check(4, 0, 80)]) == Check(7, 1, 80)


def test_the_changed_keys_are_spread_from_the_most_frequent_to_the_rarest():
    indices = [key for key in range(100) for _ in range(200 - key)]
    assert spread(indices, 0.05) == [0, 20, 40, 60, 80]
    assert spread(indices, 1) == list(range(100))
    assert spread([7], 0.01) == [7]


def test_each_key_has_one_writer():
    assert [writer_of(position, 3) for position in range(6)] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("version", [0, 1, 12345])
def test_a_value_names_its_request_and_its_version(version):
    assert version_of("abc", value_of("abc", version)) == version


@pytest.mark.parametrize("value", [None, 7, "", value_of("abd"), value_of("abc") + "x", value_of("abc")[:-1]])
def test_another_value_has_no_version(value):
    assert version_of("abc", value) is None
