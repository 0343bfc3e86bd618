"""The HdrHistogram V2 compressed format: ZigZag LEB128 counts, zeros as negative run lengths, in zlib."""

import struct
import zlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from acgsperf._native.hdr_layout import Layout

_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_COOKIE: Final = 0x1C849303 | 0x10
_ENVELOPE: Final = struct.Struct(">ii")
_HEADER: Final = struct.Struct(">iiiiqqd")
_EXTREMES: Final = struct.Struct(">qqI")
_LONGEST_VARINT: Final = 9
_LAST_SHIFT: Final = 7 * (_LONGEST_VARINT - 1)
# A few bytes can announce thousands of times as many. Blobs of real latencies are below ten times.
_ALWAYS_READ_BYTES: Final = 2**19
_LARGEST_RATIO: Final = 16
_REFUSED: Final = "not a HdrHistogram V2 blob: "
# What may be wrong with counts: see `refused`.
_TOO_LATE, _TOO_MANY_COUNTS, _CUT_OFF, _TOO_MANY = range(4)


def encode(layout: Layout, used: Iterable[tuple[int, int]], smallest: int, largest: int) -> bytes:
    """Return the blob of a histogram.

    The exact smallest and largest latency, and a checksum, follow the compressed data, which other readers ignore.

    Args:
        layout: the layout of the histogram.
        used: (index, count) for every count that is not zero, ascending.
        smallest: the smallest latency recorded, in ns.
        largest: the largest, in ns.
    """
    payload = bytearray()
    end = 0
    for i, count in used:
        if i > end:
            payload += _varint(end - i)
        payload += _varint(count)
        end = i + 1
    header = _HEADER.pack(
        _COOKIE, len(payload), 0, layout.significant_figures, layout.lowest_ns, layout.highest_ns, 1.0
    )
    packed = zlib.compress(header + payload)
    if len(payload) > _most_bytes(len(packed)):
        # Without repetitions zlib saves at most seven of eight bits: `decode` accepts that.
        deflater = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
        packed = deflater.compress(header + payload) + deflater.flush()
    if end:
        packed += _EXTREMES.pack(smallest, largest, _checksum(packed, smallest, largest))
    return _ENVELOPE.pack(_COMPRESSED_COOKIE, len(packed)) + packed


def decode(blob: bytes) -> tuple[Layout, Sequence[int], Sequence[int], int, int]:
    """Return the layout of a histogram, its counts, and its smallest and largest latency.

    Time and memory are bounded by the size of the blob, whatever it announces. 512 KiB of counts are always accepted.

    Returns:
        The layout; the indexes of the counts that are not zero, ascending; these counts; the smallest and the largest
        latency, which are exact if `encode` made the blob, and the ends of their buckets otherwise.

    Raises:
        TypeError: if `blob` is not bytes-like.
        ValueError: if it is not exactly one V2 compressed histogram.
    """
    layout, payload, extremes = unpack(blob)
    try:
        slots, counts = _counts(layout, payload)
        ends = (slots[0], slots[-1]) if slots else None
        return layout, slots, counts, *extremes_of(layout, ends, extremes)
    except ValueError as error:
        raise _refusal(error) from None


def unpack(blob: bytes) -> tuple[Layout, bytes, tuple[int, int] | None]:
    """Return the layout of a histogram, its counts as they are encoded, and its smallest and largest latency, if known.

    Raises:
        TypeError, ValueError: as `decode`.
    """
    data = bytes(memoryview(blob))
    try:
        return _unpack(data)
    except (ValueError, struct.error, zlib.error) as error:
        raise _refusal(error) from None


def extremes_of(layout: Layout, ends: tuple[int, int] | None, extremes: tuple[int, int] | None) -> tuple[int, int]:
    """Return the smallest and the largest latency.

    Args:
        layout: the layout of the histogram.
        ends: the indexes of the first and the last count; None without counts.
        extremes: what `unpack` has returned.

    Raises:
        ValueError: if they contradict each other.
    """
    try:
        return _extremes(layout, ends, extremes)
    except ValueError as error:
        raise _refusal(error) from None


def refused(layout: Layout, problem: int) -> ValueError:
    """Return the error for counts that cannot be decoded: `problem` is a position in the list of what may be wrong."""
    return _refusal(
        (
            f"latencies above {layout.highest_ns} ns",
            f"more than {layout.length} counts",
            "the last count is cut off",
            "more than 2**62 latencies",
        )[problem]
    )


def _refusal(problem: object) -> ValueError:
    text = str(problem)
    return ValueError(text if text.startswith(_REFUSED) else _REFUSED + text)


