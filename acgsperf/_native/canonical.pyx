# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The compiled encoder of requests: `canonical`, `fingerprint` and `request_key`.

It encodes what most requests consist of: exact types, integers of 64 bits, and nesting within the limit.  For anything
else it gives up and passes the whole request to the twin, which encodes it or raises an error that says where and why.

References are borrowed.  Between taking one from a container and its last use, no Python code runs, and nothing is
allocated that could start the garbage collector.  Where an exception may do so, nothing borrowed is used afterwards.  A
free-threaded interpreter does not keep other threads from the container, so there a private copy is encoded.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.unicode cimport PyUnicode_DecodeLatin1
from libc.math cimport isfinite
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from acgsperf._native.python cimport (
    Py_False, Py_None, Py_True, PyBytes_AS_STRING, PyBytes_GET_SIZE, PyDict_CheckExact, PyDict_Copy, PyDict_Next,
    PyDict_Size, PyErr_Clear, PyErr_ExceptionMatches, PyFloat_AS_DOUBLE, PyFloat_CheckExact, PyList_AsTuple,
    PyList_CheckExact, PyLong_AsLongLongAndOverflow, PyLong_CheckExact, PySequence_Fast_GET_SIZE,
    PySequence_Fast_ITEMS, PyTuple_CheckExact, PyUnicode_AsUTF8String, PyUnicode_CheckExact, PyUnicode_DATA,
    PyUnicode_GET_LENGTH, PyUnicode_IS_COMPACT_ASCII,
)

from xxhash import xxh3_128_hexdigest

from acgsperf._native import canonical_py

cdef extern from "platform.h":
    const bint ACGSPERF_FREE_THREADED
    int acgsperf_bit_length(uint64_t value) noexcept nogil

IMPLEMENTATION = "c"

cdef object hexdigest = xxh3_128_hexdigest
cdef object sha256 = None
cdef object encode_py = canonical_py.canonical
cdef object key_py = canonical_py.request_key
cdef int MAX_DEPTH = canonical_py.MAX_DEPTH
cdef Py_ssize_t MAX_KEY_BYTES = canonical_py.MAX_KEY_BYTES
cdef const char *HEXADECIMAL = b"0123456789abcdef"

cdef enum:
    HEADER_BYTES = 22  # a tag, the digits of 2**64, a colon
    RUN = 8            # pairs that are sorted by insertion

cdef enum Outcome:
    FAILED = -1
    WRITTEN
    UNKNOWN


cdef struct Pair:
    size_t start
    size_t size


cdef struct Writer:
    # Both start within the writer, on the C stack, and move to the heap if that is too small.
    char *text
    size_t used
    size_t capacity
    Pair *pairs
    size_t pairs_used
    size_t pairs_capacity
    char first_text[512]
    Pair first_pairs[32]


def fingerprint(request, /):
    """Return the address of a request: 32 hexadecimal digits.

    An address is not an identity: compare the request with what you stored under its address.

    Args:
        request: as for `canonical`.

    Raises:
        TypeError, ValueError: as for `canonical`.
    """
    return hexdigest(encoded(request, False))


def request_key(request, /):
    """Return the cache key of a request: its canonical bytes as text, or their SHA-256 if there are more than 200.

    Unlike a fingerprint it is an identity: nobody can find two requests with the same key.

    Args:
        request: as for `canonical`.

    Raises:
        TypeError, ValueError: as for `canonical`.
    """
    return encoded(request, True)


cdef str key_of(const char *text, Py_ssize_t size):
    if size <= MAX_KEY_BYTES:
        return PyUnicode_DecodeLatin1(text, size, NULL)
    return "sha256:" + digest(PyBytes_FromStringAndSize(text, size))


cdef str digest(bytes key):
    """Return the SHA-256 of a key. OpenSSL, which hashlib loads, takes long to import and few programs need it."""
    global sha256
    if sha256 is None:
        import hashlib
        sha256 = hashlib.sha256
    return sha256(key).hexdigest()


