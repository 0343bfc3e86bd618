"""Write-behind: queues entries for a tier, and stores them in batches while no caller waits."""

import asyncio
from itertools import islice
from typing import Final

from acgsperf.tiers.base import Entry, Store, Tier

__all__ = ["WriteBehind"]

_MAX_QUEUED: Final = 10_000
_BATCH: Final = 500
_BATCHING_ITERATIONS: Final = 8


class WriteBehind:
    """A bounded queue of entries for one tier, and the task that stores them, up to 500 in a round trip.

    An entry that does not fit is dropped and counted. A later write of the same key removes the queued entry, so that
    the older value cannot arrive after the newer one.

    Attributes:
        written: the entries that the tier stored.
        demoted: the entries evicted from L1 that were stored, because the tier had lost them.
        dropped: the entries that did not fit into the queue.
        refused: the entries that the tier did not store; a write may have superseded them.
    """

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._stores: dict[str, Store] = {}
        self._demotions: dict[str, Store] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.written: int = 0
        self.demoted: int = 0
        self.dropped: int = 0
        self.refused: int = 0

    def open(self) -> None:
        """Start the task, in the running event loop."""
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is queued, and wait until the task has ended."""
        self._closing = True
        self._wake.set()
        task, self._task = self._task, None
        if task is not None:
            await task

    def put(self, key: str, store: Store) -> None:
        """Queue an entry, unless a newer one is queued."""
        queued = self._stores.get(key)
        if queued is not None and queued.entry.created_at > store.entry.created_at:
            return
        self._demotions.pop(key, None)
        self._queue(self._stores, key, store)

    def demote(self, key: str, store: Store) -> None:
        """Queue an entry that is stored only if the tier no longer has the key."""
        if key not in self._stores:
            self._queue(self._demotions, key, store)

    def queued(self, key: str) -> Entry | None:
        """Return the entry of a key that was loaded or copied and has not been sent to the tier yet."""
        store = self._stores.get(key)
        return None if store is None else store.entry

    def supersede(self, key: str) -> None:
        """Remove the queued entry of a key, because of a later write."""
        self._stores.pop(key, None)
        self._demotions.pop(key, None)

    def supersede_tag(self, tag: str) -> None:
        """Remove every queued entry with a tag."""
        for queue in (self._stores, self._demotions):
            for key in [key for key, store in queue.items() if tag in store.entry.tags]:
                del queue[key]

    def supersede_all(self) -> None:
        """Remove every queued entry."""
        self._stores.clear()
        self._demotions.clear()

    def _queue(self, queue: dict[str, Store], key: str, store: Store) -> None:
        if len(queue) >= _MAX_QUEUED and key not in queue:
            self.dropped += 1
            return
        queue[key] = store
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if not self._closing and len(self._stores) < _BATCH:
                # No caller waits, and a few iterations of the event loop collect a larger batch.
                for _ in range(_BATCHING_ITERATIONS):
                    await asyncio.sleep(0)
            self._wake.clear()
            await self._store()
            await self._demote()
            if self._stores or self._demotions or self._closing:
                self._wake.set()
            if self._closing and not self._stores and not self._demotions:
                return

    async def _store(self) -> None:
        batch = {key: self._stores.pop(key) for key in list(islice(self._stores, _BATCH))}
        # There is no await between removing the batch and calling the tier: no later write can get in between.
        if batch:
            stored = await self._tier.store(batch)
            self.written += len(stored)
            self.refused += len(batch) - len(stored)

    async def _demote(self) -> None:
        batch = {key: self._demotions[key] for key in islice(self._demotions, _BATCH)}
        if not batch:
            return
        # The server of a coherent tier compares what it has. Another tier is asked first.
        present = {} if self._tier.coherent else await self._tier.get_many(list(batch))
        lost = {}
        for key, store in batch.items():
            # A key that was written or evicted again meanwhile has another entry, or none.
            if self._demotions.get(key) is store:
                del self._demotions[key]
                if key not in present:
                    lost[key] = store
        if lost:
            self.demoted += len(await self._tier.store(lost))
