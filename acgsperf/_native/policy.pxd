# cython: language_level=3
"""What an `AdaptiveCache` evicts: two queues, a memory of evicted keys, and a choice of settings.  Plain C.

The ring of the table contains both queues: from its oldest entry to its newest first the main queue, then the small one.
So moving the oldest entry of the small queue to the main queue moves a boundary and no entry.  Under the setting "lru"
the ring is in order of use.

The queues and the memory of evicted keys (the ghosts) are those of S3-FIFO (Yang et al., "FIFO Queues are All You Need
for Cache Eviction", SOSP 2023).  The settings and the choice among them are this project's own; see docs/policy.md.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from acgsperf._native.shadows cimport (
    COUNT, LRU, SETTINGS, Shadows, acgsperf_settings, sampling_rate, share_of, shadows_new, shadows_resume,
    shadows_sample,
)
from acgsperf._native.sizing cimport (
    SIZES, Sizing, sizing_bytes, sizing_count, sizing_free, sizing_new, sizing_rate, sizing_reset, sizing_sample,
)
from acgsperf._native.table cimport Table, ring_insert, ring_oldest, ring_push, ring_touch, ring_unlink

cdef extern from "platform.h" nogil:
    int acgsperf_bit_length(uint64_t)

cdef enum:
    # Bits of the `meta` byte of an entry. The lowest are `COUNT`, its hits. MAIN: it is in the main queue. SAMPLED: the
    # shadows see it. LOGS: how many of its hits were logged for them in this epoch, in steps of LOGGED.
    MAIN = 0x08
    SAMPLED = 0x10
    LOGGED = 0x20
    LOGS = 0x60
    LOG_ROOM = 16
    MOST_CREDIT = 512
    # Limits the time of one insertion to some ten microseconds.
    MOST_MOVES = 1024
    # How many entries are unmarked at once.
    LEAST_UNMARKED = 16
    MOST_UNMARKED = 4096
    # The same at the end of an epoch. A byte for each entry: it takes some microseconds.
    MOST_UNMARKED_BYTES = 65536
    # A change of the size by at most one part in so many is small.
    SMALL_CHANGE = 8
    # With half as many, so many keys of a loop may have the same bucket that some of them are never remembered.
    GHOST_WAYS = 16
    # The clock of the ghosts ticks about so often for each cache size of evicted keys.
    GHOST_TICKS = 8
    GHOST_STAMPS = 16
    STAMP_BITS = 4
    START = 1
    S3FIFO = 3


# Evicted keys (ghosts). With tags of 11 bits, a few keys of a loop would be mistaken for others in every round.
cdef struct Ghosts:
    # 16 bits of the hash of each key, 0 if there is none.
    uint16_t tags[GHOST_WAYS]
    # The times of eviction, 4 bits each; those of the first key are the lowest.
    uint64_t stamps


cdef struct Policy:
    uint64_t seed
    Shadows *shadows
    # What `sizing` has not counted of the requests and misses of the cache.
    uint64_t earlier
    uint64_t earlier_misses
    # NULL if nothing is estimated for other sizes.
    Sizing *sizing
    Ghosts *ghost
    uint32_t ghost_buckets
    uint32_t ghost_every
    uint32_t ghost_ticks
    # The next bucket to remove old ghosts from, before their stamps look new again.
    uint32_t ghost_swept
    # The number of entries that fit, 0 if it is not known yet: the bound is a weight.
    uint32_t size
    # Loads: numbers of entries, or weights if the bound is a weight.
    uint64_t room
    uint64_t share
    uint64_t small_load
    uint64_t main_load
    uint32_t main_count
    # The oldest entry of the small queue, 0 if there is none.
    uint32_t boundary
    uint32_t switches
    uint32_t sampled_up_to
    # The next entry whose hits may be logged again in this epoch of the shadows, 0 if there are no more.
    uint32_t unmarked
    uint16_t credit
    uint8_t epoch
    uint8_t ghost_clock
    uint8_t ghost_life
    uint8_t setting
    uint8_t adaptive
    # Whether to estimate what other sizes would hit.
    uint8_t sizes
    uint8_t logged
    # Whether `since_ns` is the time of the last change of the setting.
    uint8_t timed
    int64_t since_ns
    uint64_t log[LOG_ROOM]


cdef inline uint64_t mix(const Policy *policy, Py_hash_t hash) noexcept nogil:
    """Return a hash whose high half decides whether the key is sampled."""
    return (<uint64_t> hash + policy.seed) * <uint64_t> 0x9E3779B97F4A7C15


cdef inline uint64_t remix(uint64_t mixed) noexcept nogil:
    """Return a hash that does not depend on whether the key is sampled."""
    return (mixed ^ mixed >> 29) * <uint64_t> 0xD6E8FEB86659FD93


cdef inline void policy_use(Policy *policy, int setting) noexcept nogil:
    policy.setting = setting
    policy.share = max(1, <uint64_t> (policy.room * acgsperf_settings[setting].share))
    cdef double life = acgsperf_settings[setting].ghost * policy.size / max(<uint32_t> 1, policy.ghost_every)
    policy.ghost_life = <uint8_t> max(1.0, min(life, <double> GHOST_STAMPS - 1))


cdef inline void policy_release(Policy *policy) noexcept nogil:
    """Free what depends on the size."""
    sizing_free(policy.sizing)
    policy.sizing = NULL
    PyMem_RawFree(policy.shadows)
    PyMem_RawFree(policy.ghost)
    policy.shadows = NULL
    policy.ghost = NULL


cdef inline double policy_rate(const Policy *policy) noexcept nogil:
    """Return R: one key in R is sampled."""
    return sizing_rate(policy.size) if policy.sizes else sampling_rate(policy.size)


cdef inline void policy_resize(Policy *policy, Table *table, uint32_t size, uint64_t room) noexcept nogil:
    """Restart with another size; the setting and the queues stay. `policy_prepare` allocates the memory."""
    policy_release(policy)
    policy.size = size
    policy.room = room
    policy.ghost_clock = 0
    policy.ghost_ticks = 0
    policy.credit = 0
    policy.logged = 0
    policy.unmarked = 0
    policy.epoch = 0
    if size:
        policy.ghost_buckets = <uint32_t> (1.6 * size / GHOST_WAYS) + 1
        policy.ghost_every = (size if size >= 8 * GHOST_TICKS else size + GHOST_TICKS - 1) // GHOST_TICKS
        policy.ghost_swept = 0
        policy.sampled_up_to = <uint32_t> min(<double> 0xFFFFFFFF, 4294967296.0 / policy_rate(policy))
    policy_use(policy, policy.setting)
    policy_resample(policy, table)


cdef inline bint policy_adjust(Policy *policy, uint32_t size, uint64_t room) noexcept nogil:
    """Change the size a little and keep what was learned; return False, and do nothing, if the change is not small."""
    if size == 0 or policy.size == 0 or max(size, policy.size) - min(size, policy.size) > policy.size // SMALL_CHANGE:
        return False
    policy.room = room
    policy_use(policy, policy.setting)
    return True


cdef inline bint policy_prepare(Policy *policy, bint full) noexcept nogil:
    """Allocate the memory that the next insertion needs; False if there is none."""
    if policy.size == 0:
        return True
    if policy.adaptive and policy.shadows == NULL:
        policy.shadows = shadows_new(
            max(1, <uint32_t> (policy.size / policy_rate(policy))), policy.setting,
            sampling_rate(policy.size) / policy_rate(policy),
        )
        if policy.shadows == NULL:
            return False
    if policy.sizes and policy.shadows != NULL and policy.sizing == NULL:
        policy.sizing = sizing_new(policy.size, policy.shadows)
        if policy.sizing == NULL:
            return False
    if full and policy.ghost == NULL:
        policy.ghost = <Ghosts *> PyMem_RawCalloc(policy.ghost_buckets, sizeof(Ghosts))
        return policy.ghost != NULL
    return True


cdef inline size_t policy_bytes(const Policy *policy) noexcept nogil:
    cdef size_t bytes = sizeof(Policy)
    if policy.shadows != NULL:
        bytes += policy.shadows.bytes
    if policy.sizing != NULL:
        bytes += sizing_bytes(policy.sizing)
    if policy.ghost != NULL:
        bytes += policy.ghost_buckets * sizeof(Ghosts)
    return bytes


cdef inline Ghosts *ghost_bucket(Policy *policy, uint64_t mixed) noexcept nogil:
    return policy.ghost + <size_t> ((mixed >> 32) * policy.ghost_buckets >> 32)


cdef inline uint16_t ghost_tag(uint64_t mixed) noexcept nogil:
    return <uint16_t> ((<uint64_t> <uint32_t> mixed * 65535 >> 32) + 1)


cdef inline uint64_t stamps_equal(uint64_t stamps, int stamp) noexcept nogil:
    """Return the highest bits of those stamps of a bucket that have a value (Warren, "Hacker's Delight", section 6-1)."""
    cdef uint64_t lower = <uint64_t> 0x7777777777777777
    stamps ^= (stamp & (GHOST_STAMPS - 1)) * <uint64_t> 0x1111111111111111
    return ~(((stamps & lower) + lower) | stamps | lower)


cdef inline int first_stamp(uint64_t bits) noexcept nogil:
    """Return the place of the first stamp that has a bit."""
    return acgsperf_bit_length(bits & (0 - bits)) // STAMP_BITS - 1


cdef inline void ghost_expire(Ghosts *bucket, int clock) noexcept nogil:
    """Forget the ghosts of the greatest age, whose stamps will look new at the next tick."""
    cdef uint64_t expired = stamps_equal(bucket.stamps, clock + 1)
    while expired:
        bucket.tags[first_stamp(expired)] = 0
        expired &= expired - 1


cdef inline int ghost_place(const Ghosts *bucket, int clock) noexcept nogil:
    """Return an empty place, else that of the oldest ghost."""
    cdef uint16_t empty = 0
    cdef uint64_t oldest = 0
    cdef int i, age = GHOST_STAMPS
    # No branches, so that the compiler can use vector instructions.
    for i in range(GHOST_WAYS):
        empty |= bucket.tags[i] == 0
    if empty:
        i = 0
        while bucket.tags[i]:
            i += 1
        return i
    while oldest == 0:
        age -= 1
        oldest = stamps_equal(bucket.stamps, clock - age)
    return first_stamp(oldest)


cdef inline void ghost_add(Policy *policy, uint64_t mixed) noexcept nogil:
    cdef Ghosts *bucket = ghost_bucket(policy, mixed)
    cdef int place
    ghost_expire(policy.ghost + policy.ghost_swept, policy.ghost_clock)
    policy.ghost_swept += 1
    if policy.ghost_swept == policy.ghost_buckets:
        policy.ghost_swept = 0
    place = ghost_place(bucket, policy.ghost_clock)
    bucket.tags[place] = ghost_tag(mixed)
    bucket.stamps &= ~(<uint64_t> (GHOST_STAMPS - 1) << STAMP_BITS * place)
    bucket.stamps |= <uint64_t> policy.ghost_clock << STAMP_BITS * place
    policy.ghost_ticks += 1
    if policy.ghost_ticks >= policy.ghost_every:
        policy.ghost_ticks = 0
        policy.ghost_clock = (policy.ghost_clock + 1) & (GHOST_STAMPS - 1)


cdef inline bint ghost_take(Policy *policy, uint64_t mixed) noexcept nogil:
    """Forget a key; return whether it was remembered and not too old."""
    cdef Ghosts *bucket
    cdef uint16_t tag, found = 0
    cdef uint64_t stamp
    cdef int i
    if policy.ghost == NULL:
        return False
    bucket = ghost_bucket(policy, mixed)
    tag = ghost_tag(mixed)
    for i in range(GHOST_WAYS):
        found |= bucket.tags[i] == tag
    if found == 0:
        return False
    for i in range(GHOST_WAYS):
        if bucket.tags[i] == tag:
            stamp = bucket.stamps >> STAMP_BITS * i
            if (policy.ghost_clock - stamp) & (GHOST_STAMPS - 1) < policy.ghost_life:
                bucket.tags[i] = 0
                return True
    return False


cdef inline void policy_sample(Policy *policy, uint64_t mixed, bint missed) noexcept nogil:
    cdef bint changed
    if policy.sizing == NULL:
        changed = shadows_sample(policy.shadows, remix(mixed))
    else:
        changed = sizing_sample(policy.sizing, mixed, remix(mixed), missed)
    if changed:
        policy_use(policy, policy.shadows.setting)
        policy.switches += 1
        # The next insertion reads the clock.
        policy.timed = False


cdef inline void policy_recognize(Policy *policy) noexcept nogil:
    """End a scan: a key is used again."""
    cdef int scale
    shadows_resume(policy.shadows)
    if policy.sizing != NULL:
        for scale in range(SIZES):
            shadows_resume(policy.sizing.shadows[scale])


cdef inline void policy_flush(Policy *policy) noexcept nogil:
    """Let the shadows see the logged hits."""
    cdef int i
    policy_recognize(policy)
    for i in range(policy.logged):
        policy_sample(policy, policy.log[i], False)
    policy.logged = 0


cdef inline void unmark(Table *table, uint32_t first, uint32_t last) noexcept nogil:
    """Let the hits of the entries from `first` to before `last` be logged again."""
    cdef uint32_t number
    for number in range(first, last):
        table.meta[number] &= <uint8_t> ~LOGS


cdef inline void policy_check_epoch(Policy *policy, Table *table) noexcept nogil:
    """Let the hits of all entries be logged again if an epoch of the shadows has begun."""
    cdef uint32_t last
    if policy.epoch != policy.shadows.epoch:
        policy.epoch = policy.shadows.epoch
        policy.unmarked = 1
    if policy.unmarked:
        last = min(table.capacity + 1, policy.unmarked + MOST_UNMARKED_BYTES)
        unmark(table, policy.unmarked, last)
        policy.unmarked = last if last <= table.capacity else 0


cdef inline void policy_log(Policy *policy, Table *table, uint8_t *meta, Py_hash_t hash) noexcept nogil:
    """Log a hit for the shadows, unless enough hits of this entry were logged in this epoch."""
    if policy.shadows == NULL:
        return
    if policy.sizing != NULL:
        sizing_count(policy.sizing, False)
    if policy.sizing == NULL or not policy.sizing.logs:
        policy_check_epoch(policy, table)
        if meta[0] & LOGS == LOGS or policy.credit == 0:
            return
        policy.credit -= 1
    elif meta[0] & LOGS == LOGS:
        return
    meta[0] += LOGGED
    policy.log[policy.logged] = mix(policy, hash)
    policy.logged += 1
    if policy.logged == LOG_ROOM:
        policy_flush(policy)


cdef inline void policy_unmark(Policy *policy, Table *table) noexcept nogil:
    """Let the hits of some entries be logged again, which were logged often enough."""
    cdef Sizing *sizing = policy.sizing
    cdef uint32_t first = sizing.unmarked
    cdef uint32_t last = <uint32_t> min(<double> table.capacity, first + min(sizing.due, <double> MOST_UNMARKED))
    unmark(table, first + 1, last + 1)
    sizing.due = min(sizing.due - (last - first), <double> table.capacity)
    sizing.unmarked = last if last < table.capacity else 0


cdef inline uint64_t load_of(const Table *table, uint32_t number) noexcept nogil:
    return table.weights[number] if table.has_weights else 1


cdef inline void policy_refresh(Policy *policy, Table *table, uint32_t number) noexcept nogil:
    """Make an entry the most recently used, for the setting "lru"."""
    cdef bint in_main = table.meta[number] & MAIN
    if in_main:
        table.meta[number] &= ~MAIN
        policy.main_load -= load_of(table, number)
        policy.main_count -= 1
        policy.small_load += load_of(table, number)
    elif number == policy.boundary and table.ring[number].newer:
        policy.boundary = table.ring[number].newer
    ring_touch(table, number)
    if in_main and policy.boundary == 0:
        policy.boundary = number


cdef inline void policy_hit(Policy *policy, Table *table, uint32_t number) noexcept nogil:
    cdef uint8_t *meta = &table.meta[number]
    if meta[0] & COUNT != COUNT:
        meta[0] += 1
    if policy.setting == LRU:
        policy_refresh(policy, table, number)
    if meta[0] & SAMPLED:
        policy_log(policy, table, meta, table.slots[number].hash)
        if policy.sizing != NULL and policy.sizing.due >= LEAST_UNMARKED:
            policy_unmark(policy, table)


cdef inline uint8_t policy_miss(Policy *policy, Py_hash_t hash) noexcept nogil:
    """Let the shadows see a new key; return the initial `meta` byte of its entry. Call `policy_prepare` first."""
    cdef uint64_t mixed = mix(policy, hash)
    cdef uint64_t remixed = remix(mixed)
    cdef uint8_t meta = 0
    if policy.shadows != NULL:
        policy.credit = min(policy.credit + 8, MOST_CREDIT)
        if policy.logged:
            policy_flush(policy)
        if mixed >> 32 <= policy.sampled_up_to:
            meta = SAMPLED
            policy.shadows.missed += 1
            policy_sample(policy, mixed, True)
    if policy.setting != LRU and ghost_take(policy, remixed):
        meta |= MAIN
        if policy.shadows != NULL:
            policy_recognize(policy)
    return meta


cdef inline void policy_promote(Policy *policy, Table *table) noexcept nogil:
    """Move the oldest entry of the small queue to the main queue."""
    table.meta[policy.boundary] |= MAIN
    policy.small_load -= load_of(table, policy.boundary)
    policy.main_load += load_of(table, policy.boundary)
    policy.main_count += 1
    policy.boundary = table.ring[policy.boundary].newer


cdef inline uint32_t policy_victim(Policy *policy, Table *table) noexcept nogil:
    """Return the entry to evict next; it is at the end of its queue."""
    cdef uint32_t number
    cdef uint8_t count
    cdef int moves = 0
    if policy.setting == LRU:
        return ring_oldest(table)
    while policy.boundary and (policy.small_load > policy.share or policy.main_count == 0):
        number = policy.boundary
        if table.meta[number] & COUNT < acgsperf_settings[policy.setting].threshold or moves >= MOST_MOVES:
            return number
        moves += 1
        table.meta[number] &= ~COUNT
        policy_promote(policy, table)
    while True:
        number = ring_oldest(table)
        count = table.meta[number] & COUNT
        if count == 0 or moves >= MOST_MOVES:
            return number
        moves += 1
        table.meta[number] = (table.meta[number] & ~COUNT) | (min(count, acgsperf_settings[policy.setting].cap) - 1)
        ring_unlink(table, number)
        ring_insert(table, number, policy.boundary)


cdef inline void policy_remove(Policy *policy, Table *table, uint32_t number, bint evicted) noexcept nogil:
    """Remove an entry that is still in the ring; remember its key if it was evicted to make room."""
    if table.meta[number] & MAIN:
        policy.main_load -= load_of(table, number)
        policy.main_count -= 1
    else:
        policy.small_load -= load_of(table, number)
        if number == policy.boundary:
            policy.boundary = table.ring[number].newer
    if (
        evicted and policy.setting != LRU and policy.ghost != NULL
        and (table.meta[number] & MAIN == 0 or acgsperf_settings[policy.setting].keeps_main)
    ):
        ghost_add(policy, remix(mix(policy, table.slots[number].hash)))


cdef inline void policy_insert(Policy *policy, Table *table, uint32_t number, uint8_t meta) noexcept nogil:
    """Put a new entry into the ring; `meta` is what `policy_miss` returned."""
    cdef int moves = 0
    if policy.setting != LRU:
        while (
            policy.main_load + 1 + policy.share < policy.room and policy.small_load > policy.share and moves < MOST_MOVES
        ):
            policy_promote(policy, table)
            moves += 1
    else:
        meta &= ~MAIN
    table.meta[number] = meta
    if policy.sizing != NULL and policy.sizing.due >= LEAST_UNMARKED:
        policy_unmark(policy, table)
    if meta & MAIN:
        ring_insert(table, number, policy.boundary)
        policy.main_load += load_of(table, number)
        policy.main_count += 1
    else:
        ring_push(table, number)
        policy.small_load += load_of(table, number)
        if policy.boundary == 0:
            policy.boundary = number


cdef inline void policy_restore(Policy *policy, Table *table, uint32_t number, uint8_t meta) noexcept nogil:
    """Put an entry of a saved cache into the ring, as the oldest one of its queue; `meta` has the hits and the queue."""
    meta &= COUNT | MAIN
    if policy.adaptive and policy.size and mix(policy, table.slots[number].hash) >> 32 <= policy.sampled_up_to:
        meta |= SAMPLED
    table.meta[number] = meta
    if meta & MAIN:
        ring_insert(table, number, ring_oldest(table))
        policy.main_load += load_of(table, number)
        policy.main_count += 1
    else:
        # If the small queue is empty, this is 0, and the entry becomes the newest of the ring.
        ring_insert(table, number, policy.boundary)
        policy.boundary = number
        policy.small_load += load_of(table, number)


cdef inline void policy_resume(Policy *policy, int setting) noexcept nogil:
    """Continue with the setting of a saved cache."""
    policy_use(policy, setting)
    policy.timed = False
    if policy.shadows != NULL:
        policy.shadows.setting = setting


cdef inline void policy_renumber(Policy *policy) noexcept nogil:
    """Set the boundary again after the table has renumbered its entries in their order."""
    policy.boundary = policy.main_count + 1 if policy.boundary else 0


cdef inline void policy_resample(Policy *policy, Table *table) noexcept nogil:
    """Decide again, after the size has changed, which entries the shadows see."""
    cdef uint32_t number = ring_oldest(table)
    while number:
        table.meta[number] &= COUNT | MAIN
        if policy.adaptive and policy.size and mix(policy, table.slots[number].hash) >> 32 <= policy.sampled_up_to:
            table.meta[number] |= SAMPLED
        number = table.ring[number].newer


cdef inline void policy_clear(Policy *policy) noexcept nogil:
    """Remove every entry, and keep what was learned."""
    policy.small_load = policy.main_load = 0
    policy.main_count = policy.boundary = 0


cdef inline void policy_reweigh(Policy *policy, Table *table, uint32_t number, uint64_t weight) noexcept nogil:
    """Change the weight of an entry."""
    if table.meta[number] & MAIN:
        policy.main_load += weight - table.weights[number]
    else:
        policy.small_load += weight - table.weights[number]


cdef inline void policy_spare(Policy *policy, Table *table, uint32_t number) noexcept nogil:
    """Make an entry that `policy_victim` has returned the newest of the main queue."""
    if number == policy.boundary:
        policy_promote(policy, table)
    ring_unlink(table, number)
    ring_insert(table, number, policy.boundary)


cdef inline void policy_reset_counters(Policy *policy) noexcept nogil:
    """Set the counters of `stats` to zero."""
    cdef int i
    policy.switches = 0
    policy.earlier = policy.earlier_misses = 0
    if policy.sizing != NULL:
        sizing_reset(policy.sizing)
    if policy.shadows != NULL:
        policy.shadows.samples = policy.shadows.missed = 0
        for i in range(SETTINGS):
            policy.shadows.misses[i] = 0
