"""`Deadline`: one timer for many waits."""

import asyncio
import socket
import time

import pytest

from acgsperf.tiers.deadline import Deadline


async def test_a_wait_ends_without_an_error_when_the_deadline_passes():
    deadline = Deadline(0.01)
    with deadline.wait() as wait:
        await asyncio.Event().wait()
    assert wait.passed
    assert asyncio.current_task().cancelling() == 0


async def test_a_wait_that_ends_in_time_is_not_cancelled():
    deadline = Deadline(0.01)
    with deadline.wait() as wait:
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)
    assert not wait.passed
    deadline.close()


async def test_waits_that_start_later_end_later():
    deadline = Deadline(0.02)
    ended = []

    async def one(name, delay):
        await asyncio.sleep(delay)
        with deadline.wait():
            await asyncio.Event().wait()
        ended.append(name)

    await asyncio.gather(one("late", 0.01), one("early", 0))
    assert ended == ["early", "late"]


async def test_a_cancellation_by_someone_else_propagates():
    deadline = Deadline(60)

    async def waiting():
        with deadline.wait():
            await asyncio.Event().wait()

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline.close()


async def test_a_cancellation_together_with_the_deadline_propagates():
    deadline = Deadline(0.01)

    async def waiting():
        with deadline.wait() as wait:
            try:
                await asyncio.Event().wait()
            finally:
                # The deadline has ended the wait; now the task is cancelled, too.
                asyncio.current_task().cancel()
        return wait

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(waiting())


async def test_an_error_propagates():
    deadline = Deadline(60)
    with pytest.raises(KeyError), deadline.wait():
        raise KeyError("gone")
    deadline.close()


async def test_a_closed_deadline_can_be_used_again():
    deadline = Deadline(0.01)
    with deadline.wait():
        pass
    deadline.close()
    with deadline.wait() as wait:
        await asyncio.Event().wait()
    assert wait.passed


async def test_a_reply_that_arrives_while_the_loop_is_blocked_is_in_time():
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    deadline = Deadline(0.02)
    with theirs, deadline.wait() as wait:
        theirs.sendall(b"reply\n")
        time.sleep(0.05)  # noqa: ASYNC251
        # As in the tiers, several turns of the loop lie between the socket and the caller.
        reply = await asyncio.create_task(reader.readline())
    assert (reply, wait.passed) == (b"reply\n", False)
    deadline.close()
    writer.close()
    await writer.wait_closed()


async def test_a_loop_that_is_blocked_while_it_catches_up_catches_up_again():
    loop = asyncio.get_running_loop()
    deadline = Deadline(0.02)
    reply = loop.create_future()

    def block(times):
        time.sleep(0.05)
        if times:
            loop.call_soon(block, times - 1)
        else:
            # As in the tiers, several turns of the loop lie between the socket and the caller.
            loop.call_soon(loop.call_soon, loop.call_soon, reply.set_result, "reply")

    with deadline.wait() as wait:
        loop.call_soon(block, 2)
        await reply
    assert not wait.passed
    deadline.close()


async def test_a_loop_that_was_blocked_delays_no_wait_for_long():
    deadline = Deadline(0.02)
    asyncio.get_running_loop().call_soon(time.sleep, 0.05)
    began = time.monotonic()
    with deadline.wait() as wait:
        await asyncio.Event().wait()
    assert wait.passed
    assert 0.055 < time.monotonic() - began < 0.5


async def test_a_wait_that_began_too_early_ends_at_once():
    deadline = Deadline(0.02)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with deadline.wait(began - 1) as wait:
        await asyncio.Event().wait()
    assert wait.passed
    assert loop.time() - began < 0.008
