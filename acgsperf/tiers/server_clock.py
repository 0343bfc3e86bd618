"""The clock of a server, as this process estimates it: all processes that use the server agree on it."""

import time
from typing import Final

__all__ = ["ServerClock"]

_SAMPLE_MAX_AGE_S: Final = 60.0


class ServerClock:
    """Converts between `time.monotonic` and the clock of a server, in seconds since the epoch.

    The offset between the two comes from the sample with the shortest round trip of the last minute, as in NTP. Until
    there is a sample, the server's clock is taken to be the wall clock of this machine.

    Attributes:
        offset: the server's clock minus the monotonic clock.
    """

    __slots__ = ("_asked_at", "_measured_at", "_round_trip", "offset")

    def __init__(self) -> None:
        self.offset: float = time.time() - time.monotonic()
        self._round_trip = float("inf")
        self._measured_at = self._asked_at = 0.0

    def is_due(self) -> bool:
        """Return whether a call should ask for the time as well: True once, if there was no sample for a minute."""
        now = time.monotonic()
        if now - self._asked_at < _SAMPLE_MAX_AGE_S:
            return False
        self._asked_at = now
        return True

    def measured(self, sent: float, received: float, server_time: float) -> None:
        """Take a sample: the server's time in a reply, and when this process sent the call and received the reply."""
        self._asked_at = received
        round_trip = received - sent
        offset = server_time - (sent + received) / 2
        contradicts = abs(offset - self.offset) > (round_trip + self._round_trip) / 2
        if round_trip <= self._round_trip or contradicts or received - self._measured_at > _SAMPLE_MAX_AGE_S:
            self.offset, self._round_trip, self._measured_at = offset, round_trip, received

    def deadline(self, until: float) -> float:
        """Return a time of the server's clock that is surely not after a time of `time.monotonic`.

        The offset may be wrong by half a round trip, so the result is earlier by that time.
        """
        error = self._round_trip / 2
        return until + self.offset - (error if error < float("inf") else 0)

    def now(self) -> float:
        """Return the server's time, in seconds since the epoch."""
        return time.monotonic() + self.offset

    def now_us(self) -> int:
        """Return the server's time, in microseconds since the epoch."""
        return int(self.now() * 1e6)
