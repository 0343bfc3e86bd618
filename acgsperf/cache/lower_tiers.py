"""L2 and L3 as one: read in turn within one deadline, written together, and what moves between them and L1."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

from acgsperf.cache.l1 import Local
from acgsperf.cache.ordering import Ordering
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.staleness import Staleness
from acgsperf.cache.write_behind import WriteBehind
from acgsperf.tiers.base import Entry, Tier
from acgsperf.tiers.deadline import Deadline, Wait

__all__ = ["Behind"]

_T = TypeVar("_T")

# Reads of L3 have one timer, though each began when L2 was asked: by so much one may end late.
_ORDERLY_S: Final = 0.01


class Behind:
    """The tiers behind L1; either may be absent.

    Args:
        l2, l3: the tiers.
        staleness: the times of entries.
        promotion: says when a key that is found here goes to L1.
    """

    # L1, which gets what is promoted; it is made with `demote`, and so after this object.
    local: Local[Any]

    def __init__(self, l2: Tier | None, l3: Tier | None, staleness: Staleness, promotion: Promotion) -> None:
        self.l2, self.l3 = l2, l3
        self._tiers: Final = tuple(tier for tier in (l2, l3) if tier is not None)
        self.queues: Final = tuple(WriteBehind(tier) for tier in self._tiers)
        self._staleness = staleness
        self._promotion = promotion
        self._deadline = Deadline(staleness.deadline)
        # A tier that ends its calls in time by itself, when it is the first to be asked.
        self._first_in_time = next((tier for tier in self._tiers[:1] if tier.deadline <= staleness.deadline), None)
        self._time: Callable[[], float] = time.monotonic
        self.ordering: Final = Ordering()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.promotions = 0
        self.deadlines = 0

    async def open(self, namespace: str) -> None:
        """Open the tiers and start their queues."""
        opened: list[Tier] = []
        try:
            for tier in self._tiers:
                await tier.open(namespace)
                opened.append(tier)
        except BaseException:
            for tier in opened:
                await tier.close()
            raise
        for queue in self.queues:
            queue.open()
        self._time = asyncio.get_running_loop().time

    async def close(self) -> None:
        """Write what is queued, wait for what is under way, and close the tiers."""
        try:
            await asyncio.gather(*(queue.close() for queue in self.queues))
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            self._deadline.close()
            for tier in self._tiers:
                await tier.close()

    async def read(self, key: str) -> Entry | None:
        """The entry of a key from the first tier that has a fresh one, else the newest stale one."""
        if not self._tiers:
            return None
        began_at = self.ordering.latest
        best: Entry | None = None
        started = self._time()
        for tier in self._tiers:
            with self._limit(tier, started) as wait:
                entry = await tier.get(key)
            if wait.passed or (entry is None and self._is_over(started)):
                self.deadlines += 1
                break
            if entry is not None and (best is None or entry.created_at > best.created_at):
                best = entry
                if self._staleness.is_fresh(entry):
                    self._found(began_at, key, entry, tier)
                    break
        return best

    async def read_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """`read` for each key that has an entry, with one call of each tier."""
        best: dict[str, Entry] = {}
        if not self._tiers or not keys:
            return best
        began_at = self.ordering.latest
        wanted = keys
        started = self._time()
        for tier in self._tiers:
            with self._limit(tier, started) as wait:
                found = await tier.get_many(wanted)
            if wait.passed or (not found and self._is_over(started)):
                self.deadlines += 1
                break
            for key, entry in found.items():
                if key not in best or entry.created_at > best[key].created_at:
                    best[key] = entry
                    if self._staleness.is_fresh(entry):
                        self._found(began_at, key, entry, tier)
            wanted = [key for key in wanted if key not in best or not self._staleness.is_fresh(best[key])]
            if not wanted:
                break
        return best

    def _is_over(self, started: float) -> bool:
        # A tier that ends its calls by itself does not say why.
        return self._time() - started >= self._staleness.deadline

    def _limit(self, tier: Tier, started: float) -> "Wait | _Unlimited":
        """What ends the wait for a tier when the deadline of a read has passed that began at `started`."""
        if tier is self._first_in_time:
            return _UNLIMITED
        if self._time() - started <= _ORDERLY_S:
            return self._deadline.wait(started)
        # What began long before others would be ended as late.
        return Deadline(self._staleness.deadline).wait(started)

    def _found(self, began_at: int, key: str, entry: Entry, tier: Tier) -> None:
        if not self.ordering.stands(began_at, key, entry.tags):
            return
        if tier is not self._tiers[0]:
            self.queues[0].put(key, entry)
        if entry.negative:
            self.local.put(key, entry)
        elif self._promotion.earned(key):
            self.promotions += 1
            self.local.put(key, entry)

    def put(self, key: str, entry: Entry) -> None:
        """Write what was loaded to all tiers, with nobody waiting; what a read under way finds is older."""
        self.ordering.overtake(key)
        for queue in self.queues:
            queue.put(key, entry)

    async def put_and_wait(self, key: str, entry: Entry) -> None:
        """The same, but the first tier has it when this returns."""
        self.put(key, entry)
        self.queues[0].overtake(key)
        await self._tiers[0].set(key, entry)

    def demote(self, key: str, entry: Entry) -> None:
        """L1 has evicted a fresh entry: L2 gets it if it has lost it."""
        if self.l2 is not None:
            self.queues[0].demote(key, entry)

    async def store(self, entries: Mapping[str, Entry]) -> tuple[frozenset[str] | None, frozenset[str] | None]:
        """Write to all tiers; the keys that each took."""
        with self.ordering.writing(entries):
            self._overtake(entries)
            if len(entries) == 1:
                ((key, entry),) = entries.items()
                taken = await self._each(lambda tier: tier.set(key, entry))
                l2, l3 = (None if took is None else frozenset(entries) if took else frozenset[str]() for took in taken)
                return l2, l3
            return await self._each(lambda tier: tier.set_many(entries))

    async def remove(self, keys: Sequence[str]) -> tuple[bool | None, bool | None]:
        """Forget keys; whether each tier has."""
        with self.ordering.writing(keys):
            self._overtake(keys)
            return await self._removed(lambda tier: tier.delete_many(keys))

    async def invalidate_tag(self, tag: str) -> tuple[bool | None, bool | None]:
        """Forget every entry with a tag; whether each tier has."""
        with self.ordering.invalidating(tag):
            for queue in self.queues:
                queue.overtake_tag(tag)
            return await self._removed(lambda tier: tier.invalidate_tag(tag))

    async def clear(self) -> tuple[bool | None, bool | None]:
        """Forget the namespace; whether each tier has."""
        with self.ordering.clearing():
            for queue in self.queues:
                queue.overtake_all()
            self._promotion.clear()
            return await self._removed(lambda tier: tier.clear())

    def _overtake(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._promotion.forget(key)
            for queue in self.queues:
                queue.overtake(key)

    async def _removed(
        self, call: Callable[[Tier], Coroutine[Any, Any, int | None]]
    ) -> tuple[bool | None, bool | None]:
        # A tier answers with a number, or None when it could not be asked.
        l2, l3 = await self._each(call)
        return None if self.l2 is None else l2 is not None, None if self.l3 is None else l3 is not None

    async def _each(self, call: Callable[[Tier], Coroutine[Any, Any, _T]]) -> tuple[_T | None, _T | None]:
        if self.l2 is None or self.l3 is None:
            # Awaited in place, and so with the tier before anything else in this turn of the loop.
            l2 = await call(self.l2) if self.l2 is not None else None
            l3 = await call(self.l3) if self.l3 is not None else None
            return l2, l3
        task = asyncio.create_task(call(self.l3))
        self._tasks.add(task)
        task.add_done_callback(self._written)
        # A caller who is cancelled leaves a write that has begun to its end.
        l2 = await call(self.l2)
        await asyncio.wait((task,))
        return l2, task.result()

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Looked at, or asyncio would report an error that the caller has had from the other tier.
        if not task.cancelled():
            task.exception()


class _Unlimited:
    """No limit, in the place of a `Wait`."""

    passed: Final = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


_UNLIMITED: Final = _Unlimited()
