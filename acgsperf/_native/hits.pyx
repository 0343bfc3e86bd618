# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The part of the HTTP response cache that runs for each hit in L1."""

import time

cimport cython
from libc.stdint cimport int64_t

cdef extern from "platform.h" nogil:
    int64_t acgsperf_monotonic_ns()

IMPLEMENTATION = "c"

cdef object monotonic = time.monotonic


@cython.final
cdef class HitFinder:
    """HitFinder(read, targets, get_local, ticks, prepare)
--

    Finds responses that are ready to be sent, for requests without headers that the cache reads.

    Args:
        read: the names of the headers that the cache reads.
        targets: has an object with the key in L1, `uri`, for each raw path, query, host and scheme.
        get_local: returns what L1 has for a key: a list with a response.
        ticks: the clock, in seconds.
        prepare: called with a response that has no answer in its attribute `ready`, or one of another finder, or an
            expired one. Returns the answer; None if the general path must look for one. An answer is a tuple of its
            finder, the time until which it is ready, and what else the caller needs.

    Attributes:
        hits: the number of answers so far.
    """

    cdef public long long hits
    cdef frozenset read
    cdef object targets, get_local, ticks, prepare
    cdef bint monotonic_clock

    def __init__(self, frozenset read not None, targets, get_local, ticks, prepare):
        self.hits = 0
        self.read = read
        self.targets = targets
        self.get_local = get_local
        self.ticks = ticks
        self.monotonic_clock = ticks is monotonic
        self.prepare = prepare

    cdef double now(self) except? -1.0:
        return acgsperf_monotonic_ns() * 1e-9 if self.monotonic_clock else <double> self.ticks()

    def find(self, scope, /):
        """Return the answer to a GET without a body, and count it; None if the general path must look for one."""
        cdef object host = None, name, value, cell, stored
        cdef tuple answer
        for name, value in scope["headers"]:
            if name in self.read:
                if host is not None or name != b"host":
                    return None
                host = value
        try:
            cell = self.targets[scope["raw_path"], scope["query_string"], host, scope["scheme"]]
        except (KeyError, TypeError):
            return None
        cell = self.get_local(cell.uri)
        if type(cell) is not list or len(cell) != 1:
            return None
        stored = cell[0]
        answer = getattr(stored, "ready", None)
        if answer is None or answer[0] is not self or self.now() >= <double> answer[1]:
            answer = self.prepare(stored)
            if answer is None:
                return None
        self.hits += 1
        return answer
