"""Records that wait to be published, with a server that accepts some of them or none."""

import asyncio

import pytest

from acgsperf.backplane.outbox import Outbox
from acgsperf.tiers.records import Record, RecordKind


class Server:
    """Accepts records, if it is up."""

    def __init__(self):
        self.up = True
        self.accepts = 1_000
        self.records = []
        self.answering = asyncio.Event()
        self.answering.set()

    async def send(self, records):
        await self.answering.wait()
        if not self.up:
            raise ConnectionError
        accepted = records[: self.accepts]
        self.records += accepted
        return len(accepted)

    @property
    def tags(self):
        return [record.items[0][0].decode() if record.items else "clear" for record in self.records]


@pytest.fixture
def server():
    return Server()


def tag(number):
    return Record(RecordKind.TAG, ((str(number).encode(), b""),), b"a writer", 5)


async def test_records_are_sent_in_order(server):
    outbox = Outbox(server.send)
    assert await asyncio.gather(*(outbox.publish(tag(number)) for number in range(250))) == [True] * 250
    assert server.tags == [str(number) for number in range(250)]
    assert len(outbox) == 0
    await outbox.close(1)


async def test_what_the_server_does_not_accept_is_sent_again_from_there(server, until):
    server.accepts = 2
    outbox = Outbox(server.send)
    published = await asyncio.gather(*(outbox.publish(tag(number)) for number in range(5)))
    assert published == [True, True, False, False, False]
    await until(lambda: len(server.records) == 5)
    assert server.tags == ["0", "1", "2", "3", "4"]
    await outbox.close(1)


async def test_too_many_records_become_one_that_clears(server, until):
    server.up = False
    outbox = Outbox(server.send, limit=10)
    assert not any(await asyncio.gather(*(outbox.publish(tag(number)) for number in range(35))))
    assert len(outbox) <= 10
    server.up = True
    await until(lambda: not len(outbox))
    # What came after the clearing is sent as well.
    assert server.tags[0] == "clear"
    assert server.tags[1:] == [str(number) for number in range(35 - len(server.tags) + 1, 35)]
    assert (server.records[0].writer, server.records[0].sent_us) == (b"a writer", 5)
    await outbox.close(1)


async def test_too_many_records_during_an_attempt_keep_what_is_being_sent(server, until):
    server.answering.clear()
    outbox = Outbox(server.send, limit=10)
    futures = [outbox.publish(tag(number)) for number in range(5)]
    await asyncio.sleep(0)
    futures += [outbox.publish(tag(number)) for number in range(5, 12)]
    server.answering.set()
    assert await asyncio.gather(*futures) == [True] * 5 + [False] * 5 + [True] * 2
    assert server.tags == ["0", "1", "2", "3", "4", "clear", "11"]
    await outbox.close(1)


async def test_closing_sends_what_waits_and_waits_for_no_server_that_is_silent(server):
    outbox = Outbox(server.send)
    future = outbox.publish(tag(1))
    await outbox.close(5)
    assert await future
    outbox = Outbox(server.send)
    server.answering.clear()
    future = outbox.publish(tag(2))
    await outbox.close(0.01)
    assert not await future
    assert not await outbox.publish(tag(3))
    assert server.tags == ["1"]


async def test_a_caller_that_gives_up_waiting_stops_nothing(server, until):
    outbox = Outbox(server.send)
    outbox.publish(tag(1)).cancel()
    assert await outbox.publish(tag(2))
    assert server.tags == ["1", "2"]
    await outbox.close(1)
