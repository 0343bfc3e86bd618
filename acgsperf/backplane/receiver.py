"""Passes the records of a log on to one cache, and counts them."""

import logging
from typing import Final

from acgsperf.backplane.base import BackplaneState, BackplaneStats, Listener
from acgsperf.dispatch import LatencyHistogram
from acgsperf.tiers.records import MalformedRecordError, Record, RecordKind, unpacked
from acgsperf.tiers.server_clock import ServerClock

__all__ = ["Counts", "Receiver", "parsed"]

_log: Final = logging.getLogger("acgsperf.backplane")
# A greater lag comes from a foreign writer with a wrong time.
_LONGEST_LAG_US: Final = 3_600_000_000
# Two processes estimate the server's clock. Their estimates may differ by up to this time.
_EARLIEST_US: Final = -60_000_000


def parsed(data: object) -> Record | None:
    """Return the record in these bytes, or None if there is none."""
    if type(data) is not bytes:
        return None
    try:
        return unpacked(data)
    except MalformedRecordError:
        return None


class Counts:
    """The counts of a backplane; see `BackplaneStats`."""

    def __init__(self) -> None:
        self.state = BackplaneState.OFF
        self.sent = self.received = self.applied = self.recovered = self.gaps = self.malformed = 0
        self.lag: Final = LatencyHistogram()

    def stats(self, queued: int) -> BackplaneStats:
        """Return the counts so far."""
        return BackplaneStats(
            state=self.state,
            sent=self.sent,
            received=self.received,
            applied=self.applied,
            recovered=self.recovered,
            gaps=self.gaps,
            malformed=self.malformed,
            queued=queued,
            lag=self.lag.snapshot(),
        )


class Receiver:
    """One cache that follows a log.

    Args:
        namespace: the namespace of the cache.
        listener: gets the records.
        writer: records of this writer are not applied.
        timeout: how long the lease of L1 is, in seconds.
        counts: where to count.

    Attributes:
        position: the last position in the log that was processed; empty if the cache does not follow the log.
        joined: whether the cache has followed the log before.
    """

    def __init__(self, namespace: str, listener: Listener, writer: bytes, timeout: float, counts: Counts) -> None:
        self.namespace: Final = namespace
        self.timeout: Final = timeout
        self.counts: Final = counts
        self.position: bytes = b""
        self.joined: bool = False
        self._listener = listener
        self._writer = writer
        counts.state = BackplaneState.CONNECTING

    def take(self, record: Record | None, clock: ServerClock, *, recovering: bool) -> None:
        """Pass on a record of another cache; None for one that could not be parsed."""
        counts = self.counts
        if record is None:
            counts.received += 1
            counts.malformed += 1
            return
        if record.kind is RecordKind.HELLO:
            return
        if record.writer == self._writer:
            counts.sent += 1
            return
        counts.received += 1
        lag_us = clock.now_us() - record.sent_us
        if _EARLIEST_US <= lag_us <= _LONGEST_LAG_US:
            counts.lag.record(max(lag_us, 0) * 1000)
        try:
            self._listener.apply(record)
        except Exception:
            # The other caches of this connection must still get their records.
            _log.exception("backplane %r: the cache could not apply a record; L1 is verified", self.namespace)
            self._listener.missed()
        counts.applied += 1
        counts.recovered += recovering

    def start(self, at: float, position: bytes) -> None:
        """Follow the log from this position on. The entries of L1 may be older, so they are verified."""
        self.joined = True
        self._listener.missed()
        self.level(at, position)

    def level(self, at: float, position: bytes) -> None:
        """Extend the lease: all records up to this position and this time of `time.monotonic` have been applied."""
        self.position = position
        self.counts.state = BackplaneState.FOLLOWING
        self._listener.extend(at + self.timeout)

    def missed(self) -> None:
        """Note a gap: records may have been missed. The reader calls `start` next."""
        self.counts.gaps += 1
        self.lost()
        self.position = b""

    def lost(self) -> None:
        """Note that no records arrive at present."""
        self.counts.state = BackplaneState.RECOVERING if self.joined else BackplaneState.CONNECTING

    def refused(self) -> None:
        """Note that the server refuses to let the cache follow the log."""
        self.counts.state = BackplaneState.OFF
