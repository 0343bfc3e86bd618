"""What callers notice of a failover under load: figures, which tests compare with their bounds."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg

from acgsperf import ConnectionPool, LRUCache, PoolError, TieredCache
from acgsperf.tiers.postgres import PostgresTier
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.server import DEADLINE_S

from .postgres_servers import Replicated, dsn_of
from .sentinel_servers import Watched

CALLERS = 50
# How long after a failover writes may be refused.
BOUND_S = 2.0
TABLE = "DROP TABLE IF EXISTS counts; CREATE TABLE counts (number bigint)"
INSERT = "INSERT INTO counts VALUES (1)"


@dataclass
class Figures:
    """What the callers of one failover have noticed.

    Attributes:
        took_s: from the death of the primary to the election or the end of the promotion.
        changed_at: the time of that.
        accepted: when each caller that writes was last refused before, and first accepted after it; by caller.
        locks: when locks were taken.
        reads: how many reads there were.
        slowest_read_s: the slowest of them.
        errors: what was raised for callers.
        wrong: values that were older than what the caller had written.
    """

    took_s: float = 0.0
    changed_at: float = float("inf")
    accepted: dict[int, float] = field(default_factory=dict)
    locks: list[float] = field(default_factory=list)
    reads: int = 0
    slowest_read_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)

    def note_change(self, began: float) -> None:
        """Note that the new primary is there now."""
        self.changed_at = time.monotonic()
        self.took_s = self.changed_at - began
        self.accepted.clear()
        self.locks.clear()

    def note_accepted(self, caller: int) -> None:
        """Note that a write of a caller was accepted."""
        self.accepted.setdefault(caller, time.monotonic())

    async def read(self, call: Awaitable[object]) -> object:
        """Await a read."""
        began = time.monotonic()
        found = await call
        self.reads += 1
        self.slowest_read_s = max(self.slowest_read_s, time.monotonic() - began)
        return found

    @property
    def first_write_s(self) -> float:
        """From the election to the first accepted write."""
        return min(self.accepted.values()) - self.changed_at

    @property
    def all_writes_s(self) -> float:
        """From the election until each caller has had a write accepted."""
        return max(self.accepted.values()) - self.changed_at

    @property
    def ok(self) -> bool:
        """Whether the bounds are met."""
        locks = [at - self.changed_at for at in self.locks[:1]]
        return max(self.first_write_s, *locks, 0.0) < BOUND_S and not self.errors and not self.wrong

    def __str__(self) -> str:
        parts = [
            f"new primary after {self.took_s:.2f} s",
            f"first write {self.first_write_s:.2f} s later, of every caller {self.all_writes_s:.2f} s",
        ]
        if self.locks:
            parts.append(f"locks {self.locks[0] - self.changed_at:.2f} s")
        parts.append(f"{self.reads:,} reads, slowest {self.slowest_read_s * 1e3:.0f} ms")
        parts.append(f"{len(self.errors)} errors")
        if self.wrong:
            parts.append(f"{len(self.wrong)} wrong values")
        return "; ".join(parts)


async def _all_have_written(figures: Figures, callers: int, *, locks: bool = False) -> None:
    async with asyncio.timeout(30):
        while len(figures.accepted) < callers or (locks and not figures.locks):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def sentinel_failover(
    watched: Watched,
    namespace: str,
    *,
    failure: str = "kill",
    before_s: float = 1.0,
    after: Callable[[TieredCache, TieredCache], Awaitable[None]] | None = None,
) -> Figures:
    """Lose the primary under 50 callers of a cache, which write, read, load and lock.

    Args:
        watched: the servers.
        namespace: of the caches.
        failure: "kill" or "freeze".
        before_s: how long the callers work before it.
        after: is called with both caches at the end.
    """
    figures = Figures()
    truth: dict[str, int] = {}
    going_on = True
    l2 = RedisTier(watched.url)
    async with (
        TieredCache(LRUCache(20), l2, namespace=namespace) as one,
        TieredCache(LRUCache(20), RedisTier(watched.url), namespace=namespace) as two,
    ):
        keys = [f"k{number}" for number in range(CALLERS)]
        for key in keys:
            truth[key] = 0
            # A machine that is busy with other tests may take its time.
            async with asyncio.timeout(10):
                while not (await one.set(key, 0)).l2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        async def load(key: str) -> int:
            return truth[key]

        async def call(number: int) -> None:
            key = keys[number]
            while going_on:
                try:
                    truth[key] += 1
                    written = truth[key]
                    if (await one.set(key, written)).everywhere:
                        figures.note_accepted(number)
                        # What the other process has of the key has arrived before this.
                        found = await figures.read(one.get(key))
                        if found is not None and found < written:
                            figures.wrong.append((key, found, written))
                    # A loader answers with the truth, whatever the servers do.
                    if await one.get_or_load(f"loaded-{key}", lambda _: load(key)) > truth[key]:
                        figures.wrong.append(key)
                    await figures.read(two.get(key))
                except Exception as error:
                    figures.errors.append(repr(error))
                await asyncio.sleep(0.005)

        async def lock() -> None:
            while going_on:
                if await l2.lock("lock", 0.5):
                    figures.locks.append(time.monotonic())
                await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(call(number)) for number in range(CALLERS)]
        tasks.append(asyncio.create_task(lock()))
        await asyncio.sleep(before_s)
        assert figures.accepted
        began = time.monotonic()
        former = watched.primary
        getattr(watched, failure)(former)
        await watched.elected()
        figures.note_change(began)
        await _all_have_written(figures, CALLERS, locks=True)
        await asyncio.sleep(before_s)
        going_on = False
        await asyncio.gather(*tasks)
        if after is not None:
            await after(one, two)
        if failure == "freeze":
            watched.thaw(former)
    return figures


async def pool_promotion(servers: Replicated, *, before_s: float = 1.0) -> Figures:
    """Kill the primary under 25 callers of a pool that write and 25 that read; its standby is promoted."""
    connection = await asyncpg.connect(servers.primary_dsn)
    await connection.execute(TABLE)
    await connection.close()
    await servers.caught_up()
    figures = Figures()
    going_on = True
    options = {"min_size": 5, "max_size": 20, "command_timeout": 2, "target_session_attrs": "read-write"}
    both = dsn_of(*servers.folders)
    async with ConnectionPool(both, replicas=[servers.standby_dsn], max_replica_lag=5, **options) as pool:

        async def write(number: int) -> None:
            while going_on:
                try:
                    if await pool.execute(INSERT):
                        figures.note_accepted(number)
                except (PoolError, asyncpg.PostgresError, OSError):
                    pass
                await asyncio.sleep(0.01)

        async def read() -> None:
            while going_on:
                try:
                    await figures.read(pool.fetchval("SELECT count(*) FROM counts", readonly=True))
                except Exception as error:
                    figures.errors.append(repr(error))
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(write(number)) for number in range(CALLERS // 2)]
        tasks += [asyncio.create_task(read()) for _ in range(CALLERS // 2)]
        await asyncio.sleep(before_s)
        assert figures.accepted
        await _lose_primary(servers, figures)
        await _all_have_written(figures, CALLERS // 2)
        going_on = False
        await asyncio.gather(*tasks)
    return figures


async def cache_promotion(
    servers: Replicated, namespace: str, *, before_s: float = 1.0, deadline: float = DEADLINE_S
) -> Figures:
    """Kill the primary of L3 under 50 callers of a cache; its standby is promoted."""
    figures = Figures()
    going_on = True
    l3 = PostgresTier(dsn_of(*servers.folders), deadline=deadline)
    async with TieredCache(LRUCache(20), None, l3, namespace=namespace) as cache:

        async def call(number: int) -> None:
            key, written = f"k{number}", 0
            while going_on:
                try:
                    written += 1
                    if (await cache.set(key, written)).everywhere:
                        figures.note_accepted(number)
                        found = await figures.read(cache.get(key))
                        if found is not None and found < written:
                            figures.wrong.append((key, found, written))
                    await figures.read(cache.get(key))
                except Exception as error:
                    figures.errors.append(repr(error))
                await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(call(number)) for number in range(CALLERS)]
        await asyncio.sleep(before_s)
        assert figures.accepted
        await _lose_primary(servers, figures)
        await _all_have_written(figures, CALLERS)
        going_on = False
        await asyncio.gather(*tasks)
    return figures


async def _lose_primary(servers: Replicated, figures: Figures) -> None:
    began = time.monotonic()
    servers.kill_primary()
    # Nobody promotes a standby at once.
    await asyncio.sleep(0.5)
    await servers.promote()
    figures.note_change(began)
