"""L2 and L3 together: opened and closed, written to, and the order of these writes."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from acgsperf.cache.ordering import Ordering
from acgsperf.cache.write_behind import WriteBehind
from acgsperf.tiers.base import Entry, Tier, TierHealth

__all__ = ["LowerTiers"]

_T = TypeVar("_T")


class LowerTiers:
    """The tiers below L1, either of which may be absent. `Lookup` reads them.

    Args:
        l2: the faster tier.
        l3: the slower tier.

    Attributes:
        tiers: those that are present, in the order in which they are read.
        queues: the write-behind queue of each.
        ordering: the order of the writes.

    Raises:
        TypeError: if `l2` or `l3` is neither a `Tier` nor None.
    """

    def __init__(self, l2: Tier | None, l3: Tier | None) -> None:
        for name, tier in (("l2", l2), ("l3", l3)):
            if tier is not None and not isinstance(tier, Tier):
                raise TypeError(f"{name} must be a Tier or None, got {type(tier).__name__}")
        self.l2, self.l3 = l2, l3
        self.tiers: Final = tuple(tier for tier in (l2, l3) if tier is not None)
        self.queues: Final = tuple(WriteBehind(tier) for tier in self.tiers)
        self.ordering: Final = Ordering()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self, namespace: str) -> None:
        """Open the tiers and start their queues. If a tier does not open, close those that did."""
        opened: list[Tier] = []
        try:
            for tier in self.tiers:
                await tier.open(namespace)
                opened.append(tier)
        except BaseException:
            for tier in opened:
                await tier.close()
            raise
        for queue in self.queues:
            queue.open()

    async def close(self) -> None:
        """Write what is queued, wait for the writes in flight, and close the tiers."""
        try:
            await asyncio.gather(*(queue.close() for queue in self.queues))
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for tier in self.tiers:
                await tier.close()

    async def health(self) -> tuple[TierHealth | None, TierHealth | None]:
        """Ask the servers of L2 and L3 now; None for an absent tier."""
        answers = iter(await asyncio.gather(*(tier.health() for tier in self.tiers)))
        return None if self.l2 is None else next(answers), None if self.l3 is None else next(answers)

    def put(self, key: str, entry: Entry) -> None:
        """Queue a loaded entry for every tier. Reads in flight are superseded: what they find is older."""
        self.ordering.supersede(key)
        for queue in self.queues:
            queue.put(key, entry)

    async def put_and_wait(self, key: str, entry: Entry) -> None:
        """`put`, but return when the first tier has the entry."""
        self.put(key, entry)
        self.queues[0].supersede(key)
        await self.tiers[0].set(key, entry)

    def write_back(self, key: str, entry: Entry) -> None:
        """Queue an entry, found in a slower tier, to be written to the first tier."""
        self.queues[0].put(key, entry)

    def demote(self, key: str, entry: Entry) -> None:
        """Write a fresh entry that L1 has evicted to L2, if L2 has lost it."""
        if self.l2 is not None:
            self.queues[0].demote(key, entry)

    async def store(self, entries: Mapping[str, Entry]) -> tuple[frozenset[str] | None, frozenset[str] | None]:
        """Write to every tier, and return the keys that L2 and L3 accepted; None for an absent tier."""
        with self.ordering.writing(entries):
            self._supersede(entries)
            if len(entries) == 1:
                ((key, entry),) = entries.items()
                answers = await self._call_both(lambda tier: tier.set(key, entry))
                l2, l3 = (
                    None if accepted is None else frozenset(entries) if accepted else frozenset[str]()
                    for accepted in answers
                )
                return l2, l3
            return await self._call_both(lambda tier: tier.set_many(entries))

    async def remove(self, keys: Sequence[str]) -> tuple[bool | None, bool | None]:
        """Remove keys, and return whether L2 and L3 have done so; None for an absent tier."""
        with self.ordering.writing(keys):
            self._supersede(keys)
            return await self._remove_from_both(lambda tier: tier.delete_many(keys))

    async def invalidate_tag(self, tag: str) -> tuple[bool | None, bool | None]:
        """Remove every entry with a tag. Returns as `remove` does."""
        with self.ordering.invalidating(tag):
            for queue in self.queues:
                queue.supersede_tag(tag)
            return await self._remove_from_both(lambda tier: tier.invalidate_tag(tag))

    async def clear(self) -> tuple[bool | None, bool | None]:
        """Remove every entry of the namespace. Returns as `remove` does."""
        with self.ordering.clearing():
            for queue in self.queues:
                queue.supersede_all()
            return await self._remove_from_both(lambda tier: tier.clear())

    def _supersede(self, keys: Iterable[str]) -> None:
        for key in keys:
            for queue in self.queues:
                queue.supersede(key)

    async def _remove_from_both(
        self, call: Callable[[Tier], Coroutine[Any, Any, int | None]]
    ) -> tuple[bool | None, bool | None]:
        # A tier returns a number, or None if its server did not carry out the removal.
        l2, l3 = await self._call_both(call)
        return None if self.l2 is None else l2 is not None, None if self.l3 is None else l3 is not None

    async def _call_both(self, call: Callable[[Tier], Coroutine[Any, Any, _T]]) -> tuple[_T | None, _T | None]:
        if self.l2 is None or self.l3 is None:
            # No task is started, so the tier gets the call before anything else runs in this iteration of the loop.
            l2 = await call(self.l2) if self.l2 is not None else None
            l3 = await call(self.l3) if self.l3 is not None else None
            return l2, l3
        # If the caller is cancelled, this task still finishes its write.
        task = asyncio.create_task(call(self.l3))
        self._tasks.add(task)
        task.add_done_callback(self._discard)
        l2 = await call(self.l2)
        await asyncio.wait((task,))
        return l2, task.result()

    def _discard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Retrieve the error. Otherwise, if the call of L2 has raised as well, asyncio would log this error as never
        # retrieved.
        if not task.cancelled():
            task.exception()
