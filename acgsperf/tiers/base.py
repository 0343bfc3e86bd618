"""The contract of a tier: what a cache asks of it, and what it returns when its server does not answer."""

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
        detail: the server and its version, or the error; never a password.
    """

    ok: bool
    latency_ns: int
    breaker: BreakerState
    detail: str


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
        corrupt: stored values that could not be parsed, or that belonged to another key.
        breaker: state of the circuit breaker.
        latency: duration of reads, one value for each key.
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
        """Hits divided by keys read; 0.0 before the first read."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class Tier(ABC):
    """A cache below L1, shared by processes.

    No method raises because of the server: a key that cannot be read is a miss, an entry that cannot be written is not
    stored, and both are counted. A method raises `TierError` if the tier is not open, or if it belongs to another event
    loop or process.

    The deadline applies to each batch and begins when the batch is sent. A batch has at most 1,000 entries, 2,000 for
    reads; a larger call is sent in several batches.

    Calls made in the same turn of the event loop are sent together. Of two calls for the same key, the later one sees
    the effect of the earlier one, even if the earlier one has not been awaited yet.

    Attributes:
        name: for messages.
        deadline: seconds after which a batch ends; infinite if there is no limit.
    """

    name: str
    deadline: float = math.inf

    @abstractmethod
    async def open(self, namespace: str) -> None:
        """Binds the tier to the running event loop. If the server is down, later calls try to reach it again.

        Args:
            namespace: prefix of all keys of this tier, 1 to 100 printable characters. Keys of other namespaces are
                never changed.

        Raises:
            TierError: if the tier is already open.
            ValueError: if the namespace is not valid.
        """

    @abstractmethod
    async def close(self) -> None:
        """Waits for calls in flight, at most for the deadline, and closes the connections. May be called again."""

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """Returns the entry of a key, fresh or stale; None for a miss."""

    @abstractmethod
    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Returns the entries of all keys that have one, in one round trip."""

    @abstractmethod
    async def set(self, key: str, entry: Entry) -> bool:
        """Stores an entry. Returns True once the server has acknowledged it."""

    @abstractmethod
    async def set_many(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        """Stores entries in one round trip. Returns the keys that the server acknowledged.

        If an entry is refused, by the tier because of its content or by the server, the former entry of its key is out
        of date and is deleted. If the server refuses that as well, for example because it has become a read-only
        replica, the former entry remains. After a timeout, either entry may be stored.
        """

    @abstractmethod
    async def delete_many(self, keys: Sequence[str]) -> int | None:
        """Deletes keys. Returns how many had an entry; None if the server refused to delete one, or did not answer."""

    @abstractmethod
    async def invalidate_tag(self, tag: str) -> int | None:
        """Deletes every entry that has a tag.

        An entry that is set during this call is either deleted or written after it.

        Returns:
            How many entries are known to be deleted; more may have been. None if the server refused the call, or did
            not answer all of it.
        """

    @abstractmethod
    async def clear(self) -> int | None:
        """Deletes all entries of the namespace, in steps. The deadline applies to each step.

        Returns:
            How many entries were deleted; None if the server refused the call, or did not answer all of it.
        """

    @abstractmethod
    async def health(self) -> TierHealth:
        """Asks the server now, even if the breaker is open."""

    @abstractmethod
    def stats(self) -> TierStats:
        """Returns the counts so far and the latency of reads."""


@runtime_checkable
class LockingTier(Protocol):
    """A tier that also has locks, for single flight between processes."""

    async def lock(self, key: str, ttl: float) -> int | None:
        """Takes the lock of a key, for at most `ttl` seconds.

        Returns:
            A fencing token, greater than every earlier one of the namespace; 0 if another owner holds the lock; None
            if the server did not answer.
        """

    async def unlock(self, key: str, token: int) -> bool:
        """Releases a lock. Returns False if it was no longer held under this token, or if the server did not answer."""
