"""Saves L1 to a file before a restart, and loads it in the next process."""

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

from acgsperf._native import snapshot
from acgsperf._native.entry import Codec, Packed
from acgsperf._native.stats import LoadResult, SaveResult
from acgsperf.cache.parts import Parts
from acgsperf.cache.prediction import Prefetch
from acgsperf.cache.values import opened
from acgsperf.errors import CacheError
from acgsperf.tiers.base import ONLY_L1, Entry

__all__ = ["WarmRestart"]

# Key, value, the remaining ns in L1, the hits, the ages and lifetimes in seconds, tags, id and stamp.
_Row = tuple[
    str, Any, snapshot.Remaining, snapshot.Hits, float, float | None, float | None, tuple[str, ...], bytes, int
]
# Key, the remaining ns in L1, the hits, the entry.
_Saved = tuple[str, int | None, int, Entry]
# The encoder refuses it.
_UNSAVABLE: Final = object()
# How many entries are added, or verified with one call of each tier, before other tasks run.
_STEP: Final = 250


class WarmRestart:
    """The part of `TieredCache` that saves and loads."""

    _parts: Parts
    _loop: asyncio.AbstractEventLoop | None

    def _require_open(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            if self._loop is None:
                raise CacheError(f"cache {self._parts.namespace!r} is not open; use `async with` or await open() first")
            raise CacheError(f"cache {self._parts.namespace!r} is open in another event loop")

    async def save(self, path: str | os.PathLike[str]) -> SaveResult:
        """Save the fresh entries of L1, and what prediction has learned, for `load` in the next process.

        Call it before `close`. It replaces the file in one step. Values that are not JSON-like, bytes or of the cache's
        own `value_type` are left out.

        Raises:
            CacheError: if the cache is not open.
            OSError: if the file cannot be written.
        """
        self._require_open()
        l1, clock = self._parts.l1, self._parts.clock
        header = snapshot.Header(self._kind(), self._parts.namespace, time.time())
        header.setting, keys, _, remaining, metas = l1.lru._dump()
        saved = [
            (key, left, meta, entry)
            for key, left, meta in zip(keys, remaining, metas, strict=True)
            if (entry := l1.answered_with(key)) is not None
            and not (entry.id == ONLY_L1 and self._parts.lower_tiers.tiers)
        ]
        return await asyncio.to_thread(_write, path, header, saved, clock(), self._parts.prefetch, self._parts.codec)

    async def load(self, path: str | os.PathLike[str]) -> LoadResult:
        """Add the entries of a file that `save` has written, before the cache is used.

        With lower tiers, no entry is served before a tier has confirmed its key, because another process may have
        written meanwhile: the value of the tier is used, and the file says which keys to read. If no tier answers, an
        entry of the file is served until its time ends. A key that this process has written or removed is left out.

        Returns:
            How many entries were added, and how many were not, among them those that the tiers no longer have.

        Raises:
            SnapshotError: if the file is damaged, or is of another version, namespace or kind of L1. The cache is as
                it was then.
            CacheError: if the cache is not open.
            OSError: if the file cannot be read.
        """
        self._require_open()
        ordering, tiers = self._parts.lower_tiers.ordering, self._parts.lower_tiers.tiers
        # When the backplane starts, it supersedes every read. The tiers have all writes of that time, so they decide.
        began_at = ordering.latest if tiers else 0
        header, rows = await asyncio.to_thread(_read, path, self._kind(), self._parts.namespace)
        self._require_open()
        l1, lru = self._parts.l1, self._parts.l1.lru
        if header.setting is not None and not len(lru):
            lru._resume(header.setting)
        if header.learned and self._parts.prefetch is not None:
            await asyncio.to_thread(self._parts.prefetch.relearn, header.learned)
        elapsed_ns = header.elapsed_ns()
        fresh = [row for row in rows if row[2] is None or row[2] > elapsed_ns]
        # The newest first: each becomes the oldest of its queue.
        wanted = snapshot.fitting(fresh, lru, header.setting)[::-1]
        entries = 0
        now = self._parts.clock()
        for some in _slices(wanted):
            for row in some:
                entry = _entry(row, now - elapsed_ns / 1e9, self._parts.codec)
                if entry is None or not (
                    ordering.is_current(began_at, row[0], entry.tags) and ordering.is_unwritten(row[0], entry.tags)
                ):
                    continue
                if tiers:
                    l1.restore_unverified(row[0], entry)
                else:
                    remaining = None if row[2] is None else row[2] - elapsed_ns
                    entries += l1.restore(row[0], entry, remaining, row[3])
            await asyncio.sleep(0)
        if tiers:
            entries = await self._verify(wanted)
        return LoadResult(entries, len(rows) - len(fresh), len(fresh) - entries)

    async def _verify(self, rows: Sequence[_Row]) -> int:
        """Read the keys of unverified entries from the tiers, the newest first, until L1 is full."""
        l1, lru = self._parts.l1, self._parts.l1.lru
        entries, evictions = 0, lru.stats().evictions
        for some in _slices(rows):
            if self._loop is None or len(lru) >= lru.maxsize or lru.stats().evictions > evictions:
                break
            keys = [row[0] for row in some if l1.was_unverified(row[0])]
            await self._parts.lookup.get_many(keys, self._parts.codec)
            asked = set(keys)
            for key, meta in ((row[0], row[3]) for row in some):
                if key in asked and l1.move_to_oldest(key, meta):
                    entries += 1
        return entries

    def _kind(self) -> str:
        return (
            f"a TieredCache with {self._parts.l1.lru._kind()}{'' if self._parts.codec is None else ' and a value_type'}"
        )


def _slices(rows: Iterable[_Row]) -> Iterable[list[_Row]]:
    remaining = iter(rows)
    while some := list(islice(remaining, _STEP)):
        yield some


def _entry(row: _Row, now: float, codec: Codec | None) -> Entry | None:
    """Return the entry of a row; None if its value is not of the declared type any more."""
    _, value, _, _, age, fresh_for, kept_for, tags, identifier, stamp = row
    entry = Entry(
        Packed(value) if codec is not None else value,
        now - age,
        None if fresh_for is None else now + fresh_for,
        None if kept_for is None else now + kept_for,
        tags,
        id=identifier,
        stamp=stamp,
    )
    return opened(entry, codec, None)


def _saved_value(entry: Entry, codec: Codec | None) -> Any:
    """Return what the file has for a value: MessagePack if the cache has a codec, else the value itself."""
    own = entry.codec if codec is None else codec
    if own is None:
        return entry.value
    try:
        packed, is_typed = own.pack(entry.value)
    except Exception:
        return _UNSAVABLE
    if codec is not None:
        return packed
    # The type is that of a decorated function, which `load` does not know.
    return _UNSAVABLE if is_typed else entry.value


def _write(
    path: str | os.PathLike[str],
    header: snapshot.Header,
    saved: Sequence[_Saved],
    now: float,
    prefetch: Prefetch | None,
    codec: Codec | None,
) -> SaveResult:
    rows = snapshot.Rows(_Row)
    if prefetch is not None:
        header.learned = prefetch.learned()

    def fields(item: _Saved) -> _Row:
        key, left, meta, entry = item
        value = _saved_value(entry, codec)
        fresh_for = None if entry.fresh_until is None else entry.fresh_until - now
        kept_for = None if entry.kept_until is None else entry.kept_until - now
        return key, value, left, meta, now - entry.created_at, fresh_for, kept_for, entry.tags, entry.id, entry.stamp

    snapshot.write(path, header, rows.blocks(len(saved), lambda start, end: [*map(fields, saved[start:end])]))
    return SaveResult(rows.entries, rows.left_out)


def _read(path: str | os.PathLike[str], kind: str, namespace: str) -> tuple[snapshot.Header, list[_Row]]:
    header, blocks = snapshot.read(path, kind, namespace)
    return header, snapshot.decoded(path, blocks, _Row, "entries of a TieredCache")
