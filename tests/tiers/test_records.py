"""Records: what they name, and how they are read."""

import pytest
from msgspec import msgpack

from acgsperf.tiers.records import MalformedRecordError, Record, RecordKind, of_keys, of_tag, packed, texts, unpacked

WRITER = b"process1"


def test_a_record_names_keys_of_up_to_1024_bytes_and_says_that_longer_ones_have_changed():
    short, long = "k" * 1_024, "\N{SNOWMAN}" * 342
    named = Record(RecordKind.KEYS, ((short.encode(), b"id"),))
    assert of_keys(RecordKind.KEYS, [(short, b"id")]) == [named]
    assert of_keys(RecordKind.KEYS, [(short, b"id"), (long, b"id")]) == [named, Record(RecordKind.LONG_KEYS)]
    assert of_keys(RecordKind.KEYS, [(long, b"id"), ("k" * 1_025, b"id")]) == [Record(RecordKind.LONG_KEYS)]


@pytest.mark.parametrize("kind", RecordKind)
def test_a_record_is_read_as_it_was_written(kind):
    record = Record(kind, ((b"key", b"id"), (b"\xed\xa0\x80", b"")))
    assert unpacked(packed(record, WRITER, 2**62)) == Record(kind, record.items, WRITER, 2**62)
    assert texts(record.items) == [("key", b"id"), ("\ud800", b"")]


def test_a_record_has_no_writer_and_no_time_until_it_is_packed():
    record = of_tag(RecordKind.TAG, "\ud800")
    assert (record.items, record.writer, record.sent_us) == (((b"\xed\xa0\x80", b""),), b"", 0)


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError, match="immutable"):
        Record(RecordKind.CLEAR).kind = RecordKind.HELLO


@pytest.mark.parametrize(
    ("wire", "problem"),
    [
        ([2, WRITER, 0, "k", []], "version of a record must be 1, got 2"),
        ([1, WRITER, 0, "?", []], "not a record"),
        ([1, WRITER, 0, "k", [[b"key"]]], "not a record"),
        ([1, "text", 0, "k", []], "not a record"),
        ([1, WRITER, 0, "k"], "not a record"),
        ({}, "not a record"),
        (None, "not a record"),
    ],
)
def test_what_is_no_record_is_refused(wire, problem):
    with pytest.raises(MalformedRecordError, match=problem):
        unpacked(msgpack.encode(wire))


def test_a_record_that_is_cut_is_refused():
    data = packed(Record(RecordKind.KEYS, ((b"key", b"id"),)), WRITER, 1)
    for size in range(len(data)):
        with pytest.raises(MalformedRecordError, match="not a record"):
            unpacked(data[:size])
