"""What the pool refuses, before anything has changed."""

import asyncio
from fractions import Fraction

import asyncpg
import pytest

from acgsperf import ConnectionPool, PoolManager, PoolTimeout
from acgsperf.addresses import secrets_of
from acgsperf.pool.supply import Supply
from acgsperf.tiers.postgres import PostgresTier

SOMEWHERE = "postgresql://localhost/db"
NAN = float("nan")
BAD_DSNS = [
    ("postgresql://u:se[cret@h/x", ValueError),
    ("postgresql://u:se/cret@h/x", ValueError),
    ("postgresql://u:se@b:cret@h/x", ValueError),
    ("postgresql://u:secret@h/x?cret", ValueError),
    ("postgresql://u:secret@one:1,/x", ValueError),
    ("secret", ValueError),
    ("mysql://u:secret@h/x", ValueError),
    ("", ValueError),
    (1, TypeError),
    (None, TypeError),
    (b"postgresql://u:secret@h/x", TypeError),
]


@pytest.mark.parametrize(
    ("seconds", "kind"), [("x", TypeError), (True, TypeError), (-1, ValueError), (NAN, ValueError)]
)
async def test_a_bad_timeout_is_refused_before_a_connection_is_taken(dsn, seconds, kind):
    async with ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.01) as pool:
        async with pool.acquire():
            with pytest.raises(kind, match=r"timeout must be (a number of seconds|at least 0), got"):
                await pool.acquire(seconds)
            with pytest.raises(kind, match=r"timeout must be"):
                await pool.warm(1, seconds)
            assert pool.stats().waiting == 0
            with pytest.raises(PoolTimeout):
                await pool.acquire(None)
        async with pool.acquire(5) as connection:
            assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize(
    ("seconds", "kind"), [("x", TypeError), (None, TypeError), (True, TypeError), (-1, ValueError), (NAN, ValueError)]
)
async def test_a_bad_timeout_for_close_leaves_the_pool_open(dsn, seconds, kind):
    async with PoolManager() as manager:
        pool = await manager.create("app", dsn, min_size=1, max_size=1)
        async with pool.acquire():
            waiter = asyncio.ensure_future(pool.acquire(5))
            await asyncio.sleep(0)
            for closing in (pool, manager):
                with pytest.raises(kind, match=r"timeout must be (a number of seconds|at least 0), got"):
                    await closing.close(seconds)
        await pool.release(await waiter)
        assert manager.get("app") is pool
        assert (await pool.health()).healthy


class Shouting(asyncpg.Connection):
    """A connection class of a user."""

    async def shout(self, word):
        return await self.fetchval("SELECT upper($1)", word)


class Unreset(asyncpg.Connection):
    """A connection class without a reset, as some users of PgBouncer need it."""

    def get_reset_query(self):
        return ""


async def test_a_connection_class_is_used_and_its_reset_is_as_thorough(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, connection_class=Shouting) as pool:
        async with pool.acquire() as connection:
            assert await connection.shout("who") == "WHO"
            await connection.execute("CREATE TEMPORARY TABLE mine (x int); SET work_mem = '65MB'")
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT to_regclass('pg_temp.mine')") is None
            assert await connection.fetchval("SHOW work_mem") != "65MB"


async def test_a_connection_class_may_do_without_a_reset(dsn):
    async with ConnectionPool(dsn, min_size=1, max_size=1, connection_class=Unreset) as pool:
        async with pool.acquire() as connection:
            await connection.execute("SET work_mem = '65MB'")
        async with pool.acquire() as connection:
            assert await connection.fetchval("SHOW work_mem") == "65MB"


@pytest.mark.parametrize("connection_class", [None, "Connection", int, Shouting.shout])
def test_a_connection_class_is_one_of_asyncpg(connection_class):
    with pytest.raises(TypeError, match=r"connection_class must be a subclass of asyncpg\.Connection, got"):
        ConnectionPool(SOMEWHERE, connection_class=connection_class)


