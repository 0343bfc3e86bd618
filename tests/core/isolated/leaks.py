"""Repeats an operation until a leak would show, in a process of its own: `leaks.py MODULE OPERATION`."""

import gc
import sys
import tracemalloc

from implementations import implementation

core = implementation(sys.argv[1])
# Python code can leak references only, and fewer rounds reveal that.
ROUNDS = 60 if sys.argv[1].split()[0].endswith("_py") else 100
HASH = "cdd01ef066bc6cf2"
now = 0.0


class Thing:
    """A key and value of its own."""


class Broken(Thing):
    def __hash__(self):
        return 1

    def __eq__(self, other):
        raise LookupError


class Using(Thing):
    def __init__(self, cache):
        self.cache = cache


class Clearing(Using):
    def __hash__(self):
        return 1

    def __eq__(self, other):
        self.cache.clear()
        return False


class Going(Using):
    def __del__(self):
        self.cache.set(1, 1)
        self.cache.pop(1)


def failing(*arguments):
    raise LookupError


def refused(action, *arguments, **named):
    try:
        action(*arguments, **named)
    except (LookupError, TypeError, ValueError):
        return
    raise AssertionError(f"{action} accepted {arguments} {named}")


def clock():
    return now


def cache_use():
    # Under a sanitizer, a round may take seconds. No entry expires.
    cache = core.LRUCache(20, 6_000)
    for _ in range(50):
        key = Thing()
        cache.set(key, Thing())
        cache[key] = Thing()
        cache.set(key, Thing(), ttl=1_500.5)
        cache.get(key), cache[key], cache.peek(key), key in cache, cache.expires_in(key)
        cache.setdefault(Thing(), Thing())
    cache.update([(Thing(), Thing())])
    cache.update({Thing(): Thing()})
    if core.LRUCache is getattr(core, "RecordingCache", None):
        cache.take_hits()
        cache.get(cache.keys()[0])
    cache.keys(), cache.values(), cache.items(), list(cache), cache.stats(), repr(cache), sys.getsizeof(cache)
    cache.popitem(), cache.pop(cache.keys()[0]), cache.__delitem__(cache.keys()[0])
    cache.resize(5)
    cache.resize(500)
    cache.clear()
    cache.reset_stats()
    cache.set(Thing(), Thing())
    core.LRUCache[str, int]


def cache_expiry():
    global now
    cache = core.LRUCache(20, 1, clock=clock, on_evict=lambda key, value, reason: None)
    for action in (cache.get, cache.peek, lambda key: cache.pop(key, None), lambda key: cache.set(key, 1)):
        key = Thing()
        cache.update((Thing(), Thing()) for _ in range(20))
        cache.set(key, Thing())
        now += 1
        action(key)
        cache.expire()


def cache_errors():
    cache = core.LRUCache(20)
    cache.set(Broken(), Thing())
    for action in (cache.get, cache.peek, cache.pop, cache.__getitem__, cache.__delitem__, cache.expires_in):
        refused(action, Broken())
        refused(action, [])
        refused(action, Thing()) if action not in (cache.get, cache.peek) else action(Thing())
    refused(cache.set, Broken(), Thing())
    refused(cache.set, Thing(), Thing(), ttl=-1)
    refused(cache.set, Thing(), Thing(), ttl="1")
    refused(cache.set, [], Thing())
    refused(cache.setdefault, Broken(), Thing())
    refused(cache.get)
    refused(cache.get, 1, 2, 3)
    refused(cache.update, [(Thing(), Thing(), Thing())])
    refused(cache.update, 7)
    refused(cache.resize, 0)
    refused(setattr, cache, "on_evict", 7)
    refused(core.LRUCache, 0)
    refused(core.LRUCache, 1, -1)
    refused(core.LRUCache, 1, clock=7)
    for bad in (failing, lambda: "noon", lambda: 1e30):
        cache = core.LRUCache(2, clock=bad)
        for action in (cache.expire, cache.keys, cache.popitem):
            refused(action)
        refused(cache.set, Thing(), Thing())
    refused(core.LRUCache(2).popitem)


def cache_callbacks():
    cache = core.LRUCache(5, on_evict=failing)
    for _ in range(20):
        cache.set(Thing(), Thing())
    depth = 0

    def again(key, value, reason):
        nonlocal depth
        depth += 1
        if depth < 5:
            cache.set(Thing(), [key, value])
            cache.get(key)
        depth -= 1

    cache.on_evict = again
    for _ in range(20):
        cache.set(Thing(), Thing())
    cache.resize(1)
    cache.on_evict = None


def cache_reentrancy():
    cache = core.LRUCache(20)
    for action in (cache.get, cache.peek, lambda key: cache.set(key, Thing()), lambda key: cache.pop(key, None)):
        cache.set(Clearing(cache), Thing())
        action(Clearing(cache))
        cache.set(2, Going(cache))
        cache.set(2, Going(cache))
    cache.clear()


