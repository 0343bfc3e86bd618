"""What is passed on to a cache, and how it is counted."""

import time

import pytest
from conftest import Recorder
from msgspec.structs import replace

from acgsperf.backplane import BackplaneState
from acgsperf.backplane.receiver import Counts, Receiver, parsed
from acgsperf.tiers.records import Record, RecordKind, packed
from acgsperf.tiers.server_clock import ServerClock

OWN, OTHER = b"process1", b"process2"


@pytest.fixture
def listener():
    return Recorder()


@pytest.fixture
def receiver(listener):
    return Receiver("namespace", listener, OWN, 5.0, Counts())


def written(writer=OTHER, sent_us=0):
    return Record(RecordKind.KEYS, ((b"key", b"id"),), writer, sent_us)


def counted(receiver):
    stats = receiver.counts.stats(queued=7)
    return {
        name: getattr(stats, name)
        for name in ("sent", "received", "applied", "recovered", "gaps", "malformed", "queued")
        if getattr(stats, name)
    }


def test_a_record_of_another_cache_is_applied(receiver, listener):
    receiver.take(written(), ServerClock(), recovering=False)
    assert listener.keys == ["key"]
    assert counted(receiver) == {"received": 1, "applied": 1, "queued": 7}
    receiver.take(written(), ServerClock(), recovering=True)
    assert counted(receiver) == {"received": 2, "applied": 2, "recovered": 1, "queued": 7}


def test_a_record_of_the_cache_itself_is_counted_as_sent_and_not_applied(receiver, listener):
    for _ in range(2):
        receiver.take(written(OWN), ServerClock(), recovering=True)
    assert not listener.records
    assert counted(receiver) == {"sent": 2, "queued": 7}


def test_what_is_no_record_is_counted_as_malformed(receiver, listener):
    for data in (b"?", None, "text"):
        receiver.take(parsed(data), ServerClock(), recovering=False)
    assert not listener.records
    assert counted(receiver) == {"received": 3, "malformed": 3, "queued": 7}
    assert parsed(packed(written(), OTHER, 1)) == replace(written(), sent_us=1)


def test_a_greeting_is_not_counted(receiver, listener):
    receiver.take(Record(RecordKind.HELLO, (), OTHER), ServerClock(), recovering=False)
    assert not listener.records
    assert counted(receiver) == {"queued": 7}


def lag_of(receiver, ago_s):
    """Take a record that was written some seconds ago; return the lag, and its least and its greatest value."""
    clock = ServerClock()
    now = time.monotonic()
    clock.measured(now, now, 2_000_000_000.0)
    began_us = clock.now_us()
    sent_us = began_us - int(ago_s * 1e6)
    receiver.take(written(sent_us=sent_us), clock, recovering=False)
    lag = receiver.counts.stats(0).lag
    return lag, *(max(now_us - sent_us, 0) * 1_000 for now_us in (began_us, clock.now_us()))


@pytest.mark.parametrize("ago_s", [0.25, 3_590, 0, -50], ids=["usual", "almost an hour", "none", "clocks that differ"])
def test_the_lag_is_the_time_since_the_write_in_nanoseconds(receiver, ago_s):
    lag, least, most = lag_of(receiver, ago_s)
    assert lag.count == 1
    assert least <= lag.max <= most


@pytest.mark.parametrize("ago_s", [3_610, -70], ids=["more than an hour", "more than a minute ahead"])
def test_an_impossible_lag_is_not_counted(receiver, ago_s):
    lag, *_ = lag_of(receiver, ago_s)
    assert lag.count == 0


def test_a_record_that_cannot_be_applied_is_a_gap_for_the_cache(receiver, listener, caplog):
    listener.fail = ValueError("no")
    receiver.take(written(), ServerClock(), recovering=False)
    assert listener.misses == 1
    assert "backplane 'namespace': the cache could not apply a record" in caplog.text
    assert counted(receiver) == {"received": 1, "applied": 1, "queued": 7}


def test_the_state_tells_whether_records_arrive(receiver, listener):
    def state():
        return receiver.counts.stats(0).state

    assert state() is BackplaneState.CONNECTING
    receiver.lost()
    assert state() is BackplaneState.CONNECTING
    receiver.start(100.0, b"1-0")
    assert (state(), receiver.position, listener.until, listener.misses) == (BackplaneState.FOLLOWING, b"1-0", 105.0, 1)
    receiver.lost()
    assert (state(), receiver.position) == (BackplaneState.RECOVERING, b"1-0")
    receiver.level(101.0, b"2-0")
    assert (state(), receiver.position, listener.until, listener.misses) == (BackplaneState.FOLLOWING, b"2-0", 106.0, 1)
    receiver.missed()
    assert (state(), receiver.position, listener.misses) == (BackplaneState.RECOVERING, b"", 1)
    assert counted(receiver) == {"gaps": 1, "queued": 7}
    receiver.refused()
    assert state() is BackplaneState.OFF
