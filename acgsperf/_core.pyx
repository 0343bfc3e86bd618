# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The compiled hot path: HashValidator, LRUCache, AdaptiveCache, LatencyHistogram.

Re-entrancy.  A user's __hash__, __eq__, __del__, clock and on_evict may call back into the object that called them, or
let another thread do so.  Therefore user code that an operation needs runs before the operation reads any state.  After a
comparison, the lookup starts again if the table has changed.  A removed entry is detached first, and its references are
dropped last.  Without the GIL, a critical section takes its place.  Like the GIL, it may be suspended where Python code
runs, and nowhere else.  So everything that can change is read and written inside one.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport Py_EQ, PyObject, PyObject_RichCompareBool
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.math cimport rint
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from acgsperf._native.hdr cimport (
    Counts, hdr_add, hdr_clamp, hdr_end, hdr_equal, hdr_first, hdr_free, hdr_init, hdr_mean, hdr_merge, hdr_percentile,
    hdr_reset, hdr_stddev, hdr_within,
)
from acgsperf._native.policy cimport (
    MAIN, SMALL_CHANGE, Policy, policy_adjust, policy_bytes, policy_clear, policy_hit, policy_insert, policy_miss,
    policy_prepare, policy_release, policy_remove, policy_renumber, policy_reset_counters, policy_resize, policy_restore,
    policy_resume, policy_reweigh, policy_spare, policy_victim,
)
from acgsperf._native.python cimport (
    METH_FASTCALL, PyDescr_NewMethod, PyDict_SetItemString, PyErr_WriteUnraisable, PyList_New, PyList_SET_ITEM,
    PyLong_AsLongLongAndOverflow, PyLong_Check, PyMethodDef, PyMethodDescrObject, PyObject_CallFunctionObjArgs, PyTypeObject,
    PyType_Modified, PyUnicode_1BYTE_KIND, Py_TPFLAGS_MAPPING, PyUnicode_Check, PyUnicode_CheckExact,
    PyUnicode_DATA, PyUnicode_GET_LENGTH, PyUnicode_KIND, inquiry, traverseproc, visitproc,
)
from acgsperf._native.shadows cimport COUNT, SETTINGS, Shadows
from acgsperf._native.table cimport (
    SMALLEST_CAPACITY, Slot, Table, is_number, place_home, place_mark, ring_insert, ring_oldest, ring_prefetch, ring_push,
    ring_touch, ring_unlink, table_free, table_give_slot, table_index, table_init, table_place, table_rebuild, table_take_slot,
    table_unindex,
)

from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from operator import index
from types import GenericAlias

from acgsperf._native import arguments, hdr_codec
from acgsperf._native.arguments import (
    checked_bounds, checked_bounds_ns, checked_callable, checked_hashes, checked_interval_ns, checked_limits,
    checked_percent, checked_policy, checked_seed, checked_time_ns, checked_ttl_ns, checked_weight,
)
from acgsperf._native.hdr_layout import Layout
from acgsperf._native.types import (
    CONSTITUTIONAL_HASH, CacheStats, EvictionReason, HistogramSnapshot, ValidatorStats, Verdict, policy_stats,
)

cdef extern from "platform.h" nogil:
    int64_t acgsperf_monotonic_ns()
    int64_t acgsperf_coarse_ns()
    const int64_t ACGSPERF_COARSE_LAG_NS
    void acgsperf_prefetch(const void *address)

cdef extern from "platform.h":
    Py_hash_t acgsperf_hash(object key) except? -1

IMPLEMENTATION = "c"

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGH_BITS = 0x8080808080808080
cdef int64_t NEVER = INT64_MAX
cdef object MISSING = object()
cdef object METHOD = type(str.join)
cdef object DEFAULT_TTL = Ellipsis
cdef uint64_t HEAVIEST = arguments.HEAVIEST_SHARE
cdef object SIZE = EvictionReason.SIZE
cdef object EXPIRED = EvictionReason.EXPIRED
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


cdef int64_t ttl_to_ns(ttl) except -1:
    cdef double seconds = 0
    cdef int overflow = 0
    if type(ttl) is float:
        seconds = ttl
    elif type(ttl) is int:
        seconds = <double> PyLong_AsLongLongAndOverflow(ttl, &overflow)
    if 0 < seconds < 4e9:
        return max(1, <int64_t> rint(seconds * 1e9))
    ns = checked_ttl_ns(ttl)
    return NEVER if ns is None else ns


cdef struct Removed:
    PyObject *key
    PyObject *value
    bint expired


cdef struct Evicted:
    Removed *entries
    uint32_t count
    uint32_t room
    Removed first[4]


cdef inline void evicted_init(Evicted *evicted) noexcept:
    evicted.entries = evicted.first
    evicted.count = 0
    evicted.room = 4


cdef bint evicted_reserve(Evicted *evicted) noexcept:
    """Make sure that there is room for one more; False if there is no memory."""
    cdef Removed *more
    if evicted.count < evicted.room:
        return True
    more = <Removed *> PyMem_RawMalloc(4 * <size_t> evicted.room * sizeof(Removed))
    if more == NULL:
        return False
    memcpy(more, evicted.entries, evicted.count * sizeof(Removed))
    if evicted.entries != evicted.first:
        PyMem_RawFree(evicted.entries)
    evicted.entries = more
    evicted.room *= 4
    return True


cdef inline void evicted_add(Evicted *evicted, Removed removed) noexcept:
    evicted.entries[evicted.count] = removed
    evicted.count += 1


