"""The contract of a tier: what a cache asks of it, and what it returns when its server does not answer.

Terms that all tiers and backplanes use:

- An *id* is 8 random bytes that tell writes and loads apart. A *stamp* is the time of a write in microseconds, by the
  clock of the first tier's server. Of two writes of a key, the one with the greater stamp wins.
- A *tombstone* is what a removal leaves under a key: its id and stamp, but no value. It stops older writes and loads.
- An *observation* is the id and stamp that a tier has under a key before a load. The tier stores the loaded entry only
  if it still has the same. If there is nothing to observe, the tier puts a *marker*, an id without a value, there.
- A *token* is a random number of a namespace or a tag. Each entry has copies of its tokens. An invalidation changes the
  token, and all entries with the former one are misses. A *soft invalidation* makes them stale instead.
- A *record* tells other processes of a write. Records are in the *log*, which a backplane follows.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, Protocol, runtime_checkable

from msgspec import Struct

from acgsperf._native.entry import Entry
from acgsperf._native.stats import HistogramSnapshot

__all__ = [
    "ONLY_L1",
    "RETENTION_S",
    "BreakerState",
    "ConnectionStats",
    "Entry",
    "LockingTier",
    "Observation",
    "Outcome",
    "Store",
    "StoreKind",
    "Tier",
    "TierHealth",
    "TierStats",
    "Write",
    "WriteResult",
]

RETENTION_S: Final = 60.0
# The id of an entry that belongs to this process alone.
ONLY_L1: Final = bytes(8)


class BreakerState(Enum):
    """CLOSED: calls go to the server. OPEN: calls skip it. HALF_OPEN: one call tests whether it answers again."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class TierHealth(Struct, frozen=True):
    """The result of asking a server whether it answers.

    Attributes:
        ok: whether the server gave a correct answer.
        latency_ns: time until the answer, or until the wait for it ended.
        breaker: state of the circuit breaker after this check. The check ignores an open breaker, and its result
            counts for the breaker.
        detail: the server, its version and role, or the error; never a password.
    """

    ok: bool
    latency_ns: int
    breaker: BreakerState
    detail: str


class ConnectionStats(Struct, frozen=True):
    """The connections of a tier to its server: how many are open now, and counts since the tier was created.

    Attributes:
        open: open connections, in use or idle.
        opened: connections opened.
        failed: attempts to open one that failed, or that the deadline ended.
        connect: how long it took to open a connection, without failed attempts, in ns.
    """

    open: int
    opened: int
    failed: int
    connect: HistogramSnapshot


