"""A pool and a tier find the server that accepts writes, whatever a failover has made of the former one."""

import asyncio
import logging

import asyncpg
import pytest

from acgsperf import ConnectionPool, LRUCache, PoolError, TieredCache
from acgsperf.backplane import BackplaneState
from acgsperf.pool.options import CloseReason
from acgsperf.tiers import BreakerState
from acgsperf.tiers.postgres import PostgresTier
from topology.measured import BOUND_S, INSERT, TABLE, cache_promotion, pool_promotion
from topology.postgres_servers import dsn_of


class Name:
    """A name that leads to a server, like one of DNS: a link to the directory of its socket."""

    def __init__(self, path):
        self._path = path
        self.dsn = dsn_of(path)

    def point_to(self, folder):
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(folder)


@pytest.fixture
async def table(replicated):
    await _create_table(replicated)


async def _create_table(servers):
    connection = await asyncpg.connect(servers.primary_dsn)
    await connection.execute(TABLE)
    await connection.close()
    await servers.caught_up()


@pytest.fixture
def name(replicated, scratch):
    name = Name(scratch / "name")
    name.point_to(replicated.folders[1])
    return name


async def _is_true(ask):
    try:
        return await ask()
    except (PoolError, asyncpg.PostgresError, OSError):
        return None


async def test_a_pool_leaves_a_standby_by_its_name(replicated, name, table, caplog):
    caplog.set_level(logging.INFO, "acgsperf.pool")
    async with ConnectionPool(name.dsn, min_size=3, max_size=5) as pool:
        assert (await pool.health()).role == "standby"
        name.point_to(replicated.folders[0])
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with pool.acquire() as connection:
                await connection.execute(INSERT)
        for _ in range(3):
            async with pool.acquire() as connection:
                await connection.execute(INSERT)
        stats = pool.stats()
        assert stats.failovers == 1
        assert stats.closed[CloseReason.READ_ONLY] >= 1
        assert (await pool.health()).role == "primary"
    messages = [record.getMessage() for record in caplog.records]
    assert [text for text in messages if "refuses to write (25006: standby)" in text]
    assert [text for text in messages if "accepts writes again" in text]


@pytest.mark.parametrize("method", ["execute", "fetchval"])
async def test_a_single_query_is_run_again_on_the_primary(replicated, name, table, method):
    async with ConnectionPool(name.dsn, min_size=1, max_size=5) as pool:
        name.point_to(replicated.folders[0])
        assert await getattr(pool, method)(INSERT + " RETURNING number")
        assert await pool.fetchval("SELECT count(*) FROM counts") == 1


async def test_many_commands_are_run_again_on_the_primary(replicated, name, table):
    async with ConnectionPool(name.dsn, min_size=1, max_size=5) as pool:
        name.point_to(replicated.folders[0])
        await pool.executemany("INSERT INTO counts VALUES ($1)", [(2,), (3,)])
        assert await pool.fetchval("SELECT sum(number) FROM counts") == 5


async def test_an_iterator_of_commands_is_not_run_again(replicated, name, table):
    """It has been read already."""
    async with ConnectionPool(name.dsn, min_size=1, max_size=5) as pool:
        name.point_to(replicated.folders[0])
        numbers = [(2,), (3,)]
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await pool.executemany("INSERT INTO counts VALUES ($1)", iter(numbers))
        await pool.executemany("INSERT INTO counts VALUES ($1)", iter(numbers))
        assert await pool.fetchval("SELECT sum(number) FROM counts") == 5


async def test_a_connection_released_by_hand_is_left_too(replicated, name, table):
    async with ConnectionPool(name.dsn, min_size=1, max_size=5) as pool:
        name.point_to(replicated.folders[0])
        connection = await pool.acquire()
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):  # noqa: PT012
            try:
                await connection.execute(INSERT)
            finally:
                await pool.release(connection)
        async with pool.acquire() as connection:
            await connection.execute(INSERT)


async def test_one_of_several_hosts_that_accepts_writes_is_preferred(replicated, table):
    async with ConnectionPool(dsn_of(*reversed(replicated.folders)), min_size=1, max_size=5) as pool:
        assert (await pool.health()).role == "standby"
        await pool.execute(INSERT)
        assert (await pool.health()).role == "primary"


async def test_a_read_only_transaction_of_a_borrower_closes_nothing(replicated, table):
    async with ConnectionPool(replicated.primary_dsn, min_size=1, max_size=1) as pool:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with pool.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute(INSERT)
        await pool.execute(INSERT)
        stats = pool.stats()
        assert (stats.failovers, stats.opened) == (0, 1)