@cython.trashcan(True)
cdef class BoundedCache:
    """BoundedCache()
--

    The base class of `LRUCache` and `AdaptiveCache`. It cannot be instantiated.
    """

    cdef Table table
    cdef uint64_t version
    cdef uint32_t _maxsize
    # 0 for no limit; `weight` is the sum of the weights.
    cdef uint64_t _maxweight
    cdef uint64_t weight
    cdef readonly object weigher
    # Chooses the entry to evict. NULL for the least recently used one.
    cdef Policy *policy
    cdef int64_t ttl_ns
    cdef int64_t answers_until_ns
    cdef readonly object ttl
    cdef object clock
    cdef object _on_evict
    cdef uint64_t hits
    cdef uint64_t misses
    cdef uint64_t insertions
    cdef uint64_t updates
    cdef uint64_t evictions
    cdef uint64_t expirations
    cdef uint64_t rejections
    cdef object __weakref__

    def __cinit__(
        self, maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None, policy=None, seed=None
    ):
        table_init(&self.table)
        if type(self) is BoundedCache:
            raise TypeError("cannot create 'acgsperf._core.BoundedCache' instances")
        self._maxsize, self._maxweight = checked_bounds(maxsize, maxweight, weigher)
        self.weigher = weigher
        self.table.has_weights = weigher is not None
        if policy is None:
            policy = "lru" if type(self) is LRUCache else "adaptive"
        setting = checked_policy(policy)
        if setting is not None:
            self.table.has_meta = True
            self.policy = <Policy *> PyMem_RawCalloc(1, sizeof(Policy))
            if self.policy == NULL:
                raise MemoryError
            self.policy.seed = checked_seed(seed)
            self.policy.adaptive = policy == "adaptive"
            self.policy.setting = setting
            self.bound_policy()
        self.ttl_ns = ttl_to_ns(ttl)
        self.ttl = None if ttl is None else float(ttl) if self.ttl_ns != NEVER else float("inf")
        self.answers_until_ns = NEVER
        self.clock = checked_callable("clock", clock)
        self.on_evict = on_evict

    def __dealloc__(self):
        release_entries(&self.table)
        if self.policy != NULL:
            policy_release(self.policy)
            PyMem_RawFree(self.policy)

    @property
    def maxsize(self):
        """The largest number of entries; 2**30 if only the weight is limited; `resize` changes it."""
        with cython.critical_section(self):
            return self._maxsize

    @property
    def requests(self):
        """Hits and misses since the creation or the last reset."""
        with cython.critical_section(self):
            return self.hits + self.misses

    @property
    def maxweight(self):
        """The largest sum of weights, None for no limit; `resize` changes it."""
        cdef uint64_t limit
        with cython.critical_section(self):
            limit = self._maxweight
        return limit if limit else None

    @property
    def on_evict(self):
        """The callback for entries removed by size or expiry; called with (key, value, reason); may be replaced."""
        with cython.critical_section(self):
            return self._on_evict

    @on_evict.setter
    def on_evict(self, callback):
        callback = checked_callable("on_evict", callback)
        with cython.critical_section(self):
            # Kept until the new one is in place and the section is left: dropping it may run code that reads this.
            former = self._on_evict
            self._on_evict = callback

    @on_evict.deleter
    def on_evict(self):
        raise AttributeError(f"property 'on_evict' of '{type(self).__name__}' object has no deleter")

    @property
    def answers_until(self):
        """The time of the cache's clock from which reads miss, while the entries stay; None for never; may be changed.

        It applies to `get`, `cache[key]`, `in` and `setdefault`. `peek` and all other operations ignore it.
        """
        cdef int64_t until
        with cython.critical_section(self):
            until = self.answers_until_ns
        return None if until == NEVER else until / 1e9

    @answers_until.setter
    def answers_until(self, time):
        cdef int64_t until
        ns = checked_time_ns("answers_until", time)
        until = NEVER if ns is None else ns
        with cython.critical_section(self):
            self.answers_until_ns = until

    @answers_until.deleter
    def answers_until(self):
        raise AttributeError(f"property 'answers_until' of '{type(self).__name__}' object has no deleter")

    @cython.final
    cdef inline int64_t read_clock(self) except? -1:
        """Read the user's clock; 0 if there is none, because `is_expired` then reads the system's only if it must."""
        return 0 if self.clock is None else self.read_users_clock()

    @cython.final
    cdef int64_t read_users_clock(self) except? -1:
        cdef double now = self.clock()
        if not -4e9 < now < 4e9:
            raise ValueError(f"clock must return seconds within 4e9 of zero, got {now!r}")
        return <int64_t> rint(now * 1e9)

    @cython.final
    cdef inline bint is_expired(self, int64_t expires_ns, int64_t now_ns) noexcept:
        if expires_ns == NEVER:
            return False
        if now_ns != 0 or self.clock is not None:
            return now_ns >= expires_ns
        # Read the precise clock only if the coarse one is not enough to decide.
        if expires_ns - acgsperf_coarse_ns() > ACGSPERF_COARSE_LAG_NS:
            return False
        return acgsperf_monotonic_ns() >= expires_ns

    @cython.final
    cdef inline bint answers(self, uint32_t number, int64_t now_ns) noexcept:
        """Whether a read may return this entry: both its expiry and `answers_until` are later than now."""
        # The earlier of the two, so that the clock is read once for both.
        return not self.is_expired(min(self.table.slots[number].expires_ns, self.answers_until_ns), now_ns)

    @cython.final
    cdef inline int64_t time_of_write(self, int64_t ttl_ns, int64_t now_ns) noexcept:
        """Read the system's clock if that is the cache's and a write with this ttl needs it; else return `now_ns`."""
        return now_ns if self.clock is not None or ttl_ns == NEVER else acgsperf_monotonic_ns()

    @cython.final
    cdef uint32_t find(self, key, Py_hash_t hash) except? 0:
        """Return the slot of a key, or 0."""
        cdef uint64_t version = self.version
        cdef uint64_t place = table_place(&self.table, hash)
        cdef uint64_t i = place_home(place)
        cdef uint32_t mark = place_mark(&self.table, place)
        cdef uint32_t word, number
        cdef Slot *slot
        cdef int same
        while True:
            word = self.table.index[i]
            number = word ^ mark
            if is_number(&self.table, number):
                slot = &self.table.slots[number]
                if slot.key == <PyObject *> key:
                    return number
                if slot.hash == hash:
                    if PyUnicode_CheckExact(slot.key) and PyUnicode_CheckExact(<PyObject *> key):
                        same = is_same_text(slot.key, <PyObject *> key)
                    else:
                        same = equal(<object> slot.key, key)
                        if self.version != version:
                            return self.find_again(key, hash)
                    if same:
                        return number
            elif word == 0:
                return 0
            i = (i + 1) & self.table.mask

    @cython.final
    cdef uint32_t find_again(self, key, Py_hash_t hash) except? 0:
        """Do the same while comparisons change the table. No comparison is repeated, so that the search ends."""
        cdef list different = []
        cdef uint32_t number
        cdef uint64_t version
        while True:
            number = self.find_past(key, hash, different)
            version = self.version
            # Dropping them may run code that changes the table once more.
            different = []
            if self.version == version:
                return number

    @cython.final
    cdef uint32_t find_past(self, key, Py_hash_t hash, list different) except? 0:
        """Return the slot of a key, or 0; skip the keys known to be different, and add to them."""
        cdef uint64_t i, version
        cdef uint32_t number
        cdef Slot *slot
        cdef int same
        while True:
            stored = None
            version = self.version
            i = place_home(table_place(&self.table, hash))
            while True:
                number = self.table.index[i] & self.table.number_mask
                if number == 0:
                    return 0
                slot = &self.table.slots[number]
                if slot.key == <PyObject *> key:
                    return number
                if slot.hash == hash and not is_among(different, slot.key):
                    stored = <object> slot.key
                    same = equal(stored, key)
                    if self.version != version:
                        if not same:
                            different.append(stored)
                            break
                        number = self.slot_of(<PyObject *> stored, hash)
                        if number:
                            return number
                        break
                    if same:
                        return number
                i = (i + 1) & self.table.mask

    @cython.final
    cdef uint32_t slot_of(self, PyObject *stored, Py_hash_t hash) noexcept:
        """Return the slot that contains this key object, or 0."""
        cdef uint64_t i = place_home(table_place(&self.table, hash))
        cdef uint32_t number = self.table.index[i] & self.table.number_mask
        while number and self.table.slots[number].key != stored:
            i = (i + 1) & self.table.mask
            number = self.table.index[i] & self.table.number_mask
        return number

    @cython.final
    cdef inline Removed detach(self, uint32_t number, bint expired, bint for_room=False) noexcept:
        """Remove an entry; the caller owns its references."""
        cdef Removed removed
        if self.policy != NULL:
            policy_remove(self.policy, &self.table, number, for_room)
        if self.table.has_weights:
            self.weight -= self.table.weights[number]
        removed.key = self.table.slots[number].key
        removed.value = self.table.slots[number].value
        removed.expired = expired
        table_unindex(&self.table, number)
        ring_unlink(&self.table, number)
        table_give_slot(&self.table, number)
        self.version += 1
        return removed

    @cython.final
    cdef inline void count_removal(self, bint expired) noexcept:
        if expired:
            self.expirations += 1
        else:
            self.evictions += 1

    @cython.final
    cdef Removed evict(self, uint32_t number, bint expired) noexcept:
        self.count_removal(expired)
        return self.detach(number, expired, not expired)

    @cython.final
    cdef inline uint32_t victim(self) noexcept:
        """Return the entry to evict next, 0 if there is none."""
        if self.policy == NULL or self.table.used == 0:
            return ring_oldest(&self.table)
        return policy_victim(self.policy, &self.table)

    @cython.final
    cdef inline void touch(self, uint32_t number) noexcept:
        """Note that an entry was used."""
        if self.policy == NULL:
            ring_touch(&self.table, number)
        else:
            policy_hit(self.policy, &self.table, number)

    @cython.final
    cdef bint rebuild(self, uint32_t capacity) noexcept:
        """Change the capacity of the table; False if there is no memory."""
        if not table_rebuild(&self.table, capacity):
            return False
        if self.policy != NULL:
            policy_renumber(self.policy)
        self.version += 1
        return True

    @cython.final
    cdef void bound_policy(self) noexcept:
        """Restart the policy with the present bounds."""
        # If the weight is limited, the number of entries that fit is not known before the cache is full.
        cdef uint32_t size = 0 if self._maxweight else self._maxsize
        cdef uint64_t room = self._maxweight if self._maxweight else self._maxsize
        if not policy_adjust(self.policy, size, room):
            policy_resize(self.policy, &self.table, size, room)

    @cython.final
    cdef uint64_t weigh(self, key, value) except 0:
        """Return the weight of an entry, 1 without a weigher. It runs the user's code."""
        return 1 if self.weigher is None else checked_weight(self.weigher(key, value))

    @cython.final
    cdef void dispose(self, Removed removed) noexcept:
        """Call the callback for an evicted entry and drop its references."""
        cdef PyObject *result
        callback = self._on_evict
        if callback is not None:
            result = PyObject_CallFunctionObjArgs(
                <PyObject *> callback, removed.key, removed.value, <PyObject *> (EXPIRED if removed.expired else SIZE), NULL)
            if result == NULL:
                PyErr_WriteUnraisable(<PyObject *> callback)
            Py_XDECREF(result)
        Py_DECREF(<object> removed.value)
        Py_DECREF(<object> removed.key)

    @cython.final
    cdef void dispose_evicted(self, Evicted *evicted) noexcept:
        cdef uint32_t i
        for i in range(evicted.count):
            self.dispose(evicted.entries[i])
        if evicted.entries != evicted.first:
            PyMem_RawFree(evicted.entries)

    @cython.final
    cdef void dispose_all(self, Removed *removed, Py_ssize_t count) noexcept:
        cdef Py_ssize_t i
        for i in range(count):
            self.dispose(removed[i])
        PyMem_RawFree(removed)

    @cython.final
    cdef inline object lookup(self, key, Py_hash_t hash, int64_t now):
        # Most keys are in their home slot and are looked up with the object that was stored.
        cdef uint64_t place = table_place(&self.table, hash)
        cdef uint32_t number = self.table.index[place_home(place)] ^ place_mark(&self.table, place)
        if not is_number(&self.table, number) or self.table.slots[number].key != <PyObject *> key:
            number = self.find(key, hash)
        if number == 0:
            self.misses += 1
            return MISSING
        if not self.answers(number, now):
            self.misses += 1
            if self.is_expired(self.table.slots[number].expires_ns, now):
                self.dispose(self.evict(number, True))
            return MISSING
        self.hits += 1
        self.touch(number)
        return <object> self.table.slots[number].value

    @cython.final
    cdef inline int store(
        self, key, Py_hash_t hash, value, int64_t ttl_ns, int64_t now, uint64_t weight
    ) except -1:
        # The clock is read only after all earlier loads have finished; a prefetch may still be in flight.
        acgsperf_prefetch(&self.table.index[place_home(table_place(&self.table, hash))])
        now = self.time_of_write(ttl_ns, now)
        if self.policy != NULL or self.table.has_weights:
            return self.place_by_policy(self.find(key, hash), key, hash, value, ttl_ns, now, weight)
        return self.place(self.find(key, hash), key, hash, value, ttl_ns, now)

    @cython.final
    cdef int place_by_policy(
        self, uint32_t number, key, Py_hash_t hash, value, int64_t ttl_ns, int64_t now, uint64_t weight
    ) except -1:
        """Do the work of `place` for a cache with a policy or with weights."""
        cdef int64_t expires_ns = NEVER if ttl_ns == NEVER else now + ttl_ns
        cdef Evicted evicted
        cdef uint8_t meta = 0
        cdef Slot *slot
        cdef Removed removed
        if number == 0 and not self.table.has_weights and self.table.used == self._maxsize:
            return self.exchange_entry(key, hash, value, expires_ns, now)
        evicted_init(&evicted)
        if self._maxweight and weight > self._maxweight // HEAVIEST:
            self.rejections += 1
            if number:
                removed = self.detach(number, False)
                Py_DECREF(<object> removed.value)
                Py_DECREF(<object> removed.key)
            return 0
        if number and not self.is_expired(self.table.slots[number].expires_ns, now):
            return self.exchange_value(number, value, expires_ns, now, weight)
        if number:
            evicted_add(&evicted, self.evict(number, True))
        try:
            if self.policy != NULL:
                if not policy_prepare(self.policy, self.is_full(weight)):
                    raise MemoryError
                meta = self.note_miss(hash)
            self.make_room(weight, 0, now, &evicted)
            if self.table.used == self.table.capacity:
                if not self.rebuild(min(self._maxsize, max(SMALLEST_CAPACITY, 2 * self.table.capacity))):
                    raise MemoryError
            number = table_take_slot(&self.table)
            slot = &self.table.slots[number]
            Py_INCREF(key)
            Py_INCREF(value)
            slot.key = <PyObject *> key
            slot.value = <PyObject *> value
            slot.hash = hash
            slot.expires_ns = expires_ns
            if self.table.has_weights:
                self.table.weights[number] = weight
                self.weight += weight
            table_index(&self.table, number)
            if self.policy == NULL:
                ring_push(&self.table, number)
            else:
                policy_insert(self.policy, &self.table, number, meta)
            self.version += 1
            self.insertions += 1
        finally:
            self.dispose_evicted(&evicted)
        return 0

    @cython.final
    cdef inline uint8_t note_miss(self, Py_hash_t hash) noexcept:
        """Report a new key to the policy; return the initial `meta` byte of its entry."""
        cdef uint8_t meta = policy_miss(self.policy, hash)
        if not self.policy.timed:
            self.policy.timed = True
            self.policy.since_ns = acgsperf_monotonic_ns()
        return meta

    @cython.final
    cdef int exchange_entry(self, key, Py_hash_t hash, value, int64_t expires_ns, int64_t now) except -1:
        """Evict an entry of a full cache without weights, and store another one in its slot."""
        cdef Removed removed
        cdef Slot *slot
        cdef uint32_t number
        cdef uint8_t meta
        if not policy_prepare(self.policy, True):
            raise MemoryError
        meta = self.note_miss(hash)
        number = policy_victim(self.policy, &self.table)
        slot = &self.table.slots[number]
        removed.key = slot.key
        removed.value = slot.value
        removed.expired = self.is_expired(slot.expires_ns, now)
        self.count_removal(removed.expired)
        policy_remove(self.policy, &self.table, number, not removed.expired)
        ring_unlink(&self.table, number)
        table_unindex(&self.table, number)
        Py_INCREF(key)
        Py_INCREF(value)
        slot.key = <PyObject *> key
        slot.value = <PyObject *> value
        slot.hash = hash
        slot.expires_ns = expires_ns
        table_index(&self.table, number)
        policy_insert(self.policy, &self.table, number, meta)
        # The next victim is most likely the oldest entry of the small queue.
        acgsperf_prefetch(&self.table.slots[self.policy.boundary])
        self.version += 1
        self.insertions += 1
        self.dispose(removed)
        return 0

    @cython.final
    cdef int exchange_value(self, uint32_t number, value, int64_t expires_ns, int64_t now, uint64_t weight) except -1:
        """Replace the value of a fresh entry."""
        cdef Slot *slot = &self.table.slots[number]
        cdef PyObject *old = slot.value
        cdef Evicted evicted
        evicted_init(&evicted)
        Py_INCREF(value)
        slot.value = <PyObject *> value
        slot.expires_ns = expires_ns
        if self.table.has_weights:
            if self.policy != NULL:
                policy_reweigh(self.policy, &self.table, number, weight)
            self.weight += weight - self.table.weights[number]
            self.table.weights[number] = weight
        self.touch(number)
        self.updates += 1
        try:
            self.make_room(0, number, now, &evicted)
        finally:
            self.dispose_evicted(&evicted)
            Py_DECREF(<object> old)
        return 0

    @cython.final
    cdef inline bint is_full(self, uint64_t weight) noexcept:
        """Whether there is no room for another entry."""
        return self.table.used >= self._maxsize or (self._maxweight and self.weight + weight > self._maxweight)

    @cython.final
    cdef int make_room(self, uint64_t weight, uint32_t spared, int64_t now, Evicted *evicted) except -1:
        """Evict until a new entry of this weight fits; if the weight is 0, until all fit, without evicting `spared`."""
        cdef uint32_t number
        while (
            self.table.used > self._maxsize - (weight > 0)
            or (self._maxweight and self.weight + weight > self._maxweight)
        ):
            if self.policy != NULL and self._maxweight and not self.estimate_size():
                raise MemoryError
            if not evicted_reserve(evicted):
                raise MemoryError
            number = self.victim()
            if number == spared:
                policy_spare(self.policy, &self.table, number)
                continue
            evicted_add(evicted, self.evict(number, self.is_expired(self.table.slots[number].expires_ns, now)))
        return 0

    @cython.final
    cdef bint estimate_size(self) noexcept:
        """Report to the policy how many entries fit, when the weights fill the cache; False if there is no memory."""
        cdef uint32_t used = self.table.used
        if used >= 2 * <uint64_t> self.policy.size or 2 * <uint64_t> used <= self.policy.size:
            policy_resize(self.policy, &self.table, used, self._maxweight)
        return policy_prepare(self.policy, True)

    @cython.final
    cdef int place(self, uint32_t number, key, Py_hash_t hash, value, int64_t ttl_ns, int64_t now) except -1:
        """Store in the slot that `find` has just returned, or in another one if that is 0; now is a `time_of_write`."""
        cdef int64_t expires_ns = NEVER if ttl_ns == NEVER else now + ttl_ns
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
            removed = self.vacate(number, True)
        elif self.table.used >= self._maxsize:
            number = ring_oldest(&self.table)
            slot = &self.table.slots[number]
            removed = self.vacate(number, self.is_expired(slot.expires_ns, now))
            table_unindex(&self.table, number)
            slot.hash = hash
            table_index(&self.table, number)
            ring_prefetch(&self.table)
        else:
            if self.table.used == self.table.capacity:
                if not self.rebuild(min(self._maxsize, max(SMALLEST_CAPACITY, 2 * self.table.capacity))):
                    raise MemoryError
            number = table_take_slot(&self.table)
            slot = &self.table.slots[number]
            slot.hash = hash
            table_index(&self.table, number)
            ring_push(&self.table, number)
        Py_INCREF(key)
        Py_INCREF(value)
        slot.key = <PyObject *> key
        slot.value = <PyObject *> value
        slot.expires_ns = expires_ns
        self.version += 1
        self.insertions += 1
        if removed.key != NULL:
            self.dispose(removed)
        return 0

    @cython.final
    cdef inline Removed vacate(self, uint32_t number, bint expired) noexcept:
        """Prepare the slot of an old entry for a new one; the caller owns the references of the old one."""
        cdef Removed removed
        removed.key = self.table.slots[number].key
        removed.value = self.table.slots[number].value
        removed.expired = expired
        self.count_removal(expired)
        ring_touch(&self.table, number)
        return removed

    def peek(self, key, default=None, /):
        """Return the value of a fresh entry, or `default`; neither the order nor the counters change.

        It ignores `answers_until`.
        """
        cdef Py_hash_t hash = acgsperf_hash(key)
        cdef int64_t now
        cdef uint32_t number
        with cython.critical_section(self):
            now = self.read_clock()
            number = self.find(key, hash)
            if number and not self.is_expired(self.table.slots[number].expires_ns, now):
                return <object> self.table.slots[number].value
        return default

    def set(self, key, value, ttl=...):
        """Store a value as the most recently used; if the cache is full, evict the entry that the policy chooses.

        Args:
            key: any hashable.
            value: anything, None included.
            ttl: seconds until this entry expires, None for never; by default the `ttl` of the cache.

        Raises:
            TypeError, ValueError: for an unhashable key or a bad ttl; nothing has changed then.
        """
        cdef int64_t ttl_ns = self.ttl_ns if ttl is DEFAULT_TTL else ttl_to_ns(ttl)
        cdef Py_hash_t hash = acgsperf_hash(key)
        cdef uint64_t weight = self.weigh(key, value)
        with cython.critical_section(self):
            self.store(key, hash, value, ttl_ns, self.read_clock(), weight)

    def setdefault(self, key, default=None, /):
        """Return the value of a key; if it is missing, expired or past `answers_until`, store `default` first."""
        cdef Py_hash_t hash = acgsperf_hash(key)
        cdef uint64_t weight = self.weigh(key, default)
        cdef int64_t now
        cdef uint32_t number
        with cython.critical_section(self):
            now = self.read_clock()
            number = self.find(key, hash)
            if number and self.answers(number, now):
                self.hits += 1
                self.touch(number)
                return <object> self.table.slots[number].value
            self.misses += 1
            now = self.time_of_write(self.ttl_ns, now)
            if self.policy != NULL or self.table.has_weights:
                self.place_by_policy(number, key, hash, default, self.ttl_ns, now, weight)
            else:
                self.place(number, key, hash, default, self.ttl_ns, now)
            return default

    def pop(self, key, default=..., /):
        """Remove a key and return its value.

        Raises:
            KeyError: if it is missing or expired and there is no default.
        """
        cdef Py_hash_t hash = acgsperf_hash(key)
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
        """Remove and return the fresh (key, value) that would be evicted next.

        Raises:
            KeyError: if there is none.
        """
        cdef Removed removed
        cdef int64_t now
        cdef uint32_t number
        with cython.critical_section(self):
            now = self.read_clock()
            while True:
                number = self.victim()
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
        """Set every item of a mapping, or of an iterable of (key, value)."""
        for key, value in other.items() if isinstance(other, Mapping) else other:
            self.set(key, value)

    def clear(self):
        """Remove every entry; the counters stay, `on_evict` is not called."""
        cdef Table old
        with cython.critical_section(self):
            old = self.table
            table_init(&self.table)
            self.weight = 0
            if self.policy != NULL:
                policy_clear(self.policy)
            self.version += 1
        release_entries(&old)

    def expire(self):
        """Remove every expired entry, in the order of `keys`.

        Returns:
            How many were removed.
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
        """Return the seconds until a key expires, None for never.

        Raises:
            KeyError: if it is missing or has expired.
        """
        cdef Py_hash_t hash = acgsperf_hash(key)
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

    def resize(self, maxsize=None, *, maxweight=None):
        """Change the largest number of entries, the largest sum of weights, or both; evict until the limits hold.

        Raises:
            TypeError, ValueError: if no limit is given, or if a limit is not an integer, is out of range, or is a weight
                and there is no weigher; nothing has changed then.
        """
        cdef uint32_t limit
        cdef uint64_t weight_limit
        cdef int64_t now
        cdef Py_ssize_t count = 0
        cdef uint32_t number
        cdef Removed *removed
        limit, weight_limit = checked_limits(maxsize, maxweight, self.weigher)
        with cython.critical_section(self):
            now = self.read_clock()
            removed = <Removed *> PyMem_RawMalloc((self.table.used + 1) * sizeof(Removed))
            if removed == NULL:
                raise MemoryError
            if limit:
                self._maxsize = limit
            if weight_limit:
                self._maxweight = weight_limit
            while self.table.used > self._maxsize or (self._maxweight and self.weight > self._maxweight):
                number = self.victim()
                removed[count] = self.evict(number, self.is_expired(self.table.slots[number].expires_ns, now))
                count += 1
            if self.table.capacity - self.table.capacity // SMALL_CHANGE > self._maxsize:
                self.rebuild(self._maxsize)
            if self.policy != NULL:
                self.bound_policy()
            self.dispose_all(removed, count)

    @cython.final
    cdef list snapshot(self, bint of_keys, bint of_values):
        """Return keys, values or pairs of the fresh entries, in the order of the policy."""
        cdef int64_t now = self.read_clock()
        cdef uint64_t version
        cdef Py_ssize_t count, room
        cdef uint32_t number
        cdef list keys, values
        while True:
            version = self.version
            room = self.table.used
            # Creating a list may start a garbage collection, which may run any code.
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
        """Return a list of the fresh keys, in the order of the policy: least recently used first for an `LRUCache`."""
        with cython.critical_section(self):
            return self.snapshot(True, False)

    def values(self):
        """Return a list of the fresh values, in the order of `keys`."""
        with cython.critical_section(self):
            return self.snapshot(False, True)

    def items(self):
        """Return a list of the fresh (key, value) pairs, in the order of `keys`."""
        with cython.critical_section(self):
            return self.snapshot(True, True)

    def save(self, path, *, namespace="", value_type=None):
        """Save the entries to a file, for `load` in another process. It replaces the file in one step.

        Keys, values, remaining lifetimes, and the order and hits of the policy are saved. An entry whose key or value
        would not be the same after `load` is left out. Other threads can use the cache meanwhile.

        Args:
            path: the file.
            namespace: a str that `load` must name, too.
            value_type: the type of the values, any that msgspec can decode; None for JSON-like values and bytes.

        Returns:
            A `SaveResult`.

        Raises:
            OSError: if the file cannot be written.
        """
        from acgsperf._native import snapshot
        return snapshot.save(self, path, namespace, value_type)

    def load(self, path, *, namespace="", value_type=None):
        """Add the entries of a file that `save` has written.

        An entry of the file is left out if the cache has its key, if it has expired, or if it does not fit. The time
        since `save` counts.

        Args:
            path, namespace, value_type: as for `save`.

        Returns:
            A `LoadResult`.

        Raises:
            SnapshotError: if the file is damaged, or is of another version, namespace, kind of cache or type of values;
                the cache has not changed then.
            OSError: if the file cannot be read.
        """
        from acgsperf._native import snapshot
        return snapshot.load(self, path, namespace, value_type)

    def _kind(self):
        """Return the kind of cache that a file must be of."""
        if type(self) is LRUCache:
            return "LRUCache"
        policy = "lru" if self.policy == NULL else "adaptive" if self.policy.adaptive else "s3fifo"
        return f"AdaptiveCache ({policy})"

    def _dump(self):
        """Return the setting, and the keys, values, remaining ns and meta of the fresh entries, in their order."""
        cdef int64_t now
        cdef uint64_t version
        cdef Py_ssize_t count = 0, room
        cdef uint32_t number
        cdef list keys, values, remaining, metas
        cdef Slot *slot
        with cython.critical_section(self):
            now = self.read_clock()
            while True:
                version = self.version
                room = self.table.used
                # Creating a list may start a garbage collection, which may run any code.
                keys, values, remaining, metas = [None] * room, [None] * room, [None] * room, [0] * room
                if self.version == version:
                    break
            if self.clock is None:
                now = acgsperf_monotonic_ns()
            number = ring_oldest(&self.table)
            while number:
                slot = &self.table.slots[number]
                if slot.expires_ns == NEVER or now < slot.expires_ns:
                    keys[count] = <object> slot.key
                    values[count] = <object> slot.value
                    if slot.expires_ns != NEVER:
                        remaining[count] = slot.expires_ns - now
                    if self.table.has_meta:
                        metas[count] = self.table.meta[number] & (COUNT | MAIN)
                    count += 1
                number = self.table.ring[number].newer
            setting = None if self.policy == NULL else <int> self.policy.setting
        del keys[count:], values[count:], remaining[count:], metas[count:]
        return setting, keys, values, remaining, metas

    def _restore(self, key, value, ttl_ns, uint8_t meta, /):
        """Add a saved entry as the oldest one of its queue; False if the key is there, or if the entry does not fit."""
        cdef Py_hash_t hash = acgsperf_hash(key)
        cdef uint64_t weight = self.weigh(key, value)
        cdef int64_t remaining = NEVER if ttl_ns is None else ttl_ns
        cdef int64_t now
        cdef uint32_t number
        cdef Slot *slot
        with cython.critical_section(self):
            now = self.time_of_write(remaining, self.read_clock())
            if self.find(key, hash) or self.is_full(weight) or (self._maxweight and weight > self._maxweight // HEAVIEST):
                return False
            if self.policy != NULL and not policy_prepare(self.policy, False):
                raise MemoryError
            if self.table.used == self.table.capacity:
                if not self.rebuild(min(self._maxsize, max(SMALLEST_CAPACITY, 2 * self.table.capacity))):
                    raise MemoryError
            number = table_take_slot(&self.table)
            slot = &self.table.slots[number]
            Py_INCREF(key)
            Py_INCREF(value)
            slot.key = <PyObject *> key
            slot.value = <PyObject *> value
            slot.hash = hash
            slot.expires_ns = NEVER if remaining == NEVER else now + remaining
            if self.table.has_weights:
                self.table.weights[number] = weight
                self.weight += weight
            table_index(&self.table, number)
            if self.policy == NULL:
                ring_insert(&self.table, number, ring_oldest(&self.table))
            else:
                policy_restore(self.policy, &self.table, number, meta)
            self.version += 1
            self.insertions += 1
        return True

    def _resume(self, int setting, /):
        """Continue with the setting of a saved cache."""
        with cython.critical_section(self):
            if self.policy != NULL:
                policy_resume(self.policy, setting)

    def stats(self):
        """Return the counters since creation or `reset_stats`, and the size now."""
        cdef Policy policy
        cdef Shadows shadows
        cdef int64_t now
        cdef int i
        shadows.samples = shadows.missed = 0
        with cython.critical_section(self):
            if self.policy == NULL or not self.policy.adaptive:
                return self.plain_stats(None)
            now = acgsperf_monotonic_ns()
            policy = self.policy[0]
            if policy.shadows != NULL:
                shadows = policy.shadows[0]
            found = self.plain_stats(None)
        if not policy.timed:
            now = policy.since_ns
        return replace(found, policy=policy_stats(
            policy.setting, (now - policy.since_ns) / 1e9, policy.switches, shadows.samples, shadows.missed,
            [shadows.misses[i] for i in range(SETTINGS)], found.hits, found.misses))

    @cython.final
    cdef object plain_stats(self, policy):
        return CacheStats(
            self.hits, self.misses, self.insertions, self.updates, self.evictions, self.expirations,
            self.table.used, self._maxsize, self.weight if self.table.has_weights else None, self._maxweight or None,
            self.rejections, policy,
        )

    def reset_stats(self):
        """Set the counters to zero."""
        with cython.critical_section(self):
            self.hits = self.misses = self.insertions = self.updates = self.evictions = self.expirations = 0
            self.rejections = 0
            if self.policy != NULL:
                policy_reset_counters(self.policy)

    def __getitem__(self, key, /):
        cdef Py_hash_t hash = acgsperf_hash(key)
        with cython.critical_section(self):
            value = self.lookup(key, hash, self.read_clock())
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key, value, /):
        cdef Py_hash_t hash = acgsperf_hash(key)
        cdef uint64_t weight = self.weigh(key, value)
        with cython.critical_section(self):
            self.store(key, hash, value, self.ttl_ns, self.read_clock(), weight)

    def __delitem__(self, key, /):
        cdef Py_hash_t hash = acgsperf_hash(key)
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
        cdef Py_hash_t hash = acgsperf_hash(key)
        cdef int64_t now
        cdef uint32_t number
        with cython.critical_section(self):
            now = self.read_clock()
            number = self.find(key, hash)
            return number != 0 and self.answers(number, now)

    def __iter__(self):
        return iter(self.keys())

    def __reversed__(self):
        return iter(self.keys()[::-1])

    def __len__(self):
        with cython.critical_section(self):
            return self.table.used

    def __sizeof__(self):
        cdef size_t own = <size_t> BoundedCache.__basicsize__
        cdef size_t slot = sizeof(Slot) + 8
        with cython.critical_section(self):
            if self.table.has_meta:
                slot += 1
            if self.table.has_weights:
                slot += 8
            if self.table.capacity:
                own += (self.table.capacity + 1) * slot + (self.table.mask + 1) * sizeof(uint32_t)
            if self.policy != NULL:
                own += policy_bytes(self.policy)
        return own

    def __repr__(self):
        cdef uint32_t size, maxsize
        with cython.critical_section(self):
            size, maxsize = self.table.used, self._maxsize
        return f"<{type(self).__name__} size={size} maxsize={maxsize} ttl={self.ttl}>"

    def __reduce__(self):
        raise TypeError(f"cannot pickle '{type(self).__name__}' object")

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)


@cython.final
@cython.trashcan(True)
cdef class LRUCache(BoundedCache):
    """LRUCache(maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None)
