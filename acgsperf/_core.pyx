# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, cdivision=True
"""The compiled hot path: HashValidator, LRUCache, LatencyHistogram.

Re-entrancy.  A user's __hash__, __eq__, __del__, clock and on_evict may call back into the object that is at work, or let
another thread do so.  Therefore: user code that an operation needs runs before its state is looked at; after a
comparison the lookup starts again if the table changed; an entry is detached first and its references are dropped last.
On a free-threaded interpreter a critical section stands in for the GIL; like the GIL, it may be suspended where Python
code runs, and nowhere else.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport Py_EQ, PyObject, PyObject_Hash, PyObject_RichCompareBool
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.math cimport rint, sqrt
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from acgsperf._table cimport (
    SMALLEST_CAPACITY, Slot, Table, ring_oldest, ring_push, ring_touch, ring_unlink, table_free, table_give_slot,
    table_home, table_index, table_init, table_rebuild, table_take_slot, table_unindex,
)

from collections.abc import Mapping, MutableMapping
from operator import index as _index
from types import GenericAlias

from acgsperf import _hdr_codec
from acgsperf._types import (
    CONSTITUTIONAL_HASH, HASH_LENGTH, MAX_ENTRIES, CacheStats, EvictionReason, HistogramSnapshot, ValidatorStats, Verdict,
)

cdef extern from "_platform.h" nogil:
    int acgsperf_bit_length(uint64_t value)
    int64_t acgsperf_monotonic_ns()
    int64_t acgsperf_coarse_ns()
    const int64_t ACGSPERF_COARSE_LAG_NS

cdef extern from "Python.h":
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    ctypedef int (*inquiry)(PyObject *) noexcept
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
        PyObject *tp_dict
    int METH_FASTCALL
    object PyDescr_NewMethod(PyTypeObject *type, PyMethodDef *method)
    int PyDict_SetItemString(PyObject *mapping, const char *key, object value) except -1
    void PyType_Modified(PyTypeObject *type)
    bint PyUnicode_Check(PyObject *value)
    bint PyUnicode_CheckExact(PyObject *value)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *value)
    int PyUnicode_KIND(PyObject *value)
    int PyUnicode_1BYTE_KIND
    void *PyUnicode_DATA(PyObject *value)
    int PyUnicode_Compare(object left, object right) except? -1
    bint PyLong_Check(object value)
    bint PyBool_Check(object value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    PyObject *PyObject_CallFunctionObjArgs(PyObject *callable, ...)
    void PyErr_WriteUnraisable(PyObject *origin)
    list PyList_New(Py_ssize_t size)
    void PyList_SET_ITEM(list values, Py_ssize_t i, PyObject *stolen)

IMPLEMENTATION = "c"

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGH_BITS = 0x8080808080808080
cdef int64_t NEVER = INT64_MAX
cdef int64_t LONGEST_NS = <int64_t> 1 << 62
cdef object MISSING = object()
cdef object DEFAULT_TTL = Ellipsis
cdef object SIZE = EvictionReason.SIZE
cdef object EXPIRED = EvictionReason.EXPIRED
cdef object MALFORMED_VERDICT = Verdict.MALFORMED
cdef object MISMATCH_VERDICT = Verdict.MISMATCH
cdef object VALID_VERDICT = Verdict.VALID

cdef enum:
    MOST_HASHES = 16
    MOST_CORRECTIONS = 10_000_000

cdef enum Finding:
    MALFORMED = -1
    MISMATCH = 0
    VALID = 1


cdef inline bint is_hexadecimal(uint64_t word) noexcept nogil:
    """Whether all eight bytes are of 0-9a-f.

    Each sum carries into a byte's top bit when the byte is at or past a bound (Mycroft's trick); bytes above 127 are
    excluded first, so no sum carries into the next byte.
    """
    cdef uint64_t digit = (word + 0x50 * ONES) & ~(word + 0x46 * ONES)
    cdef uint64_t letter = (word + 0x1F * ONES) & ~(word + 0x19 * ONES)
    return (word & HIGH_BITS) == 0 and ((digit | letter) & HIGH_BITS) == HIGH_BITS


@cython.final
cdef class HashValidator:
    """Tells whether a value is one of the accepted constitutional hashes.

    Any object may be asked about and none raises. Nothing is remembered about rejected values. O(1) for each value.

    Args:
        expected: the accepted hash, or 1 to 16 of them (a rotation accepts old and new), 16 digits of 0-9a-f each.

    Raises:
        TypeError: when `expected` is not a str or an iterable of str.
        ValueError: when it is empty, too long, or holds anything but hashes.
    """

    cdef uint64_t words[MOST_HASHES][2]
    cdef int accepted
    cdef readonly tuple expected
    cdef uint64_t valid
    cdef uint64_t mismatched
    cdef uint64_t malformed
    cdef object __weakref__

    def __cinit__(self, expected=CONSTITUTIONAL_HASH):
        cdef int i
        hashes = (expected,) if isinstance(expected, str) else expected
        try:
            hashes = tuple(dict.fromkeys(hashes))
        except TypeError:
            raise TypeError(f"expected must be a str or an iterable of str, not {expected!r}") from None
        for item in hashes:
            if not isinstance(item, str):
                raise TypeError(f"expected must be a str or an iterable of str, not {item!r}")
            if not is_well_formed(<PyObject *> item):
                raise ValueError(f"expected must be {HASH_LENGTH} lower-case hexadecimal digits, not {item!r}")
        if not 1 <= len(hashes) <= MOST_HASHES:
            raise ValueError(f"expected must be 1 to {MOST_HASHES} hashes, not {len(hashes)}")
        self.expected = hashes
        self.accepted = len(hashes)
        for i in range(self.accepted):
            memcpy(self.words[i], PyUnicode_DATA(<PyObject *> hashes[i]), 16)

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

    def validate(self, value, /):
        """True for an accepted hash; False for anything else, of whatever type."""
        with cython.critical_section(self):
            return self.examine(<PyObject *> value) == VALID

    def validate_many(self, values, /):
        """`validate` for each item of an iterable.

        Returns:
            A list of bool, in order.

        Raises:
            TypeError: when `values` is not iterable. What its iterator raises passes through.
        """
        cdef list verdicts
        cdef Py_ssize_t i
        cdef tuple items
        if not isinstance(values, (list, tuple)):
            return [self.validate(value) for value in values]
        items = tuple(values)
        verdicts = PyList_New(len(items))
        with cython.critical_section(self):
            for i in range(len(items)):
                verdict = self.examine(<PyObject *> items[i]) == VALID
                Py_INCREF(verdict)
                PyList_SET_ITEM(verdicts, i, <PyObject *> verdict)
        return verdicts

    def classify(self, value, /):
        """VALID, MISMATCH (a hash, but not an accepted one) or MALFORMED (not a hash at all)."""
        cdef Finding finding
        with cython.critical_section(self):
            finding = self.examine(<PyObject *> value)
        if finding == VALID:
            return VALID_VERDICT
        return MISMATCH_VERDICT if finding == MISMATCH else MALFORMED_VERDICT

    def stats(self):
        """The counters since creation or `reset_stats`."""
        with cython.critical_section(self):
            return ValidatorStats(self.valid, self.mismatched, self.malformed)

    def reset_stats(self):
        """Set the counters to zero."""
        with cython.critical_section(self):
            self.valid = self.mismatched = self.malformed = 0

    def __repr__(self):
        return f"<HashValidator expected={self.expected!r}>"


cdef inline bint read_digits(PyObject *value, uint64_t *words) noexcept:
    if not PyUnicode_Check(value) or PyUnicode_GET_LENGTH(value) != 16 or PyUnicode_KIND(value) != PyUnicode_1BYTE_KIND:
        return False
    memcpy(words, PyUnicode_DATA(value), 16)
    return True


cdef bint is_well_formed(PyObject *value) noexcept:
    cdef uint64_t words[2]
    return read_digits(value, words) and is_hexadecimal(words[0]) and is_hexadecimal(words[1])


cdef uint32_t checked_maxsize(maxsize) except 0:
    if isinstance(maxsize, bool):
        raise TypeError(f"maxsize must be an integer, not {maxsize!r}")
    try:
        maxsize = _index(maxsize)
    except TypeError:
        raise TypeError(f"maxsize must be an integer, not {maxsize!r}") from None
    if not 1 <= maxsize <= MAX_ENTRIES:
        raise ValueError(f"maxsize must be between 1 and {MAX_ENTRIES}, not {maxsize!r}")
    return maxsize


cdef int64_t checked_ttl_ns(ttl) except -1:
    cdef double seconds
    if ttl is None:
        return NEVER
    if isinstance(ttl, (bool, str, bytes, bytearray)) or not hasattr(ttl, "__float__"):
        raise TypeError(f"ttl must be a positive number of seconds or None, not {ttl!r}")
    try:
        seconds = ttl
    except OverflowError:
        seconds = float("inf") if ttl > 0 else -1.0
    if not seconds > 0:
        raise ValueError(f"ttl must be a positive number of seconds or None, not {ttl!r}")
    if seconds * 1e9 >= <double> LONGEST_NS:
        return NEVER
    return max(1, <int64_t> rint(seconds * 1e9))


cdef struct Removed:
    PyObject *key
    PyObject *value
    bint expired


cdef inline Py_hash_t hash_of(key) except? -1:
    return PyObject_Hash(key)


@cython.final
cdef class LRUCache:
    """A mapping of bounded size that forgets what was not used longest, and what has outlived its time.

    Every operation on one key is O(1); `expire`, `resize`, `clear` and the snapshots are O(n). Beyond keys and values an
    entry takes 40 bytes and 8 to 16 of index. A stored None is a hit. Time is monotonic.

    Args:
        maxsize: entries at most, 1 to 2**30.
        ttl: seconds until an entry expires unless `set` says otherwise; None for never.
        clock: returns seconds that never go back; the system's monotonic clock when None.
        on_evict: called with (key, value, reason) after an entry was removed by size or by expiry; may use the cache.
            What it raises goes to `sys.unraisablehook`.

    Raises:
        TypeError, ValueError: when an argument is of the wrong type, or out of range.
    """

    cdef Table table
    cdef uint64_t version
    cdef uint32_t _maxsize
    cdef int64_t ttl_ns
    cdef readonly object ttl
    cdef object clock
    cdef object _on_evict
    cdef uint64_t hits
    cdef uint64_t misses
    cdef uint64_t insertions
    cdef uint64_t updates
    cdef uint64_t evictions
    cdef uint64_t expirations
    cdef object __weakref__

    def __cinit__(self, maxsize, ttl=None, *, clock=None, on_evict=None):
        table_init(&self.table)
        self._maxsize = checked_maxsize(maxsize)
        self.ttl_ns = checked_ttl_ns(ttl)
        self.ttl = None if ttl is None else float(ttl) if self.ttl_ns != NEVER else float("inf")
        if clock is not None and not callable(clock):
            raise TypeError(f"clock must be callable or None, not {clock!r}")
        self.clock = clock
        self.on_evict = on_evict

    def __dealloc__(self):
        release_entries(&self.table)

    @property
    def maxsize(self):
        """Entries at most; `resize` changes it."""
        return self._maxsize

    @property
    def on_evict(self):
        """Called with (key, value, reason) for every entry that size or expiry removed; may be replaced."""
        return self._on_evict

    @on_evict.setter
    def on_evict(self, callback):
        if callback is not None and not callable(callback):
            raise TypeError(f"on_evict must be callable or None, not {callback!r}")
        self._on_evict = callback

    cdef int64_t read_clock(self) except? -1:
        """What a user's clock says; 0 without one, for then `is_expired` reads the system's when it has to."""
        cdef double now
        if self.clock is None:
            return 0
        now = self.clock()
        if not -4e9 < now < 4e9:
            raise ValueError(f"clock must return seconds within 4e9 of zero, not {now!r}")
        return <int64_t> rint(now * 1e9)

    cdef inline bint is_expired(self, int64_t expires_ns, int64_t now_ns) noexcept:
        if expires_ns == NEVER:
            return False
        if self.clock is not None:
            return now_ns >= expires_ns
        # The precise clock is read only when the coarse one cannot tell.
        if expires_ns - acgsperf_coarse_ns() > ACGSPERF_COARSE_LAG_NS:
            return False
        return acgsperf_monotonic_ns() >= expires_ns

    cdef inline int64_t expiry(self, int64_t ttl_ns, int64_t now_ns) noexcept:
        if ttl_ns == NEVER:
            return NEVER
        return (now_ns if self.clock is not None else acgsperf_monotonic_ns()) + ttl_ns

    cdef uint32_t find(self, key, Py_hash_t hash) except? 0:
        """The slot of a key, or 0. Starts again whenever a comparison changed the table."""
        cdef uint64_t i, version
        cdef uint32_t number
        cdef Slot *slot
        cdef int same
        while True:
            version = self.version
            i = table_home(&self.table, hash)
            while True:
                number = self.table.index[i]
                if number == 0:
                    return 0
                slot = &self.table.slots[number]
                if slot.key == <PyObject *> key:
                    return number
                if slot.hash == hash:
                    if PyUnicode_CheckExact(slot.key) and PyUnicode_CheckExact(<PyObject *> key):
                        same = PyUnicode_Compare(<object> slot.key, key) == 0
                    else:
                        same = equal(<object> slot.key, key)
                        if self.version != version:
                            break
                    if same:
                        return number
                i = (i + 1) & self.table.mask

    cdef inline Removed detach(self, uint32_t number, bint expired) noexcept:
        """Take an entry out; its references pass to the caller."""
        cdef Removed removed
        removed.key = self.table.slots[number].key
        removed.value = self.table.slots[number].value
        removed.expired = expired
        table_unindex(&self.table, number)
        ring_unlink(&self.table, number)
        table_give_slot(&self.table, number)
        self.version += 1
        return removed

    cdef Removed evict(self, uint32_t number, bint expired) noexcept:
        if expired:
            self.expirations += 1
        else:
            self.evictions += 1
        return self.detach(number, expired)

    cdef void dispose(self, Removed removed) noexcept:
        """Tell the callback about an evicted entry and drop its references."""
        cdef PyObject *result
        key, value = <object> removed.key, <object> removed.value
        Py_DECREF(key)
        Py_DECREF(value)
        callback = self._on_evict
        if callback is not None:
            result = PyObject_CallFunctionObjArgs(
                <PyObject *> callback, removed.key, removed.value, <PyObject *> (EXPIRED if removed.expired else SIZE), NULL)
            if result == NULL:
                PyErr_WriteUnraisable(<PyObject *> callback)
            Py_XDECREF(result)

    cdef void dispose_all(self, Removed *removed, Py_ssize_t count) noexcept:
        cdef Py_ssize_t i
        for i in range(count):
            self.dispose(removed[i])
        PyMem_RawFree(removed)

    cdef object lookup(self, key, Py_hash_t hash, int64_t now):
        cdef uint32_t number = self.find(key, hash)
        if number == 0:
            self.misses += 1
            return MISSING
        if self.is_expired(self.table.slots[number].expires_ns, now):
            self.misses += 1
            self.dispose(self.evict(number, True))
            return MISSING
        self.hits += 1
        ring_touch(&self.table, number)
        return <object> self.table.slots[number].value

    cdef int store(self, key, Py_hash_t hash, value, int64_t ttl_ns, int64_t now) except -1:
        cdef uint32_t number = self.find(key, hash)
        cdef int64_t expires_ns = self.expiry(ttl_ns, now)
        cdef Removed removed
        cdef Slot *slot
        cdef PyObject *old
        removed.key = NULL
        if number:
            slot = &self.table.slots[number]
            if not self.is_expired(slot.expires_ns, now):
                old = slot.value
                Py_INCREF(value)
                slot.value = <PyObject *> value
                slot.expires_ns = expires_ns
                ring_touch(&self.table, number)
                self.updates += 1
                Py_DECREF(<object> old)
                return 0
            removed = self.evict(number, True)
        elif self.table.used >= self._maxsize:
            number = ring_oldest(&self.table)
            removed = self.evict(number, self.is_expired(self.table.slots[number].expires_ns, now))
        elif self.table.used == self.table.capacity:
            if not table_rebuild(&self.table, min(self._maxsize, max(SMALLEST_CAPACITY, 2 * self.table.capacity))):
                raise MemoryError
        number = table_take_slot(&self.table)
        slot = &self.table.slots[number]
        Py_INCREF(key)
        Py_INCREF(value)
        slot.key = <PyObject *> key
        slot.value = <PyObject *> value
        slot.hash = hash
        slot.expires_ns = expires_ns
        table_index(&self.table, number)
        ring_push(&self.table, number)
        self.version += 1
        self.insertions += 1
        if removed.key != NULL:
            self.dispose(removed)
        return 0

    def peek(self, key, default=None, /):
        """The value of a fresh entry, or `default`; neither the order nor the counters change."""
        cdef Py_hash_t hash = hash_of(key)
        cdef int64_t now
        cdef uint32_t number
        with cython.critical_section(self):
            now = self.read_clock()
            number = self.find(key, hash)
            if number and not self.is_expired(self.table.slots[number].expires_ns, now):
                return <object> self.table.slots[number].value
        return default

    def set(self, key, value, ttl=...):
        """Store a value as the most recently used; when full, the least recently used entry is evicted.

        Args:
            key: any hashable.
            value: anything, None included.
            ttl: seconds until this entry expires, None for never; the cache's own `ttl` when left out.

        Raises:
            TypeError, ValueError: for an unhashable key or a bad ttl; nothing has changed then.
        """
        cdef int64_t ttl_ns = self.ttl_ns if ttl is DEFAULT_TTL else checked_ttl_ns(ttl)
        cdef Py_hash_t hash = hash_of(key)
        with cython.critical_section(self):
            self.store(key, hash, value, ttl_ns, self.read_clock())

    def setdefault(self, key, default=None, /):
        """The value of a key, which is set to `default` when it is missing or expired."""
        cdef Py_hash_t hash = hash_of(key)
        cdef int64_t now
        with cython.critical_section(self):
            now = self.read_clock()
            value = self.lookup(key, hash, now)
            if value is MISSING:
                self.store(key, hash, default, self.ttl_ns, now)
                return default
            return value

    def pop(self, key, default=..., /):
        """Remove a key and return its value.

        Raises:
            KeyError: when it is missing or expired and no default was given.
        """
        cdef Py_hash_t hash = hash_of(key)
        cdef Removed removed
        cdef int64_t now
        cdef uint32_t number
        cdef bint expired
        with cython.critical_section(self):
            now = self.read_clock()
            number = self.find(key, hash)
            if number:
                expired = self.is_expired(self.table.slots[number].expires_ns, now)
                if not expired:
                    removed = self.detach(number, False)
                    value = <object> removed.value
                    Py_DECREF(value)
                    Py_DECREF(<object> removed.key)
                    return value
                self.dispose(self.evict(number, True))
        if default is DEFAULT_TTL:
            raise KeyError(key)
        return default

    def popitem(self):
        """Remove and return the least recently used fresh (key, value).

        Raises:
            KeyError: when there is none.
        """
        cdef Removed removed
        cdef int64_t now
        cdef uint32_t number
        with cython.critical_section(self):
            now = self.read_clock()
            while True:
                number = ring_oldest(&self.table)
                if number == 0:
                    raise KeyError("popitem(): cache is empty")
                if not self.is_expired(self.table.slots[number].expires_ns, now):
                    break
                self.dispose(self.evict(number, True))
            removed = self.detach(number, False)
            key, value = <object> removed.key, <object> removed.value
            Py_DECREF(key)
            Py_DECREF(value)
            return key, value

    def update(self, other=(), /):
        """`set` every item of a mapping, or of an iterable of (key, value)."""
        for key, value in other.items() if isinstance(other, Mapping) else other:
            self.set(key, value)

    def clear(self):
        """Remove every entry; counters stay, `on_evict` is not called."""
        cdef Table old
        with cython.critical_section(self):
            old = self.table
            table_init(&self.table)
            self.version += 1
        release_entries(&old)

    def expire(self):
        """Remove every expired entry, least recently used first.

        Returns:
            How many there were.
        """
        cdef int64_t now
        cdef Py_ssize_t count = 0
        cdef uint32_t number, newer
        cdef Removed *removed
        with cython.critical_section(self):
            now = self.read_clock()
            removed = <Removed *> PyMem_RawMalloc((self.table.used + 1) * sizeof(Removed))
            if removed == NULL:
                raise MemoryError
            if self.clock is None:
                now = acgsperf_monotonic_ns()
            number = ring_oldest(&self.table)
            while number:
                newer = self.table.ring[number].newer
                if self.table.slots[number].expires_ns != NEVER and now >= self.table.slots[number].expires_ns:
                    removed[count] = self.evict(number, True)
                    count += 1
                number = newer
            self.dispose_all(removed, count)
        return count

    def expires_in(self, key, /):
        """Seconds until a key expires, None for never.

        Raises:
            KeyError: when it is missing or has expired.
        """
        cdef Py_hash_t hash = hash_of(key)
        cdef int64_t now, expires_ns
        cdef uint32_t number
        with cython.critical_section(self):
            now = self.read_clock()
            number = self.find(key, hash)
            if number:
                expires_ns = self.table.slots[number].expires_ns
                if expires_ns == NEVER:
                    return None
                if self.clock is None:
                    now = acgsperf_monotonic_ns()
                if now < expires_ns:
                    return (expires_ns - now) / 1e9
        raise KeyError(key)

    def resize(self, maxsize):
        """Change how many entries the cache holds; the least recently used ones over that are evicted.

        Raises:
            TypeError, ValueError: when `maxsize` is not an integer from 1 to 2**30; nothing has changed then.
        """
        cdef uint32_t limit = checked_maxsize(maxsize)
        cdef int64_t now
        cdef Py_ssize_t count = 0
        cdef uint32_t number
        cdef Removed *removed
        with cython.critical_section(self):
            now = self.read_clock()
            removed = <Removed *> PyMem_RawMalloc((self.table.used + 1) * sizeof(Removed))
            if removed == NULL:
                raise MemoryError
            self._maxsize = limit
            while self.table.used > limit:
                number = ring_oldest(&self.table)
                removed[count] = self.evict(number, self.is_expired(self.table.slots[number].expires_ns, now))
                count += 1
            if self.table.capacity > limit and table_rebuild(&self.table, limit):
                self.version += 1
            self.dispose_all(removed, count)

    cdef list snapshot(self, bint of_keys, bint of_values):
        """Keys, values or pairs of the fresh entries, least recently used first."""
        cdef int64_t now = self.read_clock()
        cdef uint64_t version
        cdef Py_ssize_t count, room
        cdef uint32_t number
        cdef list keys, values
        while True:
            version = self.version
            room = self.table.used
            # Making a list may run a garbage collection, and that any code at all.
            keys, values = [None] * room, [None] * room
            if self.version == version:
                break
        if self.clock is None:
            now = acgsperf_monotonic_ns()
        count = 0
        number = ring_oldest(&self.table)
        while number:
            if self.table.slots[number].expires_ns == NEVER or now < self.table.slots[number].expires_ns:
                keys[count] = <object> self.table.slots[number].key
                values[count] = <object> self.table.slots[number].value
                count += 1
            number = self.table.ring[number].newer
        del keys[count:], values[count:]
        if of_keys and of_values:
            return list(zip(keys, values))
        return keys if of_keys else values

    def keys(self):
        """A list of the fresh keys, least recently used first."""
        with cython.critical_section(self):
            return self.snapshot(True, False)

    def values(self):
        """A list of the fresh values, least recently used first."""
        with cython.critical_section(self):
            return self.snapshot(False, True)

    def items(self):
        """A list of the fresh (key, value) pairs, least recently used first."""
        with cython.critical_section(self):
            return self.snapshot(True, True)

    def stats(self):
        """The counters since creation or `reset_stats`, and the size now."""
        with cython.critical_section(self):
            return CacheStats(
                self.hits, self.misses, self.insertions, self.updates, self.evictions, self.expirations,
                self.table.used, self._maxsize,
            )

    def reset_stats(self):
        """Set the counters to zero."""
        with cython.critical_section(self):
            self.hits = self.misses = self.insertions = self.updates = self.evictions = self.expirations = 0

    def __getitem__(self, key, /):
        cdef Py_hash_t hash = hash_of(key)
        with cython.critical_section(self):
            value = self.lookup(key, hash, self.read_clock())
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key, value, /):
        cdef Py_hash_t hash = hash_of(key)
        with cython.critical_section(self):
            self.store(key, hash, value, self.ttl_ns, self.read_clock())

    def __delitem__(self, key, /):
        cdef Py_hash_t hash = hash_of(key)
        cdef Removed removed
        cdef uint32_t number
        with cython.critical_section(self):
            number = self.find(key, hash)
            if number:
                removed = self.detach(number, False)
        if number == 0:
            raise KeyError(key)
        Py_DECREF(<object> removed.value)
        Py_DECREF(<object> removed.key)

    def __contains__(self, key, /):
        return self.peek(key, MISSING) is not MISSING

    def __iter__(self):
        return iter(self.keys())

    def __len__(self):
        return self.table.used

    def __sizeof__(self):
        cdef size_t own = <size_t> LRUCache.__basicsize__
        if self.table.capacity:
            own += (self.table.capacity + 1) * (sizeof(Slot) + 8) + (self.table.mask + 1) * sizeof(uint32_t)
        return own

    def __repr__(self):
        return f"<LRUCache size={self.table.used} maxsize={self._maxsize} ttl={self.ttl}>"

    def __reduce__(self):
        raise TypeError("cannot pickle 'LRUCache' object")

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)


cdef int equal(stored, key) except -1:
    # `stored` is held while the comparison runs: it may remove the entry.
    return PyObject_RichCompareBool(stored, key, Py_EQ)


cdef void release_entries(Table *table) noexcept:
    """Drop every reference and the memory of a table that nothing else can reach."""
    cdef Table detached = table[0]
    cdef uint32_t number
    table_init(table)
    if detached.slots == NULL:
        return
    for number in range(1, detached.unused_from):
        Py_XDECREF(detached.slots[number].value)
        Py_XDECREF(detached.slots[number].key)
    table_free(&detached)


cdef object lru_get(LRUCache self, PyObject **args, Py_ssize_t count):
    cdef Py_hash_t hash
    if not 1 <= count <= 2:
        raise TypeError(f"get expected 1 or 2 arguments, got {count}")
    hash = PyObject_Hash(<object> args[0])
    with cython.critical_section(self):
        value = self.lookup(<object> args[0], hash, self.read_clock())
    if value is not MISSING:
        return value
    return <object> args[1] if count == 2 else None


cdef traverseproc traverse_fields
cdef inquiry clear_fields


cdef int lru_traverse(PyObject *self, visitproc visit, void *arg) noexcept:
    cdef Table *table = &(<LRUCache> <void *> self).table
    cdef uint32_t number
    cdef int stop
    if table.slots != NULL:
        for number in range(1, table.unused_from):
            if table.slots[number].key != NULL:
                stop = visit(table.slots[number].key, arg)
                if stop:
                    return stop
                stop = visit(table.slots[number].value, arg)
                if stop:
                    return stop
    return traverse_fields(self, visit, arg)


cdef int lru_clear(PyObject *self) noexcept:
    (<LRUCache> <void *> self).version += 1
    release_entries(&(<LRUCache> <void *> self).table)
    return clear_fields(self)


cdef PyMethodDef get_method
get_method.ml_name = "get"
get_method.ml_meth = <void *> lru_get
get_method.ml_flags = METH_FASTCALL
get_method.ml_doc = b"""get($self, key, default=None, /)
--

