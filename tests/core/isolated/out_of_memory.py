"""Lets each allocation of an operation fail in turn, in the compiled modules."""

import _testcapi
import sys

from acgsperf import _core
from acgsperf._native import canonical, envelope
from acgsperf._native.envelope_format import pack_value, seal
from acgsperf.tiers import Entry

HASH = "cdd01ef066bc6cf2"


def with_failures(operation, *arguments, state=lambda: None):
    """Let all allocations from the first, the second, ... on fail until the call succeeds; return how often it failed.

    The operation is called as it is, for a function around it would be one more that has to do without memory. And
    this one is short: an `except` beyond a function's 256th instruction may send CPython searching for ever.

    Args:
        state: what it returns must be the same after every failure.
    """
    before = state()
    for failures in range(1_000):
        _testcapi.set_nomemory(failures, 0)
        try:
            operation(*arguments)
        except MemoryError:
            pass
        else:
            return failures
        finally:
            _testcapi.remove_mem_hooks()
        assert state() == before, (operation, failures)
    raise AssertionError("it never succeeded")


class Thing:
    pass


def growing():
    failed = 0
    things = [Thing() for _ in range(200)]
    before = [sys.getrefcount(thing) for thing in things]
    cache = _core.LRUCache(1_000)
    for i, thing in enumerate(things):
        failed += with_failures(cache.set, thing, thing, state=cache.stats)
        assert len(cache) == i + 1
        assert cache.get(thing) is thing
    del thing
    # The table moves at every doubling from 8 to 256, and three allocations of each move can fail.
    assert failed >= 6 * 3
    assert cache.keys() == things
    assert [sys.getrefcount(thing) for thing in things] == [number + 2 for number in before]
    for listing in (cache.keys, cache.values, cache.items, cache.stats, cache.expire):
        assert with_failures(listing, state=cache.keys) >= 1
    assert with_failures(cache.get, things[0]) == 0
    assert with_failures(cache.set, things[0], None) == 0
    assert cache.popitem() == (things[1], things[1])
    assert with_failures(cache.pop, things[0]) == 0
    assert with_failures(cache.resize, 50, state=lambda: (cache.maxsize, cache.keys())) >= 1
    assert cache.keys() == things[150:]
    with_failures(cache.setdefault, 1, state=cache.items)
    with_failures(cache.clear)
    assert len(cache) == 0
    assert [sys.getrefcount(thing) for thing in things] == before


def shrinking():
    cache = _core.LRUCache(100)
    cache.update((i, i) for i in range(100))
    size = sys.getsizeof(cache)
    # With memory for the list of the evicted alone it shrinks in number and keeps its room.
    _testcapi.set_nomemory(1, 0)
    try:
        cache.resize(10)
    finally:
        _testcapi.remove_mem_hooks()
    assert cache.keys() == list(range(90, 100))
    assert sys.getsizeof(cache) == size
    cache.resize(9)
    assert cache.keys() == list(range(91, 100))
    assert sys.getsizeof(cache) < size


def evicting():
    heard = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: None
    cache = _core.LRUCache(10, on_evict=lambda key, value, reason: heard.append(bytearray(1_000)))
    for i in range(100):
        with_failures(cache.set, i, i)
    assert cache.keys() == list(range(90, 100))
    assert cache.stats().evictions == 90
    sys.unraisablehook = hook


def adapting():
    """The first insertion allocates the shadow caches, the first eviction the memory of evicted keys."""
    for policy, allocations in (("adaptive", 2), ("s3fifo", 1)):
        things = [Thing() for _ in range(200)]
        before = [sys.getrefcount(thing) for thing in things]
        cache = _core.AdaptiveCache(100, policy=policy)
        failed = with_failures(cache.set, things[0], 0, state=cache.items)
        for i in range(1, 100):
            with_failures(cache.set, things[i], i, state=cache.items)
        failed += with_failures(cache.set, things[100], 100, state=cache.items)
        assert failed >= allocations
        for i in range(101, 200):
            assert with_failures(cache.set, things[i], i, state=cache.items) == 0
        assert len(cache) == 100
        cache.clear()
        assert [sys.getrefcount(thing) for thing in things] == before


def weighing():
    heavy = [bytes(10) for _ in range(4)]
    cache = _core.AdaptiveCache(maxweight=40, weigher=lambda key, value: len(value))
    for i in range(40):
        cache.set(i, b"x")
    # The list of evicted entries grows, which allocates.
    for number, value in enumerate(heavy):
        with_failures(cache.set, f"heavy {number}", value)
        assert cache.stats().weight == sum(map(len, cache.values())) <= 40


def histograms():
    assert with_failures(_core.LatencyHistogram, 1, 2**62, 2) >= 1
    histogram, other = _core.LatencyHistogram(1, 1_000, 1), _core.LatencyHistogram(1, 1_000, 1)
    assert with_failures(histogram.record, 500) == 0
    assert histogram.count == 1
    blob = histogram.encode()
    assert with_failures(histogram.encode, state=histogram.snapshot) >= 1
    assert with_failures(histogram.snapshot) >= 1
    assert with_failures(_core.LatencyHistogram.decode, blob) >= 1
    assert with_failures(histogram.record_many, [1, 2, 1_000], state=histogram.snapshot) >= 1
    assert histogram.count == 4
    assert with_failures(other.merge, histogram) == 0
    assert other == histogram
    with_failures(other.percentile, 50, state=other.snapshot)
    assert with_failures(other.reset) == 0
    assert other.count == 0


def validators():
    assert with_failures(_core.HashValidator, [HASH]) >= 1
    validator = _core.HashValidator(HASH)
    assert with_failures(validator.validate, HASH) == 0
    assert with_failures(validator.validate_many, [HASH, "0" * 16, None] * 100, state=validator.stats) >= 1
    assert with_failures(validator.validate_many, {HASH: None}.keys()) >= 1
    stats = validator.stats()
    assert (stats.mismatched, stats.malformed) == (100, 100)
    # An iterable's items are counted as they come, also by the call that then fails.
    assert stats.valid >= 102


def requests():
    value = {f"é {key}": {"b": [key], "a": "x" * key} for key in range(100, 0, -1)}
    expected = canonical.canonical(value)
    # A str's bytes for each key, the bytes and the pairs that outgrow the stack, room to sort, and the result.
    assert with_failures(canonical.canonical, value) >= 104
    assert canonical.canonical(value) == expected


def envelopes():
    entries = [Entry(f"value {number}", 1.0, 2.0, None, id=b"12345678", stamp=2**60 + number) for number in range(3)]
    keys = [b"key %d" % number for number in range(3)]
    parts = [seal(entry, key, pack_value(entry.value), 0.0) for entry, key in zip(entries, keys, strict=True)]
    blobs = [head + b"a token." + tail for head, tail in parts]
    assert with_failures(envelope.unseal_many, blobs, keys, 100, 1.0, 0.0, b"a token.") >= 3 * 5
    assert envelope.unseal_many(blobs, keys, 100, 1.0, 0.0, b"a token.") == (entries, [], 0)


for check in (growing, shrinking, evicting, adapting, weighing, histograms, validators, requests, envelopes):
    check()
    blocks = []
    for _ in range(6):
        check()
        blocks.append(sys.getallocatedblocks())
    assert blocks[-1] - blocks[1] < 50, blocks