class TierStats(Struct, frozen=True):
    """Counts since the tier was created.

    Attributes:
        hits, misses: keys read. A key that could not be read from the server counts as a miss.
        stores: entries that the server stored.
        refused: entries that were not stored although the server answered: too large, not serializable, already
            expired, or refused by the server.
        deletes: entries removed by `delete_many`, or because the value that replaced them was refused.
        skipped: keys and entries that were not sent to the server because the breaker was open.
        timeouts: calls ended by the deadline.
        errors: failed calls and refused commands, by kind; includes timeouts.
        corrupt: stored values that could not be parsed, that belonged to another key, or that were not of the declared
            type. The last ones count as hits, too.
        breaker: state of the circuit breaker.
        latency: duration of reads, one value for each key.
        failovers: how often the server had become a replica or read-only, so that the tier connected again.
        connections: the connections to the server; None if the tier does not count them.
    """

    hits: int
    misses: int
    stores: int
    refused: int
    deletes: int
    skipped: int
    timeouts: int
    errors: Mapping[str, int]
    corrupt: int
    breaker: BreakerState
    latency: HistogramSnapshot
    failovers: int = 0
    connections: ConnectionStats | None = None

    @property
    def hit_rate(self) -> float:
        """Hits divided by keys read; 0.0 before the first read."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class Observation(Struct, frozen=True):
    """What a tier had under a key. A later `store` compares it with what the tier has then.

    Attributes:
        id: the id of the entry, tombstone or marker under the key; empty if there was nothing.
        stamp: the stamp of the entry, tombstone or marker, in microseconds.
        expires_at: the time of `time.monotonic` until which a store may rely on the observation.
        tokens: the tokens of the namespace and of the tags of the load, in this order.
        invalidations: changes when a tag is invalidated or the namespace is cleared.
        refused_below: whether the slower tier has refused, or not yet answered, an invalidation of these tags or of
            the namespace. Its entries are not used then.
    """

    id: bytes
    stamp: int
    expires_at: float
    tokens: tuple[bytes, ...] = ()
    invalidations: bytes = b""
    refused_below: bool = False


class StoreKind(Enum):
    """LOAD: a loaded entry. COPY: an entry found in a slower tier. DEMOTION: an entry that L1 has evicted."""

    LOAD = "load"
    COPY = "copy"
    DEMOTION = "demotion"


class Store(Struct, frozen=True):
    """An entry that is stored only if no write has superseded it.

    Attributes:
        entry: the entry, with its id and the observed stamp.
        seen: the observation before the load or the copy; None for a demotion.
        kind: decides what is compared. LOAD: the id, and the tokens. COPY: the id, and the invalidations. DEMOTION: the
            key must be absent, and `log_position` must be the last one of the namespace's log.
        log_position: `Backplane.position` when L1 evicted the entry.
    """

    entry: Entry
    seen: Observation | None = None
    kind: StoreKind = StoreKind.LOAD
    log_position: bytes = b""


class Write(Struct, frozen=True):
    """An explicit write. Of two writes of a key, the one with the greater stamp wins.

    Attributes:
        entry: what to store; None to delete the key.
        id: 8 random bytes.
        stamp: microseconds, by the clock of the first tier's server.
    """

    entry: Entry | None
    id: bytes
    stamp: int


class Outcome(Enum):
    """STORED: done. REMOVED: the tier cannot keep the entry, and has removed the former one. NEWER: not done, because
    the tier has something newer. REFUSED: not done, and it will not be done.
    UNKNOWN: the server did not answer; it may have been done, and it will not be done later."""

    STORED = "stored"
    REMOVED = "removed"
    NEWER = "newer"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class WriteResult(Struct, frozen=True):
    """The result of a write.

    Attributes:
        outcome: whether it was done.
        stamp: the stamp of the entry or tombstone in the tier, if that is newer.
        published: whether the tier has told the other processes.
    """

    outcome: Outcome
    stamp: int = 0
    published: bool = False


class Tier(ABC):
    """A cache below L1, shared by processes.

    No method raises because of the server: a key that cannot be read is a miss, an entry that cannot be written is not
    stored, and both are counted. A method raises `TierError` if the tier is not open, or if it belongs to another event
    loop or process.

    The deadline applies to each batch and begins when the batch is sent. A batch has at most 1,000 entries, 2,000 for
    reads; a larger call is sent in several batches.

    Calls made in the same turn of the event loop are sent together. Of two calls for the same key, the later one sees
    the effect of the earlier one, even if the earlier one has not been awaited yet.

    The methods from `observe` on keep writes right between processes. They have defaults, which store without a
    condition: with a tier of your own that does not override them, a slow load can overwrite a newer write.

    Attributes:
        name: for messages.
        deadline: seconds after which a batch ends; infinite if there is no limit.
        read_deadline: seconds after which a read ends, if that is less than `deadline`. The cache sets it before it
            opens the tier, so that there is time to ask a slower tier as well.
        coherent: whether the tier overrides the methods from `observe` on.
        retention: the seconds for which the tier remembers what was removed. The cache sets it before it opens the
            tier.
        writer: 8 bytes by which the records of this cache are known. Empty: the tier publishes no records.
    """

    name: str
    deadline: float = math.inf
    read_deadline: float = math.inf
    coherent: bool = False
    retention: float = RETENTION_S
    writer: bytes = b""

    @abstractmethod
    async def open(self, namespace: str) -> None:
        """Bind the tier to the running event loop. If the server is down, later calls try to reach it again.

        Args:
            namespace: prefix of all keys of this tier, 1 to 100 printable characters. Keys of other namespaces are
                never changed.

        Raises:
            TierError: if the tier is already open.
            ValueError: if the namespace is not valid.
        """

    @abstractmethod
    async def close(self) -> None:
        """Wait for calls in flight, at most for the deadline, and close the connections. May be called again."""

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, fresh or stale; None for a miss."""

    @abstractmethod
    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries of all keys that have one, in one round trip."""

    @abstractmethod
    async def set(self, key: str, entry: Entry) -> bool:
        """Store an entry. Return True once the server has acknowledged it."""

    @abstractmethod
    async def set_many(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        """Store entries in one round trip. Return the keys that the server acknowledged.

        If an entry is refused, by the tier because of its content or by the server, the former entry of its key is out
        of date and is deleted. If the server refuses that as well, for example because it has become a read-only
        replica, the former entry remains. After a timeout, either entry may be stored.
        """

    @abstractmethod
    async def delete_many(self, keys: Sequence[str]) -> int | None:
        """Delete keys. Return how many had an entry; None if the server refused to delete one, or did not answer."""

    @abstractmethod
    async def invalidate_tag(self, tag: str) -> int | None:
        """Delete every entry that has a tag.

        An entry that is set during this call is either deleted or written after it.

        Returns:
            How many entries are known to be deleted; more may have been. None if the server refused the call, or did
            not answer all of it.
        """

    @abstractmethod
    async def clear(self) -> int | None:
        """Delete all entries of the namespace, in steps. The deadline applies to each step.

        Returns:
            How many entries were deleted; None if the server refused the call, or did not answer all of it.
        """

    @property
    def is_answering(self) -> bool:
        """Whether the last call has got an answer from the server."""
        return True

    def now_us(self) -> int:
        """Return the time of the server's clock in microseconds since the epoch, for stamps."""
        return time.time_ns() // 1000

    async def observe(self, keys: Sequence[str], tags: Sequence[str] = ()) -> dict[str, Observation]:
        """Return what is under keys now, before a load or a copy. A key that cannot be read is left out.

        Args:
            keys: the keys.
            tags: those of the entries that will be stored.
        """
        return dict.fromkeys(keys, _ANYTHING)

    async def look_up(
        self, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Entry], dict[str, Observation]]:
        """Return the entries of keys, fresh or stale, and what `observe` returns for those without a fresh entry."""
        return await self.get_many(keys), await self.observe(keys, tags)

    async def store(self, stores: Mapping[str, Store]) -> frozenset[str]:
        """Store entries unless a write has superseded them, and return the keys that were stored."""
        return await self.set_many({key: store.entry for key, store in stores.items()})

    async def write(self, writes: Mapping[str, Write]) -> dict[str, WriteResult]:
        """Carry out explicit writes, unless the tier has something newer.

        An entry that the tier cannot keep (too large, not serializable, expired already) removes the former one. A
        write that was carried out and is repeated with the same id counts as stored.
        """
        results = {}
        entries = {key: write.entry for key, write in writes.items() if write.entry is not None}
        if entries:
            stored = await self.set_many(entries)
            results = {key: _STORED if key in stored else _REFUSED for key in entries}
        deleted = [key for key, write in writes.items() if write.entry is None]
        if deleted:
            outcome = _REFUSED if await self.delete_many(deleted) is None else _STORED
            results |= dict.fromkeys(deleted, outcome)
        return results

    async def remove_written(self, ids: Mapping[str, bytes]) -> bool:
        """Remove keys whose entry has the given id: undo writes of unknown outcome. Return whether it was done."""
        return await self.delete_many(list(ids)) is not None

    async def invalidate(self, tag: str | None, *, refused_below: bool = False) -> WriteResult:
        """Remove every entry with a tag, or with None every entry of the namespace.

        Args:
            tag: the tag.
            refused_below: whether the slower tier has refused it. Then copies of its entries must not be stored here.
        """
        done = await (self.clear() if tag is None else self.invalidate_tag(tag))
        return _REFUSED if done is None else _STORED

    async def expire_now(self, writes: Mapping[str, Write]) -> dict[str, WriteResult]:
        """Make entries stale from now on, and keep them as long as before. The entries in `writes` are not used."""
        return await self.write({key: Write(None, write.id, write.stamp) for key, write in writes.items()})

    async def expire_tag(self, tag: str) -> WriteResult:
        """Make every entry with a tag stale from now on, and keep it as long as before."""
        return await self.invalidate(tag)

    def count_corrupt(self) -> None:  # noqa: B027
        """Count a value that the tier has returned and the cache cannot open, because it has another type."""

    @abstractmethod
    async def health(self) -> TierHealth:
        """Ask the server now, even if the breaker is open."""

    @abstractmethod
    def stats(self) -> TierStats:
        """Return the counts so far and the latency of reads."""


_ANYTHING: Final = Observation(b"", 0, math.inf)
_STORED: Final = WriteResult(Outcome.STORED)
_REFUSED: Final = WriteResult(Outcome.REFUSED)


@runtime_checkable
class LockingTier(Protocol):
    """A tier that also has locks, for single flight between processes."""

    async def lock(self, key: str, ttl: float) -> int | None:
        """Acquire the lock of a key, for at most `ttl` seconds.

        Returns:
            A fencing token, greater than every earlier one of the namespace; 0 if another owner holds the lock; None
            if the server did not answer.
        """

    async def unlock(self, key: str, token: int, outcome: bytes = b"") -> bool:
        """Release a lock. If another caller waits for it, the tier publishes a record with the outcome.

        Returns:
            False if the lock was no longer held under this token, or if the server did not answer.
        """
