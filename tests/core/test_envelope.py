"""The envelopes of entries, as both readers open them: on real servers, see tests/tiers."""

import datetime
import enum
import math
import struct
import sys
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ids import name_of
from msgspec import Struct, msgpack
from msgspec.structs import replace

from acgsperf._native import envelope_format as envelope
from acgsperf._native import zstd as zstd_module
from acgsperf._native.entry import Packed
from acgsperf.tiers import Entry

KEY = b"k"
NOW = 1_000.0
TOKEN = b"namespce"
ID = b"12345678"
times = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([NOW, NOW + 1, 0.0])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
entries = st.builds(
    Entry,
    value=values | st.builds(Packed, st.binary()),
    created_at=st.floats(allow_nan=False, allow_infinity=False),
    fresh_until=times,
    kept_until=times,
    tags=st.just(()) | st.lists(st.text(max_size=4), max_size=3).map(tuple),
    negative=st.booleans(),
    id=st.binary(min_size=8, max_size=8),
    stamp=st.integers(0, 2**64 - 1),
)
keys = st.text(max_size=4).map(envelope.identity)


def tokens_of(entry):
    return [b"%08d" % number for number in range(len(entry.tags))]


def sealed(entry, key=KEY, *, offset=0.0, token=TOKEN, tokens=None):
    typed = isinstance(entry.value, Packed)
    payload = entry.value.data if typed else envelope.pack_value(entry.value)
    flags = envelope.TYPED_FLAG if typed else 0
    head, tail = envelope.seal(entry, key, payload, offset, with_tokens=token is not None, flags=flags)
    if token is None:
        return head + tail
    return b"".join((head, token, *(tokens_of(entry) if tokens is None else tokens), tail))


def raw(
    created=1.0,
    fresh=2.0,
    kept=math.inf,
    *,
    kind=b"E\x02\x00\x00",
    key=KEY,
    tags=b"",
    payload=b"\x01",
    sizes=None,
    tokens=1,
    reserved=0,
):
    lengths = *(sizes or (len(key), len(tags))), tokens, reserved
    head = ID + (7).to_bytes(8, "big") + kind + struct.pack("<IdddIIHH", 0, created, fresh, kept, *lengths)
    return head + TOKEN * tokens + key + tags + payload


def agreed(readers, blobs, keys, limit=10**6, now=NOW, offset=0.0, token=TOKEN):
    """What all readers say, which must be the same, types and all."""
    said = [reader.unseal_many(blobs, keys, limit, now, offset, token) for reader in readers]
    assert all(repr(one) == repr(said[0]) for one in said)
    return said[0]


@given(entries, keys)
def test_an_entry_comes_back_until_it_is_not_kept_any_longer(readers, entry, key):
    found, tagged, corrupt = agreed(readers, [sealed(entry, key)], [key])
    kept = entry.kept_until is None or entry.kept_until > NOW
    assert found == [entry if kept else None]
    assert tagged == ([(0, tokens_of(entry))] if kept and entry.tags else [])
    assert corrupt == 0


@given(st.lists(st.tuples(st.none() | entries, keys), max_size=6))
def test_each_key_gets_its_own(readers, pairs):
    blobs = [entry and sealed(entry, key) for entry, key in pairs]
    found, tagged, corrupt = agreed(readers, blobs, [key for _, key in pairs], now=-math.inf)
    assert found == [entry for entry, _ in pairs]
    assert [at for at, _ in tagged] == [at for at, (entry, _) in enumerate(pairs) if entry and entry.tags]
    assert corrupt == 0


