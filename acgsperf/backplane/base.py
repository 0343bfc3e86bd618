"""The contract of a backplane: it tells the cache of this process what other processes have written."""

from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from acgsperf._native.types import HistogramSnapshot
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
    """What a backplane tells. The cache implements it. The methods are called in the cache's event loop."""

    def apply(self, record: Record) -> None:
        """Drop what a record names from L1, and supersede what is in flight.

        A record of kind TAG or CLEAR without a writer (b"") comes from the database itself (`watch`). It is invalidated
        in no tier but the one in that database: the cache must invalidate it in the others.
        """

    def extend(self, until: float) -> None:
        """L1 may answer until this time of `time.monotonic`: all records so far have been applied."""

    def missed(self) -> None:
        """Records may have been missed: verify every entry of L1, and supersede what is in flight."""


class Backplane(ABC):
    """Carries records of writes between the processes that share a namespace.

    No method raises because of the server: a server that is not there is a warning, and the backplane joins when it
    answers. A method raises `TierError` if the backplane is not open, is opened twice, or belongs to another event loop
    or process.

    Attributes:
        timeout: the seconds after which a process that gets no records notices it. Its L1 does not answer then.
    """

    timeout: float = TIMEOUT_S

    @property
    @abstractmethod
    def position(self) -> bytes:
        """The last position in the log that this cache has processed; empty if it does not follow the log."""

    def shares_server_with(self, tier: Tier) -> bool:
        """Return whether writes of a tier carry their records to this backplane's log, in the same step.

        It compares what both were created with, so that two addresses of one server are different servers: then records
        are published on their own, which is slower but right.
        """
        return False

    @abstractmethod
    async def open(self, namespace: str, listener: Listener, writer: bytes) -> None:
        """Join the log of a namespace. Return when the server has answered, at the latest after `timeout`.

        When the backplane joins, it calls `listener.missed()` and then `listener.extend`, before `open` returns or
        later.

        Args:
            namespace: of the cache.
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
