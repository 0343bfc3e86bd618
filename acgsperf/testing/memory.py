"""A tier in memory. It has the contract of a tier that processes share, and a test can make it fail."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.msgpack import decode
from msgspec.structs import replace

from acgsperf._native.entry import Packed
from acgsperf._native.envelope_format import TYPED_FLAG
from acgsperf.cache import TieredCache
from acgsperf.dispatch import LatencyHistogram, LRUCache
from acgsperf.errors import TierError
from acgsperf.tiers.base import (
    BreakerState,
    Entry,
    Observation,
    Outcome,
    Store,
    StoreKind,
    Tier,
    TierHealth,
    TierStats,
    Write,
    WriteResult,
)
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.packing import Packing

__all__ = ["MemoryServer", "MemoryTier", "memory_cache"]

_STORED: Final = WriteResult(Outcome.STORED)
_REFUSED: Final = WriteResult(Outcome.REFUSED)
_REMOVED: Final = WriteResult(Outcome.REMOVED)


class _Row(Struct, frozen=True):
    """What is under a key. `entry` is None in a tombstone and in a marker. Its value is `Packed` in any case."""

    id: bytes
    stamp: int
    entry: Entry | None
    remove_at: float | None
    typed: bool = False


_NOTHING: Final = _Row(b"", -1, None, None)


class MemoryServer:
    """What the tiers of several caches share, as a Redis does. It lives in this process.

    Args:
        clock: returns monotonic seconds.

    Attributes:
        up: whether the server answers. While it is False, reads are misses and writes are refused.
        calls: how often each method of a tier was called while the server was up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Final = clock
        self.up = True
        self.calls: Final[Counter[str]] = Counter()
        self._rows: Final[dict[tuple[str, str], _Row]] = {}
        self._invalidations: Final[Counter[str]] = Counter()
        self._locks: Final[dict[tuple[str, str], tuple[int, float]]] = {}
        self._tokens = 0

    def __len__(self) -> int:
        """Return how many entries there are, in all namespaces."""
        return sum(self._live(row) is not None for row in self._rows.values())

    def lose(self) -> None:
        """Lose all entries, as a Redis that restarts without its data."""
        self._rows.clear()
        self._invalidations.update(dict.fromkeys(self._invalidations, 1))

    def _row(self, namespace: str, key: str) -> _Row:
        row = self._rows.get((namespace, key), _NOTHING)
        return _NOTHING if row.remove_at is not None and row.remove_at <= self.clock() else row

    def _live(self, row: _Row) -> Entry | None:
        entry = row.entry
        return entry if entry is None or entry.kept_until is None or self.clock() < entry.kept_until else None


