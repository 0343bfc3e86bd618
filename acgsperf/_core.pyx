# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The compiled hot path: HashValidator, LatencyHistogram, what the drop-in needs, and the caches of `_native.caches`.

Re-entrancy.  What a user passes (an iterable, `on_reject`) may call back into the object that called it, or let another
thread do so.  Therefore user code that an operation needs runs before the operation reads any state.  Without the GIL, a
critical section takes its place.  Like the GIL, it may be suspended where Python code runs, and nowhere else.  So everything
that can change is read and written inside one.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcpy

from acgsperf._native.hdr cimport (
    Counts, hdr_add, hdr_clamp, hdr_end, hdr_equal, hdr_first, hdr_free, hdr_init, hdr_mean, hdr_merge, hdr_percentile,
    hdr_read, hdr_reset, hdr_stddev, hdr_within,
)
from acgsperf._native.python cimport (
    PyErr_WriteUnraisable, PyList_New, PyList_SET_ITEM, PyLong_AsLongLongAndOverflow, PyLong_Check,
    PyObject_CallFunctionObjArgs, PyTypeObject, PyUnicode_1BYTE_KIND, PyUnicode_Check, PyUnicode_DATA, PyUnicode_GET_LENGTH,
    PyUnicode_KIND,
)

from operator import index

from acgsperf._native import hdr_codec
from acgsperf._native.arguments import (
    checked_bounds_ns, checked_callable, checked_hashes, checked_interval_ns, checked_latency_s, checked_percent,
)
from acgsperf._native.caches import AdaptiveCache, BoundedCache, LRUCache, RecordingCache
from acgsperf._native.hdr_layout import Layout
from acgsperf._native.types import CONSTITUTIONAL_HASH, Verdict

cdef extern from "platform.h" nogil:
    int64_t acgsperf_monotonic_ns()
    unsigned int acgsperf_read_shared(unsigned int *place)

IMPLEMENTATION = "c"

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGH_BITS = 0x8080808080808080
cdef object MALFORMED_VERDICT = Verdict.MALFORMED
cdef object MISMATCH_VERDICT = Verdict.MISMATCH
cdef object VALID_VERDICT = Verdict.VALID

cdef enum Finding:
    MALFORMED = -1
    MISMATCH = 0
    VALID = 1


cdef inline bint is_hexadecimal(uint64_t word) noexcept nogil:
    """Return whether all eight bytes are of 0-9a-f.

    Each sum carries into a byte's top bit when the byte is at or past a bound (Mycroft's trick); bytes above 127 are
    excluded first, so no sum carries into the next byte.
    """
    cdef uint64_t digit = (word + 0x50 * ONES) & ~(word + 0x46 * ONES)
    cdef uint64_t letter = (word + 0x1F * ONES) & ~(word + 0x19 * ONES)
    return (word & HIGH_BITS) == 0 and ((digit | letter) & HIGH_BITS) == HIGH_BITS