@given(entries, st.data())
def test_whatever_becomes_of_the_bytes_the_readers_agree(readers, entry, data):
    blob = bytearray(sealed(entry))
    token = data.draw(st.sampled_from([TOKEN, None]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob)))
        blob[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        agreed(readers, [bytes(blob)], [KEY], token=token)


@given(st.binary(max_size=100))
def test_garbage_is_corrupt_or_of_another_version(readers, blob):
    of_this_version = len(blob) <= 17 or blob[17] == 2
    without_value = len(blob) >= 17 and blob[16:17] in (b"T", b"M")
    assert agreed(readers, [blob], [KEY]) == ([None], [], int(of_this_version and not without_value))


@pytest.mark.parametrize("tags", [(), ("a",)])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("server_time", [None, 3_000.0])
def test_times_are_stored_by_the_servers_clock_and_come_back_monotonic(readers, tags, negative, server_time):
    entry = Entry("v", 999.0, server_time, server_time, tags, negative, ID, 5)
    blob = sealed(entry, offset=1_700_000_000.0)
    created, fresh, kept = struct.unpack_from("<ddd", blob, 24)
    assert (created, fresh, kept) == (1_700_000_999.0, *[1_700_003_000.0 if server_time else math.inf] * 2)
    assert agreed(readers, [blob], [KEY], offset=1_700_000_000.0)[0] == [entry]
    # Another process, whose monotonic clock began 100 seconds later.
    later = server_time and server_time - 100
    assert agreed(readers, [blob], [KEY], offset=1_700_000_100.0)[0] == [
        replace(entry, created_at=899.0, fresh_until=later, kept_until=later)
    ]


@pytest.mark.parametrize("tags", [(), ("a",)])
def test_an_entry_is_kept_by_the_servers_clock(readers, tags):
    blob = sealed(Entry("v", 1.0, None, 3_000.0, tags), offset=500.0)
    assert agreed(readers, [blob], [KEY], now=2_999.0, offset=500.0)[0] != [None]
    assert agreed(readers, [blob], [KEY], now=3_000.0, offset=500.0) == ([None], [], 0)
    assert agreed(readers, [blob], [KEY], now=2_999.0, offset=501.0) == ([None], [], 0)


@pytest.mark.parametrize("tags", [(), ("a",), ("a", "b")])
@pytest.mark.parametrize("token", [b"another.", b"", TOKEN[:-1], TOKEN + b"!", bytes(8)])
def test_an_entry_with_another_token_of_the_namespace_is_a_miss(readers, tags, token):
    entry = Entry("v", 1.0, None, None, tags, id=ID)
    blob = sealed(entry)
    assert agreed(readers, [blob], [KEY]) == ([entry], [(0, tokens_of(entry))] if tags else [], 0)
    assert agreed(readers, [blob], [KEY], token=token) == ([None], [], 0)


@pytest.mark.parametrize("tags", [(), ("a",), ("a", "b")])
def test_without_a_token_none_is_compared(readers, tags):
    entry = Entry("v", 1.0, None, None, tags, id=ID)
    assert agreed(readers, [sealed(entry)], [KEY], token=None) == ([entry], [(0, tokens_of(entry))] if tags else [], 0)
    assert agreed(readers, [sealed(entry, token=None)], [KEY], token=None) == ([entry], [], 0)
    # An entry without a token does not have the one that is asked for.
    assert agreed(readers, [sealed(entry, token=None)], [KEY]) == ([None], [], 0)


@pytest.mark.parametrize("kind", [envelope.TOMBSTONE, envelope.MARKER])
@pytest.mark.parametrize("rest", [b"", b"\x02", b"\x03", b"\x02\x00\x00more"])
def test_a_tombstone_and_a_marker_are_misses(readers, kind, rest):
    blob = envelope.seal_header(ID, 2**63 + 1, kind) + rest
    assert agreed(readers, [blob], [KEY]) == ([None], [], 0)
    if rest != b"\x03":
        assert envelope.unseal_header(blob) == (ID, 2**63 + 1, kind)


@given(entries)
def test_the_header_says_what_a_write_compares(entry):
    blob = sealed(entry)
    assert envelope.unseal_header(blob) == (entry.id, entry.stamp, envelope.ENTRY)
    assert envelope.unseal_header(blob[: envelope.HEADER_BYTES]) == (entry.id, entry.stamp, envelope.ENTRY)


@pytest.mark.parametrize(
    "blob", [b"", b"short", b"1234567812345678", b"1234567812345678X", b"1234567812345678E\x01", b"\xacG\x01" * 20]
)
def test_of_another_version_there_is_an_id_and_no_stamp(blob):
    assert envelope.unseal_header(blob) == (blob[:8], 0, b"")


def test_stamps_are_compared_as_bytes_in_their_order():
    stamps = [0, 1, 255, 256, 2**40, 2**63, 2**64 - 1]
    stored = [sealed(Entry("v", 1.0, None, None, stamp=stamp))[8:16] for stamp in stamps]
    assert stored == sorted(stored)
    assert [envelope.seal_header(ID, stamp, b"T")[8:16] for stamp in stamps] == stored


FLAGS_OF_OTHERS = [b"E\x02" + (1 << bit).to_bytes(2, "little") for bit in range(3, 16)]
KINDS_OF_OTHERS = [b"E\x01\x00\x00", b"E\x03\x00\x00", b"X\x03\x00\x00", *FLAGS_OF_OTHERS]


@pytest.mark.parametrize("change", [{"reserved": 1}, *({"kind": kind} for kind in KINDS_OF_OTHERS)])
@pytest.mark.parametrize("tags", [(), ("a",)])
def test_what_another_version_has_stored_is_a_miss(readers, change, tags):
    parts = {"tags": b"\x91\xa1a", "tokens": 2} if tags else {}
    assert agreed(readers, [raw(**parts)], [KEY])[0] == [Entry(1, 1.0, 2.0, None, tags, id=ID, stamp=7)]
    assert agreed(readers, [raw(**parts, **change)], [KEY]) == ([None], [], 0)


def test_an_envelope_of_version_1_is_a_miss(readers):
    blob = b"\xacG\x01\x00" + struct.pack("<dddIII", 1.7e9, 1.8e9, math.inf, len(KEY), 0, 1) + KEY + b"\x01"
    assert agreed(readers, [blob], [KEY]) == ([None], [], 0)
    assert not envelope.is_of_another_key(blob, b"j")


@pytest.mark.parametrize(
    "blob",
    [
        raw(kind=b"X\x02\x00\x00"),
        raw(kind=b"e\x02\x00\x00"),
        raw(created=math.inf),
        raw(created=-math.inf),
        raw(created=math.nan),
        raw(fresh=math.nan),
        raw(kept=math.nan),
        raw(key=b"j"),
        raw(key=b"kk"),
        raw(key=b""),
        raw(payload=b""),
        raw(payload=b"\x01\x01"),
        raw(payload=b"\x91" * 100_000),
        raw(payload=b"\xdd\xff\xff\xff\xff"),
        raw(payload=b"\xa1\xff"),
        raw()[:-1],
        raw() + b"\x01",
        raw()[:59],
        raw()[:60],
        raw()[:68],
        raw()[:17],
        raw()[:16],
        b"",
        raw(sizes=(0xFFFFFFFF, 0)),
        raw(sizes=(1, 0xFFFFFFFF)),
        raw(sizes=(1, 1)),
        raw(tokens=2),
        raw(tags=b"\x91\xa1a"),
        raw(tags=b"\x91\xa1a", tokens=3),
        raw(tags=b"\x91\x01", tokens=2),
        raw(tags=b"\xa1a", tokens=2),
        raw(tags=b"\x91\xa1\xff", tokens=2),
        raw(tags=b"\xdd\xff\xff\xff\xff", tokens=2),
        raw(tokens=0xFFFF)[:100],
    ],
)
def test_what_no_one_has_sealed_for_the_key_is_corrupt(readers, blob):
    good, entry = raw(), Entry(1, 1.0, 2.0, None, id=ID, stamp=7)
    assert agreed(readers, [good, blob, good], [KEY] * 3) == ([entry, None, entry], [], 1)


def test_an_infinite_past_is_a_time(readers):
    assert agreed(readers, [raw(fresh=-math.inf)], [KEY])[0] == [Entry(1, 1.0, -math.inf, None, id=ID, stamp=7)]
    assert agreed(readers, [raw(kept=-math.inf)], [KEY]) == ([None], [], 0)


@pytest.mark.parametrize("tags", [(), ("a",)])
def test_more_than_the_limit_is_not_opened(readers, tags):
    blob = sealed(Entry("v", 1.0, None, None, tags))
    assert agreed(readers, [blob], [KEY], limit=len(blob))[2] == 0
    assert agreed(readers, [blob], [KEY], limit=len(blob) - 1) == ([None], [], 1)


@given(entries, keys)
def test_no_envelope_is_larger_than_it_was_said_to_be(entry, key):
    assert len(sealed(entry, key)) <= envelope.size(key, envelope.pack_value(entry.value), entry.tags)


def test_an_entry_has_at_most_as_many_tags_as_can_be_counted(readers):
    entry = Entry("v", 1.0, None, None, ("",) * 65_534, id=ID)
    assert envelope.size(KEY, b"", entry.tags) > 0
    assert agreed(readers, [sealed(entry)], [KEY])[0] == [entry]
    with pytest.raises(ValueError, match="must have at most 65,534 tags, got 65,535"):
        envelope.size(KEY, b"", ("",) * 65_535)


def test_an_id_has_eight_bytes(readers):
    for wrong in (b"1", b"123456789"):
        with pytest.raises(ValueError, match="id must be 8 bytes"):
            sealed(Entry("v", 1.0, None, None, id=wrong))
    assert agreed(readers, [sealed(Entry("v", 1.0, None, None))], [KEY])[0][0].id == bytes(8)


def test_the_envelope_of_another_key_is_recognized():
    for tags in ((), ("a",)):
        for token in (TOKEN, None):
            blob = sealed(Entry("v", 1.0, None, None, tags), token=token)
            assert envelope.is_of_another_key(blob, b"j")
            assert not envelope.is_of_another_key(blob, KEY)
            assert not envelope.is_of_another_key(blob[:50], b"j")
    assert not envelope.is_of_another_key(None, KEY)
    assert not envelope.is_of_another_key(envelope.seal_header(ID, 1, b"T"), KEY)


def test_as_many_envelopes_as_keys_are_asked_for(readers):
    for reader in readers:
        for blobs, keys in (([None], []), ([], [KEY])):
            with pytest.raises(ValueError, match="zip"):
                reader.unseal_many(blobs, keys, 100, NOW, 0.0, TOKEN)


def test_nothing_is_held_on_to(readers):
    blobs = [sealed(Entry({"a": [1]}, 1.0, 2.0, None, tags)) for tags in ((), ("a",))]
    blobs += [b"bad" * 20, raw(kept=0.0), raw(payload=b"\xa1\xff"), envelope.seal_header(ID, 1, b"M")]
    keys = [b"%c" % KEY] * len(blobs)
    for reader in readers:
        for token in (b"%s" % TOKEN, b"%sx" % TOKEN):
            held = (*blobs, *keys, token)
            before = [sys.getrefcount(thing) for thing in held]
            for _ in range(10):
                reader.unseal_many(blobs, keys, 10**6, NOW, 0.5, token)
            assert [sys.getrefcount(thing) for thing in held] == before


class Text(str):
    pass


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Point(Struct):
    x: int


class Pair(NamedTuple):
    a: int
    b: int


UNCHANGED = [
    *(None, True, -(2**63), 2**64 - 1, 1.5, math.inf, "é", b"x", [], {}, [[{"a": [b"x", {"b": None}]}]]),
    *({1: 2, None: 3, 1.5: 4, b"x": 5, (1, ("a", b"x")): 6}, {(): [1]}, msgpack.Ext(5, b"x")),
    *(datetime.datetime(2024, 1, 1, 1, 1, 1, 1, datetime.UTC), {datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC): 1}),
]
CHANGED = [
    *((1,), (), {1}, frozenset([1]), Pair(1, 2), bytearray(b"x"), memoryview(b"x"), Text("x"), Colour.RED, Number.ONE),
    *(Decimal("1.10"), UUID(int=1), Point(1), OrderedDict(a=1), Counter("a"), defaultdict(int, a=1)),
    *(
        datetime.datetime(2024, 1, 1),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    ),
    *(datetime.date(2024, 1, 1), datetime.time(1), datetime.timedelta(1)),
]
# Besides those of the values.
CHANGED_KEYS = [frozenset([1]), (1, frozenset([1])), datetime.date(2024, 1, 1), UUID(int=1), Colour.RED, Pair(1, 2)]


