"""What the formats of a trace look like: recognized from the first bytes, and read line by line."""

import codecs
import json
import re
import sys
from array import array
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

from acgsperf.workbench.trace_bytes import LONGEST_LINE_BYTES, ByteStream, TraceError, recoded

__all__ = ["PARSERS", "Request", "TraceFormat", "integers", "recognised"]

Request = dict[str, object]
# What a parser returns for a valid line that holds no request.
Parser = Callable[[str], Request | None]

_HEAD_BYTES: Final = 65_536
_SAMPLE_LINES: Final = 200
_LONGEST_KEY: Final = 4_096
_BINARY: Final = re.compile(rb"[^\t\n\r\x1b\x20-\x7e\x80-\xff]")
_SPACES: Final = "\t\n\r\xa0\u3000"
# What log rotation leaves in front of a line.
_NUL_RUN: Final = re.compile(rb"\0{8,}")
_MARKUP: Final = re.compile(r'[\[\]{}<>"]')
_OTHERS: Final = (
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x04\x22\x4d\x18", "lz4 data"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy data"),
    (b"\x1f\x9d", "data of the program compress"),
    (b"LZIP", "lzip data"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xd4\xc3\xb2\xa1", "a packet capture"),
    (b"\xa1\xb2\xc3\xd4", "a packet capture"),
    (b"\x0a\x0d\x0d\x0a", "a packet capture"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
_BYTE_ORDER_MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


class TraceFormat(StrEnum):
    """How a trace is written. Compression and encoding are recognized separately."""

    INT32 = "int32"
    INT64 = "int64"
    TEXT = "text"
    JSONL = "jsonl"
    ACCESS_LOG = "access-log"
    JSON_LOG = "json-log"


def keyed(key: object) -> Request:
    """Return the request for a recorded key."""
    return {"type": "read", "key": key}


def _text(line: str) -> Request | None:
    # ARC's text traces end in a line with a star.
    return None if line == "*" else keyed(line)


class _RefusedJsonError(ValueError):
    """The line looks like JSON, but this parser does not accept it."""


def _no_number(constant: str) -> None:
    raise _RefusedJsonError("expected numbers that JSON has")


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line, parse_constant=_no_number)
    except json.JSONDecodeError:
        found = None
    except _RefusedJsonError:
        raise
    except RecursionError:
        raise _RefusedJsonError("expected less nesting") from None
    except ValueError:
        # The only other one is that of `int`.
        raise _RefusedJsonError(f"expected integers of at most {sys.get_int_max_str_digits():,} digits") from None
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found


# The common log format, after the virtual host in vhost_combined. The combined format has two more quoted fields, which
# are not read. A virtual host without a port is recognized by the address of the client after it.
_ACCESS: Final = re.compile(
    r"(?:(?P<host>\S+:\d+|\S+(?= (?:\d+\.\d+\.|[\da-fA-F]*:)\S* )) )?"
    r'\S+ \S+ \S+ \[[^\]]+\] "(?P<request>(?:[^"\\]|\\.)*)" \d{3} (?:\d+|-)'
)
_REQUEST_LINE: Final = re.compile(r"(?P<method>[A-Z-]+) (?P<target>.*?)(?: HTTP/[\d.]+)?")


def _access_log(line: str) -> Request | None:
    match = _ACCESS.match(line)
    if match is None:
        raise ValueError("expected a line of the common, combined or vhost_combined log format")
    # Servers on the open internet also log data that is not a request.
    if not (request := _REQUEST_LINE.fullmatch(match["request"])):
        return None
    host = {"host": match["host"]} if match["host"] else {}
    return {"method": request["method"], **host, "target": request["target"]}


def _first(record: Mapping[str, Any], *names: str) -> str | None:
    return next((value for name in names if isinstance(value := record.get(name), str) and value), None)


def _of_json_log(record: Mapping[str, Any]) -> Request | None:
    """Return the request in a record of Caddy (an object `request`), Traefik, or a server with usual field names."""
    request = record.get("request")
    fields = request if isinstance(request, dict) else record
    method = _first(fields, "method", "RequestMethod", "request_method", "http_method", "verb")
    target = _first(fields, "uri", "RequestPath", "request_uri", "path", "target", "url")
    host = _first(fields, "host", "RequestHost", "http_host", "authority", "vhost")
    if isinstance(request, str) and (match := _REQUEST_LINE.fullmatch(request)):
        method, target = match["method"], match["target"]
    if method is None or target is None:
        return None
    return {"method": method, **({"host": host} if host else {}), "target": target}


def _json_log(line: str) -> Request | None:
    # Servers write other events to the same log.
    return _of_json_log(_object(line))


_STATUS: Final = ("status", "status_code", "response_code", "DownstreamStatus", "OriginStatus")
_TIME: Final = ("ts", "time", "timestamp", "@timestamp", "time_local", "time_iso8601", "start_time", "StartUTC")
_LOGGED: Final = frozenset((*_STATUS, *_TIME))
_LEVEL: Final = frozenset(("level", "severity", "lvl", "log.level"))
_EVENT: Final = frozenset((*_TIME, "msg", "message"))


def _is_json_log(line: str) -> bool:
    """Return whether a JSON object is a log record: of a request, or of another event of the server.

    A request itself would have no status and no time, or no level.
    """
    record = _object(line)
    if _of_json_log(record) is not None:
        return not _LOGGED.isdisjoint(record)
    return not _LEVEL.isdisjoint(record) and not _EVENT.isdisjoint(record)


PARSERS: Final[dict[TraceFormat, Parser]] = {
    TraceFormat.TEXT: _text,
    TraceFormat.JSONL: _object,
    TraceFormat.ACCESS_LOG: _access_log,
    TraceFormat.JSON_LOG: _json_log,
}


def recognised(stream: ByteStream, trace_format: TraceFormat | None) -> tuple[ByteStream, TraceFormat]:
    """Return the stream as UTF-8, or as integers, and its format: the given one, or what the first 64 KiB show.

    Raises:
        TraceError: when the format is none of those.
    """
    head = stream.peek(_HEAD_BYTES)
    if not head:
        raise TraceError(f"{stream.name}: empty, expected a trace")
    if trace_format in (TraceFormat.INT32, TraceFormat.INT64):
        return stream, trace_format
    if (encoding := _encoding(head)) is not None:
        stream = recoded(stream, encoding)
        head = stream.peek(_HEAD_BYTES)
        if not head:
            raise TraceError(f"{stream.name}: empty except for a byte order mark, expected a trace")
    if trace_format is not None:
        return stream, trace_format
    other = next((what for magic, what in _OTHERS if head.startswith(magic)), None)
    if other is None and head[257:262] == b"ustar":
        other = "a tar archive"
    if other is not None:
        raise TraceError(f"{stream.name}: unknown format: the data is {other}, {_EXPECTED}")
    nuls = 0 if encoding else stream.skip_nuls()
    sample = _sample(_head_with_lines(stream))
    head = stream.peek(_HEAD_BYTES)
    is_text = not _BINARY.search(_NUL_RUN.sub(b"", head))
    if not sample and is_text:
        raise TraceError(f"{stream.name}: {_blank(head, nuls)}, expected a trace")
    if (found := _of_lines(stream.name, sample, is_text=is_text)) is not None:
        return stream, found
    stream.put_back_nuls(nuls)
    # Put back only as many NUL bytes as do not change where an integer begins.
    head = bytes(nuls if nuls <= _HEAD_BYTES else _HEAD_BYTES + nuls % 8) + head
    if _is_text_with_nuls(head):
        raise TraceError(
            f"{stream.name}: unknown format: looked at {len(head)} bytes, which are text with NULs and "
            f"begin with {head[:12]!r}; {_EXPECTED}"
        )
    return stream, _of_integers(stream.name, head)


def _blank(head: bytes, nuls: int) -> str:
    """Describe data without content, for messages."""
    if len(head) >= _HEAD_BYTES:
        return f"begins with {len(head):,} bytes of blank lines"
    return "empty except for " + " and ".join(["NUL bytes"] * bool(nuls) + ["blank lines"] * bool(head))


_EXPECTED: Final = (
    "expected JSON objects, an access log, one key per line or big-endian integers (use --format to choose one)"
)


def _encoding(head: bytes) -> str | None:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) < 8 or b"\0" not in head:
        return None
    # Text without a mark, as some programs write it. In ASCII text every other byte is NUL, and no other is.
    start = head[: min(len(head), 1024) // 2 * 2]
    for at, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        nuls, others = start[at::2], start[1 - at :: 2]
        if not nuls.strip(b"\0") and b"\0" not in others and not _BINARY.search(others):
            return encoding
    unmarked = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
    return next((encoding for encoding in unmarked if _is_text_in(encoding, head)), None)


def _is_text_in(encoding: str, head: bytes) -> bool:
    """Return whether bytes are lines of text in UTF-16 or UTF-32, with few bad lines.

    Integers can contain newlines, too: then they contain as many of each control character, or every second character
    is a newline. In UTF-32, only ASCII text differs from integers.
    """
    text = head.decode(encoding, "replace")
    newlines = text.count("\n")
    # A shorter sample decides nothing.
    if len(text) < 7 or not 1 <= newlines <= 0.4 * len(text):
        return False
    if encoding.startswith("utf-32"):
        return text.isascii() and not _BINARY.search(text.encode())
    bad = sum(not (char.isprintable() or char in _SPACES) or char == "\ufffd" for char in text)
    return bad <= newlines / 5


def _is_text_with_nuls(head: bytes) -> bool:
    """Return whether this is UTF-8 text with fewer than half NULs. Integers that look like text all begin with NUL."""
    text = head.replace(b"\0", b"")
    if not len(head) < 2 * len(text) < 2 * len(head) or _BINARY.search(text) or not head[::8].strip(b"\0"):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return False
    return True


def _head_with_lines(stream: ByteStream) -> bytes:
    """Return the first bytes without a line that is cut; more of them if the first line is a long one."""
    head = b""
    for size in (_HEAD_BYTES, LONGEST_LINE_BYTES + _HEAD_BYTES):
        head = stream.peek(size)
        if len(head) < size:
            return head
        if b"\n" in head:
            return head[: head.rindex(b"\n")]
    return head


def _sample(head: bytes) -> list[str]:
    found = head.replace(b"\0", b"").split(b"\n")
    decoded = (line.strip().decode("utf-8", "replace") for line in found)
    return [line for line in decoded if line][:_SAMPLE_LINES]


def _matches(check: Callable[[str], object], sample: list[str]) -> int:
    count = 0
    for line in sample:
        try:
            count += bool(check(line))
        except ValueError:
            continue
    return count


def _is_access(line: str) -> bool:
    return _ACCESS.match(line) is not None


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(_object(line), dict)
    except _RefusedJsonError:
        # Its message is better than that of an unknown format.
        return True


def _of_lines(name: str, sample: list[str], *, is_text: bool) -> TraceFormat | None:
    """Return the format that half of the lines have; None for what is no text."""
    if sample and 2 * (objects := _matches(_is_object, sample)) >= len(sample):
        return TraceFormat.JSON_LOG if 2 * _matches(_is_json_log, sample) >= objects else TraceFormat.JSONL
    if sample and 2 * _matches(_is_access, sample) >= len(sample):
        return TraceFormat.ACCESS_LOG
    if not is_text:
        return None
    if _are_keys(sample):
        return TraceFormat.TEXT
    first = sample[0]
    found = "1 line, which is " if len(sample) == 1 else f"{len(sample)} lines, the first is "
    raise TraceError(f"{name}: unknown format: looked at {found}{first[:60]!r}; {_EXPECTED}")


def _are_keys(sample: list[str]) -> bool:
    """Return whether each line is a key: mostly one word, no markup, no table with the same columns in all lines."""
    if 2 * sum(len(line) > _LONGEST_KEY for line in sample) >= len(sample):
        return False
    if 2 * sum(bool(_MARKUP.search(line)) for line in sample) >= len(sample):
        return False
    words = [len(line.split()) for line in sample]
    if max(words) > 3 or 2 * words.count(1) < len(words):
        return False
    separators = ({line.count(separator) for line in sample} for separator in ",;|")
    return not any(len(counts) == 1 and counts.pop() >= 1 and len(sample) > 1 for counts in separators)


def _of_integers(name: str, head: bytes) -> TraceFormat:
    """Return the width of the integers, if they are distributed like keys: they repeat, or use a part of the range."""
    whole = len(head) < _HEAD_BYTES
    if len(head) % 4 == 0 or not whole:
        head = head[: len(head) // 8 * 8] if not whole else head
        is_int64 = len(head) % 8 == 0 and _is_int64(head)
        words = integers(head, "q" if is_int64 else "i")
        high = {word >> (56 if is_int64 else 24) for word in words}
        if len(set(words)) <= 0.95 * len(words) or len(high) <= min(16, max(1, len(words) // 4)):
            return TraceFormat.INT64 if is_int64 else TraceFormat.INT32
    raise TraceError(
        f"{name}: unknown format: looked at {len(head)} bytes, which begin with {head[:12]!r} and are neither text "
        f"nor integers that repeat; {_EXPECTED}"
    )


def _is_int64(head: bytes) -> bool:
    """Return whether the data is more likely 64-bit integers than 32-bit ones.

    In 64-bit integers, one half of a word determines the other.

    Small numbers have few distinct high halves, and as many low halves as words. Hashes have as many of both. Pairs of
    independent keys of 32 bits have many more distinct values than the keys.
    """
    head = head[: len(head) // 8 * 8]
    halves = integers(head, "i")
    words, high, low = set(integers(head, "q")), set(halves[::2]), set(halves[1::2])
    if len(words) == len(head) // 8 == len(high):
        # Nothing repeats, so the data decides nothing. High halves that are all different are more likely keys.
        return False
    return len(words) <= 1.05 * max(len(high), len(low))


def integers(data: bytes, typecode: str) -> "array[int]":
    """Big-endian integers."""
    numbers = array(typecode, data)
    if array("H", b"\0\1")[0] != 1:
        numbers.byteswap()
    return numbers
