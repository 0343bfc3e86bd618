"""What a balancer knows about one endpoint: its latency, its requests in flight, and whether it is ejected."""

import math
from dataclasses import dataclass
from itertools import count
from typing import Final

from acgsperf.balance.ejection import Ejection

__all__ = ["Endpoint", "EndpointStats"]


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """The state of an endpoint.

    Attributes:
        endpoint: its address.
        latency_s: the recent latency, which follows an increase at once and a decrease slowly; None before the first
            response.
        in_flight: requests that have not ended.
        picks: how often it was chosen.
        failures: requests that failed.
        ejected: whether it gets probes only.
        ejections: how often it was ejected.
    """

    endpoint: str
    latency_s: float | None
    in_flight: int
    picks: int
    failures: int
    ejected: bool
    ejections: int


class Endpoint:
    """The measurements of an endpoint.

    The latency is a peak EWMA: a response that is slower than the average replaces it, a faster one lowers it gradually
    (as in Finagle's `PeakEwma`). A slow endpoint therefore loses its requests at once.

    Args:
        address: the address of the endpoint.
        decay_s: seconds after which the weight of a measurement is 1/e.

    Attributes:
        address: the address of the endpoint.
        ejection: whether it is ejected, and until when.
        probing: whether a probe is in flight.
    """

    __slots__ = (
        "_decay_s",
        "_failures",
        "_latency_s",
        "_measured_at",
        "_numbers",
        "_picks",
        "_started",
        "_usual_s",
        "address",
        "ejection",
        "probing",
    )

    def __init__(self, address: str, decay_s: float) -> None:
        self.address: Final = address
        self.ejection: Final = Ejection()
        self.probing: bool = False
        self._decay_s = decay_s
        self._latency_s: float | None = None
        self._usual_s: float | None = None
        self._measured_at = 0.0
        # When each request in flight started, the oldest first.
        self._started: dict[int, float] = {}
        self._numbers = count()
        self._picks = self._failures = 0

    def usual_s(self, now: float) -> float | None:
        """Return the mean latency of about the last ten responses, or the age of the oldest request if that is higher.

        Returns:
            None before the first response.
        """
        if self._usual_s is None or not self._started:
            return self._usual_s
        return max(self._usual_s, now - next(iter(self._started.values())))

    @property
    def in_flight(self) -> int:
        """The number of requests that have not ended."""
        return len(self._started)

    def latency_s(self, now: float) -> float | None:
        """Return the latency that a new request can expect; None before the first response.

        The oldest request in flight is a lower bound. Without new measurements the latency decreases, so that an
        endpoint that was slow is tried again.
        """
        latency_s = self._latency_s
        if latency_s is not None:
            latency_s *= math.exp((self._measured_at - now) / self._decay_s)
        if self._started:
            oldest_s = now - next(iter(self._started.values()))
            if latency_s is None:
                return oldest_s or None
            return max(latency_s, oldest_s)
        return latency_s

    def start(self, now: float) -> int:
        """Count a request; return its number."""
        number = next(self._numbers)
        self._started[number] = now
        self._picks += 1
        return number

    def end(self, number: int) -> None:
        """Stop counting a request as in flight."""
        self._started.pop(number, None)

    def measure(self, took_s: float, now: float) -> None:
        """Note the duration of a request."""
        latency_s = self._latency_s
        if latency_s is None or took_s >= latency_s:
            self._latency_s = took_s
        else:
            kept = math.exp((self._measured_at - now) / self._decay_s)
            self._latency_s = latency_s * kept + took_s * (1 - kept)
        self._measured_at = now
        self._usual_s = took_s if self._usual_s is None else self._usual_s + (took_s - self._usual_s) / 10

    def note_good(self) -> bool:
        """Note a response that was neither slow nor a failure. Return whether it ended an ejection."""
        if not self.ejection.note_good():
            return False
        # Measurements from before the ejection no longer describe the endpoint.
        self._latency_s = self._usual_s = None
        return True

    def note_bad(self, failed: bool) -> bool:
        """Note a slow response or a failure. Return whether the endpoint should be ejected, or ejected for longer."""
        self._failures += failed
        return self.ejection.note_bad()

    def stats(self, now: float) -> EndpointStats:
        """Return the state as a value."""
        return EndpointStats(
            self.address,
            self.latency_s(now),
            self.in_flight,
            self._picks,
            self._failures,
            self.ejection.until is not None,
            self.ejection.count,
        )
