"""`set`, `delete`, `invalidate_tag`, `clear`, `expire_now`: what they supersede, and which tiers carry them out."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeVar

from acgsperf.cache.begun import ALL, Begun, key_name, tag_name
from acgsperf.cache.detached import DetachedCalls
from acgsperf.cache.l1 import L1
from acgsperf.cache.loading import Loading
from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.cache.promotion import Promotion
from acgsperf.cache.repairs import Repairs
from acgsperf.cache.stamps import Stamps
from acgsperf.cache.types import Written
from acgsperf.tiers.base import Entry, Outcome, Tier, Write, WriteResult
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.records import Record, RecordKind, of_keys, of_tag
from acgsperf.tiers.write_batches import MAX_WRITES_TOGETHER

__all__ = ["Writes"]

_T = TypeVar("_T")
_Call = Callable[[Tier, Mapping[str, Write]], Awaitable[dict[str, WriteResult]]]

# How often a write is tried if a tier has a greater stamp: the clock of another process is ahead.
_TRIES: Final = 3
# If L3 does not answer within this share of the shorter deadline, L2 is written meanwhile.
_HEAD_START: Final = 0.05
# For a write that a later one of this process has superseded. The later one is published.
_SUPERSEDED: Final = WriteResult(Outcome.STORED, published=True)
_NOT_DONE: Final = WriteResult(Outcome.REFUSED)
# After these outcomes, the tier has nothing older than the write.
_SETTLED: Final = {Outcome.STORED, Outcome.REMOVED}


class Writes:
    """The writes of callers, as opposed to those that follow a load or a lookup.

    A write supersedes the loads in flight of its keys, then changes L1, then L3, then L2, and then tells the other
    processes. L1 has changed before the first `await`: a caller that reads the key during the write gets the new value.
    If a tier did not carry the write out, L1 drops the value, and `Repairs` removes it from the tiers.

    A write continues if its caller is cancelled or has waited for one deadline. In the second case, the result says
    that no tier is known to have carried it out.

    Args:
        l1: is changed first.
        lower_tiers: are changed after it.
        loading: its loads are superseded.
        promotion: counts the hits of a written key from zero again.
        repairs: remove the keys, and invalidate the tags, about which the tiers disagree.

    Attributes:
        detached: runs the writes.
        publish: publishes the records that no tier has published; None without a backplane.
        is_published_by_tier: whether a tier is on the backplane's server, and publishes what it carries out.
    """

    def __init__(
        self,
        l1: L1[Any],
        lower_tiers: LowerTiers,
        loading: Loading,
        promotion: Promotion,
        repairs: Repairs,
    ) -> None:
        self._l1 = l1
        self._lower_tiers = lower_tiers
        self._ordering = lower_tiers.ordering
        self._loading = loading
        self._promotion = promotion
        self._repairs = repairs
        self.publish: Callable[[Record], asyncio.Future[bool]] | None = None
        self.is_published_by_tier = False
        self._stamps = Stamps(lower_tiers.tiers)
        self._begun = Begun()
        deadlines = [tier.deadline for tier in lower_tiers.tiers] or [0.0]
        self._head_start_s: Final = _HEAD_START * min(deadlines)
        self._longest_deadline: Final = max(deadlines)
        # One deadline, the head start after which L2's part begins, and as much to spare. The backplane has a limit of
        # its own, and a tier that is not coherent removes entries in steps, each with a deadline.
        is_limited = lower_tiers.tiers and all(tier.coherent for tier in lower_tiers.tiers)
        patience_s = self._longest_deadline + 2 * self._head_start_s if is_limited else math.inf
        self.detached: Final = DetachedCalls(patience_s)

    async def close(self) -> None:
        """Wait for the writes in flight."""
        await self.detached.close()

    async def set_many(self, entries: Mapping[str, Entry]) -> dict[str, Written]:
        """Store entries, and return for each key which tiers accepted it."""
        self._supersede(entries)
        for key, entry in entries.items():
            self._l1.put(key, entry)
        self._repairs.rewrite(entries)
        return await self._write({key: Write(entry, entry.id, 0) for key, entry in entries.items()})

    async def delete_many(self, keys: Sequence[str]) -> Written:
        """Remove distinct keys, and return which tiers removed them all."""
        self._supersede(keys)
        for key in keys:
            self._l1.remove(key)
        self._repairs.rewrite(keys)
        return self._all_of(await self._write({key: Write(None, new_id(), 0) for key in keys}))

    async def expire_now(self, keys: Sequence[str]) -> Written:
        """Make the entries of distinct keys stale everywhere, and return which tiers did so for all of them."""
        self._supersede(keys)
        for key in keys:
            self._l1.expire_now(key)
        writes = {key: Write(None, new_id(), 0) for key in keys}
        return self._all_of(
            await self._write(writes, RecordKind.EXPIRED_KEYS, lambda tier, some: tier.expire_now(some))
        )

    async def invalidate_tag(self, tag: str) -> Written:
        """Remove every entry with a tag, and return which tiers did so."""
        self._supersede_tag(tag)
        self._l1.remove_tag(tag)
        return await self._finish_tag(tag, self._invalidate(tag, of_tag(RecordKind.TAG, tag)))

    async def expire_tag(self, tag: str) -> Written:
        """Make every entry with a tag stale, and return which tiers did so."""
        self._supersede_tag(tag)
        self._l1.expire_tag(tag)
        return await self._finish_tag(tag, self._expire_tag(tag))

    async def clear(self) -> Written:
        """Remove every entry, and return which tiers did so."""
        self._supersede_all()
        self._l1.clear()
        write = self._invalidate(None, Record(RecordKind.CLEAR))
        self._begun.begin([ALL])
        return await self._finish([ALL], self._ordering.clearing(), self._supersede_all, write, self._unknown)

    def _supersede(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._loading.supersede(key)
            self._lower_tiers.supersede(key)
            self._promotion.forget(key)

    def _supersede_tag(self, tag: str) -> None:
        self._loading.flights.supersede_tag(tag)
        self._lower_tiers.supersede_tag(tag)

    def _supersede_all(self) -> None:
        self._loading.flights.supersede_all()
        self._lower_tiers.supersede_all()
        self._promotion.clear()

    async def _write(
        self,
        writes: Mapping[str, Write],
        kind: RecordKind = RecordKind.KEYS,
        call: _Call = lambda tier, writes: tier.write(writes),
    ) -> dict[str, Written]:
        if not self._lower_tiers.tiers and self.publish is None:
            for key in writes:
                self._ordering.supersede(key)
            return dict.fromkeys(writes, Written(True, None, None, None))
        names = list(map(key_name, writes))
        tags = {tag for write in writes.values() if write.entry is not None for tag in write.entry.tags}
        watched = [ALL, *map(tag_name, tags)]
        write = self._write_to_tiers(self._begun.begin(names, watched), writes, kind, call)
        mark, supersede = self._ordering.writing(writes), partial(self._supersede, writes)
        batches = -(-len(writes) // MAX_WRITES_TOGETHER)
        return await self._finish(
            [*names, *watched], mark, supersede, write, lambda: dict.fromkeys(writes, self._unknown()), batches
        )

    async def _finish_tag(self, tag: str, write: Coroutine[Any, Any, Written]) -> Written:
        names = [tag_name(tag)]
        self._begun.begin(names)
        supersede = partial(self._supersede_tag, tag)
        return await self._finish(names, self._ordering.invalidating(tag), supersede, write, self._unknown)

    async def _finish(
        self,
        names: Collection[str],
        mark: AbstractContextManager[None],
        supersede: Callable[[], None],
        write: Coroutine[Any, Any, _T],
        unknown: Callable[[], _T],
        batches: int = 1,
    ) -> _T:
        """Run a write.

        Args:
            names: what is written; see `Begun`.
            mark: marks what is written until the write has ended. It begins now and not when the task starts, because a
                read that begins and ends before that would put the old value into L1.
            supersede: supersedes loads. It is called when the write has ended, for those that have begun since.
            write: the write.
            unknown: what the caller is told if the write takes too long.
            batches: in how many batches a tier carries it out.
        """
        mark.__enter__()
        return await self.detached.run(write, unknown, partial(self._ended, mark, supersede, names), batches)

    def _ended(self, mark: AbstractContextManager[None], supersede: Callable[[], None], names: Collection[str]) -> None:
        mark.__exit__(None, None, None)
        self._begun.end(names)
        supersede()

    def _unknown(self) -> Written:
        """What is certain of a write that has not ended: L1 has changed."""
        return self._result(l2=False, l3=False, published=False)

    def _result(self, *, l2: bool, l3: bool, published: bool) -> Written:
        """Return a result, with None for what this cache does not have."""
        tiers = self._lower_tiers
        return Written(
            True,
            None if tiers.l2 is None else l2,
            None if tiers.l3 is None else l3,
            None if self.publish is None else published,
        )

    async def _write_to_tiers(
        self,
        number: int,
        writes: Mapping[str, Write],
        kind: RecordKind,
        call: _Call,
    ) -> dict[str, Written]:
        try:
            done, l2, l3 = await self._by_stamp(number, writes, call)
        except BaseException:
            # The user's own tier has failed. Nobody knows what the tiers have now.
            for key in writes:
                self._l1.remove(key)
            raise
        unpublished = []
        results = {}
        for key, write in done.items():
            of_l2, of_l3 = l2.get(key), l3.get(key)
            self._repair(key, write, [of_l2, of_l3])
            if self._is_invalidated(number, write):
                # The invalidation began later than the write, but the write may have reached a tier later.
                self._repairs.remove(key, Write(None, new_id(), write.stamp + 1))
                self._l1.remove(key)
            if not (_carried_out(of_l2) and _carried_out(of_l3)) and self._is_latest(number, key, write):
                self._l1.remove(key)
            if not (of_l2 is not None and of_l2.published) and not (of_l3 is not None and of_l3.published):
                unpublished.append((key, write.id))
            results[key] = of_l2, of_l3
        published: dict[str, bool | None] = dict.fromkeys(writes, None if self.publish is None else True)
        if unpublished:
            told = await self.tell(of_keys(kind, unpublished))
            published.update((key, told) for key, _ in unpublished)
        return {
            key: Written(
                True,
                None if of_l2 is None else _carried_out(of_l2),
                None if of_l3 is None else _carried_out(of_l3),
                published[key],
            )
            for key, (of_l2, of_l3) in results.items()
        }

    async def _by_stamp(
        self,
        number: int,
        writes: Mapping[str, Write],
        call: _Call,
    ) -> tuple[dict[str, Write], dict[str, WriteResult], dict[str, WriteResult]]:
        """Write to L3, then to L2. If a tier has a greater stamp, start again from L3 with a stamp above it."""
        stamp = self._stamps.next()
        done = pending = {key: Write(write.entry, write.id, stamp) for key, write in writes.items()}
        l2: dict[str, WriteResult] = {}
        l3: dict[str, WriteResult] = {}
        started = time.monotonic()
        for tries in range(1, _TRIES + 1):
            await self._write_once(number, pending, call, l2, l3)
            newer: dict[str, int] = {}
            for results in (l3, l2):
                for key in pending:
                    if (result := results.get(key)) is not None and result.outcome is Outcome.NEWER:
                        if self._begun.is_latest(number, (key_name(key),)):
                            newer[key] = max(result.stamp, newer.get(key, 0))
                        else:
                            # A later write of this process is there already.
                            results[key] = _SUPERSEDED
            if not newer or tries == _TRIES or time.monotonic() - started > self._longest_deadline:
                break
            stamp = self._stamps.above(max(newer.values()))
            pending = {key: Write(done[key].entry, done[key].id, stamp) for key in newer}
            done = done | pending
        return done, l2, l3

    async def _write_once(
        self,
        number: int,
        writes: Mapping[str, Write],
        call: _Call,
        l2: dict[str, WriteResult],
        l3: dict[str, WriteResult],
    ) -> None:
        """Write to L3, then to L2 unless L3 has something newer.

        If L3 does not answer at once, L2 is written at the same time, so that a caller waits for one deadline and not
        for two. If L3 then carries the write out after all, L2 is written again: in between, a read may have copied
        L3's old row to it.
        """
        second, third = self._lower_tiers.l2, self._lower_tiers.l3
        if third is None or second is None:
            only, results = (second, l2) if third is None else (third, l3)
            if only is not None and (wanted := self._still_wanted(number, only, writes, results)):
                results.update(await call(only, wanted))
            return
        wanted = self._still_wanted(number, third, writes, l3)
        if wanted:
            first = asyncio.Task(_awaited(call(third, wanted)))
            await asyncio.wait((first,), timeout=self._head_start_s)
            if not first.done():
                early = self._still_wanted(number, second, writes, l2)
                l2.update(await call(second, early))
                l3.update(await first)
                # If L2 did not answer, it is repaired: the caller does not wait for it twice.
                again = {
                    key: write
                    for key, write in early.items()
                    if l3[key].outcome in _SETTLED and l2[key].outcome in _SETTLED
                }
                wanted = self._still_wanted(number, second, again, l2)
                if wanted:
                    l2.update(await call(second, wanted))
                return
            l3.update(first.result())
        rest = {
            key: write
            for key, write in writes.items()
            if l3[key].outcome is not Outcome.NEWER or not self._begun.is_latest(number, (key_name(key),))
        }
        for key in writes.keys() - rest.keys():
            l2.setdefault(key, _NOT_DONE)
        wanted = self._still_wanted(number, second, rest, l2)
        if wanted:
            l2.update(await call(second, wanted))

    def _still_wanted(
        self, number: int, tier: Tier, writes: Mapping[str, Write], results: dict[str, WriteResult]
    ) -> Mapping[str, Write]:
        """Return the writes for a tier. If it compares no stamps, superseded ones are not sent."""
        if tier.coherent:
            return writes
        wanted = {key: write for key, write in writes.items() if self._is_latest(number, key, write)}
        for key in writes.keys() - wanted.keys():
            # The later write decides. If it fails, no tier may keep something older than this write.
            results[key] = _SUPERSEDED
            self._repairs.remove(key, Write(None, new_id(), writes[key].stamp))
        return wanted

    def _is_latest(self, number: int, key: str, write: Write) -> bool:
        return self._begun.is_latest(number, (key_name(key),)) and not self._is_invalidated(number, write)

    def _is_invalidated(self, number: int, write: Write) -> bool:
        """Return whether an invalidation of a tag of the write, or a `clear`, of this process began after the write."""
        tags = write.entry.tags if write.entry is not None else ()
        return not self._begun.is_latest(number, (ALL, *map(tag_name, tags)))

    def _repair(self, key: str, write: Write, results: Sequence[WriteResult | None]) -> None:
        """Queue a repair if one tier carried out a write and the other did not, or if one may have carried it out."""
        outcomes = {result.outcome for result in results if result is not None}
        if outcomes & _SETTLED:
            if outcomes - _SETTLED:
                self._repairs.remove(key, Write(None, new_id(), write.stamp))
        elif Outcome.UNKNOWN in outcomes:
            self._repairs.undo(key, write.id)

    async def _invalidate(self, tag: str | None, record: Record) -> Written:
        of_l2, of_l3 = await self._in_order(
            lambda l3: l3.invalidate(tag),
            lambda l2, done: l2.invalidate(tag) if done else l2.invalidate(tag, refused_below=True),
        )
        if not (_carried_out(of_l2) and _carried_out(of_l3)):
            self._repairs.invalidate(tag)
        return await self._written(of_l2, of_l3, record)

    async def _expire_tag(self, tag: str) -> Written:
        of_l2, of_l3 = await self._in_order(lambda l3: l3.expire_tag(tag), lambda l2, done: l2.expire_tag(tag))
        if not (_carried_out(of_l2) and _carried_out(of_l3)):
            # A tier may still call the entries fresh, and their age is unknown: remove them.
            self._repairs.invalidate(tag)
        return await self._written(of_l2, of_l3, of_tag(RecordKind.EXPIRED_TAG, tag))

    async def _in_order(
        self,
        call_l3: Callable[[Tier], Awaitable[WriteResult]],
        call_l2: Callable[[Tier, bool], Awaitable[WriteResult]],
    ) -> tuple[WriteResult | None, WriteResult | None]:
        """Call L3, then L2, which is told whether L3 has done it. If L3 does not answer soon, call L2 meanwhile."""
        l2, l3 = self._lower_tiers.l2, self._lower_tiers.l3
        if l3 is None:
            return None if l2 is None else await call_l2(l2, True), None
        if l2 is None:
            return None, await call_l3(l3)
        first = asyncio.Task(_awaited(call_l3(l3)))
        await asyncio.wait((first,), timeout=self._head_start_s)
        if first.done():
            of_l3 = first.result()
            return await call_l2(l2, _carried_out(of_l3)), of_l3
        of_l2 = await call_l2(l2, False)
        of_l3 = await first
        if _carried_out(of_l3) and _carried_out(of_l2):
            # In between, a read may have found in L3 what was not invalidated yet, and L1 may have kept it.
            of_l2 = await call_l2(l2, True)
        return of_l2, of_l3

    async def _written(self, l2: WriteResult | None, l3: WriteResult | None, record: Record) -> Written:
        published = True if any(result is not None and result.published for result in (l2, l3)) else None
        if published is None:
            published = await self.tell([record])
        return Written(
            True, None if l2 is None else _carried_out(l2), None if l3 is None else _carried_out(l3), published
        )

    def _all_of(self, written: Mapping[str, Written]) -> Written:
        """Return which tiers carried out all of several writes."""
        each = written.values()
        return self._result(
            l2=all(one.l2 for one in each),
            l3=all(one.l3 for one in each),
            published=all(one.published for one in each),
        )

    async def tell(self, records: Sequence[Record], *, waiting: bool = False) -> bool | None:
        """Publish records, and return whether the log has accepted them; None without a backplane."""
        if self.publish is None:
            return None
        futures = list(map(self.publish, records))
        if self.is_published_by_tier and not waiting:
            # The tier on the backplane's server has not published them, so that server does not answer now.
            return False
        done, pending = await asyncio.wait(futures, timeout=self._longest_deadline or None)
        return not pending and all(future.result() for future in done)


async def _awaited(call: Awaitable[_T]) -> _T:
    return await call


def _carried_out(result: WriteResult | None) -> bool:
    """Whether a tier carried a write out, or there is none that could."""
    return result is None or result.outcome is Outcome.STORED
