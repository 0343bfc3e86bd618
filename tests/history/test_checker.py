"""The checker finds hand-made histories guilty or innocent."""

import pytest

from .history import RUNNER, Failover, Fault, Finished, History, Load, Log, Read, Write, read_history
from .report import check

MS = 1_000_000


def wrote(version, start, end, *, op="set", process=0, acked=True, ttl=None, key="k", exists=None, nowhere=False):
    exists = op == "set" if exists is None else exists
    return Write(process, op, key, version, start * MS, end * MS, acked, ttl, exists=exists, nowhere=nowhere)


def loaded(version, start, end, *, process=1, ttl=None, key="k"):
    return Load(process, key, version, start * MS, end * MS, ttl)


def read(version, start, end=None, *, op="get", process=1, key="k"):
    return Read(process, op, key, version, start * MS, (start + 1 if end is None else end) * MS)


def judged(*events, lag_s=0.1, **options):
    return check(History.of(events), lag_s=lag_s, **options)


def stale_ages(*events, **options):
    return [round(stale.age_s, 3) for stale in judged(*events, **options).stale]


def test_an_empty_history_is_innocent():
    assert judged().ok


def test_a_read_of_the_newest_version_is_innocent():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11), read(2, 500)).ok


def test_a_read_of_an_older_version_is_guilty():
    assert stale_ages(wrote(1, 0, 1), wrote(2, 10, 11), read(1, 500)) == [0.489]


def test_a_read_within_the_lag_is_innocent():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11), read(1, 110)).ok
    assert stale_ages(wrote(1, 0, 1), wrote(2, 10, 11), read(1, 110), lag_s=0.05) == [0.099]


def test_only_the_start_of_a_read_counts():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11), read(1, 5, 5_000)).ok


def test_the_age_counts_from_the_first_write_that_superseded_the_version():
    assert stale_ages(wrote(1, 0, 1), wrote(2, 10, 11), wrote(3, 400, 401), read(1, 500)) == [0.489]


def test_a_miss_is_innocent():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11), read(None, 500)).ok


@pytest.mark.parametrize("op", ["delete", "invalidate_tag", "clear"])
def test_a_read_of_what_was_removed_is_guilty(op):
    assert stale_ages(wrote(1, 0, 1), wrote(2, 10, 11, op=op), read(1, 500)) == [0.489]


def test_a_write_that_failed_supersedes_nothing():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11, acked=False), read(1, 500)).ok


def test_a_write_that_failed_may_be_read():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11, acked=False), read(2, 500)).ok


def test_a_write_that_failed_and_is_carried_out_later_is_guilty():
    assert stale_ages(wrote(1, 0, 250, acked=False), wrote(2, 300, 301), read(1, 500)) == [0.199]


def test_a_process_knows_its_own_writes_at_once():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11), read(1, 12)).ok
    assert len(judged(wrote(1, 0, 1), wrote(2, 10, 11), read(1, 12, process=0)).own) == 1
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11), read(1, 11, process=0)).ok
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11, acked=False), read(1, 12, process=0)).ok


def test_a_process_whose_write_raced_may_read_the_other_writers_version():
    assert judged(wrote(1, 0, 20, process=1), wrote(2, 10, 11), read(1, 30, process=0)).ok


def test_another_key_does_not_matter():
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11, key="other"), read(1, 500)).ok


def test_writers_that_race_may_end_in_either_order():
    assert judged(wrote(1, 0, 20), wrote(2, 10, 11, process=1), read(1, 500)).ok
    assert judged(wrote(1, 15, 20), wrote(2, 10, 11, process=1), read(1, 500)).ok
    assert judged(wrote(1, 0, 20), wrote(2, 10, 11, op="clear", process=1), read(1, 500)).ok


def test_the_next_write_supersedes_both_writers_that_raced():
    race = (wrote(1, 0, 20), wrote(2, 10, 11, process=1), wrote(3, 30, 31))
    assert stale_ages(*race, read(1, 500)) == [0.469]
    assert stale_ages(*race, read(2, 501)) == [0.47]


