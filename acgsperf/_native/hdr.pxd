# cython: language_level=3
"""The counts of a HdrHistogram, in plain C: no Python code runs in here. `hdr_layout.py` describes their layout.

Only the slots from the smallest to the largest recorded value are read, so that pages that were never written are never
read.  If anything was counted, the first and the last of these slots are not zero.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.math cimport sqrt
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcmp, memset

cdef extern from "platform.h" nogil:
    int acgsperf_bit_length(uint64_t value)


cdef struct Counts:
    uint64_t *slots
    Py_ssize_t length
    uint64_t mask
    int unit
    int half_magnitude
    uint64_t total
    int64_t smallest
    int64_t largest


cdef inline bint hdr_init(Counts *counts, Py_ssize_t length, uint64_t mask, int unit, int half_magnitude) noexcept nogil:
    """Return False if there is no memory."""
    counts.length, counts.mask, counts.unit, counts.half_magnitude = length, mask, unit, half_magnitude
    counts.total, counts.smallest, counts.largest = 0, INT64_MAX, 0
    counts.slots = <uint64_t *> PyMem_RawCalloc(length, sizeof(uint64_t))
    return counts.slots != NULL


cdef inline void hdr_free(Counts *counts) noexcept nogil:
    PyMem_RawFree(counts.slots)


cdef inline void hdr_reset(Counts *counts) noexcept nogil:
    memset(counts.slots, 0, counts.length * sizeof(uint64_t))
    counts.total, counts.smallest, counts.largest = 0, INT64_MAX, 0


cdef inline int hdr_read(
    Counts *counts, const unsigned char *data, Py_ssize_t size, Py_ssize_t end, Py_ssize_t *first, Py_ssize_t *last
) noexcept nogil:
    """Read counts in ZigZag LEB128 into empty slots, and say which of them are the first and the last.

    Return -1, or what is wrong: 0 for a count at `end` or later, 1 for too many counts, 2 if the last one is cut off, 3
    for more than 2**62 latencies.
    """
    cdef uint64_t zigzag = 0, index = 0, length = <uint64_t> counts.length, most = <uint64_t> 1 << 62
    cdef int shift = 0
    cdef bint too_many = False
    cdef Py_ssize_t i
    for i in range(size):
        # The ninth byte of this variant holds eight bits.
        if data[i] > 0x7F and shift < 56:
            zigzag |= <uint64_t> (data[i] & 0x7F) << shift
            shift += 7
            continue
        zigzag |= <uint64_t> data[i] << shift
        if zigzag & 1:
            index += (zigzag >> 1) + 1
        elif zigzag and index < <uint64_t> end:
            counts.slots[index] = zigzag >> 1
            counts.total += zigzag >> 1
            if counts.total > most:
                # Half of what a histogram can count: there is room for as many again.
                too_many, counts.total = True, most
            if first[0] < 0:
                first[0] = <Py_ssize_t> index
            last[0] = <Py_ssize_t> index
            index += 1
        elif zigzag and index < length:
            return 0
        else:
            index += 1
        if index > length:
            return 1
        zigzag = 0
        shift = 0
    return 2 if shift else 3 if too_many else -1


cdef inline Py_ssize_t hdr_index(const Counts *counts, uint64_t value) noexcept nogil:
    cdef int bucket = acgsperf_bit_length(value | counts.mask) - counts.unit - counts.half_magnitude - 1
    return (<Py_ssize_t> bucket << counts.half_magnitude) + <Py_ssize_t> (value >> (bucket + counts.unit))


cdef inline int hdr_shift(const Counts *counts, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t bucket = (i >> counts.half_magnitude) - 1
    return counts.unit + <int> (bucket if bucket > 0 else 0)


cdef inline int64_t hdr_lowest(const Counts *counts, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t half = <Py_ssize_t> 1 << counts.half_magnitude
    return <int64_t> (i if i < 2 * half else (i & (half - 1)) + half) << hdr_shift(counts, i)


cdef inline int64_t hdr_highest(const Counts *counts, Py_ssize_t i) noexcept nogil:
    return hdr_lowest(counts, i) + (<int64_t> 1 << hdr_shift(counts, i)) - 1


cdef inline int64_t hdr_median(const Counts *counts, Py_ssize_t i) noexcept nogil:
    return hdr_lowest(counts, i) + ((<int64_t> 1 << hdr_shift(counts, i)) >> 1)


cdef inline Py_ssize_t hdr_first(const Counts *counts) noexcept nogil:
    return hdr_index(counts, counts.smallest) if counts.total else 0


cdef inline Py_ssize_t hdr_end(const Counts *counts) noexcept nogil:
    return hdr_index(counts, counts.largest) + 1 if counts.total else 0


cdef inline int64_t hdr_clamp(const Counts *counts, int64_t value) noexcept nogil:
    if value < counts.smallest:
        return counts.smallest
    return value if value < counts.largest else counts.largest


cdef inline void hdr_add(Counts *counts, int64_t value, uint64_t times) noexcept nogil:
    counts.slots[hdr_index(counts, value)] += times
    counts.total += times
    if value < counts.smallest:
        counts.smallest = value
    if value > counts.largest:
        counts.largest = value


cdef inline void hdr_merge(Counts *counts, const Counts *other) noexcept nogil:
    """Add the other's counts by the middle of their slots; count one smallest and one largest value exactly."""
    cdef Py_ssize_t i, first = hdr_first(other), end = hdr_end(other)
    cdef uint64_t times
    for i in range(first, end):
        times = other.slots[i]
        if i == end - 1:
            counts.slots[hdr_index(counts, other.largest)] += 1
            times -= 1
        if i == first and times:
            counts.slots[hdr_index(counts, other.smallest)] += 1
            times -= 1
        if times:
            counts.slots[hdr_index(counts, hdr_clamp(other, hdr_median(other, i)))] += times
    counts.total += other.total
    if other.smallest < counts.smallest:
        counts.smallest = other.smallest
    if other.largest > counts.largest:
        counts.largest = other.largest


