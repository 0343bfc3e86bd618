# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The common read of a lower tier: `ReadPath`.

A read costs a few microseconds, most of them in the event loop and in the parser of the server's reply.  This module
has what the cache adds to that.
"""

import time

cimport cython
from libc.stdint cimport int64_t

cdef extern from "platform.h" nogil:
    int64_t acgsperf_monotonic_ns()

IMPLEMENTATION = "c"

cdef object monotonic = time.monotonic


@cython.final
cdef class ReadPath:
    """ReadPath(held, start, promotion, clock)
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
    """

    cdef public bint enabled
    cdef tuple held
    cdef object start, promotion, get_hits, set_hits, clock
    cdef bint monotonic_clock

    def __init__(self, tuple held not None, start, promotion, clock):
        self.enabled = False
        self.held = held
        self.start = start
        self.promotion = promotion
        self.get_hits = promotion.hits.get
        self.set_hits = promotion.hits.set
        self.clock = clock
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
        if entry is None or entry.negative:
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
