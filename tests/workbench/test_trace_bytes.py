"""Traces in other encodings, with NUL bytes, and compressed in parts or with garbage."""

import bz2
import gzip
import lzma
import random
import struct

import pytest

from acgsperf.workbench.traces import Trace, TraceError, TraceFormat, read_trace

try:
    from compression import zstd
except ImportError:
    from backports import zstd

MOST = "expected at most 10 %"


def keyed(*keys):
    return [{"type": "read", "key": key} for key in keys]


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


@pytest.mark.parametrize(
    ("encoding", "bad"),
    [("utf-16-le", b"\0\xd8"), ("utf-16-be", b"\xdc\0"), ("utf-32-le", b"\0\0\x11\0"), ("utf-8", b"\xff")],
)
def test_bytes_that_are_not_in_the_encoding_make_a_bad_line(trace, encoding, bad):
    mark, end = "\ufeff".encode(encoding), "\n".encode(encoding)
    trace.write_bytes(mark + "key\n\ufffd\n".encode(encoding) * 5 + "b".encode(encoding) + bad + end)
    with Trace(trace) as found:
        assert list(found) == keyed("key", "\ufffd") * 5
    assert (found.lines, found.skipped) == (11, 1)
    trace.write_bytes(mark + (bad * 10 + end) * 5)
    expected = encoding.upper().removesuffix("-LE").removesuffix("-BE")
    with pytest.raises(
        TraceError, match=f"5 of 5 lines are not text, {MOST}; the first is line 1: expected {expected},"
    ):
        read_trace(trace)


def test_a_character_that_is_cut_at_the_end_makes_a_bad_line(trace):
    trace.write_bytes(("a\n" * 10).encode("utf-16") + b"x")
    with Trace(trace) as found:
        assert list(found) == keyed("a") * 10
    assert found.skipped == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_text_may_be_longer_as_utf_8(trace, encoding):
    trace.write_bytes(("漢字漢字漢字\n" * 100_000).encode(encoding))
    assert read_trace(trace) == keyed("漢字漢字漢字") * 100_000


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", ["привет\n", "ключ-é\r\n", "a\u3000b\na\xa0b\nключ\nключ\nключ\n", "key\nя\n", "漢字漢字\n", "key-😀\n"]
)
def test_text_of_any_script_needs_no_mark_in_utf_16(trace, encoding, text):
    trace.write_bytes((text * 10).encode(encoding))
    assert read_trace(trace) == keyed(*text.splitlines()) * 10
    bad = {"utf-16-le": b"\0\xd8\n\0", "utf-16-be": b"\xd8\0\0\n"}[encoding]
    trace.write_bytes((text * 10).encode(encoding) + bad)
    with Trace(trace) as found:
        assert list(found) == keyed(*text.splitlines()) * 10
    assert found.skipped == 1


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be"])
def test_ascii_text_needs_no_mark_in_utf_32(trace, encoding):
    trace.write_bytes(("key-1\r\nkey-2\r\n" * 50).encode(encoding))
    assert read_trace(trace) == keyed("key-1", "key-2") * 50


RANGES = {
    "with newlines as high halves": range(0x000A4E00, 0x000A9F00),
    "with newlines as low halves": range(0x00200000, 0x00203000),
    "with letters as high halves": range(0x00200000, 0x007E0000, 97),
    "of ASCII and more": range(200),
    "that are bytes of blank lines": [10, 32],
    "up to 50,000": range(50_000),
    "a newline and others": range(10, 5_000),
    "few, and text if not UTF-8": [0x00E14243, 0x00E1FF41, 0x0041FE43],
    "CJK": range(0x4E004E00, 0x4E009F00),
}


@pytest.mark.parametrize("keys", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize(("trace_format", "code"), [(TraceFormat.INT32, "i"), (TraceFormat.INT64, "q")])
def test_integers_that_resemble_text_are_integers(trace, keys, trace_format, code):
    chosen = random.Random(2).choices(keys[:: len(keys) // 3_000 or 1], k=20_000)
    trace.write_bytes(struct.pack(f">{len(chosen)}{code}", *chosen))
    with Trace(trace) as found:
        assert found.format is trace_format
        assert list(found) == keyed(*chosen)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack(">500q", *random.Random(1).choices(range(628672914, 628672933), k=500)),
        struct.pack(">500q", *random.Random(1).choices(range(0x6162636430, 0x6162636440), k=500)),
        struct.pack(">6i", *[0x000A4E2D, 0x00264E2D] * 3)[:8],
    ],
    ids=["4 bytes of UTF-8", "5 bytes of ASCII", "two"],
)
def test_small_integers_whose_bytes_are_text_are_integers(trace, content):
    trace.write_bytes(content)
    assert type(read_trace(trace)[0]["key"]) is int


@pytest.mark.parametrize(
    "content", [b"a\0b\n" * 10, b"key-1\0key-2\0" * 10, "ключ-1\0".encode() * 10, b"a\0\0b\r\n" * 12_000]
)
def test_text_with_nuls_is_neither_keys_nor_integers(trace, content):
    trace.write_bytes(content)
    with pytest.raises(
        TraceError, match=r"unknown format: looked at \d+ bytes, which are text with NULs and begin with b'"
    ):
        read_trace(trace)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstd.compress])
@pytest.mark.parametrize("garbage", [b"x", b"key-1\nkey-2\n", b"\0\0\0x", b"BZ", bytes(100_000) + b"x"])
def test_garbage_after_compressed_data_is_an_error(trace, pack, garbage):
    trace.write_bytes(pack(b"a\nb\n") + garbage)
    with pytest.raises(TraceError, match="expected whole compressed data"):
        read_trace(trace)


def skippable(nibble, content):
    return bytes([0x50 + nibble]) + b"\x2a\x4d\x18" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(
    "content",
    [
        lzma.compress(b"a\n") + bytes(4) + lzma.compress(b"b\n") + bytes(100_000),
        lzma.compress(b"") + lzma.compress(b"a\nb\n"),
        bz2.compress(b"a\n") + bz2.compress(b"") + bz2.compress(b"b\n"),
        gzip.compress(b"a\n") + bytes(5) + gzip.compress(b"b\n") + bytes(100_000),
        skippable(0, b"size") + zstd.compress(b"a\n") + skippable(15, b"") + zstd.compress(b"b\n"),
        skippable(15, bytes(100_000)) + zstd.compress(b"a\nb\n") + skippable(7, b"end"),
    ],
    ids=["padded xz", "empty xz", "bzip2 parts", "padded gzip", "zstd to skip", "long zstd to skip"],
)
def test_parts_and_padding_of_compressed_data_are_read(trace, content):
    trace.write_bytes(content)
    assert read_trace(trace) == keyed("a", "b")


def test_xz_padding_of_another_length_is_an_error(trace):
    trace.write_bytes(lzma.compress(b"a\nb\n") + bytes(6))
    with pytest.raises(
        TraceError, match="expected whole compressed data: 6 NUL bytes after the data, expected a multi"
    ):
        read_trace(trace)