def canonical(request, /):
    """Return the canonical bytes of a JSON-like value: for each value a tag and, if needed, a length; keys in order.

    O(n log n) in the keys of a dict, O(n) in everything else.

    Args:
        request: dict, list, tuple, str, int, float, bool or None, nested at most 100 deep; a subclass counts as
            its base. Keys of a dict: str, int, float, bool or None.

    Raises:
        TypeError: for any other type; the message names the place.
        ValueError: for NaN, an infinity, a lone surrogate, and a value that is nested deeper or contains itself.
    """
    return encoded(request, False)


cdef object encoded(request, bint as_key):
    """Return the canonical bytes of a request, or its key."""
    cdef Writer writer
    writer.text = writer.first_text
    writer.used = 0
    writer.capacity = sizeof(writer.first_text)
    writer.pairs = writer.first_pairs
    writer.pairs_used = 0
    writer.pairs_capacity = sizeof(writer.first_pairs) // sizeof(Pair)
    try:
        if write(&writer, <PyObject *> request, 0) == WRITTEN:
            if as_key:
                return key_of(writer.text, <Py_ssize_t> writer.used)
            return PyBytes_FromStringAndSize(writer.text, <Py_ssize_t> writer.used)
    finally:
        if writer.text != writer.first_text:
            PyMem_RawFree(writer.text)
        if writer.pairs != writer.first_pairs:
            PyMem_RawFree(writer.pairs)
    return key_py(request) if as_key else encode_py(request)


cdef Outcome write(Writer *writer, PyObject *value, int depth) except FAILED:
    if PyUnicode_CheckExact(value):
        return write_str(writer, value)
    if PyDict_CheckExact(value):
        if not ACGSPERF_FREE_THREADED:
            return write_object(writer, value, depth)
        copied = PyDict_Copy(<object> value)
        return write_object(writer, <PyObject *> copied, depth)
    if PyTuple_CheckExact(value):
        return write_array(writer, value, depth)
    if PyList_CheckExact(value):
        if not ACGSPERF_FREE_THREADED:
            return write_array(writer, value, depth)
        copied = PyList_AsTuple(<object> value)
        return write_array(writer, <PyObject *> copied, depth)
    return write_scalar(writer, value)


cdef Outcome write_array(Writer *writer, PyObject *array, int depth) except FAILED:
    cdef Py_ssize_t length = PySequence_Fast_GET_SIZE(array)
    cdef PyObject **items = PySequence_Fast_ITEMS(array)
    cdef Py_ssize_t i
    cdef Outcome outcome
    if depth == MAX_DEPTH:
        return UNKNOWN
    write_header(writer, b'a', length)
    for i in range(length):
        outcome = write(writer, items[i], depth + 1)
        if outcome != WRITTEN:
            return outcome
    return WRITTEN


cdef Outcome write_object(Writer *writer, PyObject *mapping, int depth) except FAILED:
    cdef size_t length = PyDict_Size(mapping)
    cdef size_t base = writer.pairs_used
    cdef size_t i = 0
    cdef size_t start
    cdef bint in_order = True
    cdef Py_ssize_t position = 0
    cdef PyObject *key
    cdef PyObject *value
    cdef Pair *pair
    cdef Outcome outcome
    if depth == MAX_DEPTH:
        return UNKNOWN
    write_header(writer, b'o', length)
    reserve_pairs(writer, length)
    writer.pairs_used += length
    while PyDict_Next(mapping, &position, &key, &value):
        start = writer.used
        outcome = write_scalar(writer, key)
        if outcome == WRITTEN:
            outcome = write(writer, value, depth + 1)
        if outcome != WRITTEN:
            return outcome
        pair = writer.pairs + base + i
        pair.start = start
        pair.size = writer.used - start
        if i > 0 and precedes(writer.text, pair, pair - 1):
            in_order = False
        i += 1
    if not in_order:
        sort_pairs(writer, writer.pairs[base].start, base, length)
    writer.pairs_used = base
    return WRITTEN