class MemoryTier(Tier):
    """A tier in the memory of this process, for tests. It packs values, and refuses those that a server would refuse.

    It compares before it stores, as the tiers with a server do: a slow load does not replace a newer write. It has no
    backplane, so the L1 of another cache on the same server keeps its entries until their ttl ends.

    Args:
        server: where the entries are; None for a server of its own. Caches with the same one share their entries.

    Attributes:
        server: where the entries are.
    """

    name = "memory"
    coherent = True

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server: Final = MemoryServer() if server is None else server
        self._namespace: str | None = None
        self._counts: Counter[str] = Counter()
        self._latency: Final = LatencyHistogram()
        self._packing: Final = Packing(sys.maxsize, None)

    def __repr__(self) -> str:
        return f"MemoryTier({'up' if self.server.up else 'down'})"

    async def open(self, namespace: str) -> None:
        if self._namespace is not None:
            raise TierError(f"the {self.name} tier is already open")
        self._namespace = namespace

    async def close(self) -> None:
        self._namespace = None

    @property
    def is_answering(self) -> bool:
        return self.server.up

    def now_us(self) -> int:
        return int(self.server.clock() * 1e6)

    # Reading

    async def get(self, key: str) -> Entry | None:
        return (await self.get_many((key,))).get(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        found = {}
        if self._reaches_server("get_many"):
            for key in keys:
                row = self._row(key)
                if (entry := self.server._live(row)) is not None:
                    value = entry.value if row.typed else decode(entry.value.data)
                    found[key] = replace(entry, value=value, id=row.id, stamp=row.stamp)
        self._counts["hits"] += len(found)
        self._counts["misses"] += len(keys) - len(found)
        return found

    async def observe(self, keys: Sequence[str], tags: Sequence[str] = ()) -> dict[str, Observation]:
        if not self._reaches_server("observe"):
            return {}
        until, seen = time.monotonic() + self.retention, {}
        for key in keys:
            row = self._row(key)
            if not row.id:
                # A write during the load replaces the marker, and `store` notices.
                row = self._put(key, new_id(), 0)
            seen[key] = Observation(row.id, row.stamp, until, (), self._invalidations())
        return seen

    # Writing

    async def store(self, stores: Mapping[str, Store]) -> frozenset[str]:
        stored = []
        if self._reaches_server("store"):
            for key, store in stores.items():
                seen, row = store.seen, self._row(key)
                if store.kind is StoreKind.DEMOTION or seen is None:
                    continue
                is_current = seen.id == row.id and seen.invalidations == self._invalidations()
                if is_current and self._put_packed(key, store.entry.id, store.entry.stamp, store.entry):
                    stored.append(key)
        self._counts["stores"] += len(stored)
        return frozenset(stored)

    async def write(self, writes: Mapping[str, Write]) -> dict[str, WriteResult]:
        if not self._reaches_server("write"):
            return dict.fromkeys(writes, _REFUSED)
        results = {}
        for key, write in writes.items():
            row = self._row(key)
            if row.stamp >= write.stamp and row.id != write.id:
                results[key] = WriteResult(Outcome.NEWER, row.stamp)
                continue
            self._counts["stores" if write.entry is not None else "deletes"] += 1
            results[key] = _STORED
            if write.entry is None or not self._put_packed(key, write.id, write.stamp, write.entry):
                self._put(key, write.id, write.stamp)
                results[key] = _STORED if write.entry is None else _REMOVED
        return results

    async def remove_written(self, ids: Mapping[str, bytes]) -> bool:
        if not self._reaches_server("remove_written"):
            return False
        for key, unwanted in ids.items():
            if (row := self._row(key)).id == unwanted:
                self._put(key, new_id(), row.stamp)
        return True

    async def invalidate(self, tag: str | None, *, refused_below: bool = False) -> WriteResult:
        if not self._reaches_server("invalidate"):
            return _REFUSED
        self.server._invalidations[self._opened()] += 1
        for key in self._keys(tag):
            self._put(key, new_id(), self._row(key).stamp)
        return _STORED

    async def expire_now(self, writes: Mapping[str, Write]) -> dict[str, WriteResult]:
        if not self._reaches_server("expire_now"):
            return dict.fromkeys(writes, _REFUSED)
        for key, write in writes.items():
            self._expire(key, write.id, write.stamp)
        return dict.fromkeys(writes, _STORED)

    async def expire_tag(self, tag: str) -> WriteResult:
        if not self._reaches_server("expire_tag"):
            return _REFUSED
        self.server._invalidations[self._opened()] += 1
        for key in self._keys(tag):
            self._expire(key, new_id(), self._row(key).stamp)
        return _STORED

    async def set(self, key: str, entry: Entry) -> bool:
        return bool(await self.set_many({key: entry}))

    async def set_many(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        results = await self.write({key: Write(entry, new_id(), self._next(key)) for key, entry in entries.items()})
        return frozenset(key for key, result in results.items() if result.outcome is Outcome.STORED)

    async def delete_many(self, keys: Sequence[str]) -> int | None:
        live = sum(self.server._live(self._row(key)) is not None for key in keys)
        results = await self.write({key: Write(None, new_id(), self._next(key)) for key in keys})
        return live if all(result.outcome is Outcome.STORED for result in results.values()) else None

    async def invalidate_tag(self, tag: str) -> int | None:
        live = len(self._keys(tag))
        return live if (await self.invalidate(tag)).outcome is Outcome.STORED else None

    async def clear(self) -> int | None:
        live = len(self._keys(None))
        return live if (await self.invalidate(None)).outcome is Outcome.STORED else None

    # Locks

    async def lock(self, key: str, ttl: float) -> int | None:
        """See `LockingTier`."""
        if not self._reaches_server("lock"):
            return None
        server, name = self.server, (self._opened(), key)
        holder = server._locks.get(name)
        if holder is not None and server.clock() < holder[1]:
            return 0
        server._tokens += 1
        server._locks[name] = server._tokens, server.clock() + ttl
        return server._tokens

    async def unlock(self, key: str, token: int, outcome: bytes = b"") -> bool:
        """See `LockingTier`."""
        locks, name = self.server._locks, (self._opened(), key)
        if not self._reaches_server("unlock") or locks.get(name, (0, 0.0))[0] != token:
            return False
        del locks[name]
        return True

    async def health(self) -> TierHealth:
        return TierHealth(self.server.up, 0, self._breaker(), "memory" if self.server.up else "the test has stopped it")

    def stats(self) -> TierStats:
        counts = self._counts
        return TierStats(
            hits=counts["hits"],
            misses=counts["misses"],
            stores=counts["stores"],
            refused=0,
            deletes=counts["deletes"],
            skipped=counts["skipped"],
            timeouts=0,
            errors={},
            corrupt=0,
            breaker=self._breaker(),
            latency=self._latency.snapshot(),
        )

    def _breaker(self) -> BreakerState:
        return BreakerState.CLOSED if self.server.up else BreakerState.OPEN

    def _opened(self) -> str:
        if self._namespace is None:
            raise TierError(f"the {self.name} tier is not open")
        return self._namespace

    def _reaches_server(self, call: str) -> bool:
        """Count a call, and return whether the server answers it."""
        self._opened()
        if not self.server.up:
            self._counts["skipped"] += 1
            return False
        self.server.calls[call] += 1
        return True

    def _row(self, key: str) -> _Row:
        return self.server._row(self._opened(), key)

    def _put(self, key: str, identifier: bytes, stamp: int, entry: Entry | None = None, *, typed: bool = False) -> _Row:
        ends = self.server.clock() if entry is None else entry.kept_until
        row = _Row(identifier, stamp, entry, None if ends is None else ends + self.retention, typed)
        self.server._rows[self._opened(), key] = row
        return row

    def _put_packed(self, key: str, identifier: bytes, stamp: int, entry: Entry) -> bool:
        """Store an entry, and return whether its value could be packed."""
        packed = self._packing.packed(key, entry, self._opened())
        if packed is None:
            return False
        payload, flags = packed
        times = entry.created_at, entry.fresh_until, entry.kept_until
        plain = Entry(Packed(payload), *times, entry.tags, entry.negative, entry.id, entry.stamp)
        self._put(key, identifier, stamp, plain, typed=bool(flags & TYPED_FLAG))
        return True

    def _expire(self, key: str, identifier: bytes, stamp: int) -> None:
        row = self._row(key)
        entry = None if row.entry is None else replace(row.entry, fresh_until=self.server.clock())
        self._put(key, identifier, max(stamp, row.stamp), entry, typed=row.typed)

    def _keys(self, tag: str | None) -> list[str]:
        rows = [(key, row) for (space, key), row in self.server._rows.items() if space == self._opened()]
        live = ((key, self.server._live(row)) for key, row in rows)
        return [key for key, entry in live if entry is not None and (tag is None or tag in entry.tags)]

    def _next(self, key: str) -> int:
        return max(self.now_us(), self._row(key).stamp + 1)

    def _invalidations(self) -> bytes:
        return self.server._invalidations[self._opened()].to_bytes(8, "big")


def memory_cache(
    clock: Callable[[], float] = time.monotonic,
    *,
    server: MemoryServer | None = None,
    maxsize: int = 1_000,
    namespace: str = "test",
    **options: Any,
) -> TieredCache[Any]:
    """Return a `TieredCache` with an L1 and a `MemoryTier`, which use the same clock.

    Args:
        clock: returns monotonic seconds; a `ManualClock` to let a test move the time.
        server: the server of the tier; None for one of its own, with this clock.
        maxsize: entries of L1.
        namespace, options: as for `TieredCache`.
    """
    tier = MemoryTier(MemoryServer(clock) if server is None else server)
    return TieredCache(LRUCache(maxsize, clock=clock), tier, namespace=namespace, clock=clock, **options)