--

    A mapping of bounded size that evicts the least recently used entry, and removes expired ones.

    Operations on one key are O(1); `expire`, `resize`, `clear`, `keys`, `values` and `items` are O(n). Besides its key
    and value, an entry takes 40 bytes, and 8 to 16 bytes of index; 8 more with a weigher. A stored None is a hit.

    Args:
        maxsize: the largest number of entries, 1 to 2**30; None for no limit, if there is a `maxweight`.
        ttl: seconds until an entry expires unless `set` says otherwise; None for never.
        maxweight: the largest sum of the weights of all entries; None for no limit. A value that weighs more than a
            quarter of it is not stored; an older value of its key is removed.
        weigher: called with (key, value) when a value is set; returns its weight, an integer from 1 to 2**62; for example
            `weigh_bytes`. None for 1.
        clock: returns seconds and never goes back; None for the system's monotonic clock.
        on_evict: called with (key, value, reason) after an entry was removed by size or by expiry; may use the cache.
            What it raises goes to `sys.unraisablehook`.

    Raises:
        TypeError, ValueError: if an argument is of the wrong type, or out of range.
    """

    def __cinit__(self, maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None):
        pass


@cython.final
@cython.trashcan(True)
cdef class AdaptiveCache(BoundedCache):
    """AdaptiveCache(maxsize=None, ttl=None, *, policy='adaptive', maxweight=None, weigher=None, clock=None, on_evict=None, seed=None)
