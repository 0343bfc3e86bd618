# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: nonecheck=True, wraparound=False, freethreading_compatible=True
"""Learns which key is requested after which: `Predictor`.

Two tables remember one successor for each context: the last two keys (order 2), and the last key (order 1).  A prediction
belongs to a class, by the order, the confidence and the depth.  The predictor measures how often the predictions of each
class come true, and only proposes keys of classes that are precise.  Until then, it remembers what it would have
proposed, in a second buffer that has no values.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject, PyObject_Hash
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from acgsperf._native import predicting
from acgsperf._native.predicting import checked_buffer, checked_depth, checked_table_size

cdef extern from "platform.h" nogil:
    void acgsperf_prefetch(const void *address)

IMPLEMENTATION = "c"

cdef enum:
    WAYS = 4
    LINE = 64
    MOST_COUNT = 3
    BANDS = 4
    CLASSES = 32
    TIMINGS = 2 * BANDS
    # Classes: 8 times what the tables say, and the band of the depth.
    CONFIDENT = BANDS
    ORDER_1 = 0
    BESIDE_2 = 2 * BANDS
    ORDER_2 = 4 * BANDS
    CONFIRMED_2 = 6 * BANDS
    FREE = 0
    FETCHING = 1
    FETCHED = 2

cdef uint32_t LIVES = predicting.LIVES
cdef uint32_t STEPS = predicting.STEPS
cdef uint32_t LONGEST_STEP = predicting.LONGEST_STEP
cdef int LEAST_RESOLVED = predicting.LEAST_RESOLVED
cdef int MOST_RESOLVED = predicting.MOST_RESOLVED
cdef uint32_t RETRY = predicting.RETRY
cdef uint32_t MOST_DEPTH = predicting.MOST_DEPTH
cdef double ON = predicting.ON
cdef double OFF = predicting.OFF
cdef double DEEPER = predicting.DEEPER
cdef double IN_TIME = predicting.IN_TIME
cdef double WASTE = predicting.WASTE
cdef uint64_t WINDOW = predicting.WINDOW
cdef uint64_t MULTIPLIER = 0x9E3779B97F4A7C15
cdef uint64_t SECOND_MULTIPLIER = 0xD6E8FEB86659FD93


# What follows a context.
cdef struct Successor:
    PyObject *key
    uint32_t tag
    uint8_t count


# A predicted key.
cdef struct Item:
    uint64_t hash
    # A bit for each class that has predicted it.
    uint32_t classes
    # The event at which it was predicted.
    uint32_t born
    uint32_t newer
    uint32_t older
    # The next item with the same head; for a free item, the next free one.
    uint32_t chain
    uint8_t state
    uint8_t timing


# Items in order of age. Item 0 is none.
cdef struct Buffer:
    Item *items
    uint32_t *heads
    uint32_t mask
    uint32_t size
    uint32_t length
    uint32_t oldest
    uint32_t newest
    uint32_t free


cdef inline uint64_t mix(uint64_t hash) noexcept nogil:
    hash *= MULTIPLIER
    return (hash ^ hash >> 32) * SECOND_MULTIPLIER


cdef inline uint64_t mix_two(uint64_t before, uint64_t hash) noexcept nogil:
    return mix(mix(before) ^ hash)


cdef inline uint64_t context_of(str before, str last) except? 0:
    return mix_two(<uint64_t> <Py_hash_t> PyObject_Hash(before), <uint64_t> <Py_hash_t> PyObject_Hash(last))


cdef inline int band_of(int depth) noexcept nogil:
    return 0 if depth == 1 else 1 if depth == 2 else 2 if depth <= 4 else 3


cdef bint buffer_init(Buffer *buffer, uint32_t size) noexcept nogil:
    cdef uint32_t i, heads = 1
    while heads < size:
        heads *= 2
    buffer.items = <Item *> PyMem_RawCalloc(size + 1, sizeof(Item))
    buffer.heads = <uint32_t *> PyMem_RawCalloc(heads, sizeof(uint32_t))
    if buffer.items == NULL or buffer.heads == NULL:
        return False
    buffer.mask = heads - 1
    buffer.size = size
    for i in range(1, size):
        buffer.items[i].chain = i + 1
    buffer.free = 1
    return True


cdef inline uint32_t *buffer_head(const Buffer *buffer, uint64_t hash) noexcept nogil:
    return &buffer.heads[mix(hash) >> 32 & buffer.mask]


cdef inline uint32_t buffer_find(const Buffer *buffer, uint64_t hash) noexcept nogil:
    """Return the number of an item, 0 if there is none."""
    cdef uint32_t number = buffer_head(buffer, hash)[0]
    while number and buffer.items[number].hash != hash:
        number = buffer.items[number].chain
    return number


cdef inline uint32_t buffer_add(Buffer *buffer, uint64_t hash) noexcept nogil:
    """Add the newest item, and return its number. The buffer must not be full."""
    cdef uint32_t number = buffer.free
    cdef Item *item = &buffer.items[number]
    cdef uint32_t *head = buffer_head(buffer, hash)
    buffer.free = item.chain
    item.hash = hash
    item.chain = head[0]
    head[0] = number
    item.newer = 0
    item.older = buffer.newest
    if buffer.newest:
        buffer.items[buffer.newest].newer = number
    else:
        buffer.oldest = number
    buffer.newest = number
    buffer.length += 1
    return number


cdef inline void buffer_remove(Buffer *buffer, uint32_t number) noexcept nogil:
    cdef Item *item = &buffer.items[number]
    cdef uint32_t *link = buffer_head(buffer, item.hash)
    while link[0] != number:
        link = &buffer.items[link[0]].chain
    link[0] = item.chain
    if item.newer:
        buffer.items[item.newer].older = item.older
    else:
        buffer.newest = item.older
    if item.older:
        buffer.items[item.older].newer = item.newer
    else:
        buffer.oldest = item.newer
    item.state = FREE
    item.chain = buffer.free
    buffer.free = number
    buffer.length -= 1


cdef class _Table:
    """The successor of each context, in buckets of four."""

    cdef void *memory
    # A bucket is 64 bytes, and aligned: it is in one cache line.
    cdef Successor *slots
    cdef uint64_t buckets

    def __cinit__(self, size_t size):
        self.buckets = size // WAYS
        self.memory = PyMem_RawCalloc((self.buckets + 1) * WAYS, sizeof(Successor))
        if self.memory == NULL:
            raise MemoryError
        self.slots = <Successor *> ((<size_t> self.memory + LINE - 1) & ~<size_t> (LINE - 1))

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        cdef size_t i
        if self.slots == NULL:
            return
        for i in range(self.buckets * WAYS):
            if self.slots[i].key != NULL:
                Py_DECREF(<object> self.slots[i].key)
                self.slots[i].key = NULL
        PyMem_RawFree(self.memory)
        self.memory = NULL
        self.slots = NULL

    cdef inline Successor *bucket(self, uint64_t context) noexcept:
        return self.slots + WAYS * ((context >> 32) * self.buckets >> 32)

    cdef inline Successor *find(self, uint64_t context) noexcept:
        cdef Successor *slot = self.bucket(context)
        cdef int i
        for i in range(WAYS):
            if slot[i].tag == <uint32_t> context and slot[i].key != NULL:
                return &slot[i]
        return NULL

    cdef int learn(self, uint64_t context, str key) except -1:
        cdef Successor *slot = self.find(context)
        cdef PyObject *old
        cdef int i
        if slot != NULL:
            if <str> slot.key == key:
                if slot.count < MOST_COUNT:
                    slot.count += 1
                return 0
            if slot.count > 1:
                slot.count -= 1
                return 0
        else:
            slot = self.weakest(context)
        old = slot.key
        Py_INCREF(key)
        slot.key = <PyObject *> key
        slot.tag = <uint32_t> context
        slot.count = 1
        if old != NULL:
            Py_DECREF(<object> old)
        return 0

    cdef inline Successor *weakest(self, uint64_t context) noexcept:
        """Return a slot for a new context: an empty one, else the one with the lowest count; the others age."""
        cdef Successor *slot = self.bucket(context)
        cdef int i, chosen = 0
        for i in range(WAYS):
            if slot[i].key == NULL:
                return &slot[i]
            if slot[i].count < slot[chosen].count:
                chosen = i
        for i in range(WAYS):
            if slot[i].count:
                slot[i].count -= 1
        return &slot[chosen]


@cython.final
cdef class Predictor:
    """Predictor(size, /, *, depth=2, table_size=65536)
