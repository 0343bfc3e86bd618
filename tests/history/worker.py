"""One process of a history: a cache, and tasks that use it at random and log what they do.

The runner starts it as a program, with its plan as JSON in the only argument, and talks with it by lines: "start UNTIL"
works until that monotonic time, "settle" waits until nothing happens in the background, "rest l1" and "rest get" read
every key, "quit" closes the cache and ends the log. The worker answers each with a line. It ends when its standard
input ends.
"""

import asyncio
import ctypes
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from .history import Load, Log, Read, Write, now
from .truth import Truth

__all__ = ["Plan"]

# How often each operation is chosen.
_WEIGHTS: Final = {
    "get": 30,
    "get_local": 15,
    "get_or_load": 30,
    "get_many": 3,
    "get_or_load_many": 3,
    "set": 8,
    "set_many": 1,
    "delete": 4,
    "delete_many": 1,
    "invalidate_tag": 1.0,
    "clear": 0.1,
    "expire": 0.5,
}
_TTLS: Final = ((0.3, 2.0, 30.0, None), (1, 2, 4, 2))
# The shortest and the longest loads of each class, in seconds, and how often it is chosen.
_LOADS: Final = (((0.0, 0.002), (0.005, 0.03), (0.1, 0.4)), (6, 3, 1))
_PR_SET_PDEATHSIG: Final = 1
_FAILING_LOADS: Final = 0.02
_TAGS: Final = 4
# How long a cache must be idle. No count shows queued copies between the tiers; they are written in this time.
_QUIET_S: Final = 0.5
# The faults are over, so all servers answer. A busy machine may need several attempts.
_LONGEST_UNREST_S: Final = 30.0


class Plan(Struct, kw_only=True):
    """What a worker is to do.

    Attributes:
        process: its number.
        folder: where it writes its log, and where the truth is.
        namespace: of the cache.
        redis_url: of L2; None for no L2.
        database_url: of L3; None for no L3.
        keys: how many keys there are.
        tasks: how many tasks work at the same time.
        pause_s: the average pause of a task between two operations.
        l1_size: of L1.
        l1_ttl: of L1; None for no ttl of its own.
        options: further arguments of the `TieredCache`.
        tier_deadline_s: the deadline of each tier.
        clock_offset_s: how far the wall clock of the process is wrong.
        racing: the share of writes that do not wait until other writers of the key have finished.
        weights: how often operations are chosen, instead of the usual.
        lost: the share of `set` calls that are logged as acknowledged and not carried out, to test the checker.
        seed: of all that is random.
    """

    process: int
    folder: str
    namespace: str
    redis_url: str | None
    database_url: str | None
    keys: int = 48
    tasks: int = 6
    pause_s: float = 0.008
    l1_size: int = 16
    l1_ttl: float | None = None
    options: dict[str, Any] = {}
    tier_deadline_s: float = 0.25
    clock_offset_s: float = 0.0
    racing: float = 0.1
    weights: dict[str, float] = {}
    lost: float = 0.0
    seed: int = 0

    @property
    def key_names(self) -> list[str]:
        """All keys."""
        return [f"key{number}" for number in range(self.keys)]


class SourceDownError(Exception):
    """What a loader raises now and then."""


def tags_of(key: str) -> tuple[str, ...]:
    """Return the tags of a key: every second key has one, always the same."""
    number = int(key.removeprefix("key"))
    return () if number % 2 else (f"tag{number // 2 % _TAGS}",)


