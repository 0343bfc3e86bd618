"""`acgsperf.testing`: the memory tier, the clock and the fixtures."""

import asyncio
import dataclasses
import subprocess
import sys
from contextlib import suppress
from decimal import Decimal

import pytest

from acgsperf import EntryOptions, TierError
from acgsperf.cache import cached
from acgsperf.testing import ManualClock, MemoryServer, MemoryTier, bound, memory_cache

SUITE = """
pytest_plugins = ["acgsperf.testing.fixtures"]


def test_servers(acgsperf_servers, acgsperf_clock):
    assert type(acgsperf_servers).__name__ == "ServerUrls"
    assert acgsperf_servers.redis_url and acgsperf_servers.database_url
    acgsperf_clock.advance(5)
    assert acgsperf_clock() == 1_005
"""


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def server(clock):
    return MemoryServer(clock)


@pytest.fixture
async def two(clock, server):
    """Two caches on one server, as in two processes."""
    one, other = (
        memory_cache(clock, server=server, lock_ttl=5, options=EntryOptions(ttl=60, stale_ttl=60)) for _ in range(2)
    )
    async with one, other:
        yield one, other


def test_a_clock_moves_forward_only(clock):
    clock.advance(0.5)
    assert clock() == 1_000.5
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"seconds must be at least 0, got {seconds}"):
            clock.advance(seconds)


async def test_the_clock_decides_what_is_fresh(two, clock):
    one, other = two
    assert (await one.set("key", [1])).everywhere
    assert await one.get("key") == await other.get("key") == [1]
    clock.advance(60)
    assert await one.get("key") is await other.get("key") is None
    assert len(one._lower_tiers.l2.server) == 1
    clock.advance(60)
    assert len(one._lower_tiers.l2.server) == 0


async def test_a_slow_load_does_not_replace_a_newer_write(two):
    one, other = two
    loading, changed = asyncio.Event(), asyncio.Event()

    async def slow_load(key):
        loading.set()
        await changed.wait()
        return "old"

    for change in (
        lambda: other.set("key", "new", tags=["tag"]),
        lambda: other.delete("key"),
        lambda: other.invalidate_tag("tag"),
        lambda: other.clear(),
        lambda: other.expire_tag_now("tag"),
    ):
        load = asyncio.create_task(one.get_or_load("key", slow_load, tags=["tag"]))
        await loading.wait()
        await change()
        changed.set()
        assert await load == "old"
        await asyncio.sleep(0.01)
        entry = await one._lower_tiers.l2.get("key")
        assert entry is None or entry.value == "new"
        await one.clear()
        loading.clear()
        changed.clear()


async def test_tags_soft_invalidation_and_locks(two, clock):
    one, other = two
    await one.set_many({"a": 1, "b": 2}, tags=["tag"])
    await one.set("c", 3)
    await one.expire_now("c")
    assert await other.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    await other.expire_tag_now("tag")
    tier = other._lower_tiers.l2
    assert {key: entry.value for key, entry in (await tier.get_many(["a", "b", "c"])).items()} == {
        "a": 1,
        "b": 2,
        "c": 3,
    }
    assert await tier.invalidate_tag("tag") == 2
    assert await tier.get_many(["a", "b"]) == {}
    calls = []

    async def load(key):
        calls.append(key)
        await asyncio.sleep(0.01)
        return "loaded"

    assert await asyncio.gather(one.get_or_load("d", load), other.get_or_load("d", load)) == ["loaded"] * 2
    assert calls == ["d"]
    token = await tier.lock("e", 5)
    assert await one._lower_tiers.l2.lock("e", 5) == 0
    clock.advance(5)
    assert await one._lower_tiers.l2.lock("e", 5) > token
    assert not await tier.unlock("e", token)


async def test_a_server_that_is_down_fails_as_a_real_one_does(two, server):
    one, other = two
    await one.set("key", 1)
    server.up = False
    assert await other.get("key") is None
    written = await one.set("key", 2)
    assert (written.everywhere, written.l2) == (False, False)
    assert not (await one.health()).ok
    assert (await one.delete("key")).l2 is False
    assert await other.get_or_load("other", lambda key: asyncio.sleep(0, "loaded")) == "loaded"
    server.up = True
    server.lose()
    assert await other.get("key") is None
    assert server.calls["get_many"] > 0
    assert one.stats().l2.skipped > 0


async def test_a_load_from_before_a_loss_is_not_stored(clock, server):
    tier = MemoryTier(server)
    await tier.open("space")
    (seen,) = (await tier.observe(["key"])).values()
    server.lose()
    (again,) = (await tier.observe(["key"])).values()
    assert (seen.id, seen.invalidations) != (again.id, again.invalidations)
    with pytest.raises(TierError, match="already open"):
        await tier.open("space")
    await tier.close()
    with pytest.raises(TierError, match="not open"):
        await tier.get("key")


@cached(key=lambda: "price")
async def price():
    return 9.99


@cached(key=lambda: "stock")
async def stock():
    return 7


async def test_cached_functions_use_another_cache_within_a_block_only():
    async with memory_cache() as usual, memory_cache() as other:
        price.bind(usual)
        with suppress(ZeroDivisionError), bound(other, price, stock):
            assert (await price(), await stock()) == (9.99, 7)
            with bound(usual, price):
                assert price.cache is usual
            assert price.cache is other
            raise ZeroDivisionError
        assert (price.cache, stock.cache) == (usual, None)
        assert await other.get_many(["price", "stock"]) == {"price": 9.99, "stock": 7}
        assert await usual.get("price") is None


async def test_a_function_that_is_not_cached_cannot_be_bound():
    with (
        pytest.raises(TypeError, match=r"^functions must be made by cached\(\), got <function "),
        bound(memory_cache(), stock, test_a_function_that_is_not_cached_cannot_be_bound),
    ):
        pass
    assert stock.cache is None


@dataclasses.dataclass
class Price:
    cents: Decimal


async def test_the_tier_keeps_values_as_a_server_does(clock, server, caplog):
    async with memory_cache(clock, server=server) as one, memory_cache(clock, server=server) as other:
        value = {"cents": [1]}
        assert (await one.set("tea", value)).everywhere
        value["cents"].append(2)
        found = await other.get("tea")
        assert found == {"cents": [1]}
        found["cents"].clear()
        assert await other.get("tea") == {"cents": [1]}
        assert (await one.set("tea", Decimal("1.5"))).l2 is False
        assert "the lower tiers do not store a value with a decimal.Decimal" in caplog.text
        assert await other.get("tea") is None, "the former value is removed"
        assert await one.get_or_load("milk", lambda key: asyncio.sleep(0, Decimal(1))) == 1
        assert await other.get("milk") is None
    typed = {"server": server, "value_type": Price, "namespace": "typed"}
    async with memory_cache(clock, **typed) as one, memory_cache(clock, **typed) as other:
        assert (await one.set("tea", Price(Decimal("1.5")))).everywhere
        assert await other.get("tea") == Price(Decimal("1.5"))
        await one.expire_now("tea")
        assert await other.get("tea") is None
        assert (await one.set("tea", "1.5")).l2 is False


def test_the_fixtures_work_in_a_suite_of_its_own(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