async def test_a_standby_without_a_primary_serves_reads(replicated, table):
    async with ConnectionPool(replicated.standby_dsn, min_size=2, max_size=5) as pool:
        for _ in range(5):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await pool.execute(INSERT)
            assert await pool.fetchval("SELECT count(*) FROM counts") == 0
        # It connects again once a second, not for each error.
        assert pool.stats().opened <= 5
        assert pool.stats().failovers == 1


@pytest.mark.parametrize("wanted", ["read-write", "primary"])
async def test_a_pool_that_wants_to_write_has_no_standby(replicated, wanted):
    async with ConnectionPool(dsn_of(*reversed(replicated.folders)), min_size=1, target_session_attrs=wanted) as pool:
        assert (await pool.health()).role == "primary"


def test_an_unknown_kind_of_server_is_refused():
    with pytest.raises(ValueError, match=r"target_session_attrs must be one of: any, .*got 'master'"):
        ConnectionPool("postgresql://u:secret@h/d", target_session_attrs="master")
    with pytest.raises(ValueError, match="max_replica_lag must be greater than 0, got -1"):
        ConnectionPool("postgresql://u:secret@h/d", max_replica_lag=-1)


@pytest.mark.alone
async def test_a_promotion_under_load(promotable):
    """The primary dies, and its standby is promoted: writes go on within 2 s, reads throughout."""
    figures = await pool_promotion(promotable)
    print(figures)
    assert figures.first_write_s < BOUND_S
    assert figures.errors == []


@pytest.mark.alone
async def test_a_promotion_under_callers_of_a_cache(promotable, namespace):
    figures = await cache_promotion(promotable, namespace, deadline=1)
    print(figures)
    assert figures.first_write_s < BOUND_S
    assert figures.wrong == []
    assert figures.errors == []


@pytest.mark.alone
async def test_a_replica_that_lags_is_not_used(replicated, table, until):
    options = {"min_size": 1, "max_size": 5, "housekeeping_interval": 0.05}
    async with ConnectionPool(
        replicated.primary_dsn, replicas=[replicated.standby_dsn], max_replica_lag=0.3, **options
    ) as pool:
        (replica,) = pool.replicas

        async def reads_standby():
            return await pool.fetchval("SELECT pg_is_in_recovery()", readonly=True)

        async def reads_primary():
            return not await reads_standby()

        assert await reads_standby()
        await replica.execute("SELECT pg_wal_replay_pause()")
        try:
            # Without writes, there is nothing that the replica lacks.
            await asyncio.sleep(0.5)
            assert await reads_standby()
            await pool.execute(INSERT)
            assert 0.2 < await until(reads_primary) < 2
            assert replica.stats().replica_lag_s > 0.3
            assert (await replica.health()).lag_s > 0.3
        finally:
            # The next tests use the same servers.
            await replica.execute("SELECT pg_wal_replay_resume()")
        await until(reads_standby)
        assert replica.stats().replica_lag_s == 0


async def test_a_replica_that_is_a_primary_of_its_own_is_not_used(promotable, until, caplog):
    """Both servers accept writes, and what one of them gets does not reach the other."""
    options = {"min_size": 1, "max_size": 5, "housekeeping_interval": 0.05}
    both = [promotable.standby_dsn, promotable.primary_dsn]
    async with ConnectionPool(promotable.primary_dsn, replicas=both, max_replica_lag=5, **options) as pool:
        other, same = pool.replicas

        async def is_used(replica):
            return not replica._lender.lags and (await replica.health()).healthy

        async def is_left():
            return not await is_used(other)

        assert await is_used(other)
        await promotable.promote()
        await until(is_left)
        for _ in range(20):
            directory = await pool.fetchval("SHOW data_directory", readonly=True)
            assert directory == str(promotable.folders[0])
        # A server that is listed as a replica and is the primary of the pool has nothing to lag behind.
        assert await is_used(same)
        health = await other.health()
        assert (health.role, health.lag_s) == ("primary", None)
    (message,) = [record.getMessage() for record in caplog.records if "replica" in record.getMessage()]
    assert "this is a separate primary, not a replica of the pool's primary; readers use other" in message