--

    A mapping of bounded size that learns which entries to evict, and removes expired ones.

    It has the interface of `LRUCache`. It evicts by one of six settings of two queues, and changes to another setting
    when a sample of the requests shows that the other one would hit more often. `stats().policy` reports the active
    setting. See docs/policy.md.

    Operations on one key are O(1): an eviction moves at most 1,024 other entries. `keys`, `values` and `items` list the
    main queue first, then the small queue with the new entries; if the setting is "lru", they list in the order of use.
    An entry takes up to 24 bytes more than in an `LRUCache` from 500 entries on, and up to 8 more from 16,384 on.

    Args:
        maxsize: as for `LRUCache`.
        ttl: as for `LRUCache`.
        policy: "adaptive"; "s3fifo" for one fixed setting that resists scans; "lru" to evict as `LRUCache` does.
        maxweight: as for `LRUCache`.
        weigher: as for `LRUCache`.
        clock: as for `LRUCache`.
        on_evict: as for `LRUCache`.
        seed: an integer that chooses the sample, so that a measurement can be repeated; None for a random sample.

    Raises:
        TypeError, ValueError: if an argument is of the wrong type, or out of range.
    """

    def __cinit__(
        self, maxsize=None, ttl=None, *, policy="adaptive", maxweight=None, weigher=None, clock=None, on_evict=None, seed=None
    ):
        # The constructor of the base class, which has already run, accepts None. This class does not.
        checked_policy(policy)


cdef inline bint is_same_text(PyObject *one, PyObject *other) noexcept:
    # Every str is of the narrowest kind that fits it.
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(one)
    cdef int kind = PyUnicode_KIND(one)
    return (
        length == PyUnicode_GET_LENGTH(other) and kind == PyUnicode_KIND(other)
        and memcmp(PyUnicode_DATA(one), PyUnicode_DATA(other), length * kind) == 0
    )


cdef bint is_among(list keys, PyObject *key) noexcept:
    for item in keys:
        if <PyObject *> item == key:
            return True
    return False


cdef int equal(stored, key) except -1:
    # The caller holds `stored` while the comparison runs, because that may remove the entry.
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


cdef object lru_get(BoundedCache self, PyObject **args, Py_ssize_t count):
    cdef Py_hash_t hash
    if not 1 <= count <= 2:
        raise TypeError(f"get expected 1 or 2 arguments, got {count}")
    hash = acgsperf_hash(<object> args[0])
    with cython.critical_section(self):
        value = self.lookup(<object> args[0], hash, self.read_clock())
    if value is not MISSING:
        return value
    return <object> args[1] if count == 2 else None


cdef traverseproc traverse_fields
cdef inquiry clear_fields


cdef int lru_traverse(PyObject *self, visitproc visit, void *arg) noexcept:
    cdef Table *table = &(<BoundedCache> <void *> self).table
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
    (<BoundedCache> <void *> self).version += 1
    release_entries(&(<BoundedCache> <void *> self).table)
    return clear_fields(self)


cdef PyMethodDef get_method
get_method.ml_name = "get"
get_method.ml_meth = <void *> lru_get
get_method.ml_flags = METH_FASTCALL
get_method.ml_doc = b"""get($self, key, default=None, /)
--

