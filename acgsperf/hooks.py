"""What an exporter may hook into the caches, tiers and pools: spans, connection times, and the users of connections.

Every hook is None until `acgsperf.metrics` sets it. The code that calls a hook tests that first, so that it costs
nothing if nobody wants to know.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from acgsperf.dispatch import LatencyHistogram

__all__ = [
    "CACHE",
    "KEYS",
    "POOL",
    "TIER",
    "Spans",
    "connection_times",
    "connection_uses",
    "note_connection_use",
    "spans",
]

_T = TypeVar("_T")


class Spans(Protocol):
    """Makes spans of what takes time."""

    def during(
        self, name: str, attributes: Mapping[str, str | int], work: Awaitable[_T], *, load: Any = None, waits: Any = ()
    ) -> Awaitable[_T]:
        """Return what awaits some work within a span, and returns its result.

        Args:
            name: of the span, without the prefix of the package.
            attributes: of the span.
            work: what is awaited.
            load: an object whose attribute `span` is set to the span.
            waits: such objects, whose spans are linked.
        """

    def past(self, name: str, attributes: Mapping[str, str | int], seconds: float) -> None:
        """Make a span of the last `seconds`."""

    def tier_call(self, tier: str, keys: int, usual: "LatencyHistogram", elapsed_ns: int) -> None:
        """Make a span of a call that has just ended if it took longer than 95 % of the calls before."""


# Attributes: a pool, as the semantic conventions call it, a cache, its tier, the tier as messages call it, and how many
# keys.
POOL: Final = "db.client.connection.pool.name"
CACHE: Final = "acgsperf.cache.name"
TIER: Final = "acgsperf.cache.tier"
SERVER: Final = "acgsperf.tier"
KEYS: Final = "acgsperf.cache.keys"

spans: Spans | None = None
# Called with "wait", "use" or "create", the name of a pool, and seconds.
connection_times: Callable[[str, str, float], object] | None = None
# The connections that the current request has returned: for each pool their number and the ns of their use.
connection_uses: ContextVar[dict[str, tuple[int, int]] | None] = ContextVar("connection_uses", default=None)


def note_connection_use(pool: str, used_ns: int) -> None:
    """Count the use of a connection for the current request, if there is one, and for `connection_times`."""
    if connection_times is not None:
        connection_times("use", pool, used_ns / 1e9)
    if (uses := connection_uses.get()) is not None:
        number, total_ns = uses.get(pool, (0, 0))
        uses[pool] = (number + 1, total_ns + used_ns)