--

    Learns which keys are requested after which, and holds the values of predicted keys until they are requested.

    Call it for the requests that the cache misses. If `take` returns a value, the request was predicted: store the value
    in the cache. Otherwise read it. In both cases call `next` afterwards, fetch the keys that it returns, and pass each
    value to `store`, or the key to `fail` if there is none.

    The keys are `str`. Use it in one event loop.

    Args:
        size: the most values to hold.
        depth: how many requests to predict ahead, 1 to 8. If most values arrive late that the first use of a predicted
            value fetches, a miss predicts twice as many instead, at most 8.
        table_size: the contexts to remember in each of two tables, at least 64. Each takes 16 bytes, besides its key.

    Attributes:
        depth: how many requests to predict ahead. May be changed at any time.
        reserved: by how many entries the cache should be smaller now, because this object holds values: 0 to `size`.
    """

    cdef readonly uint32_t size, table_size, reserved
    cdef uint32_t _depth, reach, longer_reach
    cdef uint64_t issued, used, wasted, late
    cdef _Table pairs, singles
    cdef Buffer real, virtual
    cdef list keys_of, values_of
    cdef uint64_t before, last
    cdef uint32_t events
    # By class: the resolved predictions and those that came true, halved now and then, and whether it is active.
    cdef uint8_t resolved[CLASSES]
    cdef uint8_t true[CLASSES]
    cdef uint8_t active[CLASSES]
    # By the place of the proposal: the same for the values that were requested after they had arrived.
    cdef uint8_t arrived[TIMINGS]
    cdef uint8_t in_time[TIMINGS]
    cdef uint8_t too_slow[TIMINGS]
    cdef uint32_t since_retry
    # The requests and the useless fetches in the present window.
    cdef uint64_t requests, window_start, window_wasted

    def __cinit__(self, size, /, *, depth=2, table_size=65_536):
        self.size = checked_buffer(size)
        self.depth = depth
        self.table_size = checked_table_size(table_size)
        self.pairs = _Table(self.table_size)
        self.singles = _Table(self.table_size)
        self.keys_of = [None] * (self.size + 1)
        self.values_of = [None] * (self.size + 1)
        if not buffer_init(&self.real, self.size) or not buffer_init(&self.virtual, self.size):
            raise MemoryError

    @property
    def depth(self):
        return self._depth

    @depth.setter
    def depth(self, depth):
        self._depth = checked_depth(depth)
        # The values of a longer chain would not fit.
        self.longer_reach = min(min(2 * self._depth, MOST_DEPTH), max(1, self.size // 2))
        self.reach = min(self._depth, self.longer_reach)

    def __dealloc__(self):
        PyMem_RawFree(self.real.items)
        PyMem_RawFree(self.real.heads)
        PyMem_RawFree(self.virtual.items)
        PyMem_RawFree(self.virtual.heads)

    @cython.critical_section
    def __len__(self):
        """The values that are held or being fetched."""
        return self.real.length

    @cython.critical_section
    def __contains__(self, str key not None):
        """Whether the value of a key is held."""
        cdef uint32_t number = self.number_of(key)
        return number != 0 and self.real.items[number].state == FETCHED

    def __sizeof__(self):
        return (
            object.__sizeof__(self)
            + 2 * (<size_t> self.pairs.buckets * WAYS * sizeof(Successor))
            + 2 * (<size_t> self.size * sizeof(Item) + (<size_t> self.real.mask + 1) * sizeof(uint32_t))
            + 2 * <size_t> self.size * sizeof(PyObject *))

    @cython.critical_section
    def take(self, str key not None, default=None, /):
        """Return the value of a predicted key, and stop holding it; `default` if there is none.

        If the value has not arrived, the prediction was late, and what arrives later is dropped.
        """
        cdef uint32_t number = self.number_of(key)
        cdef uint8_t timing
        cdef bint in_time
        if number == 0:
            return default
        in_time = self.real.items[number].state == FETCHED
        timing = self.real.items[number].timing
        self.resolve(self.real.items[number].classes, True)
        self.time(timing, in_time)
        if in_time:
            self.used += 1
            value = self.values_of[number]
        else:
            self.late += 1
            self.window_wasted += 1
            value = default
        self.remove(number)
        return value

    @cython.critical_section
    def next(self, str key not None, held, requests, bint first_use, /):
        """Learn that a key was requested, and return the keys to fetch.

        Args:
            key: not in the cache, or returned by `take`.
            held: a collection; keys in it need not be fetched.
            requests: how many requests the cache has had. The useless fetches are limited to 5 % of them.
            first_use: whether `take` has returned a value.
        """
        cdef uint64_t hash = <uint64_t> <Py_hash_t> PyObject_Hash(key)
        cdef list wanted = []
        # The tables are larger than most processor caches. What follows the key is looked up at the end.
        acgsperf_prefetch(self.singles.bucket(mix(hash)))
        acgsperf_prefetch(self.pairs.bucket(mix_two(self.last, hash)))
        self.count_requests(requests)
        self.events += 1
        self.expire()
        cdef uint32_t number = buffer_find(&self.virtual, hash)
        if number:
            self.resolve(self.virtual.items[number].classes, True)
            buffer_remove(&self.virtual, number)
        if self.events > 1:
            self.singles.learn(mix(self.last), key)
            if self.events > 2:
                self.pairs.learn(mix_two(self.before, self.last), key)
        self.before, self.last = self.last, hash
        self.predict(key, held, first_use, wanted)
        self.reserve()
        return wanted

    @cython.critical_section
    def store(self, str key not None, value, /):
        """Hold the value of a key that `next` has returned; return whether it is still wanted."""
        cdef uint32_t number = self.number_of(key)
        if number == 0 or self.real.items[number].state != FETCHING:
            return False
        self.real.items[number].state = FETCHED
        self.values_of[number] = value
        return True

    @cython.critical_section
    def fail(self, str key not None, /):
        """Count a key that `next` has returned as useless, because it cannot be fetched."""
        cdef uint32_t number = self.number_of(key)
        if number and self.real.items[number].state == FETCHING:
            self.waste(number)

    @cython.critical_section
    def refuse(self, str key not None, /):
        """Count the value of a key that is requested now as useless, because the request cannot use it."""
        cdef uint32_t number = self.number_of(key)
        if number and self.real.items[number].state == FETCHED:
            # The prediction was right.
            self.resolve(self.real.items[number].classes, True)
            self.time(self.real.items[number].timing, True)
            self.wasted += 1
            self.window_wasted += 1
            self.remove(number)

    @cython.critical_section
    def peek(self, str key not None, default=None, /):
        """Return the value that is held for a key, or `default`; count nothing."""
        cdef uint32_t number = self.number_of(key)
        if number == 0 or self.real.items[number].state != FETCHED:
            return default
        return self.values_of[number]

    @cython.critical_section
    def discard(self, str key not None, /):
        """Stop holding or awaiting the value of a key, because the value has changed."""
        cdef uint32_t number = self.number_of(key)
        if number:
            self.remove(number)

    @cython.critical_section
    def clear(self):
        """Stop holding and awaiting values; keep what was learned."""
        while self.real.oldest:
            self.remove(self.real.oldest)

    @cython.critical_section
    def keys(self):
        """Return the keys whose values are held or being fetched, in order of age."""
        cdef list found = []
        cdef uint32_t number = self.real.oldest
        while number:
            found.append(self.keys_of[number])
            number = self.real.items[number].newer
        return found

    @cython.critical_section
    def stats(self):
        """Return the counts so far."""
        from acgsperf._native.prediction_stats import predictor_stats

        return predictor_stats(self.issued, self.used, self.wasted, self.late, self.real.length, self.classes())

    @cython.critical_section
    def _successors(self):
        """Return the keys that follow others."""
        cdef list found = []
        cdef _Table table
        cdef size_t i
        for table in (self.singles, self.pairs):
            for i in range(table.buckets * WAYS):
                if table.slots[i].key != NULL:
                    found.append(<str> table.slots[i].key)
        return found

    @cython.critical_section
    def _successor(self, str before, str last not None, /):
        """Return what follows a key, or two, and how often that has come true; None if that is not known."""
        cdef Successor *slot
        if before is None:
            slot = self.singles.find(mix(<uint64_t> <Py_hash_t> PyObject_Hash(last)))
        else:
            slot = self.pairs.find(context_of(before, last))
        return None if slot == NULL else (<str> slot.key, slot.count)

    @cython.critical_section
    def _learn(self, str before, str last not None, str key not None, int count, /):
        """Learn what follows a key, or two, as often as it has come true."""
        cdef int i
        for i in range(max(1, min(count, MOST_COUNT))):
            if before is None:
                self.singles.learn(mix(<uint64_t> <Py_hash_t> PyObject_Hash(last)), key)
            else:
                self.pairs.learn(context_of(before, last), key)

    @cython.critical_section
    def _classes(self):
        """Return the counts of each class, and whether it is active."""
        return self.classes()

    @cython.critical_section
    def _set_classes(self, classes, /):
        """Continue with the counts of another predictor."""
        cdef int number
        for number, (resolved, true, active) in enumerate(classes[:CLASSES]):
            self.resolved[number] = max(0, min(resolved, MOST_RESOLVED - 1))
            self.true[number] = max(0, min(true, self.resolved[number]))
            self.active[number] = bool(active)

    cdef inline uint32_t number_of(self, str key) except? 0:
        """Return the number of the item of a key, 0 if there is none."""
        cdef uint32_t number = buffer_find(&self.real, <uint64_t> <Py_hash_t> PyObject_Hash(key))
        if number and <str> self.keys_of[number] != key:
            return 0
        return number

    cdef list classes(self):
        """Return the counts of each class, and whether it is active."""
        # Not a comprehension: in the code of Cython 3.3.1, one that has no memory for its list releases an item twice.
        cdef list found = []
        cdef int number
        for number in range(CLASSES):
            found.append((self.resolved[number], self.true[number], bool(self.active[number])))
        return found

    cdef inline void resolve(self, uint32_t classes, bint true) noexcept:
        cdef int number
        for number in range(CLASSES):
            if classes >> number & 1:
                self.resolve_one(number, true)

    cdef void resolve_one(self, int number, bint true) noexcept:
        cdef double precision
        cdef double deeper = DEEPER if number % BANDS >= 2 else 0
        self.resolved[number] += 1
        self.true[number] += true
        if self.resolved[number] >= LEAST_RESOLVED:
            precision = <double> self.true[number] / self.resolved[number]
            if precision >= ON + deeper:
                self.active[number] = True
            elif precision < OFF + deeper:
                self.active[number] = False
        if self.resolved[number] == MOST_RESOLVED:
            self.resolved[number] //= 2
            self.true[number] //= 2

    cdef void time(self, int timing, bint in_time) noexcept:
        """Count whether a value has arrived in time."""
        self.arrived[timing] += 1
        self.in_time[timing] += in_time
        if self.arrived[timing] >= LEAST_RESOLVED:
            self.too_slow[timing] = self.in_time[timing] < IN_TIME * self.arrived[timing]
        if self.arrived[timing] == MOST_RESOLVED:
            self.arrived[timing] //= 2
            self.in_time[timing] //= 2

    cdef inline void count_requests(self, uint64_t requests) noexcept:
        if requests < self.requests:
            self.window_start = requests
            self.window_wasted = 0
        self.requests = requests
        if requests - self.window_start > WINDOW:
            self.window_start += (requests - self.window_start) // 2
            self.window_wasted //= 2

    cdef inline bint may_fetch(self) noexcept:
        """Whether the useless fetches stay below the limit if everything that is held turns out to be useless."""
        return self.window_wasted + self.real.length + 1 <= WASTE * (self.requests - self.window_start)

    cdef int remove(self, uint32_t number) except -1:
        # Dropping the value may run other code, which may use this object.
        value = self.values_of[number]
        self.keys_of[number] = None
        self.values_of[number] = None
        buffer_remove(&self.real, number)
        return 0

    cdef int waste(self, uint32_t number) except -1:
        self.wasted += 1
        self.window_wasted += 1
        self.resolve(self.real.items[number].classes, False)
        return self.remove(number)

    cdef int expire(self) except -1:
        cdef uint32_t life = LIVES * self.size
        cdef uint32_t number = self.real.oldest
        while number and self.events - self.real.items[number].born > life:
            self.waste(number)
            number = self.real.oldest
        number = self.virtual.oldest
        while number and self.events - self.virtual.items[number].born > life:
            self.miss_virtual(number)
            number = self.virtual.oldest
        return 0

    cdef int predict(self, str key, held, bint first_use, list wanted) except -1:
        cdef uint64_t before = self.before, last = self.last
        cdef Successor *pair
        cdef Successor *single
        cdef str following, other
        cdef int depth, band, kind
        cdef uint8_t timing
        # A hit cannot fetch the next value in time, so the miss before it fetches more.
        cdef uint32_t reach = self.longer_reach if self.too_slow[BANDS] and not first_use else self.reach
        for depth in range(1, reach + 1):
            band = band_of(depth)
            timing = BANDS * first_use + band
            pair = self.pairs.find(mix_two(before, last)) if self.events > 1 else NULL
            single = self.singles.find(mix(last))
            other = None
            if pair != NULL:
                following = <str> pair.key
                kind = ORDER_2 + band + (CONFIDENT if pair.count > 1 else 0)
                if single != NULL:
                    if <str> single.key == following:
                        kind += CONFIRMED_2 - ORDER_2
                    else:
                        other = <str> single.key
            elif single != NULL:
                following = <str> single.key
                kind = ORDER_1 + band + (CONFIDENT if single.count > 1 else 0)
            else:
                break
            if following == key:
                break
            if other is not None and other != key:
                self.propose(
                    other, held, BESIDE_2 + band + (CONFIDENT if single.count > 1 else 0), timing, wanted)
            self.propose(following, held, kind, timing, wanted)
            before, last = last, <uint64_t> <Py_hash_t> PyObject_Hash(following)
        return 0

    cdef int propose(self, str key, held, int kind, uint8_t timing, list wanted) except -1:
        """Fetch a key if its class is active, else remember that it would have been fetched."""
        cdef uint64_t hash = <uint64_t> <Py_hash_t> PyObject_Hash(key)
        cdef uint32_t number = buffer_find(&self.real, hash), classes = <uint32_t> 1 << kind
        cdef Item *item
        if number:
            self.real.items[number].classes |= classes
            return 0
        # This may run other code, which may use this object.
        if key in held:
            return 0
        if self.active[kind] and self.may_fetch() and self.may_be_in_time(timing):
            number = buffer_find(&self.virtual, hash)
            if number:
                classes |= self.virtual.items[number].classes
                buffer_remove(&self.virtual, number)
            while self.real.length == self.real.size:
                self.waste(self.real.oldest)
            number = buffer_add(&self.real, hash)
            item = &self.real.items[number]
            self.keys_of[number] = key
            wanted.append(key)
            self.issued += 1
        else:
            number = buffer_find(&self.virtual, hash)
            if number:
                self.virtual.items[number].classes |= classes
                return 0
            if self.virtual.length == self.virtual.size:
                self.miss_virtual(self.virtual.oldest)
            item = &self.virtual.items[buffer_add(&self.virtual, hash)]
        item.state = FETCHING
        item.classes = classes
        item.born = self.events
        item.timing = timing
        return 0

    cdef inline void miss_virtual(self, uint32_t number) noexcept:
        self.resolve(self.virtual.items[number].classes, False)
        buffer_remove(&self.virtual, number)

    cdef inline void reserve(self) noexcept:
        """Adapt `reserved` to what is held, in few steps: each may cost the caller a change of the cache's size."""
        cdef uint32_t step = max(<uint32_t> 1, min(self.size // STEPS, LONGEST_STEP)), length = self.real.length
        if length > self.reserved or length + 2 * step < self.reserved or length == 0:
            self.reserved = min(self.size, (length + step - 1) // step * step)

    cdef inline bint may_be_in_time(self, uint8_t timing) noexcept:
        if not self.too_slow[timing]:
            return True
        self.since_retry += 1
        return self.since_retry % RETRY == 0
