# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The compiled caches: LRUCache, RecordingCache and AdaptiveCache, and BoundedCache, which has what all share.

Re-entrancy.  A user's __hash__, __eq__, __del__, clock and on_evict may call back into the cache that called them, or
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

from acgsperf._native.policy cimport (
    MAIN, SMALL_CHANGE, Policy, policy_adjust, policy_bytes, policy_clear, policy_hit, policy_insert, policy_miss,
    policy_prepare, policy_release, policy_remove, policy_renumber, policy_reset_counters, policy_resize, policy_restore,
    policy_resume, policy_reweigh, policy_spare, policy_victim,
)
from acgsperf._native.python cimport (
    METH_FASTCALL, PyDescr_NewMethod, PyDict_SetItemString, PyErr_WriteUnraisable, PyLong_AsLongLongAndOverflow, PyMethodDef,
    PyMethodDescrObject, PyObject_CallFunctionObjArgs, PyTypeObject, PyType_Modified, PyUnicode_CheckExact, PyUnicode_DATA,
    PyUnicode_GET_LENGTH, PyUnicode_KIND, Py_TPFLAGS_MAPPING, inquiry, traverseproc, visitproc,
)
from acgsperf._native.shadows cimport COUNT, SETTINGS, Shadows
from acgsperf._native.sizing cimport SIZES, Tally, sizing_tally
from acgsperf._native.table cimport (
    SMALLEST_CAPACITY, Slot, Table, is_number, place_home, place_mark, ring_insert, ring_oldest, ring_prefetch, ring_push,
    ring_touch, ring_unlink, table_free, table_give_slot, table_index, table_init, table_place, table_rebuild, table_take_slot,
    table_unindex,
)

from collections.abc import Mapping, MutableMapping
from types import GenericAlias

from acgsperf._native import arguments
from acgsperf._native.arguments import (
    checked_bool, checked_bounds, checked_callable, checked_limits, checked_policy, checked_seed, checked_time_ns,
    checked_ttl_ns, checked_weight,
)
from acgsperf._native.types import EvictionReason

cdef extern from "platform.h" nogil:
    int64_t acgsperf_monotonic_ns()
    int64_t acgsperf_coarse_ns()
    const int64_t ACGSPERF_COARSE_LAG_NS
    void acgsperf_prefetch(const void *address)

cdef extern from "platform.h":
    Py_hash_t acgsperf_hash(object key) except? -1

cdef int64_t NEVER = INT64_MAX
cdef object MISSING = object()
cdef object METHOD = type(str.join)
cdef object DEFAULT_TTL = Ellipsis
cdef uint64_t HEAVIEST = arguments.HEAVIEST_SHARE
cdef object SIZE = EvictionReason.SIZE
cdef object EXPIRED = EvictionReason.EXPIRED

cdef enum:
    RECORDED = 4096  # how many hits a RecordingCache records; a power of 2, because the remainder is then one instruction


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


cdef inline void fill_slot(Slot *slot, key, Py_hash_t hash, value, int64_t expires_ns) noexcept:
    """Store an entry in a slot that has no references."""
    Py_INCREF(key)
    Py_INCREF(value)
    slot.key = <PyObject *> key
    slot.value = <PyObject *> value
    slot.hash = hash
    slot.expires_ns = expires_ns


