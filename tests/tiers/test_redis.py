"""What is Redis's own."""

import asyncio
import gc
import time

import pytest
import redis.asyncio

from acgsperf.backplane.redis import RedisBackplane
from acgsperf.testing.server_binaries import redis_program
from acgsperf.tiers import BreakerState, LockingTier
from acgsperf.tiers.redis import RedisTier


@pytest.fixture
def kind():
    return "redis"


async def test_a_server_without_memory_refuses_writes_and_goes_on_reading(private_tier, entry):
    assert await private_tier.set("k", entry())
    await private_tier._ask([("CONFIG", "SET", "maxmemory", "1")], list)
    assert not await private_tier.set("other", entry())
    assert (await private_tier.get("k")).value == "v"
    stats = private_tier.stats()
    assert stats.refused == 1
    assert stats.errors == {"OutOfMemoryError": 1}


async def test_a_write_that_is_refused_for_lack_of_memory_leaves_nothing_of_the_former_value(private_tier, entry):
    await private_tier.set_many({"k": entry("former"), "other": entry()})
    await private_tier._ask([("CONFIG", "SET", "maxmemory", "1")], list)
    assert not await private_tier.set("k", entry("new"))
    assert set(await private_tier.get_many(["k", "other"])) == {"other"}


async def test_health_names_the_server_that_runs(tier, servers):
    async with redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as other:
        about = await other.info("server")
    name = f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {about['redis_version']}"
    assert (await tier.health()).detail.startswith(f"{name} at ")


async def test_connections_that_the_server_closed_while_idle_cost_no_miss(tier, servers, entry):
    await tier.set("k", entry())
    async with redis.asyncio.Redis.from_url(servers.redis_url, protocol=2) as other:
        for _ in range(3):
            assert await other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await tier.get("k") is not None
    assert tier.stats().errors == {}


async def test_a_server_that_was_killed_and_started_again_is_used_again(
    private_server, private_tier, until_it_answers, entry
):
    assert await private_tier.set("k", entry())
    private_server.kill()
    for _ in range(5):
        assert await private_tier.get("k") is None
    assert set(private_tier.stats().errors) == {"ConnectionError"}
    assert private_tier.stats().breaker is BreakerState.OPEN
    executable = redis_program()
    socket = private_server.folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(private_server.folder), "--save", ""]
    process = await asyncio.create_subprocess_exec(executable, *options, stdout=asyncio.subprocess.DEVNULL)
    try:
        await until_it_answers(private_tier)
        assert await private_tier.get("k") is None
        assert await private_tier.set("k", entry())
        assert await private_tier.get("k") is not None
    finally:
        process.kill()
        await process.wait()


async def test_an_evicted_generation_makes_misses_and_no_stale_hits(tier, entry):
    await tier.set("k", entry(tags=("x",)))
    await tier._ask([("DEL", tier.keys.tag("x"))], list)
    assert await tier.get("k") is None
    await tier.set("other", entry(tags=("x",)))
    assert await tier.get("k") is None


async def test_the_server_keeps_an_entry_for_its_time_and_the_retention(tier, entry):
    await tier.set_many({"k": entry(kept=40), "ever": entry(kept=None)})
    left, ever = await tier._ask([("PTTL", tier.keys.entry("k")), ("PTTL", tier.keys.entry("ever"))], list)
    assert 99_000 < left <= 100_000
    assert ever == -1


async def test_a_lock_is_held_by_one_and_its_tokens_grow(tier):
    assert isinstance(tier, LockingTier)
    first = await tier.lock("k", 60)
    assert first
    assert await tier.lock("k", 60) == 0
    assert not await tier.unlock("k", first + 1)
    assert await tier.unlock("k", first)
    second = await tier.lock("k", 0.01)
    assert second > first
    await asyncio.sleep(0.02)
    assert await tier.lock("k", 60) > second
    assert not await tier.unlock("k", second)


async def test_tokens_grow_though_the_server_forgot_the_last_one(tier):
    first = await tier.lock("a", 60)
    await tier._ask([("DEL", tier.keys.fence)], list)
    assert await tier.lock("b", 60) > first


