"""Lets each allocation of an operation fail in turn, in the compiled modules."""

import _testcapi
import sys

from acgsperf import _canonical, _core


def with_failures(operation):
    """Lets all allocations from the first, the second, ... on fail until it succeeds; says how often it failed."""
    for failures in range(1_000):
        _testcapi.set_nomemory(failures, 0)
        try:
            operation()
        except MemoryError:
            continue
        finally:
            _testcapi.remove_mem_hooks()
        return failures
    raise AssertionError("it never succeeded")


class Thing:
    pass


def growing():
    failed = 0
    things = [Thing() for _ in range(200)]
    before = [sys.getrefcount(thing) for thing in things]
    cache = _core.LRUCache(1_000)
    for i, thing in enumerate(things):
        failed += with_failures(lambda thing=thing: cache.set(thing, thing))
        assert len(cache) == i + 1
        assert cache.get(thing) is thing
    del thing
    # The whole is moved once for every doubling from 8 to 256, and each move can fail.
    assert failed >= 6
    assert cache.keys() == things
    failed = with_failures(cache.keys) + with_failures(cache.items) + with_failures(cache.expire)
    assert failed >= 3
    with_failures(lambda: cache.resize(50))
    assert cache.keys() == things[150:]
    with_failures(cache.clear)
    assert len(cache) == 0
    assert [sys.getrefcount(thing) for thing in things] == before


def evicting():
    heard = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: None
    cache = _core.LRUCache(10, on_evict=lambda key, value, reason: heard.append(bytearray(1_000)))
    for i in range(100):
        with_failures(lambda i=i: cache.set(i, i))
    assert cache.keys() == list(range(90, 100))
    sys.unraisablehook = hook


def histograms():
    assert with_failures(lambda: _core.LatencyHistogram(1, 2**62, 2)) >= 1
    assert with_failures(lambda: _core.HashValidator(["cdd01ef066bc6cf2"])) >= 1
    histogram = _core.LatencyHistogram(1, 1_000, 1)
    with_failures(lambda: histogram.record(500))
    assert histogram.count == 1
    blob = histogram.encode()
    assert with_failures(histogram.encode) >= 1
    assert with_failures(histogram.snapshot) >= 1
    assert with_failures(lambda: _core.LatencyHistogram.decode(blob)) >= 1
    assert with_failures(lambda: histogram.record_many([1, 2, 1_000])) >= 1
    assert histogram.count == 4


def requests():
    value = {f"é {key}": {"b": [key], "a": "x" * key} for key in range(100, 0, -1)}
    expected = _canonical.canonical(value)
    texts = []
    # A str's bytes for each key, the bytes and the pairs that outgrow the stack, room to sort, and the result.
    assert with_failures(lambda: texts.append(_canonical.canonical(value))) >= 104
    assert texts == [expected]


for check in (growing, evicting, histograms, requests):
    check()
    blocks = []
    for _ in range(6):
        check()
        blocks.append(sys.getallocatedblocks())
    assert blocks[-1] - blocks[1] < 50, blocks
