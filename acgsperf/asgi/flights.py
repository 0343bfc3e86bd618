"""Single flight for responses: simultaneous misses of one key call the application once."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from acgsperf.dispatch import LRUCache

if TYPE_CHECKING:
    from acgsperf.asgi.client import Client
    from acgsperf.asgi.stored import Stored
    from acgsperf.cache.pending import PendingLoad

__all__ = ["Flight", "Flights"]

# How long other requests wait for the body after the headers of a response, or for the headers in a call that has no
# client. Then they call the application themselves, because the response may be endless, or its client slow.
_WAIT_S: Final = 5.0
# How long requests for a key do not wait for each other after a response that could not be shared.
_UNSHARED_S: Final = 600.0
_MAX_UNSHARED: Final = 10_000


class Flight:
    """One call of the application, for which other requests may wait.

    Args:
        root: the key of the URI in the cache.
        client: the client of the call; None if it has none.

    Attributes:
        failed: whether the application has failed, and the stale response answers instead.
        load: stores the response; None until the lower tiers were observed. Tells whether a write has superseded it.
        response: the complete response; None until its last byte. It is stored when the application has returned.
        key: the key of the response, which depends on the request.
        tags: those of the response, when they are known.
        is_abandoned: whether other requests wait for it no longer: its client has left, or it has none and is slow.
    """

    __slots__ = ("_client", "_decided", "_done", "_root", "failed", "is_abandoned", "key", "load", "response", "tags")

    def __init__(self, root: str, client: "Client | None") -> None:
        loop = asyncio.get_running_loop()
        self._root = root
        self._client = client
        self._decided: asyncio.Future[bool] = loop.create_future()
        self._done: asyncio.Future[bool] = loop.create_future()
        self.failed: bool = False
        self.load: PendingLoad | None = None
        self.response: Stored | None = None
        self.key: str = ""
        self.tags: tuple[str, ...] = ()
        self.is_abandoned: bool = False

    @property
    def is_current(self) -> bool:
        """Whether its response may answer others: no write has superseded it, and its client waits for it."""
        return not self.is_abandoned and (self.load is None or self.load.is_current(self._root, self.tags))

    def decide(self, shareable: bool) -> None:
        """Announce to the waiting requests whether the response will be stored. False may follow True."""
        if not self._decided.done():
            self._decided.set_result(shareable)
        elif not shareable and not self._done.done():
            self._done.set_result(False)

    def complete(self, response: "Stored", key: str) -> None:
        """Give the waiting requests the response: its last byte was sent. Nothing if a write has superseded it."""
        if self.is_current:
            self.response, self.key = response, key
        if not self._done.done():
            self._done.set_result(True)

    def fail(self) -> None:
        """Announce that the application has failed. The waiting requests may use the stale response, too."""
        self.failed = True
        self.decide(False)

    def end(self) -> None:
        """Release the waiting requests. If nothing was decided, the call was cancelled, and one of them calls again."""
        if not self._decided.done():
            self._decided.set_result(True)
        if not self._done.done():
            self._done.set_result(True)

    async def wait(self, client: "Client") -> bool:
        """Wait for the response, and return True if it is there or if the cache may have it.

        Returns False as soon as it is known that the response will not be stored, or if its body takes too long. If
        the client of the call leaves before the application has answered, one of the waiting requests calls again.

        Args:
            client: the client of the waiting request. The wait ends when it leaves.
        """
        if not self._decided.done():
            waits: list[asyncio.Future[Any]] = [self._decided, client.leaving()]
            if self._client is not None:
                waits.append(self._client.leaving())
            timeout = _WAIT_S if self._client is None else None
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not self._decided.done():
                # The others go on waiting if only this client has left.
                self.is_abandoned = not client.has_left or (self._client is not None and self._client.has_left)
                return True
        if not self._decided.result():
            return False
        await asyncio.wait((self._done,), timeout=_WAIT_S)
        return self._done.done() and self._done.result()


class Flights:
    """The calls of the application whose responses may answer several requests: at most one for each key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}
        # The keys whose last response could not be shared. Requests for them do not wait for each other.
        self._unshared: LRUCache[str, bool] = LRUCache(_MAX_UNSHARED)

    def get(self, key: str) -> Flight | None:
        """Return the call that a request may wait for."""
        flight = self._flights.get(key)
        return flight if flight is not None and flight.is_current else None

    def start(self, key: str, root: str, client: "Client | None") -> Flight | None:
        """Start a flight; None if the responses for the key cannot be shared.

        Args:
            key: which requests share the response.
            root: the key of their URI in the cache.
            client: the client of the call; None if it has none.
        """
        if self._unshared.get(key) is not None:
            return None
        flight = self._flights[key] = Flight(root, client)
        return flight

    def remember(self, key: str, shareable: bool) -> None:
        """Remember whether the responses for a key can be shared."""
        if not shareable:
            self._unshared.set(key, True, ttl=_UNSHARED_S)
        elif len(self._unshared):
            self._unshared.pop(key, None)

    def end(self, key: str, flight: Flight) -> None:
        """End a flight."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.end()