@pytest.mark.parametrize("value", UNCHANGED, ids=name_of)
def test_a_value_that_comes_back_as_it_was_has_no_changed_type(readers, value):
    for held in (value, [value], {"k": [1, value]}):
        assert [reader.changed_type(held) for reader in readers] == [None] * len(readers)
    assert repr(envelope.decode(envelope.pack_value(value))) == repr(value) or type(value) is msgpack.Ext


@pytest.mark.parametrize("value", CHANGED, ids=name_of)
def test_the_type_that_does_not_come_back_is_found(readers, value):
    for held in (value, [value], {"k": [1, value]}, [[], {"k": {"k": value}}]):
        assert [reader.changed_type(held) for reader in readers] == [type(value)] * len(readers)


@pytest.mark.parametrize("key", CHANGED_KEYS, ids=name_of)
def test_a_key_of_a_dict_that_does_not_come_back_is_found(readers, key):
    for held in ({key: 1}, [{"a": {key: 1}}]):
        assert {reader.changed_type(held) for reader in readers} == {frozenset if type(key) is tuple else type(key)}


@given(values)
def test_values_that_are_json_like_come_back(readers, value):
    assert [reader.changed_type(value) for reader in readers] == [None] * len(readers)


@pytest.fixture
def zstd():
    if not zstd_module.is_available():
        pytest.skip("needs a module for zstd")
    return zstd_module


