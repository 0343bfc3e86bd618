"""The contract of a backplane: it tells the cache of this process what other processes have written.

A *record* says what was written. Records are in a *log*, which each process follows. A *gap* means that records may
have been missed. L1 answers under a *lease*: until `Listener.extend` says that the log was read up to a later time.
"""

from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from acgsperf._native.stats import HistogramSnapshot
from acgsperf.tiers.base import Tier
from acgsperf.tiers.records import Record

if TYPE_CHECKING:
    import asyncio

__all__ = ["TIMEOUT_S", "Backplane", "BackplaneState", "BackplaneStats", "Listener"]

TIMEOUT_S: Final = 1.0


class BackplaneState(Enum):
    """OFF: not open, or the server refuses it. CONNECTING: the server has not answered yet. FOLLOWING: records arrive.
    RECOVERING: the connection was lost, or records were missed."""

    OFF = "off"
    CONNECTING = "connecting"
    FOLLOWING = "following"
    RECOVERING = "recovering"


class BackplaneStats(Struct, frozen=True):
    """Counts since the backplane was created.

    Attributes:
        state: whether records arrive.
        sent: records of this cache that the log has. They are counted when they are read back.
        received: records of other caches, and records that could not be parsed.
        applied: records of other caches that were passed to this cache.
        recovered: those of them that were read after a lost connection.
        gaps: how often records may have been missed, so that all entries of L1 had to be verified.
        malformed: records that could not be parsed, which were skipped.
        queued: records that wait to be published.
        lag: the time from a write to the arrival of its record, by the server's clock.
    """

    state: BackplaneState
    sent: int
    received: int
    applied: int
    recovered: int
    gaps: int
    malformed: int
    queued: int
    lag: HistogramSnapshot


class Listener(Protocol):
    """The methods that a backplane calls, in the cache's event loop. The cache implements them."""

    def apply(self, record: Record) -> None:
        """Drop what a record names from L1, and supersede what is in flight.

        A record of kind TAG or CLEAR without a writer (b"") comes from the database itself (`watch`). Only
        the tier in that database has carried it out. The cache must invalidate its other tiers.
        """

    def extend(self, until: float) -> None:
        """Extend the lease: L1 may answer until this time of `time.monotonic`. All records so far have been applied."""

    def missed(self) -> None:
        """Handle a gap: verify every entry of L1, and supersede what is in flight."""


class Backplane(ABC):
    """Carries records of writes between the processes that share a namespace.

    No method raises because of the server: if the server does not answer, the backplane logs a warning, and joins when
    it answers. A method raises `TierError` if the backplane is not open, is opened twice, or belongs to another
    event loop or process.

    Attributes:
        timeout: the seconds after which a process that gets no records notices it. Its L1 does not answer then.
    """

    timeout: float = TIMEOUT_S

    @property
    @abstractmethod
    def position(self) -> bytes:
        """The last position in the log that this cache has processed; empty if a demotion must not rely on it.

        It includes the run of the server if the server may lose the end of its log in a restart.
        """

    def shares_server_with(self, tier: Tier) -> bool:
        """Return whether writes of a tier put their records into this backplane's log, in the same step.

        It compares the arguments with which both were created. Two addresses of one server count as two servers. Then
        each record is published after its write, which is slower but correct.
        """
        return False

    @abstractmethod
    async def open(self, namespace: str, listener: Listener, writer: bytes) -> None:
        """Join the log of a namespace. Return when the server has answered, at the latest after `timeout`.

        When the backplane joins, it calls `listener.missed()` and then `listener.extend`, before `open` returns or
        later.

        Args:
            namespace: the namespace of the cache.
            listener: gets the records.
            writer: 8 bytes. Records of this writer are not applied.

        Raises:
            TierError: if the backplane is open.
            ValueError: if the namespace is not valid, or `writer` is not 8 bytes.
        """

    @abstractmethod
    async def close(self) -> None:
        """Publish what is queued if the server answers, at most for `timeout`, and leave the log.

        May be called again.
        """

    @abstractmethod
    def publish(self, record: Record) -> "asyncio.Future[bool]":
        """Publish a record, in order with those before it.

        The record is retried until the server accepts it, or the backplane is closed. If 10,000 records wait, they are
        replaced with one that clears every L1.

        Args:
            record: what has been written. The backplane adds its writer and the time.

        Returns:
            A future: True once the server has the record, False as soon as an attempt has failed. It need not be
            awaited.
        """

    @abstractmethod
    def stats(self) -> BackplaneStats:
        """Return the counts so far."""
