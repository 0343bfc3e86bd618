"""Request traces: what a service was asked, read from a file or a pipe, or made from a seed."""

import bisect
import itertools
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final, Self

from acgsperf.fingerprint import fingerprint
from acgsperf.workbench.trace_bytes import PIECE_BYTES, ByteStream, TraceError, decompressed, lines
from acgsperf.workbench.trace_formats import PARSERS, Request, TraceFormat, integers, keyed, recognised
from acgsperf.workbench.usage import counted

__all__ = ["Request", "Trace", "TraceError", "TraceFormat", "read_trace", "zipf_requests", "zipf_trace"]

# A log may have lines that were cut off or damaged by a client. If more lines are bad, the format is wrong.
MAX_SKIPPED: Final = 0.1
# Only JSON can hold what is no request: numbers without bounds, half of a surrogate pair.
_JSON: Final = frozenset({TraceFormat.JSONL, TraceFormat.JSON_LOG})


class Trace:
    """A trace that is being read: iterate over its requests, in a `with` block.

    The trace is read while it is iterated over, so memory does not grow with its length. A line that is not in the
    format is skipped and counted.

    Args:
        path: the file, perhaps compressed by gzip, xz, bzip2 or zstd; `-` is the standard input.
        trace_format: the format; None to recognize it from the content.

    Attributes:
        format: the format.
        lines: lines read, without blank ones; 0 for integers.
        skipped: lines that were not in the format.

    Raises:
        TraceError: here, or while it is read: when the trace cannot be read, is empty, is in no known format, or more
            than 10 % of its lines are not in its format.
    """

    def __init__(self, path: Path | str, trace_format: TraceFormat | None = None) -> None:
        self.name: Final = "standard input" if str(path) == "-" else str(path) or "''"
        self.lines: int = 0
        self.skipped: int = 0
        self._requests = 0
        self._first_skipped = ""
        self._source = self._opened(path)
        try:
            self._stream, found = recognised(decompressed(self._source, self.name), trace_format)
        except BaseException:
            self.close()
            raise
        self.format: Final = found

    def _opened(self, path: Path | str) -> IO[bytes]:
        if str(path) == "-":
            if sys.stdin is None:
                raise TraceError(f"{self.name}: is closed, expected a trace")
            return sys.stdin.buffer
        try:
            return Path(path).open("rb", buffering=0)
        except OSError as error:
            raise TraceError(f"{self.name}: cannot be read: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self.name != "standard input":
            self._source.close()

    def __iter__(self) -> Iterator[Request]:
        parser = PARSERS.get(self.format)
        found = self._keys(self._stream) if parser is None else self._parsed(self._stream)
        for request in found:
            self._requests += 1
            yield request
        self.check()

    def head(self, requests: int | None) -> Iterator[Request]:
        """Return the first requests, or all if `requests` is None; the rest is not read."""
        yield from itertools.islice(self, requests)
        self.check()

    def check(self) -> None:
        """Raise a TraceError if what has been read so far is no trace."""
        if self.skipped > MAX_SKIPPED * self.lines:
            raise TraceError(
                f"{self.name}: {self.skipped:,} of {counted(self.lines, 'line')} {'is' if self.lines == 1 else 'are'} "
                f"not {self.format}, expected at most 10 %; the first is {self._first_skipped}"
            )
        if not self._requests:
            raise TraceError(f"{self.name}: no requests in it, expected at least one as {self.format}")

    def _keys(self, stream: ByteStream) -> Iterator[Request]:
        typecode, width = ("i", 4) if self.format is TraceFormat.INT32 else ("q", 8)
        rest, size = b"", 0
        while piece := stream.read(PIECE_BYTES):
            size += len(piece)
            rest += piece
            whole = len(rest) // width * width
            yield from map(keyed, integers(rest[:whole], typecode))
            rest = rest[whole:]
        if rest:
            raise TraceError(f"{self.name}: {size} bytes, expected a multiple of {width} for {self.format}")

    def _parsed(self, stream: ByteStream) -> Iterator[Request]:
        parse = PARSERS[self.format]
        for number, line in lines(stream):
            self.lines += 1
            try:
                if line is None:
                    raise ValueError("expected a line of at most 1 MiB")
                request = parse(line.decode())
                if request is not None and self.format in _JSON:
                    fingerprint(request)
            except (ValueError, TypeError) as error:
                self.skipped += 1
                self._first_skipped = self._first_skipped or f"line {number}: {_problem(line, error, stream.encoding)}"
            else:
                if request is not None:
                    yield request


def _problem(line: bytes | None, error: Exception, encoding: str) -> str:
    if line is None:
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        if encoding == "utf-8":
            return f"expected UTF-8, got {line[:60]!r}"
        return f"expected {encoding.upper()}, got {line.decode(errors='replace')[:60]!r}"
    # A message about a value in the line has the value after "got".
    return f"{error}, {'in' if ', got ' in str(error) else 'got'} {line.decode()[:60]!r}"


def read_trace(path: Path | str, trace_format: TraceFormat | None = None) -> list[Request]:
    """All requests of a trace, in order; `Trace` reads one that does not fit in memory.

    Args:
        path: the file, perhaps compressed; `-` is the standard input.
        trace_format: the format; None to recognize it from the content.

    Raises:
        TraceError: when the trace cannot be read, is empty, is in no known format, or more than 10 % of its lines are
            not in its format.
    """
    with Trace(path, trace_format) as trace:
        return list(trace)


def zipf_trace(requests: int, *, distinct: int = 5_000, exponent: float = 1.0, seed: int = 1) -> list[Request]:
    """Return a synthetic workload: keys of popularity 1 / rank ** exponent, the same for the same seed.

    Args:
        requests: how many.
        distinct: how many keys there are to ask for.
        exponent: 0 for equal popularity; web traffic is near 1.
        seed: of the random generator.
    """
    return list(zipf_requests(requests, distinct=distinct, exponent=exponent, seed=seed))


def zipf_requests(requests: int, *, distinct: int = 5_000, exponent: float = 1.0, seed: int = 1) -> Iterable[Request]:
    """As `zipf_trace`, one request after the other."""
    source = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, distinct + 1)))
    total = weights[-1]
    # `choices` would do the same search, after a check and a copy of the weights.
    return (keyed(bisect.bisect(weights, source.random() * total)) for _ in range(requests))
