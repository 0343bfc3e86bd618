"""Memory stays flat over millions of operations, of unique keys and of rejected hashes."""

import asyncio
import gc
import itertools
import random
from pathlib import Path

import pytest

from acgsperf import HashValidator, LRUCache, TieredCache

# The first operations fill the cache and what the interpreter keeps.
WARM_UP = 0.2
FLAT_BYTES = 8 << 20
_STATM = Path("/proc/self/statm")

pytestmark = pytest.mark.skipif(not _STATM.exists(), reason="needs /proc")


def long(count):
    return pytest.param(count, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])


def _resident():
    gc.collect()
    return int(_STATM.read_text().split()[1]) * 4096


def check_flat(count, work, chunk=10_000):
    """Do some work many times; check that after the first fifth memory grows no more."""
    chunks = -(-count // chunk)
    first = None
    for number in range(chunks):
        work(chunk)
        if first is None and number >= chunks * WARM_UP:
            first = _resident()
    grown = _resident() - first
    print(f"{chunks * chunk:,} operations, {grown >> 10:,} KiB more memory")
    assert grown < FLAT_BYTES


@pytest.mark.parametrize("count", [300_000, long(100_000_000)])
def test_mixed_operations_do_not_take_more_and_more_memory(count):
    generator = random.Random(1)
    cache = LRUCache(1_000, 60)
    keys = [f"key-{number}" for number in range(3_000)]

    def work(chunk):
        for key in generator.choices(keys, k=chunk // 5):
            cache.get(key)
            cache.set(key, [key])
            cache.get(key)
            cache.pop(key)
            cache.set(key, key)

    check_flat(count, work)


@pytest.mark.parametrize("count", [60_000, long(10_000_000)])
def test_unique_keys_do_not_take_more_and_more_memory(count):
    numbers = itertools.count()
    with asyncio.Runner() as runner:
        cache = TieredCache(LRUCache(1_000), namespace="endurance", stale_ttl=60, negative_ttl=60)
        runner.run(cache.open())

        async def load(key):
            return None if key.endswith("7") else key

        async def use(chunk):
            for number in itertools.islice(numbers, chunk // 2):
                key = f"unique-{number}"
                await cache.get_or_load(key, load, tags=(key,))
                await cache.invalidate_tag(key) if number % 100 == 0 else await cache.get(key)

        check_flat(count, lambda chunk: runner.run(use(chunk)))
        runner.run(cache.close())


@pytest.mark.parametrize("count", [200_000, long(10_000_000)])
def test_rejected_hashes_do_not_take_more_and_more_memory(count):
    validator = HashValidator("cdd01ef066bc6cf2")
    numbers = itertools.count()

    def work(chunk):
        for number in itertools.islice(numbers, chunk):
            assert not validator.validate(f"{number:016x}")

    check_flat(count, work)
