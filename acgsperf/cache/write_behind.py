"""Entries on their way to a tier that nobody waits for: what was loaded, found further behind, or evicted from L1."""

import asyncio
from itertools import islice
from typing import Final

from acgsperf.tiers.base import Entry, Tier

__all__ = ["WriteBehind"]

_QUEUE: Final = 10_000
_BATCH: Final = 500
_PATIENCE_TURNS: Final = 8


class WriteBehind:
    """A bounded queue before a tier, and the task that empties it, some hundred entries a round trip.

    What does not fit is dropped and counted. A later write of the same key takes an entry out again, so that the older
    one does not arrive after it.
    """

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._writes: dict[str, Entry] = {}
        self._demotions: dict[str, Entry] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        self.demoted = 0
        self.dropped = 0
        self.refused = 0

    def open(self) -> None:
        """Start the task, in the running event loop."""
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is queued, and wait for the task."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task

    def put(self, key: str, entry: Entry) -> None:
        """Queue an entry, unless a newer one waits there."""
        waiting = self._writes.get(key)
        if waiting is not None and waiting.created_at > entry.created_at:
            return
        self._demotions.pop(key, None)
        self._queue(self._writes, key, entry)

    def demote(self, key: str, entry: Entry) -> None:
        """Queue an entry that is to be written only if the tier no longer has the key."""
        if key not in self._writes:
            self._queue(self._demotions, key, entry)

    def overtake(self, key: str) -> None:
        """A write of a key."""
        self._writes.pop(key, None)
        self._demotions.pop(key, None)

    def overtake_tag(self, tag: str) -> None:
        """The same for every entry with a tag."""
        for queue in (self._writes, self._demotions):
            for key in [key for key, entry in queue.items() if tag in entry.tags]:
                del queue[key]

    def overtake_all(self) -> None:
        """The same for every entry."""
        self._writes.clear()
        self._demotions.clear()

    def _queue(self, queue: dict[str, Entry], key: str, entry: Entry) -> None:
        if len(queue) >= _QUEUE and key not in queue:
            self.dropped += 1
            return
        queue[key] = entry
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if not self._closing and len(self._writes) < _BATCH:
                # Nobody waits, and some turns of patience make one round trip of many.
                for _ in range(_PATIENCE_TURNS):
                    await asyncio.sleep(0)
            self._wake.clear()
            await self._write()
            await self._demote()
            if self._writes or self._demotions or self._closing:
                self._wake.set()
            if self._closing and not self._writes and not self._demotions:
                return

    async def _write(self) -> None:
        batch = _take(self._writes)
        # Nothing is awaited between taking the batch and the tier's having it: a later write cannot get in between.
        if batch:
            stored = await self._tier.set_many(batch)
            self.written += len(stored)
            self.refused += len(batch) - len(stored)

    async def _demote(self) -> None:
        keys = list(islice(self._demotions, _BATCH))
        if not keys:
            return
        asked = {key: self._demotions[key] for key in keys}
        present = await self._tier.get_many(keys)
        lost = {}
        for key, entry in asked.items():
            # What was written or evicted again meanwhile is not this entry any more.
            if self._demotions.get(key) is entry:
                del self._demotions[key]
                if key not in present:
                    lost[key] = entry
        if lost:
            self.demoted += len(await self._tier.set_many(lost))


def _take(queue: dict[str, Entry]) -> dict[str, Entry]:
    keys = list(islice(queue, _BATCH))
    return {key: queue.pop(key) for key in keys}