def test_a_load_has_no_excuse_if_it_overlaps_with_a_write():
    assert stale_ages(loaded(1, 0, 100), wrote(2, 10, 11), read(1, 500)) == [0.489]


def test_a_load_that_read_the_newer_version_is_innocent():
    assert judged(loaded(2, 10, 100), wrote(2, 9, 11), read(2, 500)).ok


def test_a_none_of_get_or_load_is_guilty_if_a_value_was_set():
    assert stale_ages(wrote(1, 0, 1), read(None, 500, op="get_or_load")) == [0.499]
    assert stale_ages(wrote(1, 0, 1, op="delete"), wrote(2, 10, 11), read(None, 500, op="get_or_load_many")) == [0.489]


def test_a_none_of_get_or_load_is_guilty_if_the_source_has_a_value_again():
    removed = wrote(1, 0, 1, op="delete")
    assert stale_ages(removed, wrote(2, 10, 11, op="clear", exists=True), read(None, 500, op="get_or_load")) == [0.489]


def test_a_none_of_get_or_load_is_innocent_if_the_key_was_removed_or_never_set():
    assert judged(read(None, 500, op="get_or_load")).ok
    assert judged(wrote(1, 0, 1), wrote(2, 10, 11, op="clear"), read(None, 500, op="get_or_load")).ok
    assert judged(wrote(1, 0, 1), wrote(2, 500, 900, op="delete"), read(None, 500, op="get_or_load")).ok
    assert judged(wrote(1, 0, 1, acked=False), read(None, 500, op="get_or_load")).ok
    assert judged(wrote(1, 0, 1), read(None, 50, op="get_or_load")).ok


def test_a_negative_load_stores_no_version():
    load = Load(0, "k", 1, 0, MS, None, True)
    assert len(judged(wrote(1, 0, 1, op="delete"), load, read(1, 50)).unknown) == 1


def test_places_that_have_the_same_version_agree():
    assert judged(wrote(1, 0, 1), read(1, 500, op="rest l1"), read(1, 500, op="rest l2", process=RUNNER)).ok


def test_a_place_without_the_key_agrees_with_all():
    assert judged(wrote(1, 0, 1), read(1, 500, op="rest l1"), read(None, 500, op="rest l2", process=RUNNER)).ok


def test_places_with_different_versions_disagree():
    race = (wrote(1, 0, 20), wrote(2, 10, 11, process=1))
    (found,) = judged(*race, read(1, 500, op="rest l1"), read(2, 500, op="rest l2", process=RUNNER)).disagreements
    assert (found.key, found.places) == ("k", {"l1 of 1": 1, "l2": 2})


@pytest.mark.parametrize(
    ("nowhere", "loads", "disagreements"),
    [(True, [2], 0), (False, [2], 1), (True, [], 1), (True, [1], 1)],
    ids=["carried out nowhere", "carried out by one tier", "not loaded", "an older version loaded"],
)
def test_places_may_differ_by_writes_that_no_tier_carried_out(nowhere, loads, disagreements):
    history = [
        wrote(1, 0, 1, acked=False),
        wrote(2, 10, 11, acked=False, nowhere=nowhere),
        *(loaded(version, 20, 21) for version in loads),
        read(1, 500, op="rest l3", process=RUNNER),
        read(2, 500, op="rest l2", process=RUNNER),
    ]
    assert len(judged(*history).disagreements) == disagreements


def test_places_that_agree_on_a_superseded_version_disagree_with_the_source():
    report = judged(wrote(1, 0, 1), wrote(2, 10, 11, op="delete"), read(1, 20, op="rest l2", process=RUNNER))
    assert "delete 2" in str(report.disagreements[0])


def test_a_read_after_the_ttl_is_guilty():
    assert judged(wrote(1, 0, 1, ttl=1), read(1, 1_050)).ok
    assert not judged(wrote(1, 0, 1, ttl=1), read(1, 1_200)).ok
    assert judged(wrote(1, 0, 1, ttl=1), read(1, 1_200), lag_s=0.3).ok


