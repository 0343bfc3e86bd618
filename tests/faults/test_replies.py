"""36 hostile replies of a Redis server and 14 of a PostgreSQL server, in `replies.py`: each is withstood."""

import asyncio
import gc
import itertools
import secrets
from contextlib import asynccontextmanager, contextmanager

import pytest

from acgsperf import ConnectionPool
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from faults.application import DEADLINE_S, Application
from faults.oracle import Oracle, eventually
from faults.replies import POSTGRES_REPLIES, REDIS_REPLIES
from faults.servers import HostilePostgres, HostileRedis

CALLERS = 50
# The hostile server computes in the same event loop.
LONGEST_TURN_S = 0.2
KEYS = [f"key-{number}" for number in range(4)]
# The commands that each call sends.
REDIS_CALLS = {
    "get": {"MGET", "GET"},
    "set": {"EVALSHA"},
    "delete": {"EVALSHA"},
    "tags": {"EVALSHA", "MGET"},
    "lock": {"EVALSHA"},
    "fence": {"ECHO"},
}
QUERY_S = 0.5
# As many as the pool has connections: none waits for another one.
POOL_CALLERS = 5
POOL_OPTIONS = {
    "connect_timeout": 0.5,
    "check_timeout": 0.5,
    "reset_timeout": 0.5,
    "max_message_bytes": 4 << 20,
}
POSTGRES_CALLS = ["get", "set", "delete", "tags"]


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """The oracle collects garbage after each test: not all that other tests have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _replies(replies):
    """The replies that are withstood; those with a `fault` are not played."""
    played = [reply for reply in replies if not reply.fault]
    return pytest.mark.parametrize("reply", played, ids=[reply.name for reply in played])


@asynccontextmanager
async def _redis_application(url):
    async with Oracle(LONGEST_TURN_S) as oracle, HostileRedis(url) as server:
        namespace = "faults-" + secrets.token_hex(4)
        tiers = RedisTier(server.url, deadline=DEADLINE_S), RedisTier(url, deadline=5)
        async with Application(oracle, *tiers, namespace, "l2").running() as application:
            await eventually(lambda: application.works("before"))
            yield server, application
        await eventually(lambda: _is_unused(server), within=10.0)


@asynccontextmanager
async def _postgres_application(dsn):
    async with Oracle(LONGEST_TURN_S) as oracle, HostilePostgres(dsn) as server:
        namespace = "faults-" + secrets.token_hex(4)
        tiers = PostgresTier(server.dsn, deadline=DEADLINE_S), PostgresTier(dsn, deadline=5)
        async with Application(oracle, *tiers, namespace, "l3").running() as application:
            await eventually(lambda: application.works("before"))
            yield server, application
        await eventually(lambda: _is_unused(server), within=10.0)


async def _is_unused(server):
    assert server.open == 0, f"{server.open} connections are left"


async def _use(application, call, round_):
    """Send the commands of `REDIS_CALLS`; return whether all of them succeeded."""
    match call:
        case "get":
            found = await asyncio.gather(*map(application.get, KEYS))
            # What is left of an earlier reply is out of date.
            await application.set_elsewhere(*KEYS)
            return all(found) and len(await application.get_many(*KEYS)) == len(KEYS)
        case "set" | "fence":
            return all(await asyncio.gather(*map(application.set, KEYS)))
        case "delete":
            done = all(await asyncio.gather(*map(application.delete, KEYS)))
            # The next round finds something to delete.
            return all([await application.set(key) for key in KEYS[:2]]) and done
        case "tags":
            # Keys that never had a value without the tag.
            keys = [f"{key}-tagged" for key in KEYS]
            stored = await asyncio.gather(*(application.set(key, tags=("tag",)) for key in keys))
            found = await asyncio.gather(*map(application.get, keys))
            return await application.invalidate_tag("tag", *keys) and all(stored) and all(found)
        case "lock":
            keys = [f"{key}-{round_}" for key in KEYS]
            return all(await asyncio.gather(*map(application.lock, keys)))
    raise ValueError(call)


async def _store(application):
    assert all(await asyncio.gather(*map(application.set, KEYS)))


async def _use_all(application, number):
    """One of many callers, which have keys of their own."""
    keys = [f"{number}-{key}" for key in "abc"]
    for key in keys:
        await application.set(key)
    await application.get(keys[0])
    await application.get_many(*keys)
    await application.delete(keys[1])
    await application.get(keys[1])
    await application.set(keys[2], tags=("all",))
    await application.get(keys[2])
    await application.load(f"{number}-load")


async def _works_again(application, after):
    # Each attempt has keys of its own.
    names = (f"after-{after}-{number}" for number in itertools.count())
    await eventually(lambda: application.works(next(names)))


@contextmanager
def _noted(what):
    """Say in the report of a failure what was going on."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"({what})")
        raise


@_replies(REDIS_REPLIES)
async def test_one_hostile_reply_of_redis(servers, reply):
    async with _redis_application(servers.redis_url) as (server, application):
        for call, commands in REDIS_CALLS.items():
            with _noted(f"in place of a reply to {call}"):
                await _store(application)
                played = server.played
                server.arm(reply.script, reply.to or commands, times=1, executed=reply.executed)
                if reply.to:
                    server.hang_up()
                for number in range(2):
                    done = await _use(application, call, number)
                    assert done or not reply.harmless
                assert server.played == played + 1
                await _works_again(application, call)


