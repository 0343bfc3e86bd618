"""Spans of the waits for loads of other callers and other processes."""

import asyncio
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Final, Self

from acgsperf import hooks
from acgsperf.cache.single_flight import Flight

__all__ = ["WaitForProcesses", "in_span"]


def in_span(
    waiting: Awaitable[None],
    namespace: str,
    waits: Mapping[Flight, Sequence[str]],
    own: Flight | None,
    stale: Collection[str],
) -> Awaitable[None]:
    """Return an awaitable that awaits `waiting`, and makes a span of the wait for the loads of other callers.

    The span ends with the last of these loads. The caller may then still wait for its own load.

    Args:
        waiting: waits for loads.
        namespace: names the cache.
        waits: the loads, with their keys.
        own: the load that the caller has started.
        stale: the keys that have a stale value, so that the caller does not need the load.
    """
    joined = {flight: keys for flight, keys in waits.items() if flight is not own}
    return _WaitForLoads(namespace, joined, stale).around(waiting) if joined else waiting


class _WaitForLoads:
    __slots__ = ("_about", "_began_at", "_joined", "_pending", "_stale")

    def __init__(self, namespace: str, joined: Mapping[Flight, Sequence[str]], stale: Collection[str]) -> None:
        self._about: Final = hooks.about_cache(namespace, [key for keys in joined.values() for key in keys])
        self._joined: Final = joined
        self._stale: Final = stale
        self._began_at: Final = time.monotonic()
        self._pending = len(joined)

    async def around(self, waiting: Awaitable[None]) -> None:
        for flight in self._joined:
            flight.done.add_done_callback(self._ended)
        error: type[BaseException] | None = None
        try:
            await waiting
        except BaseException as raised:
            error = type(raised)
            raise
        finally:
            if self._pending:
                # The caller was cancelled, or its soft timeout has passed. Its leaving may have ended loads.
                self._pending = 0
                for flight in self._joined:
                    flight.done.remove_done_callback(self._ended)
                self._make_span(error)

    def _ended(self, done: asyncio.Future[None]) -> None:
        self._pending -= 1
        if not self._pending:
            # If all keys have a stale value, the caller gets that instead of the error.
            needed = [flight for flight, keys in self._joined.items() if any(key not in self._stale for key in keys)]
            self._make_span(next((flight.failure for flight in needed if flight.failure is not None), None))

    def _make_span(self, error: type[BaseException] | None) -> None:
        if hooks.spans is not None:
            elapsed_s = time.monotonic() - self._began_at
            hooks.spans.past("cache.wait_for_load", self._about, elapsed_s, error, self._joined)


class WaitForProcesses:
    """The waits of a load for other processes. A span ends before the load calls its own loader.

    As a context, it ends the wait if the load fails.

    Args:
        namespace: names the cache in the spans.
        flight: the load.
    """

    __slots__ = ("_began_at", "_flight", "_keys", "_namespace")

    def __init__(self, namespace: str, flight: Flight) -> None:
        self._namespace = namespace
        self._flight = flight
        self._keys: Sequence[str] = ()
        self._began_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.end(self._flight.failure_of(kind))

    def begin(self, keys: Sequence[str]) -> None:
        """Begin a wait for the loads of some keys, unless one has begun and not ended."""
        if not self._keys and hooks.spans is not None:
            self._began_at, self._keys = time.monotonic(), keys

    def end(self, error: type[BaseException] | None = None) -> None:
        """End the wait that has begun, if there is one."""
        if self._keys and hooks.spans is not None:
            about = hooks.about_cache(self._namespace, self._keys)
            hooks.spans.past("cache.wait_for_process", about, time.monotonic() - self._began_at, error)
        self._keys = ()
