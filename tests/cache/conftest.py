"""A clock that a test moves, and caches that leave nothing behind."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from memory_tier import MemoryTier

from acgsperf import LRUCache
from acgsperf.cache import TieredCache


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def l2(clock):
    return MemoryTier("l2", clock)


@pytest.fixture
def l3(clock):
    return MemoryTier("l3", clock)


@pytest.fixture
async def open_cache(clock):
    """Opens caches with an L1 of 100 entries; closes them, and looks for tasks that they have left."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def opened(l2=None, l3=None, *, size=100, l1_ttl=None, **options):
            l1 = LRUCache(size, l1_ttl, clock=clock)
            options = {"namespace": "test", "clock": clock} | options
            return await stack.enter_async_context(TieredCache(l1, l2, l3, **options))

        yield opened
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


@pytest.fixture
def settle():
    """Lets everything run that does not wait for something."""

    async def turns():
        for _ in range(50):
            await asyncio.sleep(0)

    return turns
