"""The log of a namespace in Redis, as one process follows it."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_128_digest

from acgsperf.tiers.redis_replies import array

if TYPE_CHECKING:
    from acgsperf.backplane.receiver import Receiver

__all__ = ["Stream", "record_of"]


class Stream:
    """The log of a namespace.

    Attributes:
        key: the key of the stream.
        receivers: the caches that follow it.
        position: the last one that was processed; empty if the log is not followed.
        digest: of the record there.
        hello: the record from which on the log is followed.
        level_at: the time of `time.monotonic` up to which all records have been applied.
        recovering: whether the next records were missed while the connection was lost.
        retry_at: when to try to join it again.
        joining: whether an attempt is in flight outside the reader's task.
        settled: set when an attempt to join has ended.
    """

    def __init__(self, key: bytes) -> None:
        self.key: Final = key
        self.receivers: dict[Receiver, None] = {}
        self.position: bytes = b""
        self.digest: bytes = b""
        self.hello: bytes = b""
        self.level_at: float = 0.0
        self.recovering: bool = False
        self.refused: bool = False
        self.retry_at: float = 0.0
        self.joining = False
        self.settled: Final = asyncio.Event()

    @property
    def name(self) -> str:
        """For messages."""
        return repr(next(iter(self.receivers)).namespace) if self.receivers else repr(self.key)

    def start(self, at: float, position: bytes) -> None:
        """Follow the log from the position of `hello` on."""
        self.digest = xxh3_128_digest(self.hello)
        self.position, self.level_at, self.refused, self.recovering = position, at, False, False
        self.settled.set()
        for receiver in self.receivers:
            receiver.start(at, position)

    def level(self, at: float) -> None:
        """Extend the leases: all records up to a time have been applied."""
        self.level_at, self.recovering = at, False
        for receiver in self.receivers:
            receiver.level(self.level_at, self.position)

    def missed(self) -> None:
        """Note a gap: records may have been missed."""
        self.position = b""
        for receiver in self.receivers:
            receiver.missed()

    def advance(self, position: bytes, fields: Any) -> None:
        """Note that the entry at a position has been processed."""
        self.position, self.digest = position, _digest(fields)

    def has_last(self, found: Any) -> bool:
        """Return whether the log still has the last entry that was processed.

        A log that has replaced it may have another entry at the same position, if both were added in the same ms.

        Args:
            found: a list with the last entry up to the position, or without any.
        """
        entries = array(found)
        if not entries:
            return False
        position, fields = array(entries[0])
        return bool(position == self.position and _digest(fields) == self.digest)


def record_of(fields: Any) -> bytes | None:
    """Return the record of an entry; None if another program has written the entry."""
    return fields[1] if type(fields) is list and len(fields) == 2 and fields[0] == b"r" else None


def _digest(fields: Any) -> bytes:
    record = record_of(fields)
    return b"" if record is None else xxh3_128_digest(record)
