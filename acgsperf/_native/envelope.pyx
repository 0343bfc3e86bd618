# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The compiled reader of envelopes, `unseal_many`, and the check of values, `changed_type`.

It opens plain envelopes: those of this version, without tags, not negative and not compressed.  Nearly all are plain.  It passes any
other one to `envelope_format.unseal`, which opens it or raises an error that says what is wrong.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport INFINITY, isfinite, isnan
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

import datetime

from msgspec import msgpack

from acgsperf._native import entry, envelope_format

cdef extern from "Python.h":
    const bint PY_LITTLE_ENDIAN

IMPLEMENTATION = "c"

cdef object Entry = entry.Entry
cdef object CorruptEnvelopeError = envelope_format.CorruptEnvelopeError
cdef object decode = envelope_format.decode
cdef object unseal = envelope_format.unseal
cdef object Packed = entry.Packed
cdef object DateTime = datetime.datetime
cdef object UTC = datetime.timezone.utc
cdef object Ext = msgpack.Ext
cdef uint32_t PLAIN = envelope_format.PLAIN
cdef uint32_t TYPED = envelope_format.TYPED


cdef struct Fields:
    # As `envelope_format` describes them; kind, version and flags as one number.
    uint32_t kind
    uint32_t checksum
    double created, fresh, kept
    uint32_t key_size, tags_size
    uint16_t tokens, reserved

cdef enum:
    ID_BYTES = 8
    STAMP_AT = 8
    FIELDS_AT = 16
    # Without what C may add at the end of the struct.
    FIELDS_BYTES = 44
    HEAD_BYTES = 60
    TOKEN_BYTES = 8


cdef struct Reading:
    # The arguments that are the same for a whole batch; `token` is NULL if tokens are not compared.
    double now, offset
    const char *token


def unseal_many(blobs, keys, limit, now, offset, token, /):
    """Return the entries in the envelopes that a server has returned for keys.

    Args:
        blobs: for each key what the server has under it, or None.
        keys: their identities.
        limit: bytes; a larger envelope is not opened.
        now: seconds of `time.monotonic`; an entry that is not kept until then is left out.
        offset: seconds by which the server's clock, whose times envelopes have, is ahead of `time.monotonic`.
        token: the namespace's; an entry with another one is left out.  None: tokens are not compared.

    Returns:
        For each key an entry with times of `time.monotonic`, or None; the positions of the entries with tags, and the
        tokens of these tags; and the number of envelopes that were corrupt or too large.
    """
    cdef Py_ssize_t most = limit, corrupt = 0, at = 0
    cdef Reading reading
    # No entry has a token of another size.
    cdef bint readable = token is None or (PyBytes_CheckExact(token) and PyBytes_GET_SIZE(token) == TOKEN_BYTES)
    cdef bint opened
    cdef list found = [], tagged = []
    reading.now = now
    reading.offset = offset
    reading.token = PyBytes_AS_STRING(token) if readable and token is not None else NULL
    for blob, key in zip(blobs, keys, strict=True):
        entry = None
        if blob is not None:
            opened = (
                readable and PyBytes_CheckExact(blob) and PyBytes_CheckExact(key) and PyBytes_GET_SIZE(blob) <= most
            )
            if opened:
                entry = entry_if_plain(blob, key, &reading, &opened)
            if not opened:
                try:
                    entry, tokens = unseal(blob, key, limit, now, offset, token)
                except CorruptEnvelopeError:
                    corrupt += 1
                else:
                    if tokens:
                        tagged.append((at, tokens))
        found.append(entry)
        at += 1
    return found, tagged, corrupt


cdef object entry_if_plain(object blob, object key, const Reading *reading, bint *opened):
    """Return the entry in a plain envelope, None if it is to be left out; `opened` tells whether it was plain."""
    cdef Fields fields
    cdef const char *start = PyBytes_AS_STRING(blob)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(blob)
    cdef Py_ssize_t key_size = PyBytes_GET_SIZE(key)
    cdef Py_ssize_t key_at, payload_at
    opened[0] = False
    if not PY_LITTLE_ENDIAN or size < HEAD_BYTES:
        return None
    memcpy(&fields, start + FIELDS_AT, FIELDS_BYTES)
    key_at = HEAD_BYTES + TOKEN_BYTES * <Py_ssize_t> fields.tokens
    payload_at = key_at + key_size
    if (
        (fields.kind != PLAIN and fields.kind != TYPED)
        or fields.tags_size != 0
        or fields.tokens > 1
        or fields.reserved != 0
        or fields.key_size != <size_t> key_size
        or payload_at > size
        or memcmp(start + key_at, PyBytes_AS_STRING(key), key_size) != 0
        or not isfinite(fields.created)
        or isnan(fields.fresh)
        or isnan(fields.kept)
    ):
        return None
    if fields.kept - reading.offset <= reading.now or (
        reading.token != NULL
        and (fields.tokens == 0 or memcmp(start + HEAD_BYTES, reading.token, TOKEN_BYTES) != 0)
    ):
        opened[0] = True
        return None
    payload = PyBytes_FromStringAndSize(start + payload_at, size - payload_at)
    if fields.kind == TYPED:
        value = Packed(payload)
    else:
        try:
            value = decode(payload)
        except MemoryError:
            raise
        except Exception:
            return None
    opened[0] = True
    fresh = None if fields.fresh == INFINITY else fields.fresh - reading.offset
    kept = None if fields.kept == INFINITY else fields.kept - reading.offset
    # By position: an argument by name has to be searched for.
    return Entry(
        value, fields.created - reading.offset, fresh, kept, (), False,
        PyBytes_FromStringAndSize(start, ID_BYTES), stamp_at(start + STAMP_AT),
    )


cdef inline uint64_t stamp_at(const char *start) noexcept nogil:
    """Return a stamp, which is big-endian."""
    cdef uint64_t stamp = 0
    cdef int at
    for at in range(8):
        stamp = stamp << 8 | <unsigned char> start[at]
    return stamp


def changed_type(value, /):
    """Return a type in a packed value that MessagePack does not give back; None if the value comes back as it was.

    The items of a container are copied before they are visited.  So another thread may change it meanwhile.
    """
    cdef list level, below
    cdef dict pairs
    if is_atom(value):
        return None
    level = [value]
    while level:
        below = []
        for item in level:
            if type(item) is dict:
                pairs = (<dict> item).copy()
                for name, inner in pairs.items():
                    if type(name) is not str and not is_atom(name):
                        changed = changed_in_key(name)
                        if changed is not None:
                            return changed
                    if not is_atom(inner):
                        below.append(inner)
            elif type(item) is list:
                for inner in (<list> item).copy():
                    if not is_atom(inner):
                        below.append(inner)
            elif not is_moment(item):
                return type(item)
        level = below
    return None


cdef object changed_in_key(name):
    """Return a type in the key of a dict that does not come back.  Unlike elsewhere, a tuple does."""
    if type(name) is tuple:
        for item in <tuple> name:
            changed = changed_in_key(item)
            if changed is not None:
                return changed
        return None
    return None if is_atom(name) or is_moment(name) else type(name)


cdef inline bint is_atom(value) noexcept:
    kind = type(value)
    return (
        kind is str or kind is int or kind is float or kind is bool or value is None or kind is bytes or kind is Ext
    )


cdef bint is_moment(value) except -1:
    """Return whether a value is a time in UTC, which has a form of its own."""
    return type(value) is DateTime and value.tzinfo is UTC
