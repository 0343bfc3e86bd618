"""`RequestCounters`, the counters of the drop-in's service."""

import inspect
import math
import pickle
import threading
import weakref

import pytest

COUNTS = ("total_requests", "successful_requests", "failed_requests")
TIMES = ("total_response_time", "min_response_time", "max_response_time")


def figures(counters):
    return tuple(getattr(counters, name) for name in COUNTS + TIMES)


def test_new_counters_are_zero(core):
    counters = core.RequestCounters()
    assert figures(counters) == (0, 0, 0, 0.0, math.inf, 0.0)
    assert counters.latency_ns == core.LatencyHistogram()


def test_requests_and_times_are_counted(core):
    counters = core.RequestCounters()
    counters.add_request(0.25)
    counters.add_request(0.125, success=True)
    counters.add_request(2, False)
    assert figures(counters) == (3, 2, 1, 2.375, 0.125, 2.0)
    latency = counters.latency_ns
    assert (latency.count, latency.min, latency.max) == (3, 125_000_000, 2_000_000_000)


@pytest.mark.parametrize(
    ("seconds", "recorded_ns"),
    [(-0.5, 0), (math.nan, 0), (math.inf, 3_600_000_000_000), (1e30, 3_600_000_000_000), (3_601, 3_600_000_000_000)],
)
def test_a_time_that_no_clock_shows_is_counted(core, seconds, recorded_ns):
    counters = core.RequestCounters()
    counters.add_request(seconds)
    assert counters.total_requests == counters.successful_requests == 1
    assert (counters.latency_ns.count, counters.latency_ns.max) == (1, recorded_ns)


def test_the_shortest_and_the_longest_time_can_be_set(core):
    counters = core.RequestCounters()
    counters.min_response_time, counters.max_response_time = 14, 15
    assert figures(counters) == (0, 0, 0, 0.0, 14.0, 15.0)
    counters.add_request(1)
    assert figures(counters) == (1, 1, 0, 1.0, 1.0, 15.0)
    counters.max_response_time = 0
    counters.add_request(2, success=False)
    assert figures(counters) == (2, 1, 1, 3.0, 1.0, 2.0)


def test_what_was_counted_cannot_be_set(core):
    counters = core.RequestCounters()
    for name in (*COUNTS, "total_response_time", "latency_ns"):
        with pytest.raises(AttributeError):
            setattr(counters, name, 7)


class Unreadable:
    def __bool__(self):
        raise RuntimeError("no truth")

    def __float__(self):
        raise RuntimeError("no number")


def test_bad_input_counts_nothing(core):
    counters = core.RequestCounters()
    for bad in ("1", None, [], 1j):
        with pytest.raises(TypeError):
            counters.add_request(bad)
    for arguments in ((Unreadable(),), (1, Unreadable())):
        with pytest.raises(RuntimeError, match=r"^no "):
            counters.add_request(*arguments)
    for name in ("min_response_time", "max_response_time"):
        with pytest.raises(TypeError):
            setattr(counters, name, None)
        with pytest.raises(RuntimeError, match="no number"):
            setattr(counters, name, Unreadable())
    assert figures(counters) == figures(core.RequestCounters())
    assert counters.latency_ns.count == 0


def test_counters_are_final_and_never_pickled(core):
    counters = core.RequestCounters()
    with pytest.raises(TypeError, match="cannot pickle 'RequestCounters' object"):
        pickle.dumps(counters)
    with pytest.raises(TypeError, match="is not an acceptable base type"):
        type("Subclass", (core.RequestCounters,), {})
    assert weakref.ref(counters)() is counters
    assert list(inspect.signature(counters.add_request).parameters) == ["response_time", "success"]


def test_threads_lose_no_request(core):
    counters = core.RequestCounters()

    def count():
        for _ in range(2_000):
            counters.add_request(0.5)
            assert counters.min_response_time == counters.max_response_time == 0.5

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert figures(counters) == (8_000, 8_000, 0, 4_000.0, 0.5, 0.5)
    assert counters.latency_ns.count == 8_000
