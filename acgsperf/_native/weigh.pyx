# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""A weigher in bytes: `weigh_bytes`.

The items of a container are copied before they are visited.  So another thread may change the container meanwhile.
"""

from cpython.object cimport PyObject

from acgsperf._native.python cimport PyUnicode_CheckExact, PyUnicode_GET_LENGTH, PyUnicode_IS_COMPACT_ASCII

import sys

from acgsperf._native import weigh_py

IMPLEMENTATION = "c"

cdef object getsizeof = sys.getsizeof
cdef Py_ssize_t ENTRY_BYTES = weigh_py.ENTRY_BYTES
cdef Py_ssize_t LONGEST_SHARED_KEY = weigh_py.LONGEST_SHARED_KEY
cdef Py_ssize_t MAX_OBJECTS = weigh_py.MAX_OBJECTS
cdef int MAX_DEPTH = weigh_py.MAX_DEPTH
cdef Py_ssize_t EMPTY_ASCII = sys.getsizeof("")
cdef Py_ssize_t FLOAT = sys.getsizeof(0.5)


def weigh_bytes(key, value, /):
    """Return about how many bytes a cache takes for an entry with a JSON-like value.

    Pass it as the `weigher` of a cache, with the limit in bytes as the `maxweight`. It counts dicts, lists, tuples, str,
    bytes and numbers, and objects of other types by `sys.getsizeof`, without what they refer to. It does not count dict
    keys that are strings of at most 32 characters, because decoders share them. If the values share nothing else, the
    estimate is within 20 % of the growth of the process. O(n) in the number of objects.
    """
    cdef Py_ssize_t total = ENTRY_BYTES + flat(key)
    cdef Py_ssize_t objects = 0
    cdef list level, below
    cdef dict pairs
    cdef int depth
    if type(value) is not dict and type(value) is not list and type(value) is not tuple:
        return total + flat(value)
    level = [value]
    for depth in range(MAX_DEPTH):
        below = []
        for item in level:
            objects += 1
            if objects > MAX_OBJECTS:
                return total
            total += flat(item)
            if type(item) is dict:
                # Another thread may change it meanwhile.
                pairs = (<dict> item).copy()
                for name, inner in pairs.items():
                    if type(name) is not str or PyUnicode_GET_LENGTH(<PyObject *> name) > LONGEST_SHARED_KEY:
                        total += flat(name)
                    below.append(inner)
            elif type(item) is list or type(item) is tuple:
                below.extend(item)
        if not below:
            break
        level = below
    return total


cdef inline Py_ssize_t block(Py_ssize_t size) noexcept:
    """Return how many bytes the allocator uses for an object of this size."""
    return (size + 15) & ~15 if size <= 512 else (size + 8 + 15) & ~15


cdef Py_ssize_t flat(value) except -1:
    """Return the bytes of an object, without the objects that it refers to."""
    cdef Py_ssize_t length
    if value is None or value is True or value is False:
        return 0
    if PyUnicode_CheckExact(<PyObject *> value):
        length = PyUnicode_GET_LENGTH(<PyObject *> value)
        if length <= 1:
            return 0
        if PyUnicode_IS_COMPACT_ASCII(<PyObject *> value):
            return block(EMPTY_ASCII + length)
        return block(getsizeof(value))
    if type(value) is float:
        return block(FLOAT)
    if type(value) is int:
        return 0 if -5 <= value <= 256 else block(getsizeof(value))
    if type(value) is bytes and len(value) <= 1:
        return 0
    if (type(value) is list or type(value) is dict) and value:
        # The table of its items is a separate allocation.
        return block(getsizeof(value)) + 8
    return block(getsizeof(value))