def test_a_later_load_of_the_same_version_lives_for_its_own_ttl():
    assert judged(wrote(1, 0, 1, ttl=1), loaded(1, 900, 950, ttl=1), read(1, 1_900)).ok


def test_a_stale_value_may_be_served_within_its_time_by_get_or_load_alone():
    assert judged(wrote(1, 0, 1, ttl=1), read(1, 2_500, op="get_or_load"), stale_ttl_s=2).ok
    assert len(judged(wrote(1, 0, 1, ttl=1), read(1, 2_500), stale_ttl_s=2).expired) == 1


def test_a_version_that_nobody_stored_is_guilty():
    assert len(judged(wrote(1, 0, 1, op="delete"), read(1, 500)).unknown) == 1
    assert len(judged(wrote(1, 0, 1), read(7, 500)).unknown) == 1
    assert len(judged(wrote(1, 900, 901), read(1, 500)).unknown) == 1


def failed_over(replicated, start, end, *, loses=True, keys=None):
    return Failover(replicated * MS, start * MS, end * MS, loses, keys)


LOST = (wrote(1, 0, 1), wrote(2, 10, 11), failed_over(5, 20, 300))


def test_a_write_that_the_replica_had_not_received_is_lost_and_supersedes_nothing():
    report = judged(*LOST, read(1, 500))
    assert report.ok
    assert [write.version for write in report.lost] == [2]
    assert report.lost_reads == 1
    assert "1 acknowledged writes had not reached the replica in time; 1 of them were lost, and 1 reads" in str(report)
    assert judged(*LOST, read(1, 500, process=0)).ok


def test_a_write_that_the_replica_had_received_is_not_lost():
    report = judged(wrote(1, 0, 1), wrote(2, 10, 11), failed_over(12, 20, 300), read(1, 500))
    assert len(report.stale) == 1
    assert (report.lost, report.lost_reads) == ([], 0)


def test_a_write_to_the_new_primary_is_not_lost():
    assert not judged(wrote(1, 0, 1), failed_over(5, 20, 300), wrote(2, 310, 311), read(1, 500)).ok
    assert not judged(*LOST, wrote(3, 310, 311), read(1, 500)).ok
    assert not judged(*LOST, wrote(3, 310, 311), read(2, 500)).ok


def test_a_primary_of_a_cluster_loses_writes_of_its_own_keys_only():
    writes = wrote(1, 0, 1), wrote(2, 10, 11)
    assert judged(*writes, failed_over(5, 20, 300, keys=("k", "other")), read(1, 500)).ok
    report = judged(*writes, failed_over(5, 20, 300, keys=("other",)), read(1, 500))
    assert (report.lost, len(report.stale)) == ([], 1)


def test_nothing_is_lost_if_another_tier_has_it():
    report = judged(wrote(1, 0, 1), wrote(2, 10, 11), failed_over(5, 20, 300, loses=False), read(1, 500))
    assert len(report.stale) == 1
    assert (report.unreplicated, report.lost) == (1, [])


def test_places_may_disagree_about_a_lost_write_until_the_next_write():
    rest = read(2, 600, op="rest l1"), read(1, 600, op="rest l3", process=RUNNER)
    assert judged(*LOST, *rest).ok
    assert len(judged(*LOST, wrote(3, 310, 311), *rest).disagreements) == 1
    assert len(judged(wrote(1, 0, 1), wrote(2, 10, 11), failed_over(12, 20, 300), *rest).disagreements) == 1


def complete(*events, versions):
    return check(History.of(events, processes=(0,), versions=versions)).problems


def test_a_complete_log_has_no_problems():
    assert complete(wrote(1, 0, 1), wrote(2, 2, 3), Finished(0, 2), versions={"k": 2}) == []


def test_a_log_without_its_last_line_is_a_problem():
    assert complete(wrote(1, 0, 1), versions={"k": 1}) == ["process 0 has not finished its log"]


def test_a_lost_event_is_a_problem():
    assert complete(read(None, 0, process=0), Finished(0, 2), versions={}) == [
        "the log of process 0 has 1 events, but it wrote 2"
    ]