Return the value of a key, which becomes the most recently used; `default` if it is missing or has expired."""


cdef complete_type(PyTypeObject *type):
    """Give a class of caches what Cython has no syntax for.

    The garbage collector must see the references in the table. A `get` without keywords is called 10 ns faster, and so is
    a method that belongs to the class itself and not to its base class. `match` recognizes a mapping by a flag.
    """
    global traverse_fields, clear_fields
    traverse_fields, clear_fields = type.tp_traverse, type.tp_clear
    type.tp_traverse, type.tp_clear = lru_traverse, lru_clear
    type.tp_flags |= Py_TPFLAGS_MAPPING
    for name, item in dict(BoundedCache.__dict__).items():
        if isinstance(item, METHOD):
            method = PyDescr_NewMethod(type, (<PyMethodDescrObject *> item).d_method)
            PyDict_SetItemString(type.tp_dict, name.encode(), method)
    PyDict_SetItemString(type.tp_dict, "get", PyDescr_NewMethod(type, &get_method))
    PyType_Modified(type)


complete_type(<PyTypeObject *> LRUCache)
complete_type(<PyTypeObject *> AdaptiveCache)
complete_type(<PyTypeObject *> BoundedCache)
MutableMapping.register(BoundedCache)


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
        cdef Py_ssize_t i
        cdef uint64_t times
        cdef LatencyHistogram histogram
        layout, used, counts, smallest, largest = hdr_codec.decode(blob)
        histogram = LatencyHistogram(layout.lowest_ns, layout.highest_ns, layout.significant_figures)
        if used:
            for i, times in zip(used, counts):
                histogram.counts.slots[i] = times
                histogram.counts.total += times
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