@cython.final
cdef class HashValidator:
    """HashValidator(expected='cdd01ef066bc6cf2', *, on_reject=None)
--

    Checks whether a value is one of the accepted constitutional hashes.

    It accepts any object and never raises for one. It remembers nothing about rejected values. O(1) for each value.

    Args:
        expected: the accepted hash, or 1 to 16 of them (a rotation accepts old and new), each of 16 digits 0-9a-f.
        on_reject: called with every rejected value, after it was counted. What it raises goes to
            `sys.unraisablehook`.

    Raises:
        TypeError: if `expected` is not a str or an iterable of str, or `on_reject` is not callable.
        ValueError: if `expected` is empty, has more than 16 items, or contains anything but hashes.
    """

    cdef uint64_t words[16][2]
    cdef int accepted
    cdef readonly tuple expected
    cdef uint64_t valid
    cdef uint64_t mismatched
    cdef uint64_t malformed
    cdef object on_reject
    cdef object __weakref__

    def __cinit__(self, expected=CONSTITUTIONAL_HASH, *, on_reject=None):
        cdef int i
        self.expected = checked_hashes(expected)
        self.on_reject = checked_callable("on_reject", on_reject)
        self.accepted = len(self.expected)
        for i in range(self.accepted):
            memcpy(self.words[i], PyUnicode_DATA(<PyObject *> self.expected[i]), 16)

    cdef Finding examine(self, PyObject *value) noexcept:
        cdef uint64_t words[2]
        cdef int i
        if not read_digits(value, words):
            self.malformed += 1
            return MALFORMED
        for i in range(self.accepted):
            if words[0] == self.words[i][0] and words[1] == self.words[i][1]:
                self.valid += 1
                return VALID
        if is_hexadecimal(words[0]) and is_hexadecimal(words[1]):
            self.mismatched += 1
            return MISMATCH
        self.malformed += 1
        return MALFORMED

    cdef void reject(self, value) noexcept:
        cdef PyObject *result
        if self.on_reject is not None:
            result = PyObject_CallFunctionObjArgs(<PyObject *> self.on_reject, <PyObject *> value, NULL)
            if result == NULL:
                PyErr_WriteUnraisable(<PyObject *> self.on_reject)
            Py_XDECREF(result)

    def validate(self, value, /):
        """Return True for an accepted hash, False for anything else of any type."""
        cdef bint valid
        with cython.critical_section(self):
            valid = self.examine(<PyObject *> value) == VALID
        if not valid:
            self.reject(value)
        return valid

    def validate_many(self, values, /):
        """Validate each item of an iterable.

        Returns:
            A list of bool, in order.

        Raises:
            TypeError: if `values` is not iterable. What its iterator raises passes through.
        """
        cdef list verdicts
        cdef Py_ssize_t i
        cdef tuple items
        if type(values) is not list and type(values) is not tuple:
            verdicts = []
            for value in values:
                verdicts.append(self.validate(value))
            return verdicts
        items = tuple(values)
        verdicts = PyList_New(len(items))
        with cython.critical_section(self):
            for i in range(len(items)):
                verdict = self.examine(<PyObject *> items[i]) == VALID
                Py_INCREF(verdict)
                PyList_SET_ITEM(verdicts, i, <PyObject *> verdict)
        if self.on_reject is not None:
            for i in range(len(items)):
                if not verdicts[i]:
                    self.reject(items[i])
        return verdicts

    def classify(self, value, /):
        """Return VALID, MISMATCH (a hash, but not an accepted one) or MALFORMED (not a hash at all)."""
        cdef Finding finding
        with cython.critical_section(self):
            finding = self.examine(<PyObject *> value)
        if finding == VALID:
            return VALID_VERDICT
        self.reject(value)
        return MISMATCH_VERDICT if finding == MISMATCH else MALFORMED_VERDICT

    def stats(self):
        """Return the counters since creation or `reset_stats`."""
        from acgsperf._native.stats import ValidatorStats

        with cython.critical_section(self):
            return ValidatorStats(self.valid, self.mismatched, self.malformed)

    def reset_stats(self):
        """Set the counters to zero."""
        with cython.critical_section(self):
            self.valid = self.mismatched = self.malformed = 0

    def __repr__(self):
        return f"<HashValidator expected={self.expected!r}>"

    def __reduce__(self):
        raise TypeError("cannot pickle 'HashValidator' object")


cdef inline bint read_digits(PyObject *value, uint64_t *words) noexcept:
    if not PyUnicode_Check(value) or PyUnicode_GET_LENGTH(value) != 16 or PyUnicode_KIND(value) != PyUnicode_1BYTE_KIND:
        return False
    memcpy(words, PyUnicode_DATA(value), 16)
    return True


