"""Processes that use one cache lose no acknowledged write, whatever happens to them and to their servers.

`HISTORY_SECONDS=10 pytest tests/history/test_modes.py` lets each mode run for longer.
"""

import os

import pytest

from .modes import MODES
from .run import run

# How long the processes of a mode work. A mode with a fault needs some seconds for one.
SECONDS = float(os.environ.get("HISTORY_SECONDS", "4"))
SHORTEST_S = {
    "frozen": 5.5,
    "frozen-redis": 4.5,
    "frozen-postgres": 4.5,
    "restart-empty": 4.5,
    "restart-snapshot": 4.5,
    "restart-postgres": 7.5,
    "failover": 6.5,
    "failover-stalls": 7.5,
    "failover-l2": 6.5,
    "failover-frozen": 7.5,
    "cluster": 6.0,
    "cluster-failover": 6.5,
    "cluster-frozen": 7.5,
    "cluster-reshard": 5.0,
    "promotion": 6.5,
    "promotion-l3": 6.5,
}
SOAK_S = 120.0


async def check(mode, seconds, servers_of_a_run, **plan):
    report = await run(mode, seconds=seconds, **servers_of_a_run, **plan)
    assert report.ok, str(report)
    # A cache that never answers is never wrong. While PostgreSQL stalls, few writes are acknowledged everywhere.
    assert report.found > report.reads / 4, str(report)
    assert report.acknowledged > report.reads / 1_000, str(report)


# If other tests run at the same time, most writes miss their deadlines, and prove nothing. Three modes at a time are
# fine on two cores, because each sends a third of the requests of the long form.
@pytest.mark.few_at_once
@pytest.mark.parametrize("mode", MODES)
async def test_no_acknowledged_write_is_lost(mode, servers_of_a_run):
    await check(mode, max(SECONDS, SHORTEST_S.get(mode, 0.0)), servers_of_a_run, pause_s=0.024)


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
async def test_no_acknowledged_write_is_lost_in_minutes(mode, servers_of_a_run):
    await check(mode, SOAK_S, servers_of_a_run)
