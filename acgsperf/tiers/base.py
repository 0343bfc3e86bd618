"""The contract of a tier: what a cache may ask of it, and what it gets when the server behind it does not answer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol, runtime_checkable

from msgspec import Struct

from acgsperf._native.entry import Entry
from acgsperf._native.types import HistogramSnapshot

__all__ = ["BreakerState", "Entry", "LockingTier", "Tier", "TierHealth", "TierStats"]


class BreakerState(Enum):
    """CLOSED: the server is asked. OPEN: it is not. HALF_OPEN: one call finds out whether it is back."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class TierHealth(Struct, frozen=True):
    """Whether a server answered just now.

    Attributes:
        ok: it did, and correctly.
        latency_ns: how long that took, or how long it was waited for.
        breaker: the state of the circuit breaker, which this question passes by but informs.
        detail: the server and its version, or what went wrong; never a password.
    """

    ok: bool
    latency_ns: int
    breaker: BreakerState
    detail: str


class TierStats(Struct, frozen=True):
    """Counts since the tier was made.

    Attributes:
        hits, misses: keys asked for; a key that the server could not be asked for is a miss.
        stores: entries that the server took.
        refused: entries that were not stored though the server could be asked: too large, not serialisable, already
            expired, or the server was out of memory.
        deletes: entries that went by `delete_many`, or because what was to replace them was refused.
        skipped: keys that the server was not asked for, or entries not sent, because the breaker was open.
        timeouts: calls that the deadline ended.
        errors: calls that failed, by kind; time-outs are among them.
        corrupt: entries that did not parse, or that were another key's.
        breaker: the state of the circuit breaker.
        latency: how long accesses took, one value a key.
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

    @property
    def hit_rate(self) -> float:
        """Hits per key asked for; 0.0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class Tier(ABC):
    """A cache behind L1, shared by processes.

    No method fails because of a server: what cannot be read is a miss, what cannot be written is not stored, and both
    are counted. Each is answered within the tier's deadline, but `clear` and `invalidate_tag` may have one for each
    thousand entries. A method raises `TierError` when the tier is not open or belongs to another event loop or process.

    Calls made in the same turn of the event loop travel together. Of two calls for the same key, the later one finds
    what the earlier one did, awaited or not.

    Attributes:
        name: for messages.
        deadline: seconds after which a call is answered; infinite where nothing ends it.
    """

    name: str
    deadline: float = math.inf

    @abstractmethod
    async def open(self, namespace: str) -> None:
        """Binds the tier to the running event loop. A server that is down is looked for again by later calls.

        Args:
            namespace: whose keys these are; 1 to 100 printable characters. No other namespace's are ever touched.

        Raises:
            TierError: when it is open.
            ValueError: for a namespace that cannot be used.
        """

    @abstractmethod
    async def close(self) -> None:
        """Waits for what is under way, at most for the deadline, and gives back the connections. May be repeated."""

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """The entry of a key, fresh or stale; None for a miss."""

    @abstractmethod
    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of those keys that have one, in one round trip."""

    @abstractmethod
    async def set(self, key: str, entry: Entry) -> bool:
        """Stores an entry; True once the server has acknowledged it."""

    @abstractmethod
    async def set_many(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        """Stores entries in one round trip; the keys that the server acknowledged.

        What is refused for itself, or for want of memory, leaves nothing under its key.
        """

    @abstractmethod
    async def delete_many(self, keys: Sequence[str]) -> int | None:
        """Forgets keys; how many had an entry. None when the server could not be asked."""

    @abstractmethod
    async def invalidate_tag(self, tag: str) -> int | None:
        """Forgets every entry with a tag; how many are known to have gone, which may be fewer than have.

        An entry that is set while this runs is either forgotten or written after it. None when the server could not be
        asked, or not to the end.
        """

    @abstractmethod
    async def clear(self) -> int | None:
        """Forgets the namespace, in steps that each have the deadline; how many entries went. None as above."""

    @abstractmethod
    async def health(self) -> TierHealth:
        """Asks the server now, whatever the breaker says."""

    @abstractmethod
    def stats(self) -> TierStats:
        """The counts so far, and the latency of accesses."""


@runtime_checkable
class LockingTier(Protocol):
    """A tier that can also say which process does something: for single flight between processes."""

    async def lock(self, key: str, ttl: float) -> int | None:
        """Takes the lock of a key, for at most `ttl` seconds.

        Returns:
            A fencing token, greater than every earlier one of the namespace; 0 when another holds the lock; None when
            the tier could not be asked.
        """

    async def unlock(self, key: str, token: int) -> bool:
        """Gives a lock back; False when it was not held under this token any more, or the tier could not be asked."""