async def test_a_lock_cannot_be_had_from_a_server_that_is_down(tmp_path):
    tier = RedisTier(f"unix://{tmp_path}/none")
    await tier.open("n")
    assert await tier.lock("k", 1) is None
    assert not await tier.unlock("k", 1)
    await tier.close()


async def test_a_lock_that_nobody_heard_of_is_given_back(tier):
    for turns in range(1, 12):
        taking = asyncio.ensure_future(tier.lock("k", 60))
        for _ in range(turns):
            await asyncio.sleep(0)
        heard_of = taking.done()
        taking.cancel()
        token = (await asyncio.gather(taking, return_exceptions=True))[0]
        if heard_of:
            assert await tier.unlock("k", token)
        started = time.monotonic()
        while not (token := await tier.lock("k", 60)):
            assert time.monotonic() - started < 2
            await asyncio.sleep(0.01)
        assert await tier.unlock("k", token)


async def test_a_lock_that_a_frozen_server_takes_later_is_given_back(private_server, private_tier, until_it_answers):
    private_server.freeze()
    assert await private_tier.lock("k", 60) is None
    private_server.thaw()
    await until_it_answers(private_tier)
    started = time.monotonic()
    while not await private_tier.lock("k", 60):
        assert time.monotonic() - started < 3
        await asyncio.sleep(0.05)


async def test_a_lock_that_the_server_refuses_is_not_looked_for(private_tier):
    await private_tier._ask([("CONFIG", "SET", "maxmemory", "1")], list)
    assert await private_tier.lock("k", 60) is None
    assert private_tier._locks.unknown == {}


async def test_a_lock_that_was_asked_for_twice_is_had_once(tier):
    owner = "owner"
    call = tier._locks.lock_call("k", 60_000, owner)
    first, second = await tier._scripts.run([call, call])
    assert first == second > 0
    assert await tier.lock("k", 60) == 0
    assert await tier.unlock("k", first)


async def test_a_frozen_server_costs_a_lock_the_deadline(private_server, private_tier):
    private_server.freeze()
    started = time.monotonic()
    assert await private_tier.lock("k", 1) is None
    assert time.monotonic() - started < 1.5
    private_server.thaw()


@pytest.mark.parametrize(
    "url", ["redis://:pa/ss-word@host", "http://:pa-ss-word@host", "redis://:pa-ss-word@host:port"]
)
def test_an_error_about_a_url_does_not_repeat_the_password(url):
    with pytest.raises(ValueError, match="Redis URL") as caught:
        RedisTier(url)
    assert "ss-word" not in str(caught.value)


def test_a_tier_does_not_show_its_password_and_checks_the_host_name():
    tier = RedisTier("rediss://user:pass-word@cache.example:6380/1")
    assert repr(tier) == "RedisTier('cache.example:6380')"
    context = tier.connections.new().ssl_context
    assert context.check_hostname
    assert context.cert_reqs.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://", "localhost:6379"),
        ("redis://:s3cr3t@[::1]:1", "[::1]:1"),
        ("unix://user:s3cr3t@/run/redis.sock?db=2", "unix:/run/redis.sock"),
    ],
)
def test_a_tier_and_a_backplane_name_their_server(url, server):
    assert repr(RedisTier(url)) == f"RedisTier({server!r})"
    assert repr(RedisBackplane(url)) == f"RedisBackplane({server!r})"


async def test_options_of_a_url_do_not_bring_back_retries_or_another_protocol(servers, namespace):
    tier = RedisTier("redis://localhost?protocol=3&socket_timeout=9&retry_on_timeout=yes&decode_responses=1")
    connection = tier.connections.new()
    assert connection.protocol == 2
    assert connection.retry.get_retries() == 0
    assert connection.socket_timeout is None
    assert connection.encoder.decode_responses is False


async def test_closing_leaves_no_connection_behind(servers, namespace, entry):
    tier = RedisTier(servers.redis_url)
    await tier.open(namespace)
    await asyncio.gather(*(tier.get(f"k{i}") for i in range(20)))
    await tier.clear()
    await tier.close()
    gc.collect()
    assert tier.connections._idle == []