cdef inline bint hdr_equal(const Counts *one, const Counts *other) noexcept nogil:
    """Return whether two histograms of one layout have counted the same."""
    cdef Py_ssize_t first = hdr_first(one), end = hdr_end(one)
    return (
        one.total == other.total and first == hdr_first(other) and end == hdr_end(other)
        and (end == 0 or memcmp(one.slots + first, other.slots + first, (end - first) * sizeof(uint64_t)) == 0)
    )


cdef inline double hdr_mean(const Counts *counts) noexcept nogil:
    cdef double sum = 0
    cdef Py_ssize_t i
    for i in range(hdr_first(counts), hdr_end(counts)):
        if counts.slots[i]:
            sum += <double> counts.slots[i] * <double> hdr_median(counts, i)
    return sum / <double> counts.total if counts.total else 0.0


cdef inline double hdr_within(const Counts *counts, const int64_t *bounds, uint64_t *within, Py_ssize_t length) noexcept nogil:
    """Add each count to the first bound that the smallest value of its slot is within, and return the sum of all."""
    cdef double sum = 0
    cdef Py_ssize_t i, at = 0
    for i in range(hdr_first(counts), hdr_end(counts)):
        if counts.slots[i]:
            sum += <double> counts.slots[i] * <double> hdr_median(counts, i)
            while at < length and bounds[at] < hdr_lowest(counts, i):
                at += 1
            if at < length:
                within[at] += counts.slots[i]
    return sum


cdef inline double hdr_stddev(const Counts *counts) noexcept nogil:
    cdef double sum = 0, deviation, mean = hdr_mean(counts)
    cdef Py_ssize_t i
    for i in range(hdr_first(counts), hdr_end(counts)):
        if counts.slots[i]:
            deviation = <double> hdr_median(counts, i) - mean
            sum += deviation * deviation * <double> counts.slots[i]
    return sqrt(sum / <double> counts.total) if counts.total else 0.0


cdef inline int64_t hdr_percentile(const Counts *counts, double percent) noexcept nogil:
    cdef uint64_t wanted, seen = 0
    cdef Py_ssize_t i
    if counts.total == 0:
        return 0
    if percent == 0:
        return counts.smallest
    wanted = <uint64_t> (percent / 100 * <double> counts.total + 0.5)
    for i in range(hdr_first(counts), hdr_end(counts)):
        seen += counts.slots[i]
        if seen >= wanted and seen:
            return hdr_clamp(counts, hdr_highest(counts, i))
    return counts.largest