cdef inline Outcome write_scalar(Writer *writer, PyObject *value) except FAILED:
    """Write a value that can also be a key."""
    if PyUnicode_CheckExact(value):
        return write_str(writer, value)
    if PyLong_CheckExact(value):
        return write_int(writer, value)
    if value == Py_True:
        return write_tag(writer, b't')
    if value == Py_False:
        return write_tag(writer, b'F')
    if value == Py_None:
        return write_tag(writer, b'n')
    if PyFloat_CheckExact(value):
        return write_float(writer, PyFloat_AS_DOUBLE(value))
    return UNKNOWN


cdef inline Outcome write_tag(Writer *writer, char tag) except FAILED:
    reserve(writer, 1)[0] = tag
    writer.used += 1
    return WRITTEN


cdef inline Outcome write_str(Writer *writer, PyObject *value) except FAILED:
    if PyUnicode_IS_COMPACT_ASCII(value):
        return write_text(writer, <const char *> PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value))
    # A new object, because what `PyUnicode_AsUTF8AndSize` returns stays in memory as long as the str. The str is held,
    # because a lone surrogate creates an exception, and that may start the garbage collector.
    text = <object> value
    cdef PyObject *utf8 = PyUnicode_AsUTF8String(text)
    if utf8 == NULL:
        if not PyErr_ExceptionMatches(UnicodeEncodeError):
            return FAILED
        PyErr_Clear()
        return UNKNOWN
    owned = <object> utf8
    Py_DECREF(owned)
    return write_text(writer, PyBytes_AS_STRING(utf8), PyBytes_GET_SIZE(utf8))


cdef inline Outcome write_text(Writer *writer, const char *text, size_t length) except FAILED:
    cdef char *to = reserve(writer, HEADER_BYTES + length)
    to += put_header(to, b's', length)
    memcpy(to, text, length)
    writer.used = (to - writer.text) + length
    return WRITTEN


cdef inline int write_header(Writer *writer, char tag, size_t length) except -1:
    writer.used += put_header(reserve(writer, HEADER_BYTES), tag, length)
    return 0


cdef inline int put_header(char *to, char tag, size_t length) noexcept nogil:
    """Write a tag and a length, and return how many bytes that are."""
    to[0] = tag
    if length < 10:
        # Most names are that short.
        to[1] = <char> (c'0' + length)
        to[2] = c':'
        return 3
    return put_long_header(to, length)


cdef int put_long_header(char *to, size_t length) noexcept nogil:
    cdef size_t rest = length
    cdef int digits = 1
    cdef int i
    while rest > 9:
        rest //= 10
        digits += 1
    for i in range(digits, 0, -1):
        to[i] = <char> (c'0' + length % 10)
        length //= 10
    to[digits + 1] = c':'
    return digits + 2


cdef Outcome write_int(Writer *writer, PyObject *value) except FAILED:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(<object> value, &overflow)
    cdef uint64_t rest
    cdef int digits
    cdef int i
    cdef char *to
    if overflow:
        return UNKNOWN
    to = reserve(writer, 19)
    to[0] = c'i'
    to += 1
    rest = <uint64_t> number
    if number < 0:
        # Unsigned arithmetic can negate the smallest number.
        rest = 0 - rest
        to[0] = c'-'
        to += 1
    digits = (acgsperf_bit_length(rest | 1) + 3) // 4
    for i in range(digits - 1, -1, -1):
        to[i] = HEXADECIMAL[rest & 15]
        rest >>= 4
    to[digits] = c';'
    writer.used = (to - writer.text) + digits + 1
    return WRITTEN