def cache_cycles():
    cache = core.LRUCache(5, on_evict=lambda *evicted: cache, clock=lambda: now + len(cache) * 0)
    cache.set(cache, [cache])


def validator():
    gate = core.HashValidator([HASH, "0" * 16])
    values = [HASH, "f" * 16, "x", None, 7, Thing(), "é" * 16, HASH.encode()]
    gate.validate_many(values), gate.validate_many(iter(values)), gate.stats(), repr(gate)
    for value in values:
        gate.validate(value), gate.classify(value)
    refused(gate.validate_many, 7)
    refused(gate.validate_many, (failing() for _ in range(3)))
    for expected in (None, [], "x", ["x"], [7], [[]], [f"{i:016x}" for i in range(17)]):
        refused(core.HashValidator, expected)
    gate.reset_stats()


def histogram():
    latency = core.LatencyHistogram(1, 1_000_000, 2)
    latency.record_many(range(0, 1_000_000, 5_000))
    latency.record_corrected(500_000, 50_000)
    other = core.LatencyHistogram(1, 10_000_000, 1)
    other.merge(latency)
    assert core.LatencyHistogram.decode(latency.encode()) == latency
    with latency.time():
        pass
    latency.snapshot(), latency.percentile(99), latency.mean, latency.stddev, repr(latency), latency == other
    for action, bad in (
        (latency.record, (-1, 2**70, 1.5, None)),
        (latency.record_many, ([1, -1], 7, [1, "1"], (failing() for _ in range(2)))),
        (latency.percentile, (-1, "1", float("nan"))),
        (latency.merge, (7,)),
        (core.LatencyHistogram, (0, "1")),
    ):
        for argument in bad:
            refused(action, argument)
    refused(latency.record_corrected, 10, 0)
    other.record(9_000_000)
    refused(latency.merge, other)
    try:
        with latency.time():
            failing()
    except LookupError:
        pass
    latency.reset()


def bad_blobs():
    latency = core.LatencyHistogram(1, 1_000_000, 2)
    latency.record_many(range(0, 1_000_000, 50_000))
    blob = latency.encode()
    for i in range(0, len(blob), 3):
        refused(core.LatencyHistogram.decode, blob[:i])
        refused(core.LatencyHistogram.decode, blob[:i] + bytes([blob[i] ^ 0x55]) + blob[i + 1 :])
    refused(core.LatencyHistogram.decode, None)


def requests():
    plain = {"id": 7, "é": [1.5, None, True], "n": -(2**63)}
    wide = {f"é {i}": {f"{j}": [i, j] for j in (2, 1)} for i in range(40, 0, -1)}
    for value in (plain, wide, ["x" * 1_000], {"big": 2**70}, [True] * 600):
        core.canonical(value), core.fingerprint(value)
    for bad in (float("nan"), "\ud800", b"x", Thing()):
        refused(core.canonical, {"wide": wide, "z": [plain, bad]})
        refused(core.fingerprint, {"wide": wide, bad: plain})
    for _ in range(101):
        plain = [plain]
    refused(core.canonical, plain)
    refused(core.canonical)
    refused(core.fingerprint, 1, 2)


def predictor():
    learner = core.Predictor(10, depth=4, table_size=64)
    for i in range(120):
        key = f"key {i % 25}" if i % 7 else f"once {i}"
        first_use = learner.take(key) is not None
        for wanted in learner.next(key, (), 100 * i, first_use):
            if i % 5:
                learner.store(wanted, Using(learner))
            else:
                learner.fail(wanted)
        learner.discard(f"key {i % 11}")
        learner.stats(), learner.keys(), learner.peek(key)
    refused(learner.next, 1, (), 1, True)
    refused(core.Predictor, 0)


OPERATIONS = {
    operation.__name__: operation
    for operation in (
        cache_use,
        cache_expiry,
        cache_errors,
        cache_callbacks,
        cache_reentrancy,
        cache_cycles,
        validator,
        histogram,
        bad_blobs,
        requests,
        predictor,
    )
}


def held():
    """What is allocated: objects by number, and bytes, of the C allocations that Python's allocator sees too."""
    gc.collect()
    return sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]


def main():
    operation = OPERATIONS[sys.argv[2]]
    sys.unraisablehook = lambda args: None
    tracemalloc.start()
    for _ in range(20):
        operation()
    blocks, size = held()
    for _ in range(ROUNDS):
        operation()
    more_blocks, more_size = held()
    # One object lost in each round would be ROUNDS of them; caches of the interpreter vary by a few.
    assert more_blocks - blocks < ROUNDS // 2, (blocks, more_blocks)
    assert more_size - size < ROUNDS * 8, (size, more_size)


if __name__ == "__main__":
    main()