@cython.final
cdef class LatencyHistogram:
    """LatencyHistogram(lowest_ns=1, highest_ns=3600000000000, significant_figures=3)
--

    Counts latencies in buckets whose width grows with the value (HdrHistogram, by Gil Tene).

    Recording is O(1) and allocates nothing; a percentile is O(buckets). Every result is right to `significant_figures`
    decimal figures. Memory: 264 KiB by default, of which the system provides only the pages that are used.

    Args:
        lowest_ns: the smallest difference to distinguish, at least 1 ns.
        highest_ns: the largest latency that can be recorded, 2 * lowest_ns to 2**62 ns.
        significant_figures: 1 to 5.

    Raises:
        TypeError, ValueError: if an argument is not an integer, or out of range.
    """

    cdef Counts counts
    cdef readonly int64_t lowest_ns
    cdef readonly int64_t highest_ns
    cdef readonly int significant_figures
    cdef object __weakref__

    def __cinit__(self, lowest_ns=1, highest_ns=3_600_000_000_000, significant_figures=3):
        layout = Layout(lowest_ns, highest_ns, significant_figures)
        self.lowest_ns, self.highest_ns = layout.lowest_ns, layout.highest_ns
        self.significant_figures = layout.significant_figures
        if not hdr_init(&self.counts, layout.length, layout.mask, layout.unit, layout.half_magnitude):
            raise MemoryError

    def __dealloc__(self):
        hdr_free(&self.counts)

    cdef int64_t checked(self, ns) except -1:
        cdef int overflow = 0
        cdef long long value
        if not PyLong_Check(ns):
            try:
                ns = index(ns)
            except TypeError:
                raise TypeError(f"latency must be an integer number of nanoseconds, got {ns!r}") from None
        value = PyLong_AsLongLongAndOverflow(ns, &overflow)
        if overflow or value < 0 or value > self.highest_ns:
            raise ValueError(f"latency must be between 0 and {self.highest_ns} ns, got {ns!r}")
        return value

    def record(self, ns, /):
        """Count one latency in nanoseconds.

        Raises:
            TypeError: if it is not an integer.
            ValueError: if it is negative or above `highest_ns`.
        """
        cdef int64_t value = self.checked(ns)
        with cython.critical_section(self):
            hdr_add(&self.counts, value, 1)

    def record_seconds(self, seconds, /):
        """Count one latency in seconds, rounded down to whole nanoseconds.

        Raises:
            TypeError: if it is not a real number.
            ValueError: if it is negative, above `highest_ns`, or NaN.
        """
        cdef double ns = <double> (seconds if type(seconds) is float else checked_latency_s(seconds)) * 1e9
        if not 0 <= ns <= <double> self.highest_ns:
            raise ValueError(f"latency must be between 0 and {self.highest_ns / 1e9} s, got {seconds!r}")
        with cython.critical_section(self):
            hdr_add(&self.counts, <int64_t> ns, 1)

    def record_many(self, values_ns, /):
        """Count every latency of an iterable, or none of them if one is bad (see `record`)."""
        # No comprehension: if memory runs out, Cython's releases the item that it could not append twice.
        cdef list values = []
        cdef int64_t value
        for ns in values_ns:
            value = self.checked(ns)
            values.append(value)
        with cython.critical_section(self):
            for value in values:
                hdr_add(&self.counts, value, 1)

    def record_corrected(self, ns, expected_interval_ns):
        """Count a latency, and those that a client which waits for answers could not measure meanwhile.

        A client that sends a request every `expected_interval_ns`, and waits longer for an answer, omits requests. They
        are counted as ns - interval, ns - 2 * interval, and so on (coordinated omission; the correction is HdrHistogram's).

        Raises:
            TypeError, ValueError: for a bad latency, an interval that is not positive, or more than 10 million
                corrections; nothing was counted then.
        """
        cdef int64_t value = self.checked(ns)
        cdef int64_t interval = checked_interval_ns(value, expected_interval_ns)
        with cython.critical_section(self):
            hdr_add(&self.counts, value, 1)
            value -= interval
            while value >= interval:
                hdr_add(&self.counts, value, 1)
                value -= interval

    @property
    def count(self):
        """The number of recorded latencies."""
        with cython.critical_section(self):
            return self.counts.total

    @property
    def min(self):
        """The smallest recorded latency, in ns; 0 if there is none."""
        with cython.critical_section(self):
            return self.counts.smallest if self.counts.total else 0

    @property
    def max(self):
        """The largest recorded latency, in ns; 0 if there is none."""
        with cython.critical_section(self):
            return self.counts.largest

    @property
    def mean(self):
        """The arithmetic mean in ns, from the middle of each bucket; 0.0 if empty."""
        with cython.critical_section(self):
            return hdr_mean(&self.counts)

    @property
    def stddev(self):
        """The standard deviation in ns of the whole population; 0.0 if empty."""
        with cython.critical_section(self):
            return hdr_stddev(&self.counts)

    def percentile(self, q, /):
        """Return the latency in ns of the nearest rank to `q` percent of the recorded ones; 0 if empty.

        Raises:
            TypeError: if `q` is not a real number.
            ValueError: if it is not between 0 and 100.
        """
        cdef double percent = checked_percent(q)
        with cython.critical_section(self):
            return hdr_percentile(&self.counts, percent)

    def cumulative(self, bounds_ns, /):
        """Return how many latencies are within each bound, as a histogram with fixed buckets counts them.

        A bucket of this histogram is within a bound if its smallest latency is. So a latency at the bound is counted. A
        latency above the bound, by less than the width of a bucket, may be counted too.

        Args:
            bounds_ns: in ns, ascending.

        Returns:
            A count for each bound, the count of all latencies, and their sum in ns, from the middle of each bucket.

        Raises:
            TypeError: if a bound is not an integer.
            ValueError: if the bounds are not ascending.
        """
        cdef list bounds = checked_bounds_ns(bounds_ns)
        cdef Py_ssize_t i, length = len(bounds)
        cdef uint64_t total, so_far = 0
        cdef double total_ns
        cdef int64_t *limits = NULL
        cdef uint64_t *within = NULL
        try:
            limits = <int64_t *> PyMem_RawCalloc(length + 1, sizeof(int64_t))
            within = <uint64_t *> PyMem_RawCalloc(length + 1, sizeof(uint64_t))
            if limits == NULL or within == NULL:
                raise MemoryError
            for i in range(length):
                limits[i] = bounds[i]
            with cython.critical_section(self):
                total_ns = hdr_within(&self.counts, limits, within, length)
                total = self.counts.total
            counts = []
            for i in range(length):
                so_far += within[i]
                counts.append(so_far)
            return counts, total, total_ns
        finally:
            PyMem_RawFree(limits)
            PyMem_RawFree(within)

    def merge(self, LatencyHistogram other not None, /):
        """Add the counts of another histogram; if its layout differs, by the middle of each of its buckets.

        Raises:
            TypeError: if it is not a LatencyHistogram.
            ValueError: if it has recorded latencies above this one's `highest_ns`; nothing has changed then.
        """
        with cython.critical_section(self, other):
            if other.counts.largest > self.highest_ns:
                raise ValueError(f"merged latencies must be at most {self.highest_ns} ns, got {other.counts.largest}")
            if self.counts.total + other.counts.total > <uint64_t> INT64_MAX:
                raise ValueError(
                    f"merged latencies must be fewer than 2**63, got {self.counts.total + other.counts.total}")
            hdr_merge(&self.counts, &other.counts)

    def snapshot(self):
        """Return the usual figures, all of one moment."""
        from acgsperf._native.stats import HistogramSnapshot

        with cython.critical_section(self):
            return HistogramSnapshot(
                self.counts.total, hdr_clamp(&self.counts, 0) if self.counts.total else 0, self.counts.largest,
                hdr_mean(&self.counts), hdr_stddev(&self.counts),
                hdr_percentile(&self.counts, 50), hdr_percentile(&self.counts, 90), hdr_percentile(&self.counts, 95),
                hdr_percentile(&self.counts, 99), hdr_percentile(&self.counts, 99.9),
            )

    def reset(self):
        """Forget every latency."""
        with cython.critical_section(self):
            hdr_reset(&self.counts)

    def time(self):
        """Return a context manager that records how long its block took, whether it raised or not."""
        return Timer(self)

    def encode(self):
        """Return the HdrHistogram V2 compressed format, as bytes (other tools expect it in base64).

        The exact `min` and `max` follow the compressed data, where other readers do not look.
        """
        cdef list slots = [], used = []
        cdef Py_ssize_t i
        cdef int64_t smallest, largest
        with cython.critical_section(self):
            for i in range(hdr_first(&self.counts), hdr_end(&self.counts)):
                if self.counts.slots[i]:
                    # Two lists of integers: allocating a tuple may start a garbage collection, which may run any code.
                    slots.append(i)
                    used.append(self.counts.slots[i])
            smallest, largest = self.counts.smallest, self.counts.largest
        layout = Layout(self.lowest_ns, self.highest_ns, self.significant_figures)
        return hdr_codec.encode(layout, zip(slots, used), smallest, largest)

    @classmethod
    def decode(cls, blob, /):
        """Create a histogram from the HdrHistogram V2 compressed format.

        `min` and `max` are exact if `encode` made the blob; otherwise they are the ends of their buckets.

        Raises:
            TypeError: if `blob` is not bytes-like.
            ValueError: if it is anything but one whole V2 blob, has a layout that is not possible here, or announces
                more counts than a blob of its size plausibly contains.
        """
        cdef bytes payload
        cdef LatencyHistogram histogram
        cdef Py_ssize_t first = -1, last = -1
        cdef int problem
        layout, payload, extremes = hdr_codec.unpack(blob)
        histogram = LatencyHistogram(layout.lowest_ns, layout.highest_ns, layout.significant_figures)
        # No other code knows the histogram yet.
        problem = hdr_read(
            &histogram.counts, payload, len(payload), layout.index_of(layout.highest_ns) + 1, &first, &last)
        if problem >= 0:
            raise hdr_codec.refused(layout, problem)
        if first >= 0:
            smallest, largest = hdr_codec.extremes_of(layout, (first, last), extremes)
            histogram.counts.smallest, histogram.counts.largest = smallest, largest
        return histogram

    def __eq__(self, other, /):
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        cdef LatencyHistogram that = other
        if (self.lowest_ns, self.highest_ns, self.significant_figures) != (
                that.lowest_ns, that.highest_ns, that.significant_figures):
            return False
        with cython.critical_section(self, that):
            return hdr_equal(&self.counts, &that.counts)

    __hash__ = None

    def __sizeof__(self):
        return LatencyHistogram.__basicsize__ + self.counts.length * sizeof(uint64_t)

    def __repr__(self):
        cdef uint64_t total
        cdef int64_t smallest, largest
        with cython.critical_section(self):
            total, smallest, largest = self.counts.total, self.counts.smallest, self.counts.largest
        return f"<LatencyHistogram count={total} min={smallest if total else 0} max={largest}>"

    def __reduce__(self):
        raise TypeError("cannot pickle 'LatencyHistogram' object")