The value of a key, which becomes the most recently used; `default` when it is missing or has expired."""


cdef complete_type(PyTypeObject *type):
    """Give LRUCache what Cython has no syntax for.

    The garbage collector must see the references in the table; and a `get` without keywords is called 10 ns faster.
    """
    global traverse_fields, clear_fields
    traverse_fields, clear_fields = type.tp_traverse, type.tp_clear
    type.tp_traverse, type.tp_clear = lru_traverse, lru_clear
    PyDict_SetItemString(type.tp_dict, "get", PyDescr_NewMethod(type, &get_method))
    PyType_Modified(type)


complete_type(<PyTypeObject *> LRUCache)
MutableMapping.register(LRUCache)


cdef int64_t checked_int(name, value) except? -1:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        value = _index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    return value if -LONGEST_NS <= value <= LONGEST_NS else -1


@cython.final
cdef class LatencyHistogram:
    """Counts latencies in buckets whose width grows with the value (HdrHistogram, by Gil Tene).

    Recording is O(1) and allocates nothing; a percentile is O(buckets). Every figure is right to `significant_figures`
    decimal figures. Memory: 264 KiB as set by default, of which the system provides only what is touched.

    Args:
        lowest_ns: the smallest difference to be told apart, at least 1 ns.
        highest_ns: the largest latency that can be recorded, 2 * lowest_ns to 2**62 ns.
        significant_figures: 1 to 5.

    Raises:
        TypeError, ValueError: when an argument is not an integer, or out of range.
    """

    cdef uint64_t *counts
    cdef Py_ssize_t length
    cdef readonly int64_t lowest_ns
    cdef readonly int64_t highest_ns
    cdef readonly int significant_figures
    cdef int unit
    cdef int half_magnitude
    cdef uint64_t mask
    cdef uint64_t total
    cdef int64_t smallest
    cdef int64_t largest
    cdef object __weakref__

    def __cinit__(self, lowest_ns=1, highest_ns=3_600_000_000_000, significant_figures=3):
        cdef int64_t lowest = checked_int("lowest_ns", lowest_ns)
        cdef int64_t highest = checked_int("highest_ns", highest_ns)
        cdef int64_t figures = checked_int("significant_figures", significant_figures)
        cdef uint64_t untrackable, resolution = 2
        cdef Py_ssize_t buckets = 1
        if lowest < 1 or lowest > LONGEST_NS // 2:
            raise ValueError(f"lowest_ns must be between 1 and {LONGEST_NS // 2}, not {lowest_ns!r}")
        if highest < 2 * lowest or highest > LONGEST_NS:
            raise ValueError(f"highest_ns must be between {2 * lowest} and {LONGEST_NS}, not {highest_ns!r}")
        if not 1 <= figures <= 5:
            raise ValueError(f"significant_figures must be between 1 and 5, not {significant_figures!r}")
        self.lowest_ns, self.highest_ns, self.significant_figures = lowest, highest, figures
        self.unit = acgsperf_bit_length(lowest) - 1
        for _ in range(figures):
            resolution *= 10
        self.half_magnitude = acgsperf_bit_length(resolution - 1) - 1
        if self.unit + self.half_magnitude > 61:
            raise ValueError(f"lowest_ns must be smaller for {figures} significant figures, not {lowest_ns!r}")
        self.mask = ((<uint64_t> 2 << self.half_magnitude) - 1) << self.unit
        untrackable = (<uint64_t> 2 << self.half_magnitude) << self.unit
        while untrackable <= <uint64_t> highest:
            untrackable <<= 1
            buckets += 1
        self.length = (buckets + 1) << self.half_magnitude
        self.counts = <uint64_t *> PyMem_RawCalloc(self.length, sizeof(uint64_t))
        if self.counts == NULL:
            raise MemoryError
        self.smallest = INT64_MAX

    def __dealloc__(self):
        PyMem_RawFree(self.counts)

    cdef inline Py_ssize_t index_of(self, uint64_t value) noexcept nogil:
        cdef int bucket = acgsperf_bit_length(value | self.mask) - self.unit - self.half_magnitude - 1
        return (<Py_ssize_t> bucket << self.half_magnitude) + <Py_ssize_t> (value >> (bucket + self.unit))

    cdef inline int shift_of(self, Py_ssize_t i) noexcept nogil:
        cdef Py_ssize_t bucket = (i >> self.half_magnitude) - 1
        return self.unit + <int> max(bucket, 0)

    cdef inline int64_t lowest_of(self, Py_ssize_t i) noexcept nogil:
        cdef Py_ssize_t half = <Py_ssize_t> 1 << self.half_magnitude
        return <int64_t> (i if i < 2 * half else (i & (half - 1)) + half) << self.shift_of(i)

    cdef inline int64_t highest_of(self, Py_ssize_t i) noexcept nogil:
        return self.lowest_of(i) + (<int64_t> 1 << self.shift_of(i)) - 1

    cdef inline int64_t median_of(self, Py_ssize_t i) noexcept nogil:
        return self.lowest_of(i) + ((<int64_t> 1 << self.shift_of(i)) >> 1)

    cdef inline void add(self, int64_t value, uint64_t count) noexcept nogil:
        self.counts[self.index_of(value)] += count
        self.total += count
        if value < self.smallest:
            self.smallest = value
        if value > self.largest:
            self.largest = value

    cdef int64_t checked(self, ns) except -1:
        cdef int overflow = 0
        cdef long long value
        if not PyLong_Check(ns):
            try:
                ns = _index(ns)
            except TypeError:
                raise TypeError(f"latency must be an integer number of nanoseconds, not {ns!r}") from None
        value = PyLong_AsLongLongAndOverflow(ns, &overflow)
        if overflow or value < 0 or value > self.highest_ns:
            raise ValueError(f"latency must be between 0 and {self.highest_ns} ns, not {ns!r}")
        return value

    def record(self, ns, /):
        """Count one latency in nanoseconds.

        Raises:
            TypeError: when it is not an integer.
            ValueError: when it is negative or above `highest_ns`.
        """
        cdef int64_t value = self.checked(ns)
        with cython.critical_section(self):
            self.add(value, 1)

    def record_many(self, values_ns, /):
        """Count every latency of an iterable, or none of them when one is bad (see `record`)."""
        cdef list values = [self.checked(ns) for ns in values_ns]
        cdef int64_t value
        with cython.critical_section(self):
            for value in values:
                self.add(value, 1)

    def record_corrected(self, ns, expected_interval_ns):
        """Count a latency, and those that a caller who waits for answers could not measure meanwhile.

        A caller that means to ask every `expected_interval_ns` and is held up for longer has omitted requests: they are
        counted as ns - interval, ns - 2 * interval, and so on (coordinated omission; HdrHistogram's correction).

        Raises:
            TypeError, ValueError: for a bad latency, an interval that is not positive, or more than 10 million
                corrections; nothing was counted then.
        """
        cdef int64_t value = self.checked(ns)
        cdef int64_t interval = checked_int("expected_interval_ns", expected_interval_ns)
        if interval <= 0:
            raise ValueError(f"expected_interval_ns must be positive, not {expected_interval_ns!r}")
        if value // interval > MOST_CORRECTIONS:
            raise ValueError(
                f"expected_interval_ns must ask for at most {MOST_CORRECTIONS} corrections, not {expected_interval_ns!r}")
        with cython.critical_section(self):
            self.add(value, 1)
            value -= interval
            while value >= interval:
                self.add(value, 1)
                value -= interval

    @property
    def count(self):
        """Latencies recorded."""
        return self.total

    @property
    def min(self):
        """The smallest latency recorded, in ns; 0 when there is none."""
        return self.smallest if self.total else 0

    @property
    def max(self):
        """The largest latency recorded, in ns; 0 when there is none."""
        return self.largest

    cdef double mean_now(self) noexcept:
        cdef double sum = 0
        cdef Py_ssize_t i
        if self.total == 0:
            return 0.0
        for i in range(self.index_of(self.smallest), self.index_of(self.largest) + 1):
            if self.counts[i]:
                sum += <double> self.counts[i] * <double> self.median_of(i)
        return sum / <double> self.total

    cdef double stddev_now(self) noexcept:
        cdef double sum = 0, deviation, mean = self.mean_now()
        cdef Py_ssize_t i
        if self.total == 0:
            return 0.0
        for i in range(self.index_of(self.smallest), self.index_of(self.largest) + 1):
            if self.counts[i]:
                deviation = <double> self.median_of(i) - mean
                sum += deviation * deviation * <double> self.counts[i]
        return sqrt(sum / <double> self.total)

    cdef int64_t percentile_now(self, double q) noexcept:
        cdef uint64_t wanted, seen = 0
        cdef Py_ssize_t i
        if self.total == 0:
            return 0
        if q == 0:
            return self.smallest
        wanted = max(<uint64_t> 1, <uint64_t> (q / 100 * <double> self.total + 0.5))
        for i in range(self.index_of(self.smallest), self.index_of(self.largest) + 1):
            seen += self.counts[i]
            if seen >= wanted:
                return min(max(self.highest_of(i), self.smallest), self.largest)
        return self.largest

    @property
    def mean(self):
        """The arithmetic mean in ns, from the middle of each bucket; 0.0 when empty."""
        with cython.critical_section(self):
            return self.mean_now()

    @property
    def stddev(self):
        """The standard deviation in ns of the whole population; 0.0 when empty."""
        with cython.critical_section(self):
            return self.stddev_now()

    def percentile(self, q, /):
        """The latency in ns that `q` percent of the recorded ones do not exceed; 0 when empty.

        Raises:
            TypeError: when `q` is not a real number.
            ValueError: when it is not between 0 and 100.
        """
        cdef double share
        if isinstance(q, (bool, str, bytes, bytearray)) or not hasattr(q, "__float__"):
            raise TypeError(f"percentile must be a number between 0 and 100, not {q!r}")
        try:
            share = q
        except OverflowError:
            share = -1
        if not 0 <= share <= 100:
            raise ValueError(f"percentile must be between 0 and 100, not {q!r}")
        with cython.critical_section(self):
            return self.percentile_now(share)

    def merge(self, LatencyHistogram other not None, /):
        """Add the counts of another histogram; where its layout differs, by the middle of each of its buckets.

        Raises:
            TypeError: when it is not a LatencyHistogram.
            ValueError: when it holds latencies above this one's `highest_ns`; nothing has changed then.
        """
        cdef Py_ssize_t i
        with cython.critical_section(self, other):
            if other.largest > self.highest_ns:
                raise ValueError(f"merged latencies must be at most {self.highest_ns} ns, not {other.largest}")
            if other.total == 0:
                return
            for i in range(other.index_of(other.smallest), other.index_of(other.largest) + 1):
                if other.counts[i]:
                    # The clamp keeps what is added within what was recorded.
                    self.counts[self.index_of(min(max(other.median_of(i), other.smallest), other.largest))] \
                        += other.counts[i]
            self.total += other.total
            self.smallest = min(self.smallest, other.smallest)
            self.largest = max(self.largest, other.largest)

    def snapshot(self):
        """The usual figures, all of one moment."""
        with cython.critical_section(self):
            return HistogramSnapshot(
                self.total, self.smallest if self.total else 0, self.largest, self.mean_now(), self.stddev_now(),
                self.percentile_now(50), self.percentile_now(90), self.percentile_now(95), self.percentile_now(99),
                self.percentile_now(99.9),
            )

    def reset(self):
        """Forget every latency."""
        with cython.critical_section(self):
            memset(self.counts, 0, self.length * sizeof(uint64_t))
            self.total = 0
            self.smallest = INT64_MAX
            self.largest = 0

    def time(self):
        """A context manager that records how long its block took, whether it raised or not."""
        return Timer(self)

    cdef list used_counts(self):
        cdef Py_ssize_t i
        return [self.counts[i] for i in range(self.index_of(self.largest) + 1)] if self.total else []

    def encode(self):
        """The HdrHistogram V2 compressed format, as bytes (other tools expect it in base64)."""
        with cython.critical_section(self):
            counts = self.used_counts()
        return _hdr_codec.encode(self.lowest_ns, self.highest_ns, self.significant_figures, counts)

    @classmethod
    def decode(cls, blob, /):
        """A histogram from the HdrHistogram V2 compressed format; `min` and `max` are then those of their buckets.

        Raises:
            TypeError: when `blob` is not bytes-like.
            ValueError: when it is anything but a whole V2 blob, or of a layout that cannot be had here.
        """
        cdef Py_ssize_t i
        cdef LatencyHistogram histogram
        lowest, highest, figures, counts = _hdr_codec.decode(blob)
        histogram = LatencyHistogram(lowest, highest, figures)
        for i, count in counts:
            histogram.counts[i] = count
            histogram.total += histogram.counts[i]
            histogram.smallest = min(histogram.smallest, histogram.lowest_of(i))
            histogram.largest = min(histogram.highest_of(i), histogram.highest_ns)
        return histogram

    def __eq__(self, other, /):
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        cdef LatencyHistogram that = other
        return (
            (self.lowest_ns, self.highest_ns, self.significant_figures)
            == (that.lowest_ns, that.highest_ns, that.significant_figures)
            and self.used_counts() == that.used_counts()
        )

    __hash__ = None

    def __sizeof__(self):
        return LatencyHistogram.__basicsize__ + self.length * sizeof(uint64_t)

    def __repr__(self):
        return f"<LatencyHistogram count={self.total} min={self.min} max={self.max}>"

    def __reduce__(self):
        raise TypeError("cannot pickle 'LatencyHistogram' object")


@cython.final
cdef class Timer:
    """Records the time between entering and leaving; made by `LatencyHistogram.time`."""

    cdef LatencyHistogram histogram
    cdef int64_t started_ns

    def __cinit__(self, LatencyHistogram histogram not None):
        self.histogram = histogram

    def __enter__(self):
        self.started_ns = acgsperf_monotonic_ns()
        return self

    def __exit__(self, *exc_info):
        cdef int64_t elapsed = acgsperf_monotonic_ns() - self.started_ns
        with cython.critical_section(self.histogram):
            self.histogram.add(min(max(elapsed, 0), self.histogram.highest_ns), 1)
