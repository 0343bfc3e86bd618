# cython: language_level=3
"""The shadow caches of an `AdaptiveCache`: how often each setting would have missed. Plain C, no Python code runs here.

Miniature simulation (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", USENIX ATC 2017):
a cache of 1/R the size that sees 1/R of the keys misses about as often as the cache itself.  The queues are those of S3-FIFO
(Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023).

All shadow caches share one directory of sampled keys.  A node of it is a tag and a byte for each setting.  The byte is
the queue of the key and its count of hits, or the time of its eviction (a ghost), or 0; for the setting "lru" it is the
number of references in the ring.  A key is in one of two buckets of 8 nodes, because with one bucket for each key a fifth of
the nodes would be overwritten too early.  Everything is in one allocation.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.math cimport pow, sqrt
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    SETTINGS = 6
    FIFOS = 5
    LRU = 5
    PAIRS = 15
    RESIDENT = 0x80
    IN_MAIN = 0x40
    COUNT = 7
    STAMPS = 127
    # The clock of a shadow cache ticks so often for each cache size of evicted keys, or a little less often.
    TICKS = 32
    WAYS = 8
    LARGEST_SHADOW = 19000
    # During a scan the shadow caches see about one new key in so many.
    SCAN_RATE = 8


cdef struct Setting:
    double share
    double ghost
    uint8_t threshold
    uint8_t cap
    uint8_t keeps_main


# 64 bits: one comparison shows whether it is in any shadow cache, see `resident`.
cdef struct Node:
    uint16_t tag
    uint8_t state[SETTINGS]


cdef struct Ring:
    uint16_t *numbers
    uint16_t room
    uint16_t first
    uint16_t length


cdef struct Fifo:
    Ring small
    Ring main
    uint16_t small_size
    uint16_t main_size
    uint16_t share
    uint16_t every
    uint16_t ticks
    uint8_t clock
    uint8_t life
    uint8_t threshold
    uint8_t cap
    uint8_t keeps_main


cdef struct Shadows:
    Node *nodes
    uint64_t samples
    # How often the cache itself missed a sampled key, and how often each shadow cache did.
    uint64_t missed
    uint64_t misses[SETTINGS]
    uint32_t buckets
    uint32_t bytes
    uint32_t refused
    # How many sampled keys in a row were new; those that were skipped count.
    uint32_t strangers
    # How many nodes have no tag yet.
    uint32_t empty
    uint32_t since_decision
    uint32_t every
    uint16_t size
    uint16_t lru_size
    uint16_t epoch_misses
    uint8_t epoch
    uint8_t setting
    # Whether to ignore some new keys if there is no room for them.
    uint8_t refuses
    # The bits of a `Node` that are set if it is in a shadow cache.
    uint64_t resident
    Ring lru
    Fifo fifos[FIFOS]
    double slow_decay
    double fast_decay
    # How many times larger the sample is than that of `sampling_rate`, for which the decisions were tuned.
    double oversampling
    float differences[PAIRS]
    float disagreements[PAIRS]
    float fast_differences[PAIRS]
    float fast_disagreements[PAIRS]
    # By setting: how many more hits it would have had than the settings that were chosen, and in how many requests they
    # disagreed.
    float regrets[SETTINGS]
    float regretted[SETTINGS]
    uint16_t patterns[64]


cdef extern from *:
    """
    static const struct {double share, ghost; unsigned char threshold, cap, keeps_main;} acgsperf_settings[6] = {
        {0.01, 0.5, 2, 7, 0}, {0.01, 2.0, 2, 3, 0}, {0.15, 0.9, 1, 3, 0},
        {0.10, 0.9, 2, 3, 0}, {0.15, 2.0, 2, 7, 1}, {1.0, 0.0, 0, 0, 0},
    };
    """
    const Setting acgsperf_settings[SETTINGS]


cdef inline uint32_t share_of(uint32_t size, double share) noexcept nogil:
    cdef uint32_t part = <uint32_t> (size * share)
    return part if part else 1


cdef inline double sampling_rate(uint32_t size) noexcept nogil:
    """Return R: one key in R is sampled."""
    cdef double rate
    if size <= 128:
        return 1.0
    if size < 500:
        return 1.5
    if size < 2048:
        return 2.4
    rate = 4.0 if size < 4096 else 8.0 if size < 16384 else 16.0
    while size / rate > LARGEST_SHADOW:
        rate *= 2
    return rate


cdef inline void push(Ring *ring, uint16_t number) noexcept nogil:
    cdef uint32_t i = <uint32_t> ring.first + ring.length
    if i >= ring.room:
        i -= ring.room
    ring.numbers[i] = number
    ring.length += 1


cdef inline uint16_t pop(Ring *ring) noexcept nogil:
    cdef uint16_t number = ring.numbers[ring.first]
    ring.first += 1
    if ring.first == ring.room:
        ring.first = 0
    ring.length -= 1
    return number


cdef inline int fifo_remaining(const Shadows *shadows, int f, uint32_t node) noexcept nogil:
    """Return how many ticks the ghost of a node has left; 0 or less if it has expired or there is none."""
    cdef const Fifo *fifo = &shadows.fifos[f]
    cdef int stamp = shadows.nodes[node].state[f]
    cdef int age = fifo.clock - stamp
    if stamp == 0:
        return 0
    return fifo.life - (age if age >= 0 else age + STAMPS)


cdef inline void fifo_remember(Shadows *shadows, int f, uint32_t node) noexcept nogil:
    cdef Fifo *fifo = &shadows.fifos[f]
    shadows.nodes[node].state[f] = fifo.clock
    fifo.ticks += 1
    if fifo.ticks >= fifo.every:
        fifo.ticks = 0
        fifo.clock = fifo.clock % STAMPS + 1


cdef inline void fifo_forget(Shadows *shadows, int f, uint32_t node) noexcept nogil:
    """Remove a node from its queue; its number stays in the ring until it is popped."""
    cdef uint8_t state = shadows.nodes[node].state[f]
    if state & RESIDENT:
        if state & IN_MAIN:
            shadows.fifos[f].main_size -= 1
        else:
            shadows.fifos[f].small_size -= 1
    shadows.nodes[node].state[f] = 0


cdef inline void fifo_squeeze(Shadows *shadows, int f, Ring *ring, int queue) noexcept nogil:
    """Make room in a ring: drop the numbers that are no longer in this queue, else the oldest one."""
    cdef uint32_t i
    cdef uint16_t node
    for i in range(ring.length):
        node = pop(ring)
        if shadows.nodes[node].state[f] & (RESIDENT | IN_MAIN) == RESIDENT | queue:
            push(ring, node)
    if ring.length == ring.room:
        fifo_forget(shadows, f, pop(ring))


cdef inline void fifo_push_small(Shadows *shadows, int f, uint16_t node) noexcept nogil:
    cdef Fifo *fifo = &shadows.fifos[f]
    if fifo.small.length == fifo.small.room:
        fifo_squeeze(shadows, f, &fifo.small, 0)
    shadows.nodes[node].state[f] = RESIDENT
    push(&fifo.small, node)
    fifo.small_size += 1


cdef inline void fifo_push_main(Shadows *shadows, int f, uint16_t node, uint8_t count) noexcept nogil:
    cdef Fifo *fifo = &shadows.fifos[f]
    if fifo.main.length == fifo.main.room:
        fifo_squeeze(shadows, f, &fifo.main, IN_MAIN)
    shadows.nodes[node].state[f] = RESIDENT | IN_MAIN | count
    push(&fifo.main, node)
    fifo.main_size += 1


cdef inline int fifo_pop_small(Shadows *shadows, int f) noexcept nogil:
    """Remove the oldest node of the small queue; -1 if there is none."""
    cdef Fifo *fifo = &shadows.fifos[f]
    cdef uint16_t node
    while fifo.small.length:
        node = pop(&fifo.small)
        if shadows.nodes[node].state[f] & (RESIDENT | IN_MAIN) == RESIDENT:
            fifo.small_size -= 1
            return node
    fifo.small_size = 0
    return -1


cdef inline int fifo_pop_main(Shadows *shadows, int f) noexcept nogil:
    """Remove the oldest node of the main queue; -1 if there is none."""
    cdef Fifo *fifo = &shadows.fifos[f]
    cdef uint16_t node
    while fifo.main.length:
        node = pop(&fifo.main)
        if shadows.nodes[node].state[f] & (RESIDENT | IN_MAIN) == RESIDENT | IN_MAIN:
            fifo.main_size -= 1
            return node
    fifo.main_size = 0
    return -1


cdef inline void fifo_evict(Shadows *shadows, int f) noexcept nogil:
    cdef Fifo *fifo = &shadows.fifos[f]
    cdef int node
    cdef uint8_t count
    while fifo.small_size and (fifo.small_size > fifo.share or not fifo.main_size):
        node = fifo_pop_small(shadows, f)
        if node < 0:
            break
        if shadows.nodes[node].state[f] & COUNT < fifo.threshold:
            fifo_remember(shadows, f, node)
            return
        fifo_push_main(shadows, f, node, 0)
    while True:
        node = fifo_pop_main(shadows, f)
        if node < 0:
            return
        count = shadows.nodes[node].state[f] & COUNT
        if count == 0:
            break
        fifo_push_main(shadows, f, node, min(count, fifo.cap) - 1)
    if fifo.keeps_main:
        fifo_remember(shadows, f, node)
    else:
        shadows.nodes[node].state[f] = 0


cdef inline bint fifo_access(Shadows *shadows, int f, uint16_t node) noexcept nogil:
    """Use a node; return whether it was a hit."""
    cdef Fifo *fifo = &shadows.fifos[f]
    cdef uint8_t state = shadows.nodes[node].state[f]
    cdef bint known
    cdef int oldest
    if state & RESIDENT:
        if state & COUNT < COUNT:
            shadows.nodes[node].state[f] = state + 1
        return True
    known = fifo_remaining(shadows, f, node) > 0
    shadows.nodes[node].state[f] = 0
    if fifo.small_size + fifo.main_size >= shadows.size:
        fifo_evict(shadows, f)
    while fifo.main_size + 1 < shadows.size - fifo.share and fifo.small_size > fifo.share:
        oldest = fifo_pop_small(shadows, f)
        if oldest < 0:
            break
        fifo_push_main(shadows, f, oldest, shadows.nodes[oldest].state[f] & COUNT)
    if known:
        fifo_push_main(shadows, f, node, 0)
    else:
        fifo_push_small(shadows, f, node)
    return False


cdef inline int shadows_resident(const Shadows *shadows, uint32_t node) noexcept nogil:
    """Return in how many shadow caches a node is."""
    cdef int f, found = shadows.nodes[node].state[LRU] > 0
    for f in range(FIFOS):
        found += shadows.nodes[node].state[f] >= RESIDENT
    return found


cdef inline int shadows_empty(const Shadows *shadows, uint32_t first, uint32_t second) noexcept nogil:
    """Return an empty node in the bucket that has more of them, or -1."""
    cdef int firsts = 0, seconds = 0
    cdef uint32_t i
    for i in range(WAYS):
        firsts += shadows.nodes[first + i].tag == 0
        seconds += shadows.nodes[second + i].tag == 0
    if firsts == 0 and seconds == 0:
        return -1
    if firsts < seconds:
        first = second
    while shadows.nodes[first].tag:
        first += 1
    return first


cdef inline int shadows_free(Shadows *shadows, uint32_t first, uint32_t second) noexcept nogil:
    """Return an unused node of two buckets; if all are used, -1 in three of four cases, else the least used one."""
    cdef int best = shadows_empty(shadows, first, second) if shadows.empty else -1
    cdef int fewest = 99, least = STAMPS + 1, remaining, i, f
    cdef const uint8_t *state
    cdef uint64_t bits
    cdef uint32_t node
    if best >= 0:
        shadows.empty -= 1
        return best
    for i in range(2 * WAYS):
        node = first + i if i < WAYS else second + i - WAYS
        memcpy(&bits, &shadows.nodes[node], sizeof(bits))
        if bits & shadows.resident:
            continue
        state = shadows.nodes[node].state
        remaining = 0
        # Start with the setting that remembers longest, and stop when another node is known to be better.
        for f in range(FIFOS - 1, -1, -1):
            if state[f]:
                remaining = max(remaining, fifo_remaining(shadows, f, node))
                if remaining >= least:
                    break
        if remaining < least:
            best = node
            least = remaining
            if remaining == 0:
                break
    if best < 0:
        shadows.refused += 1
        if shadows.refuses and shadows.refused & 3:
            return -1
        for i in range(2 * WAYS):
            node = first + i if i < WAYS else second + i - WAYS
            remaining = shadows_resident(shadows, node)
            if remaining < fewest:
                best = node
                fewest = remaining
    for f in range(FIFOS):
        fifo_forget(shadows, f, best)
    if shadows.nodes[best].state[LRU]:
        shadows.nodes[best].state[LRU] = 0
        shadows.lru_size -= 1
    return best


cdef inline int shadows_find(Shadows *shadows, uint64_t mixed) noexcept nogil:
    """Return the node of a key, a new one if needed; -1 if the access is to be ignored."""
    cdef uint16_t tag = <uint16_t> mixed
    cdef uint64_t other = (mixed ^ mixed >> 31) * <uint64_t> 0x9E3779B97F4A7C15
    cdef uint32_t first = WAYS * <uint32_t> ((other >> 32) * shadows.buckets >> 32)
    cdef uint32_t second = WAYS * <uint32_t> (<uint64_t> <uint32_t> other * shadows.buckets >> 32)
    cdef uint32_t i
    cdef int node
    if tag == 0:
        tag = 1
    for i in range(first, first + WAYS):
        if shadows.nodes[i].tag == tag:
            shadows.strangers = 0
            return i
    for i in range(second, second + WAYS):
        if shadows.nodes[i].tag == tag:
            shadows.strangers = 0
            return i
    shadows.strangers += 1
    node = shadows_free(shadows, first, second)
    if node >= 0:
        shadows.nodes[node].tag = tag
    return node


cdef inline void lru_evict(Shadows *shadows) noexcept nogil:
    cdef uint16_t node
    while shadows.lru.length:
        node = pop(&shadows.lru)
        if shadows.nodes[node].state[LRU]:
            shadows.nodes[node].state[LRU] -= 1
            if shadows.nodes[node].state[LRU] == 0:
                shadows.lru_size -= 1
                return
    shadows.lru_size = 0


cdef inline void lru_miss(Shadows *shadows) noexcept nogil:
    """Begin another epoch after every eighth of the size."""
    shadows.epoch_misses += 1
    if shadows.epoch_misses >= max(1, shadows.size // 8):
        shadows.epoch_misses = 0
        shadows.epoch += 1


cdef inline bint lru_access(Shadows *shadows, uint16_t node) noexcept nogil:
    """Use a node; return whether it was a hit."""
    cdef bint hit = shadows.nodes[node].state[LRU] > 0
    cdef uint32_t i
    cdef uint16_t other
    if not hit:
        if shadows.lru_size >= shadows.size:
            lru_evict(shadows)
        shadows.lru_size += 1
        lru_miss(shadows)
    if shadows.lru.length == shadows.lru.room or shadows.nodes[node].state[LRU] == 255:
        # Keep the last reference to each node.
        for i in range(shadows.lru.length):
            other = pop(&shadows.lru)
            if shadows.nodes[other].state[LRU] == 1:
                push(&shadows.lru, other)
            elif shadows.nodes[other].state[LRU]:
                shadows.nodes[other].state[LRU] -= 1
    push(&shadows.lru, node)
    shadows.nodes[node].state[LRU] += 1
    return hit


cdef inline int pair_of(int one, int other) noexcept nogil:
    """Return the number of a pair of different settings."""
    return max(one, other) * (max(one, other) - 1) // 2 + min(one, other)


cdef inline void shadows_decay(Shadows *shadows) noexcept nogil:
    """Add the requests since the last decision to the figures of each pair, and reduce the weight of older ones."""
    cdef int wins[PAIRS]
    cdef int losses[PAIRS]
    cdef int now = shadows.setting, one, other, pair, hits, times, more
    for pair in range(PAIRS):
        wins[pair] = losses[pair] = 0
    for hits in range(1, 63):
        times = shadows.patterns[hits]
        if times == 0:
            continue
        pair = 0
        for one in range(1, SETTINGS):
            for other in range(one):
                if (hits >> one ^ hits >> other) & 1:
                    if hits >> one & 1:
                        wins[pair] += times
                    else:
                        losses[pair] += times
                pair += 1
    for hits in range(64):
        shadows.patterns[hits] = 0
    for pair in range(PAIRS):
        shadows.differences[pair] = shadows.differences[pair] * shadows.slow_decay + (wins[pair] - losses[pair])
        shadows.disagreements[pair] = shadows.disagreements[pair] * shadows.slow_decay + (wins[pair] + losses[pair])
        shadows.fast_differences[pair] = shadows.fast_differences[pair] * shadows.fast_decay + (wins[pair] - losses[pair])
        shadows.fast_disagreements[pair] = (
            shadows.fast_disagreements[pair] * shadows.fast_decay + (wins[pair] + losses[pair]))
    for other in range(SETTINGS):
        shadows.regrets[other] = shadows.regrets[other] * shadows.slow_decay
        shadows.regretted[other] = shadows.regretted[other] * shadows.slow_decay
        if other != now:
            pair = pair_of(now, other)
            more = wins[pair] - losses[pair]
            shadows.regrets[other] += more if other > now else -more
            shadows.regretted[other] += wins[pair] + losses[pair]


cdef inline double shadows_needed(const Shadows *shadows, double disagreements, double sure, double more) noexcept nogil:
    """Return how many more hits are significant."""
    return sure * sqrt(disagreements * shadows.oversampling) + more * shadows.oversampling


cdef inline int shadows_better(
    const Shadows *shadows, const float *differences, const float *disagreements, double sure, double sure_lru
) noexcept nogil:
    """Return the best of the settings with significantly more hits than the present one, or -1."""
    cdef int now = shadows.setting, best = -1, other, pair
    cdef double most = 0, more, needed
    for other in range(SETTINGS):
        if other == now:
            continue
        pair = pair_of(now, other)
        more = differences[pair] if other > now else -differences[pair]
        if other == LRU:
            # Entering it is expensive: the main queue drains.
            needed = shadows_needed(shadows, disagreements[pair], sure_lru, 8) + 0.03 * shadows.size
        else:
            needed = shadows_needed(shadows, disagreements[pair], sure, 4)
        if more > needed and more > most:
            best, most = other, more
    return best


cdef inline bint shadows_regret(const Shadows *shadows) noexcept nogil:
    """Return whether one setting alone would have had significantly more hits than the settings that were chosen."""
    cdef int other
    for other in range(SETTINGS):
        if shadows.regrets[other] > shadows_needed(shadows, shadows.regretted[other], 2.0, 4):
            return True
    return False


cdef inline void shadows_forget(Shadows *shadows) noexcept nogil:
    """Remove what a scan evicts: all nodes but those in a main queue."""
    cdef uint8_t *state
    cdef uint32_t node
    cdef int f, kept
    for node in range(WAYS * shadows.buckets):
        state = shadows.nodes[node].state
        kept = state[LRU] = 0
        for f in range(FIFOS):
            if state[f] & (RESIDENT | IN_MAIN) != RESIDENT | IN_MAIN:
                state[f] = 0
            kept |= state[f]
        if kept == 0 and shadows.nodes[node].tag:
            shadows.nodes[node].tag = 0
            shadows.empty += 1
    shadows.lru.length = shadows.lru_size = 0
    for f in range(FIFOS):
        shadows.fifos[f].small.length = shadows.fifos[f].small_size = 0


cdef inline void shadows_resume(Shadows *shadows) noexcept nogil:
    """See every key again, if any are skipped."""
    if shadows.strangers >= WAYS * shadows.buckets:
        shadows_forget(shadows)
        shadows.strangers = 0


cdef inline bint shadows_skip(Shadows *shadows) noexcept nogil:
    """Return whether to count an access as a miss of every shadow cache, and do nothing else.

    If as many new keys came in a row as the directory has nodes, this is a scan, and its next keys say nothing.
    """
    cdef int f
    if shadows.strangers < WAYS * shadows.buckets:
        return False
    if shadows.strangers == SCAN_RATE * WAYS * shadows.buckets:
        shadows_resume(shadows)
        return False
    shadows.strangers += 1
    for f in range(SETTINGS):
        shadows.misses[f] += 1
    lru_miss(shadows)
    return True


cdef inline bint shadows_access(Shadows *shadows, uint64_t mixed) noexcept nogil:
    """Access a key of every shadow cache; return whether the setting has changed."""
    cdef int node = shadows_find(shadows, mixed)
    cdef int f, hits = 0, best
    if node < 0:
        return False
    for f in range(FIFOS):
        if fifo_access(shadows, f, node):
            hits |= 1 << f
        else:
            shadows.misses[f] += 1
    if lru_access(shadows, node):
        hits |= 1 << LRU
    else:
        shadows.misses[LRU] += 1
    shadows.patterns[hits] += 1
    shadows.samples += 1
    shadows.since_decision += 1
    if shadows.since_decision < shadows.every:
        return False
    shadows.since_decision = 0
    shadows_decay(shadows)
    best = shadows_better(shadows, shadows.differences, shadows.disagreements, 2.0, 2.5)
    if best < 0 and not shadows_regret(shadows):
        best = shadows_better(shadows, shadows.fast_differences, shadows.fast_disagreements, 4.0, 4.0)
    if best < 0:
        return False
    shadows.setting = best
    return True


cdef inline bint shadows_sample(Shadows *shadows, uint64_t mixed) noexcept nogil:
    """Let the shadow caches see an access to a sampled key; return whether the setting has changed."""
    return False if shadows_skip(shadows) else shadows_access(shadows, mixed)


cdef inline Shadows *shadows_new(uint32_t size, int setting, double oversampling) noexcept nogil:
    """Return shadow caches of `size` nodes each; NULL if there is no memory."""
    cdef uint32_t buckets = max(2, (16 * size + 39) // 40)
    cdef uint32_t nodes = WAYS * buckets
    cdef uint32_t numbers = size + size // 2 + 8
    cdef uint32_t bytes
    cdef Shadows *shadows
    cdef Fifo *fifo
    cdef uint16_t *next
    cdef Node resident
    cdef int f
    resident.tag = 0
    resident.state[LRU] = 0xFF
    for f in range(FIFOS):
        numbers += share_of(size, acgsperf_settings[f].share) + 4 + size + 4
    bytes = sizeof(Shadows) + nodes * sizeof(Node) + numbers * sizeof(uint16_t)
    shadows = <Shadows *> PyMem_RawCalloc(1, bytes)
    if shadows == NULL:
        return NULL
    shadows.nodes = <Node *> (shadows + 1)
    next = <uint16_t *> (shadows.nodes + nodes)
    shadows.bytes = bytes
    shadows.size = size
    shadows.setting = setting
    shadows.oversampling = oversampling
    shadows.refuses = True
    shadows.buckets = buckets
    shadows.empty = nodes
    shadows.every = max(8, size // 4)
    shadows.slow_decay = pow(0.5, shadows.every / (64.0 * size))
    shadows.fast_decay = pow(0.5, shadows.every / (4.0 * size))
    shadows.lru.numbers = next
    shadows.lru.room = size + size // 2 + 8
    next += shadows.lru.room
    for f in range(FIFOS):
        fifo = &shadows.fifos[f]
        fifo.share = share_of(size, acgsperf_settings[f].share)
        fifo.threshold = acgsperf_settings[f].threshold
        fifo.cap = acgsperf_settings[f].cap
        fifo.keeps_main = acgsperf_settings[f].keeps_main
        fifo.every = (size + TICKS - 1) // TICKS
        fifo.life = <uint8_t> max(1.0, acgsperf_settings[f].ghost * size / fifo.every)
        fifo.clock = 1
        fifo.small.numbers = next
        fifo.small.room = fifo.share + 4
        next += fifo.small.room
        fifo.main.numbers = next
        fifo.main.room = size + 4
        next += fifo.main.room
        resident.state[f] = RESIDENT
    memcpy(&shadows.resident, &resident, sizeof(resident))
    return shadows
