"""What `ConnectionPool.acquire` returns, and the choice of a replica for those who only read."""

import asyncio
import random
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from acgsperf.errors import PoolClosed, PoolError, PoolSaturated, PoolTimeout, PoolUnhealthy

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Sequence

    from acgsperf.pool.connection_pool import ConnectionPool
    from acgsperf.pool.slot import Lease, Place

__all__ = ["Acquire"]

# Of the time-out; the rest is for the primary.
_REPLICA_SHARE: Final = 0.5


class Acquire:
    """What `acquire` returns: to be awaited, or entered."""

    __slots__ = ("_entered", "_lease", "_place", "_pool", "_readonly", "_timeout")

    def __init__(self, pool: "ConnectionPool", timeout: float, readonly: bool, place: "Place | None") -> None:
        self._pool = pool
        self._timeout = timeout
        self._readonly = readonly
        self._place = place
        self._lease: Lease | None = None
        self._entered = False

    def __await__(self) -> "Generator[Any, None, Lease]":
        return self._take().__await__()

    def _take(self) -> "Coroutine[Any, Any, Lease]":
        replica = _better_replica(self._pool.replicas) if self._readonly else None
        if replica is None:
            return self._pool._take(self._timeout, self._place)
        return self._take_from(replica)

    async def _take_from(self, replica: "ConnectionPool") -> "Lease":
        start = time.monotonic()
        try:
            return await replica._take(self._timeout * _REPLICA_SHARE, self._place)
        except (PoolTimeout, PoolUnhealthy, PoolSaturated, PoolClosed):
            left = self._timeout - (time.monotonic() - start)
            return await self._pool._take(max(left, 0.0), self._place)

    async def __aenter__(self) -> "Lease":
        if self._entered:
            raise PoolError("this context has been entered; every one needs an acquire of its own")
        self._entered = True
        try:
            self._lease = lease = await self._take()
        except BaseException:
            self._entered = False
            raise
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease, self._entered = self._lease, None, False
        assert lease is not None
        task = self._pool._take_back(lease)
        # One who ran out of time, or was cancelled, does not wait for a server that may not answer.
        if task is not None and not isinstance(error, TimeoutError | asyncio.CancelledError):
            await asyncio.wait((task,))


def _better_replica(replicas: "Sequence[ConnectionPool]") -> "ConnectionPool | None":
    healthy = [replica for replica in replicas if replica._open and replica.healthy]
    # The power of two choices: nearly as good as the best of all, and no herd runs to the one that looked best.
    two = random.sample(healthy, min(2, len(healthy)))
    known = all(replica._recent_use_s for replica in two)
    return min(two, key=lambda replica: replica._load(known), default=None)
