"""A cache with both tiers and a pool, and 50 callers that use them while something fails.

A value carries its key and a number. One caller alone writes a key, with growing numbers, so that for each answer it is
known which numbers may be right:

- not a smaller one than that of the last write that was acknowledged everywhere when the call began;
- not a greater one than that of the last write that had begun when the call ended.
"""

import asyncio
import itertools
import logging
import random
import secrets
import time
import zlib
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import redis.asyncio

from acgsperf import ConnectionPool, LRUCache, PoolError, TieredCache
from acgsperf.tiers import BreakerState, Entry
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from faults.network import Network
from faults.oracle import RECOVERY_S, Oracle

CALLERS = 50
_log = logging.getLogger(__name__)
DEADLINE_S = 0.25
QUERY_S = 0.5
_KEYS_OF_A_CALLER = 2
_WEIGHTS = {"get": 40, "get_many": 8, "load": 20, "set": 14, "delete": 4, "tag": 2, "query": 12}
_POOL_OPTIONS = {"connect_timeout": 0.5, "check_timeout": 0.5, "reset_timeout": 0.5, "close_timeout": 0.5}
_L1_ENTRIES = 30
# An answer of an idle server takes less.
_QUICK_S = 0.01
# A caller pauses for so many times the delay of the event loop.
_BREATHER = 20
# Of the pool, the connection and asyncpg.
_BORROWER_ERRORS = (
    PoolError,
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# The longest time for each of a few things that only a busy machine delays.
_PATIENCE_S = 10.0
# A machine is busy if something waits for a processor or a disk for this share of the time.
_BUSY = 0.3


class BusyError(Exception):
    """The machine is so busy with other things that a time cannot be judged."""


@dataclass
class Report:
    """What was seen from outside.

    Attributes:
        name: of the scenario.
        calls: how many calls of each kind were answered.
        failed: how many writes were not acknowledged everywhere, and how many queries raised an error.
        damaged: values that a flipped bit has changed, and rows that it has made undecodable.
        recovery_s: the time from the first answer of the servers to a client of their own, to the first moment at which
            everything worked; less the time in which the machine was busy.
        busy: why the recovery could not be judged, if the machine was too busy.
        slowest_ms: the longest call of each kind.
    """

    name: str
    calls: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    damaged: int = 0
    recovery_s: float = 0.0
    busy: str = ""
    slowest_ms: dict[str, float] = field(default_factory=dict)

    def __str__(self):
        slowest = max(self.slowest_ms.items(), key=lambda item: item[1], default=("none", 0.0))
        return (
            f"{self.name}: {sum(self.calls.values()):,} calls, {sum(self.failed.values()):,} failed "
            f"({dict(self.failed)}), slowest {slowest[1]:.0f} ms ({slowest[0]}), "
            f"{self.damaged} damaged, recovery {self.busy or f'{self.recovery_s:.2f} s'}"
        )


class Laboratory:
    """Servers of its own, and an application that uses them.

    Args:
        redis: a `RedisServer` of `tests/history`.
        postgres: a `Victim`.
        name: of the scenario.
        damage: whether values may be damaged.

    Attributes:
        network: with a proxied laboratory, the `Network` in front of each server.
    """

    def __init__(self, redis, postgres, name="", *, damage=False):
        self.redis, self.postgres = redis, postgres
        self.report = Report(name)
        self.network = {}
        self.pause_s = 0.1
        self.random = random.Random(name)
        self._damage = damage
        self._floor, self._begun = Counter(), Counter()
        self._keys = [f"key-{caller}-{at}" for caller in range(CALLERS) for at in range(_KEYS_OF_A_CALLER)]
        self._numbers = itertools.count(1)
        self._ended = asyncio.Event()

    def is_busy(self):
        """Return whether the machine was busy with other things for a part of the time since the callers began."""
        return self._busy_s() - self._busy_before > _BUSY * (time.perf_counter() - self._began)

    @asynccontextmanager
    async def running(self, *, proxied=False):
        """Open everything, and let the callers work for the time of the `async with`."""
        async with Oracle() as self.oracle, AsyncExitStack() as stack:
            redis_url, dsn = self.redis.url, self.postgres.dsn
            if proxied:
                redis_url, dsn = await self._proxied(stack)
            self._addresses = redis_url, dsn
            self.l2 = RedisTier(redis_url, deadline=DEADLINE_S)
            self.l3 = PostgresTier(dsn, deadline=DEADLINE_S)
            self.cache = TieredCache(
                LRUCache(_L1_ENTRIES),
                self.l2,
                self.l3,
                namespace="lab-" + secrets.token_hex(4),
                promotion_threshold=1,
                deadline=DEADLINE_S,
            )
            self.pool = ConnectionPool(dsn, min_size=2, max_size=5, **_POOL_OPTIONS)
            await stack.enter_async_context(self.pool)
            await stack.enter_async_context(self.cache)
            self._began, self._busy_before = time.perf_counter(), self._busy_s()
            with suppress(BusyError):
                await self._works_within(_PATIENCE_S)
            callers = [asyncio.create_task(self._use(number)) for number in range(CALLERS)]
            try:
                yield self
            finally:
                self._ended.set()
                _, hanging = await asyncio.wait(callers, timeout=_PATIENCE_S)
                for caller in hanging:
                    caller.print_stack()
                    caller.cancel()
                outcomes = await asyncio.gather(*callers, return_exceptions=True)
            # Those that end because of a wrong answer.
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
            await self._is_at_rest()

    async def _proxied(self, stack):
        (host,) = parse_qs(urlsplit(self.postgres.dsn).query)["host"]
        sockets = {"redis": self.redis.socket, "postgres": f"{host}/.s.PGSQL.5432"}
        for name, socket in sockets.items():
            self.network[name] = await stack.enter_async_context(Network(socket))
        parts = urlsplit(self.postgres.dsn)
        dsn = f"postgresql://postgres:@127.0.0.1:{self.network['postgres'].port}{parts.path}?sslmode=disable"
        return f"redis://127.0.0.1:{self.network['redis'].port}", dsn

    async def recovers(self, within=RECOVERY_S):
        """Check that everything works soon after the servers do, unless the machine is too busy to tell."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._servers_answer()
            self.report.recovery_s = await self._works_within(within)
        except (BusyError, TimeoutError) as error:
            if not self.is_busy():
                raise
            # All the rest is judged.
            self.report.busy = str(error) or "the servers do not answer"

    async def _servers_answer(self):
        """Return when both servers answer a client of their own."""
        while True:
            try:
                async with asyncio.timeout(1):
                    async with _clients(*self._addresses) as ask:
                        await ask()
                return
            except (OSError, TimeoutError, redis.RedisError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.005)

    async def _works_within(self, within):
        """Return the seconds until everything worked, less those in which the machine was busy.

        Raises:
            BusyError: if the machine was so busy that nothing can be said.
        """
        began, busy = time.perf_counter(), self._busy_s()
        to_do = [self._writes, self._reads_l2, self._reads_l3, self._queries]
        async with _Delay(*self._addresses) as delay:
            while True:
                outcomes = [(check, await check()) for check in to_do]
                to_do = [check for check, problem in outcomes if problem]
                elapsed = time.perf_counter() - began
                took = elapsed - max(self._busy_s() - busy, delay.seconds)
                if not to_do:
                    return max(took, 0.0)
                problems = [problem for _, problem in outcomes if problem]
                # A call whose servers get little of a processor ends with its deadline, whatever is subtracted.
                busy_now = took < (1 - _BUSY) * elapsed
                assert took <= within or busy_now, f"after {took:.2f} s: {problems}"
                if elapsed > _PATIENCE_S:
                    raise BusyError(f"of {elapsed:.0f} s {took:.1f} s count: {problems}")
                await asyncio.sleep(0.02)

    def _busy_s(self):
        """Return the seconds so far in which the machine kept this process, or any other one, waiting."""
        return max(self.oracle.stalled_s, pressure_s())

    async def _writes(self):
        """Write and remove a key; return what did not work, or None."""
        key = f"probe-{next(self._numbers)}"
        written = await self._call("set", self.cache.set(key, "value", ttl=60))
        removed = await self._call("delete", self.cache.delete(key))
        return None if written.everywhere and removed.everywhere else f"set {written}, delete {removed}"

    async def _reads_l2(self):
        return await self._reads(self.l2)

    async def _reads_l3(self):
        return await self._reads(self.l3)

    async def _reads(self, tier):
        key = f"probe-{next(self._numbers)}"
        now = time.monotonic()
        written = await self._call("set", tier.set(key, Entry("value", now, now + 60, now + 60)))
        found = await self._call("get", tier.get(key))
        breaker = tier.stats().breaker
        works = written and found is not None and breaker is BreakerState.CLOSED
        return None if works else f"{tier.name}: set {written}, get {found}, circuit {breaker}"

    async def _queries(self):
        return None if await self._query(count=False) and self.pool.healthy else "the pool does not work"

    async def _is_at_rest(self):
        async def check():
            stats, pool = self.cache.stats(), self.pool.stats()
            left = {"loading": stats.loading, "unrepaired": stats.unrepaired}
            left |= {"in_use": pool.in_use, "waiting": pool.waiting, "connecting": pool.connecting}
            return {name: number for name, number in left.items() if number}

        end = time.monotonic() + _PATIENCE_S
        while left := await check():
            if time.monotonic() > end:
                assert self.is_busy(), left
                return
            await asyncio.sleep(0.01)

    async def _call(self, what, call, within=DEADLINE_S):
        began = time.perf_counter()
        try:
            return await self.oracle.call(what, call, within)
        finally:
            took = (time.perf_counter() - began) * 1_000
            self.report.calls[what] += 1
            self.report.slowest_ms[what] = max(took, self.report.slowest_ms.get(what, 0.0))

    async def _use(self, caller):
        choices = random.Random(caller)
        keys = self.keys_of(caller)
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        while not self._ended.is_set():
            (name,) = choices.choices(names, weights)
            await self.one_call(name, caller, keys, choices)
            # On a busy machine there is time for less.
            await asyncio.sleep(choices.expovariate(1 / self.pause_s) + min(_BREATHER * self.oracle.late_s, 1.0))

    def keys_of(self, caller):
        """Return the keys that only one caller writes."""
        return self._keys[caller * _KEYS_OF_A_CALLER : (caller + 1) * _KEYS_OF_A_CALLER]

    async def one_call(self, name, caller, keys, choices):
        """Make a call of a caller, and check the answer."""
        key = choices.choice(keys if name in ("set", "delete") else self._keys)
        match name:
            case "get":
                await self._read(name, [key], self.cache.get(key))
            case "get_many":
                some = choices.sample(self._keys, 3)
                await self._read(name, some, self.cache.get_many(some))
            case "load":
                value = await self._read(name, [key], self.cache.get_or_load(key, self._load, tags=self._tags(key)))
                assert value is not None
            case "set":
                await self._write(
                    name, [key], lambda number: self.cache.set(key, _value(key, number), tags=self._tags(key))
                )
            case "delete":
                await self._write(name, [key], lambda number: self.cache.delete(key))
            case "tag":
                await self._write(name, keys, lambda number: self.cache.invalidate_tag(f"tag-{caller}"))
            case "query":
                await self._query()

    def _tags(self, key):
        return (f"tag-{key.split('-')[1]}",)

    async def _load(self, key):
        number = self._begun[key]
        await asyncio.sleep(0.001)
        return _value(key, number)

    async def _read(self, what, keys, call):
        floors = {key: self._floor[key] for key in keys}
        answer = await self._call(what, call)
        found = answer if what == "get_many" else {keys[0]: answer}
        for key, value in found.items():
            if value is None:
                continue
            if self._damage and not _is_whole(value):
                self.report.damaged += 1
                continue
            assert value == _value(key, value["number"]), f"{key} got {value}"
            assert floors[key] <= value["number"] <= self._begun[key], (
                f"{what}: {key} got {value['number']}, not {floors[key]} to {self._begun[key]}"
            )
        return answer

    async def _write(self, what, keys, write):
        number = next(self._numbers)
        for key in keys:
            self._begun[key] = number
        written = await self._call(what, write(number))
        if written.everywhere:
            for key in keys:
                self._floor[key] = number
        else:
            self.report.failed[what] += 1

    async def _query(self, *, count=True):
        """A borrower may get an error, but not the rows of another one."""
        number = next(self._numbers)

        async def query():
            async with asyncio.timeout(QUERY_S), self.pool.acquire() as connection:
                rows = await connection.fetch("SELECT $1::int AS number, $1::int + 1 AS next", number)
            return [tuple(row) for row in rows]

        try:
            rows = await self._call("query", query(), QUERY_S)
        except _BORROWER_ERRORS:
            self.report.failed["query"] += count
            return False
        except Exception:
            # The decoding of a damaged row may raise anything.
            if not self._damage:
                raise
            self.report.damaged += 1
            return False
        if self._damage and rows != [(number, number + 1)]:
            self.report.damaged += 1
            return False
        assert rows == [(number, number + 1)], f"a query for {number} got {rows}"
        return True


def _value(key, number):
    return {"key": key, "number": number, "check": zlib.crc32(f"{key} {number}".encode())}


def _is_whole(value):
    try:
        return value == _value(value["key"], value["number"])
    except (TypeError, KeyError):
        return False


def pressure_s():
    """Return the seconds in which processes of this machine waited for a processor or a disk; 0 if it is not known."""
    with suppress(OSError):
        lines = [(Path("/proc/pressure") / name).read_text().split("\n")[0] for name in ("cpu", "io")]
        return sum(int(line.rpartition("total=")[2]) for line in lines) / 1e6
    return 0.0


@asynccontextmanager
async def _clients(redis_url, dsn):
    """Connect to both servers without the package; give what asks both."""
    client = redis.asyncio.Redis.from_url(redis_url, protocol=2, single_connection_client=True)
    connection = None
    try:
        await client.initialize()
        connection = await asyncpg.connect(dsn, timeout=5)

        async def ask():
            await client.ping()
            await connection.execute("SELECT 1")

        yield ask
    finally:
        if connection is not None:
            connection.terminate()
        with suppress(redis.RedisError, OSError):
            await client.aclose()


class _Delay:
    """Measures how long the servers are busy with other things than answering."""

    def __init__(self, *addresses):
        self._addresses = addresses
        self.seconds = 0.0

    async def __aenter__(self):
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *error):
        # The libraries lose a cancellation that comes together with an answer: cancel until the task ends.
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    async def _measure(self):
        try:
            async with _clients(*self._addresses) as ask:
                while True:
                    began = time.perf_counter()
                    await ask()
                    took = time.perf_counter() - began
                    self.seconds += took if took > _QUICK_S else 0.0
                    await asyncio.sleep(0.005)
        except (OSError, redis.RedisError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.info("the servers are gone again: %s", error)
