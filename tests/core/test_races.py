"""What threads see of each other; on an interpreter with a GIL these hold trivially."""

import threading

THREADS = 4


def run_together(*bodies):
    """Run each body in a thread of its own, all from one start, and pass on what they raised."""
    barrier = threading.Barrier(len(bodies))
    raised = []

    def run(body):
        barrier.wait()
        try:
            body()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def test_the_callback_may_be_replaced_while_entries_are_evicted(core):
    cache = core.LRUCache(2)
    told = []

    def evict():
        for i in range(2_000):
            cache[i] = i

    def replace():
        for _ in range(2_000):
            cache.on_evict = lambda *entry: told.append(entry)
            assert cache.on_evict is not None

    cache.on_evict = lambda *entry: told.append(entry)
    run_together(evict, replace, evict, replace)
    assert len(told) == cache.stats().evictions


def test_a_callback_that_ends_when_it_is_replaced_sees_its_successor(core):
    seen = []

    class Callback:
        def __call__(self, key, value, reason):
            pass

        def __del__(self):
            seen.append(cache.on_evict)

    cache = core.LRUCache(1, on_evict=Callback())
    cache.on_evict = print
    assert seen == [print]


def test_a_minimum_is_one_that_was_recorded(core):
    histogram = core.LatencyHistogram()
    seen = set()

    def record():
        for _ in range(4_000):
            histogram.record(1_000)
            histogram.reset()

    def look():
        for _ in range(4_000):
            seen.add(histogram.min)

    run_together(record, look, record, look)
    assert seen <= {0, 1_000}


def test_a_histogram_is_equal_to_itself_while_it_is_recorded_into(core):
    histogram = core.LatencyHistogram()

    def record():
        for value in range(500):
            histogram.record(value)

    def look():
        for _ in range(500):
            assert histogram == histogram

    run_together(record, look, record, look)


def test_counters_add_up_whatever_the_threads_do(core):
    cache = core.LRUCache(50)
    validator = core.HashValidator()

    def work():
        for i in range(2_000):
            cache.get(i % 70)
            cache.set(i % 70, i)
            validator.validate("cdd01ef066bc6cf2")

    run_together(*[work] * THREADS)
    stats = cache.stats()
    assert stats.hits + stats.misses == stats.insertions + stats.updates == THREADS * 2_000
    assert stats.insertions - stats.evictions == len(cache) == 50
    assert validator.stats().valid == THREADS * 2_000
