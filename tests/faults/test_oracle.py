"""The oracle of the fault tests finds what it looks for."""

import asyncio
import os
import time

import pytest

from faults.oracle import LONGEST_TURN_S, Oracle


async def _late(oracle):
    await oracle.call("get", asyncio.sleep(0.2), within=0.01)


async def _blocked(oracle):
    end = time.thread_time() + 2 * LONGEST_TURN_S
    while time.thread_time() < end:
        pass
    await asyncio.sleep(0.01)


async def _memory(oracle):
    data = b"x" * (128 << 20)
    await asyncio.sleep(0.05)
    del data


async def _forgotten_error(oracle):
    async def fail():
        raise ValueError

    task = asyncio.create_task(fail())
    await asyncio.wait((task,))


async def _error_in_a_callback(oracle):
    asyncio.get_running_loop().call_soon(int, "no number")
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_late, "get took"),
        (_blocked, "the loop was blocked"),
        (_memory, "MiB more memory"),
        (_forgotten_error, "never retrieved"),
        (_error_in_a_callback, "no number"),
    ],
)
async def test_a_fault_is_found(fault, message):
    with pytest.raises(AssertionError, match=message):
        # To write 128 MiB may take long.
        async with Oracle(longest_turn_s=LONGEST_TURN_S if fault is _blocked else 10) as oracle:
            await fault(oracle)


async def test_a_task_that_is_left_is_found():
    with pytest.raises(AssertionError, match="tasks"):
        async with Oracle():
            task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()


async def test_a_descriptor_that_is_left_is_found():
    with pytest.raises(AssertionError, match="descriptors"):
        async with Oracle():
            left = os.open(".", os.O_RDONLY)
    os.close(left)


async def test_a_call_within_its_time_is_no_fault():
    async with Oracle() as oracle:
        assert await oracle.call("get", asyncio.sleep(0.01, "value"), within=0.05) == "value"
