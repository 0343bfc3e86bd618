"""`time_limit`: also in a task that was cancelled before."""

import asyncio

import pytest

from acgsperf.timeouts import time_limit


async def test_it_ends_with_a_timeout_error():
    with pytest.raises(TimeoutError):
        async with time_limit(0.001):
            await asyncio.Event().wait()


async def test_what_ends_in_time_is_not_disturbed():
    async with time_limit(0.001):
        await asyncio.sleep(0)
    await asyncio.sleep(0.005)


async def test_a_task_that_was_cancelled_gets_a_timeout_error_too():
    ended_by = []

    async def closes_late():
        try:
            await asyncio.Event().wait()
        finally:
            try:
                async with time_limit(0.001):
                    await asyncio.Event().wait()
            except BaseException as error:
                ended_by.append(type(error))

    task = asyncio.create_task(closes_late())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended_by == [TimeoutError]


async def test_a_cancellation_by_someone_else_propagates():
    async def waits():
        async with time_limit(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
