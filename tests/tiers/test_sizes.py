"""Large calls: size is not failure, and a server that does not answer costs no more than with small ones."""

import asyncio
import time

import pytest
from bare import bare

from acgsperf.tiers import BreakerState, Entry
from acgsperf.tiers.write_batches import MAX_BYTES_TOGETHER


@pytest.fixture
def many():
    return {f"k{number}": Entry(number, 1.0, None, None) for number in range(30_000)}


async def test_large_calls_arrive_whole(private_tier, many):
    assert await private_tier.set_many(many) == set(many)
    found = await private_tier.get_many(list(many))
    assert {key: bare(found[key]) for key in found} == many
    assert await private_tier.delete_many(list(many)) == len(many)
    assert await private_tier.get_many(list(many)) == {}
    assert private_tier.stats().errors == {}
    assert private_tier.stats().breaker is BreakerState.CLOSED


async def test_many_small_calls_at_once_arrive_whole(tier, many):
    keys = list(many)[:12_000]
    assert all(await asyncio.gather(*(tier.set(key, many[key]) for key in keys)))
    found = await asyncio.gather(
        *(tier.get(key) for key in keys),
        *(tier.get_many(keys[at : at + 1_500]) for at in range(0, len(keys), 1_500)),
    )
    assert list(map(bare, found[: len(keys)])) == [many[key] for key in keys]
    assert [bare(entry) for part in found[len(keys) :] for entry in part.values()] == [many[key] for key in keys]
    assert await asyncio.gather(*(tier.delete_many([key]) for key in keys)) == [1] * len(keys)
    assert tier.stats().errors == {}


async def test_large_values_arrive_whole(private_tier, entry):
    entries = {f"k{number}": entry("x" * (MAX_BYTES_TOGETHER // 4)) for number in range(100)}
    assert await private_tier.set_many(entries) == set(entries)
    for key, stored in entries.items():
        assert bare(await private_tier.get(key)) == bare(stored)
    assert private_tier.stats().errors == {}


@pytest.mark.alone
async def test_later_calls_for_a_key_of_a_large_call_are_carried_out_later(private_tier, many, entry):
    writing = asyncio.ensure_future(private_tier.set_many(many))
    await asyncio.sleep(0)
    later = asyncio.ensure_future(private_tier.set("k29999", entry("later")))
    # It waits for the write of its key, at most for the deadline.
    found = await private_tier.get("k29999")
    assert found is None or found.value == "later"
    assert await later
    assert (await private_tier.get("k29999")).value == "later"
    assert len(await writing) == len(many)


async def test_a_large_call_to_a_frozen_server_ends_soon(private_server, private_tier, many):
    private_server.freeze()
    for call in (
        lambda: private_tier.set_many(many),
        lambda: private_tier.get_many(list(many)),
        lambda: private_tier.delete_many(list(many)),
        lambda: asyncio.gather(*(private_tier.get(key) for key in many)),
    ):
        started = time.monotonic()
        await call()
        # Packing 30,000 entries takes its time as well.
        assert time.monotonic() - started < 2
    stats = private_tier.stats()
    assert stats.timeouts <= 20
    assert stats.stores == 0
    # A read that had to wait for a write of its key ends before its batch does, which counts it.
    async with asyncio.timeout(10):
        while private_tier.stats().misses < 2 * len(many):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert private_tier.stats().misses == 2 * len(many)
