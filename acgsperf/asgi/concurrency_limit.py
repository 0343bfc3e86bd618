"""Limits the requests in flight in an application, by the latency of its responses."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from acgsperf._native.arguments import checked_int
from acgsperf.asgi.types import App, Message, Receive, Scope, Send
from acgsperf.counting import note

__all__ = ["ConcurrencyLimit", "ConcurrencyLimitStats"]

# A measurement ends after this time, if it has this many responses.
_WINDOW_S: Final = 0.1
_WINDOW_RESPONSES: Final = 10
# How fast the usual latency follows the measured one. While requests are refused, the latency says little about the
# application. The usual latency follows it slowly, because a new version may be slower permanently.
_FOLLOW: Final = 0.05
_FOLLOW_WHILE_REFUSING: Final = 0.001
_FIRST_LIMIT: Final = 20


@dataclass(frozen=True, slots=True)
class ConcurrencyLimitStats:
    """The state of a `ConcurrencyLimit`.

    Attributes:
        limit: how many requests may be in flight.
        in_flight: requests in the application now.
        accepted: requests that the application got.
        refused: requests that were answered with 503.
        usual_latency_s: the mean latency when no request is refused; None before the first measurement.
    """

    limit: int
    in_flight: int
    accepted: int
    refused: int
    usual_latency_s: float | None


class ConcurrencyLimit:
    """Wraps an ASGI application, and refuses requests with 503 and `Retry-After` before latency collapses.

    An application that gets more requests than it can answer gets slower for all of them, until every client gives up.
    With a limit, it answers as many requests as it can at nearly its usual speed, and refuses the others at once. The
    limit adapts to the measured latency. If responses take at most `tolerance` times their usual time, and the limit is
    used, it rises. If they take longer, it falls in proportion, as the gradient of Netflix's `concurrency-limits` does.

        app = PerformanceMiddleware(ConcurrencyLimit(app), cache=cache, stale_if_error=60)

    Put it inside of `PerformanceMiddleware`: then responses from the cache are not limited, and `stale_if_error` serves
    a stale response to a refused request. Scopes other than HTTP pass through. The latency of a response ends with its
    first byte.

    Args:
        app: the application.
        min_limit: the limit never falls below this number, at least 1.
        max_limit: the limit never rises above this number.
        tolerance: how many times the usual latency is acceptable, at least 1. A lower value keeps the latency lower in
            an overload, and refuses more requests if the latency varies by itself.
        retry_after: seconds after which a refused client may try again, at least 1.
        exempt: paths that are neither limited nor measured, for example `("/health",)`.
        clock: returns seconds and never goes back.

    Raises:
        TypeError, ValueError: if an argument is of the wrong type, or out of range.
    """

    def __init__(
        self,
        app: App,
        *,
        min_limit: int = 4,
        max_limit: int = 1_000,
        tolerance: float = 1.5,
        retry_after: int = 1,
        exempt: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(exempt, str):
            raise TypeError(f"exempt must be a collection of str, got the str {exempt!r:.100}")
        if not 1 <= checked_int("min_limit", min_limit) <= checked_int("max_limit", max_limit):
            raise ValueError(f"min_limit must be from 1 to max_limit, which is {max_limit}, got {min_limit}")
        if not 1 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be at least 1, got {tolerance}")
        if checked_int("retry_after", retry_after) < 1:
            raise ValueError(f"retry_after must be at least 1, got {retry_after}")
        self._app = app
        self._min_limit: Final = min_limit
        self._max_limit: Final = max_limit
        self._tolerance: Final = tolerance
        self._retry_after: Final = str(retry_after).encode()
        self._exempt: Final = frozenset(exempt)
        self._clock = clock
        self._limit = float(min(max(_FIRST_LIMIT, min_limit), max_limit))
        self._in_flight = self._accepted = self._refused = 0
        self._usual_s: float | None = None
        # The current measurement.
        self._since = clock()
        self._responses = 0
        self._took_s = 0.0
        self._most_in_flight = 0
        self._refused_before = 0
        note(self)

    def stats(self) -> ConcurrencyLimitStats:
        """Return the limit and the counts."""
        return ConcurrencyLimitStats(int(self._limit), self._in_flight, self._accepted, self._refused, self._usual_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        if self._in_flight >= int(self._limit):
            self._refused += 1
            await self._refuse(send)
            return
        self._in_flight += 1
        self._accepted += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        started = self._clock()
        answered = False

        async def measured(message: Message) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._note(self._clock() - started)
            await send(message)

        try:
            await self._app(scope, receive, measured)
        finally:
            self._in_flight -= 1

    async def _refuse(self, send: Send) -> None:
        body = b"too many requests in flight\n"
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", self._retry_after),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _note(self, took_s: float) -> None:
        """Note the latency of a response."""
        self._responses += 1
        self._took_s += took_s
        now = self._clock()
        if self._responses < _WINDOW_RESPONSES or now - self._since < _WINDOW_S:
            return
        self._adapt(self._took_s / self._responses)
        self._since = now
        self._responses = 0
        self._took_s = 0.0
        self._most_in_flight = self._in_flight
        self._refused_before = self._refused

    def _adapt(self, mean_s: float) -> None:
        """Change the limit by the mean latency of a measurement."""
        refusing = self._refused > self._refused_before
        if self._usual_s is None:
            self._usual_s = mean_s
        else:
            self._usual_s += (mean_s - self._usual_s) * (_FOLLOW_WHILE_REFUSING if refusing else _FOLLOW)
        # At least one half, so that one slow measurement does not stop the application.
        gradient = max(0.5, min(1.0, self._tolerance * self._usual_s / mean_s)) if mean_s > 0 else 1.0
        limit = self._limit * gradient
        if gradient == 1.0:
            if self._most_in_flight < self._limit / 2:
                # A limit that is not reached would rise without end.
                return
            limit += math.sqrt(limit) / 2
        self._limit = max(self._min_limit, min(self._max_limit, limit))
