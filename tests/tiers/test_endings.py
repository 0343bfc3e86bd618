"""Closing that is cut short, and opening again: nothing is left, and the tier works."""

import asyncio
import gc

import asyncpg
import pytest
import redis.asyncio

from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier


@pytest.fixture
def kinds():
    return {"redis": RedisTier, "postgres": PostgresTier}


@pytest.fixture
async def connections(private_server):
    """How many connections the server has, other than this one."""
    if private_server.kind == "redis":
        async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as admin:

            async def count():
                return len(await admin.client_list()) - 1

            yield count
    else:
        admin = await asyncpg.connect(private_server.url)

        async def count():
            return await admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

        yield count
        await admin.close()


async def _until_none(connections):
    async with asyncio.timeout(10):
        while await connections():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_closing_that_was_cut_short_can_be_repeated(private_server, kinds, connections, entry, cancellations):
    tier = kinds[private_server.kind](private_server.url, deadline=5)
    for turns in range(8):
        await tier.open("n")
        assert await tier.set("k", entry())
        under_way = [asyncio.ensure_future(tier.get(f"k{i}")) for i in range(3)]
        closing = asyncio.ensure_future(tier.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(cancellations):
            closing.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(closing, *under_way, return_exceptions=True)
        await tier.close()
        assert tier._calls.tasks == set()
        await tier.close()
    await _until_none(connections)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await tier.open("n")
    assert await tier.set("k", entry())
    await tier.close()
    gc.collect()


async def test_a_tier_whose_closing_was_cut_short_can_be_opened(private_server, kinds, connections, entry):
    tier = kinds[private_server.kind](private_server.url, deadline=5)
    for turns in range(8):
        await tier.open("n")
        assert await tier.set("k", entry())
        closing = asyncio.ensure_future(tier.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        if turns == 0:
            # It was cancelled before it began.
            await tier.close()
    await tier.open("n")
    assert await tier.get("k") is not None
    await tier.close()
    await _until_none(connections)


@pytest.mark.parametrize("frozen", [False, True])
async def test_closing_is_cut_short_while_a_call_is_in_flight(
    private_server, kinds, connections, until_it_answers, entry, frozen
):
    tier = kinds[private_server.kind](private_server.url, deadline=0.25)
    await tier.open("n")
    if frozen:
        private_server.freeze()
    calls = [asyncio.ensure_future(tier.get("k")), asyncio.ensure_future(tier.set("k", entry()))]
    # Since Python 3.12, `wait_for` begins to close at once: let the calls begin before it.
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tier.close(), 0.0001)
    private_server.thaw()
    await tier.close()
    await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    await _until_none(connections)
    await tier.open("n")
    await until_it_answers(tier)
    assert await tier.set("k", entry())
    await tier.close()


def test_a_tier_can_be_opened_in_one_event_loop_after_another(private_server, kinds, entry):
    tier = kinds[private_server.kind](private_server.url, deadline=5)

    async def use(number):
        await tier.open("n")
        if private_server.kind == "postgres":
            admin = await asyncpg.connect(private_server.url)
            await admin.execute("DROP TABLE acgsperf_cache_v2")
            await admin.close()
            # It notices; the next calls create the table together.
            await tier.get("k")
        found, stored, deleted = await asyncio.gather(
            tier.get("absent"), tier.set("k", entry(number)), tier.delete_many(["absent"])
        )
        assert (found, stored, deleted) == (None, True, 0)
        assert (await tier.get("k")).value == number
        if private_server.kind == "redis":
            assert all(await asyncio.gather(*(tier.lock(f"{number} {i}", 5) for i in range(30))))
        await tier.close()

    for number in range(3):
        asyncio.run(use(number))
    assert set(tier.stats().errors) <= {"UndefinedTableError"}