@cython.final
cdef class Timer:
    """Timer(histogram)
--

    Records the time between entering and leaving; created by `LatencyHistogram.time`.
    """

    cdef LatencyHistogram histogram
    cdef int64_t started_ns

    def __cinit__(self, LatencyHistogram histogram not None):
        self.histogram = histogram
        self.started_ns = -1

    def __enter__(self):
        with cython.critical_section(self):
            self.started_ns = acgsperf_monotonic_ns()
        return self

    def __exit__(self, *exc_info):
        cdef int64_t elapsed, started_ns
        with cython.critical_section(self):
            started_ns = self.started_ns
            elapsed = acgsperf_monotonic_ns() - started_ns
            self.started_ns = -1
        if started_ns < 0:
            raise RuntimeError("the timer was not entered")
        with cython.critical_section(self.histogram):
            hdr_add(&self.histogram.counts, min(max(elapsed, 0), self.histogram.highest_ns), 1)

    def __reduce__(self):
        raise TypeError("cannot pickle 'Timer' object")


@cython.final
cdef class RequestCounters:
    """RequestCounters()
--

    Counts requests and their response times. The shortest and the longest time can be set.

    Attributes:
        total_requests, successful_requests, failed_requests: the numbers of requests.
        total_response_time: the sum of the response times, in seconds.
        min_response_time: the shortest response time, in seconds; inf at first.
        max_response_time: the longest response time, in seconds.
        latency_ns: the response times, a `LatencyHistogram`.
    """

    cdef long long successes, failures, requests
    cdef double total_s, shortest_s, longest_s
    cdef readonly LatencyHistogram latency_ns
    cdef object __weakref__

    def __cinit__(self):
        self.shortest_s = INFINITY
        self.latency_ns = LatencyHistogram()

    def add_request(self, response_time, success=True):
        """Count a request that took `response_time` seconds.

        A time that is too long for the histogram counts there as the longest one, and a negative one or NaN as 0.

        Raises:
            TypeError: if the time is not a real number.
        """
        cdef double seconds = response_time if type(response_time) is float else checked_latency_s(response_time)
        cdef bint succeeded = success
        cdef double ns = seconds * 1e9
        cdef LatencyHistogram latency = self.latency_ns
        if not 0 <= ns <= <double> latency.highest_ns:
            ns = <double> latency.highest_ns if ns > 0 else 0
        with cython.critical_section(self):
            self.requests += 1
            self.successes += succeeded
            self.failures += not succeeded
            self.total_s += seconds
            if seconds < self.shortest_s:
                self.shortest_s = seconds
            if seconds > self.longest_s:
                self.longest_s = seconds
        with cython.critical_section(latency):
            hdr_add(&latency.counts, <int64_t> ns, 1)

    @property
    def total_requests(self):
        with cython.critical_section(self):
            return self.requests

    @property
    def successful_requests(self):
        with cython.critical_section(self):
            return self.successes

    @property
    def failed_requests(self):
        with cython.critical_section(self):
            return self.failures

    @property
    def total_response_time(self):
        with cython.critical_section(self):
            return self.total_s

    @property
    def min_response_time(self):
        with cython.critical_section(self):
            return self.shortest_s

    @min_response_time.setter
    def min_response_time(self, value):
        cdef double checked = checked_latency_s(value)
        with cython.critical_section(self):
            self.shortest_s = checked

    @property
    def max_response_time(self):
        with cython.critical_section(self):
            return self.longest_s

    @max_response_time.setter
    def max_response_time(self, value):
        cdef double checked = checked_latency_s(value)
        with cython.critical_section(self):
            self.longest_s = checked

    def __reduce__(self):
        raise TypeError("cannot pickle 'RequestCounters' object")