class Worker:
    """Uses a cache at random.

    Args:
        plan: what to do.
        cache: a `TieredCache`.
    """

    def __init__(self, plan: Plan, cache: Any) -> None:
        self._plan = plan
        self._cache = cache
        self._me = plan.process
        # Without negative entries a loader returns the version of a removed key, too: more reads say what they found.
        self._negative = plan.options.get("negative_ttl") is not None
        self._keys = plan.key_names
        self._log = Log(Path(plan.folder), plan.process)
        self._truth = Truth(Path(plan.folder) / "truth", self._keys)
        self._random = random.Random(f"{plan.seed} {plan.process}")
        self._errors: Counter[str] = Counter()
        self._operations: dict[str, Callable[[], Awaitable[None]]] = {
            name: getattr(self, f"_{name}") for name in _WEIGHTS
        }

    async def work(self, until: int) -> None:
        """Use the cache until a monotonic time."""
        await asyncio.gather(*(self._task(until) for _ in range(self._plan.tasks)))

    async def settle(self) -> None:
        """Wait until the cache does nothing in the background. Until then, the tiers may disagree about a key."""
        start = quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < _QUIET_S:
            await asyncio.sleep(0.05)
            # A circuit breaker closes only if a call succeeds.
            await self._cache.get("nobody's")
            if (busy := self._busy()) is not None:
                quiet_since = time.monotonic()
                if quiet_since - start > _LONGEST_UNREST_S:
                    self._errors[f"after {_LONGEST_UNREST_S:g} s at rest: {busy}"] += 1
                    return

    def _busy(self) -> str | None:
        """Return what the cache still does in the background; None for nothing."""
        stats = self._cache.stats()
        # A version of the package without a backplane repairs nothing.
        backplane = getattr(stats, "backplane", None)
        counts = {
            "failed writes to repair": getattr(stats, "unrepaired", 0),
            "loads": stats.loading,
            "records to publish": backplane.queued if backplane is not None else 0,
            "lost backplanes": backplane is not None and backplane.state.value != "following",
            "open circuits": sum(tier is not None and tier.breaker.value != "closed" for tier in (stats.l2, stats.l3)),
        }
        return ", ".join(f"{count:d} {name}" for name, count in counts.items() if count) or None

    async def rest(self, op: str) -> None:
        """Read every key, from L1 for "rest l1", or else through the cache."""
        for key in self._keys:
            start = now()
            found = self._cache.get_local(key) if op == "rest l1" else await self._cache.get(key)
            self._read(op, key, found, start)

    def finish(self) -> None:
        """End the log."""
        stats = self._cache.stats()
        counts = {"l1 hits": stats.l1.hits, "l1 misses": stats.l1.misses}
        for name, tier in (("l2", stats.l2), ("l3", stats.l3)):
            if tier is not None:
                counts |= {f"{name} hits": tier.hits, f"{name} misses": tier.misses, f"{name} timeouts": tier.timeouts}
        for name in ("loads", "promotions", "demotions", "write_backs", "dropped", "stale_served"):
            counts[name] = getattr(stats, name)
        self._log.finish(self._errors, counts)
        self._truth.close()

    async def _task(self, until: int) -> None:
        from acgsperf.errors import LoadError

        chosen = _WEIGHTS | self._plan.weights
        names, weights = list(chosen), list(chosen.values())
        while now() < until:
            (name,) = self._random.choices(names, weights)
            try:
                await self._operations[name]()
            except (SourceDownError, LoadError):
                # With a lock, the failure of another process is shared.
                pass
            except Exception as error:
                # The checker reports it.
                self._errors[f"{name}: {type(error).__name__}: {error}"] += 1
            await asyncio.sleep(self._random.expovariate(1 / self._plan.pause_s))

    def _key(self) -> str:
        # Some keys are used more than others.
        return self._keys[int(len(self._keys) * self._random.random() ** 1.5)]

    def _some_keys(self) -> list[str]:
        return self._random.sample(self._keys, self._random.randint(2, 5))

    def _ttl(self) -> float | None:
        return self._random.choices(*_TTLS)[0]

    def _read(self, op: str, key: str, found: Any, start: int) -> None:
        self._log.add(Read(self._me, op, key, found, start, now()))

    def _loader(self, ttl: float | None) -> Callable[[list[str]], Awaitable[dict[str, int | None]]]:
        async def load(keys: list[str]) -> dict[str, int | None]:
            start = now()
            versions = {key: self._truth.current(key) for key in keys}
            ((shortest, longest),) = self._random.choices(*_LOADS)
            await asyncio.sleep(self._random.uniform(shortest, longest))
            if self._random.random() < _FAILING_LOADS:
                raise SourceDownError
            loaded: dict[str, int | None] = {}
            for key, version in versions.items():
                negative = self._negative and not self._truth.exists(key, version)
                self._log.add(Load(self._me, key, version, start, now(), ttl, negative))
                loaded[key] = None if negative else version
            return loaded

        return load

    async def _get(self) -> None:
        key, start = self._key(), now()
        self._read("get", key, await self._cache.get(key), start)

    async def _get_local(self) -> None:
        key, start = self._key(), now()
        self._read("get_local", key, self._cache.get_local(key), start)

    async def _get_many(self) -> None:
        keys, start = self._some_keys(), now()
        found = await self._cache.get_many(keys)
        for key in keys:
            self._read("get_many", key, found.get(key), start)

    async def _get_or_load(self) -> None:
        key, ttl = self._key(), self._ttl()
        load = self._loader(ttl)

        async def load_one(key: str) -> int | None:
            return (await load([key]))[key]

        start = now()
        found = await self._cache.get_or_load(key, load_one, ttl=ttl, tags=tags_of(key))
        self._read("get_or_load", key, found, start)

    async def _get_or_load_many(self) -> None:
        some = self._some_keys()
        keys, ttl = [key for key in some if tags_of(key) == tags_of(some[0])], self._ttl()
        start = now()
        found = await self._cache.get_or_load_many(keys, self._loader(ttl), ttl=ttl, tags=tags_of(keys[0]))
        for key in keys:
            self._read("get_or_load_many", key, found[key], start)

    @contextmanager
    def _writing(self, keys: list[str]) -> Iterator[list[str]]:
        """Reserve keys for a write, as a row lock of the source would; some writers do not care."""
        if self._random.random() < self._plan.racing:
            yield keys
            return
        claimed = self._truth.claim(keys)
        try:
            yield claimed
        finally:
            self._truth.release(claimed)

    async def _write(
        self, op: str, keys: list[str], write: Callable[[dict[str, int]], Awaitable[Any]], ttl: float | None = None
    ) -> None:
        """Raise the counters of keys, write to the cache, and log one event for each key."""
        start = now()
        exists = op.startswith("set") or self._random.random() < 0.5
        versions = {key: self._truth.raise_version(key, exists=exists) for key in keys}
        answer: Any = None
        try:
            answer = await write(versions)
        finally:
            # A call that raised has acknowledged nothing.
            end = now()
            for key, version in versions.items():
                written = answer.get(key) if isinstance(answer, dict) else answer
                # A version of the package without a backplane knows nothing of publishing.
                acked = written is not None and written.everywhere and getattr(written, "published", None) is not False
                detail = "" if acked else repr(written)
                nowhere = written is not None and not acked and not (written.l2 or written.l3)
                self._log.add(Write(self._me, op, key, version, start, end, acked, ttl, detail, exists, nowhere))

    async def _set(self) -> None:
        with self._writing([self._key()]) as keys:
            if keys and self._random.random() < self._plan.lost:
                start = now()
                version = self._truth.raise_version(keys[0])
                self._log.add(Write(self._me, "set", keys[0], version, start, now(), True, None, "lost on purpose"))
            elif keys:
                ttl, tags = self._ttl(), tags_of(keys[0])
                key = keys[0]
                await self._write(
                    "set", keys, lambda versions: self._cache.set(key, versions[key], ttl, tags=tags), ttl
                )

    async def _set_many(self) -> None:
        some = self._some_keys()
        with self._writing([key for key in some if tags_of(key) == tags_of(some[0])]) as keys:
            if keys:
                ttl, tags = self._ttl(), tags_of(keys[0])
                await self._write(
                    "set_many", keys, lambda versions: self._cache.set_many(versions, ttl, tags=tags), ttl
                )

    async def _delete(self) -> None:
        with self._writing([self._key()]) as keys:
            if keys:
                await self._write("delete", keys, lambda _: self._cache.delete(keys[0]))

    async def _delete_many(self) -> None:
        with self._writing(self._some_keys()) as keys:
            if keys:
                await self._write("delete_many", keys, lambda _: self._cache.delete_many(keys))

    async def _invalidate_tag(self) -> None:
        tag = f"tag{self._random.randrange(_TAGS)}"
        keys = [key for key in self._keys if tag in tags_of(key)]
        await self._write("invalidate_tag", keys, lambda _: self._cache.invalidate_tag(tag))

    async def _clear(self) -> None:
        await self._write("clear", self._keys, lambda _: self._cache.clear())

    async def _expire(self) -> None:
        # A version of the package without a backplane has another name for it.
        remove_expired = getattr(self._cache, "remove_expired", None) or self._cache.expire
        remove_expired()