@cython.trashcan(True)
cdef class BoundedCache:
    """BoundedCache()
--

    The base class of `LRUCache`, `RecordingCache` and `AdaptiveCache`. It cannot be instantiated.
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
    # A ring of keys: that of the hit number n is at n % RECORDED, until it is taken. NULL if hits are not recorded.
    cdef PyObject **recorded
    cdef uint64_t first_hit
    cdef uint64_t next_hit
    cdef object __weakref__

    def __cinit__(
        self, maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None, policy=None, seed=None,
        sizing=False
    ):
        table_init(&self.table)
        if type(self) is BoundedCache:
            raise TypeError("cannot create 'acgsperf._native.caches.BoundedCache' instances")
        self._maxsize, self._maxweight = checked_bounds(maxsize, maxweight, weigher)
        self.weigher = weigher
        self.table.has_weights = weigher is not None
        if policy is None:
            policy = "adaptive" if type(self) is AdaptiveCache else "lru"
        setting = checked_policy(policy)
        if setting is not None:
            self.table.has_meta = True
            self.policy = <Policy *> PyMem_RawCalloc(1, sizeof(Policy))
            if self.policy == NULL:
                raise MemoryError
            self.policy.seed = checked_seed(seed)
            self.policy.adaptive = policy == "adaptive"
            self.policy.sizes = sizing and self.policy.adaptive
            self.policy.setting = setting
            self.bound_policy()
        self.ttl_ns = ttl_to_ns(ttl)
        self.ttl = None if ttl is None else float(ttl) if self.ttl_ns != NEVER else float("inf")
        if type(self) is RecordingCache:
            self.recorded = <PyObject **> PyMem_RawCalloc(RECORDED, sizeof(PyObject *))
            if self.recorded == NULL:
                raise MemoryError
        self.answers_until_ns = NEVER
        self.clock = checked_callable("clock", clock)
        self.on_evict = on_evict

    def __dealloc__(self):
        release_entries(&self.table)
        if self.recorded != NULL:
            release_keys(self.recorded)
            PyMem_RawFree(self.recorded)
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
                    # The keys are most likely equal, and then the value is used. Fetch it while they are compared.
                    acgsperf_prefetch(slot.value)
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
            self.policy.earlier, self.policy.earlier_misses = self.hits + self.misses, self.misses

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
    cdef inline uint32_t hit(self, key, Py_hash_t hash, int64_t now) except? 0:
        """Count a read, and return the slot that answers it; 0 for a miss."""
        # Most keys are in their home slot and are looked up with the object that was stored.
        cdef uint64_t place = table_place(&self.table, hash)
        cdef uint32_t number = self.table.index[place_home(place)] ^ place_mark(&self.table, place)
        if not is_number(&self.table, number) or self.table.slots[number].key != <PyObject *> key:
            number = self.find(key, hash)
        if number == 0:
            self.misses += 1
            return 0
        if not self.answers(number, now):
            self.misses += 1
            if self.is_expired(self.table.slots[number].expires_ns, now):
                self.dispose(self.evict(number, True))
            return 0
        self.hits += 1
        self.touch(number)
        return number

    @cython.final
    cdef inline object lookup(self, key, Py_hash_t hash, int64_t now):
        cdef uint32_t number = self.hit(key, hash, now)
        return <object> self.table.slots[number].value if number else MISSING

    @cython.final
    cdef inline void record(self, uint32_t number) noexcept:
        """Record a hit. The caller holds what it needs of the entry: dropping a key of an older hit may run any code."""
        cdef PyObject **place = &self.recorded[self.next_hit % RECORDED]
        cdef PyObject *former = place[0]
        # Not the key object of the caller, which may be another one and would stay in memory.
        place[0] = self.table.slots[number].key
        Py_INCREF(<object> place[0])
        self.next_hit += 1
        Py_XDECREF(former)

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
            number = self.fill_new_slot(key, hash, value, expires_ns, weight)
            if self.policy == NULL:
                ring_push(&self.table, number)
            else:
                policy_insert(self.policy, &self.table, number, meta)
        finally:
            self.dispose_evicted(&evicted)
        return 0

    @cython.final
    cdef uint32_t fill_new_slot(self, key, Py_hash_t hash, value, int64_t expires_ns, uint64_t weight) except 0:
        """Store an entry in a slot that was unused. The caller gives it a place in the order."""
        cdef uint32_t number
        if self.table.used == self.table.capacity:
            if not self.rebuild(min(self._maxsize, max(SMALLEST_CAPACITY, 2 * self.table.capacity))):
                raise MemoryError
        number = table_take_slot(&self.table)
        fill_slot(&self.table.slots[number], key, hash, value, expires_ns)
        if self.table.has_weights:
            self.table.weights[number] = weight
            self.weight += weight
        table_index(&self.table, number)
        self.version += 1
        self.insertions += 1
        return number

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
        fill_slot(slot, key, hash, value, expires_ns)
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
            self.policy.earlier, self.policy.earlier_misses = self.hits + self.misses, self.misses
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
        fill_slot(slot, key, hash, value, expires_ns)
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
                value = <object> self.table.slots[number].value
                if self.recorded != NULL:
                    self.record(number)
                return value
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
        if type(self) is not AdaptiveCache:
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
        with cython.critical_section(self):
            now = self.time_of_write(remaining, self.read_clock())
            if self.find(key, hash) or self.is_full(weight) or (self._maxweight and weight > self._maxweight // HEAVIEST):
                return False
            if self.policy != NULL and not policy_prepare(self.policy, False):
                raise MemoryError
            number = self.fill_new_slot(key, hash, value, NEVER if remaining == NEVER else now + remaining, weight)
            if self.policy == NULL:
                ring_insert(&self.table, number, ring_oldest(&self.table))
            else:
                policy_restore(self.policy, &self.table, number, meta)
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
        cdef Tally tallies[SIZES]
        # Not comprehensions: in the code of Cython 3.3.1, one that has no memory for its list releases an item twice.
        cdef list misses = [], sizes = []
        from dataclasses import replace
        from acgsperf._native.sizing_stats import sizing_stats
        from acgsperf._native.stats import CacheStats, policy_stats

        shadows.samples = shadows.missed = 0
        with cython.critical_section(self):
            if self.policy == NULL or not self.policy.adaptive:
                return self.plain_stats(CacheStats)
            now = acgsperf_monotonic_ns()
            policy = self.policy[0]
            if policy.shadows != NULL:
                shadows = policy.shadows[0]
            if policy.sizing != NULL:
                for i in range(SIZES):
                    tallies[i] = sizing_tally(policy.sizing, i)
            found = self.plain_stats(CacheStats)
        if not policy.timed:
            now = policy.since_ns
        for i in range(SETTINGS):
            misses.append(shadows.misses[i])
        found = replace(found, policy=policy_stats(
            policy.setting, (now - policy.since_ns) / 1e9, policy.switches, shadows.samples, shadows.missed,
            misses, found.hits, found.misses))
        if policy.sizing == NULL:
            return found
        for i in range(SIZES):
            sizes.append((tallies[i].missed, tallies[i].misses[0], tallies[i].misses[1]))
        return replace(found, sizing=sizing_stats(
            sizes, policy.size,
            found.hits + found.misses - policy.earlier, found.misses - policy.earlier_misses, found.mean_weight))

    @cython.final
    cdef object plain_stats(self, kind):
        return kind(
            self.hits, self.misses, self.insertions, self.updates, self.evictions, self.expirations,
            self.table.used, self._maxsize, self.weight if self.table.has_weights else None, self._maxweight or None,
            self.rejections,
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
            if self.recorded != NULL:
                own += RECORDED * sizeof(PyObject *)
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
cdef class RecordingCache(BoundedCache):
    """RecordingCache(maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None)
