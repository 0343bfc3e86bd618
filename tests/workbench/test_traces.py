"""Traces: every format, packed and plain, told and named."""

import gzip
import lzma
import random
import struct
from collections import Counter
from pathlib import Path

import pytest

from acgsperf.workbench.traces import TraceError, TraceFormat, read_trace, zipf_trace

RECORDED = Path(__file__).parents[3] / "shared" / "traces"
COMMON = '127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /a?b=1 HTTP/1.0" 200 2326\n'
COMBINED = (
    '::1 - - [10/Oct/2000:13:55:36 -0700] "POST /say/\\"hi\\" HTTP/1.1" 304 - "http://from/" "Mozilla/4.08 [en]"\n'
)
KEYS = random.Random(1).choices(range(-5, 50), k=200)


def keyed(*keys):
    return [{"type": "read", "key": key} for key in keys]


CONTENT = {
    TraceFormat.INT32: (struct.pack(">200i", *KEYS), keyed(*KEYS)),
    TraceFormat.INT64: (struct.pack(">200q", *KEYS), keyed(*KEYS)),
    TraceFormat.TEXT: ("a\r\nb c\n\nä\na\n*\n".encode(), keyed("a", "b c", "ä", "a")),
    TraceFormat.JSONL: (b'{"a": 1}\n\n{"b": [null]}\r\n', [{"a": 1}, {"b": [None]}]),
    TraceFormat.ACCESS_LOG: (
        (COMMON + COMBINED).encode(),
        [{"method": "GET", "target": "/a?b=1"}, {"method": "POST", "target": '/say/\\"hi\\"'}],
    ),
}
PACKED = {"plain": bytes, "gzip": gzip.compress, "xz": lzma.compress}


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("trace_format", TraceFormat)
def test_a_format_is_read_by_name_and_by_itself(trace, trace_format, pack):
    content, requests = CONTENT[trace_format]
    trace.write_bytes(pack(content))
    assert read_trace(trace, trace_format) == requests
    assert read_trace(trace) == requests


def test_a_name_overrules_what_the_content_looks_like(trace):
    trace.write_bytes(b'{"a": 1}')
    assert read_trace(trace, TraceFormat.TEXT) == keyed('{"a": 1}')
    assert read_trace(trace, TraceFormat.INT64) == keyed(int.from_bytes(b'{"a": 1}'))


def test_blank_lines_in_front_hide_no_format(trace):
    trace.write_bytes(b'\n \n{"a": 1}\n')
    assert read_trace(trace) == [{"a": 1}]


@pytest.mark.parametrize("request_line", ["-", "", "\\x16\\x03\\x01", "hello"])
def test_what_was_no_request_is_passed_over_in_an_access_log(trace, request_line):
    trace.write_text(COMMON + f'1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] "{request_line}" 400 0\n' + COMMON)
    assert read_trace(trace) == [{"method": "GET", "target": "/a?b=1"}] * 2


@pytest.mark.parametrize(
    ("content", "trace_format", "message"),
    [
        (b"", None, ": empty, expected a trace"),
        (b"", TraceFormat.JSONL, ": no requests in it, expected at least one as jsonl"),
        (b"*\n\n", TraceFormat.TEXT, ": no requests in it, expected at least one as text"),
        (b"12345", TraceFormat.INT32, ": 5 bytes, expected a multiple of 4 for int32"),
        (b"1234", TraceFormat.INT64, ": 4 bytes, expected a multiple of 8 for int64"),
        (b"a\n\xff\n", TraceFormat.TEXT, r":2: expected UTF-8 text, not b'\xff'"),
        (b'{"a": 1}\n[1]\n', None, ":2: expected a JSON object, not '[1]'"),
        (b'{"a": 1}\n{"a"\n', None, ":2: expected a JSON object, not '{\"a\"'"),
        (COMMON.encode() + b"x\n", None, ":2: expected a line of the common or combined log format, not 'x'"),
    ],
)
def test_what_cannot_be_read_says_where_and_what_was_expected(trace, content, trace_format, message):
    trace.write_bytes(content)
    with pytest.raises(TraceError) as raised:
        read_trace(trace, trace_format)
    assert str(raised.value) == f"{trace}{message}"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("kept", [8, 14, 20, -1])
def test_truncated_compressed_data_is_no_shorter_trace(trace, pack, kept):
    trace.write_bytes(pack(b"".join(b"%d\n" % i for i in range(1_000)))[:kept])
    with pytest.raises(TraceError, match="expected whole compressed data"):
        read_trace(trace)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    for path, why in ((tmp_path / "nothing", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(TraceError) as raised:
            read_trace(path)
        assert str(raised.value) == f"{path}: cannot be read: {why}"


def test_a_seed_makes_the_same_workload_again():
    assert zipf_trace(1_000, seed=3) == zipf_trace(1_000, seed=3)
    assert zipf_trace(1_000, seed=3) != zipf_trace(1_000, seed=4)
    assert zipf_trace(500, seed=3) == zipf_trace(1_000, seed=3)[:500]


def test_popularity_falls_with_rank():
    counts = Counter(request["key"] for request in zipf_trace(100_000, distinct=100))
    assert set(counts) == set(range(100))
    by_decade = [sum(counts[key] for key in range(start, start + 10)) for start in range(0, 100, 10)]
    assert by_decade == sorted(by_decade, reverse=True)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)


EXPECTED = {
    "web12.trace.xz": (95_607, 13_756, int),
    "vaultservice.trace.gz": (135_702, 90_468, int),
    "multi2.trace.gz": (26_311, 5_684, str),
    "loop.trace.gz": (505_500, 1_011, str),
    "gli.trace.gz": (6_015, 2_529, str),
}


@pytest.mark.parametrize("name", [name for name in EXPECTED if (RECORDED / name).exists()])
def test_a_recorded_trace_has_its_known_size(name):
    requests, distinct, key = EXPECTED[name]
    found = [request["key"] for request in read_trace(RECORDED / name)]
    assert (len(found), len(set(found)), type(found[0])) == (requests, distinct, key)


@pytest.mark.parametrize("name", [path.name for path in RECORDED.glob("orm-busy.trace.xz")])
def test_the_head_of_a_long_recorded_trace_is_detected(name, trace):
    with lzma.open(RECORDED / name) as whole:
        head = whole.read(400_000)
    trace.write_bytes(head)
    assert len(read_trace(trace)) == 100_000