def layout_of(blob: bytes) -> tuple[int, int, int]:
    """Return `lowest_ns`, `highest_ns` and `significant_figures` of a histogram, as its header announces them.

    Raises:
        ValueError: if it has no header.
    """
    try:
        head = zlib.decompressobj().decompress(blob[_ENVELOPE.size :], _HEADER.size)
        _, _, _, figures, lowest_ns, highest_ns, _ = _HEADER.unpack(head)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"not a HdrHistogram V2 blob: {error}") from None
    return lowest_ns, highest_ns, figures


def _most_bytes(compressed: int) -> int:
    """Return how many bytes of counts are accepted from a number of compressed bytes."""
    return max(_ALWAYS_READ_BYTES, _LARGEST_RATIO * compressed)


def _checksum(packed: bytes, smallest: int, largest: int) -> int:
    return zlib.crc32(f"{smallest} {largest}".encode(), zlib.crc32(packed))


def _unpack(data: bytes) -> tuple[Layout, bytes, tuple[int, int] | None]:
    cookie, length = _ENVELOPE.unpack_from(data)
    if cookie != _COMPRESSED_COOKIE:
        raise ValueError(f"the blob's cookie must be {_COMPRESSED_COOKIE:#x}, got {cookie:#x}")
    packed = data[_ENVELOPE.size :]
    if length != len(packed):
        raise ValueError(f"the blob announces {length} compressed bytes, got {len(packed)}")
    inflater = zlib.decompressobj()
    head = inflater.decompress(packed, _HEADER.size)
    cookie, length, offset, figures, lowest_ns, highest_ns, ratio = _HEADER.unpack(head)
    if cookie != _COOKIE:
        raise ValueError(f"the blob's inner cookie must be {_COOKIE:#x}, got {cookie:#x}")
    if offset != 0 or ratio != 1.0:
        raise ValueError("the blob is normalized or scaled, which is not supported")
    layout = Layout(lowest_ns, highest_ns, figures)
    if not 0 <= length <= layout.length * _LONGEST_VARINT:
        raise ValueError(f"the header announces {length} bytes of counts, which cannot hold {layout.length} counts")
    if length > _most_bytes(len(packed)):
        raise ValueError(f"the header announces {length} bytes of counts, too many for {len(packed)} compressed bytes")
    payload = inflater.decompress(inflater.unconsumed_tail, length + 1)
    if len(payload) != length or not inflater.eof:
        raise ValueError(f"the header announces {length} bytes of counts, got {len(payload)}")
    if not inflater.unused_data:
        return layout, payload, None
    smallest, largest, checksum = _EXTREMES.unpack(inflater.unused_data)
    if checksum != _checksum(packed[: -_EXTREMES.size], smallest, largest):
        raise ValueError("checksum of min and max is wrong")
    return layout, payload, (smallest, largest)


def _extremes(layout: Layout, ends: tuple[int, int] | None, extremes: tuple[int, int] | None) -> tuple[int, int]:
    if ends is None:
        return 0, 0
    if extremes is None:
        return layout.lowest_of(ends[0]), min(layout.highest_of(ends[1]), layout.highest_ns)
    smallest, largest = extremes
    if not 0 <= smallest <= largest <= layout.highest_ns:
        raise ValueError(f"min and max must be ascending latencies, got {smallest} and {largest}")
    if (layout.index_of(smallest), layout.index_of(largest)) != ends:
        raise ValueError(f"min and max must be in the first and the last bucket, got {smallest} and {largest}")
    return extremes


def _counts(layout: Layout, payload: bytes) -> tuple[Sequence[int], Sequence[int]]:
    # Arrays, because a list of objects takes several times as much memory.
    slots, counts = array("Q"), array("Q")
    length, end = layout.length, layout.index_of(layout.highest_ns) + 1
    index = zigzag = shift = 0
    for byte in payload:
        # The ninth byte of this variant holds eight bits.
        if byte > 0x7F and shift < _LAST_SHIFT:
            zigzag |= (byte & 0x7F) << shift
            shift += 7
            continue
        zigzag |= byte << shift
        if zigzag & 1:
            index += (zigzag >> 1) + 1
        elif zigzag and index < end:
            slots.append(index)
            counts.append(zigzag >> 1)
            index += 1
        elif zigzag and index < length:
            raise refused(layout, _TOO_LATE)
        else:
            index += 1
        if index > length:
            raise refused(layout, _TOO_MANY_COUNTS)
        zigzag = shift = 0
    if shift:
        raise refused(layout, _CUT_OFF)
    # Half of what a histogram can count: there is room for as many again.
    if sum(counts) > 2**62:
        raise refused(layout, _TOO_MANY)
    return slots, counts


def _varint(number: int) -> bytes:
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray()
    while zigzag > 0x7F and len(out) < _LONGEST_VARINT - 1:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    # The ninth byte of this variant holds eight bits.
    out.append(zigzag & 0xFF)
    return bytes(out)
