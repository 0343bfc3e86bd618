"""The faults of the laboratory, as a table. A fault is a function that does something, and undoes it before it returns.

Its second argument says whether there is much time.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg
import redis.asyncio

from faults.laboratory import CALLERS, Laboratory
from faults.oracle import eventually

_TABLE = "acgsperf_cache_v2"
_SHORT_S = 0.8
_LONG_S = 15.0
_POLICIES = (
    *("noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random"),
    *("volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"),
)
_PATIENCE_S = 60.0
_FULL = "no space left on device"


@dataclass(frozen=True)
class Scenario:
    """A fault, and what must be true of it besides what is true of every fault.

    Attributes:
        row: of the table in `docs/reliability.md`.
        name: what happens.
        fault: does it.
        proxied: whether there is a `Network` in front of each server.
        bites: whether some calls must have failed meanwhile. Otherwise none may fail; None for neither.
        damage: whether values may be damaged.
        pause_s: of each caller between two calls.
        soak: whether it runs only with much time.
    """

    row: int
    name: str
    fault: Callable[[Laboratory, bool], Awaitable[None]]
    proxied: bool = False
    bites: bool | None = True
    damage: bool = False
    pause_s: float = 0.1
    soak: bool = False

    def __str__(self) -> str:
        return f"row{self.row}-{self.name.replace(' ', '-')}"


def killed(*names):
    async def fault(lab, long):
        servers = [getattr(lab, name) for name in names]
        await _in_threads(server.kill for server in servers)
        await asyncio.sleep(3.0 if long else 0.5)
        await _in_threads(server.start for server in servers)

    return fault


async def _in_threads(calls):
    # Threads of its own, because those of the event loop would be left.
    with ThreadPoolExecutor() as threads:
        await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(threads, call) for call in calls))


def frozen(*names):
    async def fault(lab, long):
        servers = [getattr(lab, name) for name in names]
        for server in servers:
            server.freeze()
        try:
            await asyncio.sleep(10.0 if long else 1.0)
        finally:
            for server in servers:
                server.thaw()

    return fault


async def one_backend_frozen(lab, long):
    """Freeze the oldest session of the pool, or of the tier."""
    async with _connection(lab) as connection:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    lab.postgres.freeze_sessions(lab.random.choice(rows)["pid"])
    try:
        await asyncio.sleep(10.0 if long else 1.0)
    finally:
        lab.postgres.thaw()


def network(fault_name, *names):
    async def fault(lab, long):
        networks = [lab.network[name] for name in names or ("redis", "postgres")]
        for each in networks:
            each.play(fault_name)
        await asyncio.sleep(_LONG_S if long else _SHORT_S)
        async with asyncio.timeout(_PATIENCE_S):
            # On a busy machine it takes longer until there is traffic.
            while not all(each.changed for each in networks):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for each in networks:
            await each.heal()

    return fault


async def refused(lab, long):
    for each in lab.network.values():
        await each.refuse()
    await asyncio.sleep(_LONG_S if long else _SHORT_S)
    for each in lab.network.values():
        await each.heal()


async def connections_dropped(lab, long):
    for _ in range(10 if long else 1):
        for each in lab.network.values():
            each.drop()
        await asyncio.sleep(_SHORT_S)


async def redis_full_disk(lab, long):
    """Redis refuses writes because it could not save: there is a directory in the place of its file."""
    file = lab.redis.socket.parent / "dump.rdb"
    file.mkdir()
    async with _redis(lab) as client:
        await client.config_set("stop-writes-on-bgsave-error", "yes")
        await client.config_set("save", "1 1")
        with suppress(redis.RedisError):
            await client.bgsave()
        try:
            await _until_refused(lab)
            await asyncio.sleep(_LONG_S if long else _SHORT_S)
        finally:
            await client.config_set("save", "")
            await client.config_set("stop-writes-on-bgsave-error", "no")
            file.rmdir()


async def _until_refused(lab):
    failed = sum(lab.report.failed.values())
    async with asyncio.timeout(20):
        while sum(lab.report.failed.values()) == failed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def postgres_full_disk(lab, long):
    """Every write of the table ends with SQLSTATE 53100."""
    async with _connection(lab) as connection:
        await connection.execute(
            f"""CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION '{_FULL}' USING ERRCODE = 'disk_full'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {_TABLE}
                FOR EACH STATEMENT EXECUTE FUNCTION full_disk()"""
        )
        await asyncio.sleep(_LONG_S if long else _SHORT_S)
        await connection.execute(f"DROP TRIGGER full_disk ON {_TABLE}; DROP FUNCTION full_disk()")


async def read_only(lab, long):
    async with _redis(lab) as client, _connection(lab) as connection:
        await client.config_set("min-replicas-to-write", "1")
        await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await connection.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(_LONG_S if long else _SHORT_S)
        await client.config_set("min-replicas-to-write", "0")
        await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await connection.execute("SELECT pg_reload_conf()")


def eviction(policy):
    async def fault(lab, long):
        async with _redis(lab) as client:
            used = (await client.info("memory"))["used_memory"]
            await client.config_set("maxmemory-policy", policy)
            await client.config_set("maxmemory", used + 2_000_000)
            end = time.monotonic() + (_LONG_S if long else _SHORT_S)
            for number in itertools.count():
                with suppress(redis.ResponseError):
                    await client.set(f"ballast-{number % 2_000}", bytes(10_000), ex=60)
                if time.monotonic() > end:
                    break
            await client.config_set("maxmemory", 0)
            await client.delete(*(f"ballast-{number}" for number in range(2_000)))

    return fault


async def sessions_killed(lab, long):
    """CLIENT KILL and pg_terminate_backend, of all and of some, all the time."""
    killed = 0
    end = time.monotonic() + (_LONG_S if long else _SHORT_S)
    async with _redis(lab) as client, _connection(lab) as connection, asyncio.timeout(_PATIENCE_S):
        # On a busy machine it takes longer until there are so many.
        while time.monotonic() < end or killed < 20:
            killed += await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            killed += await connection.fetchval(
                """SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.5"""
            )
            await asyncio.sleep(lab.random.uniform(0.0, 0.05))


async def no_more_connections(lab, long):
    """All connections that the servers allow belong to others."""
    kept = []
    async with _redis(lab) as client, _connection(lab) as admin:
        former = (await client.config_get("maxclients"))["maxclients"]
        await client.config_set("maxclients", "1")
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for _ in range(2):
            await admin.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND pid <> ALL($1::int[])""",
                [each.get_server_pid() for each in [admin, *kept]],
            )
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    kept.append(await asyncpg.connect(lab.postgres.dsn))
        await asyncio.sleep(_LONG_S if long else _SHORT_S)
        await asyncio.gather(*(each.close() for each in kept))
        await client.config_set("maxclients", former)


