"""The machinery of the history checker works: processes, faults, logs, and the search for lost writes."""

from .run import run
from .truth import Truth
from .worker import _WEIGHTS

# A machine that is busy with other tests may take its time: no write must fail for that.
PATIENT = {"tier_deadline_s": 5.0, "pause_s": 0.004}


def test_a_counter_grows_by_one_for_each_process_that_raises_it(tmp_path):
    mine, theirs = Truth(tmp_path, ["k"]), Truth(tmp_path, ["k"])
    assert [mine.raise_version("k"), theirs.raise_version("k"), mine.raise_version("k")] == [1, 2, 3]
    assert theirs.current("k") == 3
    assert theirs.raise_version("k", exists=False) == 4
    assert [mine.exists("k", version) for version in range(5)] == [False, True, True, True, False]
    mine.close()
    theirs.close()


def test_a_claimed_key_has_one_writer(tmp_path):
    mine, theirs = Truth(tmp_path, ["a", "b"]), Truth(tmp_path, ["a", "b"])
    assert mine.claim(["a"]) == ["a"]
    assert mine.claim(["a"]) == []
    assert theirs.claim(["a", "b"]) == ["b"]
    mine.release(["a"])
    assert theirs.claim(["a"]) == ["a"]
    mine.close()
    theirs.close()


ASKED = {(number, op) for number in range(3) for op in ("get", "get_local", "get_or_load", "rest l1", "rest get")}
AT_REST = {(-1, "rest l2"), (-1, "rest l3")}


async def test_every_process_works_and_logs_all_that_it_does(servers_of_a_run):
    # On a busy machine, a short run may lack some operations, or its last operation may have cleared the tiers.
    for seconds in (1.5, 3, 6):
        report = await run("plain", **servers_of_a_run, processes=3, seconds=seconds, **PATIENT)
        history = report.history
        assert report.problems == []
        assert report.unknown == []
        reads = {(read.process, read.op) for read in history.reads}
        assert reads >= ASKED
        assert {write.process for write in history.writes} == {0, 1, 2}
        assert {load.process for load in history.loads} == {0, 1, 2}
        missing = AT_REST - reads
        missing |= set(_WEIGHTS) - {"expire", "clear"} - {each.op for each in (*history.writes, *history.reads)}
        missing |= {name for name in ("l1 hits", "l2 hits") if report.stats[name] == 0}
        if not missing:
            break
    assert not missing, report


async def test_a_lost_write_is_found_and_nothing_else(servers_of_a_run):
    honest = await run("plain", **servers_of_a_run, processes=1, seconds=1, lag_s=0, **PATIENT)
    assert honest.ok, str(honest)
    lying = await run("plain", **servers_of_a_run, processes=1, seconds=3, lag_s=0, lost=0.2, **PATIENT)
    assert lying.stale, str(lying)
    assert lying.problems == []
    lost = {(write.key, write.version) for write in lying.history.writes if write.detail == "lost on purpose"}
    assert {(stale.newer.key, stale.newer.version) for stale in lying.stale} <= lost


async def test_a_write_that_is_lost_otherwise_is_found_in_spite_of_a_failover(servers_of_a_run):
    """What replication loses is no excuse for the rest."""
    options = {"processes": 1, "seconds": 6.5, "lag_s": 0, **PATIENT}
    report = await run("promotion-l3", **servers_of_a_run, **options, lost=0.2)
    assert len(report.history.failovers) == 1
    assert report.stale, str(report)
    lost = {(write.key, write.version) for write in report.history.writes if write.detail == "lost on purpose"}
    assert {(stale.newer.key, stale.newer.version) for stale in report.stale} <= lost
