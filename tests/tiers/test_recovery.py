"""After an outage of any length, a server that is back is used within 2 s."""

import asyncio
import time

import pytest

from acgsperf.testing.server_binaries import redis_program
from acgsperf.tiers import BreakerState
from acgsperf.tiers.postgres import PostgresTier


@pytest.fixture
def outage(monkeypatch):
    """Let the breaker of a tier live through a long outage, with attempts that fail."""

    async def last(tier):
        skipped = 0.0
        monkeypatch.setattr(tier._breaker, "_clock", lambda: skipped + time.monotonic())
        for _ in range(10):
            skipped += 40
            assert await tier.get("k") is None
        assert tier.stats().breaker is BreakerState.OPEN

    return last


async def _used_again(tier):
    started = time.monotonic()
    while await tier.get("k") is None:
        await asyncio.sleep(0.01)
        # A machine that is busy with other tests may take its time.
        assert time.monotonic() - started < 2.5


async def _written_again(tier, entry):
    # A server that was started again may have lost writes: what it had is a miss.
    started = time.monotonic()
    while not await tier.set("k", entry()):
        await asyncio.sleep(0.01)
        assert time.monotonic() - started < 2.5
    assert await tier.get("k") is not None


async def test_a_server_that_was_frozen_is_used_again_soon(private_server, private_tier, entry, outage):
    assert await private_tier.set("k", entry())
    private_server.freeze()
    await outage(private_tier)
    private_server.thaw()
    await _used_again(private_tier)
    assert private_tier.stats().breaker is BreakerState.CLOSED


async def test_a_redis_that_was_killed_is_used_again_soon(tmp_path, entry, outage):
    from acgsperf.tiers.redis import RedisTier

    executable = redis_program()
    socket = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path), "--appendonly", "yes"]

    async def start():
        return await asyncio.create_subprocess_exec(executable, *options, stdout=asyncio.subprocess.DEVNULL)

    process = await start()
    tier = RedisTier(f"unix://{socket}")
    try:
        await tier.open("n")
        async with asyncio.timeout(10):
            while not await tier.set("k", entry(kept=None)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        await outage(tier)
        process = await start()
        await _written_again(tier, entry)
    finally:
        process.kill()
        await process.wait()
        await tier.close()


async def test_a_postgresql_that_was_killed_is_used_again_soon(victim, entry, outage):
    tier = PostgresTier(victim.dsn)
    await tier.open("n")
    try:
        async with asyncio.timeout(10):
            while not await tier.set("k", entry(kept=None)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.to_thread(victim.kill)
        await outage(tier)
        # Returns when the server accepts connections.
        await asyncio.to_thread(victim.start)
        await _used_again(tier)
    finally:
        await tier.close()
