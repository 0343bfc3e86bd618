"""The order in which a pool tries its servers."""

import random
from collections.abc import Callable, Sequence
from typing import Final

from acgsperf.pool.server_address import Endpoint

# For this time, a server that failed comes last in a random order. The pool then tries it again.
_SUSPECT_S: Final = 30.0


class Hosts:
    """The servers that a pool may connect to.

    Args:
        endpoints: the servers, in the order of the DSN; empty if asyncpg chooses one.
        shuffled: whether they are tried in random order. Otherwise the one that accepted the last connection comes
            first.
        clock: returns seconds.

    Attributes:
        endpoints: the servers, the best one first.
    """

    __slots__ = ("_clock", "_shuffled", "_suspect_until", "endpoints")

    def __init__(self, endpoints: Sequence[Endpoint], shuffled: bool, clock: Callable[[], float]) -> None:
        self.endpoints: Final = list(endpoints)
        self._shuffled = shuffled
        self._clock = clock
        # By the identity of the endpoint.
        self._suspect_until: dict[int, float] = {}

    def in_order(self) -> list[Endpoint]:
        """Return the servers in the order in which to try them."""
        if not self._shuffled:
            return list(self.endpoints)
        now = self._clock()
        shuffled = random.sample(self.endpoints, len(self.endpoints))
        return sorted(shuffled, key=lambda endpoint: self._suspect_until.get(id(endpoint), now) > now)

    def note_failure(self, failed: Endpoint) -> None:
        """Try a server last, because it refused a connection or did not answer."""
        self._suspect_until[id(failed)] = self._clock() + _SUSPECT_S
        # This also puts the server that accepted the last connection first.
        self.endpoints.sort(key=lambda endpoint: endpoint is failed)

    def note_success(self, endpoint: Endpoint) -> None:
        """Trust a server that accepted a connection."""
        self._suspect_until.pop(id(endpoint), None)
