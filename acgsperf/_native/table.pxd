# cython: language_level=3
"""A hash table of slots, and a ring that orders them: plain C, no Python code runs in here.

The index is open addressing with linear probing over 32-bit words, at most half full, emptied by backward shift
(Knuth, TAOCP 3, 6.4, algorithm R), so that it needs no tombstones.  A word contains the slot number.  The bits that the
slot numbers of this capacity do not use contain a mark: first the low HOME_BITS bits of the home position, then further
bits of the hash.  Therefore probing and the backward shift seldom read other slots, each of which is a cache miss.

A slot contains key, value, hash and expiry together, so that a hit touches one cache line of it.  The links of the ring
are separate, 8 bytes for each slot, to stay in the L2 cache of the CPU.  Slot 0 does not exist: in the index, 0 means
"empty", in the ring it is the anchor.

The `table_` functions do not depend on the order. The `ring_` functions do not depend on the keys.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "platform.h" nogil:
    int acgsperf_bit_length(uint64_t value)
    void acgsperf_prefetch(const void *address)

cdef enum:
    SMALLEST_CAPACITY = 8
    HOME_BITS = 7
    MARK_SHIFT = 32 - HOME_BITS


cdef struct Slot:
    PyObject *key
    PyObject *value
    Py_hash_t hash
    int64_t expires_ns


cdef struct Link:
    uint32_t newer
    uint32_t older


cdef struct Table:
    Slot *slots
    Link *ring
    uint32_t *index
    # A byte and a weight for each slot, if `has_meta` and `has_weights`; else NULL.
    uint8_t *meta
    uint64_t *weights
    uint64_t mask
    int shift  # after this shift, a mixed hash is the home position, and MARK_SHIFT bits below it
    uint32_t number_mask
    bint is_far  # an entry may be farther from its home position than HOME_BITS bits can express
    uint32_t capacity
    uint32_t used
    uint32_t unused_from
    uint32_t free
    bint has_meta
    bint has_weights


cdef extern from *:
    """
    /* A table without memory of its own points here, so that a lookup needs no special case. */
    static uint32_t acgsperf_no_index[2] = {0, 0};
    static struct {uint32_t newer, older;} acgsperf_no_ring[1] = {{0, 0}};
    """
    uint32_t acgsperf_no_index[2]
    void *acgsperf_no_ring


cdef inline void table_init(Table *table) noexcept nogil:
    """Make a table empty; `has_meta` and `has_weights` stay."""
    table.slots = NULL
    table.meta = NULL
    table.weights = NULL
    table.ring = <Link *> acgsperf_no_ring
    table.index = acgsperf_no_index
    table.mask = 1
    table.shift = 63 - MARK_SHIFT
    table.number_mask = 0
    table.is_far = False
    table.capacity = table.used = table.free = 0
    table.unused_from = 1


cdef inline void table_free(Table *table) noexcept nogil:
    """Free the memory; the caller owns the references in the slots."""
    if table.capacity:
        PyMem_RawFree(table.slots)
        PyMem_RawFree(table.ring)
        PyMem_RawFree(table.index)
        PyMem_RawFree(table.meta)
        PyMem_RawFree(table.weights)
    table_init(table)


cdef inline uint64_t table_place(const Table *table, Py_hash_t hash) noexcept nogil:
    """Return the home position of a hash, followed by MARK_SHIFT further bits; see `place_home` and `place_mark`."""
    # Fibonacci hashing: CPython hashes integers to themselves, and the top bits of the product depend on all of them.
    return (<uint64_t> hash * <uint64_t> 0x9E3779B97F4A7C15) >> table.shift


cdef inline uint64_t place_home(uint64_t place) noexcept nogil:
    return place >> MARK_SHIFT


cdef inline uint32_t place_mark(const Table *table, uint64_t place) noexcept nogil:
    return <uint32_t> place & ~table.number_mask


cdef inline bint is_number(const Table *table, uint32_t unmarked) noexcept nogil:
    """Whether the exclusive or of a word and a mark is a slot number: the word is not 0, and it has this mark."""
    return <uint32_t> (unmarked - 1) < table.number_mask


cdef inline uint64_t table_distance(const Table *table, uint64_t i) noexcept nogil:
    """Return how far the entry at position i of the index is from its home."""
    cdef uint32_t word = table.index[i]
    if table.is_far:
        return (i - place_home(table_place(table, table.slots[word & table.number_mask].hash))) & table.mask
    return (i - (word >> MARK_SHIFT)) & table.mask & ((1 << HOME_BITS) - 1)


cdef inline void table_index(Table *table, uint32_t number) noexcept nogil:
    cdef uint64_t place = table_place(table, table.slots[number].hash)
    cdef uint64_t home = place_home(place)
    cdef uint64_t i = home
    while table.index[i]:
        i = (i + 1) & table.mask
    table.index[i] = place_mark(table, place) | number
    if ((i - home) & table.mask) >> HOME_BITS:
        table.is_far = True


cdef inline void table_unindex(Table *table, uint32_t number) noexcept nogil:
    cdef uint64_t place = table_place(table, table.slots[number].hash)
    cdef uint32_t word = place_mark(table, place) | number
    cdef uint64_t hole = place_home(place)
    cdef uint64_t i
    while table.index[hole] != word:
        hole = (hole + 1) & table.mask
    i = hole
    while True:
        i = (i + 1) & table.mask
        if table.index[i] == 0:
            break
        # The entry at i may move into the hole unless its home is after the hole.
        if table_distance(table, i) >= ((i - hole) & table.mask):
            table.index[hole] = table.index[i]
            hole = i
    table.index[hole] = 0


cdef inline uint32_t table_take_slot(Table *table) noexcept nogil:
    """Return an unused slot; the caller has made sure that there is one."""
    cdef uint32_t number = table.free
    if number:
        table.free = table.ring[number].older
    else:
        number = table.unused_from
        table.unused_from += 1
    table.used += 1
    return number


cdef inline void table_give_slot(Table *table, uint32_t number) noexcept nogil:
    table.slots[number].key = NULL
    table.slots[number].value = NULL
    table.ring[number].older = table.free
    table.free = number
    table.used -= 1


cdef inline void ring_push(Table *table, uint32_t number) noexcept nogil:
    """Make an unlinked slot the newest."""
    cdef uint32_t newest = table.ring[0].older
    table.ring[number].newer = 0
    table.ring[number].older = newest
    table.ring[newest].newer = number
    table.ring[0].older = number


cdef inline void ring_insert(Table *table, uint32_t number, uint32_t newer) noexcept nogil:
    """Put an unlinked slot before another one; before 0 it is the newest."""
    cdef uint32_t older = table.ring[newer].older
    table.ring[number].newer = newer
    table.ring[number].older = older
    table.ring[older].newer = number
    table.ring[newer].older = number


cdef inline void ring_unlink(Table *table, uint32_t number) noexcept nogil:
    cdef Link link = table.ring[number]
    table.ring[link.newer].older = link.older
    table.ring[link.older].newer = link.newer


cdef inline void ring_touch(Table *table, uint32_t number) noexcept nogil:
    if table.ring[0].older != number:
        ring_unlink(table, number)
        ring_push(table, number)


cdef inline uint32_t ring_oldest(const Table *table) noexcept nogil:
    return table.ring[0].newer


cdef inline void ring_prefetch(const Table *table) noexcept nogil:
    """Prefetch the memory that the next two evictions read. Call it after each eviction.

    The entries of a full cache are scattered in memory. Without this, an eviction waits for its slot, then for the word
    of the index and for the key.
    """
    cdef uint32_t next = ring_oldest(table)
    cdef uint32_t after_next = table.ring[next].newer
    cdef const Slot *slot = &table.slots[next]
    acgsperf_prefetch(&table.slots[after_next])
    acgsperf_prefetch(&table.ring[after_next])
    # The previous call has fetched this slot.
    acgsperf_prefetch(&table.index[place_home(table_place(table, slot.hash))])
    acgsperf_prefetch(slot.key)
    acgsperf_prefetch(slot.value)


cdef inline bint table_rebuild(Table *table, uint32_t capacity) noexcept nogil:
    """Move to room for `capacity` >= used entries, in their order; False if there is no memory: nothing has changed."""
    cdef Table new
    cdef uint64_t width = 2
    cdef uint32_t number, copy
    table_init(&new)
    new.has_meta = table.has_meta
    new.has_weights = table.has_weights
    while width < 2 * <uint64_t> capacity:
        width *= 2
        new.shift -= 1
    new.mask = width - 1
    new.number_mask = <uint32_t> ((<uint64_t> 1 << acgsperf_bit_length(capacity)) - 1)
    new.is_far = new.number_mask >> MARK_SHIFT != 0
    new.slots = <Slot *> PyMem_RawCalloc(<size_t> capacity + 1, sizeof(Slot))
    new.ring = <Link *> PyMem_RawCalloc(<size_t> capacity + 1, sizeof(Link))
    new.index = <uint32_t *> PyMem_RawCalloc(width, sizeof(uint32_t))
    if new.has_meta:
        new.meta = <uint8_t *> PyMem_RawCalloc(<size_t> capacity + 1, sizeof(uint8_t))
    if new.has_weights:
        new.weights = <uint64_t *> PyMem_RawCalloc(<size_t> capacity + 1, sizeof(uint64_t))
    if (
        new.slots == NULL or new.ring == NULL or new.index == NULL
        or (new.has_meta and new.meta == NULL) or (new.has_weights and new.weights == NULL)
    ):
        PyMem_RawFree(new.slots)
        PyMem_RawFree(new.ring)
        PyMem_RawFree(new.index)
        PyMem_RawFree(new.meta)
        PyMem_RawFree(new.weights)
        return False
    new.capacity = capacity
    number = ring_oldest(table)
    while number:
        copy = table_take_slot(&new)
        new.slots[copy] = table.slots[number]
        if new.has_meta:
            new.meta[copy] = table.meta[number]
        if new.has_weights:
            new.weights[copy] = table.weights[number]
        table_index(&new, copy)
        ring_push(&new, copy)
        number = table.ring[number].newer
    table_free(table)
    table[0] = new
    return True
