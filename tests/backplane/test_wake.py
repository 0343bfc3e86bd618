"""`Wake`: a reading begins at once after a pause, and readings keep a distance while there is always something new."""

import asyncio
import itertools
import time

import pytest

from acgsperf.backplane.postgres_reader import PostgresReader
from acgsperf.backplane.wake import Wake
from acgsperf.tiers.postgres_schema import channel_of


@pytest.fixture
def wake():
    return Wake()


async def waited(wake, seconds=5):
    began = time.monotonic()
    await wake.wait(seconds)
    return time.monotonic() - began


async def test_a_wait_ends_when_there_is_something_new(wake):
    asyncio.get_running_loop().call_later(0.01, wake.set)
    assert 0.008 < await waited(wake) < 2


async def test_a_wait_ends_after_its_time(wake):
    assert 0.008 < await waited(wake, 0.01) < 2


async def test_readings_keep_a_distance_that_grows_while_there_is_always_something_new(wake):
    begun = []
    for _ in range(8):
        wake.set()
        await wake.wait(5)
        wake.clear()
        begun.append(time.monotonic())
    distances = [after - before for before, after in itertools.pairwise(begun)]
    # A timer of the event loop may be early by its resolution.
    for distance, least in zip(distances, (0.001, 0.002, 0.004, 0.008, 0.01, 0.01, 0.01), strict=True):
        assert distance > least - 0.0005


async def test_after_a_pause_a_reading_begins_at_once(wake, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("acgsperf.backplane.wake.asyncio.sleep", sleep)
    for now in (100.0, 100.0, 100.0, 100.1, 100.1):
        monkeypatch.setattr("acgsperf.backplane.wake.monotonic", lambda now=now: now)
        wake.set()
        await wake.wait(5)
        wake.clear()
    assert slept == pytest.approx([0.001, 0.002, 0.001])


async def test_a_process_does_not_read_after_each_of_many_commits(
    postgres, opened, connection, table, namespace, monkeypatch, until
):
    readings = []
    of_reader = PostgresReader._round

    async def counted(reader, connection):
        readings.append(time.monotonic())
        await of_reader(reader, connection)

    monkeypatch.setattr(PostgresReader, "_round", counted)
    await opened(postgres(), namespace)
    channel = channel_of(table, namespace)
    # Notifications arrive as fast as they can be sent, without a record, so that a reading takes no time.
    readings.clear()
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        await connection.execute("SELECT pg_notify($1, '')", channel)
    # After the first five, they are 10 ms apart, and there is one every 250 ms in any case. Each moment without a
    # notification, of which a busy machine has many, lets five be closer to each other again.
    assert len(readings) <= 2 * (time.monotonic() - began) / 0.01 + 10
