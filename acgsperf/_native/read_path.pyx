# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The common read of a lower tier: `ReadPath` in the cache, `ReadQueue` and `answer` in the tier.

A read costs a few microseconds, most of them in the event loop and in the parser of the server's reply.  This module
has what the cache and the tier add to that for each key.
"""

import time

cimport cython
from cpython.object cimport PyObject_Call
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()

cdef extern from "platform.h" nogil:
    int64_t acgsperf_monotonic_ns()

IMPLEMENTATION = "c"

cdef object monotonic = time.monotonic
cdef tuple NOTHING = ()


@cython.final
cdef class ReadPath:
    """ReadPath(held, start, promotion, clock, packed=None, typed=False)
--

    What happens before and after the `await` of a common read: one that a lower tier answers with a fresh entry.

    If `begin` or `end` finds that a read is not common, it does nothing, and `Lookup` answers the read.

    Args:
        held: collections of the keys that this process holds besides the `LRUCache`. A read of one of them is not
            common.
        start: starts a read of the first tier, and returns a future; None if the read is not common.
        promotion: has `hits`, a cache of the number of hits by key, and `threshold`. The hit that reaches the threshold
            is not common.
        clock: the clock of the entries.
        packed: the type of values that a codec must open. A read of one is not common.
        typed: whether a codec must open every value. Then no answer is common before it has done so.
    """

    cdef public bint enabled
    cdef tuple held
    cdef object start, promotion, get_hits, set_hits, clock, packed
    cdef bint monotonic_clock, typed

    def __init__(self, tuple held not None, start, promotion, clock, packed=None, bint typed=False):
        self.enabled = False
        self.held = held
        self.start = start
        self.promotion = promotion
        self.get_hits = promotion.hits.get
        self.set_hits = promotion.hits.set
        self.clock = clock
        self.packed = packed
        self.typed = typed
        self.monotonic_clock = clock is monotonic

    def begin(self, key, /):
        """Start the read of a key, and return its future; None if the read is not common, and nothing was done."""
        if not self.enabled or type(key) is not str:
            return None
        for held in self.held:
            if held and key in held:
                return None
        return self.start(key)

    def end(self, key, entry, /):
        """Count a hit, and return whether the entry is the answer; if not, nothing was done."""
        return False if self.typed else self.is_answer(key, entry)

    def end_opened(self, key, entry, /):
        """`end` for an entry whose value a codec has opened."""
        return self.is_answer(key, entry)

    cdef inline bint is_answer(self, key, entry) except -1:
        if entry is None or entry.negative or type(entry.value) is self.packed:
            return False
        fresh_until = entry.fresh_until
        if fresh_until is not None:
            if self.monotonic_clock:
                if acgsperf_monotonic_ns() >= <double> fresh_until * 1e9:
                    return False
            elif self.clock() >= fresh_until:
                return False
        hits = self.get_hits(key, 0) + 1
        if hits >= self.promotion.threshold:
            return False
        self.set_hits(key, hits)
        return True


@cython.final
cdef class ReadQueue:
    """ReadQueue(new_future, schedule)
--

    Reads of single keys that wait for the next batch.

    Args:
        new_future: makes the future of a read; gets the event loop as the keyword argument `loop`.
        schedule: called after a read was added while `scheduled` was False.
    """

    cdef readonly list keys, futures
    cdef public bint scheduled
    cdef object new_future, schedule, check_use, breaker, closed, pending
    cdef dict options
    cdef unsigned long thread

    def __init__(self, new_future, schedule):
        self.keys = []
        self.futures = []
        self.scheduled = False
        self.new_future = new_future
        self.schedule = schedule
        self.check_use = self.breaker = self.closed = self.pending = None
        self.options = {"loop": None}
        self.thread = 0

    def guard(self, check_use, breaker, closed, pending, /):
        """Set when `begin` may add a key.

        Args:
            check_use: raises an error if the queue must not be used in this thread and event loop.
            breaker: its attribute `state` must be `closed`.
            closed: the state of a breaker that allows reads.
            pending: a collection that must not contain the key.
        """
        self.check_use = check_use
        self.breaker = breaker
        self.closed = closed
        self.pending = pending

    def open(self, loop, /):
        """Make futures of this event loop from now on. Call it in the thread of the loop."""
        self.options = {"loop": loop}
        self.thread = PyThread_get_thread_ident()

    def begin(self, key, /):
        """Add a key and return its future; None if the breaker is not closed, or if the key is pending."""
        # The check gets the running loop, which needs a system call on 3.11, so only the first read of a batch does it.
        # While reads of this loop wait, no other loop can run in this thread.
        if not self.keys or PyThread_get_thread_ident() != self.thread:
            self.check_use()
        if self.breaker.state is not self.closed or key in self.pending:
            return None
        future = PyObject_Call(self.new_future, NOTHING, self.options)
        self.drop_orphan()
        self.keys.append(key)
        self.futures.append(future)
        if not self.scheduled:
            self.schedule()
        return future

    def take(self, Py_ssize_t most, /):
        """Remove the oldest keys, at most `most`. Return them and their futures."""
        self.drop_orphan()
        cdef list keys = self.keys, futures = self.futures
        cdef list later_keys = keys[most:], later_futures = futures[most:]
        cdef tuple taken = (keys, futures) if len(keys) <= most else (keys[:most], futures[:most])
        # Nothing is changed before all memory is there.
        self.keys, self.futures = later_keys, later_futures
        return taken

    cdef inline int drop_orphan(self) except -1:
        """Drop a key whose future could not be added, because there was no memory. Each future must be at the place of
        its key: otherwise it would get the value of another one."""
        if len(self.keys) > len(self.futures):
            self.keys.pop()
        return 0


def answer(list futures not None, list found not None, /):
    """Give each future the value at its position; None if there are fewer values.

    A future that is done, because its caller was cancelled, stays as it is.
    """
    cdef Py_ssize_t at = 0
    for future in futures:
        value = found[at] if at < len(found) else None
        at += 1
        try:
            future.set_result(value)
        except Exception:
            if not future.done():
                raise
