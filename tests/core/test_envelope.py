"""The envelopes of entries, as both readers open them: on real servers, see tests/tiers."""

import math
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acgsperf._native import envelope_format as envelope
from acgsperf.tiers import Entry

KEY = b"k"
NOW = 1_000.0
times = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([NOW, NOW + 1, 0.0])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
entries = st.builds(
    Entry,
    value=values,
    created_at=st.floats(allow_nan=False, allow_infinity=False),
    fresh_until=times,
    kept_until=times,
    tags=st.just(()) | st.lists(st.text(max_size=4), max_size=3).map(tuple),
    negative=st.booleans(),
)
keys = st.text(max_size=4).map(envelope.identity)


def sealed(entry, key=KEY):
    return envelope.seal(entry, key, envelope.pack_value(entry.value), [b"12345678"] * len(entry.tags))


def raw(created=1.0, fresh=2.0, kept=math.inf, *, kind=b"\xacG\x01\x00", key=KEY, payload=b"\x01", sizes=()):
    return kind + struct.pack("<dddIII", created, fresh, kept, *(sizes or (len(key), 0, len(payload)))) + key + payload


def agreed(readers, blobs, keys, limit=10**6, now=NOW):
    """What all readers say, which must be the same, types and all."""
    said = [reader.unseal_many(blobs, keys, limit, now) for reader in readers]
    assert all(repr(one) == repr(said[0]) for one in said)
    return said[0]


@given(entries, keys)
def test_an_entry_comes_back_until_it_is_not_kept_any_longer(readers, entry, key):
    found, tagged, corrupt = agreed(readers, [sealed(entry, key)], [key])
    kept = entry.kept_until is None or entry.kept_until > NOW
    assert found == [entry if kept else None]
    assert tagged == ([(0, (b"12345678",) * len(entry.tags))] if kept and entry.tags else [])
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
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob)))
        blob[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        agreed(readers, [bytes(blob)], [KEY])


@given(st.binary(max_size=60))
def test_garbage_is_corrupt(readers, blob):
    assert agreed(readers, [blob], [KEY]) == ([None], [], 1)


@pytest.mark.parametrize(
    "blob",
    [
        raw(kind=b"\xacG\x02\x00"),
        raw(kind=b"\xacG\x01\x02"),
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
        raw()[:39],
        raw(sizes=(1, 0, 512 << 20)),
        raw(sizes=(0xFFFFFFFF, 0, 3)),
        raw(sizes=(1, 0xFFFFFFFF, 2)),
        raw(sizes=(1, 1, 0)),
    ],
)
def test_what_no_one_has_sealed_for_the_key_is_corrupt(readers, blob):
    good = raw()
    found = [Entry(1, 1.0, 2.0, None), None, Entry(1, 1.0, 2.0, None)]
    assert agreed(readers, [good, blob, good], [KEY] * 3) == (found, [], 1)


def test_an_infinite_past_is_a_time(readers):
    assert agreed(readers, [raw(fresh=-math.inf)], [KEY])[0] == [Entry(1, 1.0, -math.inf, None)]
    assert agreed(readers, [raw(kept=-math.inf)], [KEY]) == ([None], [], 0)


@pytest.mark.parametrize("tags", [(), ("a",)])
def test_more_than_the_limit_is_not_opened(readers, tags):
    blob = sealed(Entry("v", 1.0, None, None, tags))
    assert agreed(readers, [blob], [KEY], limit=len(blob))[2] == 0
    assert agreed(readers, [blob], [KEY], limit=len(blob) - 1) == ([None], [], 1)


def test_as_many_envelopes_as_keys_are_asked_for(readers):
    for reader in readers:
        for blobs, keys in (([None], []), ([], [KEY])):
            with pytest.raises(ValueError, match="zip"):
                reader.unseal_many(blobs, keys, 100, NOW)


def test_nothing_is_held_on_to(readers):
    blobs = [sealed(Entry({"a": [1]}, 1.0, 2.0, None, tags)) for tags in ((), ("a",))] + [b"bad" * 20, raw(kept=0.0)]
    keys = [b"%c" % KEY] * len(blobs)
    for reader in readers:
        before = [sys.getrefcount(thing) for thing in (*blobs, *keys)]
        for _ in range(10):
            reader.unseal_many(blobs, keys, 10**6, NOW)
        assert [sys.getrefcount(thing) for thing in (*blobs, *keys)] == before
