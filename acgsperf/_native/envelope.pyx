# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The compiled reader of envelopes: `unseal_many`.

It opens envelopes of this version, without tags and not negative, which nearly all are.  It passes any other one to the
twin, which opens it or raises an error that says what is wrong.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport INFINITY, isfinite, isnan
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from acgsperf._native import entry, envelope_format

cdef extern from "Python.h":
    const bint PY_LITTLE_ENDIAN

IMPLEMENTATION = "c"

cdef object Entry = entry.Entry
cdef object CorruptEnvelopeError = envelope_format.CorruptEnvelopeError
cdef object decode = envelope_format.decode
cdef object unseal = envelope_format.unseal
cdef uint32_t PLAIN = envelope_format.PLAIN


cdef struct Header:
    # As `envelope_format` describes it, magic, version and flags as one number.
    uint32_t kind
    double created, fresh, kept
    uint32_t key_size, tags_size, payload_size

cdef enum:
    HEADER_BYTES = 40


def unseal_many(blobs, keys, limit, now, /):
    """Return the entries in the envelopes that a server has returned for keys.

    Args:
        blobs: for each key an envelope, or None.
        keys: their identities.
        limit: bytes; a larger envelope is not opened.
        now: seconds since the epoch; an entry that is not kept until then is left out.

    Returns:
        For each key an entry, or None; the positions and generations of the entries with tags; and the number of
        envelopes that were corrupt or too large.
    """
    cdef Py_ssize_t most = limit, corrupt = 0, at = 0
    cdef double time = now
    cdef bint opened
    cdef list found = [], tagged = []
    for blob, key in zip(blobs, keys, strict=True):
        entry = None
        if blob is not None:
            opened = PyBytes_CheckExact(blob) and PyBytes_CheckExact(key) and PyBytes_GET_SIZE(blob) <= most
            if opened:
                entry = entry_if_plain(blob, key, time, &opened)
            if not opened:
                try:
                    entry, generations = unseal(blob, key, limit, now)
                except CorruptEnvelopeError:
                    corrupt += 1
                else:
                    if generations:
                        tagged.append((at, generations))
        found.append(entry)
        at += 1
    return found, tagged, corrupt


cdef object entry_if_plain(object blob, object key, double now, bint *opened):
    """Return the entry in a plain envelope, None if it is not kept until now; `opened` tells whether it was plain."""
    cdef Header header
    cdef const char *start = PyBytes_AS_STRING(blob)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(blob)
    cdef Py_ssize_t key_size = PyBytes_GET_SIZE(key)
    opened[0] = False
    if not PY_LITTLE_ENDIAN or size < HEADER_BYTES:
        return None
    memcpy(&header.kind, start, 4)
    memcpy(&header.created, start + 4, 24)
    memcpy(&header.key_size, start + 28, 12)
    if (
        header.kind != PLAIN
        or header.tags_size != 0
        or header.key_size != key_size
        or <uint64_t> HEADER_BYTES + header.key_size + header.payload_size != <uint64_t> size
        or memcmp(start + HEADER_BYTES, PyBytes_AS_STRING(key), key_size) != 0
        or not isfinite(header.created)
        or isnan(header.fresh)
        or isnan(header.kept)
    ):
        return None
    try:
        value = decode(PyBytes_FromStringAndSize(start + HEADER_BYTES + key_size, header.payload_size))
    except MemoryError:
        raise
    except Exception:
        return None
    opened[0] = True
    if header.kept <= now:
        return None
    fresh = None if header.fresh == INFINITY else header.fresh
    kept = None if header.kept == INFINITY else header.kept
    return Entry(value, header.created, fresh, kept)