def test_a_process_that_has_done_nothing_is_a_problem():
    assert complete(Finished(0, 0), versions={}) == ["process 0 has done nothing"]


def test_a_version_without_its_write_is_a_problem():
    (problem,) = complete(wrote(1, 0, 1), Finished(0, 1), versions={"k": 2})
    assert problem.startswith("k: ")


def test_an_error_is_a_problem():
    assert complete(wrote(1, 0, 1), Finished(0, 1, {"set: KeyError": 3}), versions={"k": 1}) == [
        "process 0: 3 x set: KeyError"
    ]


def test_the_witness_tells_the_shortest_story():
    report = judged(
        wrote(1, 0, 1, key="long"),
        *(wrote(version, version * 10, version * 10 + 1, key="long") for version in range(2, 9)),
        read(1, 5_000, key="long"),
        loaded(1, 100, 200),
        wrote(2, 150, 151, op="delete"),
        Fault("process 0 frozen", 120 * MS, 130 * MS),
        Fault("too late to matter", 900 * MS, 901 * MS),
        read(1, 160, process=0),
        read(1, 170),
        read(1, 180),
        read(1, 400),
    )
    first, _, *events = report.witness()
    assert first == "process 1 read version 1 of k 0.249 s after version 2 was acknowledged (delete in process 0):"
    assert [" ".join(line.split()) for line in events] == [
        "0.000 100.000 1 load -> 1",
        "20.000 30.000 process 0 frozen",
        "50.000 51.000 0 delete 2: acknowledged",
        "70.000 71.000 1 get -> 1",
        "300.000 301.000 1 get -> 1",
    ]
    assert "NOT OK" in str(report)


def test_the_witness_of_a_wrong_none_begins_with_its_load():
    negative = Load(0, "k", 1, 2 * MS, 3 * MS, None, True)
    report = judged(wrote(1, 0, 1, op="delete"), negative, wrote(2, 50, 51), read(None, 400, op="get_or_load"))
    first, _, load, *_ = report.witness()
    assert first.startswith("process 1 read nothing of k 0.349 s after version 2 was acknowledged (set in process 0)")
    assert load.endswith("load -> 1, which is no value")


def test_the_story_of_a_disagreement_begins_with_the_newest_acknowledged_write():
    report = judged(
        wrote(1, 0, 1),
        wrote(2, 10, 11),
        Fault("postgres frozen", 12 * MS, 30 * MS),
        wrote(3, 15, 20, acked=False),
        loaded(3, 25, 26, process=1),
        wrote(9, 20, 21, key="other"),
        read(3, 400, op="rest l2", process=RUNNER),
        read(2, 400, op="rest l3", process=RUNNER),
    )
    told = str(report).partition("what happened to k:\n")[2].splitlines()
    assert [" ".join(line.split()) for line in told[1:]] == [
        "0.000 1.000 0 set 2: acknowledged",
        "2.000 20.000 postgres frozen",
        "5.000 10.000 0 set 3: failed,",
        "15.000 16.000 1 load -> 3",
        "390.000 391.000 runner rest l2 -> 3",
        "390.000 391.000 runner rest l3 -> 2",
    ]


def test_a_log_is_read_as_it_was_written(tmp_path):
    log = Log(tmp_path, 0)
    events = [wrote(1, 0, 1), loaded(1, 2, 3), read(1, 4), Fault("cut", 5, 6)]
    for event in events:
        log.add(event)
    log.finish(stats={"l1 hits": 1})
    history = read_history(tmp_path, processes=[0], versions={"k": 1})
    assert [*history.writes, *history.loads, *history.reads, *history.faults] == events
    assert history.finished == [Finished(0, 4, {}, {"l1 hits": 1})]


def test_a_torn_line_is_a_problem(tmp_path):
    (tmp_path / "process0.jsonl").write_bytes(b'{"type":"Read","proc\n')
    assert (
        "process0.jsonl has a line that cannot be read"
        in check(read_history(tmp_path, processes=[0], versions={})).problems
    )