@_replies(REDIS_REPLIES)
async def test_nothing_but_hostile_replies_of_redis(servers, reply):
    async with _redis_application(servers.redis_url) as (server, application):
        await _store(application)
        server.arm(reply.script, reply.to or set.union(*REDIS_CALLS.values()), executed=reply.executed)
        if reply.to:
            server.hang_up()
        await asyncio.gather(*(_use_all(application, number) for number in range(CALLERS)))
        for call in REDIS_CALLS:
            # On a busy machine, a reply may take longer than the deadline.
            tries = [await _use(application, call, 0) for _ in range(3)]
            assert any(tries) or not reply.harmless
        assert server.played >= 3
        server.heal()
        await _works_again(application, "all")


@_replies([reply for reply in REDIS_REPLIES if reply.concerns_command])
async def test_a_refused_command_of_redis_leaves_other_commands_alone(servers, reply):
    async with _redis_application(servers.redis_url) as (server, application):
        for refused in ("get", "set"):
            await _store(application)
            server.arm(reply.script, REDIS_CALLS[refused], executed=reply.executed)
            assert not await _use(application, refused, refused)
            for number in range(3):
                for call in ("get", "lock", "delete", "set"):
                    with _noted(f"{call} while {refused} is refused"):
                        done = await _use(application, call, f"{refused}-{number}")
                        # Everything that writes is a script, so it is refused together.
                        assert done == REDIS_CALLS[call].isdisjoint(REDIS_CALLS[refused])
            server.heal()
            await application.works(f"after-{refused}")


@_replies(POSTGRES_REPLIES)
async def test_one_hostile_reply_of_postgres(servers, reply):
    async with _postgres_application(servers.database_url) as (server, application):
        for (number, script), call in itertools.product(enumerate(reply.scripts), POSTGRES_CALLS):
            with _noted(f"script {number} in place of a reply to {call}"):
                await eventually(lambda: _store(application))
                played = server.played
                server.arm(script, reply.to, times=1)
                if "startup" in reply.to:
                    server.hang_up()
                for attempt in range(2):
                    done = await _use(application, call, attempt)
                    assert done or not reply.harmless
                assert server.played == played + 1
        await _works_again(application, "all")


@_replies(POSTGRES_REPLIES)
async def test_nothing_but_hostile_replies_of_postgres(servers, reply):
    async with _postgres_application(servers.database_url) as (server, application):
        for number, script in enumerate(reply.scripts):
            await eventually(lambda: _store(application))
            played = server.played
            server.arm(script, reply.to)
            if "startup" in reply.to:
                server.hang_up()
            await asyncio.gather(*(_use_all(application, caller) for caller in range(CALLERS)))
            for call in POSTGRES_CALLS:
                done = await _use(application, call, 0)
                assert done or not reply.harmless
            assert server.played > played
            server.heal()
            await _works_again(application, number)


async def _query(pool, number):
    async with asyncio.timeout(QUERY_S), pool.acquire() as connection:
        rows = await connection.fetch("SELECT $1::int AS number, $1::int + 1 AS next", number)
    return [tuple(row) for row in rows]


async def _try(oracle, pool, number, reply):
    """A borrower may get any error, but not the rows of another one."""
    try:
        rows = await oracle.call("query", _query(pool, number), QUERY_S)
    except Exception:
        return False
    if reply.recognizable:
        assert rows == [(number, number + 1)]
    return True


async def _pool_works(oracle, pool):
    for number in range(20):
        try:
            rows = await oracle.call("query", _query(pool, number), QUERY_S)
        except Exception as error:
            raise AssertionError("the pool does not work") from error
        assert rows == [(number, number + 1)]
    assert (await pool.health()).healthy
    stats = pool.stats()
    assert stats.in_use == stats.waiting == 0


@_replies(POSTGRES_REPLIES)
async def test_a_pool_withstands_hostile_replies_of_postgres(servers, reply):
    numbers = iter(range(1_000_000))
    async with Oracle(LONGEST_TURN_S) as oracle, HostilePostgres(servers.database_url) as server:
        async with ConnectionPool(server.dsn, min_size=2, max_size=5, **POOL_OPTIONS) as pool:
            for script, times in itertools.product(reply.scripts, (1, float("inf"))):
                await eventually(lambda: _pool_works(oracle, pool))
                played = server.played
                server.arm(script, reply.to, times)
                if "startup" in reply.to:
                    server.hang_up()
                callers = POOL_CALLERS if reply.harmless else CALLERS
                done = await asyncio.gather(*(_try(oracle, pool, next(numbers), reply) for _ in range(callers)))
                assert all(done) or not reply.harmless
                await _try(oracle, pool, next(numbers), reply)
                assert server.played > played
                server.heal()
            await eventually(lambda: _pool_works(oracle, pool))
        await eventually(lambda: _is_unused(server), within=10.0)


def test_there_are_36_and_14_replies():
    assert len({reply.name for reply in REDIS_REPLIES}) == len(REDIS_REPLIES) == 36
    assert len({reply.name for reply in POSTGRES_REPLIES}) == len(POSTGRES_REPLIES) == 14
