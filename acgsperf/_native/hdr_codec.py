"""The HdrHistogram V2 compressed format: ZigZag LEB128 counts, zeros as negative run lengths, in zlib."""

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from acgsperf._native.hdr_layout import Layout

_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_COOKIE: Final = 0x1C849303 | 0x10
_ENVELOPE: Final = struct.Struct(">ii")
_HEADER: Final = struct.Struct(">iiiiqqd")
_LONGEST_VARINT: Final = 9


def encode(lowest_ns: int, highest_ns: int, figures: int, counts: Sequence[int]) -> bytes:
    """The blob of a histogram.

    Args:
        lowest_ns: the smallest difference told apart.
        highest_ns: the largest latency that can be recorded.
        figures: significant decimal figures.
        counts: the counts up to the last that is not zero.
    """
    payload = bytearray()
    zeros = 0
    for count in counts:
        if count == 0:
            zeros += 1
            continue
        if zeros:
            payload += _varint(-zeros)
            zeros = 0
        payload += _varint(count)
    body = _HEADER.pack(_COOKIE, len(payload), 0, figures, lowest_ns, highest_ns, 1.0) + payload
    packed = zlib.compress(body)
    return _ENVELOPE.pack(_COMPRESSED_COOKIE, len(packed)) + packed


def decode(blob: bytes) -> tuple[int, int, int, Iterator[tuple[int, int]]]:
    """The configuration of a histogram and its counts.

    Memory is bounded by what the configuration can need, whatever the blob claims.

    Returns:
        lowest_ns, highest_ns, figures, and (index, count) for every count that is not zero. What is wrong with
        the counts is a ValueError while they are read.

    Raises:
        TypeError: when `blob` is not bytes-like.
        ValueError: when it is not exactly one V2 compressed histogram.
    """
    data = bytes(memoryview(blob))
    try:
        layout, payload = _unpack(data)
    except (ValueError, struct.error, zlib.error) as error:
        raise _refusal(error) from None
    return layout.lowest_ns, layout.highest_ns, layout.significant_figures, _counts(layout, payload)


def cumulative(blob: bytes, bounds_ns: Sequence[int]) -> tuple[list[int], int, int]:
    """How many latencies of a histogram lie within each bound, as histograms of fixed buckets count them.

    A slot is within a bound when its smallest latency is: what was recorded at the bound is counted, and so may be what
    lies above it by less than the width of a slot.

    Args:
        blob: as `encode` makes it.
        bounds_ns: ascending.

    Returns:
        A count for each bound, the count of all, and the sum of all in ns, each latency as the middle of its slot.

    Raises:
        TypeError, ValueError: as `decode` does.
    """
    lowest_ns, highest_ns, figures, counts = decode(blob)
    layout = Layout(lowest_ns, highest_ns, figures)
    within = [0] * len(bounds_ns)
    total = sum_ns = 0
    for index, count in counts:
        total += count
        sum_ns += count * layout.median_of(index)
        bound = bisect_left(bounds_ns, layout.lowest_of(index))
        if bound < len(within):
            within[bound] += count
    return list(accumulate(within)), total, sum_ns


def _refusal(reason: object) -> ValueError:
    return ValueError(f"not a HdrHistogram V2 blob: {reason}")


def _unpack(data: bytes) -> tuple[Layout, bytes]:
    cookie, length = _ENVELOPE.unpack_from(data)
    if cookie != _COMPRESSED_COOKIE:
        raise ValueError(f"its cookie is {cookie:#x}, not {_COMPRESSED_COOKIE:#x}")
    if length != len(data) - _ENVELOPE.size:
        raise ValueError(f"{length} bytes announced, {len(data) - _ENVELOPE.size} present")
    inflater = zlib.decompressobj()
    head = inflater.decompress(data[_ENVELOPE.size :], _HEADER.size)
    cookie, length, offset, figures, lowest_ns, highest_ns, ratio = _HEADER.unpack(head)
    if cookie != _COOKIE:
        raise ValueError(f"its inner cookie is {cookie:#x}, not {_COOKIE:#x}")
    if offset != 0 or ratio != 1.0:
        raise ValueError("it is normalised or scaled, which is not supported")
    layout = Layout(lowest_ns, highest_ns, figures)
    slots = layout.length
    most = slots * _LONGEST_VARINT
    if not 0 <= length <= most:
        raise ValueError(f"{length} bytes of counts announced for {slots} counts")
    payload = inflater.decompress(inflater.unconsumed_tail, length + 1)
    if len(payload) != length or not inflater.eof or inflater.unused_data:
        raise ValueError(f"{length} bytes of counts announced, {len(payload)} present")
    return layout, payload


def _counts(layout: Layout, payload: bytes) -> Iterator[tuple[int, int]]:
    index = total = 0
    for number in _varints(payload):
        if number <= 0:
            index += max(-number, 1)
        if index + (number > 0) > layout.length:
            raise _refusal(f"more than {layout.length} counts")
        if number <= 0:
            continue
        total += number
        # Half of what a histogram can count: there is room for as many again.
        if total > 2**62:
            raise _refusal("more than 2**62 latencies")
        if layout.lowest_of(index) > layout.highest_ns:
            raise _refusal(f"latencies above {layout.highest_ns} ns")
        yield index, number
        index += 1


def _varint(number: int) -> bytes:
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray()
    while zigzag > 0x7F and len(out) < _LONGEST_VARINT - 1:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    # The ninth byte of this variant holds eight bits.
    out.append(zigzag & 0xFF)
    return bytes(out)


def _varints(payload: bytes) -> Iterator[int]:
    position = 0
    while position < len(payload):
        zigzag = 0
        for i in range(_LONGEST_VARINT):
            if position == len(payload):
                raise _refusal("its last count is cut off")
            byte = payload[position]
            position += 1
            if i == _LONGEST_VARINT - 1:
                zigzag |= byte << (7 * i)
                break
            zigzag |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                break
        yield (zigzag >> 1) ^ -(zigzag & 1)
