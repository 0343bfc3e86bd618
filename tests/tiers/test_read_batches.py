"""How reads of single keys are grouped into batches."""

import asyncio

import pytest

from acgsperf.tiers.read_batches import MAX_READS_TOGETHER, SPLIT_FROM, ReadBatches
from acgsperf.tiers.server_calls import ServerCalls


class Server:
    """Answers when `answer` is set: each key with its upper case."""

    def __init__(self):
        self.batches = []
        self.answer = asyncio.Event()

    async def fetch(self, keys):
        self.batches.append(list(keys))
        await self.answer.wait()
        return [key.upper() for key in keys]


@pytest.fixture
async def server():
    return Server()


def opened(server, deadline=5):
    calls = ServerCalls("test", deadline, lambda: None, lambda error: False)
    calls.open("namespace")
    reads = ReadBatches(calls, server.fetch, deadline)
    reads.open()
    reads.queue.guard(lambda: None, calls.breaker, calls.breaker.state, ())
    return calls, reads


@pytest.fixture
async def reads(server):
    calls, reads = opened(server)
    yield reads
    server.answer.set()
    await asyncio.gather(*calls.tasks)
    reads.close()
    calls.close()


def names(start, count):
    return [f"k{number}" for number in range(start, start + count)]


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_few_reads_of_a_turn_are_one_batch(reads, server):
    keys = names(0, SPLIT_FROM - 1)
    futures = list(map(reads.queue.begin, keys))
    await turns()
    assert server.batches == [keys]
    server.answer.set()
    assert await asyncio.gather(*futures) == [key.upper() for key in keys]


@pytest.mark.parametrize("count", [SPLIT_FROM, SPLIT_FROM + 1, 50, MAX_READS_TOGETHER])
async def test_many_reads_of_a_turn_are_two_batches(reads, server, count):
    keys = names(0, count)
    futures = list(map(reads.queue.begin, keys))
    await turns()
    assert server.batches == [keys[: count // 2], keys[count // 2 :]]
    server.answer.set()
    assert await asyncio.gather(*futures) == [key.upper() for key in keys]
    assert (reads.hits, reads.misses) == (count, 0)
    assert reads.latency.count == count


async def test_many_reads_are_one_batch_while_another_is_in_flight(reads, server):
    reads.queue.begin("first")
    await turns()
    keys = names(0, 50)
    for key in keys:
        reads.queue.begin(key)
    await turns()
    assert server.batches == [["first"], keys]


async def test_a_call_for_many_keys_is_not_split(reads, server):
    keys = names(0, 100)
    found = reads.get_many(keys)
    single = list(map(reads.queue.begin, names(100, 50)))
    await turns()
    assert server.batches == [names(100, 50) + keys]
    server.answer.set()
    assert await found == {key: key.upper() for key in keys}
    assert len(await asyncio.gather(*single)) == 50


async def test_reads_that_come_before_the_second_batch_travel_with_it(reads, server):
    for key in names(0, 50):
        reads.queue.begin(key)
    await turns(1)
    reads.queue.begin("late")
    await turns()
    assert server.batches == [names(0, 25), [*names(25, 25), "late"]]


async def test_a_call_for_many_keys_joins_the_second_batch(reads, server):
    for key in names(0, 50):
        reads.queue.begin(key)
    await turns(2)
    found = reads.get_many(["a", "b"])
    await turns()
    assert server.batches == [names(0, 25), names(25, 25), ["a", "b"]]
    server.answer.set()
    assert await found == {"a": "A", "b": "B"}
    assert (reads.hits, reads.misses) == (52, 0)


async def test_both_batches_have_the_deadline_of_their_reads(server):
    calls, reads = opened(server, deadline=0.05)
    started = asyncio.get_running_loop().time()
    futures = list(map(reads.queue.begin, names(0, 50)))
    assert await asyncio.gather(*futures) == [None] * 50
    assert asyncio.get_running_loop().time() - started >= 0.05
    assert calls.errors == {"TimeoutError": 2}
    assert (reads.hits, reads.misses) == (0, 50)
    reads.close()
    calls.close()


async def test_reads_that_wait_for_the_second_batch_are_answered_by_close(server):
    calls, reads = opened(server)
    futures = list(map(reads.queue.begin, names(0, 50)))
    await turns(1)
    for task in calls.tasks:
        task.cancel()
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    reads.close()
    assert await asyncio.gather(*futures) == [None] * 50
    calls.close()
