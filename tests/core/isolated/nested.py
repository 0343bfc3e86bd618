"""A chain of caches longer than the stack: `nested.py MODULE`."""

import sys

from implementations import implementation

core = implementation(sys.argv[1])
# A RecordingCache takes 32 KiB of memory, and a Python frame more of the stack than C. So fewer of these overflow the
# stack too.
DEPTH = 20_000 if "RecordingCache" in sys.argv[1] else 50_000 if "_py" in sys.argv[1] else 200_000


def chain():
    cache = None
    for _ in range(DEPTH):
        outer = core.LRUCache(1)
        outer[0] = cache
        cache = outer
    return cache


del_by_reference = chain()
del del_by_reference
cleared = chain()
cleared.clear()
cyclic = chain()
cyclic[1] = cyclic
del cyclic
