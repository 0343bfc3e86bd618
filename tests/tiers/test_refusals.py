"""What a server refuses: it concerns the command, is reported truthfully, and takes nothing else along."""

import asyncio

import asyncpg
import pytest
import redis.asyncio
from fake_redis import FakeRedis

from acgsperf.tiers import BreakerState
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier


@pytest.fixture
async def refuse(private_server):
    """Make a server refuse all writes from now on, and answer reads."""
    if private_server.kind == "redis":
        async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as admin:
            # As a failover makes a server a replica.
            yield lambda: admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    else:
        admin = await asyncpg.connect(private_server.url)

        async def read_only():
            await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await admin.execute("SELECT pg_reload_conf()")

        yield read_only
        await admin.close()


async def test_refused_writes_do_not_close_the_tier_to_reads(private_tier, refuse, until_refused, entry):
    assert await private_tier.set("k", entry())
    await refuse()
    await until_refused(private_tier)
    for _ in range(5):
        assert not await private_tier.set("other", entry())
    assert (await private_tier.get("k")).value == "v"
    stats = private_tier.stats()
    assert stats.breaker is BreakerState.CLOSED
    assert set(stats.errors) <= {"ReadOnlyError", "ReadOnlySQLTransactionError"}


@pytest.fixture
def until_refused(entry):
    async def wait(tier):
        async with asyncio.timeout(10):
            while await tier.set("probe", entry()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    return wait


async def test_every_writing_call_reports_a_refusal(private_tier, refuse, until_refused, entry):
    entries = {"k": entry("former"), "tagged": entry("former", tags=("t",))}
    assert await private_tier.set_many(entries) == set(entries)
    await refuse()
    await until_refused(private_tier)
    assert not await private_tier.set("k", entry("new"))
    assert not await private_tier.set("tagged", entry("new", tags=("t",)))
    assert await private_tier.set_many({"k": entry("new"), "other": entry()}) == frozenset()
    assert not await private_tier.set("k", entry(object()))
    assert await private_tier.delete_many(["k"]) is None
    assert await private_tier.delete_many(["k", "absent"]) is None
    assert await private_tier.invalidate_tag("t") is None
    assert await private_tier.clear() is None
    # The refused writes have changed nothing.
    assert {key: e.value for key, e in (await private_tier.get_many(list(entries))).items()} == {
        "k": "former",
        "tagged": "former",
    }
    assert private_tier.stats().breaker is BreakerState.CLOSED


async def test_a_caller_hears_only_of_its_own_refusals(private_tier, private_server, entry):
    if private_server.kind == "redis":
        async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as admin:
            await admin.config_set("maxmemory", "1")
    else:
        admin = await asyncpg.connect(private_server.url)
        await admin.execute("ALTER TABLE acgsperf_cache_v2 ADD CHECK (octet_length(value) < 1000)")
        await admin.close()
    stored, deleted = await asyncio.gather(
        private_tier.set("k", entry("x" * 2_000)), private_tier.delete_many(["other"])
    )
    assert (stored, deleted) == (False, 0)
    assert private_tier.stats().refused == 1


async def test_a_refused_entry_leaves_nothing_of_the_former_value(private_tier, private_server, entry):
    assert await private_tier.set("k", entry("former"))
    if private_server.kind == "redis":
        async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as admin:
            await admin.config_set("maxmemory", "1")
    else:
        admin = await asyncpg.connect(private_server.url)
        await admin.execute("ALTER TABLE acgsperf_cache_v2 ADD CHECK (octet_length(value) < 1000)")
        await admin.close()
    assert not await private_tier.set("k", entry("x" * 2_000))
    assert await private_tier.get("k") is None


class TestRedis:
    @pytest.fixture
    def kind(self):
        return "redis"

    @pytest.fixture
    async def admin(self, private_server):
        async with redis.asyncio.Redis.from_url(private_server.url, protocol=2) as client:
            yield client

    @pytest.fixture
    async def restricted(self, private_server, admin):
        """A tier whose user may not use all keys of entries and tags."""
        tiers = []

        async def open_one(*rules):
            await admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "resetkeys", *rules, "+@all")
            tier = RedisTier(private_server.url.replace("//", "//app:pw@"), deadline=5)
            tiers.append(tier)
            await tier.open("n")
            return tier

        yield open_one
        for tier in tiers:
            await tier.close()

    async def test_a_refused_tag_takes_no_entry_without_it_along(self, private_tier, restricted, entry):
        await private_tier.clear()
        await private_tier.close()
        await private_tier.open("n")
        await private_tier.set_many({"plain": entry(1), "tagged": entry(2, tags=("x",))})
        tier = await restricted("~n:*")
        for _ in range(4):
            assert {key: e.value for key, e in (await tier.get_many(["plain", "tagged"])).items()} == {"plain": 1}
            assert (await tier.get("plain")).value == 1
        assert tier.stats().breaker is BreakerState.CLOSED
        assert set(tier.stats().errors) == {"NoPermissionError"}

    async def test_one_of_several_tags_may_be_refused(self, private_tier, restricted, entry):
        await private_tier.close()
        await private_tier.open("n")
        await private_tier.set_many({"a": entry(1, tags=("a",)), "b": entry(2, tags=("b",))})
        tier = await restricted("~n:*", "~n%tag:a")
        assert list(await tier.get_many(["a", "b"])) == ["a"]

    async def test_a_refused_key_takes_no_other_key_along(self, private_tier, restricted, entry):
        await private_tier.close()
        await private_tier.open("n")
        await private_tier.set_many({"a1": entry(1), "b1": entry(2)})
        tier = await restricted("~n:a*", b"~n:\xff*")
        for _ in range(4):
            a, b = await asyncio.gather(tier.get("a1"), tier.get("b1"))
            assert a.value == 1
            assert b is None
        stored = await asyncio.gather(tier.set("a2", entry()), tier.set("b2", entry()))
        assert stored == [True, False]
        assert tier.stats().breaker is BreakerState.CLOSED

    async def test_an_entry_whose_tag_is_refused_is_not_stored(self, private_tier, restricted, entry):
        await private_tier.close()
        await private_tier.open("n")
        assert await private_tier.set("k", entry("former"))
        tier = await restricted("~n:*", "~n%tag:a")
        stored = await tier.set_many(
            {"k": entry("new", tags=("a", "b")), "other": entry(tags=("a",)), "plain": entry()}
        )
        assert stored == {"other", "plain"}
        assert await private_tier.get("k") is None
        assert tier.stats().refused == 1

    async def test_a_replica_without_its_master_refuses_all_and_opens_the_breaker(self, private_tier, admin, entry):
        assert await private_tier.set("k", entry())
        await admin.config_set("replica-serve-stale-data", "no")
        await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        for _ in range(3):
            assert await private_tier.get("k") is None
        assert private_tier.stats().breaker is BreakerState.OPEN
        assert private_tier.stats().errors == {"MasterDownError": 3}

    @pytest.mark.parametrize(
        "error",
        [
            b"-LOADING Redis is loading the dataset in memory\r\n",
            b"-CLUSTERDOWN The cluster is down\r\n",
            b"-MASTERDOWN Link with MASTER is down\r\n",
            b"-BUSY Redis is busy running a script\r\n",
        ],
    )
    async def test_what_is_refused_to_all_opens_the_breaker(self, servers, entry, error):
        async with FakeRedis(servers.redis_url) as fake:
            tier = RedisTier(fake.url, deadline=0.25)
            await tier.open("n")
            fake.change = {name: lambda reply: error for name in ("EVALSHA", "MGET", "ECHO", "TIME")}
            fake.times = 1_000
            for _ in range(3):
                assert not await tier.set("k", entry())
            assert tier.stats().breaker is BreakerState.OPEN
            await tier.close()


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (asyncpg.ReadOnlySQLTransactionError, True),
        (asyncpg.DiskFullError, True),
        (asyncpg.CheckViolationError, True),
        (asyncpg.InsufficientPrivilegeError, True),
        (asyncpg.UndefinedTableError, True),
        (asyncpg.QueryCanceledError, True),
        (asyncpg.CannotConnectNowError, False),
        (asyncpg.AdminShutdownError, False),
        (asyncpg.TooManyConnectionsError, False),
        (asyncpg.InvalidPasswordError, False),
        (asyncpg.ConnectionDoesNotExistError, False),
        (OSError, False),
    ],
)
def test_an_error_of_postgresql_concerns_its_statement_or_all(error, refused):
    assert PostgresTier("postgresql://")._is_refusal(error("x")) is refused