def _move_wall_clock(seconds: float) -> None:
    """Make the wall clock of this process wrong. Must be called before the package is imported."""
    wall, wall_ns = time.time, time.time_ns
    time.time = lambda: wall() + seconds
    time.time_ns = lambda: wall_ns() + int(seconds * 1e9)


def _die_with_the_runner() -> None:
    """Let Linux kill this process when its parent ends, even if it is frozen at that time."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _main(plan: Plan) -> None:
    # Imported late: the package takes the clock that it finds.
    from acgsperf import EntryOptions, LRUCache, TieredCache
    from acgsperf.tiers.postgres import PostgresTier
    from acgsperf.tiers.redis import RedisTier

    deadline = plan.tier_deadline_s
    l2 = RedisTier(plan.redis_url, deadline=deadline) if plan.redis_url else None
    l3 = PostgresTier(plan.database_url, deadline=deadline) if plan.database_url else None
    # L1 gets values at their first hit in a lower tier, so that it is worth looking at.
    options = {"promotion_threshold": 1, "deadline": deadline} | plan.options
    l1: LRUCache[str, int] = LRUCache(plan.l1_size, plan.l1_ttl)
    names = {one.name for one in fields(EntryOptions)}
    own = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    async with TieredCache(l1, l2, l3, namespace=plan.namespace, **rest, options=EntryOptions(**own)) as cache:
        worker = Worker(plan, cache)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            command, _, argument = line.strip().partition(" ")
            if command == "start":
                await worker.work(int(argument))
            elif command == "settle":
                await worker.settle()
            elif command == "rest":
                await worker.rest(f"rest {argument}")
            else:
                break
            print("done", flush=True)
    worker.finish()
    print("done", flush=True)


if __name__ == "__main__":
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    _die_with_the_runner()
    if plan.clock_offset_s:
        _move_wall_clock(plan.clock_offset_s)
    asyncio.run(_main(plan))
