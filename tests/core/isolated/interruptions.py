"""Code that interrupts an operation and uses the same object, in a process of its own: `interruptions.py MODULE CASE`.

A signal handler, a finalizer that the garbage collector calls, and another thread may run between almost any two steps
of Python code. Whatever they do, an operation is done or not done, and nothing waits for itself.
"""

import contextlib
import faulthandler
import gc
import itertools
import os
import random
import signal
import sys
import threading

from implementations import implementation

if os.environ.get("ACGSPERF_TEST_LOCK") == "1":
    # What an interpreter without the GIL says, so that the twin takes the lock that it needs there.
    sys._is_gil_enabled = lambda: False
core = implementation(sys.argv[1])

HASH = "cdd01ef066bc6cf2"
ROUNDS = 4_000


class Garbage:
    """A cycle, so that the garbage collector finalizes it in the middle of other code."""

    def __init__(self, action):
        self.action = action
        self.me = self

    def __del__(self):
        self.action()


def with_garbage(action, interruption, rounds=ROUNDS):
    """Repeat an action while the garbage collector runs often and finalizers interrupt it."""
    threshold = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for i in range(rounds):
            Garbage(interruption)
            action(i)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()


def with_signals(action, interruption, seconds=0.7):
    """Repeat an action while a signal handler interrupts it, some thousand times a second."""
    over = False

    def handle(number, frame):
        interruption()
        # Set again only now, so that the handler does not interrupt itself.
        if not over:
            signal.setitimer(signal.ITIMER_REAL, source.uniform(0.00005, 0.0003))

    def end():
        nonlocal over
        over = True

    source = random.Random(7)
    timer = threading.Timer(seconds, end)
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0001)
    timer.start()
    for i in itertools.count():
        if over:
            break
        action(i)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    timer.join()
    assert i > 10


INTERRUPTIONS = {"garbage": with_garbage, "signals": with_signals}


def whole(cache):
    """A cache that is whole finds exactly what it lists."""
    items = cache.items()
    assert len(cache) == len(items) <= cache.maxsize, (len(cache), len(items), cache.maxsize)
    assert [cache.peek(key, "lost") for key, _ in items] == [value for _, value in items]


def validator_counts_exactly(interrupted):
    validator = core.HashValidator(on_reject=lambda value: None)
    made = itertools.count()

    def interruption():
        next(made)
        validator.validate(HASH)
        validator.validate("x")
        validator.validate_many([HASH, "f" * 16])
        stats = validator.stats()
        assert stats.malformed <= stats.validations

    def action(i):
        next(made)
        validator.validate(HASH)
        validator.classify("x")
        validator.validate_many((HASH, "f" * 16))

    interrupted(action, interruption)
    stats = validator.stats()
    calls = next(made)
    assert (stats.valid, stats.mismatched, stats.malformed) == (2 * calls, calls, calls)


def a_batch_is_counted_at_once(interrupted):
    validator = core.HashValidator()
    seen = set()

    def interruption():
        stats = validator.stats()
        seen.add((stats.mismatched - stats.valid, stats.malformed - stats.valid))

    interrupted(lambda i: validator.validate_many([HASH, "f" * 16, None]), interruption)
    assert seen == {(0, 0)}


def cache_stays_whole(interrupted):
    cache = core.LRUCache(20)
    numbers = itertools.count()
    errors = []

    def interruption():
        i = next(numbers)
        try:
            cache.set(f"key {i % 30}", i)
            cache.get(f"key {(i + 7) % 30}")
            if i % 3 == 0:
                cache.pop(f"key {(i + 3) % 30}", None)
            if i % 50 == 0:
                cache.resize(5 + i % 20)
            if i % 70 == 0:
                cache.clear()
            whole(cache)
            stats = cache.stats()
            assert stats.size == len(cache)
        except BaseException as error:
            errors.append(error)

    def action(i):
        cache.set(f"key {i % 30}", i)
        cache.get(f"key {(i + 11) % 30}")
        cache[f"key {(i + 13) % 30}"] = i
        cache.setdefault(f"key {(i + 17) % 30}", i)
        cache.pop(f"key {(i + 19) % 30}", None)
        cache.get(f"key {(i + 11) % 30}")
        if i % 10 == 0 and len(cache):
            with contextlib.suppress(KeyError):
                cache.popitem()
        if i % 20 == 0:
            cache.resize(10 + i % 13)
        if i % 40 == 0:
            cache.items(), cache.expire(), cache.keys()

    interrupted(action, interruption)
    assert not errors, errors[0]
    whole(cache)


