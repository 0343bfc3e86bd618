"""Where a dashboard gets its snapshots from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from acgsperf.cache.types import Written
from acgsperf.dashboard.snapshot import Point, Snapshot, TrendState
from acgsperf.errors import AcgsperfError

__all__ = ["SnapshotSource"]


class SnapshotSource(ABC):
    """What a dashboard shows: a service, a page of metrics, or something of your own.

    The dashboard calls every method in its event loop. It calls `snapshot` and `trends` only while there are viewers.
    When the last one leaves, it cancels these calls, and then calls `close`.
    """

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """Return the figures of the time since the last call.

        An exception is shown on the page, and the next call is made as usual.
        """

    def history(self) -> Sequence[Point]:
        """Return what is known of the time before the first snapshot, the oldest point first."""
        return ()

    async def trends(self) -> TrendState | None:
        """Return the last weeks; None if they are not kept. The page asks again after their `next_s`."""
        return None

    def start(self) -> None:  # noqa: B027
        """Begin to measure what costs something: the first viewer has come."""

    def stop(self) -> None:  # noqa: B027
        """Stop measuring: the last viewer has left."""

    async def close(self) -> None:  # noqa: B027
        """Release what `snapshot` and `trends` have opened, after `stop`.

        `snapshot` and `trends` may be called again when this has returned. If a viewer comes before that, `start` and
        `history` are called at once.
        """

    def cache_names(self) -> Sequence[str]:
        """Return the names of the caches in which `invalidate` removes entries."""
        return ()

    async def invalidate(self, cache: str, *, key: str | None = None, tag: str | None = None) -> Written:
        """Remove a key, or every entry with a tag, from all tiers of a cache.

        Raises:
            AcgsperfError: if there is no such cache, or if the entries cannot be removed.
        """
        raise AcgsperfError(f"there is no cache {cache!r:.100} here")
