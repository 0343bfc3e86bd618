"""Traces: every format, compressed and plain, recognized and named."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import random
import re
import struct
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from acgsperf.workbench.trace_bytes import LONGEST_LINE_BYTES
from acgsperf.workbench.traces import Trace, TraceError, TraceFormat, read_trace, zipf_trace

try:
    from compression import zstd
except ImportError:
    from backports import zstd

COMMON = '127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /a?b=1 HTTP/1.0" 200 2326\n'
COMBINED = (
    '::1 - - [10/Oct/2000:13:55:36 -0700] "POST /say/\\"hi\\" HTTP/1.1" 304 - "http://from/" "Mozilla/4.08 [en]"\n'
)
CADDY = {
    "level": "info",
    "ts": 1646861401.52,
    "logger": "http.log.access",
    "msg": "handled request",
    "request": {"remote_ip": "::1", "proto": "HTTP/2.0", "method": "GET", "host": "x.org", "uri": "/a?b=1"},
    "status": 200,
}
TRAEFIK = {
    "ClientHost": "1.2.3.4",
    "DownstreamStatus": 200,
    "RequestHost": "x.org",
    "RequestMethod": "POST",
    "RequestPath": "/b",
    "StartUTC": "2026-01-01T00:00:00Z",
    "time": "2026-01-01T00:00:00Z",
}
NGINX = {"time_local": "10/Oct/2000:13:55:36 -0700", "status": "200", "request": "GET /c HTTP/1.1"}
ENVOY = {
    "start_time": "2026-01-01T00:00:00Z",
    "method": "GET",
    "path": "/d",
    "authority": "x.org",
    "response_code": 200,
}
MOST = "expected at most 10 %"
KEYS = random.Random(1).choices(range(-5, 50), k=200)


def keyed(*keys):
    return [{"type": "read", "key": key} for key in keys]


CONTENT = {
    TraceFormat.INT32: (struct.pack(">200i", *KEYS), keyed(*KEYS)),
    TraceFormat.INT64: (struct.pack(">200q", *KEYS), keyed(*KEYS)),
    TraceFormat.TEXT: ("a\r\nb c\n\nä\na\n*\n".encode(), keyed("a", "b c", "ä", "a")),
    TraceFormat.JSONL: (b'{"a": 1}\n\n{"b": [null]}\r\n', [{"a": 1}, {"b": [None]}]),
    TraceFormat.ACCESS_LOG: (
        (COMMON + COMBINED + f"www.x.org:443 {COMMON}www.x.org {COMBINED}").encode(),
        [
            {"method": "GET", "target": "/a?b=1"},
            {"method": "POST", "target": '/say/\\"hi\\"'},
            {"method": "GET", "host": "www.x.org:443", "target": "/a?b=1"},
            {"method": "POST", "host": "www.x.org", "target": '/say/\\"hi\\"'},
        ],
    ),
    TraceFormat.JSON_LOG: (
        "".join(json.dumps(record) + "\n" for record in (CADDY, TRAEFIK, NGINX, ENVOY)).encode(),
        [
            {"method": "GET", "host": "x.org", "target": "/a?b=1"},
            {"method": "POST", "host": "x.org", "target": "/b"},
            {"method": "GET", "target": "/c"},
            {"method": "GET", "host": "x.org", "target": "/d"},
        ],
    ),
}
PACKED = {
    "plain": bytes,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd.compress,
    "twice": lambda data: gzip.compress(zstd.compress(data)),
    "in parts": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),
}


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
def test_a_line_without_a_request_is_passed_over_in_an_access_log(trace, request_line):
    trace.write_text(COMMON + f'1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] "{request_line}" 400 0\n' + COMMON)
    assert read_trace(trace) == [{"method": "GET", "target": "/a?b=1"}] * 2


ENCODED = {
    "utf-8-sig": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be with a mark": lambda text: "\ufeff".encode("utf-16-be") + text.encode("utf-16-be"),
    "utf-16-le without a mark": lambda text: text.encode("utf-16-le"),
    "utf-16-be without a mark": lambda text: text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}


@pytest.mark.parametrize("encode", ENCODED.values(), ids=ENCODED)
@pytest.mark.parametrize("trace_format", [TraceFormat.TEXT, TraceFormat.JSONL, TraceFormat.ACCESS_LOG])
def test_text_may_be_encoded_as_windows_does_it(trace, trace_format, encode):
    text = {TraceFormat.TEXT: "key-1\r\nkey-2\r\n", TraceFormat.JSONL: '{"a": 1}\r\n', TraceFormat.ACCESS_LOG: COMMON}
    trace.write_bytes(encode(text[trace_format] * 30))
    with Trace(trace) as found:
        requests = list(found)
    assert (found.format, found.skipped) == (trace_format, 0)
    assert requests == read_trace_of(trace, text[trace_format] * 30, trace_format)


def read_trace_of(trace, text, trace_format):
    trace.write_text(text)
    return read_trace(trace, trace_format)


@pytest.mark.parametrize(
    "bad",
    [
        COMMON.replace("frank", "John Doe").encode(),
        COMMON.encode()[30:],
        COMMON.encode()[:40] + b"\n",
        b"\xff" + COMMON.encode(),
        b"a" * (LONGEST_LINE_BYTES + 1) + b"\n",
        b"\x01\n",
    ],
    ids=["user with a space", "cut in front", "cut at the end", "not UTF-8", "too long", "control character"],
)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_bad_line_is_counted_and_skipped_wherever_it_is(trace, bad, place):
    before = {"first": 0, "middle": 5, "last": 9}[place]
    trace.write_bytes(COMMON.encode() * before + bad + COMMON.encode() * (9 - before))
    with Trace(trace) as found:
        assert list(found) == [{"method": "GET", "target": "/a?b=1"}] * 9
    assert (found.format, found.lines, found.skipped) == (TraceFormat.ACCESS_LOG, 10, 1)


@pytest.mark.parametrize(
    "bad", ['{"a": 1', "[1]", '{"a": NaN}', '{"a": "\\ud800"}', "{" * 100_000], ids=lambda bad: bad[:9]
)
def test_a_line_that_is_no_request_is_skipped_in_json(trace, bad):
    trace.write_text('{"a": 1}\n' * 4 + bad + "\n" + '{"a": 1}\n' * 5)
    with Trace(trace) as found:
        assert list(found) == [{"a": 1}] * 9
    assert found.skipped == 1


def test_more_than_a_tenth_of_bad_lines_is_an_error_and_a_tenth_is_none(trace):
    trace.write_text(COMMON * 18 + "bad line\n" * 2)
    assert len(read_trace(trace)) == 18
    trace.write_text(COMMON * 17 + "bad line\n" * 2)
    with pytest.raises(
        TraceError, match="2 of 19 lines are not access-log, expected at most 10 %; the first is line 18: "
    ):
        read_trace(trace)


def test_nuls_of_a_truncated_log_hide_no_request(trace):
    nuls = bytes(200_000)
    trace.write_bytes(nuls + COMMON.encode() * 10 + nuls + COMMON.encode() * 10)
    assert len(read_trace(trace)) == 20
    trace.write_bytes(nuls + b"key-1\nkey-2\n" * 10)
    assert read_trace(trace) == keyed("key-1", "key-2") * 10


@pytest.mark.parametrize("code", ["i", "q"])
def test_integers_may_begin_with_many_zeros(trace, code):
    keys = [0] * 50_000 + random.Random(1).choices(range(5_000), k=20_000)
    trace.write_bytes(struct.pack(f">{len(keys)}{code}", *keys))
    assert read_trace(trace) == keyed(*keys)


def test_records_of_other_events_are_passed_over_in_a_json_log(trace):
    trace.write_text((json.dumps(CADDY) + "\n") * 3 + '{"level": "info", "msg": "serving initial configuration"}\n')
    with Trace(trace) as found:
        assert len(list(found)) == 3
    assert (found.format, found.skipped) == (TraceFormat.JSON_LOG, 0)


BOOT = '{"level": "info", "ts": 1, "msg": "boot"}\n'
START = '{"time": "2026-01-01T00:00:00Z", "severity": "INFO", "message": "start"}\n'


@pytest.mark.parametrize(
    ("before", "requests", "after"),
    [(BOOT * 2, 1, ""), (BOOT * 250, 500, ""), (START * 3_000, 2, BOOT), ("", 1, START * 300), (BOOT * 9, 5, "x\n")],
    ids=["mostly others", "more than the sample", "more than the head", "afterwards", "bad line"],
)
def test_other_events_may_be_most_of_a_json_log(trace, before, requests, after):
    trace.write_text(before + (json.dumps(CADDY) + "\n") * requests + after)
    with Trace(trace) as found:
        assert list(found) == [{"method": "GET", "host": "x.org", "target": "/a?b=1"}] * requests
    assert (found.format, found.skipped) == (TraceFormat.JSON_LOG, after.count("x"))


def test_a_json_log_without_requests_is_an_error(trace):
    trace.write_text(BOOT * 9)
    with pytest.raises(TraceError, match="no requests in it, expected at least one as json-log"):
        read_trace(trace)


@pytest.mark.parametrize("request_", [{"level": 3}, {"user": 1, "time": 2}, {"message": "hello", "status": "new"}])
def test_an_object_that_only_resembles_a_record_is_a_request(trace, request_):
    trace.write_text((json.dumps(request_) + "\n") * 9)
    assert read_trace(trace) == [request_] * 9


def test_a_request_with_a_method_and_a_target_is_no_log(trace):
    trace.write_text('{"method": "GET", "target": "/a"}\n')
    with Trace(trace) as found:
        assert list(found) == [{"method": "GET", "target": "/a"}]
    assert found.format is TraceFormat.JSONL


EXPECTED_LINE = "expected a line of the common, combined or vhost_combined log format"
RANDOM = random.Random(1)
UNKNOWN = {
    "random bytes": RANDOM.randbytes(80_000),
    "few random bytes": RANDOM.randbytes(40),
    "odd number of bytes": bytes(range(1, 32)),
    "syslog": b"Apr 12 14:50:12 host nginx[1]: started the server\n" * 9,
    "CSV": b"".join(b"%d,key,%d\n" % (i, i) for i in range(9)),
    "key,size": b"".join(b"%d,%d\n" % (i, i) for i in range(9)),
    "columns": b"".join(b"%d key-%d %d\n" % (i, i, i) for i in range(9)),
    "JSON array": b'[{"a":1},{"a":2}]\n',
    "JSON over several lines": b'{\n  "a": 1\n}\n' * 9,
    "XML": b"<a>\n<b/>\n</a>\n",
    "a log of another kind": COMMON.replace("[", "(").encode() * 9,
    "zip": b"PK\x03\x04" + bytes(60),
    "lz4": b"\x04\x22\x4d\x18" + bytes(60),
    "Parquet": b"PAR1" + bytes(60),
    "tar": b"name".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"),
    "tar.gz": gzip.compress(b"name".ljust(257, b"\0") + b"ustar".ljust(255, b"\0")),
}


@pytest.mark.parametrize("content", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_format_is_an_error_that_says_what_was_looked_at(trace, content):
    trace.write_bytes(content)
    with pytest.raises(TraceError) as raised:
        read_trace(trace)
    assert re.match(
        f"{trace}: unknown format: (looked at \\d+ (lines|bytes), |looked at 1 line, which is |the data is )",
        str(raised.value),
    )
    assert str(raised.value).endswith("(use --format to choose one)")


@pytest.mark.parametrize(
    ("content", "trace_format", "message"),
    [
        (b"", None, ": empty, expected a trace"),
        (b"", TraceFormat.JSONL, ": empty, expected a trace"),
        (gzip.compress(b"", mtime=0), None, ": empty, expected a trace"),
        (b"\n \r\n\t\n", None, ": empty except for blank lines, expected a trace"),
        (" \r\n".encode("utf-16"), None, ": empty except for blank lines, expected a trace"),
        ("\r\n\r\n".encode("utf-16-le"), None, ": empty except for blank lines, expected a trace"),
        (bytes(100_000), None, ": empty except for NUL bytes, expected a trace"),
        (bytes(9) + b"\n", None, ": empty except for NUL bytes and blank lines, expected a trace"),
        (b"\n" * 70_000, None, ": begins with 65,536 bytes of blank lines, expected a trace"),
        *(
            ("".encode(encoding), name, ": empty except for a byte order mark, expected a trace")
            for encoding in ("utf-8-sig", "utf-16", "utf-32")
            for name in (None, TraceFormat.JSONL)
        ),
        (b"*\n\n", TraceFormat.TEXT, ": no requests in it, expected at least one as text"),
        (b"12345", TraceFormat.INT32, ": 5 bytes, expected a multiple of 4 for int32"),
        (b"1234", TraceFormat.INT64, ": 4 bytes, expected a multiple of 8 for int64"),
        (
            b"a\n\xff\n",
            TraceFormat.TEXT,
            f": 1 of 2 lines are not text, {MOST}; the first is line 2: expected UTF-8, got b'\\xff'",
        ),
        (
            b'{"a": 1}\n[1]\n',
            None,
            f": 1 of 2 lines are not jsonl, {MOST}; the first is line 2: expected a JSON object, got '[1]'",
        ),
        (
            b'{"k": 1e999}\n',
            None,
            (
                f": 1 of 1 line is not jsonl, {MOST}; the first is line 1: "
                "$.k must be a finite number, got inf, in '{\"k\": 1e999}'"
            ),
        ),
        (
            b'{"k": 1' + b"0" * 5_000 + b"}\n",
            None,
            (
                f": 1 of 1 line is not jsonl, {MOST}; the first is line 1: expected integers of at most 4,300 digits, "
                f"got '{{\"k\": 1{'0' * 53}'"
            ),
        ),
        (
            b'{"k": NaN}\n{"k": -Infinity}\n',
            None,
            (
                f": 2 of 2 lines are not jsonl, {MOST}; the first is line 1: expected numbers that JSON has, "
                "got '{\"k\": NaN}'"
            ),
        ),
        (
            b'{"k": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
            None,
            (
                f": 1 of 1 line is not jsonl, {MOST}; the first is line 1: expected less nesting, "
                f"got '{{\"k\": {'[' * 54}'"
            ),
        ),
        (
            COMMON.encode() + b"x\n",
            None,
            f": 1 of 2 lines are not access-log, {MOST}; the first is line 2: {EXPECTED_LINE}, got 'x'",
        ),
    ],
)
def test_what_cannot_be_read_says_where_and_what_was_expected(trace, content, trace_format, message):
    trace.write_bytes(content)
    with pytest.raises(TraceError) as raised:
        read_trace(trace, trace_format)
    assert str(raised.value) == f"{trace}{message}"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstd.compress])
@pytest.mark.parametrize("kept", [8, 14, 20, -1])
def test_truncated_compressed_data_is_no_shorter_trace(trace, pack, kept):
    trace.write_bytes(pack(b"".join(b"%d\n" % i for i in range(1_000)))[:kept])
    with pytest.raises(TraceError, match="expected whole compressed data"):
        read_trace(trace)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress, zstd.compress])
def test_a_trace_is_read_in_pieces_and_its_head_alone_when_that_is_enough(trace, compress):
    # A bomb: 64 MiB of one line in a few kilobytes, after three good lines.
    trace.write_bytes(compress(b"a\nb\na\n" + bytes(1 << 16)) + compress(b"x" * (64 << 20)))
    tracemalloc.start()
    try:
        with Trace(trace, TraceFormat.TEXT) as found:
            assert list(found.head(3)) == keyed("a", "b", "a")
        with (
            Trace(trace, TraceFormat.TEXT) as found,
            pytest.raises(TraceError, match="expected a line of at most 1 MiB"),
        ):
            list(found)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_the_last_line_needs_no_end(trace):
    trace.write_text("a\nb")
    assert read_trace(trace) == keyed("a", "b")


def test_iteration_stops_where_the_caller_does(trace):
    trace.write_text("a\nb\nc\n")
    with Trace(trace) as found:
        assert list(itertools.islice(found, 2)) == keyed("a", "b")


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


@pytest.fixture
def recorded(request):
    """The path of a recorded trace. The repository contains none."""
    folder = os.environ.get("ACGSPERF_TRACES")
    if not folder:
        pytest.skip("needs recorded traces: set ACGSPERF_TRACES to a folder that has them")
    path = Path(folder) / request.param
    if not path.exists():
        pytest.skip(f"needs the recorded trace {request.param}, which is not in ACGSPERF_TRACES={folder}")
    return path


@pytest.mark.parametrize("recorded", EXPECTED, indirect=True)
def test_a_recorded_trace_has_its_known_size(recorded):
    requests, distinct, key = EXPECTED[recorded.name]
    found = [request["key"] for request in read_trace(recorded)]
    assert (len(found), len(set(found)), type(found[0])) == (requests, distinct, key)


@pytest.mark.parametrize("recorded", ["orm-busy.trace.xz"], indirect=True)
def test_the_head_of_a_long_recorded_trace_is_recognized(recorded):
    with Trace(recorded) as found:
        assert len(list(found.head(100_000))) == 100_000
