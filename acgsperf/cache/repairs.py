"""Repairs: if one tier carried out a write and the other did not, both are invalidated in the background."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from itertools import islice
from typing import Final

from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.tiers.base import Outcome, Tier, Write, WriteResult
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.records import Record, RecordKind, of_keys, of_tag

__all__ = ["Repairs"]

_log: Final = logging.getLogger("acgsperf.cache")

_MAX_QUEUED: Final = 10_000
_BATCH: Final = 500
_DONE: Final = (Outcome.STORED, Outcome.REMOVED, Outcome.NEWER)
_FIRST_PAUSE_S: Final = 0.1
# While the circuit of a tier is open, an attempt costs nothing there. Until the repair, others read the former value.
_LONGEST_PAUSE_S: Final = 1.0


class Repairs:
    """Removes keys, and invalidates tags, about which the tiers disagree. It tries again until every tier has done it.

    A repair changes L3 first and then L2, because a read may copy an old row from L3 to L2 in the meantime. Then it
    tells all processes, this one included, because their L1 may have what a tier had before the repair. A removal has
    the stamp of the failed write, so that a later write stays. If L3 has something newer, everything older than that is
    removed from L2.

    Args:
        lower_tiers: the tiers.
        apply: applies a record in this process.
        publish: tells the other processes.
    """

    def __init__(
        self, lower_tiers: LowerTiers, apply: Callable[[Record], object], publish: Callable[[Record], object]
    ) -> None:
        self._tiers = [tier for tier in (lower_tiers.l3, lower_tiers.l2) if tier is not None]
        self._apply = apply
        self._publish = publish
        self._namespace = ""
        self._removals: dict[str, Write] = {}
        # Those of these keys that this process has written again. L1 has the later write.
        self._rewritten: set[str] = set()
        # Key and id of each write of unknown outcome that no tier is known to have.
        self._undos: dict[tuple[str, bytes], None] = {}
        # None stands for the whole namespace. Each call puts a new object as the value, so that an invalidation that
        # fails while an earlier one is repaired is repaired as well.
        self._tags: dict[str | None, object] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._removals) + len(self._undos) + len(self._tags)

    def open(self, namespace: str) -> None:
        """Start the task that repairs, in the running event loop."""
        self._namespace = namespace
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        if len(self):
            self._wake.set()

    async def close(self) -> None:
        """Stop, and log how many writes are not repaired."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if len(self):
            _log.warning(
                "cache %r: closed with %d failed writes not repaired; a tier may return older values until they expire",
                self._namespace,
                len(self),
            )

    def remove(self, key: str, write: Write) -> None:
        """Remove a key from every tier after a failed write. If L3 has something newer, only that stays."""
        if self._has_room(key, self._removals):
            queued = self._removals.get(key)
            self._removals[key] = write if queued is None or queued.stamp < write.stamp else queued
            self._rewritten.discard(key)

    def rewrite(self, keys: Iterable[str]) -> None:
        """Leave keys in the L1 of this process, because a later write has begun. If it fails, it is repaired itself."""
        if self._removals:
            self._rewritten.update(key for key in keys if key in self._removals)

    def undo(self, key: str, identifier: bytes) -> None:
        """Remove a key from each tier that has the write with this id."""
        if self._has_room((key, identifier), self._undos):
            self._undos[key, identifier] = None

    def invalidate(self, tag: str | None) -> None:
        """Invalidate a tag in every tier; with None, everything."""
        if self._has_room(tag, self._tags):
            self._tags[tag] = object()

    def _has_room(self, name: object, queue: Container[object]) -> bool:
        if None in self._tags and name is not None:
            self._tags[None] = object()
            return False
        self._wake.set()
        if len(self) >= _MAX_QUEUED and name not in queue:
            _log.warning(
                "cache %r: more than %d failed writes wait for a repair; all tiers will be cleared when they answer",
                self._namespace,
                _MAX_QUEUED,
            )
            self._removals.clear()
            self._rewritten.clear()
            self._undos.clear()
            self._tags.clear()
            self._tags[None] = object()
            return False
        return True

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            done = await self._repair_keys() & await self._undo() & await self._repair_tags()
            if len(self):
                self._wake.set()
                # With jitter, so that not all processes call a server at the same moment when it is back.
                pause = _FIRST_PAUSE_S if done else min(2 * pause, _LONGEST_PAUSE_S)
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            else:
                pause = _FIRST_PAUSE_S

    async def _repair_keys(self) -> bool:
        batch = dict(islice(self._removals.items(), _BATCH))
        left = dict(batch)
        for tier in self._tiers:
            if not left:
                break
            results = await tier.write(left)
            # A tier that has something newer keeps it. The other processes must be told nevertheless.
            left = {key: _after(left[key], result) for key, result in results.items() if result.outcome in _DONE}
        self._tell_of_keys({key: batch[key].id for key in left}, but_not_here=self._rewritten)
        for key in left:
            if self._removals.get(key) is batch[key]:
                del self._removals[key]
                self._rewritten.discard(key)
        return len(left) == len(batch)

    async def _undo(self) -> bool:
        # One id for each key at a time.
        batch = dict(islice(self._undos, _BATCH))
        if not batch or not await self._by_all(lambda tier: tier.remove_written(batch)):
            return not batch
        for undone in batch.items():
            self._undos.pop(undone, None)
        # The records have new ids, so that a process whose L1 has the undone write drops it.
        self._tell_of_keys({key: new_id() for key in batch})
        return True

    async def _repair_tags(self) -> bool:
        done = True
        for tag, asked in list(self._tags.items()):
            if await self._by_all(lambda tier, tag=tag: _invalidated(tier, tag)):  # type: ignore[misc]
                if self._tags.get(tag) is asked:
                    del self._tags[tag]
                record = Record(RecordKind.CLEAR) if tag is None else of_tag(RecordKind.TAG, tag)
                self._apply(record)
                self._publish(record)
            else:
                done = False
        return done

    def _tell_of_keys(self, ids: Mapping[str, bytes], but_not_here: Container[str] = ()) -> None:
        for record in of_keys(RecordKind.KEYS, ((key, ids[key]) for key in ids if key not in but_not_here)):
            self._apply(record)
        for record in of_keys(RecordKind.KEYS, ids.items()):
            self._publish(record)

    async def _by_all(self, call: Callable[[Tier], Awaitable[bool]]) -> bool:
        for tier in self._tiers:
            if not await call(tier):
                return False
        return True


def _after(removal: Write, result: WriteResult) -> Write:
    """Return the removal for the next tier. If this tier has something newer, the removal gets a stamp just below that.

    L2 may have lost the newer entry, and then accepted the failed write, because its stamp comes from a clock that is
    behind. The stamp must be smaller than that of the newer entry, which may be on its way to L2.
    """
    return Write(None, removal.id, max(removal.stamp, result.stamp - 1))


async def _invalidated(tier: Tier, tag: str | None) -> bool:
    return (await tier.invalidate(tag)).outcome is Outcome.STORED
