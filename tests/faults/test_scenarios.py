"""The faults of `scenarios.py`: each is withstood, and everything works soon after it.

`pytest tests/faults/test_scenarios.py -rP` shows what was measured; `-m soak` lets each fault last longer.
"""

import asyncio

import pytest
from history.servers import RedisServer, redis_executable

from faults.laboratory import Laboratory
from faults.scenarios import SCENARIOS

_BEFORE_S = 0.2
_AFTER_S = 0.1


@pytest.fixture(scope="module")
def redis_server():
    with RedisServer(redis_executable()) as server:
        yield server


def _loops():
    yield pytest.param(asyncio.new_event_loop, id="asyncio")
    try:
        import uvloop
    except ImportError:
        return
    yield pytest.param(uvloop.new_event_loop, id="uvloop")


LOOPS = list(_loops())


def check(scenario, redis, postgres, loop, *, long):
    with asyncio.Runner(loop_factory=loop) as runner:
        print(runner.run(_run(scenario, redis, postgres, long)))


async def _run(scenario, redis, postgres, long):
    # With its first Unix domain socket, an event loop of uvloop opens /dev/null, and keeps it.
    _, writer = await asyncio.open_unix_connection(redis.socket)
    writer.close()
    await writer.wait_closed()
    lab = Laboratory(redis, postgres, str(scenario), damage=scenario.damage)
    lab.pause_s = scenario.pause_s
    async with lab.running(proxied=scenario.proxied):
        await asyncio.sleep(_BEFORE_S)
        before = sum(lab.report.failed.values())
        await scenario.fault(lab, long)
        failed = sum(lab.report.failed.values()) - before
        await lab.recovers()
        await asyncio.sleep(_AFTER_S)
        busy = lab.is_busy()
    assert scenario.bites is None or bool(failed) == scenario.bites or busy, str(lab.report)
    return lab.report


SHORT = [scenario for scenario in SCENARIOS if not scenario.soak]


@pytest.mark.parametrize("scenario", SHORT, ids=str)
def test_a_fault_is_withstood(scenario, redis_server, victim):
    check(scenario, redis_server, victim, asyncio.new_event_loop, long=False)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_fault_is_withstood_for_longer(scenario, redis_server, victim, loop):
    check(scenario, redis_server, victim, loop, long=True)