cdef Outcome write_float(Writer *writer, double number) except FAILED:
    cdef uint64_t bits
    cdef char *to
    cdef int i
    if not isfinite(number):
        return UNKNOWN
    memcpy(&bits, &number, sizeof(bits))
    to = reserve(writer, 9)
    to[0] = c'f'
    for i in range(8):
        to[1 + i] = <char> (bits >> (56 - 8 * i))
    writer.used += 9
    return WRITTEN


cdef inline char *reserve(Writer *writer, size_t size) except NULL:
    """Return where the next `size` bytes go."""
    if writer.capacity - writer.used < size:
        writer.text = <char *> enlarged(
            writer.text, writer.first_text, writer.used, &writer.capacity, writer.used + size, 1
        )
    return writer.text + writer.used


cdef inline int reserve_pairs(Writer *writer, size_t count) except -1:
    if writer.pairs_capacity - writer.pairs_used < count:
        writer.pairs = <Pair *> enlarged(
            writer.pairs, writer.first_pairs, writer.pairs_used, &writer.pairs_capacity, writer.pairs_used + count,
            sizeof(Pair),
        )
    return 0


cdef void *enlarged(
    void *memory, void *first, size_t used, size_t *capacity, size_t needed, size_t unit
) except NULL:
    """Return memory with room for `needed`, and at least twice as much as before: growing is O(1) on average."""
    cdef size_t size = max(2 * capacity[0], needed)
    cdef void *larger = PyMem_RawRealloc(NULL if memory == first else memory, size * unit)
    if larger == NULL:
        raise MemoryError
    if memory == first:
        memcpy(larger, memory, used * unit)
    capacity[0] = size
    return larger


cdef inline bint precedes(const char *text, const Pair *one, const Pair *other) noexcept nogil:
    """Return whether one pair precedes another. No key's bytes are a prefix of another's: pairs sort as keys do."""
    return memcmp(text + one.start, text + other.start, min(one.size, other.size)) < 0


cdef int sort_pairs(Writer *writer, size_t first, size_t base, size_t count) except -1:
    """Sort the `count` pairs from `base` on, whose bytes are the last ones, from `first` on."""
    cdef size_t size = writer.used - first
    cdef char *to = reserve(writer, size)
    cdef Pair *pair
    cdef size_t i
    reserve_pairs(writer, count)
    pair = sorted_pairs(writer.text, writer.pairs + base, writer.pairs + writer.pairs_used, count)
    for i in range(count):
        memcpy(to, writer.text + pair[i].start, pair[i].size)
        to += pair[i].size
    memcpy(writer.text + first, writer.text + writer.used, size)
    return 0


cdef Pair *sorted_pairs(const char *text, Pair *pairs, Pair *spare, size_t count) noexcept nogil:
    """Merge sort from the bottom up, O(n log n) for any keys of a client. The result is in one of the two arrays."""
    cdef size_t low = 0
    cdef size_t width = RUN
    while low < count:
        insertion_sort(text, pairs + low, min(width, count - low))
        low += width
    while width < count:
        low = 0
        while low < count:
            merge(text, pairs + low, min(width, count - low), min(2 * width, count - low), spare + low)
            low += 2 * width
        pairs, spare = spare, pairs
        width *= 2
    return pairs


cdef void insertion_sort(const char *text, Pair *pairs, size_t count) noexcept nogil:
    cdef Pair moving
    cdef size_t i
    cdef size_t j
    for i in range(1, count):
        moving = pairs[i]
        j = i
        while j > 0 and precedes(text, &moving, &pairs[j - 1]):
            pairs[j] = pairs[j - 1]
            j -= 1
        pairs[j] = moving


cdef void merge(const char *text, const Pair *pairs, size_t middle, size_t count, Pair *into) noexcept nogil:
    cdef size_t left = 0
    cdef size_t right = middle
    cdef size_t i
    for i in range(count):
        if right == count or (left < middle and not precedes(text, &pairs[right], &pairs[left])):
            into[i] = pairs[left]
            left += 1
        else:
            into[i] = pairs[right]
            right += 1
