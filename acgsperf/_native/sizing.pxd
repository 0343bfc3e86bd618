# cython: language_level=3
"""What an `AdaptiveCache` would hit if it were smaller or larger. Plain C, no Python code runs here.

Each size has shadow caches of its own (see `shadows.pxd`), except the present size, whose shadow caches the policy has
anyway.  A large size has a small share of the keys in its sample, so that its shadow caches are small, too.

The estimate compares how often a shadow cache has missed a key with how often the cache itself has missed a key of the
same sample.  So it does not matter which popular keys are in the sample.

The shadow caches see every miss of a sampled key.  Its hits are logged for them (see `policy_log`), at most three times
before a cache of half the size might evict it.  If hits are much more frequent than misses, they are logged in one of
PHASES phases only, which counts for the following ones, too.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from acgsperf._native.shadows cimport LRU, Shadows, sampling_rate, shadows_new, shadows_sample

cdef enum:
    # The sizes: half, once, twice and four times the size of the cache.
    SIZES = 4
    ONCE = 1
    # Up to this many entries, the shadow caches of a size see every key; of a larger size they see about this many. With a
    # sample of 512, the estimate for a loop that just fits was wrong by up to 99 points.
    LARGEST_SIZING = 2048
    PHASES = 32
    # A phase is so many sampled requests for each entry of the shadow caches of half the size. The first part of it does
    # not count if no hits were logged before.
    PHASE = 16
    WARM_UP = 8
    # How many logged hits are acceptable for each miss of the cache.
    HITS_A_MISS = 4


# The misses of one size. The first of the pair is for LRU, the second for the setting that the shadow caches of this size
# have chosen.
cdef struct Tally:
    # How often the cache itself has missed a key of the sample, and how often the shadow caches have.
    double missed
    double misses[2]


cdef struct Sizing:
    Shadows *shadows[SIZES]
    uint32_t sampled_up_to[SIZES]
    Tally tallies[SIZES]
    # The misses of logged hits in the last phase that counts, which are not in `tallies` yet; the hits of the cache in this
    # phase, and those after it.
    uint64_t recent[SIZES][2]
    uint64_t counted
    uint64_t uncounted
    double rate
    # How many entries are to be unmarked now, and after each miss of half the size; the last one; see `policy_unmark`.
    double due
    double step
    uint32_t unmarked
    # The present phase: its requests, those until it ends, its misses and its logged hits.
    uint64_t length
    uint64_t remaining
    uint64_t missed
    uint64_t logged
    # Until so many requests remain, the shadow caches only warm up.
    uint64_t counts_from
    # Whether hits are logged now.
    uint8_t logs
    # Whether this is the first phase, when the shadow caches are not full: it says nothing about later ones.
    uint8_t is_first


cdef inline double size_factor(int scale) noexcept nogil:
    return 0.5 * (1 << scale)


cdef inline double sizing_rate(uint32_t size) noexcept nogil:
    """Return R if other sizes are estimated: one key in R is sampled."""
    return min(sampling_rate(size), max(1.0, size / <double> LARGEST_SIZING))


cdef inline void sizing_free(Sizing *sizing) noexcept nogil:
    cdef int scale
    if sizing == NULL:
        return
    for scale in range(SIZES):
        if scale != ONCE:
            PyMem_RawFree(sizing.shadows[scale])
    PyMem_RawFree(sizing)


cdef inline Sizing *sizing_new(uint32_t size, Shadows *once) noexcept nogil:
    """Return the shadow caches for other sizes than `size`, whose own are `once`; NULL if there is no memory."""
    cdef Sizing *sizing = <Sizing *> PyMem_RawCalloc(1, sizeof(Sizing))
    cdef double entries, rate
    cdef uint32_t nodes
    cdef int scale
    if sizing == NULL:
        return NULL
    sizing.rate = sizing_rate(size)
    for scale in range(SIZES):
        entries = size * size_factor(scale)
        rate = sizing.rate
        if scale == ONCE:
            sizing.shadows[scale] = once
        else:
            nodes = <uint32_t> max(1.0, min(entries / rate, <double> LARGEST_SIZING))
            rate = max(rate, entries / nodes)
            sizing.shadows[scale] = shadows_new(nodes, once.setting, max(1.0, sampling_rate(<uint32_t> entries) / rate))
            if sizing.shadows[scale] == NULL:
                sizing_free(sizing)
                return NULL
            sizing.shadows[scale].refuses = False
        sizing.sampled_up_to[scale] = <uint32_t> min(<double> 0xFFFFFFFF, 4294967296.0 / rate)
    sizing.step = 8.0 * size / sizing.shadows[0].size
    sizing.logs = sizing.is_first = True
    sizing.length = sizing.remaining = sizing.counts_from = PHASE * <uint64_t> max(1.0, size / 2 / sizing.rate)
    return sizing


cdef inline size_t sizing_bytes(const Sizing *sizing) noexcept nogil:
    cdef size_t bytes = sizeof(Sizing)
    cdef int scale
    for scale in range(SIZES):
        if scale != ONCE:
            bytes += sizing.shadows[scale].bytes
    return bytes


cdef inline Tally sizing_tally(const Sizing *sizing, int scale) noexcept nogil:
    """Return the misses of a size so far."""
    cdef Tally tally = sizing.tallies[scale]
    cdef double weight = 1.0 + <double> sizing.uncounted / max(<uint64_t> 1, sizing.counted)
    tally.misses[0] += weight * sizing.recent[scale][0]
    tally.misses[1] += weight * sizing.recent[scale][1]
    return tally


cdef inline void sizing_settle(Sizing *sizing) noexcept nogil:
    """Let the last phase count for itself and for the hits since then that were not counted."""
    cdef int scale
    for scale in range(SIZES):
        sizing.tallies[scale] = sizing_tally(sizing, scale)
        sizing.recent[scale][0] = sizing.recent[scale][1] = 0
    sizing.counted = sizing.uncounted = 0


cdef inline void sizing_start_phase(Sizing *sizing) noexcept nogil:
    """Decide whether to log hits in the next phase."""
    sizing.remaining = sizing.counts_from = sizing.length
    if not sizing.logs:
        sizing.logs = True
        sizing.counts_from -= sizing.length // WARM_UP
    elif sizing.logged > HITS_A_MISS * sizing.rate * sizing.missed and not sizing.is_first:
        sizing.logs = False
        sizing.remaining *= PHASES - 1
    sizing.is_first = False
    sizing.missed = sizing.logged = 0


cdef inline void sizing_count(Sizing *sizing, bint missed) noexcept nogil:
    """Count a request for a sampled key, which the cache itself has missed or hit."""
    if sizing.remaining == 0:
        sizing_start_phase(sizing)
    if sizing.logs and sizing.remaining == sizing.counts_from:
        sizing_settle(sizing)
    sizing.remaining -= 1
    if sizing.logs and sizing.remaining < sizing.counts_from:
        sizing.counted += not missed
    else:
        sizing.uncounted += not missed


cdef inline bint sizing_sample(Sizing *sizing, uint64_t mixed, uint64_t remixed, bint missed) noexcept nogil:
    """Let the shadow caches see a miss or a logged hit; return whether those of the present size have changed the setting.

    Args:
        mixed, remixed: hashes of the key; the first one decides which sizes have it in their sample.
        missed: whether the cache itself has missed the key.
    """
    cdef Shadows *shadows
    cdef Tally *tally
    cdef uint64_t lru, chosen
    cdef bint changed, has_changed = False, counts
    cdef int scale, setting
    if missed:
        sizing.missed += 1
        if not sizing.logs and sizing.missed > sizing.length // WARM_UP:
            # Misses are frequent again.
            sizing.remaining = 0
        sizing_count(sizing, True)
    else:
        sizing.logged += 1
    counts = sizing.logs and sizing.remaining < sizing.counts_from
    for scale in range(SIZES):
        if mixed >> 32 > sizing.sampled_up_to[scale]:
            continue
        shadows, tally = sizing.shadows[scale], &sizing.tallies[scale]
        setting = shadows.setting
        lru, chosen = shadows.misses[LRU], shadows.misses[setting]
        changed = shadows_sample(shadows, remixed)
        lru, chosen = shadows.misses[LRU] - lru, shadows.misses[setting] - chosen
        if scale == ONCE:
            has_changed = changed
        elif scale == 0 and lru:
            # After an eighth of its entries were replaced, all entries may be logged again.
            sizing.due += sizing.step
        if missed:
            tally.missed += 1
            tally.misses[0] += lru
            tally.misses[1] += chosen
        elif counts:
            sizing.recent[scale][0] += lru
            sizing.recent[scale][1] += chosen
    return has_changed


cdef inline void sizing_reset(Sizing *sizing) noexcept nogil:
    """Set the counts to zero."""
    cdef Tally none
    cdef int scale
    none.missed = none.misses[0] = none.misses[1] = 0
    for scale in range(SIZES):
        sizing.tallies[scale] = none
        sizing.recent[scale][0] = sizing.recent[scale][1] = 0
    sizing.counted = sizing.uncounted = 0
