"""Request traces: what a service was asked, read from files as they come or made from a seed."""

import bisect
import gzip
import itertools
import json
import lzma
import random
import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from acgsperf.errors import AcgsperfError

Request = dict[str, object]

_BINARY: Final = re.compile(rb"[^\t\n\r\x20-\x7e\x80-\xff]")


class TraceError(AcgsperfError, ValueError):
    """A trace that cannot be read; says where and what was expected."""


class TraceFormat(StrEnum):
    """How a trace is written; compression by gzip or xz is seen by itself."""

    INT32 = "int32"
    INT64 = "int64"
    TEXT = "text"
    JSONL = "jsonl"
    ACCESS_LOG = "access-log"


def read_trace(path: Path, trace_format: TraceFormat | None = None) -> list[Request]:
    """The requests of a trace file, in order.

    Args:
        path: the file, perhaps compressed by gzip or xz.
        trace_format: how it is written; told from its content when None.

    Raises:
        TraceError: when it cannot be read, is empty, or is not in that format.
    """
    data = _decompressed(path)
    if trace_format is None:
        trace_format = _detect(path, data)
    requests = list(_READERS[trace_format](path, data))
    if not requests:
        raise TraceError(f"{path}: no requests in it, expected at least one as {trace_format}")
    return requests


def zipf_trace(requests: int, *, distinct: int = 5_000, exponent: float = 1.0, seed: int = 1) -> list[Request]:
    """A synthetic workload: keys of popularity 1 / rank ** exponent, the same for the same seed.

    Args:
        requests: how many.
        distinct: how many keys there are to ask for.
        exponent: 0 for all alike; web traffic is near 1.
        seed: of the random generator.
    """
    source = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, distinct + 1)))
    total = weights[-1]
    # `choices` would do the same search, after a check and a copy of the weights.
    return [_keyed(bisect.bisect(weights, source.random() * total)) for _ in range(requests)]


def _keyed(key: object) -> Request:
    return {"type": "read", "key": key}


def _decompressed(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"\xfd7zXZ\x00"):
            return lzma.decompress(data)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise TraceError(f"{path}: expected whole compressed data: {error}") from None
    return data


def _detect(path: Path, data: bytes) -> TraceFormat:
    head = data[:65_536]
    if not head:
        raise TraceError(f"{path}: empty, expected a trace")
    if not _BINARY.search(head):
        first = head.strip().split(b"\n", 1)[0].strip()
        if first.startswith(b"{"):
            return TraceFormat.JSONL
        if _ACCESS.match(first.decode("utf-8", "replace")):
            return TraceFormat.ACCESS_LOG
        return TraceFormat.TEXT
    return TraceFormat.INT64 if len(data) % 8 == 0 and _is_int64(head) else TraceFormat.INT32


def _is_int64(head: bytes) -> bool:
    """Whether big-endian words of 32 bits are more likely halves of 64: then a half tells which the other one is.

    Small numbers have few high halves and as many low ones as words; hashes as many of both. Independent keys, read in
    pairs, make many more pairs than there are keys.
    """
    head = head[: len(head) // 8 * 8]
    halves = _integers(head, "i")
    words, high, low = set(_integers(head, "q")), set(halves[::2]), set(halves[1::2])
    if len(words) == len(head) // 8 == len(high):
        # Nothing ever repeats, so nothing is learned: high halves that are all different are taken for keys.
        return False
    return len(words) <= 1.05 * max(len(high), len(low))


def _integers(data: bytes, typecode: str) -> "array[int]":
    numbers = array(typecode, data)
    # The traces are big-endian; all machines that Python runs on today, but few, are not.
    if array("H", b"\0\1")[0] != 1:
        numbers.byteswap()
    return numbers


def _binary_reader(typecode: str, width: int) -> Callable[[Path, bytes], Iterator[Request]]:
    def read(path: Path, data: bytes) -> Iterator[Request]:
        if len(data) % width:
            raise TraceError(f"{path}: {len(data)} bytes, expected a multiple of {width} for int{8 * width}")
        return map(_keyed, _integers(data, typecode))

    return read


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            raise TraceError(f"{path}:{number}: expected UTF-8 text, not {line[:40]!r}") from None
        if text:
            yield number, text


def _read_text(path: Path, data: bytes) -> Iterator[Request]:
    # ARC's text traces end in a line with a star.
    return (_keyed(line) for _, line in _lines(path, data) if line != "*")


def _read_jsonl(path: Path, data: bytes) -> Iterator[Request]:
    for number, line in _lines(path, data):
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            raise TraceError(f"{path}:{number}: expected a JSON object, not {line[:60]!r}")
        yield request


# The common log format; the combined one has two more quoted fields behind it.
_ACCESS: Final = re.compile(r'\S+ \S+ \S+ \[[^\]]+\] "(?P<request>(?:[^"\\]|\\.)*)" \d{3} (?:\d+|-)')
_REQUEST_LINE: Final = re.compile(r"(?P<method>[A-Z-]+) (?P<target>.*?)(?: HTTP/[\d.]+)?")


def _read_access_log(path: Path, data: bytes) -> Iterator[Request]:
    for number, line in _lines(path, data):
        match = _ACCESS.match(line)
        if match is None:
            raise TraceError(
                f"{path}:{number}: expected a line of the common or combined log format, not {line[:60]!r}"
            )
        # Servers on the open internet also log what was no request at all; there is nothing to answer.
        if request := _REQUEST_LINE.fullmatch(match["request"]):
            yield {"method": request["method"], "target": request["target"]}


_READERS: Final[dict[TraceFormat, Callable[[Path, bytes], Iterator[Request]]]] = {
    TraceFormat.INT32: _binary_reader("i", 4),
    TraceFormat.INT64: _binary_reader("q", 8),
    TraceFormat.TEXT: _read_text,
    TraceFormat.JSONL: _read_jsonl,
    TraceFormat.ACCESS_LOG: _read_access_log,
}