@cython.final
cdef class MethodGuard:
    """MethodGuard(owner, name)
--

    Tells whether a class still has the method that it has now. Patches of the class or of its bases are noticed.

    Args:
        owner: the class.
        name: the name of the method.

    Raises:
        AttributeError: if the class does not have the attribute.
    """

    cdef type cls
    cdef str name
    cdef object method
    # The interpreter gives the class a new number, or none (0), whenever the class or one of its bases is changed.
    cdef unsigned int version

    def __cinit__(self, type owner not None, str name not None):
        self.cls = owner
        self.name = name
        self.method = getattr(owner, name)

    def holds(self, instance, /):
        """Return whether `instance` is of exactly this class, and the class still has the method. O(1).

        Attributes of the instance are not looked at.
        """
        if type(instance) is not self.cls:
            return False
        cdef unsigned int version = acgsperf_read_shared(&(<PyTypeObject *> self.cls).tp_version_tag)
        cdef bint known
        with cython.critical_section(self):
            known = version != 0 and version == self.version
        return known or self.look()

    cdef bint look(self) except -1:
        # A lookup gives the class a number. If somebody patches the class between the next two lines, the number that is
        # stored is outdated, and the next call looks again.
        getattr(self.cls, self.name, None)
        cdef unsigned int version = acgsperf_read_shared(&(<PyTypeObject *> self.cls).tp_version_tag)
        cdef bint same = getattr(self.cls, self.name, None) is self.method
        if same:
            with cython.critical_section(self):
                self.version = version
        return same

    def __reduce__(self):
        raise TypeError("cannot pickle 'MethodGuard' object")
