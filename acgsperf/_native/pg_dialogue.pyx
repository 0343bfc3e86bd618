# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Checks that a PostgreSQL server sends only what its client has asked for: an answer that is *due*.

It runs for all data of a connection, so each message of the server costs one table look-up. The table says for each
answer that is due what each type of message does.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memchr, memcpy, memmove

from acgsperf._native import pg_replies
from acgsperf._native.pg_replies import refusal

IMPLEMENTATION = "c"

cdef enum:
    KINDS = 256
    MOST_ANSWERS = 16
    STARTUP_BYTES = 8
    HEADER_BYTES = 5
    # With the first byte after the header.
    DESCRIBE_BYTES = 6
    # The length of a message includes itself.
    LEAST_LENGTH = 4
    # So many answers have room in the object itself.
    FEW = 32

# What a message of the server does.
cdef enum:
    REFUSED = 0
    LEAVES_DUE = 1
    COMPLETES = 2
    SKIPS = 3
    # This number plus an answer: that answer becomes due instead.
    NEXT_DUE = 4

cdef uint8_t[MOST_ANSWERS][KINDS] EFFECTS
# What the server owes for a message of the client: at most two answers.
cdef uint8_t[KINDS][2] OWED
cdef uint8_t[2] OWED_FOR_STATEMENT
cdef int32_t[2] UPGRADE_REQUESTS = pg_replies.UPGRADE_REQUESTS
cdef uint8_t NOTHING = pg_replies.NOTHING
cdef uint8_t SIGN_IN = pg_replies.SIGN_IN
cdef uint8_t SYNCED = pg_replies.SYNCED
cdef uint8_t DESCRIBE = pg_replies.DESCRIBE
cdef uint8_t STATEMENT = pg_replies.STATEMENT
cdef uint8_t SYNC = pg_replies.SYNC


cdef fill_tables():
    cdef int due, kind
    assert len(pg_replies.ANSWERS) <= MOST_ANSWERS and NOTHING == 0
    for due, answer in pg_replies.ANSWERS.items():
        EFFECTS[due][<int> c"E"] = SKIPS
        for kind in pg_replies.ANYTIME + answer.more:
            EFFECTS[due][kind] = LEAVES_DUE
        for kind in answer.last:
            EFFECTS[due][kind] = COMPLETES
        for kind, instead in answer.next_due.items():
            EFFECTS[due][kind] = NEXT_DUE + instead
    for kind, owed in pg_replies.OWED.items():
        OWED[kind][0], OWED[kind][1] = (*owed, NOTHING)[:2]
    OWED_FOR_STATEMENT[0], OWED_FOR_STATEMENT[1] = pg_replies.OWED_FOR_STATEMENT


fill_tables()


cdef inline int32_t read_int32(const uint8_t *at) noexcept nogil:
    return <int32_t> (<uint32_t> at[0] << 24 | <uint32_t> at[1] << 16 | <uint32_t> at[2] << 8 | <uint32_t> at[3])


