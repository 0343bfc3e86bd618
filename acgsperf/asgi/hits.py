"""The fast path of the response cache: requests that L1 answers and that have no headers that the cache reads."""

from collections.abc import Callable

from acgsperf.asgi.exchange import AddedHeaders
from acgsperf.asgi.response_cache import CLOCK_TOLERANCE_S, ResponseCache
from acgsperf.asgi.routes import Routes
from acgsperf.asgi.stored import Stored
from acgsperf.asgi.types import RawHeaders, Scope
from acgsperf.dispatch import HitFinder

__all__ = ["Hit", "Hits"]

Hit = tuple[HitFinder, float, int, RawHeaders, bytes, Callable[[int], None]]
"""An answer that is ready to be sent: its finder, the time until which it is ready, status, headers, body, and the
recorder of its latency."""


class Hits:
    """Finds answers that are ready to be sent. The general path finds them too, and takes several times as long.

    Args:
        cache: has the stored responses.
        added: is added to the headers of all responses.
        routes: gets the latencies.

    Attributes:
        find: returns the answer to a GET without a body, and counts it; None if the general path must look for one.
    """

    def __init__(self, cache: ResponseCache, added: AddedHeaders, routes: Routes) -> None:
        self._cache = cache
        self._added = added
        self._routes = routes
        self._finder = HitFinder(cache.read_headers, cache.targets, cache.get_local, cache.ticks, self._prepared)
        self.find: Callable[[Scope], Hit | None] = self._finder.find

    @property
    def count(self) -> int:
        """The number of answers so far."""
        return self._finder.hits

    def _prepared(self, stored: object) -> Hit | None:
        """Return the answer with a response, ready for up to a second: until its `Age` changes. None: it is not fresh.

        The argument may also be part of a value of another user of the cache.
        """
        cache = self._cache
        now = cache.now()
        if (
            type(stored) is not Stored
            or stored.no_cache
            or now >= stored.born_at + stored.lifetime
            or now < stored.stored_at - CLOCK_TOLERANCE_S
        ):
            return None
        age = max(int(now - stored.born_at), 0)
        headers = [*stored.headers, *self._added.pairs, (b"age", b"%d" % age)]
        until = cache.ticks() + min(stored.born_at + age + 1, stored.born_at + stored.lifetime) - now
        hit = self._finder, until, stored.status, headers, stored.body, self._routes.recorder(stored.route)
        stored.ready = hit  # type: ignore[attr-defined]
        return hit
