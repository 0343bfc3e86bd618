"""Hooks of the caches, tiers and pools that an exporter may set: spans, and the times and uses of connections.

Every hook is None until `acgsperf.metrics` or `acgsperf.asgi` sets it. A caller of a hook checks for None first, so an
unset hook costs almost nothing.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar

__all__ = [
    "CACHE",
    "KEYS",
    "POOL",
    "TIER",
    "TIER_LABEL",
    "ConnectionUses",
    "Spans",
    "about_cache",
    "connection_times",
    "connection_uses",
    "note_connection_use",
    "spans",
]

_T = TypeVar("_T")


class Spans(Protocol):
    """Makes spans of operations that take time."""

    def during(
        self, name: str, attributes: Mapping[str, str | int], work: Awaitable[_T], *, load: Any = None
    ) -> Awaitable[_T]:
        """Return an awaitable that awaits `work` within a span, and returns its result.

        Args:
            name: the name of the span, without the prefix of the package.
            attributes: the attributes of the span.
            work: the operation.
            load: an object whose attribute `span` is set to the span. Its method `failure_of` is called with the type
                of the error that has ended `work`, or None. It returns the type of the error of the span, or None.
        """

    def past(
        self,
        name: str,
        attributes: Mapping[str, str | int],
        seconds: float,
        error: type[BaseException] | None = None,
        loads: Iterable[Any] = (),
    ) -> None:
        """Make a span of the operation that took the last `seconds`.

        Args:
            name: the name of the span, without the prefix of the package.
            attributes: the attributes of the span.
            seconds: how long it took.
            error: the type of its error.
            loads: objects like the `load` of `during`; the span gets links to their spans.
        """

    def batch(
        self, name: str, of: object, tier: str, keys: int, elapsed_ns: int, error: type[BaseException] | None, /
    ) -> None:
        """Make a span of a batch that has just ended, if it failed, or took longer than 95 % of the others.

        Args:
            name: the name of the span, without the prefix of the package.
            of: the batches with this name and of this object are compared. It can be referenced weakly.
            tier: names the tier.
            keys: the number of keys.
            elapsed_ns: how long it took.
            error: the type of its error; None if it did not fail.
        """


class ConnectionUses(Protocol):
    """Counts the connections that a request uses."""

    def note(self, pool: str, used_ns: int, /) -> None:
        """Count a connection of a pool that was returned after a use of `used_ns`."""


# The names of attributes. That of a pool is from the semantic conventions.
POOL: Final = "db.client.connection.pool.name"
CACHE: Final = "acgsperf.cache.name"
# "l1", "l2" or "l3".
TIER: Final = "acgsperf.cache.tier"
# A tier as log messages name it.
TIER_LABEL: Final = "acgsperf.tier"
# The number of keys.
KEYS: Final = "acgsperf.cache.keys"

spans: Spans | None = None
# Called with "wait", "use" or "create", the name of the pool, and the seconds.
connection_times: Callable[[str, str, float], object] | None = None
# That of the current request. Tasks that it has started may outlive it, for example a load.
connection_uses: ContextVar[ConnectionUses | None] = ContextVar("connection_uses", default=None)


def about_cache(namespace: str, keys: Collection[str]) -> dict[str, str | int]:
    """Return the attributes of a span of a cache."""
    return {CACHE: namespace, KEYS: len(keys)}


def note_connection_use(pool: str, used_ns: int) -> None:
    """Pass the use of a connection to `connection_times`, and count it for the current request, if there is one."""
    if connection_times is not None:
        connection_times("use", pool, used_ns / 1e9)
    if (uses := connection_uses.get()) is not None:
        uses.note(pool, used_ns)
