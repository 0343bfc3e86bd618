"""Threads over one object, in a process of its own: `races.py MODULE RACE`. An assertion that fails ends it."""

import random
import sys
import threading
import time
from collections import Counter

from implementations import implementation

THREADS = 6
ROUNDS = 1_500
core = implementation(sys.argv[1])


def run(*bodies):
    """Every body in threads of its own, all let go at once; an error in any of them is raised here."""
    barrier = threading.Barrier(len(bodies))
    errors = []

    def start(body, number):
        barrier.wait()
        try:
            body(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=item[::-1]) for item in enumerate(bodies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def check(cache):
    """A cache that is whole finds exactly what it lists, and its counters add up."""
    items = cache.items()
    assert len(cache) == len(items) <= cache.maxsize
    assert [cache.peek(key, "lost") for key, _ in items] == [value for _, value in items]
    assert len({key for key, _ in items}) == len(items)


class Key:
    """Compares in Python, and lets another thread go on in the middle of it."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return self.number % 7

    def __eq__(self, other):
        time.sleep(0)
        return self.number == other.number


def cache_counts_exactly(make_key=int, rounds=ROUNDS):
    reported = []
    cache = core.LRUCache(50, on_evict=lambda key, value, reason: reported.append(value))
    sets, gets = [0] * THREADS, [0] * THREADS

    def body(number):
        source = random.Random(number)
        for i in range(rounds):
            key = source.randrange(80)
            if source.random() < 0.5:
                cache.set(make_key(key), (key, number, i))
                sets[number] += 1
            else:
                found = cache.get(make_key(key))
                gets[number] += 1
                assert found is None or found[0] == key

    run(*[body] * THREADS)
    check(cache)
    stats = cache.stats()
    assert stats.hits + stats.misses == sum(gets)
    assert stats.insertions + stats.updates == sum(sets)
    assert stats.evictions == len(reported) == len(set(reported)) == stats.insertions - len(cache)
    assert not set(reported) & set(cache.values())


def keys_that_yield_to_others():
    cache_counts_exactly(Key, rounds=150)


def cache_is_resized_cleared_and_expired():
    reported = []
    seconds = iter(range(10**9))
    lock = threading.Lock()

    def clock():
        with lock:
            return next(seconds) / 1_000

    cache = core.LRUCache(100, 1, clock=clock, on_evict=lambda key, value, reason: reported.append(value))
    running = [True] * THREADS

    def use(number):
        source = random.Random(number)
        try:
            for i in range(ROUNDS):
                key = source.randrange(200)
                cache.set(key, (key, number, i), source.choice([None, 0.001, 1, 5]))
                assert cache.get(key, (key,))[0] == key
                cache.setdefault(key, (key, number, i, "default"))
                assert cache.pop(source.randrange(200), None) != 0
        finally:
            running[number] = False

    def repeated(action):
        def body(number):
            while any(running):
                action()
                time.sleep(0)

        return body

    sizes = random.Random(7)
    run(
        *[use] * THREADS,
        repeated(lambda: cache.resize(sizes.randrange(1, 150))),
        repeated(cache.clear),
        repeated(cache.expire),
        repeated(lambda: [len(item) for item in cache.items()]),
    )
    stats = cache.stats()
    assert stats.evictions + stats.expirations == len(reported) == len(set(reported))
    assert stats.insertions + stats.updates >= stats.evictions + stats.expirations
    cache.clear()
    cache.update((i, i) for i in range(cache.maxsize))
    check(cache)


def callback_is_replaced_while_entries_are_evicted():
    cache = core.LRUCache(2)
    reported = []

    def evict(number):
        for i in range(ROUNDS):
            cache[i] = i

    def replace(number):
        for _ in range(ROUNDS):
            cache.on_evict = lambda *entry: reported.append(entry)
            assert cache.on_evict is not None

    cache.on_evict = lambda *entry: reported.append(entry)
    run(evict, replace, evict, replace)
    assert len(reported) == cache.stats().evictions


def answers_end_and_resume_while_entries_are_read():
    cache = core.LRUCache(50, 3600)
    cache.update((i, str(i)) for i in range(50))
    hits = [0] * THREADS

    def read(number):
        for i in range(ROUNDS):
            value = cache.get(i % 50)
            assert value is None or value == str(i % 50)
            hits[number] += value is not None
            assert cache.peek(i % 50) == str(i % 50)

    def lease(number):
        for i in range(ROUNDS):
            cache.answers_until = time.monotonic() + 3600 if i % 2 else 0.0
            until = cache.answers_until
            assert until == 0.0 or until > 3600

    run(*[read] * (THREADS - 2), lease, lease)
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (sum(hits), ROUNDS * (THREADS - 2) - sum(hits))
    cache.answers_until = None
    assert [cache.get(i) for i in range(50)] == [str(i) for i in range(50)]
    check(cache)


def pop_gives_an_entry_to_one_thread():
    cache = core.LRUCache(5_000)
    cache.update((i, i) for i in range(5_000))
    popped = [[] for _ in range(THREADS)]

    def by_key(number):
        popped[number] = [value for i in range(5_000) if (value := cache.pop(i, None)) is not None]

    def by_age(number):
        try:
            while True:
                popped[number].append(cache.popitem()[1])
        except KeyError:
            pass

    run(*[by_key, by_age] * (THREADS // 2))
    assert Counter(value for values in popped for value in values) == Counter(range(5_000))
    assert len(cache) == 0


def setdefault_gives_every_thread_the_same():
    cache = core.LRUCache(1_000)
    seen = [[] for _ in range(THREADS)]

    def body(number):
        seen[number] = [cache.setdefault(i, (number, i)) for i in range(1_000)]

    run(*[body] * THREADS)
    assert all(values == seen[0] for values in seen)
    assert cache.stats().insertions == 1_000


def validator_counts_exactly():
    validator = core.HashValidator()
    values = ["cdd01ef066bc6cf2", "f" * 16, None, "x"]

    def body(number):
        for i in range(ROUNDS):
            validator.validate(values[i % 4])
            validator.classify(values[i % 4])
            assert validator.validate_many(values) == [True, False, False, False]

    run(*[body] * THREADS)
    stats = validator.stats()
    assert stats.validations == THREADS * ROUNDS * 6
    assert (stats.mismatched, stats.malformed) == (stats.valid, 2 * stats.valid)


def histogram_equals_one_recorded_by_one_thread():
    shared, alone = core.LatencyHistogram(), core.LatencyHistogram()
    part = core.LatencyHistogram()
    part.record_many([5, 500, 50_000])

    def fill(histogram, number):
        source = random.Random(number)
        for _ in range(ROUNDS):
            histogram.record(source.randrange(10**9))
            histogram.record_corrected(50_000, 10_000)
        histogram.record_many(source.randrange(10**6) for _ in range(ROUNDS))
        histogram.merge(part)

    def look(number):
        for _ in range(20):
            snapshot = shared.snapshot()
            assert snapshot.p50 <= snapshot.p99 <= snapshot.p999 <= snapshot.max
            assert core.LatencyHistogram.decode(shared.encode()).count <= THREADS * (ROUNDS * 7 + 3)
            shared.percentile(99)

    run(*[lambda number: fill(shared, number)] * THREADS, look)
    for number in range(THREADS):
        fill(alone, number)
    assert shared == alone
    assert shared.snapshot() == alone.snapshot()


def histogram_is_looked_at_while_it_is_reset():
    histogram = core.LatencyHistogram()
    smallest = set()

    def record(number):
        for _ in range(ROUNDS):
            histogram.record(1_000)
            histogram.reset()

    def look(number):
        for _ in range(ROUNDS):
            smallest.add(histogram.min)
            assert histogram == histogram

    run(record, look, record, look)
    assert smallest <= {0, 1_000}


def histograms_merged_both_ways_do_not_deadlock():
    one, other = core.LatencyHistogram(1, 2**20, 1), core.LatencyHistogram(1, 2**20, 1)
    one.record(1)
    # A merge at most doubles a count, and 50 doublings fit.
    run(
        lambda number: [one.merge(other) for _ in range(25)],
        lambda number: [other.merge(one) for _ in range(25)],
    )
    assert one.count >= 1
    assert other.count >= 1


def parsed(text):
    """The value of canonical bytes, which must be whole."""

    def value():
        tag = take(1)
        if tag in b"tFn":
            return {b"t": True, b"F": False, b"n": None}[tag]
        if tag == b"i":
            return int(until(b";"), 16)
        length = int(until(b":"))
        if tag == b"s":
            return take(length).decode()
        if tag == b"a":
            return [value() for _ in range(length)]
        assert tag == b"o"
        return {value(): value() for _ in range(length)}

    def take(length):
        nonlocal text
        taken, text = text[:length], text[length:]
        assert len(taken) == length
        return taken

    def until(mark):
        nonlocal text
        taken, found, text = text.partition(mark)
        assert found
        return taken

    result = value()
    assert not text
    return result


def requests_change_while_they_are_encoded():
    items, inner = [], {}
    request = {"items": items, "inner": inner, "é": "é" * 20}
    running = [True] * 2

    def change(number):
        try:
            for i in range(ROUNDS * 4):
                inner[f"é{number} {i % 50}"] = [f"€ {i}"] * (i % 3)
                items.append(f"{number} € {i}")
                request[f"{i % 9}"] = {"é": f"𝄞 {i}"}
                if i % 40 == 0:
                    inner.clear()
                    items.clear()
                    request.pop(f"{i % 7}", None)
                if i % 100 == 0:
                    time.sleep(0)
        finally:
            running[number] = False

    def encode(number):
        while any(running):
            text = core.canonical(request)
            value = parsed(text)
            assert core.canonical(value) == text
            assert value["é"] == "é" * 20
            assert set(value["inner"]) <= {f"é{i} {j}" for i in range(2) for j in range(50)}

    run(change, change, encode, encode)


def a_dialogue_has_several_users():
    """Threads add and complete answers, which move in memory meanwhile."""
    statements, sync = b"P\0\0\0\4" * 9, b"S\0\0\0\4"
    error, ready = b"E\0\0\0\4", b"Z\0\0\0\5I"
    turns, senders, receivers = 100, THREADS // 2, THREADS // 2
    for _ in range(ROUNDS // 50):
        dialogue = core.Dialogue()
        dialogue.sent(b"\0\0\0\x08\0\3\0\0")
        assert dialogue.received(ready) is None
        # So many that an answer is due at any time.
        dialogue.sent(sync * turns * receivers)

        def send(number, dialogue=dialogue):
            for _ in range(turns):
                dialogue.sent(statements + sync)

        def receive(number, dialogue=dialogue):
            for _ in range(turns):
                assert dialogue.received(error + ready) is None or core.IMPLEMENTATION == "python"

        run(*[send] * senders, *[receive] * receivers)
        if core.IMPLEMENTATION == "c":
            assert dialogue.received((error + ready) * turns * senders) is None
            assert dialogue.received(ready) == "'Z' where nothing was due"


RACES = {
    race.__name__: race
    for race in (
        cache_counts_exactly,
        keys_that_yield_to_others,
        cache_is_resized_cleared_and_expired,
        callback_is_replaced_while_entries_are_evicted,
        answers_end_and_resume_while_entries_are_read,
        pop_gives_an_entry_to_one_thread,
        setdefault_gives_every_thread_the_same,
        validator_counts_exactly,
        histogram_equals_one_recorded_by_one_thread,
        histogram_is_looked_at_while_it_is_reset,
        histograms_merged_both_ways_do_not_deadlock,
        requests_change_while_they_are_encoded,
        a_dialogue_has_several_users,
    )
}

if __name__ == "__main__":
    sys.setswitchinterval(1e-6)
    RACES[sys.argv[2]]()