def cache_counts_exactly(interrupted):
    reported = []
    cache = core.LRUCache(5, on_evict=lambda key, value, reason: reported.append(key))
    numbers = itertools.count()
    gets, sets = itertools.count(), itertools.count()

    def action(i):
        for _ in range(3):
            cache.set(next(numbers) % 9, i)
            next(sets)
            cache.get(next(numbers) % 9)
            next(gets)
            stats = cache.stats()
            assert stats.insertions - stats.evictions == stats.size, stats

    interrupted(action, lambda: action(-1))
    stats = cache.stats()
    assert stats.hits + stats.misses == next(gets)
    assert stats.insertions + stats.updates == next(sets)
    assert stats.evictions == len(reported)
    whole(cache)


def entries_expire_once(interrupted):
    now = 0.0
    reported = []
    cache = core.LRUCache(
        50, 1, clock=lambda: now, on_evict=lambda key, value, reason: reported.append((value, reason))
    )
    numbers = itertools.count()

    def use():
        number = next(numbers)
        cache.set(number % 40, number)
        cache.get((number * 7) % 40)
        cache.setdefault((number * 11) % 40, number)
        cache.pop((number * 13) % 40, None)

    def action(i):
        nonlocal now
        use()
        if i % 5 == 0:
            now += 1
            cache.expire()
        cache.keys()

    interrupted(action, use)
    stats = cache.stats()
    assert stats.evictions + stats.expirations == len(reported)
    whole(cache)


def a_listing_is_of_one_moment(interrupted):
    cache = core.LRUCache(10)
    errors = []

    def write():
        value = cache.get("last", 0) + 1
        cache.set("first", value)
        cache.set("last", value)

    def action(i):
        items = dict(cache.items())
        if not items.get("last", 0) <= items.get("first", 0):
            errors.append(items)

    write()
    interrupted(action, write)
    assert not errors, errors[0]


def histogram_counts_exactly(interrupted):
    histogram, part = core.LatencyHistogram(1, 2**20, 1), core.LatencyHistogram(1, 2**20, 2)
    part.record_many([5, 500, 50_000])
    made = itertools.count()

    def action(i):
        next(made)
        histogram.record(7)
        histogram.record_many([1, 1, 1_000, 100_000])
        histogram.record_corrected(50_000, 10_000)
        histogram.merge(part)
        snapshot = histogram.snapshot()
        assert snapshot.min <= snapshot.p50 <= snapshot.p99 <= snapshot.max
        assert core.LatencyHistogram.decode(histogram.encode()).count <= histogram.count

    interrupted(action, lambda: action(-1), **({"rounds": 400} if interrupted is with_garbage else {}))
    assert histogram.count == 13 * next(made)
    assert histogram.min == 1
    assert histogram.max == 100_000


def a_snapshot_is_of_one_moment(interrupted):
    histogram = core.LatencyHistogram(1, 2**20, 1)
    seen = set()

    def interruption():
        histogram.reset()
        histogram.record_many([500_000] * 3)

    def action(i):
        snapshot = histogram.snapshot()
        seen.add((snapshot.count, snapshot.min, snapshot.max, snapshot.p50, snapshot.p999))
        histogram.reset()
        histogram.record(7)
        copy = core.LatencyHistogram.decode(histogram.encode())
        seen.add((copy.count, copy.min, copy.max, copy.percentile(50), copy.percentile(99)))

    interrupted(action, interruption)
    sound = {(0,) + (0,) * 4, (1, 7, 7, 7, 7), (3,) + (500_000,) * 4, (4, 7, 500_000, 500_000, 500_000)}
    assert seen <= sound, seen - sound


def histograms_are_compared_at_one_moment(interrupted):
    one, other = core.LatencyHistogram(1, 2**20, 1), core.LatencyHistogram(1, 2**20, 1)
    different = []

    def interruption():
        one.record(7)
        one.reset()

    def action(i):
        if one != other or one != one:
            different.append(i)
        other.merge(other)

    interrupted(action, interruption)
    assert not different


class Interrupted(BaseException):
    """Raised by a signal handler wherever the program is, as Ctrl-C is."""


def an_exception_of_a_signal_handler_leaves_everything_whole():
    cache = core.LRUCache(10, on_evict=lambda key, value, reason: None)
    validator = core.HashValidator()
    histogram = core.LatencyHistogram(1, 2**20, 1)
    armed = False
    # What it raises in the callback goes there.
    sys.unraisablehook = lambda args: None

    def handle(number, frame):
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.00017)
    for i in range(6_000):
        try:
            armed = True
            cache.set(i % 15, i)
            cache.get((i * 7) % 15)
            cache.pop((i * 3) % 15, None)
            cache.resize(5 + i % 7)
            validator.validate_many([HASH, None])
            histogram.record_many([3, 300])
            histogram.merge(histogram)
            if i % 8 == 0:
                histogram.reset()
            armed = False
        except Interrupted:
            pass
        armed = False
        if histogram.count > 2**40:
            histogram.reset()
        whole(cache)
        stats = validator.stats()
        assert stats.valid == stats.malformed
        assert histogram.count % 2 == 0
        assert (histogram.min, histogram.max) in ((0, 0), (3, 300))
    signal.setitimer(signal.ITIMER_REAL, 0)
    results = []
    # No lock is left: another thread can use everything.
    thread = threading.Thread(
        target=lambda: results.append((cache.set(1, 1), validator.validate(HASH), histogram.record(1))), daemon=True
    )
    thread.start()
    thread.join(10)
    assert results == [(None, True, None)]


