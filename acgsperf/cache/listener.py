"""Applies the records of the backplane to this process. A record tells what another process has written."""

import asyncio
from collections.abc import Callable
from typing import Any

from acgsperf._native import envelope_format as envelope
from acgsperf.cache.l1 import L1
from acgsperf.cache.loading import Loading
from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.cache.repairs import Repairs
from acgsperf.tiers.base import Outcome
from acgsperf.tiers.records import MAX_KEY_BYTES, Record, RecordKind, texts

__all__ = ["CacheListener"]


class CacheListener:
    """Drops from L1 what others have written, and supersedes the reads and loads of it that are in flight.

    The callers that wait for such a read or load get its value; no tier stores it.

    Args:
        l1: drops what a record names, unless it has the value of that write.
        lower_tiers: reads of them are superseded.
        loading: loads are superseded.
        repairs: repeat an invalidation that a tier has not carried out.
        unlocked: called with key and outcome when another process has released the lock of a key; None for no call.
    """

    def __init__(
        self,
        l1: L1[Any],
        lower_tiers: LowerTiers,
        loading: Loading,
        repairs: Repairs,
        unlocked: Callable[[str, bytes], object] | None,
    ) -> None:
        self._l1 = l1
        self._lower_tiers = lower_tiers
        self._ordering = lower_tiers.ordering
        self._loading = loading
        self._repairs = repairs
        self._unlocked = unlocked
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the invalidations that the database has caused."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def apply(self, record: Record) -> None:
        """Apply a record; see `Listener`."""
        kind = record.kind
        if kind is RecordKind.KEYS or kind is RecordKind.EXPIRED_KEYS:
            for key, identifier in texts(record.items):
                self._supersede(key)
                if kind is RecordKind.KEYS:
                    self._l1.remove_unless(key, identifier)
                else:
                    self._l1.expire_now(key)
        elif kind is RecordKind.TAG or kind is RecordKind.EXPIRED_TAG:
            for tag, _ in texts(record.items):
                self._supersede_tag(tag)
                if kind is RecordKind.TAG:
                    self._l1.remove_tag(tag)
                    self._invalidate_tiers(record, tag)
                else:
                    self._l1.expire_tag(tag)
        elif kind is RecordKind.CLEAR:
            self._supersede_all()
            self._l1.clear()
            self._invalidate_tiers(record, None)
        elif kind is RecordKind.LONG_KEYS:
            self._supersede_all()
            self._l1.remove_if(lambda key: len(key) * 4 > MAX_KEY_BYTES < len(envelope.identity(key)))
        elif kind is RecordKind.UNLOCKED and self._unlocked is not None:
            for key, outcome in texts(record.items):
                self._unlocked(key, outcome)

    def extend(self, until: float) -> None:
        """Let L1 answer until a time; see `Listener`."""
        self._l1.answer_until(until)

    def missed(self) -> None:
        """Verify every entry of L1 before it answers; see `Listener`."""
        self._supersede_all()
        self._l1.verify_all()

    def _supersede(self, key: str) -> None:
        self._ordering.supersede(key)
        self._loading.supersede(key)
        self._lower_tiers.supersede(key)

    def _supersede_tag(self, tag: str) -> None:
        self._ordering.supersede_tag(tag)
        self._loading.flights.supersede_tag(tag)
        self._lower_tiers.supersede_tag(tag)

    def _supersede_all(self) -> None:
        self._ordering.supersede_all()
        self._loading.flights.supersede_all()
        self._lower_tiers.supersede_all()

    def _invalidate_tiers(self, record: Record, tag: str | None) -> None:
        # A record without a writer comes from a watched table. In L2 its tag is still valid, and in L3 if its token was
        # locked.
        if not record.writer:
            task = asyncio.create_task(self._invalidate(tag))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _invalidate(self, tag: str | None) -> None:
        tiers = [tier for tier in (self._lower_tiers.l3, self._lower_tiers.l2) if tier is not None]
        results = [await tier.invalidate(tag) for tier in tiers]
        if any(result.outcome is not Outcome.STORED for result in results):
            self._repairs.invalidate(tag)
        # What was read from a tier until now may be old.
        if tag is None:
            self._supersede_all()
            self._l1.clear()
        else:
            self._supersede_tag(tag)
            self._l1.remove_tag(tag)
