# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The parts of RESP2 that run for each read: `mget` packs the command, `has_long_array` checks the replies."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcpy

IMPLEMENTATION = "c"

cdef bytes NAME = b"$4\r\nMGET\r\n"

cdef enum:
    # A sign, the digits of a length, and the line end.
    LENGTH_BYTES = 22
    LINE_END_BYTES = 2
    LONG_ARRAY_DIGITS = 7


def mget(list addresses not None, bytes prefix not None, bytes last not None, Py_ssize_t longest, /):
    """Return the packed command that reads a list of Redis keys and one more.

    Args:
        addresses: what follows `prefix` in each key, as bytes.
        prefix: the common beginning of the keys.
        last: the key that is read last.
        longest: the longest address in bytes that is expected. If one is longer, the result is None.
    """
    cdef Py_ssize_t count = len(addresses), at, total = LENGTH_BYTES + PyBytes_GET_SIZE(NAME)
    cdef Py_ssize_t of_prefix = PyBytes_GET_SIZE(prefix), size
    cdef bytes address, packed
    cdef char *start
    cdef char *out
    for at in range(count):
        size = len(<bytes?> addresses[at])
        if size > longest:
            return None
        total += size
    total += (LENGTH_BYTES + LINE_END_BYTES) * (count + 1) + of_prefix * count + PyBytes_GET_SIZE(last)
    packed = PyBytes_FromStringAndSize(NULL, total)
    start = PyBytes_AS_STRING(packed)
    out = put_length(start, c"*", count + 2)
    out = put(out, NAME)
    for at in range(count):
        address = <bytes> addresses[at]
        out = put_length(out, c"$", of_prefix + PyBytes_GET_SIZE(address))
        out = put(out, prefix)
        out = put(out, address)
        out = put_line_end(out)
    out = put_length(out, c"$", PyBytes_GET_SIZE(last))
    out = put(out, last)
    out = put_line_end(out)
    return packed[:out - start]


cdef inline char *put(char *out, bytes text) noexcept:
    memcpy(out, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    return out + PyBytes_GET_SIZE(text)


cdef inline char *put_line_end(char *out) noexcept nogil:
    out[0] = c"\r"
    out[1] = c"\n"
    return out + LINE_END_BYTES


cdef inline char *put_length(char *out, char sign, size_t length) noexcept nogil:
    cdef char[LENGTH_BYTES] digits
    cdef int at = LENGTH_BYTES
    out[0] = sign
    while True:
        at -= 1
        digits[at] = <char> (c"0" + length % 10)
        length //= 10
        if not length:
            break
    memcpy(out + 1, digits + at, LENGTH_BYTES - at)
    return put_line_end(out + 1 + LENGTH_BYTES - at)


def has_long_array(bytes data not None, /):
    """Return whether something in data may be the length of an array of a million items or more.

    Data may begin in the middle of a reply. An array may be one of RESP3: a set, a push or an attribute.
    """
    cdef const char *at = PyBytes_AS_STRING(data)
    cdef const char *end = at + PyBytes_GET_SIZE(data)
    while end - at > LONG_ARRAY_DIGITS:
        if is_long_array(at):
            return True
        # An array begins a line.
        at = <const char *> memchr(at, c"\n", end - at)
        if at == NULL:
            return False
        at += 1
    return False


cdef inline bint is_long_array(const char *at) noexcept nogil:
    cdef int digits = 0
    if at[0] != c"*" and at[0] != c"~" and at[0] != c">" and at[0] != c"|":
        return False
    while digits < LONG_ARRAY_DIGITS and c"0" <= at[1 + digits] <= c"9":
        digits += 1
    return digits == LONG_ARRAY_DIGITS