class Key:
    """Does something of its own while it is compared."""

    def __init__(self, name, action):
        self.name = name
        self.action = action

    def __hash__(self):
        return 1

    def __eq__(self, other):
        # Which of the two is asked is the cache's affair: both act.
        for key in (self, other):
            if isinstance(key, Key):
                key.action()
        return isinstance(other, Key) and self.name == other.name


def keys_look_into_each_others_caches():
    one, other = core.LRUCache(10), core.LRUCache(10)
    one.set(Key("stored", lambda: other.get("x")), 1)
    other.set(Key("stored", lambda: one.get("x")), 2)
    other.set("x", "x")
    one.set("x", "x")
    found = []

    def look(cache, into):
        found.extend(cache.get(Key("stored", lambda: into.peek("x"))) for _ in range(300))

    threads = [threading.Thread(target=look, args=pair, daemon=True) for pair in ((one, other), (other, one)) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 1_800
    assert set(found) == {1, 2}


def a_key_that_waits_for_another_thread_can_be_compared():
    cache = core.LRUCache(10)
    comparing, used = threading.Event(), threading.Event()

    def wait():
        comparing.set()
        assert used.wait(30)

    def use():
        comparing.wait()
        cache.set("x", 1)
        cache.get("x")
        len(cache), cache.items(), cache.stats()
        used.set()

    cache.set(Key("stored", lambda: None), 1)
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    assert cache.get(Key("stored", wait)) == 1
    thread.join()


def finalizers_use_each_others_objects():
    one, other = core.LRUCache(10), core.LRUCache(10)
    ended = []

    def use(cache, into):
        def interruption():
            i = next(numbers)
            into.set(i % 20, i)
            into.get(i % 7)

        numbers = itertools.count()
        for i in range(3_000):
            Garbage(interruption)
            cache.set(i % 20, i)
            cache.get(i % 11)
        ended.append(cache)

    threshold = gc.get_threshold()
    gc.set_threshold(3)
    threads = [threading.Thread(target=use, args=pair, daemon=True) for pair in ((one, other), (other, one)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gc.set_threshold(*threshold)
    gc.collect()
    assert len(ended) == 4
    whole(one)
    whole(other)


def a_finalizer_that_waits_for_another_thread_does_not_block_it():
    cache, histogram, validator = core.LRUCache(3), core.LatencyHistogram(1, 2**20, 1), core.HashValidator()
    wanted, given = threading.Semaphore(0), threading.Semaphore(0)
    late = []
    # The first call imports a module. A thread that needs a module waits for another one that is importing it.
    histogram.snapshot()

    def serve():
        while True:
            wanted.acquire()
            cache.set("x", 1)
            cache.get("y")
            histogram.record(5)
            histogram.snapshot()
            validator.validate(HASH)
            given.release()

    def wait():
        wanted.release()
        if not given.acquire(timeout=10):
            late.append(1)

    def action(i):
        assert not late
        cache.set(i % 5, i)
        cache.get(i % 4)
        cache.keys()
        histogram.record(i % 100)
        histogram.snapshot()
        validator.validate(HASH)

    threading.Thread(target=serve, daemon=True).start()
    with_garbage(action, wait, rounds=1_000)
    assert not late


INTERRUPTED = (
    validator_counts_exactly,
    a_batch_is_counted_at_once,
    cache_stays_whole,
    cache_counts_exactly,
    entries_expire_once,
    a_listing_is_of_one_moment,
    histogram_counts_exactly,
    a_snapshot_is_of_one_moment,
    histograms_are_compared_at_one_moment,
)
ALONE = (
    an_exception_of_a_signal_handler_leaves_everything_whole,
    keys_look_into_each_others_caches,
    a_key_that_waits_for_another_thread_can_be_compared,
    finalizers_use_each_others_objects,
    a_finalizer_that_waits_for_another_thread_does_not_block_it,
)
CASES = {case.__name__: case for case in ALONE} | {
    f"{case.__name__}/{kind}": lambda case=case, kind=kind: case(INTERRUPTIONS[kind])
    for case in INTERRUPTED
    for kind in INTERRUPTIONS
}

if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)
    sys.setswitchinterval(1e-5)
    CASES[sys.argv[2]]()