@pytest.mark.alone
async def test_l3_follows_a_failover(promotable, namespace, entry, until):
    tier = PostgresTier(dsn_of(*promotable.folders), deadline=1)
    await tier.open(namespace)
    assert await tier.set("k", entry("old"))
    assert "primary" in (await tier.health()).detail
    await promotable.caught_up()
    promotable.kill_primary()
    assert not await tier.set("k", entry("lost"))
    await promotable.promote()

    async def is_stored():
        return await tier.set("k", entry("new"))

    assert await until(is_stored) < 2
    assert (await tier.get("k")).value == "new"
    await tier.close()


@pytest.mark.parametrize(("hosts", "pause"), [(["one"], "1 s"), (["one", "two"], "0.25 s")])
async def test_l3_tries_again_sooner_if_another_host_may_be_promoted(scratch, namespace, caplog, hosts, pause):
    tier = PostgresTier(dsn_of(*(scratch / host for host in hosts)), deadline=5)
    await tier.open(namespace)
    for _ in range(3):
        await tier.health()
    (message,) = [text for record in caplog.records if "circuit opened" in (text := record.getMessage())]
    assert message.endswith(f"calls skip this tier for {pause}")
    await tier.close()


async def test_l3_does_not_use_a_standby(replicated, name, namespace, entry, until):
    tier = PostgresTier(name.dsn, deadline=1)
    await tier.open(namespace)
    assert not await tier.set("k", entry())
    health = await tier.health()
    assert not health.ok
    name.point_to(replicated.folders[0])

    async def is_stored():
        return await tier.set("k", entry())

    assert await until(is_stored) < 3
    assert tier.stats().breaker is BreakerState.CLOSED
    await tier.close()


@pytest.mark.parametrize("way", ["set", "delete", "invalidate_tag", "clear"])
async def test_l3_repeats_a_write_that_a_standby_has_refused(replicated, name, namespace, entry, way, caplog):
    """As behind a pooler, which leads connections to another server."""
    primary = PostgresTier(replicated.primary_dsn, deadline=5)
    await primary.open(namespace)
    assert await primary.set("k", entry("old", tags=("t",)))
    name.point_to(replicated.folders[0])
    tier = PostgresTier(name.dsn + "&target_session_attrs=any", deadline=5)
    await tier.open(namespace)
    await replicated.caught_up()
    name.point_to(replicated.folders[1])
    tier._connections.pool.drain()
    assert (await tier.get("k")).value == "old"
    assert not await tier.set("k", entry("refused"))
    assert tier.stats().errors["StandbyError"] >= 1
    assert (await tier.get("k")).value == "old"
    name.point_to(replicated.folders[0])
    calls = {
        "set": lambda: tier.set("k", entry("new")),
        "delete": lambda: tier.delete_many(["k"]),
        "invalidate_tag": lambda: tier.invalidate_tag("t"),
        "clear": lambda: tier.clear(),
    }
    assert await calls[way]()
    assert (await primary.get("k") is None) is (way != "set")
    stats = tier.stats()
    assert (stats.failovers, stats.breaker) == (1, BreakerState.CLOSED)
    assert [record for record in caplog.records if "is a standby now" in record.getMessage()]
    await tier.close()
    await primary.close()


async def test_a_cache_on_both_hosts_writes_after_a_promotion(promotable, namespace, until):
    async with TieredCache(
        LRUCache(9), None, PostgresTier(dsn_of(*promotable.folders), deadline=1), namespace=namespace, deadline=1
    ) as cache:
        assert (await cache.set("k", 1)).everywhere
        promotable.kill_primary()
        await promotable.promote()

        async def is_written():
            return (await cache.set("k", 2)).l3

        assert await until(is_written) < 3
        assert await cache.get("k") == 2


async def test_a_backplane_on_both_hosts_follows_the_primary(promotable, namespace, until):
    dsn = dsn_of(*reversed(promotable.folders))
    async with (
        TieredCache(LRUCache(9), None, PostgresTier(dsn, deadline=1), namespace=namespace, deadline=1) as one,
        TieredCache(LRUCache(9), None, PostgresTier(dsn, deadline=1), namespace=namespace, deadline=1) as two,
    ):
        assert (await one.set("k", 0)).everywhere
        assert await two.get("k") == 0
        await promotable.caught_up()
        promotable.kill_primary()
        await promotable.promote()
        number = 0

        async def is_heard():
            nonlocal number
            number += 1
            written = await one.set("k", number)
            await asyncio.sleep(0.05)
            return written.everywhere and await two.get("k") == number

        async def both_follow():
            states = {cache.stats().backplane.state for cache in (one, two)}
            return states == {BackplaneState.FOLLOWING} and await is_heard()

        assert await until(is_heard) < 3
        await until(both_follow)