async def _has_table(connection):
    assert await connection.fetchval("SELECT to_regclass($1)", _TABLE) is not None


def statements(*before, after=()):
    """Change the table, and after a moment change it back."""

    async def fault(lab, long):
        async with _connection(lab) as connection:
            for _ in range(5 if long else 1):
                # The tier creates it again.
                await eventually(lambda: _has_table(connection), within=10.0)
                for statement in before:
                    await connection.execute(statement.format(table=_TABLE))
                await asyncio.sleep(_SHORT_S)
                for statement in after:
                    await connection.execute(statement.format(table=_TABLE))

    return fault


async def locked(lab, long):
    async with _connection(lab) as connection:
        for _ in range(5 if long else 1):
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {_TABLE} IN ACCESS EXCLUSIVE MODE")
                await asyncio.sleep(_SHORT_S)


def cancellations(fault=None):
    async def cancelled(lab, long):
        """Cancel calls at any moment, half of them twice."""
        stop = asyncio.Event()
        others = asyncio.create_task(_repeat(fault, lab, stop)) if fault else None
        count = 100_000 if long else 500
        try:
            for at in range(0, count, CALLERS):
                await _cancel_calls(lab, random.Random(at))
        finally:
            stop.set()
            if others:
                await others

    return cancelled


async def _repeat(fault, lab, stop):
    while not stop.is_set():
        await fault(lab, False)


