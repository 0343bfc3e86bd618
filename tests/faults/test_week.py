"""Days with their load, deployments and failovers: row 19. `make week` is the long form."""

import pytest

from faults.week import DAY_S, GRACE_S, Cause, Report, Week, is_good


# A minute. Other tests beside it would make its requests slow, and raise alerts without a cause.
@pytest.mark.alone
@pytest.mark.timeout(900)
async def test_two_short_days(scratch):
    # After a failover of Redis, L2 is empty at first. An alert of the following seconds is its consequence.
    report = await Week(2, day_s=12, grace_s=3).run(scratch)
    print(report)
    assert not report.problems
    assert report.answers > 5_000
    assert len(report.stored) == 2
    assert is_good(report, flat_bytes=16 << 20)


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
async def test_a_week(scratch):
    report = await Week(8).run(scratch)
    print(report)
    assert is_good(report)


def test_an_alert_needs_a_cause_in_time():
    cause = Cause("deployment", 10.0, 12.0)
    assert [cause.explains(at, GRACE_S) for at in (9.9, 10.0, 22.0, 22.1)] == [False, True, True, False]
    assert Cause("failover", 10.0).explains(10_000.0, GRACE_S)
    assert DAY_S == 864


@pytest.mark.parametrize("resource", ["resident", "descriptors", "threads", "tasks"])
def test_what_grows_is_not_good(resource):
    hours = [{"resident": 1e8, "descriptors": 30, "threads": 2, "tasks": 9} for _ in range(9)]
    assert is_good(Report(hours=hours))
    for hour in hours[-3:]:
        hour[resource] += 9 << 20
    assert not is_good(Report(hours=hours))


def test_a_problem_or_an_alert_without_a_cause_is_not_good():
    hours = [dict.fromkeys(("resident", "descriptors", "threads", "tasks"), 1)] * 3
    assert is_good(Report(hours=hours, alerts=[("p99", "deployment")]))
    assert not is_good(Report(hours=hours, alerts=[("p99", None)], seconds=100.0, busy_s=10))
    assert is_good(Report(hours=hours, alerts=[("p99", None)], seconds=100.0, busy_s=11))
    assert not is_good(Report(hours=hours, problems=["instance 0 ended too early"]))