@cython.final
cdef class Dialogue:
    """Dialogue()
--

    Follows both directions of one connection in PostgreSQL's protocol 3.0, and finds messages that answer nothing.

    Call `sent` before the bytes are written, and `received` before they are used. Both take pieces of any size: only
    the headers of messages are read, and a header may be split. A message counts when its header is complete. Time is
    O(messages). Memory is one byte for each answer that is due, and is released when nothing is due.

    A connection belongs to one event loop. If two threads call the same object, the process does not crash, but what it
    returns is undefined.

    A copy of a reply that arrives after the next request of the same kind was sent cannot be told from its reply.

    Limit: PostgreSQL ignores a Sync that it reads during `COPY ... FROM STDIN`, but here it owes a 'Z'. So a client
    must not send a Sync between the command and the end of its data. asyncpg does not.
    """

    # The answers that are due, in order: `due[first]` up to `due[end]`, of which the object itself has a few.
    cdef uint8_t *due
    cdef Py_ssize_t first, end, capacity
    cdef uint8_t[FEW] few
    # Whether the start-up message was sent.
    cdef bint started
    # Whether the server skips all messages up to the next Sync.
    cdef bint skipping
    # What was refused, if anything.
    cdef bint refused
    cdef uint8_t refused_kind, refused_due
    cdef int32_t refused_length
    # For each direction: the start of a header that is not complete, its size, and how many bytes of a message are to
    # come.
    cdef uint8_t[STARTUP_BYTES] sent_part
    cdef uint8_t[HEADER_BYTES] received_part
    cdef int sent_size, received_size
    cdef Py_ssize_t sent_skip, received_skip

    def __cinit__(self):
        self.due = self.few
        self.capacity = FEW

    def __dealloc__(self):
        if self.due != self.few:
            PyMem_Free(self.due)

    def __sizeof__(self):
        return object.__sizeof__(self) + (0 if self.due == self.few else self.capacity)

    def sent(self, data, /):
        """Note what the client has sent.

        A length that is too small counts as the smallest possible one: the server ends such a connection.

        Args:
            data: the next bytes of the client. May begin and end anywhere in a message.

        Raises:
            TypeError, BufferError: if `data` has no contiguous buffer.
            MemoryError: if there is no memory for the answers that become due. Then the object is no longer useful.
        """
        cdef Py_buffer view
        # Most data is bytes, whose buffer needs no request.
        if PyBytes_CheckExact(data):
            with cython.critical_section(self):
                self.follow(<const uint8_t *> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with cython.critical_section(self):
                self.follow(<const uint8_t *> view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def received(self, data, /):
        """Check what the server has sent.

        Args:
            data: the next bytes of the server. May begin and end anywhere in a message.

        Returns:
            None if every message was due. Otherwise a text that names the first one that was not, and what was due.
            From then on, each call returns the same text: the connection must be aborted.

        Raises:
            TypeError, BufferError: if `data` has no contiguous buffer.
        """
        cdef Py_buffer view
        cdef bint accepted
        if PyBytes_CheckExact(data):
            with cython.critical_section(self):
                accepted = self.accept(<const uint8_t *> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        else:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                with cython.critical_section(self):
                    accepted = self.accept(<const uint8_t *> view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
        return None if accepted else refusal(self.refused_due, self.refused_kind, self.refused_length)

    cdef int follow(self, const uint8_t *at, Py_ssize_t size) except -1:
        """Read messages of the client."""
        cdef const uint8_t *end
        cdef const uint8_t *head
        cdef int needed
        cdef Py_ssize_t rest
        if self.refused:
            return 0
        if self.sent_skip >= size:
            self.sent_skip -= size
            return 0
        end = at + size
        at += self.sent_skip
        self.sent_skip = 0
        while at < end:
            needed = header_size(self.started, at, end - at)
            if self.sent_size == 0 and needed <= end - at:
                head = at
                at += needed
            else:
                head = self.sent_part
                while True:
                    needed = header_size(self.started, head, self.sent_size)
                    if self.sent_size == needed:
                        break
                    if at == end:
                        return 0
                    self.sent_part[self.sent_size] = at[0]
                    self.sent_size += 1
                    at += 1
                self.sent_size = 0
            if self.started:
                self.request(head)
                # The type is not part of the length.
                rest = <Py_ssize_t> max(read_int32(head + 1), LEAST_LENGTH) + 1 - needed
            else:
                self.start(read_int32(head + 4))
                rest = <Py_ssize_t> max(read_int32(head), STARTUP_BYTES) - needed
            if rest > end - at:
                self.sent_skip = rest - (end - at)
                return 0
            at += rest
        return 0

    cdef int start(self, int32_t code) except -1:
        if code != UPGRADE_REQUESTS[0] and code != UPGRADE_REQUESTS[1]:
            self.started = True
            self.owe(SIGN_IN)
        return 0

    cdef inline int request(self, const uint8_t *head) except -1:
        """Owe what answers a message of the client."""
        cdef const uint8_t *owed = OWED[head[0]]
        if head[0] == SYNC:
            self.skipping = False
        if owed[0] == NOTHING or self.skipping:
            return 0
        if head[0] == DESCRIBE and read_int32(head + 1) > LEAST_LENGTH and head[HEADER_BYTES] == STATEMENT:
            owed = OWED_FOR_STATEMENT
        self.owe(owed[0])
        if owed[1] != NOTHING:
            self.owe(owed[1])
        return 0

    cdef inline int owe(self, uint8_t answer) except -1:
        if self.end == self.capacity:
            self.make_room()
        self.due[self.end] = answer
        self.end += 1
        return 0

    cdef int make_room(self) except -1:
        """Move the answers to the start of their memory, or to twice as much if more than half of it is in use."""
        cdef Py_ssize_t length = self.end - self.first
        cdef uint8_t *larger
        if length <= self.capacity // 2:
            memmove(self.due, self.due + self.first, length)
        else:
            larger = <uint8_t *> PyMem_Malloc(2 * self.capacity)
            if larger == NULL:
                raise MemoryError
            memcpy(larger, self.due + self.first, length)
            if self.due != self.few:
                PyMem_Free(self.due)
            self.due = larger
            self.capacity *= 2
        self.first = 0
        self.end = length
        return 0

    cdef inline void drop_to(self, Py_ssize_t first) noexcept:
        """Drop the answers before one of them; if that leaves none, give the memory back."""
        self.first = first
        if first == self.end:
            self.first = self.end = 0
            if self.due != self.few:
                PyMem_Free(self.due)
                self.due = self.few
                self.capacity = FEW

    cdef void skip_to_sync(self) noexcept:
        """Drop everything up to the next Sync: after an error in an extended query, the server skips that much."""
        cdef const uint8_t *found = <const uint8_t *> memchr(self.due + self.first, SYNCED, self.end - self.first)
        if found == NULL:
            # The Sync was not sent yet. Until it is, the server skips whatever else is sent.
            self.drop_to(self.end)
            self.skipping = True
        else:
            self.drop_to(found - self.due)

    cdef inline uint8_t due_now(self) noexcept:
        return self.due[self.first] if self.first < self.end else NOTHING

    cdef bint accept(self, const uint8_t *at, Py_ssize_t size) noexcept:
        """Read messages of the server, and return whether they were due."""
        cdef const uint8_t *end
        cdef const uint8_t *head
        cdef const uint8_t *effects
        cdef int32_t length
        cdef Py_ssize_t rest
        cdef uint8_t effect
        if self.refused:
            return False
        if self.received_skip >= size:
            self.received_skip -= size
            return True
        end = at + size
        at += self.received_skip
        self.received_skip = 0
        effects = EFFECTS[self.due_now()]
        while at < end:
            if self.received_size == 0 and end - at >= HEADER_BYTES:
                head = at
                at += HEADER_BYTES
            else:
                head = self.received_part
                while self.received_size < HEADER_BYTES:
                    if at == end:
                        return True
                    self.received_part[self.received_size] = at[0]
                    self.received_size += 1
                    at += 1
                self.received_size = 0
            length = read_int32(head + 1)
            effect = effects[head[0]]
            if length < LEAST_LENGTH or effect == REFUSED:
                self.refused = True
                self.refused_due, self.refused_kind, self.refused_length = self.due_now(), head[0], length
                return False
            # Most messages are rows.
            if effect != LEAVES_DUE:
                if effect == COMPLETES:
                    self.drop_to(self.first + 1)
                elif effect == SKIPS:
                    self.skip_to_sync()
                else:
                    self.due[self.first] = effect - NEXT_DUE
                effects = EFFECTS[self.due_now()]
            rest = <Py_ssize_t> length - LEAST_LENGTH
            if rest > end - at:
                self.received_skip = rest - (end - at)
                return True
            at += rest
        return True


cdef inline int header_size(bint started, const uint8_t *head, Py_ssize_t size) noexcept nogil:
    """Return how much of a message of the client must be read, as far as its first `size` bytes say it."""
    if not started:
        return STARTUP_BYTES
    if size >= HEADER_BYTES and head[0] == DESCRIBE and read_int32(head + 1) > LEAST_LENGTH:
        return DESCRIBE_BYTES
    return HEADER_BYTES