async def _cancel_calls(lab, choices):
    calls = []
    for caller in range(CALLERS):
        name = choices.choice(["get", "get_many", "load", "query"])
        call = lab.one_call(name, caller, lab.keys_of(caller), choices)
        calls.append(asyncio.create_task(call))
    for call in calls:
        if choices.random() < 0.2:
            await asyncio.sleep(choices.choice((0, 0, 0.0005, 0.002)))
        call.cancel()
    for call in calls[::2]:
        call.cancel()
    await asyncio.wait(calls)
    for call in calls:
        if not call.cancelled():
            call.result()


async def flushed(lab, long):
    async with _redis(lab) as client:
        for _ in range(50 if long else 5):
            await client.flushall()
            await asyncio.sleep(0.15)


async def tokens_lost(lab, long):
    async with _redis(lab) as client:
        for _ in range(50 if long else 5):
            async for key in client.scan_iter(match="*", count=1_000):
                if b"token" in key or b"%tag" in key:
                    await client.delete(key)
            await asyncio.sleep(0.15)


@asynccontextmanager
async def _redis(lab):
    client = redis.asyncio.Redis.from_url(lab.redis.url, protocol=2, single_connection_client=True)
    try:
        await client.initialize()
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def _connection(lab):
    connection = await asyncpg.connect(lab.postgres.dsn)
    try:
        yield connection
    finally:
        await connection.close()


SCENARIOS = [
    Scenario(1, "kill -9 of Redis", killed("redis"), soak=True),
    Scenario(1, "kill -9 of PostgreSQL", killed("postgres"), soak=True),
    Scenario(1, "kill -9 of both", killed("redis", "postgres")),
    Scenario(2, "Redis frozen", frozen("redis"), soak=True),
    Scenario(2, "PostgreSQL frozen", frozen("postgres"), soak=True),
    Scenario(2, "both frozen", frozen("redis", "postgres")),
    Scenario(2, "one backend frozen", one_backend_frozen, bites=None, soak=True),
    Scenario(3, "refused", refused, proxied=True, soak=True),
    Scenario(3, "black hole", network("swallow"), proxied=True, soak=True),
    Scenario(3, "connections dropped", connections_dropped, proxied=True, soak=True),
    Scenario(4, "200 ms more", network("delay"), proxied=True, soak=True),
    Scenario(4, "a byte at a time", network("single_bytes"), proxied=True, bites=None, pause_s=0.3, soak=True),
    Scenario(4, "cut", network("cut"), proxied=True, soak=True),
    Scenario(4, "half closed", network("half_close"), proxied=True, bites=None, soak=True),
    Scenario(4, "reordered", network("reorder"), proxied=True, soak=True),
    Scenario(4, "replies swapped", network("swap"), proxied=True, soak=True),
    Scenario(4, "duplicated", network("duplicate"), proxied=True, bites=None, soak=True),
    Scenario(4, "flipped bits", network("flip"), proxied=True, damage=True, soak=True),
    Scenario(6, "Redis cannot save", redis_full_disk, soak=True),
    Scenario(6, "PostgreSQL has no disk space", postgres_full_disk),
    Scenario(6, "read-only", read_only, soak=True),
    *(Scenario(6, f"maxmemory {policy}", eviction(policy), bites=None, soak=True) for policy in _POLICIES),
    Scenario(7, "sessions killed", sessions_killed, bites=None, soak=True),
    Scenario(7, "no more connections", no_more_connections, soak=True),
    Scenario(8, "table truncated", statements("TRUNCATE {table}"), bites=False, soak=True),
    Scenario(8, "table dropped", statements("DROP TABLE {table}"), bites=None, soak=True),
    Scenario(
        8,
        "column dropped",
        statements("ALTER TABLE {table} DROP COLUMN stamp", after=("DROP TABLE {table}",)),
        soak=True,
    ),
    Scenario(
        8,
        "table renamed",
        statements("ALTER TABLE {table} RENAME TO elsewhere", after=("DROP TABLE elsewhere",)),
        bites=None,
        soak=True,
    ),
    Scenario(8, "table locked", locked, soak=True),
    Scenario(9, "cancellations", cancellations(), bites=None),
    Scenario(9, "cancellations while sessions are killed", cancellations(sessions_killed), bites=None, soak=True),
    Scenario(16, "FLUSHALL", flushed, bites=False, soak=True),
    Scenario(16, "tokens lost", tokens_lost, bites=False, soak=True),
]