def sealed_frame(frame, *, flags=envelope.COMPRESSED_FLAG, tags=()):
    entry = Entry(None, 1.0, 2.0, None, tags, id=ID, stamp=7)
    head, tail = envelope.seal(entry, KEY, frame, 0.0, flags=flags)
    return b"".join((head, TOKEN, *tokens_of(entry), tail))


@pytest.mark.parametrize("tags", [(), ("a",)])
@pytest.mark.parametrize("value", ["", "a" * 10_000, [1] * 5_000], ids=["empty", "text", "list"])
def test_a_compressed_value_comes_back(readers, zstd, value, tags):
    blob = sealed_frame(zstd.compressed(envelope.pack_value(value)), tags=tags)
    found, tagged, corrupt = agreed(readers, [blob], [KEY])
    assert found == [Entry(value, 1.0, 2.0, None, tags, id=ID, stamp=7)]
    assert len(tagged) == len(tags)
    assert corrupt == 0


def test_a_compressed_value_may_be_typed(readers, zstd):
    blob = sealed_frame(zstd.compressed(b"\x07" * 100), flags=envelope.COMPRESSED_FLAG | envelope.TYPED_FLAG)
    assert agreed(readers, [blob], [KEY])[0][0].value == Packed(b"\x07" * 100)


@pytest.mark.parametrize("damage", ["cut", "more", "no frame", "no size", "too large"])
def test_a_frame_that_is_not_complete_is_corrupt(readers, zstd, monkeypatch, damage):
    frame = zstd.compressed(envelope.pack_value("a" * 10_000))
    if damage == "too large":
        monkeypatch.setattr(zstd, "MOST_BYTES", 9_999)
    module = zstd._module()
    streamed = module.ZstdCompressor()
    blob = {
        "cut": frame[:-1],
        "more": frame + b"\x01",
        "no frame": b"\x81\xa1a\x01",
        "no size": streamed.compress(b"\x01") + streamed.flush(),
        "too large": frame,
    }[damage]
    assert agreed(readers, [sealed_frame(blob)], [KEY]) == ([None], [], 1)


def test_without_a_module_for_zstd_a_compressed_value_is_a_miss_and_that_is_logged_once(readers, monkeypatch, caplog):
    monkeypatch.setattr(zstd_module, "_module", lambda: None)
    zstd_module._log_missing.cache_clear()
    blobs = [sealed_frame(b"frame"), sealed_frame(b"frame", tags=("a",))]
    assert agreed(readers, blobs, [KEY, KEY]) == ([None, None], [], 0)
    (record,) = caplog.records
    assert record.getMessage() == (
        "values that are compressed by zstd are misses in this process, because reading them needs "
        "Python 3.14 or later, or: pip install 'acgsperf[zstd]'"
    )
    assert not zstd_module.is_available()