async def test_a_waiter_leaves_the_queue_if_replenishing_fails(dsn, monkeypatch):
    async with ConnectionPool(dsn, min_size=1, max_size=1) as pool, pool.acquire():
        with monkeypatch.context() as patch:
            patch.setattr(Supply, "replenish", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await pool.acquire(1)
        assert pool.stats().waiting == 0


async def test_a_pool_with_a_bad_timeout_can_still_be_opened(dsn):
    pool = ConnectionPool(dsn, min_size=1, max_size=1)
    with pytest.raises(TypeError, match="timeout must be"):
        await pool.open("x")
    async with pool:
        assert pool.stats().size == 1


@pytest.mark.parametrize(("bad", "kind"), BAD_DSNS)
def test_a_bad_dsn_is_refused_and_not_repeated(bad, kind):
    makers = [
        (r"^dsn ", lambda: ConnectionPool(bad)),
        (r"^replicas\[1\] ", lambda: ConnectionPool(SOMEWHERE, replicas=[SOMEWHERE, bad])),
        (r"^the DSN ", lambda: PostgresTier(bad)),
    ]
    for message, make in makers:
        with pytest.raises(kind, match=message) as refused:
            make()
        assert "cret" not in str(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    "good",
    [
        "postgres://",
        "postgresql://u:@/db?host=/tmp",
        "postgresql://u:s%2Fx@[::1]:5432/db",
        "postgresql://one:1,two:2,three/db",
        "postgresql://%2Ftmp%2Fsocket/db",
    ],
)
def test_any_dsn_that_asyncpg_can_read_is_accepted(good):
    ConnectionPool(good, replicas=(good,))


def test_all_of_a_dsn_that_cannot_be_parsed_is_secret():
    assert secrets_of("postgresql://u:se[cret@h/x", "other") == {"postgresql://u:se[cret@h/x", "other"}


@pytest.mark.parametrize("sizes", [(1.5, 2.5), ("3", "4"), (1, "4"), (True, 4), (None, None)])
async def test_sizes_are_integers(dsn, sizes):
    with pytest.raises(TypeError, match=r"(min|max)_size must be an integer, got"):
        ConnectionPool(dsn, min_size=sizes[0], max_size=sizes[1])
    async with ConnectionPool(dsn, min_size=1, max_size=3) as pool:
        with pytest.raises(TypeError, match=r"(min|max)_size must be an integer, got"):
            pool.resize(*sizes)
        assert (pool.min_size, pool.max_size, pool.stats().target_size) == (1, 3, 1)


@pytest.mark.parametrize("replicas", ["postgresql://u:secret@h/x", b"postgresql://h", 3, None, {SOMEWHERE}])
def test_replicas_are_a_sequence(replicas):
    with pytest.raises(TypeError, match="replicas must be a sequence of DSNs, got one of type") as refused:
        ConnectionPool(SOMEWHERE, replicas=replicas)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"bogus": 3}, TypeError),
        ({"init": 3}, TypeError),
        ({"clock": 3}, TypeError),
        ({"clock": None}, TypeError),
        ({"name": None}, TypeError),
        ({"leak_threshold": "x"}, TypeError),
        ({"leak_threshold": 0}, ValueError),
        ({"check_after": "x"}, TypeError),
        ({"check_after": None}, TypeError),
        ({"check_after": -1}, ValueError),
        ({"check_after": NAN}, ValueError),
        ({"max_lifetime": "x"}, TypeError),
        ({"max_lifetime": -(10**400)}, ValueError),
        ({"max_message_bytes": 0}, ValueError),
        ({"max_message_bytes": -1}, ValueError),
        ({"max_message_bytes": 1e6}, TypeError),
        ({"max_message_bytes": True}, TypeError),
        ({"max_waiting": "3"}, TypeError),
        ({"max_waiting": True}, TypeError),
        ({"max_waiting": 1.5}, TypeError),
        ({"timeout": None}, TypeError),
        ({"timeout": True}, TypeError),
        ({"reset": "no"}, TypeError),
        ({"reset": None}, TypeError),
    ],
)
def test_a_bad_option_is_named(options, kind):
    [name] = options
    with pytest.raises(kind, match=r"must be") as refused:
        ConnectionPool(SOMEWHERE, **options)
    assert name in str(refused.value)


def test_numbers_of_any_kind_are_seconds():
    pool = ConnectionPool(
        SOMEWHERE, check_after=0, timeout=Fraction(1, 2), max_lifetime=10**400, leak_threshold=1, command_timeout=3
    )
    options = pool.options
    assert (options.check_after, options.timeout, options.leak_threshold) == (0.0, 0.5, 1.0)
    assert options.max_lifetime == float("inf")


@pytest.mark.parametrize(("n", "kind"), [("x", TypeError), (1.5, TypeError), (True, TypeError), (-1, ValueError)])
async def test_the_number_of_connections_to_warm_is_an_integer_that_is_not_negative(dsn, n, kind):
    async with ConnectionPool(dsn, min_size=1, max_size=3) as pool:
        with pytest.raises(kind, match="n must be"):
            await pool.warm(n)


@pytest.mark.parametrize(
    ("interval", "kind"), [("x", TypeError), (None, TypeError), (0, ValueError), (NAN, ValueError)]
)
def test_a_manager_has_an_interval(interval, kind):
    with pytest.raises(kind, match=r"interval must be (a number of seconds|greater than 0), got"):
        PoolManager(interval=interval)


@pytest.mark.parametrize("name", [None, 1, ["app"]])
async def test_the_name_of_a_pool_is_a_str(dsn, name):
    async with PoolManager() as manager:
        with pytest.raises(TypeError, match="name must be a str, got"):
            await manager.create(name, dsn)
        assert manager.names() == []
