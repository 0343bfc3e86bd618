"""Fixtures: a clock that the test advances, tiers in memory, and caches that must leave no task running."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from grouped import grouped
from memory_tier import MemoryTier

from acgsperf import LRUCache
from acgsperf.cache import TieredCache


@pytest.fixture
def l2(clock):
    return MemoryTier("l2", clock)


@pytest.fixture
def l3(clock):
    return MemoryTier("l3", clock)


@pytest.fixture
async def open_cache(clock):
    """Open caches with an L1 of 100 entries; close them after the test, and check that no task is left."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def opened(l2=None, l3=None, *, size=100, l1_ttl=None, **options):
            l1 = LRUCache(size, l1_ttl, clock=clock)
            options = {"namespace": "test", "clock": clock} | options
            return await stack.enter_async_context(TieredCache(l1, l2, l3, **grouped(options)))

        yield opened
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


@pytest.fixture
def settle():
    """Let every task run until it waits for something."""

    async def iterations():
        for _ in range(50):
            await asyncio.sleep(0)

    return iterations