--

    An `LRUCache` that also records which keys were read.

    It records the key of every hit that `stats` counts. `take_hits` returns these keys. It returns the latest 4,096, also
    those whose entries were removed meanwhile. In everything else it is an `LRUCache`. A hit takes a few ns longer.
    """

    def __cinit__(self, maxsize=None, ttl=None, *, maxweight=None, weigher=None, clock=None, on_evict=None):
        pass

    def take_hits(self):
        """Return a list of the keys of the hits since the last call, at most the latest 4,096, the oldest first."""
        cdef list keys
        cdef PyObject **place
        cdef uint64_t first, next
        cdef Py_ssize_t count = 0
        with cython.critical_section(self):
            while True:
                next = self.next_hit
                first = max(self.first_hit, next - min(next, <uint64_t> RECORDED))
                # Creating a list may start a garbage collection, which may run any code.
                keys = [None] * <Py_ssize_t> (next - first)
                if self.next_hit == next and self.first_hit <= first:
                    break
            self.first_hit = next
            while first < next:
                place = &self.recorded[first % RECORDED]
                first += 1
                # The garbage collector may have cleared it.
                if place[0] != NULL:
                    keys[count] = <object> place[0]
                    Py_DECREF(keys[count])
                    place[0] = NULL
                    count += 1
        del keys[count:]
        return keys

    cdef inline object recorded_lookup(self, key, Py_hash_t hash, int64_t now):
        cdef uint32_t number = self.hit(key, hash, now)
        if number == 0:
            return MISSING
        value = <object> self.table.slots[number].value
        self.record(number)
        return value

    def __getitem__(self, key, /):
        cdef Py_hash_t hash = acgsperf_hash(key)
        with cython.critical_section(self):
            value = self.recorded_lookup(key, hash, self.read_clock())
        if value is MISSING:
            raise KeyError(key)
        return value


@cython.final
@cython.trashcan(True)
cdef class AdaptiveCache(BoundedCache):
    """AdaptiveCache(maxsize=None, ttl=None, *, policy='adaptive', maxweight=None, weigher=None, clock=None, on_evict=None, seed=None, sizing=False)
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
        sizing: whether `stats().sizing` estimates what other sizes would hit. It takes up to 90 KB, and there are no
            estimates with another policy than "adaptive".

    Raises:
        TypeError, ValueError: if an argument is of the wrong type, or out of range.
    """

    def __cinit__(
        self, maxsize=None, ttl=None, *, policy="adaptive", maxweight=None, weigher=None, clock=None, on_evict=None, seed=None,
        sizing=False
    ):
        # The constructor of the base class, which has already run, accepts None. This class does not.
        checked_policy(policy)
        checked_bool("sizing", sizing)


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


cdef void release_keys(PyObject **recorded) noexcept:
    """Drop the recorded keys. Code that runs meanwhile may record others."""
    cdef PyObject *key
    cdef Py_ssize_t i
    for i in range(<Py_ssize_t> RECORDED):
        key = recorded[i]
        recorded[i] = NULL
        Py_XDECREF(key)


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


cdef object recording_get(RecordingCache self, PyObject **args, Py_ssize_t count):
    cdef Py_hash_t hash
    if not 1 <= count <= 2:
        raise TypeError(f"get expected 1 or 2 arguments, got {count}")
    hash = acgsperf_hash(<object> args[0])
    with cython.critical_section(self):
        value = self.recorded_lookup(<object> args[0], hash, self.read_clock())
    if value is not MISSING:
        return value
    return <object> args[1] if count == 2 else None


cdef traverseproc traverse_fields
cdef inquiry clear_fields


cdef int lru_traverse(PyObject *self, visitproc visit, void *arg) noexcept:
    cdef Table *table = &(<BoundedCache> <void *> self).table
    cdef PyObject **recorded = (<BoundedCache> <void *> self).recorded
    cdef uint32_t number
    cdef Py_ssize_t i
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
    if recorded != NULL:
        for i in range(<Py_ssize_t> RECORDED):
            if recorded[i] != NULL:
                stop = visit(recorded[i], arg)
                if stop:
                    return stop
    return traverse_fields(self, visit, arg)


cdef int lru_clear(PyObject *self) noexcept:
    (<BoundedCache> <void *> self).version += 1
    release_entries(&(<BoundedCache> <void *> self).table)
    if (<BoundedCache> <void *> self).recorded != NULL:
        release_keys((<BoundedCache> <void *> self).recorded)
    return clear_fields(self)


cdef PyMethodDef get_method
get_method.ml_name = "get"
get_method.ml_meth = <void *> lru_get
get_method.ml_flags = METH_FASTCALL
get_method.ml_doc = b"""get($self, key, default=None, /)
--

Return the value of a key, which becomes the most recently used; `default` if it is missing or has expired."""

cdef PyMethodDef recording_get_method = get_method
recording_get_method.ml_meth = <void *> recording_get


cdef complete_type(PyTypeObject *type, PyMethodDef *get):
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
    PyDict_SetItemString(type.tp_dict, "get", PyDescr_NewMethod(type, get))
    PyType_Modified(type)


complete_type(<PyTypeObject *> LRUCache, &get_method)
complete_type(<PyTypeObject *> AdaptiveCache, &get_method)
complete_type(<PyTypeObject *> RecordingCache, &recording_get_method)
complete_type(<PyTypeObject *> BoundedCache, &get_method)
MutableMapping.register(BoundedCache)
