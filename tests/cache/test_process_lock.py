"""Single flight between processes, here between several caches on one tier."""

import asyncio

import pytest
from loaders import Loader

from acgsperf.errors import LoadTimeoutError


@pytest.fixture
async def two(open_cache, l2):
    return [await open_cache(l2, lock_ttl=30) for _ in range(2)]


async def test_two_processes_load_once(two, l2):
    loader = Loader(gate_open=False)
    first = asyncio.create_task(two[0].get_or_load("key", loader))
    await loader.began.wait()
    second = asyncio.create_task(two[1].get_or_load("key", loader))
    await asyncio.sleep(0.05)
    loader.gate.set()
    assert await asyncio.gather(first, second) == ["loaded"] * 2
    assert loader.calls == 1
    assert two[1].get_local("key") == "loaded"
    assert l2.locks == {}


async def test_a_value_stored_just_before_the_lock_was_acquired_is_not_loaded_again(two, l2, settle):
    loader = Loader("mine")
    l2.gate.clear()
    task = asyncio.create_task(two[1].get_or_load("key", loader))
    await settle()
    # The read has found nothing, but has not returned. Meanwhile another process loads and stores the value.
    l2.data["test", "key"] = two[0]._staleness.entry("theirs", two[0].options, ())
    l2.gate.set()
    assert await task == "theirs"
    assert loader.calls == 0
    assert l2.locks == {}


async def test_a_failed_load_releases_the_lock_and_the_next_process_loads(two, l2):
    failing = Loader(error=OSError("down"), gate_open=False)
    first = asyncio.create_task(two[0].get_or_load("key", failing))
    await failing.began.wait()
    second = asyncio.create_task(two[1].get_or_load("key", Loader("second")))
    await asyncio.sleep(0.03)
    failing.gate.set()
    with pytest.raises(OSError, match="down"):
        await first
    assert await second == "second"
    assert l2.locks == {}


async def test_a_cancelled_load_releases_the_lock(two, l2, settle):
    loader = Loader(gate_open=False)
    task = asyncio.create_task(two[0].get_or_load("key", loader))
    await loader.began.wait()
    assert len(l2.locks) == 1
    task.cancel()
    await settle()
    assert l2.locks == {}


async def test_if_the_tier_does_not_answer_a_process_loads_without_a_lock(two, l2):
    l2.up = False
    assert await two[0].get_or_load("key", Loader()) == "loaded"


async def test_the_wait_for_a_lock_that_is_never_released_ends_after_its_ttl(open_cache, l2):
    cache = await open_cache(l2, lock_ttl=0.03)
    l2.locks["test", "key"] = (1, float("inf"))
    assert await cache.get_or_load("key", Loader()) == "loaded"


async def test_a_load_that_outlives_its_lock_returns_the_value_stored_since(open_cache, l2):
    cache = await open_cache(l2, lock_ttl=0.01)
    other = await open_cache(l2)
    loader = Loader("old", gate_open=False)
    task = asyncio.create_task(cache.get_or_load("key", loader))
    await loader.began.wait()
    await other.set("key", "new")
    await asyncio.sleep(0.02)
    loader.gate.set()
    assert await task == "new"
    assert l2["key"].value == "new"


async def test_a_set_during_a_locked_load_wins(two, l2):
    loader = Loader("old", gate_open=False)
    task = asyncio.create_task(two[0].get_or_load("key", loader))
    await loader.began.wait()
    await two[0].set("key", "new")
    loader.gate.set()
    assert await task == "old"
    assert (two[0].get_local("key"), l2["key"].value) == ("new", "new")


async def test_the_hard_timeout_includes_the_wait_for_the_lock(open_cache, l2):
    cache = await open_cache(l2, lock_ttl=30, hard_timeout=0.03)
    l2.locks["test", "key"] = (1, float("inf"))
    with pytest.raises(LoadTimeoutError):
        await cache.get_or_load("key", Loader())


async def test_a_lock_needs_a_tier_that_can_lock(open_cache):
    with pytest.raises(TypeError, match="lock_ttl"):
        await open_cache(lock_ttl=30)
